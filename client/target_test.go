package client

import "testing"

func TestLocalTargets(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]bool{
		"localhost:50051":                      true,
		"LocalHost:1":                          true,
		"127.0.0.1:50051":                      true,
		"127.9.9.9":                            true,
		"[::1]:50051":                          true,
		"[::1]":                                true,
		"[::ffff:127.0.0.1]:1":                 true,
		":50051":                               true,
		"dns:///localhost:50051":               true,
		"dns:localhost:50051":                  true,
		"dns:/127.0.0.1:1":                     true,
		"passthrough:///127.0.0.1:50051":       true,
		"ipv4:127.0.0.1:1,127.0.0.2:2":         true,
		"ipv6:[::1]:1":                         true,
		"unix:/run/maildispatch.sock":          true,
		"unix:///run/maildispatch.sock":        true,
		"unix-abstract:maildispatch":           true,
		"mail.internal:50051":                  false,
		"localhost.example.com:1":              false,
		"10.0.0.1:50051":                       false,
		"0.0.0.0:50051":                        false,
		"[fe80::1]:50051":                      false,
		"dns://127.0.0.1/mail.internal:50051":  false, // the authority is the name server
		"dns://localhost/":                     false,
		"ipv4:127.0.0.1:1,10.0.0.1:1":          false,
		"xds:///localhost":                     false,
		"127.0.0.1@mail.internal:1":            false,
		"passthrough:///mail.internal:50051":   false,
		"https://localhost:50051":              false,
		"localhost:50051,mail.internal:50051":  false,
		"dns:///mail.internal:1,localhost:123": false,
		"":                                     false,
	} {
		if got := local(target); got != want {
			t.Errorf("local(%q) = %v", target, got)
		}
	}
}

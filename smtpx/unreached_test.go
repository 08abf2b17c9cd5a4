package smtpx_test

import (
	"testing"

	"github.com/maildispatch/maildispatch/smtpx"
)

// TestHideUnreached: what happens before a server has greeted reads the same, whatever stands
// around it; what comes later, and what a server has said, stays as it is.
func TestHideUnreached(t *testing.T) {
	for text, want := range map[string]string{
		"connect: connection refused":                               smtpx.Unreached,
		"connect: destination is not allowed":                       smtpx.Unreached,
		"greeting: the answer is not SMTP":                          smtpx.Unreached,
		"greeting: 554 5.7.1 go away":                               smtpx.Unreached,
		"greeting: no answer in time: i/o timeout":                  smtpx.Unreached,
		"tls: tls: first record does not look like a TLS handshake": smtpx.Unreached,
		"tls: EOF":                                 smtpx.Unreached,
		"gave up: connect: connection refused":     "gave up: " + smtpx.Unreached,
		"a@y.example: connect: connection refused": "a@y.example: " + smtpx.Unreached,
		"gave up: a@y.example: greeting: 421 busy": "gave up: a@y.example: " + smtpx.Unreached,
		"the mail server is suspended until 2026-11-30T12:00:00Z: connect: connection refused": "the mail server is suspended until 2026-11-30T12:00:00Z: " + smtpx.Unreached,
		"tls: tls: failed to verify certificate: x509: certificate has expired":                "",
		"tls: remote error: tls: protocol version not supported":                               "",
		"name lookup: no such host":                  "",
		"ehlo: 501 connect: no":                      "",
		"login: 535 5.7.8 connect: no":               "",
		"a@y.example: 550 5.7.1 policy: connect: no": "",
		"550 connect: no":                            "",
		"after the dot: connect: no":                 "",
		"":                                           "",
		"the caller went away":                       "",
	} {
		if want == "" {
			want = text
		}
		got, hidden := smtpx.HideUnreached(text)
		if got != want || hidden != (want != text) {
			t.Errorf("%q: got %q, %v, want %q", text, got, hidden, want)
		}
	}
}

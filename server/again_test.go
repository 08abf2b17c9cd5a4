package server

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestUnknownVariables: a variable of ours that no flag has is named at the start, and none of
// those that others set.
func TestUnknownVariables(t *testing.T) {
	for _, name := range []string{"MAILDISPATCH_LISTEN", "MAILDISPATCH_LISTENN", "MAILDISPATCH_METRICS_LISTEN", "MAILDISPATCH_SERVICE_HOST", "MAILDISPATCH_SERVICE_PORT_GRPC", "MAILDISPATCH_PORT_50051_TCP_ADDR",
		"MAILDISPATCH_TEST_FULL", "MAILDISPATCH_DATABSE", "XMAILDISPATCH_FOO"} {
		t.Setenv(name, "127.0.0.1:0")
	}
	var log bytes.Buffer
	c, fs := Config{LogOutput: &log}, flag.NewFlagSet("serve", flag.ContinueOnError)
	if err := c.Flags(fs); err != nil {
		t.Fatal(err)
	}
	slices.Sort(c.unknown)
	if want := []string{"MAILDISPATCH_DATABSE", "MAILDISPATCH_LISTENN"}; !slices.Equal(c.unknown, want) {
		t.Errorf("got %q, want %q", c.unknown, want)
	}
	if err := fs.Parse([]string{"-database=sqlite:" + filepath.Join(t.TempDir(), "mail.db"), "-metrics-listen=", "-admin-socket=none"}); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	s.tellBuild(t.Context())
	if err := errors.Join(s.closePorts(), s.store.Close()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "MAILDISPATCH_DATABSE MAILDISPATCH_LISTENN") {
		t.Errorf("the log does not name them: %s", log.String())
	}
}

// TestHangup: at a SIGHUP the service goes on, and has what its files say now; without it they
// are looked at a second later.
func TestHangup(t *testing.T) {
	dir := t.TempDir()
	write := func() (cert []byte) {
		_, cert, key := authority(t, "mail.internal")
		for name, b := range map[string][]byte{"cert": cert, "key": key} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return cert
	}
	write()
	s := serve(t, "-tls-cert="+filepath.Join(dir, "cert"), "-tls-key="+filepath.Join(dir, "key"))
	signals, ctx := make(chan os.Signal), t.Context()
	go s.ReadAgainOn(ctx, signals)
	before, err := s.transport.pair.get()
	if err != nil {
		t.Fatal(err)
	}
	write()
	// as if somebody had looked a moment ago, however slow this machine is
	s.transport.pair.mu.Lock()
	s.transport.pair.looked = time.Now().Add(lookAgain / 2)
	s.transport.pair.mu.Unlock()
	signals <- syscall.SIGHUP
	signals <- syscall.SIGHUP // is taken when the first is done
	s.transport.pair.mu.Lock()
	now := s.transport.pair.value
	s.transport.pair.mu.Unlock()
	if bytes.Equal(now.Certificate[0], before.Certificate[0]) {
		t.Error("the service still has the certificate of before")
	}
}

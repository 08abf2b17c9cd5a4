package server

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// TestCrowd: who is over a bound of connections is hung up on, others are let in, and a place
// is free again when its connection ends, however often that is closed.
func TestCrowd(t *testing.T) {
	inner, err := net.Listen("tcp4", ":0") // any address of this machine
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	refused := 0
	l := newCrowd(inner, 3, 2, slog.New(slog.NewTextHandler(&log, nil)), func() { refused++ })
	defer l.Close()
	accepted := make(chan net.Conn, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	_, port, _ := net.SplitHostPort(inner.Addr().String())
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}
		c, err := d.Dial("tcp4", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	in := func(from string) net.Conn {
		t.Helper()
		dial(from)
		select {
		case c := <-accepted:
			return c
		case <-time.After(time.Minute):
			t.Fatalf("from %s: not let in", from)
			return nil
		}
	}
	out := func(from string) {
		t.Helper()
		c := dial(from)
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("from %s: got %d octets, %v, want the end", from, n, err)
		}
	}
	first := in("127.0.0.2")
	in("127.0.0.2")
	out("127.0.0.2") // two of one address
	in("127.0.0.3")
	out("127.0.0.4") // three in all
	for range 2 {
		_ = first.Close()
	}
	in("127.0.0.4")
	out("127.0.0.5")
	_ = l.Close()
	<-done
	if refused != 3 {
		t.Errorf("got %d refused, want 3", refused)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "limit=connections-per-address from=127.0.0.2/32") {
		t.Errorf("the log says\n%s", text)
	}
}

// TestOrigin: what counts together.
func TestOrigin(t *testing.T) {
	for addr, want := range map[string]string{"192.0.2.1:25": "192.0.2.1/32", "[::ffff:192.0.2.1]:25": "192.0.2.1/32", "[2001:db8:1:2:3::4]:25": "2001:db8:1:2::/64", "[fe80::1%lo]:25": "fe80::/64"} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := origin(a).String(); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
}

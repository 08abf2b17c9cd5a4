package server

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestJSONTimes: times have milliseconds, and durations are milliseconds.
func TestJSONTimes(t *testing.T) {
	var b bytes.Buffer
	c := Config{LogFormat: "json", LogLevel: "info", LogOutput: &b}
	log, _ := c.logger()
	log.Info("x", "took", 1500*time.Microsecond)
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line["took_ms"] != 1.5 {
		t.Errorf("got %v, want took_ms 1.5", line)
	}
	at, _ := line["time"].(string)
	if _, err := time.Parse("2006-01-02T15:04:05.000Z07:00", at); err != nil {
		t.Errorf("time: %v", err)
	}
}

// TestRefusedHandshakes: the log hears of the first and then seldom, with how many there were;
// who only looks whether the port is open is nobody's business.
func TestRefusedHandshakes(t *testing.T) {
	dir := t.TempDir()
	_, cert, key := authority(t, "localhost")
	for name, b := range map[string][]byte{"cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var said bytes.Buffer
	creds, err := newTransport(&Config{TLSCert: filepath.Join(dir, "cert"), TLSKey: filepath.Join(dir, "key")}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	counted := 0
	creds.refusals.count = func() { counted++ }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	shake := func(knock func(net.Conn)) {
		there, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer there.Close()
		here, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go knock(there)
		if _, _, err := creds.ServerHandshake(here); err == nil {
			t.Error("the handshake went well")
		}
		_ = here.Close() // it is over
	}
	shake(func(c net.Conn) { _ = c.Close() })
	if said.Len() > 0 || counted != 0 {
		t.Errorf("got %q and %d, want nothing of who only looks", said.String(), counted)
	}
	for range 3 {
		shake(func(c net.Conn) {
			// its authority is not known there
			_ = tls.Client(c, &tls.Config{ServerName: "localhost"}).Handshake()
		})
	}
	if counted != 3 {
		t.Errorf("got %d, want 3", counted)
	}
	if n := strings.Count(said.String(), "a TLS handshake failed"); n != 1 || !strings.Contains(said.String(), "level=WARN") {
		t.Errorf("got %d lines, want 1:\n%s", n, said.String())
	}
}

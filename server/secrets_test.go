package server

import (
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/store"
)

// TestKeyFileOfTheDatabase: a service does not start with a key file that opens none of the
// database's secrets, nor makes one for a database that has some. With one that opens a part it
// starts.
func TestKeyFileOfTheDatabase(t *testing.T) {
	dir := t.TempDir()
	dsn, key := "sqlite:"+filepath.Join(dir, "mail.db"), filepath.Join(dir, "maildispatch.key")
	start := func(more ...string) error {
		var c Config
		fs := flag.NewFlagSet("serve", flag.ContinueOnError)
		err := c.Flags(fs)
		if err == nil {
			err = fs.Parse(append([]string{"-listen=127.0.0.1:0", "-database=" + dsn}, more...))
		}
		if err != nil {
			t.Fatal(err)
		}
		c.LogOutput = io.Discard
		s, err := New(t.Context(), c)
		if err != nil {
			return err
		}
		return errors.Join(s.closePorts(), s.store.Close())
	}
	// seals adds a mail server whose password is sealed by the key file as it is now.
	seals := func(name string) {
		t.Helper()
		keys, _, err := seal.LoadOrCreate(key)
		if err != nil {
			t.Fatal(err)
		}
		out, err := outbound.New(keys, "127.0.0.1:25", "")
		if err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(t.Context(), dsn, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m := &store.MailServer{Name: name, Type: store.TypeSMTP, Mode: store.ModePHP, From: "a@x.example", Status: store.ServerAvailable,
			SMTP: &store.SMTP{Host: "mx.example", Port: 587, Encryption: "starttls", Username: "u"}}
		m.SMTP.SealedPassword = out.Seal(m, "geheim")
		if _, _, err := st.CreateServer(t.Context(), m, store.Audit{Actor: "test", Action: "x"}); err != nil {
			t.Fatal(err)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, why string) {
		t.Helper()
		if err := start(); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "one (password)") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := start(); err != nil {
		t.Fatalf("an empty database: %v", err)
	}
	seals("one")
	if err := start(); err != nil {
		t.Fatalf("with its key file: %v", err)
	}
	right := key + ".right"
	if err := os.Rename(key, right); err != nil {
		t.Fatal(err)
	}
	refused("without the key file", "does not exist")
	if _, err := os.Stat(key); err == nil {
		t.Error("a key file was made for a database that has secrets")
	}
	if err := seal.CreateKeyFile(key); err != nil {
		t.Fatal(err)
	}
	refused("with another key file", "opens none")
	if err := start("-lost-secrets"); err != nil {
		t.Errorf("with another key file, and told so: %v", err)
	}
	seals("two")
	if err := start(); err != nil {
		t.Errorf("with a key file that opens a part: %v", err)
	}
}

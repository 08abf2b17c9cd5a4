package outbound

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

func outbound(t *testing.T, helo string) *Outbound {
	t.Helper()
	keys, _, err := seal.LoadOrCreate(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := New(keys, "[::1]:2525", helo)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func server() *store.MailServer {
	return &store.MailServer{Name: "main", Type: store.TypeSMTP, SMTP: &store.SMTP{Host: "mx.example", Port: 587, Encryption: "starttls", Auth: "plain", Username: "user", CAPEM: "pem",
		HeloName: "me.example", AllowPlaintextAuth: true, Timeout: 7 * time.Second}}
}

// TestRelay: everything that is saved about a mail server reaches the dialler, and the password
// opens.
func TestRelay(t *testing.T) {
	o, s := outbound(t, "all.example"), server()
	s.SMTP.SealedPassword = o.Seal(s, "geheim")
	got, err := o.Relay(s)
	want := smtpx.Relay{Host: "mx.example", Port: 587, Encryption: smtpx.EncryptionSTARTTLS, Auth: smtpx.AuthPlain, Username: "user", Password: "geheim", HeloName: "me.example",
		CAPEM: []byte("pem"), AllowPlaintextAuth: true, Timeouts: smtpx.Timeouts{Connect: 7 * time.Second}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	if strings.Contains(string(s.SMTP.SealedPassword), "geheim") {
		t.Error("the password is stored in clear")
	}
	s.SMTP.HeloName, s.SMTP.SealedPassword = "", nil
	if got, err := o.Relay(s); err != nil || got.HeloName != "all.example" || got.Password != "" {
		t.Errorf("%+v %v", got, err)
	}
	if got := o.RelayWith(s, "other"); got.Password != "other" {
		t.Errorf("%+v", got)
	}
}

// TestPasswordStaysWithItsPlace: a row that was pointed at another host, port, encryption, user
// or name gives its password to nobody.
func TestPasswordStaysWithItsPlace(t *testing.T) {
	o, s := outbound(t, ""), server()
	sealed := o.Seal(s, "geheim")
	for name, change := range map[string]func(*store.MailServer){
		"name":       func(s *store.MailServer) { s.Name = "other" },
		"host":       func(s *store.MailServer) { s.SMTP.Host = "evil.example" },
		"port":       func(s *store.MailServer) { s.SMTP.Port = 25 },
		"encryption": func(s *store.MailServer) { s.SMTP.Encryption = "none" },
		"user":       func(s *store.MailServer) { s.SMTP.Username = "" },
		"mechanism":  func(s *store.MailServer) { s.SMTP.Auth = "login" },
		"authority":  func(s *store.MailServer) { s.SMTP.CAPEM = "evil" },
		"version":    func(s *store.MailServer) { s.SMTP.SealedPassword[0] = 1 },
		"secret":     func(s *store.MailServer) { s.SMTP.SealedPassword[5] ^= 1 },
		"a piece":    func(s *store.MailServer) { s.SMTP.SealedPassword = s.SMTP.SealedPassword[:1] },
	} {
		s := server()
		s.SMTP.SealedPassword = append([]byte(nil), sealed...)
		change(s)
		got, err := o.Relay(s)
		var fault *smtpx.Error
		if !errors.As(err, &fault) || !errors.Is(err, seal.ErrOpen) || fault.Phase != smtpx.PhaseAuth || !fault.Temporary || fault.Hint == "" || !reflect.DeepEqual(got, smtpx.Relay{}) {
			t.Errorf("another %s: %+v %v", name, got, err)
		}
	}
	// What does not say where a password goes may change.
	s.SMTP.SealedPassword, s.SMTP.HeloName, s.SMTP.Timeout, s.DisplayName, s.From = sealed, "x.example", time.Second, "x", "x@x.example"
	if got, err := o.Relay(s); err != nil || got.Password != "geheim" {
		t.Errorf("%v", err)
	}
	if _, err := outbound(t, "").Relay(s); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("another key opens it: %v", err)
	}
}

// TestPasswordOfBefore: a password that was sealed before authorities and mechanism belonged to
// its place opens, and only in the place that it was sealed for.
func TestPasswordOfBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	key := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))
	if err := os.WriteFile(path, []byte("1 "+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.LoadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := New(keys, "[::1]:2525", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		change func(*store.MailServer)
		opens  bool
	}{
		"as it was":       {func(*store.MailServer) {}, true},
		"another host":    {func(s *store.MailServer) { s.SMTP.Host = "evil.example" }, false},
		"as the new form": {func(s *store.MailServer) { s.SMTP.SealedPassword[0] = 2 }, false},
	} {
		s := server()
		s.SMTP.SealedPassword = sealedAsVersion1(t, s)
		x.change(s)
		if got, err := o.Relay(s); (err == nil) != x.opens || x.opens && got.Password != "geheim" {
			t.Errorf("%s: got %q, %v, want it to open: %v", name, got.Password, err, x.opens)
		}
	}
}

// sealedAsVersion1 is the password "geheim" as the first version sealed it, with key 1 of the
// test.
func sealedAsVersion1(t *testing.T, s *store.MailServer) []byte {
	t.Helper()
	a, err := chacha20poly1305.NewX([]byte(strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, a.NonceSize())
	out := append([]byte{1, 1}, nonce...)
	x := s.SMTP
	place := fmt.Sprintf("20:mail_server.password,%d:%s,%d:%s,3:587,%d:%s,%d:%s,", len(s.Name), s.Name, len(x.Host), x.Host, len(x.Encryption), x.Encryption, len(x.Username), x.Username)
	return a.Seal(out, nonce, []byte("geheim"), []byte(place))
}

// TestLocalhost: the mail program of this machine is handed to without login and without TLS,
// whatever else stands there.
func TestLocalhost(t *testing.T) {
	o := outbound(t, "all.example")
	for _, s := range []*store.MailServer{{Name: "here", Type: store.TypeLocalhost}, func() *store.MailServer { s := server(); s.Type = store.TypeLocalhost; return s }()} {
		got := o.RelayWith(s, "geheim")
		if want := (smtpx.Relay{Host: "::1", Port: 2525, Encryption: smtpx.EncryptionNone, Auth: smtpx.AuthNone, HeloName: "all.example"}); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v", got)
		}
	}
	if _, err := o.Relay(&store.MailServer{Name: "here", Type: store.TypeLocalhost}); err != nil {
		t.Error(err)
	}
}

func TestBadLocalhost(t *testing.T) {
	for _, s := range []string{"", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "::1:25x", "a:b:c"} {
		if _, err := New(nil, s, ""); err == nil || !strings.Contains(err.Error(), "localhost-smtp") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestHeloName: a name for EHLO that is none stops the service at its start.
func TestHeloName(t *testing.T) {
	for _, helo := range []string{"fe80::1%x\r\nRSET", "x y", "[::1]", "_"} {
		if _, err := New(nil, "127.0.0.1:25", helo); err == nil || !strings.HasPrefix(err.Error(), "helo-name:") {
			t.Errorf("%q: %v", helo, err)
		}
	}
	if o, err := New(nil, "127.0.0.1:25", "bücher.example"); err != nil || o.helo != "xn--bcher-kva.example" {
		t.Errorf("%+v, %v", o, err)
	}
}

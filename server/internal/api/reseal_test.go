package api_test

import (
	"crypto/rand"
	"crypto/rsa"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestKeysRotateUnderLoad: keys are rotated and all secrets sealed anew while php-mode mail is
// sent through a relay that wants a login for every mail. No send fails; behind it the newest
// key alone opens everything, and the audit log has a row for each mail server.
func TestKeysRotateUnderLoad(t *testing.T) {
	t.Parallel()
	relay := &smtpxtest.Server{Username: "shop", Password: "s3cret", On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			return &smtpxtest.Action{Reply: "250 taken\r\n", Close: true}
		}
		return nil
	}}
	r := newRig(t, storetest.PostgresDSN(t), relay)
	login := func(m *pb.MailServer) {
		m.Smtp.Username, m.Smtp.Password, m.Smtp.AllowPlaintextAuth = "shop", "s3cret", proto.Bool(true)
	}
	r.server("main", pb.Mode_MODE_PHP, login)
	r.server("other", pb.Mode_MODE_DAEMON, login)
	r.server("gone", pb.Mode_MODE_DAEMON, login)
	if _, err := r.admin.DeleteMailServer(ctx(t), &pb.DeleteMailServerRequest{Name: "gone"}); err != nil {
		t.Fatal(err)
	}
	r.server("open", pb.Mode_MODE_DAEMON) // has no secret
	admin := pb.NewAccessAdminClient(r.serve(access.As(access.Local()), func(g *grpc.Server) {
		pb.RegisterAccessAdminServer(g, r.api.AccessAdmin(r.store, nil, func() bool { return true }))
	}))

	stop, sent, failed := make(chan struct{}), 0, 0
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				events, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"},
					Message: &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Text: "t"}})
				m := events[max(0, len(events)-1):]
				mu.Lock()
				if sent++; err != nil || m[0].GetCompleted().GetMail().GetStatus() != pb.MailStatus_MAIL_STATUS_SENT {
					failed++
					t.Errorf("%v %v", m, err)
				}
				mu.Unlock()
			}
		})
	}
	for i := range 4 {
		if _, err := seal.Rotate(r.keyFile); err != nil {
			t.Fatal(err)
		}
		for _, count := range []bool{true, false} {
			got, err := admin.ResealSecrets(ctx(t), &pb.ResealSecretsRequest{ValidateOnly: count, Reason: "every quarter"})
			if err != nil || got.Resealed != 3 || got.Current != 0 || got.LostCount != 0 {
				t.Fatalf("rotation %d, count only %v: got %v %v, want 3 secrets", i, count, got, err)
			}
		}
		got, err := admin.ResealSecrets(ctx(t), &pb.ResealSecretsRequest{})
		if err != nil || got.Resealed != 0 || got.Current != 3 {
			t.Fatalf("rotation %d, again: got %v %v, want 3 that are current", i, got, err)
		}
	}
	close(stop)
	wg.Wait()
	if failed > 0 || sent == 0 {
		t.Errorf("%d of %d sends failed", failed, sent)
	}
	t.Logf("%d sends over four rotations", sent)

	// the newest key alone
	text, err := os.ReadFile(r.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if err := os.WriteFile(r.keyFile, []byte(lines[len(lines)-1]), 0o600); err != nil {
		t.Fatal(err)
	}
	alone, err := seal.LoadKeyFile(r.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	out, err := outbound.New(alone, "127.0.0.1:25", "")
	if err != nil {
		t.Fatal(err)
	}
	if in, err := out.Census(ctx(t), r.store); err != nil || in.Current != 3 || in.Older != 0 || len(in.Lost) != 0 {
		t.Errorf("with the newest key alone: %+v %v", in, err)
	}
	rows, err := r.store.AuditRows(ctx(t), store.Everything, store.AuditFilter{Action: "mail_server.reseal"}, 0, 100)
	if err != nil || len(rows) != 12 || rows[0].Reason != "every quarter" {
		t.Errorf("%d audit rows, %v", len(rows), err)
	}
}

// TestEverySecretIsSealedAnew: what a mail server has sealed, all of it, and nothing else of it
// changes; its version does not, so no session ends for it. What does not open is told and
// stays.
func TestEverySecretIsSealedAnew(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		keys, err := seal.LoadKeyFile(r.keyFile)
		if err != nil {
			t.Fatal(err)
		}
		out, err := outbound.New(keys, "127.0.0.1:25", "")
		if err != nil {
			t.Fatal(err)
		}
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		r.server("main", pb.Mode_MODE_DAEMON)
		before, err := r.store.UpdateServer(ctx(t), store.Everything, "main", 0, store.Audit{Actor: "test", Action: "x"}, func(s *store.MailServer) error {
			s.SMTP.Auth = "xoauth2"
			s.SMTP.OAuth = &store.OAuth{TokenURL: "https://login.example/token", ClientID: "id", Grant: "refresh_token"}
			s.DKIM = &store.DKIM{Domain: "x.example", Selector: "s"}
			s.SMTP.SealedPassword = out.Seal(s, "password")
			out.SealOAuth(s, outbound.Secrets{ClientSecret: "client", Grant: "grant"})
			return out.SealKey(s, key)
		})
		if err != nil {
			t.Fatal(err)
		}
		if in := out.Inspect(before); in.Current != 4 {
			t.Fatalf("%+v: a kind of secret is missing", in)
		}
		if _, err := seal.Rotate(r.keyFile); err != nil {
			t.Fatal(err)
		}
		admin := pb.NewAccessAdminClient(r.serve(access.As(access.Local()), func(g *grpc.Server) {
			pb.RegisterAccessAdminServer(g, r.api.AccessAdmin(r.store, nil, func() bool { return true }))
		}))
		if got, err := admin.ResealSecrets(ctx(t), &pb.ResealSecretsRequest{}); err != nil || got.Resealed != 4 {
			t.Errorf("%v %v", got, err)
		}
		after, err := r.store.Server(ctx(t), store.Everything, "main")
		if err != nil {
			t.Fatal(err)
		}
		if in := out.Inspect(after); in.Current != 4 || after.Version != before.Version || !after.UpdateTime.Equal(before.UpdateTime) {
			t.Errorf("%+v, version %d, was %d", in, after.Version, before.Version)
		}
		if signer, err := out.Signer(after); err != nil || !signer.Key.Equal(key) {
			t.Errorf("the signing key: %v", err)
		}

		// The row is pointed at another host: its password and login open for nobody.
		_, err = r.store.UpdateServer(ctx(t), store.Everything, "main", 0, store.Audit{Actor: "test", Action: "x"}, func(s *store.MailServer) error {
			s.SMTP.Host = "evil.example"
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := admin.ResealSecrets(ctx(t), &pb.ResealSecretsRequest{})
		if err != nil || got.LostCount != 3 || len(got.Lost) != 3 || got.Current != 1 || got.Lost[0].MailServer != "main" || got.Lost[0].What != "password" {
			t.Errorf("%v %v", got, err)
		}
	})
}

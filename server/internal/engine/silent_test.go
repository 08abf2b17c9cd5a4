package engine_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestOneSilentConnection: one connection to PostgreSQL stops answering, the others are well,
// and TCP acknowledges everything. Whatever it was asked, mail goes on within 20 seconds.
func TestOneSilentConnection(t *testing.T) {
	t.Parallel()
	for name, question := range map[string]func(m *store.NewMail) func(startup, question []byte) bool{
		"of a settlement": func(m *store.NewMail) func(startup, question []byte) bool {
			return func(_, question []byte) bool { return bytes.Contains(question, []byte(m.ID.String())) }
		},
		"of the lease": func(*store.NewMail) func(startup, question []byte) bool {
			return func(startup, _ []byte) bool { return bytes.Contains(startup, []byte("maildispatch/lease")) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
			relay := (&smtpxtest.Server{}).Start(t)
			r := newRig(t, dsn, nil)
			a := r.server("aa", store.ModeDaemon, relay, store.Limits{})
			b := r.server("bb", store.ModeDaemon, relay, store.Limits{})
			first, other := newMail(a, store.KindInvoice, "u@y.example"), newMail(b, store.KindInvoice, "u@y.example")
			r.queue(a, first, other)
			muted := proxy.Mute(question(first))
			began := time.Now()
			for _, server := range []string{"aa", "bb"} {
				if _, err := r.RunBatch(ctx(t), server, false); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-muted:
			case <-time.After(20 * time.Second):
				t.Fatal("no connection was silenced")
			}
			// A renewal that is not answered may cost the lease's freshness, and with it a
			// pass.
			deadline := began.Add(20 * time.Second)
			for _, id := range []uuid.UUID{first.ID, other.ID} {
				for r.mail(id).Status != store.MailSent {
					if time.Now().After(deadline) {
						t.Fatalf("after %v the mail is %s", time.Since(began).Round(time.Second), r.mail(id).Status)
					}
					<-time.After(100 * time.Millisecond)
				}
			}
			t.Logf("sent after %v", time.Since(began).Round(100*time.Millisecond))
			if n := len(relay.Mails()); n != 2 {
				t.Errorf("got %d mails at the relay, want 2", n)
			}
		})
	}
}

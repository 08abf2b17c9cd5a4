package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// rig is an engine on a real database, sending through a real session to a scripted relay.
type rig struct {
	t     testing.TB
	store *store.Store
	*engine.Engine
	times smtpx.Timeouts
	stop  func()
}

// newRig starts an engine; journal may put faults in front of the store.
func newRig(t testing.TB, dsn string, journal func(*store.Store) engine.Journal, change ...func(*engine.Config)) *rig {
	t.Helper()
	r := &rig{t: t, store: storetest.Open(t, dsn), times: smtpx.Timeouts{Connect: 20 * time.Second, Command: 20 * time.Second, Rcpt: 20 * time.Second, Data: 20 * time.Second, Dot: 20 * time.Second}}
	var j engine.Journal = r.store
	if journal != nil {
		j = journal(r.store)
	}
	if *lostAnswers {
		again := &repeating{Journal: j, ended: make(chan struct{})}
		t.Cleanup(again.end) // before the store is closed
		j = again
	}
	cfg := engine.Config{Journal: j, Replica: "test", BatchInterval: time.Hour, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	cfg.Dial = func(ctx context.Context, s *store.MailServer) (engine.Session, error) {
		session, err := (&smtpx.Dialer{}).Dial(ctx, smtpx.Relay{Host: s.SMTP.Host, Port: s.SMTP.Port, Encryption: smtpx.EncryptionNone, Timeouts: r.times})
		if err != nil {
			return nil, err
		}
		return session, nil
	}
	for _, c := range change {
		c(&cfg)
	}
	r.Engine = engine.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, 5*time.Second) }()
	select {
	case <-r.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// ctx ends what hangs. A slow machine may need minutes for a pass of a thousand mails.
func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	return c
}

func (r *rig) server(name string, mode store.Mode, relay interface{ Port() int }, limits store.Limits) *store.MailServer {
	r.t.Helper()
	s, _, err := r.store.CreateServer(ctx(r.t), &store.MailServer{Name: name, Type: store.TypeSMTP, From: "a@x.example", Mode: mode, Status: store.ServerAvailable, Limits: limits,
		SMTP: &store.SMTP{Host: "127.0.0.1", Port: relay.Port(), Encryption: "none"}, Annotations: map[string]string{}}, store.Audit{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// newMail is a mail of s to the recipients.
func newMail(s *store.MailServer, kind store.Kind, to ...string) *store.NewMail {
	id := uuid.Must(uuid.NewV7())
	now := time.Now()
	m := &store.NewMail{ID: id, MailServer: s.Name, Mode: s.Mode, Kind: kind, From: "a@x.example", Subject: "s", MessageID: id.String() + "@x.example", Route: "named",
		CreateTime: now, RunAt: now}
	for _, a := range to {
		m.Recipients = append(m.Recipients, store.Recipient{Mailbox: a})
	}
	m.Raw = []store.Piece{{Data: []byte("Message-ID: <" + m.MessageID + ">\r\n\r\nbody\r\n")}}
	m.SizeBytes = int64(len(m.Raw[0].Data))
	return m
}

// send sends and returns the completed mail.
func (r *rig) send(c context.Context, s *store.MailServer, m *store.NewMail) (*store.Mail, error) {
	var done *store.Mail
	err := r.Send(c, &delivery.Submission{Mail: m, Server: s}, func(ev delivery.Event) error {
		if ev.Completed != nil {
			done = ev.Completed
		}
		return nil
	})
	if err == nil && done == nil {
		err = errors.New("the stream ended without completed")
	}
	return done, err
}

func (r *rig) queue(s *store.MailServer, ms ...*store.NewMail) {
	r.t.Helper()
	res, err := r.store.EnqueueBatch(ctx(r.t), ms)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, x := range res {
		if x.Err != nil {
			r.t.Fatal(x.Err)
		}
	}
}

func (r *rig) batch(server string) delivery.Counts {
	r.t.Helper()
	n, err := r.RunBatch(ctx(r.t), server, true)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (r *rig) mail(id uuid.UUID) *store.Mail {
	r.t.Helper()
	m, err := r.store.Mail(ctx(r.t), store.Everything, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func statuses(m *store.Mail) string {
	var b strings.Builder
	for _, r := range m.Progress.Results {
		fmt.Fprintf(&b, "%c", r.Status[0])
	}
	return b.String()
}

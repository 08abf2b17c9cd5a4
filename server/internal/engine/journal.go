package engine

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Journal is what the engine needs of the store.
type Journal interface {
	Enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error)
	EnqueueBatch(ctx context.Context, ms []*store.NewMail) ([]store.Enqueued, error)
	EnqueueAll(ctx context.Context, ms []*store.NewMail) ([]store.Enqueued, error)
	DueServers(ctx context.Context) ([]string, error)
	Claim(ctx context.Context, r store.ReplicaID, server string, max int, above int16) ([]*store.Claimed, error)
	LoadRaw(ctx context.Context, c *store.Claimed) ([]byte, error)
	Settle(s *store.Settlement) <-chan store.Settled
	Calm(d time.Duration)
	Register(ctx context.Context, name string, ttl time.Duration) (store.ReplicaID, error)
	Renew(ctx context.Context, r store.ReplicaID, ttl time.Duration) error
	Unregister(ctx context.Context, r store.ReplicaID) error
	Recover(ctx context.Context, me store.ReplicaID, max int) (released int, adopted []*store.Claimed, err error)
	Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error)
	Mail(ctx context.Context, sc store.Scope, id uuid.UUID) (*store.Mail, error)
	Now(ctx context.Context) (time.Time, error)
	ForgetChanges(ctx context.Context, age time.Duration) (int, error)
	ForgetUploads(ctx context.Context) (uploads, contents int, err error)
	Breakers(ctx context.Context) (map[string]*store.Breaker, error)
	ChangeBreaker(ctx context.Context, server string, change func(now time.Time, b *store.Breaker) bool) (*store.Breaker, error)
	TakeSlot(ctx context.Context, r store.ReplicaID, server string, limit int) (n int, ok bool, err error)
	GiveSlot(ctx context.Context, r store.ReplicaID, server string, n int) error
	TakeQuota(ctx context.Context, server string, want, perMinute, perDay int) (granted int, next time.Time, err error)
}

// Session is one logged-in connection to a relay; *smtpx.Session is the real one.
type Session interface {
	Submit(ctx context.Context, t *smtpx.Transaction) error
	Flush(ctx context.Context) error
	Usable() bool
	Close() error
}

// Dial opens a session with a mail server: the one path for php mode, daemon mode and the demo. Errors are *smtpx.Error where the wire said them.
type Dial func(ctx context.Context, s *store.MailServer) (Session, error)

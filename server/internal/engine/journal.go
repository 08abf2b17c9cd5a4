package engine

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/relay"
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
	Yield(ctx context.Context)
	BulkItems() int
	Register(ctx context.Context, name string, ttl time.Duration) (store.ReplicaID, error)
	Renew(ctx context.Context, r store.ReplicaID, ttl time.Duration) error
	Unregister(ctx context.Context, r store.ReplicaID) error
	Recover(ctx context.Context, me store.ReplicaID, max int) (released int, adopted []*store.Claimed, err error)
	Owned(ctx context.Context, r store.ReplicaID) ([]store.Ownership, error)
	TakeBack(ctx context.Context, r store.ReplicaID, lost []store.Ownership) (released int, marked []*store.Claimed, err error)
	Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error)
	ServerVersions(ctx context.Context, names []string) (map[string]int64, error)
	HoldDeleted(ctx context.Context, server string) (held int, err error)
	Mail(ctx context.Context, sc store.Scope, id uuid.UUID) (*store.Mail, error)
	Now(ctx context.Context) (time.Time, error)
	ForgetChanges(ctx context.Context, age time.Duration) (int, error)
	KeepCounts(ctx context.Context) error
	ForgetUploads(ctx context.Context) (uploads, contents int, err error)
	relay.Journal
}

// Session is one logged-in connection to a relay.
type Session = relay.Session

// Dial opens a session with a mail server.
type Dial = relay.Dial

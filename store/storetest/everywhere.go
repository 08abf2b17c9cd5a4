package storetest

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

// Store is what the rules of a store can be tested through: a database, or memory.
type Store interface {
	Enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error)
	EnqueueBatch(ctx context.Context, ms []*store.NewMail) ([]store.Enqueued, error)
	EnqueueAll(ctx context.Context, ms []*store.NewMail) ([]store.Enqueued, error)
	DueServers(ctx context.Context) ([]string, error)
	Claim(ctx context.Context, r store.ReplicaID, server string, most int, above int16) ([]*store.Claimed, error)
	LoadRaw(ctx context.Context, c *store.Claimed) ([]byte, error)
	Settle(s *store.Settlement) <-chan store.Settled
	Register(ctx context.Context, name string, ttl time.Duration) (store.ReplicaID, error)
	Renew(ctx context.Context, r store.ReplicaID, ttl time.Duration) error
	Unregister(ctx context.Context, r store.ReplicaID) error
	Recover(ctx context.Context, me store.ReplicaID, most int) (released int, adopted []*store.Claimed, err error)
	Owned(ctx context.Context, r store.ReplicaID) ([]store.Ownership, error)
	TakeBack(ctx context.Context, r store.ReplicaID, lost []store.Ownership) (released int, adopted []*store.Claimed, err error)
	Mail(ctx context.Context, sc store.Scope, id uuid.UUID) (*store.Mail, error)
	RawMail(ctx context.Context, sc store.Scope, id uuid.UUID, w io.Writer) (int64, error)
	ListDue(ctx context.Context, sc store.Scope, f store.MailFilter, after store.Cursor, n int) ([]*store.Mail, error)
	ListArchive(ctx context.Context, sc store.Scope, f store.MailFilter, after store.Cursor, n int) ([]*store.Mail, error)
	FindMails(ctx context.Context, sc store.Scope, f store.FindFilter, after uuid.UUID, n int) ([]*store.Mail, uuid.UUID, error)
	CountDue(ctx context.Context, server string) (int, error)
	CountBatch(ctx context.Context, sc store.Scope, team, batchID string) (*store.BatchCount, error)
	CountQueue(ctx context.Context, sc store.Scope, team *string, server string) (*store.QueueCount, error)
	KeepCounts(ctx context.Context) error
	Modify(ctx context.Context, sc store.Scope, ids []uuid.UUID, f *store.MailFilter, dryRun bool, a store.Audit, decide store.Decide) (matched, changed int, failures []store.ModifyFailure, err error)
	ModifyMail(ctx context.Context, sc store.Scope, id uuid.UUID, a store.Audit, decide store.Decide) (*store.Mail, error)
	BeginOperation(ctx context.Context, o *store.Operation) error
	Operation(ctx context.Context, id uuid.UUID) (*store.Operation, error)
	Operations(ctx context.Context, running bool, before uuid.UUID, n int) ([]*store.Operation, error)
	StopOperation(ctx context.Context, id uuid.UUID, a store.Audit) error
	TakeOperation(ctx context.Context, r store.ReplicaID) (*store.Operation, error)
	DelayOperation(ctx context.Context, r store.ReplicaID, id uuid.UUID, why string) error
	Operate(ctx context.Context, r store.ReplicaID, id uuid.UUID, n int, decide store.Decide, explain func(error) (reason, message string)) (*store.Operation, bool, error)
	Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error)
	Servers(ctx context.Context, sc store.Scope, f store.ServerFilter, afterName string, n int) ([]*store.MailServer, error)
	CreateServer(ctx context.Context, m *store.MailServer, a store.Audit) (*store.MailServer, bool, error)
	UpdateServer(ctx context.Context, sc store.Scope, name string, ifVersion int64, a store.Audit, change func(*store.MailServer) error) (*store.MailServer, error)
	DeleteServer(ctx context.Context, sc store.Scope, name string, ifVersion int64, force bool, a store.Audit) (*store.MailServer, store.DeletedMail, error)
	CheckFallback(ctx context.Context, m *store.MailServer) error
	UndeleteServer(ctx context.Context, sc store.Scope, name string, a store.Audit) (*store.MailServer, error)
	SetDefault(ctx context.Context, sc store.Scope, name string, a store.Audit) (now, previous *store.MailServer, err error)
	ReplaceGrant(ctx context.Context, name string, was, now []byte) (bool, error)
	DefaultServer(ctx context.Context, team string) (*store.MailServer, error)
	Breakers(ctx context.Context) (map[string]*store.Breaker, error)
	ChangeBreaker(ctx context.Context, server string, change func(now time.Time, b *store.Breaker) bool) (*store.Breaker, error)
	LastChange(ctx context.Context) (store.Position, error)
	Changes(ctx context.Context, sc store.Scope, f store.MailFilter, after store.Position, n int) ([]store.MailChange, store.Position, bool, error)
	CreateToken(ctx context.Context, t *store.Token, a store.Audit) error
	Access(ctx context.Context) (*store.Access, error)
	Tokens(ctx context.Context, afterID string, ended bool, n int) ([]*store.Token, error)
	SetSenderDomains(ctx context.Context, team string, domains []string, a store.Audit) (*store.SenderDomains, error)
	SenderDomains(ctx context.Context, after string, n int) ([]store.SenderDomains, error)
	RevokeToken(ctx context.Context, id string, a store.Audit) (*store.Token, error)
	TouchToken(ctx context.Context, id string, at time.Time) error
	Now(ctx context.Context) (time.Time, error)
	Dialect() string
}

// Everywhere runs f once for each database and once for the store in memory.
func Everywhere(t *testing.T, f func(t *testing.T, s Store)) {
	t.Helper()
	Each(t, func(t *testing.T, s *store.Store) { f(t, s) })
	t.Run("memory", func(t *testing.T) { f(t, memory.New(nil)) })
}

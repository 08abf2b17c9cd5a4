// Package api answers the calls of all services: it checks a request whole, converts it, has it
// done, and converts the answer. It decides nothing about delivery. One file a call family.
//
// Two things outlive a call: the operations over large selections, which go on after it
// ([API.RunOperations]; what they have done is in the store), and the one reader of changes
// that feeds all watchers (tail.go).
//
// Every store call goes through a scope that is taken from the caller of the context in one
// place ([API.scope]). What a caller sees is apart from what its mail may go through
// ([useScope]).
package api

import (
	"context"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/chacha20poly1305"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Store is what the api needs of the store.
type Store interface {
	CreateServer(ctx context.Context, m *store.MailServer, a store.Audit) (*store.MailServer, bool, error)
	Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error)
	ServerExists(ctx context.Context, name string) (bool, error)
	Servers(ctx context.Context, sc store.Scope, f store.ServerFilter, afterName string, n int) ([]*store.MailServer, error)
	UpdateServer(ctx context.Context, sc store.Scope, name string, ifVersion int64, a store.Audit, change func(*store.MailServer) error) (*store.MailServer, error)
	DeleteServer(ctx context.Context, sc store.Scope, name string, ifVersion int64, force bool, a store.Audit) (*store.MailServer, store.DeletedMail, error)
	UndeleteServer(ctx context.Context, sc store.Scope, name string, a store.Audit) (*store.MailServer, error)
	CheckFallback(ctx context.Context, m *store.MailServer) error
	SetDefault(ctx context.Context, sc store.Scope, name string, a store.Audit) (now, previous *store.MailServer, err error)
	DefaultServer(ctx context.Context, team string) (*store.MailServer, error)
	Record(ctx context.Context, a store.Audit, team, target string, tested *store.MailServer) error
	LastChange(ctx context.Context) (store.Position, error)
	Changes(ctx context.Context, sc store.Scope, f store.MailFilter, after store.Position, n int) ([]store.MailChange, store.Position, bool, error)
	PutUpload(ctx context.Context, u *store.Upload, r io.ReadSeeker) (*store.Upload, bool, error)
	Uploads(ctx context.Context, team string, ids []uuid.UUID) (map[uuid.UUID]*store.Upload, error)
	WatchLag(ctx context.Context) (time.Duration, error)
	CountBatch(ctx context.Context, sc store.Scope, team, batchID string) (*store.BatchCount, error)
	CountQueue(ctx context.Context, sc store.Scope, team *string, server string) (*store.QueueCount, error)
	CopyMail(ctx context.Context, sc store.Scope, id uuid.UUID) (*store.NewMail, error)
	Breakers(ctx context.Context) (map[string]*store.Breaker, error)
	ListDue(ctx context.Context, sc store.Scope, f store.MailFilter, after store.Cursor, n int) ([]*store.Mail, error)
	ListArchive(ctx context.Context, sc store.Scope, f store.MailFilter, after store.Cursor, n int) ([]*store.Mail, error)
	FindMails(ctx context.Context, sc store.Scope, f store.FindFilter, after uuid.UUID, n int) ([]*store.Mail, uuid.UUID, error)
	Mail(ctx context.Context, sc store.Scope, id uuid.UUID) (*store.Mail, error)
	RawMail(ctx context.Context, sc store.Scope, id uuid.UUID, w io.Writer) (int64, error)
	RemainingRaw(ctx context.Context, sc store.Scope, id uuid.UUID, begin func(bytes int64), w io.Writer) (int64, error)
	Content(ctx context.Context, sum [32]byte) ([]byte, error)
	ModifyMail(ctx context.Context, sc store.Scope, id uuid.UUID, a store.Audit, decide store.Decide) (*store.Mail, error)
	CountUpTo(ctx context.Context, sc store.Scope, f store.MailFilter, n int) (int, error)
	CountMatching(ctx context.Context, sc store.Scope, f store.MailFilter) (n int, known bool, err error)
	Operations
	Modify(ctx context.Context, sc store.Scope, ids []uuid.UUID, f *store.MailFilter, dryRun bool, a store.Audit, decide store.Decide) (int, int, []store.ModifyFailure, error)
}

// Sender takes a checked mail and tells what becomes of it.
type Sender interface {
	Send(ctx context.Context, s *delivery.Submission, observe func(delivery.Event) error) error
	Queue(ctx context.Context, ms []*store.NewMail, all bool) ([]store.Enqueued, error)
	Yield(ctx context.Context)
}

// Batch runs the batch.
type Batch interface {
	RunBatch(ctx context.Context, server string, wait bool) (delivery.Counts, error)
	NextPass() time.Time
}

// Config is what an API is made of; all of it is required but Now, Logger, Quota, LookupTXT and
// SenderDomains.
type Config struct {
	Store    Store
	Sender   Sender
	Batch    Batch
	Outbound *outbound.Outbound
	Probe    func(ctx context.Context, s *store.MailServer, r smtpx.Relay, o smtpx.ProbeOptions) smtpx.ProbeResult
	// asks DNS for the record of a signing key; nil = nothing can be seen from here
	LookupTXT LookupTXT
	TokenKey  []byte          // page tokens are sealed with a key made of it
	Draining  <-chan struct{} // closed when the service goes down: streams that would last end
	// the error by which Sender and Batch say that the service goes down
	Stopping error
	Now      func() time.Time
	Logger   *slog.Logger
	Quota    *quota.Quota // of what callers hold open; nil = no limits
	// under which domains a team's own mail servers may send, from memory; none = under any,
	// nil = nobody is bound
	SenderDomains func(team string) []string
	// how long a strict batch keeps what it has without hearing of more; 0 = 5 minutes
	StrictIdle time.Duration
	// how far an upload may be behind its least rate; 0 = 30 seconds
	UploadPatience time.Duration
	Keeping        Keeping // of finished mail; usually Store
	Rules          []store.KeepRule
	EraseKey       []byte // keys the hashes of addresses that were erased
	// the trace context of a call, as it is stored with its mail; nil = no call is followed
	Trace func(ctx context.Context) []byte
}

// API implements the services but AccessAdmin.
type API struct {
	pb.UnimplementedMailServerAdminServer
	pb.UnimplementedDispatchServer
	pb.UnimplementedRetentionServer
	pb.UnimplementedOperationsServer
	Config
	servers *servers
	tokens  cipher.AEAD // seals page tokens
	tail    *tail       // of the changes, for watchers
	// holds one for each item of bulk that becomes large while it is composed, and each
	// download whose content is compared with its sum
	busy    chan struct{}
	readers chan struct{} // holds one for each call that reads stored files in order to sign
	begun   chan struct{} // an operation has begun
	// when it was last logged that watchers are late, Unix nanoseconds; written by watchers
	lateLogged atomic.Int64
}

// traceOf is what a mail of the call keeps of its trace; nil = nothing.
func (a *API) traceOf(ctx context.Context) []byte {
	if a.Trace == nil {
		return nil
	}
	return a.Trace(ctx)
}

// New makes an API.
func New(c Config) *API {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.StrictIdle == 0 {
		c.StrictIdle = strictIdle
	}
	if c.UploadPatience == 0 {
		c.UploadPatience = uploadPatience
	}
	m := hmac.New(sha256.New, c.TokenKey)
	m.Write([]byte("sealed"))
	tokens, err := chacha20poly1305.NewX(m.Sum(nil))
	if err != nil {
		panic(err) // the key has its length
	}
	if c.LookupTXT == nil {
		c.LookupTXT = func(context.Context, string) ([]string, error) { return nil, errors.New("no name server is asked") }
	}
	return &API{Config: c, servers: newServers(), begun: make(chan struct{}, 1), readers: make(chan struct{}, readers),
		busy: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), tokens: tokens, tail: &tail{store: c.Store, poll: watchPoll, waiting: map[*waiter]bool{}}}
}

// Register offers all of them.
func (a *API) Register(r grpc.ServiceRegistrar) {
	a.RegisterAdmin(r)
	a.RegisterDispatch(r)
}

// RegisterAdmin offers the services for administrators.
func (a *API) RegisterAdmin(r grpc.ServiceRegistrar) {
	pb.RegisterMailServerAdminServer(r, a)
	pb.RegisterRetentionServer(r, a)
}

// RegisterDispatch offers the services for those who send mail.
func (a *API) RegisterDispatch(r grpc.ServiceRegistrar) {
	pb.RegisterDispatchServer(r, a)
	pb.RegisterOperationsServer(r, a)
}

// AccessAdmin is the service of that name. changed is called after a token was made or revoked;
// on says whether callers are asked who they are.
func (a *API) AccessAdmin(t Tokens, changed func(context.Context), on func() bool) *AccessAdmin {
	return &AccessAdmin{API: a, Tokens: t, Changed: changed, On: on}
}

// fault turns an error of the packages below into one for the wire.
func (a *API) fault(err error) error {
	var (
		known   *apierr.Error
		def     *store.DefaultExistsError
		pending *store.PendingError
		used    *store.InUseError
		refused *store.FallbackError
	)
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case errors.As(err, &def):
		return apierr.Precondition(pb.ReasonDefaultExists, def.Current, "%s; SetDefaultMailServer swaps", def)
	case errors.As(err, &pending):
		return apierr.Precondition(pb.ReasonMailsPending, "", "the mail server has %d unfinished mails; force holds them", pending.Count)
	case errors.As(err, &used):
		return apierr.Precondition(pb.ReasonMailServerInUse, "", "%s; force takes it from them", used)
	case errors.As(err, &refused):
		var c apierr.Check
		c.Bad("mail_server.fallback", "%s", refused.Why)
		return c.Err()
	case errors.Is(err, store.ErrNobody):
		return apierr.New(codes.PermissionDenied, pb.ReasonRoleMissing, "there are tokens already, and this service does not ask for them, or will in a moment: call as somebody, or use `maildispatchd token`")
	case errors.Is(err, store.ErrExists):
		return apierr.New(codes.AlreadyExists, pb.ReasonMailServerExists, "the name is taken, maybe by a deleted mail server")
	case errors.Is(err, store.ErrRequestIDReused):
		return apierr.New(codes.AlreadyExists, pb.ReasonRequestIDReused, "this request_id was used for other content")
	case errors.Is(err, store.ErrServerChanged):
		return apierr.New(codes.Aborted, pb.ReasonETagMismatch, "the mail server is being changed again and again: call once more")
	case errors.Is(err, store.ErrVersion):
		return apierr.New(codes.Aborted, pb.ReasonETagMismatch, "the mail server was changed meanwhile: read it again")
	case errors.Is(err, store.ErrDeleted):
		return apierr.Precondition(pb.ReasonMailServerDeleted, "", "the mail server is deleted")
	case errors.Is(err, store.ErrNotDeleted):
		return apierr.Precondition(pb.ReasonMailServerNotDeleted, "", "the mail server is not deleted")
	case errors.Is(err, store.ErrServerUnavailable):
		return apierr.Precondition(pb.ReasonMailServerUnavailable, "", "the mail server is unavailable")
	case a.Stopping != nil && errors.Is(err, a.Stopping):
		e := apierr.Wrap(err, codes.Unavailable, pb.ReasonDraining, "the service is stopping: call again with the same request_id")
		e.RetryAfter = time.Second
		return e
	case errors.Is(err, store.ErrUnavailable):
		e := apierr.Wrap(err, codes.Unavailable, pb.ReasonDatabaseUnavailable, "the database is away: call again with the same request_id")
		e.RetryAfter = time.Second
		return e
	case errors.Is(err, store.ErrFull):
		e := apierr.Wrap(err, codes.ResourceExhausted, pb.ReasonOverloaded, "the database takes no more just now")
		e.RetryAfter = 30 * time.Second
		return e
	}
	// the interceptor answers INTERNAL, CANCELLED or DEADLINE_EXCEEDED and logs the cause
	return err
}

// serverFault is fault for a call about one mail server.
func (a *API) serverFault(err error, name string) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return apierr.NotFound(pb.ReasonMailServerNotFound, "mail server", name)
	case errors.Is(err, store.ErrServerUnavailable):
		return apierr.Precondition(pb.ReasonMailServerUnavailable, name, "mail server %q is unavailable", name)
	}
	return a.fault(err)
}

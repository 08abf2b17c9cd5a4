package access

import (
	"context"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
)

const (
	// readEvery is how often the tokens are read again. A revoked token ends on every replica
	// within it and one reading, which has readTime.
	readEvery = 2 * time.Second
	readTime  = 900 * time.Millisecond
	// unsureAfter is for how long what was read is good enough for administrators.
	unsureAfter = 5 * time.Minute
	// touchEvery is how often the last use of a token is written down.
	touchEvery = time.Minute
)

// Mode says whether callers are asked who they are.
type Mode string

const (
	Auto     Mode = "auto"     // asked, but on loopback only once there was a token
	Required Mode = "required" // always asked
	None     Mode = "none"     // never asked
)

// Store is what the book reads and writes.
type Store interface {
	Access(ctx context.Context) (*store.Access, error)
	TouchToken(ctx context.Context, id string, at time.Time) error
}

// Config of a Book.
type Config struct {
	Store    Store
	Mode     Mode
	Loopback bool   // the service can be reached from this machine only
	Names    string // file of the names of client certificates and workloads; "" = none
	// says whose token another issuer's is, from memory alone, and until when it holds; nil =
	// no such tokens are taken
	Workload func(token string) (subject string, expire time.Time, err error)
	Logger   *slog.Logger
	Now      func() time.Time // nil = time.Now
}

// Book knows all callers. Calls read it; Run writes it.
type Book struct {
	cfg   Config
	state atomic.Pointer[state]

	mu sync.Mutex // one reading at a time; guards file and what becomes the next state
	// the text that names were read from
	file string

	pairMu sync.Mutex // guards pairs; calls take it, and a reading behind mu
	pairs  map[pair]*Principal

	workMu sync.Mutex // guards workloads; calls take it, and a reading behind mu
	// by the SHA-256 of their tokens, so that a signature is checked once
	workloads map[[32]byte]*work
}

// state is what was read. It is not written to once calls can see it.
type state struct {
	open     *Principal // who calls while nobody is asked; nil = everybody is asked
	tokens   map[string]*token
	names    map[string]*Principal // by the name in a certificate
	read     time.Time             // when the database answered
	switched bool                  // the database says that access is on
	senders  map[string][]string   // by team: under which domains it may send
}

// token is a token in memory.
type token struct {
	*Principal
	id      string
	hash    [32]byte
	revoked bool
	used    atomic.Int64 // when it was last used, in Unix seconds; calls write it
	touched int64        // what of used the database has; only Run uses it
}

// NewBook reads the tokens for the first time.
func NewBook(ctx context.Context, cfg Config) (*Book, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Book{cfg: cfg, pairs: map[pair]*Principal{}, workloads: map[[32]byte]*work{}}
	open := Everybody()
	open.ended = make(chan struct{})
	b.state.Store(&state{open: open})
	if err := b.Read(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// On reports whether callers are asked who they are.
func (b *Book) On() bool { return b.state.Load().open == nil }

// SenderDomains are those under which a team's own mail servers may send; none = under any.
func (b *Book) SenderDomains(team string) []string { return b.state.Load().senders[team] }

// NextExpiry is when the first of the tokens ends that are valid now; zero when none ends.
func (b *Book) NextExpiry() (first time.Time) {
	now := b.cfg.Now()
	for _, t := range b.state.Load().tokens {
		if e := t.Expire; !t.revoked && e.After(now) && (first.IsZero() || e.Before(first)) {
			first = e
		}
	}
	return first
}

// Read reads the tokens and the names again, and ends who is known no more.
func (b *Book) Read(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.state.Load()
	next := &state{open: old.open, tokens: old.tokens, names: old.names, read: old.read, switched: old.switched, senders: old.senders}
	err := b.readNames(next)
	a, dbErr := b.cfg.Store.Access(ctx)
	if dbErr == nil {
		next.read, next.switched, next.senders = b.cfg.Now(), a.On, a.Senders
		next.tokens = b.merge(old.tokens, a.Tokens)
	}
	if b.asks(next) {
		next.open = nil
	}
	b.state.Store(next)
	end(old, next)
	b.endWorkloads()
	b.endPairs()
	if dbErr != nil {
		return dbErr
	}
	return err
}

func (b *Book) asks(s *state) bool {
	switch b.cfg.Mode {
	case None:
		return false
	case Auto:
		return !b.cfg.Loopback || b.cfg.Names != "" || b.cfg.Workload != nil || s.switched
	}
	return true
}

// merge keeps what is known of the tokens that are still there, so that calls which began with
// one hear of its end.
func (b *Book) merge(had map[string]*token, read []*store.Token) map[string]*token {
	out := make(map[string]*token, len(read))
	for _, t := range read {
		// One that was ended while the clock was ahead begins anew.
		early := func(k *token) bool { return k.over() && !k.revoked && b.cfg.Now().Before(t.ExpireTime) }
		if k := had[t.ID]; k != nil && k.revoked == (t.RevokeTime != nil) && !early(k) {
			out[t.ID] = k
			continue
		}
		k := &token{id: t.ID, hash: t.Hash, revoked: t.RevokeTime != nil, Principal: &Principal{Actor: fmt.Sprintf("token %s (%s)", t.ID, t.Name),
			Name: t.Name, Teams: t.Teams, System: t.System, Kinds: t.Kinds, MailServers: t.MailServers, Budget: t.Budget(), Expire: t.ExpireTime,
			now: b.cfg.Now, ended: make(chan struct{})}}
		for _, r := range t.Roles {
			k.Roles = append(k.Roles, roles[r])
		}
		out[t.ID] = k
	}
	return out
}

var roles = map[store.Role]pb.Role{store.RoleSend: pb.Role_ROLE_SEND, store.RoleRead: pb.Role_ROLE_READ, store.RoleAdmin: pb.Role_ROLE_ADMIN}

// end closes the principals of old that next does not know.
func end(old, next *state) {
	if old.open != nil && next.open == nil {
		close(old.open.ended)
	}
	for id, t := range old.tokens {
		if next.tokens[id] != t && !t.over() {
			close(t.ended)
		}
	}
	for san, p := range old.names {
		if next.names[san] != p {
			close(p.ended)
		}
	}
}

// Run reads the tokens again and again, until ctx ends.
func (b *Book) Run(ctx context.Context) {
	t := time.NewTicker(readEvery)
	defer t.Stop()
	failed := false
	touch := b.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		rctx, cancel := context.WithTimeout(ctx, readTime)
		err := b.Read(rctx)
		cancel()
		if (err != nil) != failed && ctx.Err() == nil {
			if failed = err != nil; failed {
				b.cfg.Logger.Warn("the tokens cannot be read: what was read before holds", "error", err)
			} else {
				b.cfg.Logger.Info("the tokens are read again")
			}
		}
		b.sweep()
		if now := b.cfg.Now(); err == nil && now.Sub(touch) >= touchEvery {
			touch = now
			b.touch(ctx)
		}
	}
}

// sweep ends calls that wait, and whose token has expired meanwhile.
func (b *Book) sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.cfg.Now()
	for _, t := range b.state.Load().tokens {
		if !now.Before(t.Expire) && !t.over() {
			close(t.ended)
		}
	}
	b.endWorkloads()
	b.endPairs()
}

// over reports whether a principal was ended already. Only who holds the book's lock ends one.
func (p *Principal) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// touch writes down when tokens were last used.
func (b *Book) touch(ctx context.Context) {
	for _, t := range b.state.Load().tokens {
		used := t.used.Load()
		if used <= t.touched {
			continue
		}
		tctx, cancel := context.WithTimeout(ctx, readTime)
		err := b.cfg.Store.TouchToken(tctx, t.id, time.Unix(used, 0))
		cancel()
		if err != nil {
			return // in a minute again
		}
		t.touched = used
	}
}

func (b *Book) unsure() bool {
	s := b.state.Load()
	return s.open == nil && b.cfg.Now().Sub(s.read) > unsureAfter
}

// identify says who calls. A certificate's name counts where there is no token; with both, both
// have to be right, and the token's rights count.
func (b *Book) identify(ctx context.Context, md metadata.MD) (*Principal, error) {
	s := b.state.Load()
	if s.open != nil {
		return s.open, nil
	}
	named, err := s.named(ctx)
	if err != nil {
		return nil, err
	}
	given := md["authorization"]
	switch {
	case len(given) == 0 && named != nil:
		return named, nil
	case len(given) == 0:
		return nil, refused("no token was sent: send `authorization: Bearer md_...`")
	case len(given) > 1:
		return nil, refused("more than one authorization header was sent")
	}
	t, err := b.bearer(s, given[0])
	if err != nil || named == nil {
		return t, err
	}
	if t.fleeting {
		t.Actor += " with " + named.Actor
		return t, nil
	}
	return b.both(t, named), nil
}

// pair is a caller with a token and a certificate.
type pair struct{ token, named *Principal }

// both is the principal of a pair. It ends with either.
func (b *Book) both(t, named *Principal) *Principal {
	b.pairMu.Lock()
	defer b.pairMu.Unlock()
	k := pair{t, named}
	if had := b.pairs[k]; had != nil {
		return had
	}
	p := *t
	p.Actor += " with " + named.Actor
	p.ended = make(chan struct{})
	b.pairs[k] = &p
	return &p
}

// endPairs ends the pairs of which one is known no more. A call that began meanwhile with what
// was known before is ended at the next reading.
func (b *Book) endPairs() {
	b.pairMu.Lock()
	defer b.pairMu.Unlock()
	for k, p := range b.pairs {
		if k.token.over() || k.named.over() {
			close(p.ended)
			delete(b.pairs, k)
		}
	}
}

func (b *Book) bearer(s *state, header string) (*Principal, error) {
	const scheme = "bearer "
	if len(header) < len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) {
		return nil, refused("the authorization header is not `Bearer md_...`")
	}
	id, hash, ok := parse(header[len(scheme):])
	if !ok && b.cfg.Workload != nil && !strings.HasPrefix(header[len(scheme):], prefix) {
		return b.workload(s, header[len(scheme):])
	}
	if !ok {
		return nil, refused("the token is not known")
	}
	t := s.tokens[id]
	if t == nil || subtle.ConstantTimeCompare(t.hash[:], hash[:]) != 1 {
		return nil, refused("the token is not known")
	}
	// Who gets here has the secret, and may know what became of it.
	now := b.cfg.Now()
	switch {
	case t.revoked:
		return nil, refused("the token was revoked")
	case !now.Before(t.Expire):
		return nil, refused("the token has expired")
	}
	if unix := now.Unix(); t.used.Load() < unix {
		t.used.Store(unix)
	}
	return t.Principal, nil
}

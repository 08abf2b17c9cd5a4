package memory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// Store is a database in memory. All methods may be called from any goroutine.
type Store struct {
	now func() time.Time
	// Faults are rules left out on purpose. Set before use.
	Faults Faults

	mu       sync.Mutex // guards everything below
	mails    map[uuid.UUID]*row
	order    []*row // by id
	requests map[request]uuid.UUID
	contents map[[32]byte][]byte
	servers  map[string]*store.MailServer
	replicas map[store.ReplicaID]*replica
	last     store.ReplicaID
	turn     int // of claims: who comes first
	breakers map[string]*store.Breaker
	slots    map[string]map[int]held
	quotas   map[string]*quota
	changes  []change
	seq      int64
	forgot   int64 // changes up to this one are not kept
	audits   []AuditRow
	tokens   map[string]*store.Token
	senders  map[string]store.SenderDomains
	accessOn bool

	operations    []*operation // by id
	nextOperation uuid.UUID
}

// Faults are rules that a store keeps and this one leaves out, so that a test can show that it
// would notice. The zero value leaves out none.
type Faults struct {
	OwnerOnly     bool // a write is conditional on its owner, and not on its token
	KnownDeadOnly bool // only what a replica owns that is known to be dead is recovered
	DeadTake      bool // who was taken for dead takes mail all the same

	MarkAnybody      bool // a mark is taken from whoever sends it
	ReleaseMarked    bool // recovery lets go of marked mail as of unmarked
	UnregisterMarked bool // an orderly end does
	TakeBackMarked   bool // a replica does, with what it owns and does not know of
	SlotsForever     bool // a dead replica's slots stay taken
	ModifyOwned      bool // a person's word changes what is being sent
	HeldIsDue        bool // held mail stays claimable
	ClaimEarly       bool // what is due later is claimed
	NoRequests       bool // a request_id may be used again

	OperationNoBrake   bool // marks are taken for what an operation holds or cancels
	OperationAnew      bool // an operation that another replica goes on with begins anew
	OperationUnbound   bool // it takes mails that were created after it began
	OperationUnstopped bool // it goes on though somebody has stopped it
}

type request struct{ team, id string }

// row is a mail with what has become of it: due while finish is zero, else in the archive.
type row struct {
	m        *store.NewMail
	status   store.MailStatus
	runAt    time.Time // zero: not claimable
	resumeAt time.Time // held: when it would be due
	owner    store.ReplicaID
	// one higher at each claim, adoption and birth of an owned mail, and with each progress
	claim    int64
	dataAt   time.Time // the mark; zero = none
	attempts int
	crashes  int
	begun    bool
	dup      bool
	progress store.Progress
	last     string
	finish   time.Time
}

func (r *row) archived() bool { return !r.finish.IsZero() }

type replica struct {
	name  string
	alive time.Time // zero: taken for dead
}

type change struct {
	seq    int64
	id     uuid.UUID
	status store.MailStatus
	at     time.Time
}

// AuditRow is one row of the audit log.
type AuditRow struct {
	store.Audit
	Team, Target string
	Detail       map[string]any
}

// New makes an empty store. now is its clock; nil = time.Now.
func New(now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	return &Store{now: now, mails: map[uuid.UUID]*row{}, requests: map[request]uuid.UUID{}, contents: map[[32]byte][]byte{},
		servers: map[string]*store.MailServer{}, replicas: map[store.ReplicaID]*replica{}, breakers: map[string]*store.Breaker{},
		slots: map[string]map[int]held{}, quotas: map[string]*quota{}, tokens: map[string]*store.Token{}, senders: map[string]store.SenderDomains{}}
}

// clock is the time that decides. With mu held or not.
func (s *Store) clock() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// Now is the clock that decides what is due.
func (s *Store) Now(context.Context) (time.Time, error) { return s.clock(), nil }

// Dialect names the database.
func (s *Store) Dialect() string { return "memory" }

// Close does nothing: there is nothing to flush.
func (s *Store) Close() error { return nil }

// Ping is always answered.
func (s *Store) Ping(context.Context) error { return nil }

// Yield does nothing: no statement waits for another.
func (s *Store) Yield(context.Context) {}

// BulkItems is how many mails a statement of bulk takes.
func (s *Store) BulkItems() int { return 500 }

func (s *Store) log(r *row, st store.MailStatus) {
	s.seq++
	s.changes = append(s.changes, change{s.seq, r.m.ID, st, s.clock()})
}

// Enqueue makes a mail durable.
func (s *Store) Enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error) {
	res, err := s.EnqueueBatch(ctx, []*store.NewMail{m})
	if err != nil {
		return store.Enqueued{ID: m.ID}, err
	}
	return res[0], nil
}

// enqueueCommit is how many mails are one commit.
const enqueueCommit = 500

// EnqueueBatch makes mails durable, up to 500 in one commit, and answers in the order of ms.
func (s *Store) EnqueueBatch(_ context.Context, ms []*store.NewMail) ([]store.Enqueued, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]store.Enqueued, 0, len(ms))
	for group := range slices.Chunk(ms, enqueueCommit) {
		out = append(out, s.insert(group)...)
	}
	return out, nil
}

// EnqueueAll makes mails durable in one transaction, or none of them when one has an Err in the
// answers.
func (s *Store) EnqueueAll(_ context.Context, ms []*store.NewMail) ([]store.Enqueued, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range ms {
		if err := s.share(m); err != nil {
			return nil, err
		}
	}
	seq, changes := s.seq, len(s.changes)
	before := map[uuid.UUID]bool{}
	for _, m := range ms {
		before[m.ID] = s.mails[m.ID] != nil
	}
	out := s.insert(ms)
	if !slices.ContainsFunc(out, func(a store.Enqueued) bool { return a.Err != nil }) {
		for i, m := range ms {
			if m.Audit != nil && !before[m.ID] && !out[i].Duplicate {
				s.audits = append(s.audits, AuditRow{*m.Audit, m.Team, m.ID.String(), map[string]any{"resent_from": m.ResentFrom}})
			}
		}
		return out, nil
	}
	for _, m := range ms {
		if !before[m.ID] && s.mails[m.ID] != nil {
			s.remove(m)
		}
	}
	s.seq, s.changes = seq, s.changes[:changes]
	return out, nil
}

func (s *Store) remove(m *store.NewMail) {
	delete(s.mails, m.ID)
	if m.RequestID != "" && s.requests[request{m.Team, m.RequestID}] == m.ID {
		delete(s.requests, request{m.Team, m.RequestID})
	}
	s.order = slices.DeleteFunc(s.order, func(r *row) bool { return r.m.ID == m.ID })
}

// insert writes one commit in the order of ids, so that of two with one request_id the lower id
// is the first.
func (s *Store) insert(ms []*store.NewMail) []store.Enqueued {
	sorted := slices.Clone(ms)
	slices.SortStableFunc(sorted, func(a, b *store.NewMail) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	answers := make(map[*store.NewMail]store.Enqueued, len(ms))
	for _, m := range sorted {
		answers[m] = s.insertOne(m)
	}
	out := make([]store.Enqueued, len(ms))
	for i, m := range ms {
		out[i] = answers[m]
	}
	return out
}

func (s *Store) insertOne(m *store.NewMail) store.Enqueued {
	a := store.Enqueued{ID: m.ID}
	if a.Err = check(m); a.Err != nil {
		return a
	}
	if a.Err = s.share(m); a.Err != nil {
		return a
	}
	if s.mails[m.ID] != nil {
		return a // a repeated write
	}
	if m.RequestID != "" && !s.Faults.NoRequests {
		if id, used := s.requests[request{m.Team, m.RequestID}]; used {
			a.ID = id
			if a.Duplicate = bytes.Equal(s.mails[id].m.Fingerprint, m.Fingerprint); !a.Duplicate {
				a.Err = store.ErrRequestIDReused
			}
			return a
		}
	}
	if m.ServerVersion != 0 {
		if sv := s.servers[m.MailServer]; sv == nil || sv.Version != m.ServerVersion {
			a.Err = store.ErrServerChanged
			return a
		}
	}
	c := *m
	r := &row{m: &c, status: store.MailQueued, runAt: micro(m.RunAt), owner: m.Owner}
	if m.Held != "" {
		r.status, r.last, r.runAt, r.resumeAt = store.MailHeld, m.Held, time.Time{}, r.runAt
	}
	switch {
	case m.Owner == 0:
	case s.lives(m.Owner):
		r.claim = store.BornClaim
	default: // it waits for whoever claims it, and none of its writes counts
		r.owner, r.claim = 0, store.BornClaim+1
	}
	s.mails[m.ID] = r
	i, _ := slices.BinarySearchFunc(s.order, m.ID, func(r *row, id uuid.UUID) int { return bytes.Compare(r.m.ID[:], id[:]) })
	s.order = slices.Insert(s.order, i, r)
	if m.RequestID != "" {
		s.requests[request{m.Team, m.RequestID}] = m.ID
	}
	s.log(r, r.status)
	return a
}

func check(m *store.NewMail) error {
	switch m.Kind {
	case store.KindAgentMessage, store.KindInvoice, store.KindWorkOrder, store.KindBulk, store.KindOther:
	default:
		return fmt.Errorf("store mail: kind %q", m.Kind)
	}
	switch m.Mode {
	case store.ModePHP, store.ModeDaemon:
	default:
		return fmt.Errorf("store mail: mode %q", m.Mode)
	}
	return nil
}

func micro(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// share keeps shared content once.
func (s *Store) share(m *store.NewMail) error {
	for _, p := range m.Raw {
		if c := p.Shared; c != nil && s.contents[c.Sum] == nil {
			if c.Data == nil {
				return store.ErrContentGone
			}
			s.contents[c.Sum] = c.Data
		}
	}
	return nil
}

var errDamaged = errors.New("shared content is missing or damaged")

func (s *Store) raw(m *store.NewMail) ([]byte, error) {
	if len(m.Raw) == 1 && m.Raw[0].Shared == nil {
		return m.Raw[0].Data, nil
	}
	var out []byte
	for _, p := range m.Raw {
		if p.Shared == nil {
			out = append(out, p.Data...)
			continue
		}
		data := s.contents[p.Shared.Sum]
		if sha256.Sum256(data) != p.Shared.Sum || p.Offset+p.Length > len(data) {
			return nil, errDamaged
		}
		out = append(out, data[p.Offset:p.Offset+p.Length]...)
	}
	return out, nil
}

// LoadRaw is the whole raw message of a claimed mail.
func (s *Store) LoadRaw(_ context.Context, c *store.Claimed) ([]byte, error) {
	if len(c.Layout) == 0 {
		return c.Raw, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.mails[c.ID]
	if r == nil {
		return nil, store.ErrNotFound
	}
	return s.raw(r.m)
}

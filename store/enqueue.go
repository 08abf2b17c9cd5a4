package store

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

const (
	// flushTimeout bounds a flush. Never a caller's context: cancelling one caller's commit
	// would break everybody's in the batch.
	flushTimeout = 30 * time.Second
)

type enqueueOp struct {
	m    *NewMail
	size int
	// its content was stored once more, because it was gone when the mail was written
	again bool
	done  chan enqueueAnswer
}

type enqueueAnswer struct {
	res Enqueued
	err error
}

func (s *Store) startCoalescers() {
	s.intake = make(chan *enqueueOp, 4*batchItems)
	for range s.dialect.flushers() {
		s.enqueue = append(s.enqueue, newCoalescer(s.intake, func(o *enqueueOp) int { return o.size }, s.flushEnqueue))
	}
	s.settle, s.quick = s.newWriter(LineResults), s.newWriter(LineInteractive)
}

// Enqueue makes a mail durable. It returns when the commit is done, shared with whatever else
// arrives meanwhile. ctx bounds only the wait: a caller who gives up may still find the mail by
// its request_id.
func (s *Store) Enqueue(ctx context.Context, m *NewMail) (Enqueued, error) {
	if m.Mode == ModePHP && m.Owner != 0 { // it is sent at once, and its caller waits for that
		defer s.interactive.begin()()
	}
	if err := s.shareContent(ctx, m); err != nil {
		return Enqueued{ID: m.ID}, Unwritten(err)
	}
	op := newEnqueueOp(m)
	select {
	case s.intake <- op:
	case <-ctx.Done():
		return Enqueued{ID: m.ID}, ctx.Err()
	}
	select {
	case a := <-op.done:
		return a.res, a.err
	case <-ctx.Done():
		return Enqueued{ID: m.ID}, ctx.Err()
	}
}

// EnqueueBatch makes mails durable, one commit for up to 500 mails (100 while the interactive
// window is open) or 4 MB. The answers are in the order of ms. An error of the whole means the
// database failed. The answers stand for the first mails then: those that were written stay
// written. Of the mails after them nothing is known, unless the error has the mark
// ErrUnwritten, and the same request_ids find those that were written. ctx bounds the storing
// of shared content, never a commit.
func (s *Store) EnqueueBatch(ctx context.Context, ms []*NewMail) ([]Enqueued, error) {
	ops, err := s.enqueueOps(ctx, ms)
	if err != nil {
		return nil, err
	}
	out := make([]Enqueued, len(ms))
	for i := 0; i < len(ops); {
		s.Yield(ctx)
		j := chunkEnd(ops, i, s.BulkItems())
		done := s.interactive.bulkTurn(ctx)
		s.flushEnqueue(ops[i:j])
		done()
		for k := i; k < j; k++ {
			a := <-ops[k].done
			if a.err != nil {
				return out[:k], a.err
			}
			out[k] = a.res
		}
		i = j
	}
	return out, nil
}

// EnqueueAll makes mails durable in one transaction, or none of them when one has an Err in the
// answers.
func (s *Store) EnqueueAll(ctx context.Context, ms []*NewMail) ([]Enqueued, error) {
	ops, err := s.enqueueOps(ctx, ms)
	if err != nil {
		return nil, err
	}
	sortOps(ops)
	var chunks []packedMails
	for i := 0; i < len(ops); {
		j := chunkEnd(ops, i, batchItems)
		p, err := s.dialect.packMails(ops[i:j])
		if err != nil {
			return nil, Unwritten(fmt.Errorf("store mails: %w", err))
		}
		chunks = append(chunks, p)
		i = j
	}
	fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), allTimeout)
	defer cancel()
	var out []Enqueued
	for try := 0; ; try++ {
		began := time.Now()
		out, err = s.insertAll(fctx, ms, chunks)
		if err == nil {
			s.observe.Committed(LineAccept, len(ms), time.Since(began))
		}
		if try < 3 && errors.Is(err, errRefused) {
			stored, err := s.storeGone(fctx, ms, out)
			if err != nil {
				return nil, err
			}
			if stored {
				continue
			}
		}
		if try == 0 && errors.Is(err, errTooLong) {
			err = Unwritten(err)
		}
		// A lost connection leaves open whether the commit happened. The same ids again write
		// nothing twice.
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, errTooLong) || try == 3 {
			break
		}
		select {
		case <-fctx.Done():
		case <-time.After(time.Duration(50<<try) * time.Millisecond):
		}
	}
	if err != nil && !errors.Is(err, errRefused) {
		return nil, fmt.Errorf("store mails: %w", err)
	}
	return out, nil
}

const (
	// allTimeout bounds all that EnqueueAll does, with waiting and repetition.
	allTimeout = 2 * time.Minute
	// allTransaction bounds its transaction. While that is under way no watcher hears anything
	// on PostgreSQL, and nobody else writes on SQLite. What can be prepared is prepared before
	// it. 10,000 mails, the most that a strict batch takes, need one or two seconds.
	allTransaction = 15 * time.Second
)

// errTooLong ends a transaction of EnqueueAll that takes too long, which wrote nothing then.
var errTooLong = errors.New("storing all mails in one transaction takes too long")

// errRefused takes a transaction back because one of its mails was refused.
var errRefused = errors.New("one of the mails was refused")

// insertAll is one transaction; errRefused: it was taken back, and the answers say why.
func (s *Store) insertAll(ctx context.Context, ms []*NewMail, chunks []packedMails) (out []Enqueued, err error) {
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		ctx, cancel := context.WithTimeoutCause(ctx, s.allTransaction, errTooLong)
		defer cancel()
		answers, err := s.insertChunks(ctx, tx, chunks)
		if err != nil && errors.Is(context.Cause(ctx), errTooLong) {
			return fmt.Errorf("%w: %w", ErrUnavailable, errTooLong)
		}
		if err != nil {
			return err
		}
		out = make([]Enqueued, len(ms))
		for i, m := range ms {
			if out[i] = answers[m]; out[i].Err != nil {
				err = errRefused
			}
		}
		return err
	})
	return out, err
}

// insertChunks writes mails inside tx and answers for each.
func (s *Store) insertChunks(ctx context.Context, tx *sqlx.Tx, chunks []packedMails) (map[*NewMail]Enqueued, error) {
	answers := map[*NewMail]Enqueued{}
	audited := false
	for _, chunk := range chunks {
		inserted, err := s.dialect.insertMails(ctx, tx, chunk)
		if err != nil {
			return nil, err
		}
		for _, op := range chunk.ops {
			a := enqueueAnswer{res: Enqueued{ID: op.m.ID}}
			if !inserted[op.m.ID] {
				if a = s.explain(ctx, tx, op.m); a.err != nil {
					return nil, a.err
				}
			} else if op.m.Audit != nil {
				audited = true
				if err := s.auditInsert(ctx, tx, s.ready, *op.m.Audit, op.m.Team, op.m.ID.String(), map[string]any{"resent_from": op.m.ResentFrom}); err != nil {
					return nil, err
				}
			}
			answers[op.m] = a.res
		}
	}
	if audited {
		if _, err := s.linkAudit(ctx, tx, s.ready, false); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

func (s *Store) enqueueOps(ctx context.Context, ms []*NewMail) ([]*enqueueOp, error) {
	ops := make([]*enqueueOp, len(ms))
	for i, m := range ms {
		if err := s.shareContent(ctx, m); err != nil {
			return nil, Unwritten(err)
		}
		ops[i] = newEnqueueOp(m)
	}
	return ops, nil
}

func newEnqueueOp(m *NewMail) *enqueueOp {
	m.pack()
	return &enqueueOp{m: m, size: len(m.inline) + len(m.layout) + 256, done: make(chan enqueueAnswer, 1)}
}

// chunkEnd is where the commit that begins with ops[i] ends.
func chunkEnd(ops []*enqueueOp, i, most int) int {
	j, bytes := i, 0
	for j < len(ops) && j-i < most && bytes < batchBytes {
		bytes += ops[j].size
		j++
	}
	return j
}

// sortOps: several flushers insert at once, and the same order everywhere keeps them from
// waiting for each other in a circle.
func sortOps(ops []*enqueueOp) {
	slices.SortFunc(ops, func(a, b *enqueueOp) int { return bytes.Compare(a.m.ID[:], b.m.ID[:]) })
}

// flushEnqueue writes a batch and answers every op. A mail whose data the database refuses
// fails alone.
func (s *Store) flushEnqueue(ops []*enqueueOp) {
	ops = slices.Clone(ops)
	sortOps(ops)
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	var inserted map[uuid.UUID]bool
	var err error
	for try := 0; ; try++ {
		began := time.Now()
		inserted, err = s.insertBatch(ctx, ops)
		if err == nil {
			s.observe.Committed(LineAccept, len(ops), time.Since(began))
		}
		// A broken connection leaves open whether the commit happened. The same ids again write
		// nothing twice. A damaged page that was to take the new row is another one next time.
		if err == nil || try == 3 || !(retryable(err) || errors.Is(s.fault(err), ErrUnavailable) || damaged(err) && len(ops) == 1) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(50<<try) * time.Millisecond):
		}
	}
	if err != nil && (dataFault(err) || damaged(err)) && len(ops) > 1 {
		for _, op := range ops {
			s.flushEnqueue([]*enqueueOp{op})
		}
		return
	}
	var again []*enqueueOp
	for _, op := range ops {
		a := enqueueAnswer{res: Enqueued{ID: op.m.ID}}
		switch {
		case err != nil && dataFault(err):
			a.res.Err = fmt.Errorf("store mail: %w", err)
		case err != nil:
			a.err = s.fault(fmt.Errorf("store mail: %w", err))
		case !inserted[op.m.ID]:
			a = s.explain(ctx, nil, op.m)
		}
		if errors.Is(a.res.Err, ErrContentGone) && !op.again {
			op.again = true
			if a.res.Err = s.storeAgain(ctx, op.m); a.res.Err == nil {
				again = append(again, op)
				continue
			}
		}
		op.done <- a
	}
	if len(again) > 0 {
		s.flushEnqueue(again)
	}
}

// storeGone stores the content again of the mails that were refused for it.
func (s *Store) storeGone(ctx context.Context, ms []*NewMail, answers []Enqueued) (stored bool, err error) {
	for i, m := range ms {
		if errors.Is(answers[i].Err, ErrContentGone) {
			if err := s.storeAgain(ctx, m); err != nil {
				return false, err
			}
			stored = true
		}
	}
	return stored, nil
}

// explain finds out why a mail was not inserted: it is there already (a repeated write of
// ours), or its request_id was used before. tx may be nil.
func (s *Store) explain(ctx context.Context, tx *sqlx.Tx, m *NewMail) enqueueAnswer {
	a := enqueueAnswer{res: Enqueued{ID: m.ID}}
	var n int
	if err := s.stmt(ctx, tx, "mail_exists").GetContext(ctx, &n, m.ID); err != nil {
		a.err = s.fault(err)
		return a
	}
	if n > 0 {
		return a
	}
	if m.RequestID == "" {
		a.res.Err, a.err = s.keptOut(ctx, tx, m)
		return a
	}
	var had struct {
		ID          uuid.UUID
		Fingerprint []byte
	}
	err := s.stmt(ctx, tx, "mail_request").QueryRowxContext(ctx, m.Team, m.RequestID).Scan(&had.ID, &had.Fingerprint)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		id, err := s.erasedRequest(ctx, tx, m)
		switch {
		case err != nil:
			a.err = s.fault(err)
		case id != uuid.Nil: // what was in that mail nobody knows any more
			a.res.ID, a.res.Duplicate = id, true
		default:
			a.res.Err, a.err = s.keptOut(ctx, tx, m)
		}
	case err != nil:
		a.err = s.fault(err)
	case bytes.Equal(had.Fingerprint, m.Fingerprint):
		a.res.ID, a.res.Duplicate = had.ID, true
	default:
		a.res.ID, a.res.Err = had.ID, ErrRequestIDReused
	}
	return a
}

// keptOut is why a new mail was not written though nothing has its id or its request_id.
func (s *Store) keptOut(ctx context.Context, tx *sqlx.Tx, m *NewMail) (why, err error) {
	gone, err := s.lacksContent(ctx, tx, m)
	switch {
	case err != nil:
		return nil, s.fault(err)
	case gone, len(m.contents) > 0 && m.ServerVersion == 0:
		// or somebody has stored it meanwhile
		return ErrContentGone, nil
	}
	return ErrServerChanged, nil
}

// erasedRequest is the mail of a request_id that an erasure has rewritten; zero = none.
func (s *Store) erasedRequest(ctx context.Context, tx *sqlx.Tx, m *NewMail) (id uuid.UUID, err error) {
	err = s.stmt(ctx, tx, "erased_request").GetContext(ctx, &id, s.requestHash(m.Team, m.RequestID))
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return id, err
}

// requestHash is what an erasure leaves of a request_id.
func (s *Store) requestHash(team, requestID string) []byte {
	h := hmac.New(sha256.New, s.requestKey)
	h.Write([]byte(team + "\x00" + requestID))
	return h.Sum(nil)
}

// stmt is a statement inside tx, or outside any with nil.
func (s *Store) stmt(ctx context.Context, tx *sqlx.Tx, name string) *sqlx.Stmt {
	if tx == nil {
		return s.q.get(name)
	}
	return s.q.in(ctx, tx, name)
}

// insertBatch is one transaction, and returns which mails were new.
func (s *Store) insertBatch(ctx context.Context, ops []*enqueueOp) (map[uuid.UUID]bool, error) {
	p, err := s.dialect.packMails(ops)
	if err != nil {
		return nil, err
	}
	return s.dialect.insertMails(ctx, nil, p)
}

// packedMails are mails as one enqueue statement takes them.
type packedMails struct {
	ops  []*enqueueOp
	rows string // PostgreSQL: the rows as JSON
}

func nullString(s string) any { return sql.NullString{String: s, Valid: s != ""} }

func nullBytes(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

func nullJSON(m map[string]string) any {
	if len(m) == 0 {
		return nil
	}
	b, _ := json.Marshal(m) // a map of strings always can be
	return string(b)
}

// term is what the search table keeps of something that is searched for: 8 bytes of its hash.
func term(kind, value string) string {
	h := sha256.Sum256([]byte(kind + "\x00" + value))
	return fmt.Sprint(int64(binary.BigEndian.Uint64(h[:8])))
}

func recipientTerm(mailbox string) string { return term("recipient", strings.ToLower(mailbox)) }
func messageIDTerm(id string) string      { return term("message_id", id) }
func labelTerm(k, v string) string        { return term("label", k+"\x00"+v) }
func referenceTerm(r string) string       { return term("reference", r) }

// ownMessageID is the mail's id that a Message-ID of the service's own carries, by which it is
// found without a term; is: it may carry one.
func ownMessageID(id string) (is bool, mail uuid.UUID) {
	local, _, _ := strings.Cut(id, "@")
	mail, err := uuid.Parse(local)
	return err == nil, mail
}

// termsOf is what a new mail can be searched by, and which shared content it needs.
func (s *Store) termsOf(m *NewMail) []string {
	ts := []string{}
	if !s.noTerms {
		ts = termsOf(m)
	}
	for _, sum := range m.contents {
		ts = append(ts, contentTerm(sum))
	}
	return ts
}

func termsOf(m *NewMail) []string {
	ts := make([]string, 0, len(m.Recipients)+len(m.Labels)+1)
	for _, r := range m.Recipients {
		ts = append(ts, recipientTerm(r.Mailbox))
	}
	if _, own := ownMessageID(m.MessageID); own != m.ID {
		ts = append(ts, messageIDTerm(m.MessageID))
	}
	if m.Reference != "" {
		ts = append(ts, referenceTerm(m.Reference))
	}
	for k, v := range m.Labels {
		ts = append(ts, labelTerm(k, v))
	}
	return ts
}

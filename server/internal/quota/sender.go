package quota

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

// Sender is what takes mail.
type Sender interface {
	Send(ctx context.Context, s *delivery.Submission, observe func(delivery.Event) error) error
	Queue(ctx context.Context, ms []*store.NewMail, all bool) ([]store.Enqueued, error)
	Yield(ctx context.Context)
}

// Sender is s behind the limits: what is accepted is charged, and what the guard has no budget
// for is accepted and held. A mail whose request_id is known costs nothing.
//
// A charge is given back only for what is known not to have become a new mail: a duplicate, or
// what was answered or refused with the mark [store.ErrUnwritten]. Whoever hangs up while its
// mail is committed has it sent all the same. So after any other error the charge stays, and
// comes back with its period.
//
// Send refuses what is over a limit, unless the submission waits. Queue waits for up to
// patience. Then it refuses the rest: each of these mails is answered with an error that
// [Refused] knows, and the mails before them with what became of them. Where something else
// fails, the answers stand for the first mails, and the error for those after them. Only where
// all or nothing is asked for, the refusal is the call's. The mails of one Queue are of one
// team and one caller.
func (q *Quota) Sender(s Sender) Sender { return &sender{Sender: s, q: q} }

type sender struct {
	Sender
	q *Quota
}

// patience is how long bulk waits for what is not there. A minute's limit always has something
// again by then.
const patience = 66 * time.Second

func (s *sender) Send(ctx context.Context, sub *delivery.Submission, observe func(delivery.Event) error) error {
	if !s.q.limits.mails() && sub.Mail.Budget == nil {
		return s.Sender.Send(ctx, sub, observe)
	}
	took, err := s.q.admit(ctx, []*store.NewMail{sub.Mail}, waits(sub.Mail), sub.Waits)
	if err != nil {
		return err
	}
	accepted, duplicate := false, false
	err = s.Sender.Send(ctx, sub, func(ev delivery.Event) error {
		if ev.Accepted != nil {
			accepted, duplicate = true, ev.Accepted.Duplicate
		}
		return observe(ev)
	})
	spent := !duplicate && (accepted || !errors.Is(err, store.ErrUnwritten))
	s.q.settle([]*store.NewMail{sub.Mail}, took, func(int) bool { return spent })
	return err
}

func (s *sender) Queue(ctx context.Context, ms []*store.NewMail, all bool) ([]store.Enqueued, error) {
	if len(ms) == 0 || !s.q.limits.mails() && ms[0].Budget == nil {
		return s.Sender.Queue(ctx, ms, all)
	}
	if all {
		return s.some(ctx, ms, true)
	}
	// Each commit is one charge. Where there is not enough for all, there is for a part.
	out := make([]store.Enqueued, 0, len(ms))
	for len(out) < len(ms) {
		rest := ms[len(out):]
		res, err := s.some(ctx, rest[:s.q.limits.piece(rest)], false)
		switch {
		case err == nil:
			out = append(out, res...)
		case Refused(err):
			for range rest {
				out = append(out, store.Enqueued{Err: err})
			}
		default:
			return append(out, res...), err
		}
	}
	return out, nil
}

// Refused says whether a limit has refused the mail that has got this error: nothing was taken.
func Refused(err error) bool {
	e, is := apierr.As(err)
	return is && e.Reason == pb.ReasonQuotaExceeded
}

// some is Queue of mails that are charged at once.
func (s *sender) some(ctx context.Context, ms []*store.NewMail, all bool) ([]store.Enqueued, error) {
	took, err := s.q.admit(ctx, ms, true, true)
	if err != nil {
		return nil, err
	}
	res, err := s.Sender.Queue(ctx, ms, all)
	// one that is refused takes all or nothing back
	none := all && slices.ContainsFunc(res, func(r store.Enqueued) bool { return r.Err != nil })
	s.q.settle(ms, took, func(i int) bool {
		if i < len(res) {
			return !none && !res[i].Duplicate && res[i].Err == nil
		}
		return !errors.Is(err, store.ErrUnwritten)
	})
	return res, err
}

// settle gives back what the mails were charged that have not spent it: they are known not to
// be new. The log hears of those that the guard holds.
func (q *Quota) settle(ms []*store.NewMail, took taken, spent func(i int) bool) {
	n, rcpts := int64(0), int64(0)
	for i, m := range ms {
		switch c := took.each[i]; {
		case !spent(i):
			n, rcpts = n+1, rcpts+int64(len(m.Recipients))
			q.undo(c)
		case c.limit > 0:
			q.alarm(m, c.limit)
		}
	}
	if n == 0 {
		return
	}
	if len(took.all) > 0 {
		q.back(q.quotas(ms[0], n, rcpts))
	}
	if took.queued {
		q.accepted(ms[0].Team, -n)
	}
}

// taken is what mails were charged.
type taken struct {
	all    []want   // of the limits that refuse, for all mails together
	each   []charge // of the guard's budgets, by mail
	queued bool     // they count as mails that stand in the queue
}

// admit charges mails, and has the guard look at them. It returns what was taken, nothing for
// mails that are all known where that had to be asked. queued: they will stand in the queue;
// waits: for what is not there.
func (q *Quota) admit(ctx context.Context, ms []*store.NewMail, queued, waits bool) (took taken, err error) {
	took.each = make([]charge, len(ms))
	rcpts := int64(0)
	for _, m := range ms {
		rcpts += int64(len(m.Recipients))
	}
	ws := q.quotas(ms[0], int64(len(ms)), rcpts)
	asked := false
	for end := q.now().Add(patience); ; {
		over := q.room(ms, queued)
		if over == nil && len(ws) > 0 {
			short, after, err := q.take(ctx, ws)
			if err != nil {
				return took, err
			}
			if short != nil {
				over = q.exceeded(short.name, short.limit, after, "%s", texts[short.name])
			}
		}
		if over == nil {
			break
		}
		if !asked {
			asked = true
			if known, err := q.known(ctx, ms); known || err != nil {
				return took, err
			}
		}
		wait := over.RetryAfter
		if !waits || wait == 0 || q.now().Add(wait).After(end) {
			return took, over
		}
		if err := q.sleep(ctx, min(wait, time.Second)); err != nil {
			// something may come back meanwhile
			if errors.Is(err, errStopping) {
				return took, over
			}
			return took, err
		}
	}
	took.all = ws
	for i, m := range ms {
		if took.each[i], err = q.guard(ctx, m); err != nil {
			q.back(took.all)
			for _, c := range took.each {
				q.undo(c)
			}
			return took, err
		}
	}
	if took.queued = queued; queued {
		q.accepted(ms[0].Team, int64(len(ms)))
	}
	return took, nil
}

// texts say in words what is over.
var texts = map[string]string{
	tokenMails:                     "the token has handed over as many mails as it may in 24 hours",
	tokenRecipients:                "the token has handed over mail for as many recipients as it may in 24 hours",
	"caller_mails_per_minute":      "the caller has handed over as many mails as it may in a minute",
	"caller_recipients_per_minute": "the caller has handed over mail for as many recipients as it may in a minute",
	"team_mails_per_minute":        "the team has handed over as many mails as it may in a minute",
	"team_recipients_per_minute":   "the team has handed over mail for as many recipients as it may in a minute",
}

// quotas are what mails want of the limits that refuse.
func (q *Quota) quotas(m *store.NewMail, n, rcpts int64) []want {
	l := &q.limits
	var ws []want
	if b := m.Budget; b != nil {
		ws = budget(b, n, rcpts)
	}
	add := func(name, whose string, limit int, n int64) {
		if limit > 0 {
			ws = append(ws, want{name: name, whose: whose, limit: int64(limit), period: time.Minute, n: n})
		}
	}
	add("caller_mails_per_minute", m.Caller, l.CallerMails, n)
	add("caller_recipients_per_minute", m.Caller, l.CallerRecipients, rcpts)
	add("team_mails_per_minute", m.Team, l.TeamMails, n)
	add("team_recipients_per_minute", m.Team, l.TeamRecipients, rcpts)
	return ws
}

// The limits of a token's own budget, as errors and WhoAmI name them.
const (
	tokenMails      = "token_mails_per_day"
	tokenRecipients = "token_recipients_per_day"
)

// budget is what mails want of their token's own budget.
func budget(b *store.Budget, n, rcpts int64) (ws []want) {
	if b.Mails > 0 {
		ws = append(ws, want{name: tokenMails, whose: b.Token, limit: b.Mails, period: 24 * time.Hour, n: n})
	}
	if b.Recipients > 0 {
		ws = append(ws, want{name: tokenRecipients, whose: b.Token, limit: b.Recipients, period: 24 * time.Hour, n: rcpts})
	}
	return ws
}

// known says whether every one of the mails has a request_id that is known already. Then they
// are answered, whatever is left.
func (q *Quota) known(ctx context.Context, ms []*store.NewMail) (bool, error) {
	ids := make([]string, len(ms))
	for i, m := range ms {
		if ids[i] = m.RequestID; m.RequestID == "" {
			return false, nil
		}
	}
	known, err := q.store.KnownRequests(ctx, ms[0].Team, ids)
	if err != nil {
		return false, err
	}
	for _, id := range ids {
		if !known[id] {
			return false, nil
		}
	}
	return true, nil
}

var errStopping = errors.New("the service is stopping")

// sleep waits, and no longer than the service lives.
func (q *Quota) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-q.stopping:
		return errStopping
	}
}

// mails reports whether anything is asked of mails at all.
func (l *Limits) mails() bool {
	g := &l.Guard
	return l.CallerMails+l.CallerRecipients+l.TeamMails+l.TeamRecipients+l.Queue+g.Address+g.Caller+g.Team+g.Batch+len(g.Kinds)+l.DiskMiB > 0
}

// piece is how many of the mails are charged at once, from the first on: few enough mails and
// recipients that a small limit lets them through one part after the other; one at least.
func (l *Limits) piece(ms []*store.NewMail) int {
	mails, rcpts := int64(500), int64(math.MaxInt64)
	share := func(most *int64, limits ...int64) {
		for _, limit := range limits {
			if limit > 0 {
				*most = min(*most, limit/sliceFrac)
			}
		}
	}
	share(&mails, int64(l.CallerMails), int64(l.TeamMails))
	share(&rcpts, int64(l.CallerRecipients), int64(l.TeamRecipients))
	if b := ms[0].Budget; b != nil {
		share(&mails, b.Mails)
		share(&rcpts, b.Recipients)
	}
	n := 0
	for sum := int64(0); n < len(ms); n++ {
		sum += int64(len(ms[n].Recipients))
		if n > 0 && (int64(n) >= mails || sum > rcpts) {
			break
		}
	}
	return n
}

package lifecycle

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Attempt is one try to deliver a claimed mail, from its claim to its end.
// One goroutine has it at a time: a worker of the batch, a php-mode send, or the recovery.
type Attempt struct {
	Mail    *store.Claimed
	Owner   store.ReplicaID
	Started time.Time
	// Interactive: a php-mode caller waits and is told what becomes of the mail. What it was
	// told has failed is not retried. Mail.RetryInBatch changes what it is told.
	Interactive bool

	results []store.RecipientResult // by position, as they stand now
	todo    []int                   // positions that the attempt still has to try, in order
	handed  int                     // transactions that a session was given and has answered
	decided int                     // recipients that this attempt has decided
	free    int                     // free tries left on a fresh connection
	most    int                     // recipients of the next transaction
	// a mark for the transaction that is under way was handed over to the journal
	handedMark bool
	// and is there: the dot may have left
	marked bool
	// the journal may hold a mark for a dot that is known not to have left
	stale  bool
	end    End           // how the last transaction ended the attempt
	fault  string        // first fault of a transaction, for people
	remote string        // last queue id that the relay gave
	blame  smtpx.Failure // why no session could be had; see Blame
	// the mail server that it goes through; "" = the mail's own
	through   string
	notBefore time.Time // see StandBack
}

// freeTries is how often a mail is put on a fresh connection at once, because the connection it
// was on had died before anything of it left.
const freeTries = 2

// ErrLost is what a gate returns when the mail is not this replica's any more: a person has
// stopped it, or another replica has taken it over.
var ErrLost = errors.New("the mail was taken from this replica: no dot may leave")

// Begin is an attempt to deliver a mail that the batch has claimed, or that is born claimed.
func Begin(m *store.Claimed, owner store.ReplicaID, now time.Time) *Attempt {
	a := &Attempt{Mail: m, Owner: owner, Started: now, free: freeTries, most: smtpx.MaxRecipients}
	a.results = make([]store.RecipientResult, len(m.Recipients))
	copy(a.results, m.Progress.Results)
	if n := len(m.Progress.Attempts); n > 0 && m.Progress.Attempts[n-1].Outcome == "" && (m.Marked || m.Begun) {
		// the attempt that its owner died of: see Progress
		a.through = m.Progress.Attempts[n-1].Server
	}
	for i := range a.results {
		if a.results[i].Status == "" {
			a.results[i].Status = store.RecipientPending
		}
		if needsSending(m, a.results[i]) {
			a.todo = append(a.todo, i)
		}
	}
	return a
}

// needsSending says whether a claimed mail's recipient is to be tried. An unknown one is tried
// only where policy allows a flagged duplicate; one that a person is to send to again is
// pending.
func needsSending(m *store.Claimed, r store.RecipientResult) bool {
	switch r.Status {
	case store.RecipientPending, store.RecipientDeferred:
		return true
	case store.RecipientUnknown:
		return m.PossibleDuplicate && !holdsUnknown(m, r)
	}
	return false
}

// holdsUnknown says whether a recipient whose outcome is unknown waits for a person's word
// instead of being sent to again: by the mail's kind, by its mail server, because a person who
// resolved others has left this one open, or because it has refused a further copy for good.
func holdsUnknown(m *store.Claimed, r store.RecipientResult) bool {
	return m.Kind == store.KindInvoice || m.Kind == store.KindWorkOrder || m.HoldUnknown || r.Held
}

// Number is the attempt's number: 1 for the first that counts.
func (a *Attempt) Number() int { return a.Mail.Attempts + 1 }

// Left is how many recipients the attempt still has to try.
func (a *Attempt) Left() int { return len(a.todo) }

// Next is the positions of the recipients of the next transaction.
func (a *Attempt) Next() []int {
	return append([]int(nil), a.chunk()...)
}

func (a *Attempt) chunk() []int { return a.todo[:min(len(a.todo), a.most)] }

// AtMost sets how many recipients the next transaction may have.
func (a *Attempt) AtMost(recipients int) {
	a.most = max(1, min(recipients, smtpx.MaxRecipients))
}

// Result is what is known of the recipient at a position, and whether this attempt has decided
// it.
func (a *Attempt) Result(position int) (r store.RecipientResult, now bool) {
	r = a.results[position]
	return r, r.Attempt == a.Number()
}

// HasBegun says whether a session has answered a transaction of the attempt.
func (a *Attempt) HasBegun() bool { return a.handed > 0 }

// DotMayLeave notes that the gate lets a dot leave.
func (a *Attempt) DotMayLeave() { a.marked = true }

// BeginAnew lets an attempt that the gate has cut go on as if its last transaction had not been
// tried; false when the attempt ended in another way. See HasStaleMark for what has to be
// written before anything else.
func (a *Attempt) BeginAnew() bool {
	if a.end != GateCut {
		return false
	}
	a.free, a.fault, a.blame, a.end = freeTries, "", "", 0
	return true
}

// HasStaleMark says whether the journal may hold a mark for a dot that did not leave after all,
// also one whose answer nobody heard. The next write of what is known takes it back: Progress
// where the attempt goes on, else its end. Should the process die before, the mail counts as
// one that may have left.
func (a *Attempt) HasStaleMark() bool { return a.stale }

// End is how the last transaction ended the attempt; zero when the attempt can go on.
func (a *Attempt) End() End { return a.end }

// Step is what follows a transaction.
type Step int

const (
	StepOver Step = iota // the attempt has ended: see Attempt.End
	StepNext             // its next recipients, on the same session if that lives
	StepFree             // the same recipients on a fresh connection, free of charge
)

// After writes the relay's answer to the transaction with the recipients at positions into the
// attempt, and says how to go on.
func (a *Attempt) After(positions []int, o smtpx.Outcome, now time.Time) Step {
	before := len(a.todo)
	a.handed++
	throttled, server := Throttling(o), RefusesUs(o)
	a.fold(positions, o, now)
	// the next transaction has a dot of its own
	a.stale = a.stale || a.handedMark || a.marked
	a.stale = a.stale && !o.DotSent
	a.handedMark, a.marked = false, false
	if throttled != "" && a.fault == "" {
		a.fault = "throttled: " + throttled
	}
	if server != "" && a.fault == "" {
		a.fault = server // refusals at RCPT are no fault of the transaction
	}
	if server != "" {
		a.free = min(a.free, 1) // one fresh login
	}
	switch {
	case len(a.todo) == 0:
		a.end = Decided
	case o.Err != nil && o.Err.Phase == smtpx.PhaseGate && errors.Is(o.Err, ErrLost):
		a.end = Lost
	case o.Err != nil && o.Err.Phase == smtpx.PhaseGate:
		a.end = GateCut
	case o.Took > 0 && o.ServerDown && !o.DotSent && a.free > 0:
		// It minded the recipients beyond those it takes, and hung up: fewer next time.
		a.free--
		return StepFree
	case throttled != "" && (!o.ServerDown || policy(o)):
		a.end = Throttled
	case o.ServerDown && !o.DotSent && a.free > 0:
		a.free--
		return StepFree
	case !(o.ServerDown && !o.DotSent) && len(a.todo) < before:
		return StepNext
	default:
		a.end = RelayFault
	}
	return StepOver
}

// fold writes an outcome into the results. Recipients that were not tried stay in todo.
func (a *Attempt) fold(positions []int, o smtpx.Outcome, now time.Time) {
	if o.RemoteID != "" {
		a.remote = o.RemoteID
	}
	if o.Err != nil && a.fault == "" {
		a.fault = o.Err.Error()
	}
	var open []int
	for i, p := range positions {
		r, was := o.Recipients[i], a.results[p]
		res := store.RecipientResult{Code: r.Reply.Code, Enhanced: r.Reply.Enhanced, Detail: r.Reply.Text, Attempt: a.Number(), Time: now}
		switch r.Status {
		case smtpx.StatusAccepted:
			res.Status, res.RemoteID = store.RecipientAccepted, o.RemoteID
		case smtpx.StatusRejected:
			res.Status, res.Failure = store.RecipientRejected, failure(r)
		case smtpx.StatusUnknown:
			res.Status = store.RecipientUnknown
		case smtpx.StatusDeferred:
			res.Status, res.Failure = store.RecipientDeferred, failure(r)
		}
		if staysOpen(r, o.ServerDown) {
			open = append(open, p)
			a.keepWords(p, r)
			continue
		}
		if res.Detail == "" && o.Err != nil {
			res.Detail = o.Err.Error()
		}
		a.decided++
		if was.Status == store.RecipientUnknown && res.Status != store.RecipientAccepted && res.Status != store.RecipientUnknown {
			// A refusal now says nothing about the earlier copy: it stays unknown. One for good
			// says that no further copy can arrive: what is left is a person's to find out.
			res.Held = res.Status == store.RecipientRejected
			res.Status = store.RecipientUnknown
			res.Detail = fmt.Sprintf("outcome of an earlier attempt is unknown; this one was refused: %s", r.Reply)
		}
		a.results[p] = res
	}
	a.todo = append(open, a.todo[len(positions):]...)
}

// staysOpen says whether a transaction has decided nothing about a recipient: it was not tried,
// or what was said is about the session or the mail server.
func staysOpen(r smtpx.RecipientOutcome, serverDown bool) bool {
	switch r.Status {
	case smtpx.StatusNotTried:
		return true
	case smtpx.StatusDeferred, smtpx.StatusRejected:
		about := meaning(r).About
		return about == smtpx.AboutSession || about == smtpx.AboutServer || r.Status == smtpx.StatusDeferred && serverDown && r.Reply.Code == 0
	}
	return false
}

// meaning is what a reply means; outcomes that no session made are looked up here.
func meaning(r smtpx.RecipientOutcome) smtpx.Meaning {
	if r.Means != (smtpx.Meaning{}) {
		return r.Means
	}
	return smtpx.Means(smtpx.Said{Phase: r.Phase, Reply: r.Reply})
}

// failure is the class of a reply that refused a recipient.
func failure(r smtpx.RecipientOutcome) string {
	return string(smtpx.FailureOf(smtpx.Said{Phase: r.Phase, Reply: r.Reply}))
}

// Blame notes the class of what kept the attempt from having a session. A recipient that the
// attempt gives up without a reply of its own is said to have failed of it.
func (a *Attempt) Blame(f smtpx.Failure) { a.blame = f }

// StandBack has the mail wait until behind probe, the next try of a mail server that was
// suspended for what it said to this mail: should the words be about the mail after all, the
// try has to meet another one, however urgent this one is.
func (a *Attempt) StandBack(probe time.Time) { a.notBefore = probe.Add(behindProbe()) }

// keepWords notes what the relay said last to a recipient that stays open: a goodbye, most
// often. It decides nothing.
func (a *Attempt) keepWords(position int, said smtpx.RecipientOutcome) {
	r := &a.results[position]
	if said.Reply.Code >= 400 && r.Status != store.RecipientUnknown && meaning(said).Action != smtpx.ActSplit {
		r.Code, r.Enhanced, r.Detail, r.Failure = said.Reply.Code, said.Reply.Enhanced, said.Reply.Text, failure(said)
	}
}

// Throttling is the relay's words when it says in a transaction that we are too fast or too
// many, "" when it does not.
func Throttling(o smtpx.Outcome) string { return wordsOf(o, smtpx.ActSlower) }

// Crowded says whether a refusal of the mail, or of a recipient, is one that fewer connections
// would help against.
func Crowded(o smtpx.Outcome) bool {
	for _, r := range o.Recipients {
		if m := meaning(r); m.Slower && m.Action == smtpx.ActDefer {
			return true
		}
	}
	return false
}

// RefusesUs is the relay's words when they are about the mail server and not about the mail:
// the login is gone, the sender may not send, the account is at its limit. "" when there are
// none.
func RefusesUs(o smtpx.Outcome) string { return wordsOf(o, smtpx.ActSuspend) }

func wordsOf(o smtpx.Outcome, what smtpx.Action) string {
	for _, r := range o.Recipients {
		if (r.Status == smtpx.StatusDeferred || r.Status == smtpx.StatusRejected || r.Status == smtpx.StatusNotTried) && meaning(r).Action == what {
			return r.Reply.String()
		}
	}
	return ""
}

// policy says that the relay slows us down on purpose (RFC 3463 3.8). A connection that it
// closes for another reason is worth a fresh one at once.
func policy(o smtpx.Outcome) bool {
	for _, r := range o.Recipients {
		if meaning(r).Action == smtpx.ActSlower && strings.HasPrefix(r.Reply.Enhanced, "4.7.") {
			return true
		}
	}
	return false
}

// leaveUnknown gives up on a transaction whose dot may have left and whose reply nobody read.
// Which recipients it had needs no record: they are always among the first MaxRecipients that
// need sending and that no earlier transaction of the same attempt has decided. A result with
// this attempt's number may be of an earlier owner's, whose attempt was broken off and did not
// count: this owner has begun with that recipient again. So those up to there are called
// unknown as well, and so is the rest where the mail server takes fewer at once: better too
// many than one too few.
func (a *Attempt) leaveUnknown(why string, now time.Time) {
	for undecided := 0; len(a.todo) > 0 && undecided < smtpx.MaxRecipients; a.todo = a.todo[1:] {
		p := a.todo[0]
		if _, decided := a.Result(p); !decided {
			undecided++
		}
		a.results[p] = store.RecipientResult{Status: store.RecipientUnknown, Attempt: a.Number(), Time: now, Detail: why}
	}
	a.decided++ // the attempt counts
}

// settlement is a write of this attempt's owner.
func (a *Attempt) settlement(kind store.SettleKind) *store.Settlement {
	return &store.Settlement{ID: a.Mail.ID, Owner: a.Owner, Claim: a.Mail.Claim, Kind: kind, Quick: a.Interactive}
}

// Mark says that the dot of the next transaction is about to leave. From here on it may be in
// the journal, whatever is heard of it.
func (a *Attempt) Mark() *store.Settlement {
	a.handedMark = true
	return a.settlement(store.SettleMark)
}

// BeginSuspect says that this owner is about to handle a mail whose owner died before, so that
// its own death would count; nil for any other mail. Of all the mails that a dead process held,
// only those that it was at can have killed it; the first death cannot tell them apart.
func (a *Attempt) BeginSuspect() *store.Settlement {
	if a.Mail.Crashes == 0 {
		return nil
	}
	s := a.settlement(store.SettleBegin)
	s.Crashes = a.Mail.Crashes + 1
	return s
}

// Progress says what is known between two transactions of one attempt. Should the process die
// now, the journal has to say that some of the recipients have the mail, and through which mail
// server the attempt goes if that is not the mail's own. It raises the token: every later write
// of the attempt carries the new one.
func (a *Attempt) Progress() *store.Settlement {
	s := a.settlement(store.SettleProgress)
	a.Mail.Claim++
	a.stale = false
	s.Attempts, s.PossibleDuplicate = a.Mail.Attempts, a.Mail.PossibleDuplicate
	s.Progress = &store.Progress{Results: append([]store.RecipientResult(nil), a.results...), Attempts: a.ended()}
	if a.through != "" {
		s.Progress.Attempts = append(s.Progress.Attempts, store.Attempt{Number: a.Number(), Start: a.Started, Server: a.through})
	}
	if a.tally().accepted > 0 {
		s.Status = store.MailPartiallySent
	}
	return s
}

// tally counts results by status; again are the unknown ones that policy sends to again.
type tally struct{ accepted, open, rejected, unknown, again int }

func (a *Attempt) tally() tally {
	var t tally
	for _, r := range a.results {
		switch r.Status {
		case store.RecipientAccepted:
			t.accepted++
		case store.RecipientRejected:
			t.rejected++
		case store.RecipientUnknown:
			t.unknown++
			if !holdsUnknown(a.Mail, r) {
				t.again++
			}
		default:
			t.open++
		}
	}
	return t
}

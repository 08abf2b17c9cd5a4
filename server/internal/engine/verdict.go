package engine

import (
	"fmt"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// job is one claimed mail on its way. It is owned by one goroutine at a time: a worker, or a flight.
type job struct {
	mail  *store.Claimed
	owner store.ReplicaID
	raw   []byte

	results []store.RecipientResult // by position, as they stand now
	todo    []int                   // positions this attempt still has to try, in order
	started time.Time
	sent    bool   // a dot left in this attempt: it counts
	counts  bool   // something about the mail itself was decided in this attempt
	down    bool   // the relay failed, not the mail
	fault   string // first fault of the attempt, for people
	remote  string // last queue id the relay gave
	free    int    // free tries left on a fresh connection
	seq     int64  // its number in the drain's queue

	quick     bool   // a php-mode caller waits: its writes do not queue behind the batch's
	submitted bool   // it was handed to a session at least once
	later     bool   // something about this one mail failed here: it waits a little before it is due again
	marked    bool   // the gate let a dot leave
	over      bool   // it is settled, or lost
	begun     bool   // it is recorded that this owner is at it
	lost      bool   // the gate learned that the mail belongs to another replica
	throttled string // the relay's words when it said that we are too fast; "" = it did not
	attended  bool   // a caller waits for it
	weight    int64  // bytes taken from the engine's budget
	handed    int64  // bytes taken from the budget of what was handed over in memory
}

// freeTries is how often a mail is put on a fresh connection at once, because the connection it was on had died before anything of it left.
const freeTries = 2

func newJob(c *store.Claimed, owner store.ReplicaID, now time.Time) *job {
	j := &job{mail: c, owner: owner, started: now, free: freeTries}
	j.results = make([]store.RecipientResult, len(c.Recipients))
	copy(j.results, c.Progress.Results)
	for i := range j.results {
		if j.results[i].Status == "" {
			j.results[i].Status = store.RecipientPending
		}
		if needsSending(j.mail, j.results[i]) {
			j.todo = append(j.todo, i)
		}
	}
	return j
}

// needsSending says whether a claimed mail's recipient is to be tried. An unknown one is tried only where policy allows a flagged duplicate; one that a
// person is to send to again is pending.
func needsSending(m *store.Claimed, r store.RecipientResult) bool {
	switch r.Status {
	case store.RecipientPending, store.RecipientDeferred:
		return true
	case store.RecipientUnknown:
		return m.PossibleDuplicate && !holdsUnknown(m, r)
	}
	return false
}

// holdsUnknown says whether a recipient whose outcome is unknown waits for a person's word instead of being sent to again: by the mail's kind, by its
// mail server, or because a person who resolved others has left this one open.
func holdsUnknown(m *store.Claimed, r store.RecipientResult) bool {
	return m.Kind == store.KindInvoice || m.Kind == store.KindWorkOrder || m.HoldUnknown || r.Held
}

// chunk is the next transaction's recipients.
func (j *job) chunk() []int {
	return j.todo[:min(len(j.todo), smtpx.MaxRecipients)]
}

func (j *job) attemptNumber() int { return j.mail.Attempts + 1 }

// fold writes the outcome of the transaction with the recipients at positions into the job. Recipients that were not tried stay in todo.
func (j *job) fold(positions []int, o smtpx.Outcome, now time.Time) {
	if o.RemoteID != "" {
		j.remote = o.RemoteID
	}
	if o.Err != nil && j.fault == "" {
		j.fault = o.Err.Error()
	}
	j.sent = j.sent || o.DotSent
	j.down = o.ServerDown
	j.throttled = ""
	var open []int
	for i, p := range positions {
		r, was := o.Recipients[i], j.results[p]
		res := store.RecipientResult{Code: r.Reply.Code, Enhanced: r.Reply.Enhanced, Detail: r.Reply.Text, Attempt: j.attemptNumber(), Time: now}
		switch r.Status {
		case smtpx.StatusAccepted:
			res.Status, res.RemoteID = store.RecipientAccepted, o.RemoteID
		case smtpx.StatusRejected:
			res.Status = store.RecipientRejected
		case smtpx.StatusUnknown:
			res.Status = store.RecipientUnknown
		case smtpx.StatusDeferred:
			if throttles(r) {
				j.throttled = r.Reply.String()
			}
			if j.down && r.Reply.Code == 0 || r.Reply.Code == 421 || j.throttled != "" {
				open = append(open, p)
				continue
			}
			res.Status = store.RecipientDeferred
		default:
			open = append(open, p)
			continue
		}
		if res.Detail == "" && o.Err != nil {
			res.Detail = o.Err.Error()
		}
		j.counts = true
		if was.Status == store.RecipientUnknown && res.Status != store.RecipientAccepted && res.Status != store.RecipientUnknown {
			// A refusal now says nothing about the earlier copy: it stays unknown.
			res.Status = store.RecipientUnknown
			res.Detail = fmt.Sprintf("outcome of an earlier attempt is unknown; this one was refused: %d %s", r.Reply.Code, r.Reply.Text)
		}
		j.results[p] = res
	}
	if j.throttled != "" && j.fault == "" {
		j.fault = "throttled: " + j.throttled
	}
	j.todo = append(open, j.todo[len(positions):]...)
}

// throttles reports whether a reply slows the relay rather than refuses the mail: the enhanced codes of policy (RFC 3463 3.8) with a temporary code. At RCPT
// that is greylisting, which is about one recipient, unless the relay closes with 421.
func throttles(r smtpx.RecipientOutcome) bool {
	if !strings.HasPrefix(r.Reply.Enhanced, "4.7.") {
		return false
	}
	switch r.Reply.Code {
	case 421:
		return true
	case 450, 451, 452:
		return r.Phase != smtpx.PhaseRcpt
	}
	return false
}

// step is what a job does after a transaction.
type step int

const (
	stepOver step = iota // settle it
	stepNext             // its next recipients, on the same session if that lives
	stepFree             // the same recipients on a fresh connection, free of charge
)

// step folds the outcome in and says how to go on.
func (j *job) step(positions []int, o smtpx.Outcome, now time.Time) step {
	before := len(j.todo)
	j.fold(positions, o, now)
	switch {
	case len(j.todo) == 0:
		return stepOver
	case o.Err != nil && o.Err.Phase == smtpx.PhaseGate:
		j.submitted = false // cut by us: due again as it was
		return stepOver
	case j.throttled != "":
		return stepOver
	case j.down && !o.DotSent:
		if j.free == 0 {
			return stepOver
		}
		j.free--
		return stepFree
	case len(j.todo) < before:
		return stepNext
	}
	return stepOver
}

// progress records what is known between two transactions of one attempt. Should the process die now, the journal has to say that some of them have it.
func (j *job) progress() *store.Settlement {
	s := &store.Settlement{ID: j.mail.ID, Owner: j.owner, Kind: store.SettleProgress, Attempts: j.mail.Attempts, PossibleDuplicate: j.mail.PossibleDuplicate,
		Progress: &store.Progress{Results: append([]store.RecipientResult(nil), j.results...), Attempts: j.mail.Progress.Attempts}}
	if j.tally().accepted > 0 {
		s.Status = store.MailPartiallySent
	}
	return s
}

// tally counts results by status; again are the unknown ones that policy sends to again.
type tally struct{ accepted, open, rejected, unknown, again int }

func (j *job) tally() tally {
	var t tally
	for _, r := range j.results {
		switch r.Status {
		case store.RecipientAccepted:
			t.accepted++
		case store.RecipientRejected:
			t.rejected++
		case store.RecipientUnknown:
			t.unknown++
			if !holdsUnknown(j.mail, r) {
				t.again++
			}
		default:
			t.open++
		}
	}
	return t
}

// verdict decides what becomes of the mail after an attempt is over. reason overrides the fault's text ("deadline", "expired", ...); giveUp
// parks whatever is not accepted: a caller was told, or its time has passed. A mail of a php-mode server that the batch sends (scheduled, retried by
// a person, rescued) has no caller who was told, so it is retried like any other. The settlement carries the whole new progress.
func (j *job) verdict(now time.Time, lim store.Limits, reason string, giveUp bool) (*store.Settlement, string) {
	t := j.tally()
	s := &store.Settlement{ID: j.mail.ID, Owner: j.owner, Attempts: j.mail.Attempts, Crashes: j.mail.Crashes, PossibleDuplicate: j.mail.PossibleDuplicate}
	if j.submitted {
		s.Crashes = 0 // it was sent and nobody died of it
	}
	counted := j.counts || giveUp
	if counted {
		s.Attempts++
	}
	fault := reason
	if fault == "" {
		fault = j.firstRefusal(j.attemptNumber())
	}
	if fault == "" {
		fault = j.fault
	}
	if giveUp {
		for i := range j.results {
			if r := &j.results[i]; r.Status == store.RecipientPending {
				*r = store.RecipientResult{Status: store.RecipientDeferred, Detail: fault, Attempt: j.attemptNumber(), Time: now}
			}
		}
	}
	outcome := ""
	old := !giveUp && j.tooOld(now, s.Attempts, lim)
	repeat := t.again > 0 && !giveUp // flagged
	switch {
	case t.open == 0 && t.rejected == 0 && t.unknown == 0:
		s.Kind, s.Status, outcome, fault = store.SettleArchive, store.MailSent, "sent", ""
	case !counted && !(j.submitted && old):
		// Nothing was decided: the mail goes back as it was. Where a session had been open the relay does not rest as a whole, so this mail waits
		// a little by itself; so does one that could not be read.
		s.Kind, s.Status, outcome = store.SettleRetry, j.waitingStatus(t), "server"
		s.RunAt = j.mail.RunAt
		if j.submitted || j.later {
			s.RunAt = now.Add(aLittle())
		}
	case (t.open > 0 || repeat) && !giveUp && !old:
		s.Kind, s.Status, outcome = store.SettleRetry, j.waitingStatus(t), "deferred"
		if t.accepted > 0 {
			outcome = "partial"
		}
		s.RunAt = now.Add(backoff(s.Attempts))
		if repeat {
			s.PossibleDuplicate = true
			outcome = "unknown"
		}
		if j.mail.ExpireTime != nil && s.RunAt.After(*j.mail.ExpireTime) {
			s.RunAt = *j.mail.ExpireTime // looked at once more then, and put down as expired
		}
	case t.unknown > 0:
		s.Kind, s.Status, outcome = store.SettlePark, store.MailUnknown, "unknown"
	case t.accepted > 0:
		s.Kind, s.Status, outcome = store.SettlePark, store.MailPartiallySent, "partial"
	default:
		s.Kind, s.Status, outcome = store.SettlePark, store.MailFailed, "failed"
	}
	if s.Kind == store.SettlePark && fault == "" {
		fault = j.firstRefusal(0) // all went well this time; an earlier attempt says why it stays
	}
	if old && s.Kind == store.SettlePark && fault != "" {
		fault = "gave up: " + fault
	}
	for i := range j.results {
		r := &j.results[i]
		r.NextAttempt = time.Time{}
		if s.Kind == store.SettleRetry && r.Status == store.RecipientDeferred {
			r.NextAttempt = s.RunAt
		}
	}
	s.LastError = fault
	s.Progress = &store.Progress{Results: j.results, Attempts: j.history(now, outcome, fault)}
	return s, outcome
}

// waitingStatus is the status of a mail that will be tried again.
func (j *job) waitingStatus(t tally) store.MailStatus {
	switch {
	case t.accepted > 0:
		return store.MailPartiallySent
	case j.counts || j.mail.Attempts > 0:
		return store.MailDeferred
	}
	return store.MailQueued
}

// firstRefusal is the first reply that refused a recipient in an attempt, 0 for any, for the mail's last_error.
func (j *job) firstRefusal(attempt int) string {
	for i, r := range j.results {
		if attempt != 0 && r.Attempt != attempt || r.Status == store.RecipientAccepted || r.Status == store.RecipientPending {
			continue
		}
		if r.Code == 0 {
			return fmt.Sprintf("%s: %s", j.mail.Recipients[i].Mailbox, r.Detail)
		}
		return fmt.Sprintf("%s: %d %s", j.mail.Recipients[i].Mailbox, r.Code, r.Detail)
	}
	return ""
}

func (j *job) tooOld(now time.Time, attempts int, lim store.Limits) bool {
	if lim.MaxAttempts > 0 && attempts >= int(lim.MaxAttempts) {
		return true
	}
	first := j.started
	if len(j.mail.Progress.Attempts) > 0 {
		first = j.mail.Progress.Attempts[0].Start
	}
	return now.Sub(first) > lifetime
}

// history is the mail's attempts with this one added. Attempts that were the relay's fault and follow one another are one entry, else a relay
// that is down over a weekend would push out everything else.
func (j *job) history(now time.Time, outcome, fault string) []store.Attempt {
	old := j.mail.Progress.Attempts
	a := store.Attempt{Number: j.attemptNumber(), Start: j.started, End: now, Server: j.mail.MailServer, Outcome: outcome, Detail: fault, RemoteID: j.remote}
	if n := len(old); n > 0 && old[n-1].Outcome == "server" && outcome == "server" {
		a.Start = old[n-1].Start
		old = old[:n-1]
	}
	h := make([]store.Attempt, 0, len(old)+1)
	if len(old) >= keptTries {
		h = append(h, old[0])
		old = old[len(old)-keptTries+2:]
	}
	h = append(h, old...)
	return append(h, a)
}

// unknownAfterCrash turns an adopted mail into a finished attempt: the recipients the dead replica was sending to are unknown. Which they were
// needs no record: they are always the first MaxRecipients that needed sending.
func (j *job) unknownAfterCrash(now time.Time) {
	var left []int
	for _, p := range j.todo { // an earlier transaction of the same attempt has already decided some
		if j.results[p].Attempt != j.attemptNumber() {
			left = append(left, p)
		}
	}
	j.todo = left
	for _, p := range j.chunk() {
		j.results[p] = store.RecipientResult{Status: store.RecipientUnknown, Attempt: j.attemptNumber(), Time: now,
			Detail: "the service stopped after this mail had begun to leave and before the relay's answer was recorded"}
	}
	j.todo = j.todo[len(j.chunk()):]
	j.sent, j.counts = true, true
	j.fault = "the service stopped while this mail was being sent"
}

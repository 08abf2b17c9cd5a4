package lifecycle

import (
	"fmt"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// End is how an attempt ended.
type End int

const (
	Decided End = iota + 1 // the relay has answered for every recipient
	// the relay broke the connection or closed it: not the mail's fault
	RelayFault
	Throttled // the relay says that we are too fast: not the mail's fault
	GateCut   // the gate let no dot leave
	NoSession // no connection could be had, or no mail may leave just now
	// the message, or what has to be recorded first, could not be had
	Unreadable
	Stopped     // the service stops
	CutByCaller // the php-mode caller went away before the dot
	// its owner died behind the mark; another replica has adopted the mail
	Crashed
	// its owner died before the mark; another replica has adopted the mail
	Died
	Panicked   // it made the service panic
	Poison     // too many owners died of it
	Expire     // its expire_time has passed
	NobodyLeft // no recipient needs it any more
	// a person has stopped it or another replica has it: nothing may be written
	Lost
	// its own mail server cannot be used, and it may not go through the fallback
	OwnOnly
)

func (e End) String() string {
	return [...]string{"", "decided", "relay fault", "throttled", "gate cut", "no session", "unreadable", "stopped", "cut by caller", "crashed", "died",
		"panicked", "poison", "expired", "nobody left", "lost", "own only"}[e]
}

// Outcome is what an attempt made of a mail, as its history says it.
type Outcome string

const (
	Sent        Outcome = "sent"     // every recipient has it
	Partial     Outcome = "partial"  // some have it
	Deferred    Outcome = "deferred" // nobody has it, and it will be tried again
	Failed      Outcome = "failed"
	Unknown     Outcome = "unknown" // no reply after the dot
	ServerFault Outcome = "server"  // nothing was decided; it cost no attempt
)

// Verdict is what an attempt has made of a mail, and what is to be written.
type Verdict struct {
	*store.Settlement
	Outcome Outcome
	End     End
	// the first class among what failed in this attempt; FailNone = nothing
	Failure smtpx.Failure
}

const (
	crashText   = "the service stopped after this mail had begun to leave and before the relay's answer was recorded"
	expiredText = "expired: its expire_time had passed before it could be sent"
	stoppedText = "the service stopped before it was sent to everybody"
	diedText    = "the service stopped while it was at this mail; nothing of it had left"
	poisonText  = "quarantined: the service died several times while it held this mail"
)

// Unsendable says whether a mail that was just claimed must not be sent, and why.
func (a *Attempt) Unsendable(now time.Time) (End, bool) {
	switch {
	case Expired(a.Mail.ExpireTime, now):
		return Expire, true
	case a.Mail.Crashes >= poisonCrashes:
		return Poison, true
	case len(a.todo) == 0:
		return NobodyLeft, true
	}
	return 0, false
}

// reason is what an end says about the mail before any reply of a relay does, "" for the ends
// that leave that to the replies. why is what the caller of Finish knows.
func (e End) reason(why string) string {
	switch e {
	case CutByCaller, Panicked:
		return why
	case Expire:
		return expiredText
	case Poison:
		return poisonText
	case Died:
		return diedText
	}
	return ""
}

// givesUp says whether an end parks whatever is not accepted: a caller is told, or the mail's
// time has passed. A mail of a php-mode server that the batch sends (scheduled, retried by a
// person, rescued) has no caller who is told, so it is retried like any other.
func (a *Attempt) givesUp(end End) bool {
	switch end {
	case Panicked, Poison, Expire, NobodyLeft:
		return true
	case Stopped:
		// before that nobody was told anything: the batch sends it
		return a.failsForCaller() && a.decided > 0
	}
	return a.failsForCaller()
}

// failsForCaller says whether a caller is told that what is not accepted has failed. One who
// asked for retry_in_batch is told that it goes on, unless an outcome is unknown: a person
// decides about that, and until then about the whole mail.
func (a *Attempt) failsForCaller() bool {
	return a.Interactive && (!a.Mail.RetryInBatch || a.tally().unknown > 0)
}

// survived says whether the mail was sent and the process lived on.
func (a *Attempt) survived(end End) bool { return a.handed > 0 && end != GateCut }

// Finish decides what becomes of the mail now that the attempt has ended. why says more than
// the replies of the relay do, for people. The settlement carries the whole new progress.
func (a *Attempt) Finish(end End, why string, lim store.Limits, now time.Time) Verdict {
	if end == Crashed || a.marked && (end == Panicked || end == Poison) {
		a.leaveUnknown(crashText, now)
	}
	gives, t := a.givesUp(end), a.tally()
	counted := a.decided > 0 || gives
	s := a.settlement("")
	s.Attempts, s.Crashes, s.PossibleDuplicate = a.Mail.Attempts, a.Mail.Crashes, a.Mail.PossibleDuplicate
	switch {
	case a.survived(end):
		s.Crashes = 0
	case end == Crashed || end == Died:
		s.Crashes = suspicion(a.Mail)
	}
	if counted {
		s.Attempts++
	}
	fault := firstOf(end.reason(why), a.firstRefusal(a.Number()), why, a.fault)
	if end == Stopped && fault == "" {
		fault = stoppedText
	}
	var outcome Outcome
	old := !gives && a.tooOld(now, s.Attempts, lim)
	repeat := t.again > 0 && !gives // flagged
	switch {
	case t.open == 0 && t.rejected == 0 && t.unknown == 0:
		s.Kind, s.Status, outcome, fault = store.SettleArchive, store.MailSent, Sent, ""
	case !counted && !(a.survived(end) && old):
		s.Kind, s.Status, outcome = store.SettleRetry, a.waiting(t), ServerFault
		s.RunAt = a.dueAgain(end, now)
	case (t.open > 0 || repeat) && !gives && !old:
		s.Kind, s.Status, outcome = store.SettleRetry, a.waiting(t), Deferred
		if t.accepted > 0 {
			outcome = Partial
		}
		s.RunAt = now.Add(backoff(s.Attempts))
		if repeat {
			s.PossibleDuplicate = true
			outcome = Unknown
		}
	case t.unknown > 0:
		s.Kind, s.Status, outcome = store.SettlePark, store.MailUnknown, Unknown
	case t.accepted > 0:
		s.Kind, s.Status, outcome = store.SettlePark, store.MailPartiallySent, Partial
	default:
		s.Kind, s.Status, outcome = store.SettlePark, store.MailFailed, Failed
	}
	if s.Kind == store.SettleRetry {
		if wait := suspectWait(s.Crashes); wait > 0 && (end == Crashed || end == Died) && s.RunAt.Before(now.Add(wait)) {
			s.RunAt = now.Add(wait)
		}
		if s.RunAt.Before(a.notBefore) {
			s.RunAt = a.notBefore
		}
		if a.Mail.ExpireTime != nil && s.RunAt.After(*a.Mail.ExpireTime) {
			s.RunAt = *a.Mail.ExpireTime // looked at once more then, and put down as expired
		}
	}
	if s.Kind == store.SettlePark && fault == "" {
		// all went well this time; an earlier attempt says why it stays
		fault = a.firstRefusal(0)
	}
	for i := range a.results {
		r := &a.results[i]
		if s.Kind == store.SettlePark && r.Status == store.RecipientPending {
			// nobody is about to try it any more
			words := *r
			*r = store.RecipientResult{Status: store.RecipientDeferred, Detail: fault, Failure: string(a.classOf(end, old)), Attempt: a.Number(), Time: now}
			if words.Code != 0 && end.reason(why) == "" {
				// the relay's last ones, see keepWords
				r.Code, r.Enhanced, r.Detail, r.Failure = words.Code, words.Enhanced, words.Detail, words.Failure
			}
		}
		r.NextAttempt = time.Time{}
		if s.Kind == store.SettleRetry && r.Status == store.RecipientDeferred {
			r.NextAttempt = s.RunAt
		}
	}
	if old && s.Kind == store.SettlePark && fault != "" {
		fault = "gave up: " + fault
	}
	s.LastError = fault
	s.Progress = &store.Progress{Results: a.results, Attempts: a.history(now, outcome, fault)}
	return Verdict{Settlement: s, Outcome: outcome, End: end, Failure: a.failure(end, old, outcome)}
}

// failure is the class of what failed in the attempt: of the first reply that refused, else of
// its end.
func (a *Attempt) failure(end End, old bool, outcome Outcome) smtpx.Failure {
	if outcome == Sent {
		return smtpx.FailNone
	}
	for _, r := range a.results {
		if r.Attempt == a.Number() && r.Status != store.RecipientAccepted && r.Failure != "" {
			return smtpx.Failure(r.Failure)
		}
	}
	return a.classOf(end, old)
}

// classOf is why a recipient failed that no reply was about.
func (a *Attempt) classOf(end End, old bool) smtpx.Failure {
	switch {
	case end == Expire || old:
		return smtpx.FailExpired
	case end == NoSession && a.blame != "":
		return a.blame
	case end == RelayFault:
		return smtpx.FailUnreachable
	case end == Throttled:
		return smtpx.FailRate
	}
	return smtpx.FailUnclassified
}

// dueAgain is when a mail is due of which nothing was decided. It goes back as it was, also
// when this process broke the attempt off. Where the relay ended a session that had been open
// it does not rest as a whole, so this mail waits a little by itself; so does one that could
// not be read.
func (a *Attempt) dueAgain(end End, now time.Time) time.Time {
	switch {
	case end == GateCut, end == Stopped:
	case end == OwnOnly:
		return now.Add(ownAgain)
	case end == Unreadable, a.handed > 0:
		return now.Add(aLittle())
	}
	return a.Mail.RunAt
}

// waiting is the status of a mail that will be tried again.
func (a *Attempt) waiting(t tally) store.MailStatus {
	switch {
	case t.accepted > 0:
		return store.MailPartiallySent
	case a.decided > 0 || a.Mail.Attempts > 0:
		return store.MailDeferred
	}
	return store.MailQueued
}

// firstRefusal is the first reply that refused a recipient in an attempt, 0 for any, for the
// mail's last_error.
func (a *Attempt) firstRefusal(attempt int) string {
	for i, r := range a.results {
		if attempt != 0 && r.Attempt != attempt || r.Status == store.RecipientAccepted || r.Status == store.RecipientPending {
			continue
		}
		if r.Code == 0 {
			return fmt.Sprintf("%s: %s", a.Mail.Recipients[i].Mailbox, r.Detail)
		}
		return fmt.Sprintf("%s: %s", a.Mail.Recipients[i].Mailbox, said(r))
	}
	return ""
}

// said is the reply of a result, with its enhanced code.
func said(r store.RecipientResult) string {
	return smtpx.Reply{Code: r.Code, Enhanced: r.Enhanced, Text: r.Detail}.String()
}

func firstOf(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

func (a *Attempt) tooOld(now time.Time, attempts int, lim store.Limits) bool {
	if lim.MaxAttempts > 0 && attempts >= int(lim.MaxAttempts) {
		return true
	}
	first := a.Started
	if len(a.Mail.Progress.Attempts) > 0 {
		first = a.Mail.Progress.Attempts[0].Start
	}
	return now.Sub(first) > lifetime
}

// history is the mail's attempts with this one added. Attempts that were the relay's fault and
// follow one another are one entry for each mail server, else a relay that is down over a
// weekend would push out everything else.
func (a *Attempt) history(now time.Time, outcome Outcome, fault string) []store.Attempt {
	old := a.ended()
	try := store.Attempt{Number: a.Number(), Start: a.Started, End: now, Server: a.Through(), Outcome: string(outcome), Detail: fault, RemoteID: a.remote}
	for i := len(old) - 1; outcome == ServerFault && i >= max(0, len(old)-2) && old[i].Outcome == string(ServerFault); i-- {
		if old[i].Server == try.Server {
			try.Start = old[i].Start
			old = append(old[:i], old[i+1:]...)
			break
		}
	}
	h := make([]store.Attempt, 0, len(old)+1)
	if len(old) >= keptTries {
		h = append(h, old[0])
		old = old[len(old)-keptTries+2:]
	}
	h = append(h, old...)
	return append(h, try)
}

// ended is a copy of the mail's attempts without one that was begun and never ended.
func (a *Attempt) ended() []store.Attempt {
	h := append([]store.Attempt(nil), a.Mail.Progress.Attempts...)
	if n := len(h); n > 0 && h[n-1].Outcome == "" {
		h = h[:n-1]
	}
	return h
}

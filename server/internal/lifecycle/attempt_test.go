package lifecycle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

type attemptRule struct{ name, mail, events, want string }

// attemptRules says what becomes of a mail after an attempt. A row is written in words:
//
//	mail: the kind; caller (a php-mode caller waits), goes-on (it asked for retry_in_batch), holds-all (its mail server holds every
//	unknown outcome), dup (possible_duplicate stands), n=1 (attempts so far), crashes=2, begun
//	(the owner that died was at it), expires=1m (from now on, may be negative), began=-6d (the first attempt), max=3 (the mail
//	server's max_attempts); the last word is the recipients: pending, accepted, rejected,
//	deferred, unknown, Unknown (left to a person), "p*150" for 150 of them.
//	events: a word of letters is a transaction and the relay's answers (a 250, d 450, r 550,
//	u no reply, n not tried); broken, closing (421), slow (432 4.3.2), unauth (530), gate are whole
//	transactions; the others say how the attempt ended without the relay.
//	want: what is written, the status, the outcome in the history, the recipients; due is
//	"before" (as it was), "soon" (5 to 15 s), "minute", "backoff1" (after attempt 1), "expiry".
var attemptRules = []attemptRule{
	// One attempt, every answer.
	{"accepted", "bulk p", "a", "archive sent outcome=sent n=1 a"},
	{"accepted, php", "invoice caller p", "a", "archive sent outcome=sent n=1 a"},
	{"refused for now", "bulk p", "d", "retry deferred due=backoff1 outcome=deferred n=1 d"},
	{"refused for now, php", "invoice caller p", "d", "park failed outcome=failed n=1 d"},
	{"refused for now, invoice in the batch", "invoice p", "d", "retry deferred due=backoff1 outcome=deferred n=1 d"},
	{"refused for good", "bulk p", "r", "park failed outcome=failed n=1 r"},
	{"refused for good, php", "invoice caller p", "r", "park failed outcome=failed n=1 r"},
	{"no reply, bulk", "bulk p", "u", "retry deferred due=backoff1 outcome=unknown n=1 dup u"},
	{"no reply, other", "other p", "u", "retry deferred due=backoff1 outcome=unknown n=1 dup u"},
	{"no reply, agent message", "agent_message p", "u", "retry deferred due=backoff1 outcome=unknown n=1 dup u"},
	{"no reply, invoice", "invoice p", "u", "park unknown outcome=unknown n=1 u"},
	{"no reply, work order", "work_order p", "u", "park unknown outcome=unknown n=1 u"},
	{"no reply, a mail server that holds all", "bulk holds-all p", "u", "park unknown outcome=unknown n=1 u"},
	{"no reply, php", "invoice caller p", "u", "park unknown outcome=unknown n=1 u"},
	{"no reply, bulk in php mode", "bulk caller p", "u", "park unknown outcome=unknown n=1 u"},

	// A php-mode caller who asked that what fails for now goes on in the batch. An unknown
	// outcome still ends it, whatever the kind.
	{"accepted, goes on", "invoice caller goes-on p", "a", "archive sent outcome=sent n=1 a"},
	{"refused for now, goes on", "invoice caller goes-on p", "d", "retry deferred due=backoff1 outcome=deferred n=1 d"},
	{"refused for good, goes on", "invoice caller goes-on p", "r", "park failed outcome=failed n=1 r"},
	{"no reply, goes on", "invoice caller goes-on p", "u", "park unknown outcome=unknown n=1 u"},
	{"no reply, bulk goes on", "bulk caller goes-on p", "u", "park unknown outcome=unknown n=1 u"},
	{"refused for now and for good, goes on", "invoice caller goes-on ppp", "adr", "retry partially_sent due=backoff1 outcome=partial n=1 adr"},
	{"no reply after one was refused for now, bulk goes on", "bulk caller goes-on ppp", "udu", "park unknown outcome=unknown n=1 udu"},
	{"no connection, goes on", "invoice caller goes-on p", "no-session", "retry queued due=before outcome=server n=0 p"},
	{"broken before the dot, goes on", "invoice caller goes-on p", "broken broken broken", "retry queued due=soon outcome=server n=0 p"},
	{"throttled, goes on", "invoice caller goes-on p", "slow", "retry queued due=soon outcome=server n=0 p"},
	{"the login is gone, goes on", "invoice caller goes-on p", "unauth unauth", "retry queued due=soon outcome=server n=0 p"},
	{"150 recipients, the second hundred not replied to, goes on", "bulk caller goes-on p*150", "a*100 u*50", "park unknown outcome=unknown n=1 a*100u*50"},
	{"150 recipients, stopped between, goes on", "invoice caller goes-on p*150", "a*100 stop", "retry partially_sent due=backoff1 outcome=partial n=1 a*100p*50"},
	{"the caller goes, goes on", "invoice caller goes-on p", "gone", "retry queued due=before outcome=server n=0 p"},
	{"expired, goes on", "invoice caller goes-on expires=-1s p", "expired", "park failed outcome=failed n=1 d"},
	{"a panic, goes on", "invoice caller goes-on p", "panic", "park failed outcome=failed n=1 d"},
	{"max_attempts, goes on", "invoice caller goes-on max=1 p", "d", "park failed outcome=failed n=1 d"},

	// Some of several.
	{"one refused for good", "bulk ppp", "ara", "park partially_sent outcome=partial n=1 ara"},
	{"one refused for now", "bulk ppp", "ada", "retry partially_sent due=backoff1 outcome=partial n=1 ada"},
	{"one refused for now, php", "invoice caller ppp", "ada", "park partially_sent outcome=partial n=1 ada"},
	{"refused for now and for good", "bulk ppp", "drd", "retry deferred due=backoff1 outcome=deferred n=1 drd"},
	{"refused for now and for good, invoice", "invoice ppp", "drd", "retry deferred due=backoff1 outcome=deferred n=1 drd"},
	{"no reply after one was refused", "invoice ppp", "uru", "park unknown outcome=unknown n=1 uru"},
	{"no reply after one was refused for now", "invoice ppp", "udu", "retry deferred due=backoff1 outcome=deferred n=1 udu"},
	{"no reply after one was refused, bulk", "bulk ppp", "uru", "retry deferred due=backoff1 outcome=unknown n=1 dup uru"},

	// Whom a second attempt goes to.
	{"only the deferred is tried again", "bulk n=1 ard", "a", "park partially_sent outcome=partial n=2 ara"},
	{"the rejected is never tried again", "bulk n=1 rd", "d", "retry deferred due=backoff2 outcome=deferred n=2 rd"},
	{"the last one is accepted", "bulk n=1 aad", "a", "archive sent outcome=sent n=2 aaa"},
	{"unknown by policy, again", "bulk dup n=1 u", "a", "archive sent outcome=sent n=2 dup a"},
	{"unknown by policy, refused now", "bulk dup n=1 u", "r", "park unknown outcome=unknown n=2 dup U"},
	{"unknown by policy, refused now, others go on", "bulk dup n=1 up", "rd", "retry deferred due=backoff2 outcome=deferred n=2 dup Ud"},
	{"unknown by policy, refused before, others are done", "bulk dup n=2 Ud", "a", "park unknown outcome=unknown n=3 dup Ua"},
	{"unknown by policy, refused for now", "bulk dup n=1 u", "d", "retry deferred due=backoff2 outcome=unknown n=2 dup u"},
	{"an invoice's unknown one is left alone", "invoice dup n=1 up", "a", "park unknown outcome=unknown n=2 dup ua"},
	{"a held unknown one is left alone", "bulk dup n=1 Up", "a", "park unknown outcome=unknown n=2 dup Ua"},
	{"a held unknown one is left alone, others go on", "bulk dup n=1 Up", "d", "retry deferred due=backoff2 outcome=deferred n=2 dup Ud"},

	// A failure of the relay costs no mail an attempt.
	{"no connection", "bulk p", "release", "retry queued due=before outcome=server n=0 p"},
	{"no connection, after an attempt", "bulk n=1 d", "release", "retry deferred due=before outcome=server n=1 d"},
	{"no connection, after a partial one", "bulk n=1 ad", "release", "retry partially_sent due=before outcome=server n=1 ad"},
	{"no connection, php", "invoice caller p", "no-session", "park failed outcome=failed n=1 d"},
	{"broken before the dot", "bulk p", "broken broken broken", "retry queued due=soon outcome=server n=0 p"},
	{"broken before the dot, then well", "bulk p", "broken a", "archive sent outcome=sent n=1 a"},
	{"broken before the dot, php", "invoice caller p", "broken broken broken", "park failed outcome=failed n=1 d"},
	{"421", "bulk p", "closing closing closing", "retry queued due=soon outcome=server n=0 p"},
	{"421 after the dot", "bulk p", "closing-dot", "retry queued due=soon outcome=server n=0 p"},
	{"throttled", "bulk p", "slow", "retry queued due=soon outcome=server n=0 p"},
	{"throttled, php", "invoice caller p", "slow", "park failed outcome=failed n=1 d"},
	{"greylisted by a milter at the dot", "bulk p", "milter", "retry deferred due=backoff1 outcome=deferred n=1 d"},
	{"greylisted by a milter, php", "invoice caller p", "milter", "park failed outcome=failed n=1 d"},
	{"the login is gone", "bulk p", "unauth unauth", "retry queued due=soon outcome=server n=0 p"},
	{"the login is gone, php", "invoice caller p", "unauth unauth", "park failed outcome=failed n=1 d"},
	{"the login is gone once", "bulk p", "unauth a", "archive sent outcome=sent n=1 a"},
	{"the sender may not send", "bulk p", "sender sender", "retry queued due=soon outcome=server n=0 p"},
	{"greylisted at RCPT", "bulk p", "grey", "retry deferred due=backoff1 outcome=deferred n=1 d"},
	{"throttled after some were refused", "bulk pp", "slow-r", "retry deferred due=backoff1 outcome=deferred n=1 rp"},
	{"the gate refused", "bulk p", "gate", "retry queued due=before outcome=server n=0 p"},
	{"the message cannot be read", "bulk p", "unreadable", "retry queued due=soon outcome=server n=0 p"},
	{"the message cannot be read, php", "invoice caller p", "unreadable", "park failed outcome=failed n=1 d"},

	// Through the fallback.
	{"through the fallback", "invoice p", "fallback a", "archive sent outcome=sent n=1 a"},
	{"through the fallback after the mail server broke", "invoice caller p", "broken fallback a", "archive sent outcome=sent n=1 a"},
	{"through the fallback, which breaks too", "bulk p", "broken fallback broken broken broken", "retry queued due=soon outcome=server n=0 p"},
	{"through the fallback, refused", "bulk p", "fallback d", "retry deferred due=backoff1 outcome=deferred n=1 d"},
	{"150 recipients, the last through the fallback", "invoice caller p*150", "a*100 broken fallback a*50", "archive sent outcome=sent n=1 a*150"},
	{"may not go through the fallback", "bulk p", "own-only", "retry queued due=minute outcome=server n=0 p"},
	{"may not go through the fallback, flagged", "bulk dup n=1 u", "own-only", "retry deferred due=minute outcome=server n=1 dup u"},

	// Large mails: one attempt, several transactions.
	{"150 recipients", "bulk p*150", "a*100 a*50", "archive sent outcome=sent n=1 a*150"},
	{"150 recipients, the second hundred not replied to", "invoice p*150", "a*100 u*50", "park unknown outcome=unknown n=1 a*100u*50"},
	{"150 recipients, the gate refuses the second", "bulk p*150", "a*100 gate", "retry partially_sent due=backoff1 outcome=partial n=1 a*100p*50"},
	{"150 recipients, the relay breaks in the second", "bulk p*150", "a*100 broken broken broken", "retry partially_sent due=backoff1 outcome=partial n=1 a*100p*50"},
	{"150 recipients, stopped between", "bulk p*150", "a*100 stop", "retry partially_sent due=backoff1 outcome=partial n=1 a*100p*50"},
	{"150 recipients, stopped between, php", "invoice caller p*150", "a*100 stop", "park partially_sent outcome=partial n=1 a*100d*50"},
	{"150 recipients, the caller goes between", "invoice caller p*150", "a*100 gone", "park partially_sent outcome=partial n=1 a*100d*50"},

	// Ends of another kind.
	{"the caller goes", "invoice caller p", "gone", "park failed outcome=failed n=1 d"},
	{"the caller goes before the dot", "invoice caller p", "gate gone", "park failed outcome=failed n=1 d"},
	{"the service stops", "bulk p", "stop", "retry queued due=before outcome=server n=0 p"},
	{"the service stops, php", "invoice caller p", "stop", "retry queued due=before outcome=server n=0 p"},
	{"the relay breaks, and the service stops before a fresh connection", "bulk p", "broken stop", "retry queued due=before outcome=server n=0 p"},
	{"expired", "bulk expires=-1s p", "expired", "park failed outcome=failed n=1 d"},
	{"expired, some have it", "bulk expires=-1s n=1 ad", "expired", "park partially_sent outcome=partial n=2 ad"},
	{"expired, unknown", "bulk dup expires=-1s n=1 u", "expired", "park unknown outcome=unknown n=2 dup u"},
	{"five owners died of it", "bulk crashes=5 p", "poison", "park failed outcome=failed n=1 crashes=5 d"},
	{"nobody is left to be tried", "bulk n=1 ar", "nobody", "park partially_sent outcome=partial n=2 ar"},
	{"it made the service panic before the dot", "bulk p", "panic", "park failed outcome=failed n=1 d"},
	{"it made the service panic behind the mark", "bulk p", "marked panic", "park unknown outcome=unknown n=1 u"},
	{"it made the service panic after a marked dot that did not leave", "bulk p", "marked broken panic", "park failed outcome=failed n=1 d"},
	{"150 recipients, it made the service panic between", "bulk p*150", "marked a*100 panic", "park partially_sent outcome=partial n=1 a*100d*50"},

	{"it made the service panic between two transactions", "bulk p*150", "marked a*100 panic", "park partially_sent outcome=partial n=1 a*100d*50"},
	{"it made the service panic behind the second mark", "bulk p*150", "marked a*100 marked panic", "park unknown outcome=unknown n=1 a*100u*50"},

	// The owner died behind the mark.
	{"adopted", "bulk p", "crash", "retry deferred due=backoff1 outcome=unknown n=1 crashes=1 dup u"},
	{"adopted, invoice", "invoice p", "crash", "park unknown outcome=unknown n=1 crashes=1 u"},
	{"adopted, a mail server that holds all", "bulk holds-all p", "crash", "park unknown outcome=unknown n=1 crashes=1 u"},
	{"adopted, only what was being tried", "invoice n=1 ard", "crash", "park unknown outcome=unknown n=2 crashes=1 aru"},
	{"adopted, the first hundred of 150", "bulk p*150", "crash", "retry deferred due=backoff1 outcome=unknown n=1 crashes=1 dup u*100p*50"},
	{"adopted, invoice, the first hundred of 150", "invoice p*150", "crash", "retry deferred due=backoff1 outcome=deferred n=1 crashes=1 u*100p*50"},
	{"adopted, the second hundred of 150", "invoice this=1 a*100p*50", "crash", "park unknown outcome=unknown n=1 crashes=1 a*100u*50"},
	{"adopted, an earlier owner's attempt did not count", "invoice this=1 a*9dpp", "crash", "park unknown outcome=unknown n=1 crashes=1 aaaaaaaaauuu"},
	{"adopted, only what an earlier owner had been refused", "invoice this=1 ad", "crash", "park unknown outcome=unknown n=1 crashes=1 au"},
	{"adopted, an earlier owner was refused the first hundred", "invoice this=1 d*60p*140", "crash", "retry deferred due=backoff1 outcome=deferred n=1 crashes=1 u*160p*40"},
	{"it made the service panic, an earlier owner's attempt did not count", "invoice this=1 a*9dpp", "marked panic", "park unknown outcome=unknown n=1 aaaaaaaaauuu"},

	// Suspicion.
	{"survived", "bulk crashes=2 p", "d", "retry deferred due=backoff1 outcome=deferred n=1 d"},
	{"survived, the relay broke", "bulk crashes=2 p", "broken broken broken", "retry queued due=soon outcome=server n=0 p"},
	{"not touched", "bulk crashes=2 p", "release", "retry queued due=before outcome=server n=0 crashes=2 p"},
	{"cut by the gate", "bulk crashes=2 p", "gate", "retry queued due=before outcome=server n=0 crashes=2 p"},

	{"the second death, it was at it", "bulk crashes=2 begun p", "died", "retry queued due=1m outcome=server n=0 crashes=2 p"},
	{"the third death, it was at it", "bulk crashes=3 begun p", "died", "retry queued due=10m outcome=server n=0 crashes=3 p"},
	{"the fourth death, it was at it", "bulk crashes=4 begun p", "died", "retry queued due=1h outcome=server n=0 crashes=4 p"},
	{"the fifth death, it was at it", "bulk crashes=5 begun p", "died", "park failed outcome=failed n=1 crashes=5 d"},
	{"the owner died of something else", "bulk crashes=2 p", "died", "retry queued due=before outcome=server n=0 crashes=1 p"},
	{"the owner died of something else, twice suspected", "bulk crashes=4 p", "died", "retry queued due=10m outcome=server n=0 crashes=3 p"},
	{"the second death, behind the mark", "bulk crashes=2 begun p", "crash", "retry deferred due=1m outcome=unknown n=1 crashes=2 dup u"},
	{"the third death, behind the mark", "bulk crashes=3 begun p", "crash", "retry deferred due=10m outcome=unknown n=1 crashes=3 dup u"},
	{"the third death, an invoice behind the mark", "invoice crashes=3 begun p", "crash", "park unknown outcome=unknown n=1 crashes=3 u"},
	{"the fifth death, behind the mark", "bulk crashes=5 begun p", "crash", "park unknown outcome=unknown n=1 crashes=5 u"},
	{"a suspect waits no longer than it may live", "bulk crashes=4 begun expires=5m p", "died", "retry queued due=expiry outcome=server n=0 crashes=4 p"},

	// Age.
	{"backoff doubles", "bulk n=2 d", "d", "retry deferred due=backoff3 outcome=deferred n=3 d"},
	{"not beyond its expire_time", "bulk expires=10s n=1 d", "d", "retry deferred due=expiry outcome=deferred n=2 d"},
	{"five days old", "bulk began=-121h n=20 d", "d", "park failed outcome=failed n=21 d"},
	{"five days old, some have it", "bulk began=-121h n=20 ad", "d", "park partially_sent outcome=partial n=21 ad"},
	{"five days old, unknown by policy", "bulk dup began=-121h n=20 u", "u", "park unknown outcome=unknown n=21 dup u"},
	{"five days old, the relay is down", "bulk began=-121h n=20 d", "release", "retry deferred due=before outcome=server n=20 d"},
	{"five days old, the relay breaks", "bulk began=-121h n=20 d", "broken broken broken", "park failed outcome=failed n=20 d"},
	{"five days old, the relay breaks, nobody was ever tried", "bulk began=-121h n=0 p", "broken broken broken", "park failed outcome=failed n=0 d"},
	{"five days old, adopted", "bulk began=-121h n=20 p*150", "crash", "park unknown outcome=unknown n=21 crashes=1 u*100d*50"},
	{"max_attempts", "bulk max=2 n=1 d", "d", "park failed outcome=failed n=2 d"},
	{"max_attempts not reached", "bulk max=3 n=1 d", "d", "retry deferred due=backoff2 outcome=deferred n=2 d"},
}

// TestAttemptRules: what every end of an attempt makes of every kind of mail.
func TestAttemptRules(t *testing.T) {
	for _, row := range attemptRules {
		t.Run(row.name, func(t *testing.T) {
			if got := row.run(t).became(); got != row.want {
				t.Errorf("a mail (%s) after (%s)\n got %s\nwant %s", row.mail, row.events, got, row.want)
			}
		})
	}
}

// run makes the row's mail and lets its events happen. An attempt that goes on is over at their
// end.
func (row attemptRule) run(t *testing.T) *ruleAttempt {
	a := parseAttempt(t, row.mail)
	for _, event := range strings.Fields(row.events) {
		a.happens(event)
	}
	if a.verdict == nil {
		v := a.attempt.Finish(a.attempt.End(), "", a.limits, a.now)
		a.verdict = &v
	}
	return a
}

func (row attemptRule) verdict(t *testing.T) *Verdict { return row.run(t).verdict }

// TestStandBack: a mail that its mail server was suspended for is due minutes after the next
// try of that, but not after its own expire_time.
func TestStandBack(t *testing.T) {
	for _, words := range []string{"bulk p", "bulk expires=15m p"} {
		a := parseAttempt(t, words)
		probe := a.now.Add(15 * time.Minute)
		a.attempt.StandBack(probe)
		a.happens("sender")
		s := a.attempt.Finish(a.attempt.End(), "", a.limits, a.now).Settlement
		least, most := probe.Add(3*time.Minute), probe.Add(5*time.Minute)
		if a.mail.ExpireTime != nil {
			least, most = *a.mail.ExpireTime, *a.mail.ExpireTime
		}
		if s.Kind != store.SettleRetry || s.Attempts != 0 || s.RunAt.Before(least) || s.RunAt.After(most) {
			t.Errorf("%s: %s after %d attempts, due %v after the try", words, s.Kind, s.Attempts, s.RunAt.Sub(probe))
		}
	}
}

// TestProgress: what is written between two transactions keeps the flag of a possible
// duplicate, the number of attempts, and says that some have the mail.
func TestProgress(t *testing.T) {
	for _, row := range []struct{ name, mail, events, want string }{
		{"some have it", "bulk p*150", "a*100", "partially_sent n=0 a*100p*50"},
		{"nobody has it", "bulk p*150", "r*100", "n=0 r*100p*50"},
		{"an earlier copy may have arrived", "bulk dup n=1 u*100p*50", "a*100", "partially_sent n=1 dup a*100p*50"},
		{"no reply, not flagged before it is sent again", "bulk p*150", "u*100", "n=0 u*100p*50"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := parseAttempt(t, row.mail)
			for _, event := range strings.Fields(row.events) {
				a.happens(event)
			}
			token := a.attempt.Mark().Claim
			s := a.attempt.Progress()
			if next := a.attempt.Mark().Claim; s.Claim != token || next != token+1 {
				t.Errorf("a mail under token %d: got progress under %d and a mark under %d, want %d and %d", token, s.Claim, next, token, token+1)
			}
			var words []string
			if s.Status != "" {
				words = append(words, string(s.Status))
			}
			words = append(words, fmt.Sprintf("n=%d", s.Attempts))
			if s.PossibleDuplicate {
				words = append(words, "dup")
			}
			if got := strings.Join(append(words, spelled(s.Progress.Results)), " "); got != row.want || s.Kind != store.SettleProgress {
				t.Errorf("a mail (%s) between two transactions (%s)\n got %s\nwant %s", row.mail, row.events, got, row.want)
			}
		})
	}
}

// spelled writes results as the rows do.
func spelled(rs []store.RecipientResult) string {
	var b strings.Builder
	for _, r := range rs {
		c := r.Status[0]
		if r.Held {
			c -= 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return short(b.String())
}

// TestStaleMark: a mark is out of date when the dot that it announced is known not to have
// left, and only then.
func TestStaleMark(t *testing.T) {
	now := time.Now()
	refused := smtpx.Outcome{Recipients: []smtpx.RecipientOutcome{{Status: smtpx.StatusNotTried}}, ServerDown: true, Err: &smtpx.Error{Phase: smtpx.PhaseData}}
	unknown := smtpx.Outcome{Recipients: []smtpx.RecipientOutcome{{Status: smtpx.StatusUnknown}}, DotSent: true, Err: &smtpx.Error{Phase: smtpx.PhaseDot}}
	for _, c := range []struct {
		name          string
		handed, heard bool
		o             smtpx.Outcome
		want          bool
	}{
		{"not marked, not sent", false, false, refused, false},
		{"marked, not sent", true, true, refused, true},
		{"perhaps marked, not sent", true, false, refused, true},
		{"marked, sent", true, true, unknown, false},
	} {
		a := Begin(&store.Claimed{Recipients: []store.Recipient{{Mailbox: "a@y.example"}}}, 1, now)
		if c.handed {
			a.Mark()
		}
		if c.heard {
			a.DotMayLeave()
		}
		a.After([]int{0}, c.o, now)
		if got := a.HasStaleMark(); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
		if a.Progress(); a.HasStaleMark() {
			t.Errorf("%s: progress does not take the mark back", c.name)
		}
	}
}

// TestLastWordsAreKept: the reply by which a relay ended the session stands with every
// recipient, whether the mail is given up or waits, and in the mail's last error. Where the
// mail ends for a reason of its own, that reason stands.
func TestLastWordsAreKept(t *testing.T) {
	now := time.Now()
	rep := smtpx.Reply{Code: 421, Enhanced: "4.7.0", Text: "slow down"}
	for _, status := range []smtpx.Status{smtpx.StatusNotTried, smtpx.StatusDeferred} {
		for _, interactive := range []bool{true, false} {
			for _, why := range []string{"", "deadline: over"} {
				a := Begin(&store.Claimed{Recipients: []store.Recipient{{Mailbox: "a@y.example"}, {Mailbox: "b@y.example"}}}, 1, now)
				a.Interactive, a.free = interactive, 0
				r := smtpx.RecipientOutcome{Status: status, Phase: smtpx.PhaseMail, Reply: rep}
				a.After([]int{0, 1}, smtpx.Outcome{Recipients: []smtpx.RecipientOutcome{r, r}, ServerDown: true, Err: &smtpx.Error{Phase: smtpx.PhaseMail, Reply: rep, Temporary: true}}, now)
				end, want := a.End(), store.RecipientResult{Status: store.RecipientPending, Code: 421, Enhanced: "4.7.0", Detail: "slow down", Failure: "rate"}
				if why != "" && !interactive {
					continue
				} else if why != "" {
					end, want = CutByCaller, store.RecipientResult{Status: store.RecipientDeferred, Detail: why, Failure: "unclassified"}
				} else if interactive {
					want.Status = store.RecipientDeferred
				}
				v := a.Finish(end, why, store.Limits{}, now)
				for _, got := range v.Progress.Results {
					got.Attempt, got.Time, got.NextAttempt = 0, time.Time{}, time.Time{}
					if got != want {
						t.Errorf("interactive %v, %q: got %+v, want %+v", interactive, why, got, want)
					}
				}
				if why == "" && (!strings.Contains(v.LastError, "421") || !strings.Contains(v.LastError, "slow down")) {
					t.Errorf("interactive %v: last error %q", interactive, v.LastError)
				}
			}
		}
	}
}

// TestFailureOfRecipients: every recipient that does not have the mail says why, as a class:
// after its own reply, and after what kept the whole mail from going. What is unknown, and what
// was accepted, has none.
func TestFailureOfRecipients(t *testing.T) {
	said := func(status smtpx.Status, at smtpx.Phase, code int, text string) smtpx.RecipientOutcome {
		return smtpx.RecipientOutcome{Status: status, Phase: at, Reply: smtpx.Reply{Code: code, Text: text}}
	}
	now := time.Now()
	for _, c := range []struct {
		name string
		said []smtpx.RecipientOutcome // none: no transaction
		end  End
		why  string
		want string
	}{
		{"their own replies", []smtpx.RecipientOutcome{said(smtpx.StatusAccepted, smtpx.PhaseDot, 250, "ok"), said(smtpx.StatusRejected, smtpx.PhaseRcpt, 550, "no such user"),
			said(smtpx.StatusDeferred, smtpx.PhaseRcpt, 452, "mailbox full"), said(smtpx.StatusUnknown, smtpx.PhaseDot, 0, "")}, Decided, "", ", no_such_mailbox, mailbox_full, "},
		{"no session", nil, NoSession, "login: 535 wrong", "auth, auth, auth, auth"},
		{"its time has passed", nil, Expire, "", "expired, expired, expired, expired"},
		{"the caller went away", nil, CutByCaller, "deadline", "unclassified, unclassified, unclassified, unclassified"},
	} {
		m := &store.Claimed{Recipients: []store.Recipient{{Mailbox: "a@y.example"}, {Mailbox: "b@y.example"}, {Mailbox: "c@y.example"}, {Mailbox: "d@y.example"}}}
		a := Begin(m, 1, now)
		a.Interactive = true
		a.Blame(smtpx.FailAuth)
		if c.said != nil {
			a.After([]int{0, 1, 2, 3}, smtpx.Outcome{Recipients: c.said, DotSent: true}, now)
		}
		var got []string
		for _, r := range a.Finish(c.end, c.why, store.Limits{}, now).Progress.Results {
			got = append(got, r.Failure)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: got %q, want %q", c.name, strings.Join(got, ", "), c.want)
		}
	}
}

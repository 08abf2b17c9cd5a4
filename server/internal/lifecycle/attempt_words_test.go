package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// ruleAttempt drives the rules with the words of a row.
type ruleAttempt struct {
	t       *testing.T
	now     time.Time
	mail    *store.Claimed
	limits  store.Limits
	caller  bool
	attempt *Attempt
	verdict *Verdict
}

var letters = map[byte]store.RecipientStatus{'p': store.RecipientPending, 'a': store.RecipientAccepted, 'r': store.RecipientRejected,
	'd': store.RecipientDeferred, 'u': store.RecipientUnknown, 'U': store.RecipientUnknown}

func parseAttempt(t *testing.T, words string) *ruleAttempt {
	a := &ruleAttempt{t: t, now: time.Now()}
	m := &store.Claimed{ID: uuid.New(), MailServer: "ss", RunAt: a.now.Add(-time.Minute)}
	a.mail = m
	fields := strings.Fields(words)
	this := 0
	for _, w := range fields[:len(fields)-1] {
		key, value, _ := strings.Cut(w, "=")
		n, _ := strconv.Atoi(value)
		d, _ := time.ParseDuration(value)
		switch key {
		case "caller":
			a.caller = true
		case "goes-on":
			m.RetryInBatch = true
		case "holds-all":
			m.HoldUnknown = true
		case "dup":
			m.PossibleDuplicate = true
		case "n":
			m.Attempts = n
		case "crashes":
			m.Crashes = n
		case "begun":
			m.Begun = true
		case "expires":
			at := a.now.Add(d)
			m.ExpireTime = &at
		case "began":
			m.Progress.Attempts = []store.Attempt{{Number: 1, Start: a.now.Add(d), End: a.now.Add(d), Outcome: "deferred"}}
		case "max":
			a.limits.MaxAttempts = int32(n)
		case "this": // the results that stand were decided in this very attempt
			this = n
		case "bulk", "invoice", "work_order", "agent_message", "other":
			m.Kind = store.Kind(key)
		default:
			t.Fatalf("unknown word %q", w)
		}
	}
	for i, c := range []byte(spell(fields[len(fields)-1])) {
		m.Recipients = append(m.Recipients, store.Recipient{Mailbox: fmt.Sprintf("r%d@y.example", i)})
		r := store.RecipientResult{Status: letters[c], Held: c == 'U'}
		if c != 'p' {
			r.Attempt, r.Detail = m.Attempts+this, "earlier"
		}
		m.Progress.Results = append(m.Progress.Results, r)
	}
	a.attempt = Begin(m, 7, a.now)
	a.attempt.Interactive = a.caller
	return a
}

// spell writes "a*3p" out as "aaap".
func spell(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		c := s[0]
		s = s[1:]
		n := 1
		if strings.HasPrefix(s, "*") {
			end := 1
			for end < len(s) && s[end] >= '0' && s[end] <= '9' {
				end++
			}
			n, _ = strconv.Atoi(s[1:end])
			s = s[end:]
		}
		b.WriteString(strings.Repeat(string(c), n))
	}
	return b.String()
}

// short writes "aaap" as "a*3p" where that is shorter.
func short(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		n := len(s) - len(strings.TrimLeft(s, s[:1]))
		if n > 9 {
			fmt.Fprintf(&b, "%c*%d", s[0], n)
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// happens lets one event of a row happen to the attempt.
func (a *ruleAttempt) happens(event string) {
	finish := func(end End, why string) {
		v := a.attempt.Finish(end, why, a.limits, a.now)
		a.verdict = &v
	}
	switch event {
	case "release", "no-session":
		finish(NoSession, "no connection")
	case "unreadable":
		finish(Unreadable, "read the message: gone")
	case "own-only":
		finish(OwnOnly, "not through the fallback")
	case "fallback":
		a.attempt.GoThrough("spare", "no connection", a.now)
	case "stop":
		finish(Stopped, "")
	case "gone":
		finish(CutByCaller, "deadline: the caller's time ran out before the mail left")
	case "expired", "poison", "nobody":
		end, unsendable := a.attempt.Unsendable(a.now)
		if want := map[string]End{"expired": Expire, "poison": Poison, "nobody": NobodyLeft}[event]; !unsendable || end != want {
			a.t.Errorf("unsendable: %v %v", unsendable, end)
		}
		finish(end, "")
	case "marked":
		a.attempt.DotMayLeave()
	case "panic":
		finish(Panicked, "quarantined: boom")
	case "crash", "died":
		a.mail.Marked = event == "crash"
		v := Crash(a.mail, 7, a.now)
		a.verdict = &v
	default:
		a.transaction(event)
	}
}

// transaction lets the relay answer the next recipients.
func (a *ruleAttempt) transaction(event string) {
	positions := a.attempt.Next()
	o := smtpx.Outcome{Recipients: make([]smtpx.RecipientOutcome, len(positions))}
	all := func(r smtpx.RecipientOutcome) {
		for i := range o.Recipients {
			o.Recipients[i] = r
		}
	}
	switch event {
	case "broken":
		o.Err, o.ServerDown = &smtpx.Error{Phase: smtpx.PhaseMail, Temporary: true, Err: io.EOF}, true
	case "gate":
		o.Err = &smtpx.Error{Phase: smtpx.PhaseGate, Err: errors.New("the lease is late")}
	case "closing":
		rep := smtpx.Reply{Code: 421, Enhanced: "4.3.2", Text: "closing"}
		all(smtpx.RecipientOutcome{Status: smtpx.StatusDeferred, Phase: smtpx.PhaseMail, Reply: rep})
		o.Err, o.ServerDown = &smtpx.Error{Phase: smtpx.PhaseMail, Reply: rep, Temporary: true}, true
	case "closing-dot":
		rep := smtpx.Reply{Code: 421, Enhanced: "4.3.2", Text: "closing"}
		all(smtpx.RecipientOutcome{Status: smtpx.StatusDeferred, Phase: smtpx.PhaseDot, Reply: rep})
		o.Err, o.ServerDown, o.DotSent = &smtpx.Error{Phase: smtpx.PhaseDot, Reply: rep, Temporary: true}, true, true
	case "slow", "slow-r":
		rep := smtpx.Reply{Code: 432, Enhanced: "4.3.2", Text: "too fast"}
		all(smtpx.RecipientOutcome{Status: smtpx.StatusDeferred, Phase: smtpx.PhaseDot, Reply: rep})
		o.Err, o.DotSent = &smtpx.Error{Phase: smtpx.PhaseDot, Reply: rep, Temporary: true}, true
		if event == "slow-r" {
			o.Recipients[0] = smtpx.RecipientOutcome{Status: smtpx.StatusRejected, Phase: smtpx.PhaseRcpt, Reply: smtpx.Reply{Code: 550, Text: "no"}}
		}
	case "milter":
		rep := smtpx.Reply{Code: 450, Enhanced: "4.7.1", Text: "try again later"}
		all(smtpx.RecipientOutcome{Status: smtpx.StatusDeferred, Phase: smtpx.PhaseDot, Reply: rep})
		o.Err, o.DotSent = &smtpx.Error{Phase: smtpx.PhaseDot, Reply: rep, Temporary: true}, true
	case "unauth":
		rep := smtpx.Reply{Code: 530, Enhanced: "5.7.0", Text: "authentication required"}
		all(smtpx.RecipientOutcome{Status: smtpx.StatusRejected, Phase: smtpx.PhaseMail, Reply: rep})
		o.Err, o.ServerDown = &smtpx.Error{Phase: smtpx.PhaseMail, Reply: rep}, true
	case "sender":
		rep := smtpx.Reply{Code: 550, Enhanced: "5.7.1", Text: "not your address"}
		all(smtpx.RecipientOutcome{Status: smtpx.StatusRejected, Phase: smtpx.PhaseMail, Reply: rep})
		o.Err, o.ServerDown = &smtpx.Error{Phase: smtpx.PhaseMail, Reply: rep}, true
	case "grey":
		all(smtpx.RecipientOutcome{Status: smtpx.StatusDeferred, Phase: smtpx.PhaseRcpt, Reply: smtpx.Reply{Code: 450, Enhanced: "4.7.1", Text: "greylisted"}})
	default:
		answers := spell(event)
		if len(answers) != len(positions) {
			a.t.Fatalf("%s: %d recipients are tried: %v", event, len(positions), positions)
		}
		for i, c := range []byte(answers) {
			r := &o.Recipients[i]
			switch c {
			case 'a':
				*r = smtpx.RecipientOutcome{Status: smtpx.StatusAccepted, Phase: smtpx.PhaseDot, Reply: smtpx.Reply{Code: 250, Text: "ok"}}
				o.DotSent = true
			case 'd':
				*r = smtpx.RecipientOutcome{Status: smtpx.StatusDeferred, Phase: smtpx.PhaseRcpt, Reply: smtpx.Reply{Code: 450, Enhanced: "4.2.1", Text: "busy"}}
			case 'r':
				*r = smtpx.RecipientOutcome{Status: smtpx.StatusRejected, Phase: smtpx.PhaseRcpt, Reply: smtpx.Reply{Code: 550, Enhanced: "5.1.1", Text: "no"}}
			case 'u':
				*r = smtpx.RecipientOutcome{Status: smtpx.StatusUnknown, Phase: smtpx.PhaseDot}
				o.DotSent, o.Err = true, &smtpx.Error{Phase: smtpx.PhaseDot, Temporary: true, Err: io.EOF}
			}
		}
	}
	a.attempt.After(positions, o, a.now)
}

// became writes down what the attempt made of the mail.
func (a *ruleAttempt) became() string {
	s := a.verdict.Settlement
	if s.Owner != 7 || s.ID != a.mail.ID {
		a.t.Errorf("the settlement is not of this claim: %+v", s)
	}
	words := []string{map[store.SettleKind]string{store.SettleArchive: "archive", store.SettlePark: "park", store.SettleRetry: "retry"}[s.Kind], string(s.Status)}
	if s.Kind == store.SettleRetry {
		words = append(words, "due="+a.due(s))
	}
	outcome := string(a.verdict.Outcome)
	if h := s.Progress.Attempts; h[len(h)-1].Outcome != outcome {
		a.t.Errorf("the history says %q, the verdict %q", h[len(h)-1].Outcome, outcome)
	}
	words = append(words, "outcome="+outcome, fmt.Sprintf("n=%d", s.Attempts))
	if s.Crashes > 0 {
		words = append(words, fmt.Sprintf("crashes=%d", s.Crashes))
	}
	if s.PossibleDuplicate {
		words = append(words, "dup")
	}
	for _, r := range s.Progress.Results {
		if r.Status == store.RecipientDeferred && !r.NextAttempt.Equal(s.RunAt) {
			a.t.Errorf("a deferred recipient's next attempt is %v, the mail's %v", r.NextAttempt, s.RunAt)
		}
	}
	if s.Kind == store.SettlePark && s.LastError == "" {
		a.t.Error("nothing says why it is not sent")
	}
	return strings.Join(append(words, spelled(s.Progress.Results)), " ")
}

// due is when the mail is due again, in the words of the rows.
func (a *ruleAttempt) due(s *store.Settlement) string {
	wait := s.RunAt.Sub(a.now)
	switch {
	case s.RunAt.Equal(a.mail.RunAt):
		return "before"
	case a.mail.ExpireTime != nil && s.RunAt.Equal(*a.mail.ExpireTime):
		return "expiry"
	case wait >= 5*time.Second && wait < 15*time.Second:
		return "soon"
	case wait == ownAgain:
		return "minute"
	}
	for word, d := range map[string]time.Duration{"1m": time.Minute, "10m": 10 * time.Minute, "1h": time.Hour} {
		if s.Crashes > 1 && wait >= d && wait < d+d/2 {
			return word
		}
	}
	for n := 1; n <= 9; n++ {
		longest := min(time.Minute<<(n-1), 4*time.Hour)
		if n == s.Attempts && wait >= longest/2 && wait <= longest {
			return fmt.Sprintf("backoff%d", n)
		}
	}
	return wait.String()
}

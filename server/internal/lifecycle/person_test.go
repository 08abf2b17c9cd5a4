package lifecycle

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

type personRule struct{ name, mail, word, want string }

// personRules says what a person's word makes of a mail that nobody is sending. A row is
// written in words:
//
//	mail: its status, then due or resume (it has such a time), dup (possible_duplicate stands),
//	n=1 (attempts so far), expired; the last word is the recipients: pending, accepted,
//	rejected, deferred, unknown, Unknown (left to a person).
//	want: what is written, the status, when it is due (now, before = at the time it had), that it
//	stops also a mail that a replica has (stops), or that the word is refused.
var personRules = []personRule{
	{"retry a failed one", "failed n=1 r", "retry", "retry deferred due=now n=1 p"},
	{"retry one that failed without an attempt", "failed n=0 d", "retry", "retry queued due=now n=0 p"},
	{"retry a partial one", "partially_sent n=1 ar", "retry", "retry partially_sent due=now n=1 ap"},
	{"retry one that waits", "deferred due n=2 d", "retry", "retry deferred due=now n=2 p"},
	{"retry a held one", "held resume n=0 p", "retry", "retry queued due=now n=0 p"},
	{"retry an unknown one by its id", "unknown n=1 u", "retry", "retry deferred due=now n=1 dup p"},
	{"retry an unknown one by a filter", "unknown n=1 u", "retry-by-filter", "refused"},
	{"retry one with unknowns by a filter", "deferred due dup n=1 ud", "retry-by-filter", "retry deferred due=now n=1 dup up"},
	{"retry one with unknowns by its id", "deferred due n=1 ud", "retry", "retry deferred due=now n=1 dup pp"},
	{"retry one that has expired", "failed expired n=1 d", "retry", "refused"},

	{"cancel one that waits", "queued due n=0 p", "cancel", "archive cancelled n=0 p stops"},
	{"cancel a failed one", "failed n=1 r", "cancel", "archive cancelled n=1 r stops"},
	{"cancel a held one", "held resume n=1 d", "cancel", "archive cancelled n=1 d stops"},
	{"cancel an unknown one", "unknown dup n=1 u", "cancel", "archive cancelled n=1 dup u stops"},

	{"hold one that waits", "queued due n=0 p", "hold", "park held resume=before n=0 p stops"},
	{"hold a partial one that waits", "partially_sent due n=1 ad", "hold", "park held resume=before n=1 ad stops"},
	{"hold one that waits for nothing", "failed n=1 r", "hold", "refused"},
	{"hold a held one", "held resume n=0 p", "hold", "refused"},
	{"hold an unknown one", "unknown n=1 u", "hold", "refused"},

	{"release a new one", "held resume n=0 p", "release", "retry queued due=before n=0 p"},
	{"release a deferred one", "held resume n=1 d", "release", "retry deferred due=before n=1 d"},
	{"release a partial one", "held resume n=1 ad", "release", "retry partially_sent due=before n=1 ad"},
	{"release one without a time", "held n=0 p", "release", "retry queued due=now n=0 p"},
	{"release one that is not held", "queued due n=0 p", "release", "refused"},

	{"all delivered", "unknown n=1 uu", "delivered", "archive sent n=1 aa"},
	{"one of two delivered", "unknown n=1 uu", "delivered-first", "park unknown n=1 au"},
	{"one delivered, the other refused", "unknown n=1 ur", "delivered", "park partially_sent n=1 ar"},
	{"not delivered", "unknown n=1 u", "not-delivered", "park failed n=1 r"},
	{"not delivered, the other accepted", "unknown n=1 ua", "not-delivered", "park partially_sent n=1 ra"},
	{"not delivered, the other unknown", "unknown n=1 uu", "not-delivered-first", "park unknown n=1 ru"},
	{"send again", "unknown n=1 u", "resend", "retry deferred due=now n=1 dup p"},
	{"send one again, the other is left", "unknown n=1 uu", "resend-first", "retry deferred due=now n=1 dup pU"},
	{"send again, another has it", "unknown n=1 ua", "resend", "retry partially_sent due=now n=1 dup pa"},
	{"send again an expired one", "unknown expired n=1 u", "resend", "refused"},
	{"delivered, others wait", "deferred due n=1 ud", "delivered", "retry partially_sent due=before n=1 ad"},
	{"delivered, others are to be sent again by policy", "deferred due dup n=1 uu", "delivered-first", "retry partially_sent due=before n=1 dup au"},
	{"delivered while held, others wait", "held resume n=1 ud", "delivered", "park held resume=before n=1 ad"},
	{"delivered while held, nobody waits", "held resume n=1 ur", "delivered", "park partially_sent n=1 ar"},
	{"delivered, one is left to a person", "deferred due dup n=1 uU", "delivered-first", "park unknown n=1 dup aU"},
}

// TestPersonRules: what a person's word makes of a mail in every state.
func TestPersonRules(t *testing.T) {
	for _, row := range personRules {
		t.Run(row.name, func(t *testing.T) {
			if got := row.becomes(t); got != row.want {
				t.Errorf("a mail (%s) of which a person says %s\n got %s\nwant %s", row.mail, row.word, got, row.want)
			}
		})
	}
}

// ruleTime is when people speak in the rows; dueTime is when the mails are due.
var (
	ruleTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	dueTime  = ruleTime.Add(time.Hour)
)

// says makes the row's mail and lets its word loose on it.
func (row personRule) says(t *testing.T) (m *store.Mail, c *store.Change, err error) {
	now, before := ruleTime, dueTime
	m = &store.Mail{ID: uuid.New(), MailServer: "ss", LastError: "was"}
	fields := strings.Fields(row.mail)
	m.Status = store.MailStatus(fields[0])
	for _, w := range fields[1 : len(fields)-1] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "due":
			m.DueTime = &before
		case "resume":
			m.ResumeTime = &before
		case "dup":
			m.PossibleDuplicate = true
		case "expired":
			m.ExpireTime = &now
		case "n":
			m.Attempts, _ = strconv.Atoi(value)
		default:
			t.Fatalf("unknown word %q", w)
		}
	}
	for i, c := range []byte(fields[len(fields)-1]) {
		m.Recipients = append(m.Recipients, store.Recipient{Mailbox: fmt.Sprintf("r%d@y.example", i)})
		status := map[byte]store.RecipientStatus{'p': store.RecipientPending, 'a': store.RecipientAccepted, 'r': store.RecipientRejected,
			'd': store.RecipientDeferred, 'u': store.RecipientUnknown, 'U': store.RecipientUnknown}[c]
		m.Progress.Results = append(m.Progress.Results, store.RecipientResult{Status: status, Held: c == 'U', Attempt: m.Attempts, Detail: "was"})
	}
	var unknown []int
	for i, r := range m.Progress.Results {
		if r.Status == store.RecipientUnknown {
			unknown = append(unknown, i)
		}
	}
	word, first := strings.CutSuffix(row.word, "-first")
	if first {
		unknown = unknown[:1]
	}
	switch word {
	case "retry":
		c, err = Retry(m, true, now)
	case "retry-by-filter":
		c, err = Retry(m, false, now)
	case "cancel":
		c = Cancel(m, "")
	case "hold":
		c, err = Hold(m, "")
	case "release":
		c, err = Release(m, now)
	case "delivered":
		c, err = Resolve(m, unknown, Delivered, "I asked", now)
	case "not-delivered":
		c, err = Resolve(m, unknown, NotDelivered, "I asked", now)
	case "resend":
		c, err = Resolve(m, unknown, Resend, "I asked", now)
	default:
		t.Fatalf("unknown word %q", word)
	}
	return m, c, err
}

// becomes describes what is written.
func (row personRule) becomes(t *testing.T) string {
	m, c, err := row.says(t)
	if err != nil {
		var refusal Refusal
		if !errors.As(err, &refusal) || refusal == "" {
			t.Errorf("refused without a reason: %v", err)
		}
		return "refused"
	}
	out := []string{map[store.SettleKind]string{store.SettleArchive: "archive", store.SettlePark: "park", store.SettleRetry: "retry"}[c.Kind], string(c.Status)}
	at := func(key string, at time.Time) {
		switch {
		case at.IsZero():
		case at.Equal(ruleTime):
			out = append(out, key+"=now")
		case at.Equal(dueTime):
			out = append(out, key+"=before")
		default:
			out = append(out, key+"="+at.String())
		}
	}
	at("due", c.RunAt)
	at("resume", c.ResumeAt)
	out = append(out, fmt.Sprintf("n=%d", c.Attempts))
	if c.PossibleDuplicate {
		out = append(out, "dup")
	}
	p := c.Progress
	if p == nil {
		p = &m.Progress
	}
	var rs strings.Builder
	for _, r := range p.Results {
		letter := r.Status[0]
		if r.Held {
			letter -= 'a' - 'A'
		}
		rs.WriteByte(letter)
	}
	out = append(out, rs.String())
	if c.Stops {
		out = append(out, "stops")
	}
	return strings.Join(out, " ")
}

package lifecycle

import (
	"fmt"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// Move lets a mail go on through another mail server. It may only if it provably has not left
// for anybody who still waits: what is unknown may have arrived, and would arrive twice. nil
// says that it goes through that mail server already.
func Move(m *store.Mail, to *store.MailServer, now time.Time) (*store.Change, error) {
	limit := to.Limits.MaxMailBytes
	if limit == 0 {
		limit = message.MaxMailBytes
	}
	switch {
	case m.MailServer == to.Name:
		return nil, nil
	case m.Status == store.MailUnknown || m.PossibleDuplicate:
		return nil, Refusal("it may have left already: its outcome is unknown")
	case to.Team != "" && to.Team != m.Team:
		return nil, Refusal(fmt.Sprintf("mail server %s is another team's", to.Name))
	case m.SizeBytes > limit:
		return nil, Refusal(fmt.Sprintf("it has %d bytes; mail server %s takes %d", m.SizeBytes, to.Name, limit))
	}
	for i, r := range m.Progress.Results {
		if r.Status == store.RecipientUnknown {
			return nil, Refusal(fmt.Sprintf("it may have left already for %s: that outcome is unknown", m.Recipients[i].Mailbox))
		}
	}
	c := &store.Change{Kind: store.SettlePark, Status: m.Status, Attempts: m.Attempts, LastError: m.LastError, MailServer: to.Name}
	switch {
	case m.DueTime != nil:
		c.Kind, c.Status, c.RunAt = store.SettleRetry, waiting(m.Attempts, m.Progress.Results), *m.DueTime
		if m.Attempts > 0 && now.Before(c.RunAt) {
			c.RunAt = now // it waited for the mail server that it leaves
		}
	case m.ResumeTime != nil:
		c.ResumeAt = *m.ResumeTime
	}
	return c, nil
}

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
	if m.MailServer == to.Name {
		return nil, nil
	}
	if m.Status == store.MailUnknown {
		return nil, errMayHaveLeft
	}
	if err := mayGoThrough(to, m.Team, m.SizeBytes, m.PossibleDuplicate, m.Recipients, m.Progress.Results); err != nil {
		return nil, err
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

const errMayHaveLeft = Refusal("it may have left already: its outcome is unknown")

// mayGoThrough says why a mail may not go through another mail server than it has gone through
// so far, nil if it may.
func mayGoThrough(to *store.MailServer, team string, size int64, duplicate bool, recipients []store.Recipient, results []store.RecipientResult) error {
	limit := to.Limits.MaxMailBytes
	if limit == 0 {
		limit = message.MaxMailBytes
	}
	switch {
	case duplicate:
		return errMayHaveLeft
	case to.Team != "" && to.Team != team:
		return Refusal(fmt.Sprintf("mail server %s is another team's", to.Name))
	case size > limit:
		return Refusal(fmt.Sprintf("it has %d bytes; mail server %s takes %d", size, to.Name, limit))
	}
	for i, r := range results {
		if r.Status == store.RecipientUnknown {
			return Refusal(fmt.Sprintf("it may have left already for %s: that outcome is unknown", recipients[i].Mailbox))
		}
	}
	return nil
}

// MayGoThrough says why what is left of the attempt may not go through another mail server, nil
// if it may. The rule is that of Move.
func (a *Attempt) MayGoThrough(to *store.MailServer) error {
	if a.marked || a.Mail.Marked {
		return errMayHaveLeft
	}
	return mayGoThrough(to, a.Mail.Team, a.Mail.SizeBytes, a.Mail.PossibleDuplicate, a.Mail.Recipients, a.results)
}

// GoThrough lets what is left of the attempt go through another mail server than the mail's
// own. why is what the one before it failed with, if the replies do not say it. Progress, which
// is to be recorded before the next mark, says which one it is then, also after a crash.
func (a *Attempt) GoThrough(server, why string, now time.Time) {
	if why = firstOf(why, a.fault); why != "" {
		outcome := ServerFault
		if a.decided > 0 {
			outcome = Partial
		}
		a.Mail.Progress.Attempts = a.history(now, outcome, why)
		a.Started = now
	}
	a.through, a.free, a.fault, a.blame, a.end = server, freeTries, "", "", 0
}

// Through is the mail server that the attempt goes through.
func (a *Attempt) Through() string {
	if a.through != "" {
		return a.through
	}
	return a.Mail.MailServer
}

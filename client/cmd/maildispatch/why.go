package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// why is the command of that name.
func (a *app) why() *cobra.Command {
	return &cobra.Command{Use: "why ID|TEXT", Short: "Say in plain words what became of a mail, and what to do", Args: cobra.ExactArgs(1),
		Example: "  maildispatch why INV-1\n  maildispatch why ann@shop.example",
		RunE: func(c *cobra.Command, args []string) error {
			ms, err := a.search(c.Context(), &maildispatchv1.FindMailsRequest{Text: args[0], PageSize: 2}, 2)
			if err != nil {
				return err
			}
			if len(ms) == 0 && !a.grpcurl {
				a.printf("No mail is called %s: it was never handed over, or it is not yours to see. Look with: maildispatch find --subject WORDS\n", safe(args[0]))
				return errNotAll
			}
			m := &maildispatchv1.Mail{Id: "ID"}
			if len(ms) > 0 {
				m = ms[0]
			} else if isID.MatchString(args[0]) {
				m.Id = args[0]
			}
			acts, err := a.acts(c.Context(), m.Id)
			if err != nil {
				return err
			}
			a.print(m, func() {
				a.printf("%s", story(m, acts))
				if len(ms) > 1 {
					a.printf("\nOlder mails have this name too: maildispatch find %s\n", safe(args[0]))
				}
			})
			return nil
		}}
}

// acts are what people did to a mail, the oldest first; none for callers who may not know.
func (a *app) acts(ctx context.Context, id string) ([]*maildispatchv1.AuditRow, error) {
	c, err := a.access()
	if err != nil {
		return nil, err
	}
	res, err := c.ListAudit(ctx, &maildispatchv1.ListAuditRequest{Target: id})
	if code := status.Code(err); code == codes.PermissionDenied || code == codes.Unimplemented {
		return nil, nil
	}
	rows := res.GetRows()
	for i, j := 0, len(rows)-1; i < j; i, j = i+1, j-1 {
		rows[i], rows[j] = rows[j], rows[i]
	}
	return rows, err
}

// story is a mail's in plain words.
func story(m *maildispatchv1.Mail, acts []*maildispatchv1.AuditRow) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	name := m.Reference
	if name == "" {
		name = m.Id
	}
	p("%s: %s\n\n", safe(name), plain.Headlines[m.Status])
	p("  %s \"%s\"\n  from %s through %s, id %s\n", strings.ReplaceAll(word(m.Kind), "-", " "), safe(m.Subject), safe(m.From), safe(m.MailServer), m.Id)
	if m.BatchId != "" {
		p("  of batch %s\n", safe(m.BatchId))
	}
	if m.ResentFrom != "" {
		p("  sends mail %s once more: %s\n", safe(m.ResentFrom), safe(m.ResendReason))
	}
	if m.PossibleDuplicate {
		p("  A copy may have been delivered before: an earlier attempt had no answer.\n")
	}

	p("\nWhat happened\n")
	p("  %s  the service took it\n", clock(m.CreateTime))
	for i, x := range m.Attempts {
		if i > 0 && x.Number > m.Attempts[i-1].Number+1 {
			p("  ...                  %s left out\n", plural(x.Number-m.Attempts[i-1].Number-1, "attempt"))
		}
		p("  %s  attempt %d through %s: %s\n", clock(x.StartTime), x.Number, safe(x.MailServer), safe(plain.Outcome(x.Outcome)))
		if x.Detail != "" && x.Outcome != "sent" {
			p("  %19s  %s\n", "", safe(x.Detail))
		}
	}
	for _, x := range acts {
		who := x.Actor
		if who == "" {
			who = "somebody"
		}
		p("  %s  %s: %s", clock(x.Time), safe(who), safe(x.Action))
		if x.Reason != "" {
			p(" (%s)", safe(x.Reason))
		}
		p("\n")
	}
	switch {
	case m.FinishTime != nil:
		p("  %s  finished\n", clock(m.FinishTime))
	case m.DueTime != nil:
		p("  %s  is when it is tried next\n", clock(m.DueTime))
	}

	p("\nRecipients\n")
	for _, r := range m.Recipients {
		p("  %s: %s", safe(r.Address), word(r.Status))
		if reply := safe(plain.Reply(r)); reply != "" {
			p(", \"%s\"", reply)
		}
		p("\n")
		if r.Failure != 0 {
			p("    %s", strings.ReplaceAll(word(r.Failure), "-", " "))
			if r.Hint != "" {
				p(": %s", safe(r.Hint))
			}
			p("\n")
		}
	}
	if next := nextSteps(m); len(next) > 0 {
		p("\nWhat to do\n")
		for _, s := range next {
			p("  %s\n", s)
		}
	}
	return b.String()
}

// nextSteps are what a person can do about a mail as it is.
func nextSteps(m *maildispatchv1.Mail) (steps []string) {
	do := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	var refused []*maildispatchv1.RecipientResult
	for _, r := range m.Recipients {
		if r.Status == maildispatchv1.RecipientResult_STATUS_REJECTED {
			refused = append(refused, r)
		}
	}
	switch m.Status {
	case maildispatchv1.MailStatus_MAIL_STATUS_SENT:
		do("Nothing here. If the recipient has not seen it, give the recipient's administrator the id that the")
		do("mail server gave it%s, or send it again:", remoteIDs(m))
		do("maildispatch resend %s --reason \"...\"", m.Id)
	case maildispatchv1.MailStatus_MAIL_STATUS_QUEUED, maildispatchv1.MailStatus_MAIL_STATUS_DEFERRED:
		do("Wait, or try now:    maildispatch retry %s", m.Id)
		do("Stop it:             maildispatch cancel %s", m.Id)
	case maildispatchv1.MailStatus_MAIL_STATUS_HELD:
		do("Let it go:           maildispatch release %s", m.Id)
		do("End it:              maildispatch cancel %s", m.Id)
	case maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN:
		do("Ask the recipient, or look into the mail server's log for Message-ID %s. Then say:", safe(m.MessageId))
		do("It arrived:          maildispatch resolve %s delivered --reason \"...\"", m.Id)
		do("It did not:          maildispatch resolve %s not-delivered --reason \"...\"", m.Id)
		do("Send it again:       maildispatch resolve %s resend --reason \"...\"", m.Id)
	case maildispatchv1.MailStatus_MAIL_STATUS_FAILED, maildispatchv1.MailStatus_MAIL_STATUS_PARTIALLY_SENT:
		for i, r := range refused {
			if r.Failure == maildispatchv1.RecipientResult_FAILURE_NO_SUCH_MAILBOX && i < 5 {
				only := ""
				if len(m.Recipients) > 1 {
					only = " --only " + safe(r.Address)
				}
				do("Right address:       maildispatch resend %s%s --to ADDRESS --reason \"...\"", m.Id, only)
			}
		}
		do("Mended? Try again:   maildispatch retry %s", m.Id)
		do("Done with it:        maildispatch cancel %s --reason \"...\"", m.Id)
	}
	return steps
}

// remoteIDs are the ids that mail servers gave a mail.
func remoteIDs(m *maildispatchv1.Mail) string {
	for _, r := range m.Recipients {
		if r.RemoteId != "" {
			return " (" + safe(r.RemoteId) + ")"
		}
	}
	return ""
}

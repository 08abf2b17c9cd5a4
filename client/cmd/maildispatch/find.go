package main

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// filterFlags are the flags that select mails.
type filterFlags struct {
	team, server, kind, reference, recipient, batch, since, until string
	statuses, labels                                              []string
}

func (x *filterFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&x.team, "team", "", "only this team's; \"-\" = only the system's")
	f.StringVar(&x.server, "server", "", "only through this mail server")
	f.StringSliceVar(&x.statuses, "status", nil, "in one of these states: failed, unknown, held, ...")
	f.StringVar(&x.kind, "kind", "", "only of this kind: invoice, work-order, bulk, ...")
	f.StringVar(&x.reference, "reference", "", "only with this reference")
	f.StringVar(&x.recipient, "recipient", "", "only to this address")
	f.StringVar(&x.batch, "batch", "", "only of this batch")
	f.StringSliceVar(&x.labels, "label", nil, "only with this label: key=value")
	f.StringVar(&x.since, "since", "", "taken since: 90m, 2d, 2026-11-30")
	f.StringVar(&x.until, "until", "", "taken before: 90m, 2d, 2026-11-30")
	// the flag is there
	_ = c.RegisterFlagCompletionFunc("status", words(maildispatchv1.MailStatus(0)))
	_ = c.RegisterFlagCompletionFunc("kind", words(maildispatchv1.Kind(0)))
}

// filter is what the flags select; nil = nothing was said.
func (x *filterFlags) filter(now time.Time) (f *maildispatchv1.MailFilter, err error) {
	f = &maildispatchv1.MailFilter{MailServer: x.server, Reference: x.reference, Recipient: x.recipient, BatchId: x.batch}
	some := x.server+x.reference+x.recipient+x.batch+x.team+x.kind+x.since+x.until != "" || len(x.statuses)+len(x.labels) > 0
	if !some {
		return nil, nil
	}
	f.Team = ofTeam(x.team)
	for _, s := range x.statuses {
		n, err := fromWord("--status", maildispatchv1.MailStatus(0), s)
		if err != nil {
			return nil, err
		}
		f.Statuses = append(f.Statuses, maildispatchv1.MailStatus(n))
	}
	if x.kind != "" {
		n, err := fromWord("--kind", maildispatchv1.Kind(0), x.kind)
		if err != nil {
			return nil, err
		}
		f.Kind = maildispatchv1.Kind(n)
	}
	if f.Labels, err = pairs("--label", x.labels); err != nil {
		return nil, err
	}
	if f.Since, err = moment("since", x.since, now); err != nil {
		return nil, err
	}
	f.Until, err = moment("until", x.until, now)
	return f, err
}

// pairs reads key=value.
func pairs(flag string, in []string) (map[string]string, error) {
	var out map[string]string
	for _, s := range in {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usage("%s is key=value, not %q", flag, s)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out, nil
}

// find is the command of that name.
func (a *app) find() *cobra.Command {
	var (
		x                                        filterFlags
		domain, subject, failure, finished, upto string
		duplicate                                bool
		limit                                    int
	)
	c := &cobra.Command{Use: "find [TEXT]", Short: "Find mails in both journals, the newest first", Args: cobra.ArbitraryArgs,
		Long:    "Find mails in both journals, the newest first. TEXT is an id, a reference such as an invoice number, an\naddress, a Message-ID or a request_id; when no mail has it, words of the subject.",
		Example: "  maildispatch find INV-1\n  maildispatch find ann@shop.example --since 2d\n  maildispatch find --status failed --failure mailbox-full\n  maildispatch find --status unknown --kind invoice --since 7d",
		RunE: func(c *cobra.Command, args []string) error {
			f, err := x.filter(time.Now())
			if err != nil {
				return err
			}
			req := &maildispatchv1.FindMailsRequest{Filter: f, Text: strings.Join(args, " "), RecipientDomain: domain, Subject: subject, PossibleDuplicate: duplicate, PageSize: int32(min(limit, 500))}
			if failure != "" {
				n, err := fromWord("--failure", maildispatchv1.RecipientResult_Failure(0), failure)
				if err != nil {
					return err
				}
				req.Failure = maildispatchv1.RecipientResult_Failure(n)
			}
			if req.FinishedSince, err = moment("finished-since", finished, time.Now()); err != nil {
				return err
			}
			if req.FinishedUntil, err = moment("finished-until", upto, time.Now()); err != nil {
				return err
			}
			ms, err := a.search(c.Context(), req, limit)
			if err != nil {
				return err
			}
			if len(ms) == 0 && req.Text != "" && req.Subject == "" {
				// no name of a mail: words of a subject
				req.Subject, req.Text = req.Text, ""
				if ms, err = a.search(c.Context(), req, limit); err != nil {
					return err
				}
			}
			a.list(ms)
			if len(ms) == 0 && !a.grpcurl {
				if !a.json {
					a.printf("Nothing was found.\n")
				}
				return errNotAll
			}
			return nil
		}}
	x.add(c)
	f := c.Flags()
	f.StringVar(&domain, "domain", "", "with a recipient at this domain")
	f.StringVar(&subject, "subject", "", "with these words in the subject")
	f.StringVar(&failure, "failure", "", "with a recipient that failed for this reason: no-such-mailbox, mailbox-full, ...")
	f.BoolVar(&duplicate, "possible-duplicate", false, "of which a copy may have been delivered before")
	f.StringVar(&finished, "finished-since", "", "finished since")
	f.StringVar(&upto, "finished-until", "", "finished before")
	f.IntVarP(&limit, "limit", "n", 50, "at most so many")
	// the flag is there
	_ = c.RegisterFlagCompletionFunc("failure", words(maildispatchv1.RecipientResult_Failure(0)))
	return c
}

// search gathers up to limit mails.
func (a *app) search(ctx context.Context, req *maildispatchv1.FindMailsRequest, limit int) (ms []*maildispatchv1.Mail, err error) {
	c, err := a.service()
	if err != nil {
		return nil, err
	}
	for m, err := range c.Find(ctx, req) {
		if err != nil {
			return nil, err
		}
		if ms = append(ms, m); len(ms) == limit {
			break
		}
	}
	return ms, nil
}

// list prints a line for each mail.
func (a *app) list(ms []*maildispatchv1.Mail) {
	if a.json {
		for _, m := range ms {
			a.print(m, nil)
		}
		return
	}
	if len(ms) == 0 {
		return
	}
	rows := [][]string{{"ID", "TAKEN", "STATUS", "KIND", "REFERENCE", "TO", "SUBJECT"}}
	for _, m := range ms {
		subject := []rune(safe(m.Subject))
		if len(subject) > 40 {
			subject = append(subject[:39], '…')
		}
		rows = append(rows, []string{m.Id, clock(m.CreateTime), word(m.Status), word(m.Kind), safe(m.Reference), recipientsOf(m), string(subject)})
	}
	a.table(rows)
}

var isID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// theMail finds the one mail that a text names, for what is done to one.
func (a *app) theMail(ctx context.Context, text string) (*maildispatchv1.Mail, error) {
	if isID.MatchString(text) {
		c, err := a.service()
		if err != nil || a.grpcurl {
			return &maildispatchv1.Mail{Id: text}, err
		}
		res, err := c.GetMail(ctx, &maildispatchv1.GetMailRequest{Id: text})
		return res.GetMail(), err
	}
	ms, err := a.search(ctx, &maildispatchv1.FindMailsRequest{Text: text, PageSize: 10}, 10)
	switch {
	case err != nil:
		return nil, err
	case a.grpcurl:
		return &maildispatchv1.Mail{Id: "ID"}, nil
	case len(ms) == 0:
		a.printf("No mail is called %s.\n", safe(text))
		return nil, errNotAll
	case len(ms) > 1:
		a.list(ms)
		return nil, usage("%s names several mails: give the id of one", text)
	}
	return ms[0], nil
}

// show is the command of that name.
func (a *app) show() *cobra.Command {
	return &cobra.Command{Use: "show ID", Short: "Show everything that is known of a mail, as JSON", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.service()
			if err != nil {
				return err
			}
			if a.grpcurl && isID.MatchString(args[0]) {
				_, err = s.GetMail(c.Context(), &maildispatchv1.GetMailRequest{Id: args[0]})
				return err
			}
			m, err := a.theMail(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				a.print(m, nil)
				return nil
			}
			a.printf("%s\n", indented(m))
			return nil
		}}
}

// raw is the command of that name.
func (a *app) raw() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "raw ID", Short: "Write the message as it was or will be sent (.eml)", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			m, err := a.theMail(c.Context(), args[0])
			if err != nil {
				return err
			}
			s, err := a.service()
			if err != nil {
				return err
			}
			var w io.Writer = a.out
			if file == "" && a.terminal {
				return usage("the message is foreign text and not for a terminal: use -o FILE, or pipe it")
			}
			if file != "" && !a.grpcurl {
				f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				w = f
			}
			_, err = s.Download(c.Context(), m.Id, w)
			if a.grpcurl {
				return nil
			}
			return err
		}}
	c.Flags().StringVarP(&file, "output", "o", "", "file to write, which must not exist")
	return c
}

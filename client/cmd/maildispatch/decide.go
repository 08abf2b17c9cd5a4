package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// changed is what the answers of all acts on selected mails hold.
type changed interface {
	proto.Message
	GetMatched() int32
	GetChanged() int32
	GetFailures() []*maildispatchv1.MailFailure
}

// act is an act on selected mails.
type act struct {
	name, short, would, did string
	call                    func(ctx context.Context, c *client.Client, ids []string, f *maildispatchv1.MailFilter, dry bool, reason string) (changed, error)
}

// decide is the command of an act: it counts first, asks, and acts.
func (a *app) decide(x act) *cobra.Command {
	var (
		fl     filterFlags
		reason string
		dry    bool
	)
	c := &cobra.Command{Use: x.name + " [ID|TEXT ...]", Short: x.short, Args: cobra.ArbitraryArgs,
		Long:    x.short + ". It counts first, asks, and then acts. Mails are named, or selected by flags.",
		Example: "  maildispatch " + x.name + " INV-1\n  maildispatch " + x.name + " --batch newsletter-7 --status failed --since 2d",
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			f, err := fl.filter(time.Now())
			if err != nil {
				return err
			}
			if (len(args) > 0) == (f != nil) {
				return usage("name mails, or select them by flags")
			}
			s, err := a.service()
			if err != nil {
				return err
			}
			var ids []string
			for _, arg := range args {
				if isID.MatchString(arg) {
					ids = append(ids, arg)
					continue
				}
				m, err := a.theMail(ctx, arg)
				if err != nil {
					return err
				}
				ids = append(ids, m.Id)
			}
			if !a.grpcurl || dry {
				would, err := x.call(ctx, s, ids, f, true, reason)
				if err != nil {
					return err
				}
				if would, err = a.followed(ctx, would); err != nil {
					return err
				}
				if dry || would.GetChanged() == 0 {
					return a.changed(would, x.would)
				}
				if err := a.sure("%s would be %s.", plural(would.GetChanged(), "mail"), x.did); err != nil {
					return err
				}
			}
			if reason, err = a.because(reason, false); err != nil {
				return err
			}
			did, err := x.call(ctx, s, ids, f, false, reason)
			if err != nil {
				return err
			}
			if did, err = a.followed(ctx, did); err != nil {
				return err
			}
			return a.changed(did, x.did)
		}}
	fl.add(c)
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	c.Flags().BoolVar(&dry, "dry-run", false, "only count")
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return c
}

// followed waits for the operation that the service carries out when many mails are selected,
// and is what it came to.
func (a *app) followed(ctx context.Context, r changed) (changed, error) {
	o, is := r.(interface {
		GetOperation() *maildispatchv1.Operation
	})
	if !is || o.GetOperation() == nil || a.grpcurl {
		return r, nil
	}
	op, err := a.await(ctx, o.GetOperation().GetId())
	if err != nil {
		return nil, err
	}
	end := &maildispatchv1.RetryMailsResponse{Matched: int32(op.GetMatched()), Changed: int32(op.GetChanged())}
	for _, g := range op.GetFailures() {
		for _, mail := range g.GetIds() {
			end.Failures = append(end.Failures, &maildispatchv1.MailFailure{Id: mail, Reason: g.GetReason(), Message: g.GetMessage()})
		}
	}
	return end, nil
}

// changed says what an act did.
func (a *app) changed(r changed, did string) error {
	a.print(r, func() {
		a.printf("%s %s.\n", plural(r.GetChanged(), "mail"), did)
		for _, f := range r.GetFailures() {
			a.printf("  not %s: %s (%s)\n", safe(f.Id), safe(f.Message), safe(f.Reason))
		}
		if more := int(r.GetMatched()-r.GetChanged()) - len(r.GetFailures()); more > 0 {
			a.printf("  and %s more that could not be changed\n", plural(more, "mail"))
		}
	})
	if !a.grpcurl && (r.GetMatched() == 0 || r.GetChanged() < r.GetMatched()) {
		return errNotAll
	}
	return nil
}

func (a *app) retry() *cobra.Command {
	return a.decide(act{name: "retry", short: "Try mails again now", would: "would be tried again", did: "tried again",
		call: func(ctx context.Context, c *client.Client, ids []string, f *maildispatchv1.MailFilter, dry bool, why string) (changed, error) {
			return c.RetryMails(ctx, &maildispatchv1.RetryMailsRequest{Ids: ids, Filter: f, ValidateOnly: dry, Reason: why})
		}})
}

func (a *app) cancel() *cobra.Command {
	return a.decide(act{name: "cancel", short: "End mails that have not been sent", would: "would be cancelled", did: "cancelled",
		call: func(ctx context.Context, c *client.Client, ids []string, f *maildispatchv1.MailFilter, dry bool, why string) (changed, error) {
			return c.CancelMails(ctx, &maildispatchv1.CancelMailsRequest{Ids: ids, Filter: f, ValidateOnly: dry, Reason: why})
		}})
}

func (a *app) hold() *cobra.Command {
	return a.decide(act{name: "hold", short: "Keep mails from being sent until they are released", would: "would be held", did: "held",
		call: func(ctx context.Context, c *client.Client, ids []string, f *maildispatchv1.MailFilter, dry bool, why string) (changed, error) {
			return c.HoldMails(ctx, &maildispatchv1.HoldMailsRequest{Ids: ids, Filter: f, ValidateOnly: dry, Reason: why})
		}})
}

func (a *app) release() *cobra.Command {
	return a.decide(act{name: "release", short: "Let held mails go", would: "would be released", did: "released",
		call: func(ctx context.Context, c *client.Client, ids []string, f *maildispatchv1.MailFilter, dry bool, why string) (changed, error) {
			return c.ReleaseMails(ctx, &maildispatchv1.ReleaseMailsRequest{Ids: ids, Filter: f, ValidateOnly: dry, Reason: why})
		}})
}

// resolve is the command of that name.
func (a *app) resolve() *cobra.Command {
	var reason string
	var only []string
	c := &cobra.Command{Use: "resolve ID|TEXT delivered|not-delivered|resend", Short: "Say what became of a mail whose outcome is unknown", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := fromWord("the outcome", maildispatchv1.Resolution(0), args[1])
			if err != nil {
				return err
			}
			m, err := a.theMail(c.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.sure("Mail %s to %s counts as %s from then on.", safe(m.Id), recipientsOf(m), args[1]); err != nil {
				return err
			}
			if reason, err = a.because(reason, true); err != nil {
				return err
			}
			s, err := a.service()
			if err != nil {
				return err
			}
			res, err := s.ResolveMail(c.Context(), &maildispatchv1.ResolveMailRequest{Id: m.Id, Resolution: maildispatchv1.Resolution(n), Recipients: only, Reason: reason})
			if err != nil {
				return err
			}
			a.print(res.GetMail(), func() { a.printf("Mail %s is %s now.\n", safe(m.Id), word(res.GetMail().GetStatus())) })
			return nil
		}}
	c.Flags().StringVar(&reason, "reason", "", "how you know; it is asked for when it is missing")
	c.Flags().StringSliceVar(&only, "only", nil, "only these recipients")
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return c
}

// resend is the command of that name.
func (a *app) resend() *cobra.Command {
	var reason, to, request string
	var only, also []string
	c := &cobra.Command{Use: "resend ID|TEXT", Short: "Send a mail once more, also to a corrected address", Args: cobra.ExactArgs(1),
		Example: "  maildispatch resend INV-1 --to ann@shop.example --reason \"the address was wrong\"",
		RunE: func(c *cobra.Command, args []string) error {
			m, err := a.theMail(c.Context(), args[0])
			if err != nil {
				return err
			}
			whom := recipientsOf(m)
			if len(only) > 0 {
				whom = safe(only[0])
			}
			if to != "" {
				whom = safe(to) + " in place of " + whom
			}
			if err := a.sure("Mail %s is sent once more, to %s.", safe(m.Id), whom); err != nil {
				return err
			}
			if reason, err = a.because(reason, true); err != nil {
				return err
			}
			s, err := a.service()
			if err != nil {
				return err
			}
			res, err := s.ResendMail(c.Context(), &maildispatchv1.ResendMailRequest{Id: m.Id, OnlyRecipients: only, ToInstead: to, AdditionalRecipients: also, Reason: reason, RequestId: request})
			if err != nil {
				return err
			}
			a.print(res.GetMail(), func() {
				a.printf("Mail %s goes to %s. Look with: maildispatch why %s\n", safe(res.GetMail().GetId()), recipientsOf(res.GetMail()), safe(res.GetMail().GetId()))
			})
			return nil
		}}
	f := c.Flags()
	f.StringVar(&to, "to", "", "the right address, in place of the wrong one")
	f.StringSliceVar(&only, "only", nil, "only these of its recipients; with --to the one that is corrected")
	f.StringSliceVar(&also, "also", nil, "further addresses, which no header shows")
	f.StringVar(&reason, "reason", "", "why; it is asked for when it is missing")
	f.StringVar(&request, "request-id", "", "makes the command safe to repeat")
	f.BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return c
}

package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// batch is the command of that name.
func (a *app) batch() *cobra.Command {
	c := &cobra.Command{Use: "batch", Short: "Look at a batch, or stop it"}
	var team string
	show := &cobra.Command{Use: "show ID", Short: "Count a batch's mails by what became of them", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		res, err := s.GetBatch(c.Context(), &maildispatchv1.GetBatchRequest{Team: team, BatchId: args[0]})
		if err != nil {
			return err
		}
		b := res.GetBatch()
		a.print(b, func() {
			a.printf("Batch %s: %s, taken from %s on. ", safe(b.GetBatchId()), plural(b.GetMails(), "mail"), clock(b.GetCreateTime()))
			if b.GetWaiting() > 0 {
				a.printf("%d are still to be sent.\n", b.GetWaiting())
			} else {
				a.printf("It is over.\n")
			}
			a.counts(b.GetCounts())
			if n := b.GetPossibleDuplicates(); n > 0 {
				a.printf("  %d may have been delivered twice\n", n)
			}
		})
		return nil
	}}
	show.Flags().StringVar(&team, "team", "", "owner; empty = the system")
	var reason, mode, owner string
	stop := &cobra.Command{Use: "stop ID", Short: "Hold what of a batch has not been sent, or cancel it", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		if mode != "hold" && mode != "cancel" {
			return usage("--how is hold or cancel, not %q", mode)
		}
		s, err := a.service()
		if err != nil {
			return err
		}
		f := &maildispatchv1.MailFilter{BatchId: args[0], Team: ofTeam(owner)}
		stop := func(dry bool) (changed, error) {
			if mode == "cancel" {
				return s.CancelMails(c.Context(), &maildispatchv1.CancelMailsRequest{Filter: f, ValidateOnly: dry, Reason: reason})
			}
			return s.HoldMails(c.Context(), &maildispatchv1.HoldMailsRequest{Filter: f, ValidateOnly: dry, Reason: reason})
		}
		did := map[string]string{"hold": "held", "cancel": "cancelled"}[mode]
		if !a.grpcurl {
			would, err := stop(true)
			if err == nil {
				would, err = a.followed(c.Context(), would)
			}
			if err != nil {
				return err
			}
			if would.GetChanged() == 0 {
				return a.changed(would, did)
			}
			if err := a.sure("%s of batch %s would be %s.", plural(would.GetChanged(), "mail"), safe(args[0]), did); err != nil {
				return err
			}
		}
		r, err := stop(false)
		if err == nil {
			r, err = a.followed(c.Context(), r)
		}
		if err != nil {
			return err
		}
		return a.changed(r, did)
	}}
	stop.Flags().StringVar(&mode, "how", "hold", "hold (release lets it go on) or cancel (for good)")
	stop.Flags().StringVar(&owner, "team", "", "only this team's; \"-\" = only the system's")
	stop.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	stop.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	c.AddCommand(show, stop)
	return c
}

// counts prints the counts that are not zero.
func (a *app) counts(c *maildispatchv1.MailCounts) {
	for _, x := range []struct {
		word string
		n    int64
	}{{"sent", c.GetSent()}, {"being sent", c.GetSending()}, {"queued", c.GetQueued()}, {"deferred, tried again", c.GetDeferred()}, {"sent to some", c.GetPartiallySent()},
		{"held", c.GetHeld()}, {"failed", c.GetFailed()}, {"unknown, to be resolved", c.GetUnknown()}, {"cancelled", c.GetCancelled()}} {
		if x.n > 0 {
			a.printf("  %8d  %s\n", x.n, x.word)
		}
	}
}

// watch is the command of that name.
func (a *app) watch() *cobra.Command {
	var x filterFlags
	var most int
	c := &cobra.Command{Use: "watch", Short: "Print every change of mails as it happens", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		f, err := x.filter(time.Now())
		if err != nil {
			return err
		}
		s, err := a.service()
		if err != nil {
			return err
		}
		n := 0
		for ev, err := range s.Watch(c.Context(), &maildispatchv1.WatchMailsRequest{Filter: f}) {
			if a.grpcurl || err != nil && c.Context().Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			m := ev.GetMail()
			if m == nil {
				continue
			}
			a.print(ev, func() {
				a.printf("%s  %s  %-14s  %s  %s  %s\n", clock(ev.ChangeTime), m.Id, word(ev.Status), recipientsOf(m), safe(m.Reference), safe(m.LastError))
			})
			if n++; n == most {
				return nil
			}
		}
		return nil
	}}
	x.add(c)
	c.Flags().IntVarP(&most, "limit", "n", 0, "end after so many changes; 0 = never")
	return c
}

// queue is the command of that name.
func (a *app) queue() *cobra.Command {
	var live bool
	var team, server string
	c := &cobra.Command{Use: "queue", Short: "Show what waits, for how long, and how mail servers do", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		req := &maildispatchv1.GetQueueStatsRequest{MailServer: server, Team: ofTeam(team)}
		look := func(ctx context.Context) error {
			res, err := s.GetQueueStats(ctx, req)
			if err != nil {
				return err
			}
			if a.json {
				a.print(res, nil)
				return nil
			}
			if live && a.terminal {
				a.printf("\x1b[H\x1b[2J")
			}
			a.printf("%s   waiting %d, later %d, sent in the last minute %d\n", clock(res.GetTime()), res.GetWaiting(), res.GetScheduled(), res.GetSentLastMinute())
			a.counts(res.GetCounts())
			rows := [][]string{{"", "LANE", "WAITING", "OLDEST"}}
			for _, l := range res.GetLanes() {
				if l.Waiting > 0 {
					rows = append(rows, []string{"", word(l.Priority), plural(l.Waiting, "mail"), l.OldestAge.AsDuration().Round(time.Second).String()})
				}
			}
			if len(rows) > 1 {
				a.table(rows)
			}
			rows = [][]string{{"", "MAIL SERVER", "STATE"}}
			for m, err := range s.MailServers(ctx, &maildispatchv1.ListMailServersRequest{Team: req.Team}) {
				if status.Code(err) == codes.PermissionDenied {
					return nil
				}
				if err != nil {
					return err
				}
				rows = append(rows, []string{"", safe(m.Name), state(m)})
			}
			a.table(rows)
			return nil
		}
		for {
			if err := look(c.Context()); err != nil || !live || a.grpcurl {
				return err
			}
			select {
			case <-c.Context().Done():
				return nil
			case <-time.After(2 * time.Second):
			}
		}
	}}
	c.Flags().BoolVarP(&live, "live", "l", false, "look again every 2 seconds, until Ctrl-C")
	c.Flags().StringVar(&team, "team", "", "only this team's; \"-\" = only the system's")
	c.Flags().StringVar(&server, "server", "", "only through this mail server")
	return c
}

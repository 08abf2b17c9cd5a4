package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// operations is the service of that name.
func (a *app) operations() (maildispatchv1.OperationsClient, error) {
	c, err := a.service()
	if err != nil {
		return nil, err
	}
	return maildispatchv1.NewOperationsClient(c.Conn()), nil
}

// operation is the command of that name.
func (a *app) operation() *cobra.Command {
	c := &cobra.Command{Use: "operation", Short: "Look at acts on many mails that go on in the service, or stop them",
		Long: "Look at acts on many mails that go on in the service, or stop them. An act that selects more than 1000\nmails goes on there by itself: Ctrl-C ends only the waiting for it."}
	c.AddCommand(a.operationList(), a.operationShow(), a.operationWatch(), a.operationStop())
	return c
}

func (a *app) operationList() *cobra.Command {
	var running bool
	var team string
	var limit int
	c := &cobra.Command{Use: "list", Short: "List them, the newest first", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		s, err := a.operations()
		if err != nil {
			return err
		}
		req := &maildispatchv1.ListOperationsRequest{Running: running, Team: ofTeam(team), PageSize: int32(min(limit, 500))}
		rows := [][]string{{"ID", "BEGAN", "WHAT", "STATE", "MAILS", "WHO", "WHY"}}
		for n := 0; n < limit; {
			res, err := s.ListOperations(c.Context(), req)
			if err != nil {
				return err
			}
			for _, o := range res.GetOperations() {
				if n++; n > limit {
					break
				}
				if a.json {
					a.print(o, nil)
				}
				rows = append(rows, []string{safe(o.Id), clock(o.CreateTime), safe(o.Action), word(o.State), far(o), safe(o.Actor), safe(o.Reason)})
			}
			if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		if !a.json {
			a.table(rows)
		}
		return nil
	}}
	c.Flags().BoolVar(&running, "running", false, "only those that go on")
	c.Flags().StringVar(&team, "team", "", "only over mails of this team; \"-\" = of the system")
	c.Flags().IntVarP(&limit, "limit", "n", 50, "at most so many")
	return c
}

func (a *app) operationShow() *cobra.Command {
	return &cobra.Command{Use: "show ID", Short: "Say how far one is, and what could not be done", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		s, err := a.operations()
		if err != nil {
			return err
		}
		res, err := s.GetOperation(c.Context(), &maildispatchv1.GetOperationRequest{Id: args[0]})
		if err != nil {
			return err
		}
		a.print(res.GetOperation(), func() { a.operated(res.GetOperation()) })
		return nil
	}}
}

func (a *app) operationWatch() *cobra.Command {
	return &cobra.Command{Use: "watch ID", Short: "Wait for the end of one, and draw how far it is", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		o, err := a.await(c.Context(), args[0])
		if err != nil || a.grpcurl {
			return err
		}
		a.print(o, func() { a.operated(o) })
		if o.GetState() != maildispatchv1.OperationState_OPERATION_STATE_DONE || o.GetFailed() > 0 {
			return errNotAll
		}
		return nil
	}}
}

func (a *app) operationStop() *cobra.Command {
	c := &cobra.Command{Use: "stop ID", Short: "Let one go no further; what it has done stays done", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		if err := a.sure("Operation %s is stopped.", safe(args[0])); err != nil {
			return err
		}
		s, err := a.operations()
		if err != nil {
			return err
		}
		res, err := s.StopOperation(c.Context(), &maildispatchv1.StopOperationRequest{Id: args[0]})
		if err != nil {
			return err
		}
		a.print(res.GetOperation(), func() { a.operated(res.GetOperation()) })
		return nil
	}}
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return c
}

// await follows an operation to its end. Ctrl-C ends the waiting, not the operation.
func (a *app) await(ctx context.Context, id string) (*maildispatchv1.Operation, error) {
	s, err := a.operations()
	if err != nil {
		return nil, err
	}
	stream, err := s.WatchOperation(ctx, &maildispatchv1.WatchOperationRequest{Id: id})
	var b *bar
	defer func() { b.end() }()
	for err == nil {
		var now *maildispatchv1.WatchOperationResponse
		now, err = stream.Recv()
		if a.grpcurl {
			return nil, nil
		}
		o := now.GetOperation()
		switch {
		case err != nil:
		case o.GetState() != maildispatchv1.OperationState_OPERATION_STATE_RUNNING:
			return o, nil
		default:
			if b == nil {
				b = a.bar(o.GetTotal(), func() string { return " mails" })
			}
			b.at(o.GetMatched())
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("operation %s goes on, look with: maildispatch operation show %s: %w", id, id, err)
	}
	return nil, err
}

// far is how far an operation is, in a few words.
func far(o *maildispatchv1.Operation) string {
	s := fmt.Sprint(o.GetMatched())
	if o.GetTotal() > 0 {
		s += fmt.Sprintf("/%d", o.GetTotal())
	}
	if o.GetFailed() > 0 {
		s += fmt.Sprintf(", %d not", o.GetFailed())
	}
	return s
}

// operated tells everything of an operation.
func (a *app) operated(o *maildispatchv1.Operation) {
	dry := ""
	if o.GetValidateOnly() {
		dry = ", which only counts,"
	}
	a.printf("%s%s is %s: %s came to, %d changed, %d could not be.\n", safe(o.GetAction()), dry, word(o.GetState()), plural(o.GetMatched(), "mail"), o.GetChanged(), o.GetFailed())
	a.printf("  began %s, ended %s; by %s: %s\n", clock(o.GetCreateTime()), clock(o.GetEndTime()), cmp.Or(safe(o.GetActor()), "somebody"), cmp.Or(safe(o.GetReason()), "no reason given"))
	if o.GetError() != "" {
		a.printf("  it cannot go on: %s\n", safe(o.GetError()))
	}
	for _, g := range o.GetFailures() {
		a.printf("  %s not: %s (%s), such as %s\n", plural(g.GetCount(), "mail"), safe(g.GetMessage()), safe(g.GetReason()), safe(strings.Join(g.GetIds(), " ")))
	}
}

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// token is the command of that name.
func (a *app) token() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make, list and revoke tokens"}
	var ended bool
	list := &cobra.Command{Use: "list", Short: "List tokens, without their secrets", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		s, err := a.access()
		if err != nil {
			return err
		}
		rows := [][]string{{"ID", "NAME", "ROLES", "TEAMS", "A DAY", "EXPIRES", "LAST USED"}}
		for req := (&maildispatchv1.ListTokensRequest{ShowEnded: ended}); ; {
			res, err := s.ListTokens(c.Context(), req)
			if err != nil {
				return err
			}
			for _, t := range res.GetTokens() {
				if a.json {
					a.print(t, nil)
				}
				rows = append(rows, []string{safe(t.Id), safe(t.Name), roles(t.Roles), teams(t.Teams, t.System), aDay(t), clock(t.ExpireTime), clock(t.LastUseTime)})
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
	list.Flags().BoolVar(&ended, "ended", false, "also those that were revoked or have expired")
	var (
		req         maildispatchv1.CreateTokenRequest
		as, kinds   []string
		ttl, reason string
	)
	add := &cobra.Command{Use: "create NAME", Short: "Make a token and print its secret, this once", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		for _, r := range as {
			n, err := fromWord("--role", maildispatchv1.Role(0), r)
			if err != nil {
				return err
			}
			req.Roles = append(req.Roles, maildispatchv1.Role(n))
		}
		for _, k := range kinds {
			n, err := fromWord("--kind", maildispatchv1.Kind(0), k)
			if err != nil {
				return err
			}
			req.Kinds = append(req.Kinds, maildispatchv1.Kind(n))
		}
		if ttl != "" {
			d, err := plain.Span(ttl)
			if err != nil {
				return usage("--ttl is a time such as 12h or 30d")
			}
			req.Ttl = durationpb.New(d)
		}
		s, err := a.access()
		if err != nil {
			return err
		}
		req.Name, req.Reason = args[0], reason
		res, err := s.CreateToken(c.Context(), &req)
		if err != nil {
			return err
		}
		a.print(res, func() {
			fmt.Fprintf(a.errs, "Token %s of %s, until %s. Nobody can read it again:\n", safe(res.GetInfo().GetId()), safe(args[0]), clock(res.GetInfo().GetExpireTime()))
			a.printf("%s\n", safe(res.GetSecret()))
		})
		return nil
	}}
	f := add.Flags()
	f.StringSliceVar(&as, "role", nil, "what its holder may do: send, read, admin")
	f.StringSliceVar(&req.Teams, "team", nil, "for which teams")
	f.BoolVar(&req.System, "system", false, "for all teams and the system itself")
	f.StringSliceVar(&kinds, "kind", nil, "mail of these kinds only")
	f.StringSliceVar(&req.MailServers, "server", nil, "mail through these mail servers only")
	f.Int64Var(&req.MailsPerDay, "mails-per-day", 0, "hands over at most so many mails in any 24 hours")
	f.Int64Var(&req.RecipientsPerDay, "recipients-per-day", 0, "hands over mail for at most so many recipients in any 24 hours")
	f.StringVar(&ttl, "ttl", "", "how long it holds: 12h, 30d (default 90d)")
	f.StringVar(&reason, "reason", "", "why, for the audit log")
	var why string
	revoke := &cobra.Command{Use: "revoke ID", Short: "End a token for good", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		if err := a.sure("Token %s is revoked.", safe(args[0])); err != nil {
			return err
		}
		s, err := a.access()
		if err != nil {
			return err
		}
		res, err := s.RevokeToken(c.Context(), &maildispatchv1.RevokeTokenRequest{Id: args[0], Reason: why})
		if err != nil {
			return err
		}
		a.print(res.GetInfo(), func() { a.printf("Token %s of %s is revoked.\n", safe(args[0]), safe(res.GetInfo().GetName())) })
		return nil
	}}
	revoke.Flags().StringVar(&why, "reason", "", "why, for the audit log")
	revoke.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	c.AddCommand(list, add, revoke)
	return c
}

func roles(rs []maildispatchv1.Role) string {
	var words []string
	for _, r := range rs {
		words = append(words, word(r))
	}
	return strings.Join(words, ",")
}

// aDay is the budget of a token.
func aDay(t *maildispatchv1.Token) string {
	var out []string
	if n := t.GetMailsPerDay(); n > 0 {
		out = append(out, fmt.Sprintf("%d mails", n))
	}
	if n := t.GetRecipientsPerDay(); n > 0 {
		out = append(out, fmt.Sprintf("%d recipients", n))
	}
	return strings.Join(out, ", ")
}

func teams(ts []string, system bool) string {
	if system {
		return "all"
	}
	return safe(strings.Join(ts, ","))
}

// audit is the command of that name.
func (a *app) audit() *cobra.Command {
	var actor, action, since, until, team string
	var limit int
	c := &cobra.Command{Use: "audit [MAIL SERVER|MAIL ID]", Short: "Say who did what, the newest first", Args: cobra.MaximumNArgs(1),
		Example: "  maildispatch audit billing --since 7d\n  maildispatch audit --action UpdateMailServer",
		RunE: func(c *cobra.Command, args []string) (err error) {
			req := &maildispatchv1.ListAuditRequest{Actor: actor, Action: action, PageSize: int32(min(limit, 500))}
			if len(args) == 1 {
				req.Target = args[0]
			}
			req.Team = ofTeam(team)
			if req.Since, err = moment("since", since, time.Now()); err != nil {
				return err
			}
			if req.Until, err = moment("until", until, time.Now()); err != nil {
				return err
			}
			s, err := a.access()
			if err != nil {
				return err
			}
			rows := [][]string{{"WHEN", "WHO", "WHAT", "ON", "WHY"}}
			for n := 0; n < limit; {
				res, err := s.ListAudit(c.Context(), req)
				if err != nil {
					return err
				}
				for _, r := range res.GetRows() {
					if n++; n > limit {
						break
					}
					if a.json {
						a.print(r, nil)
					}
					rows = append(rows, []string{clock(r.Time), safe(r.Actor), safe(r.Action), safe(r.Target), safe(r.Reason)})
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
	f := c.Flags()
	f.StringVar(&actor, "who", "", "only of this caller, as the log names it")
	f.StringVar(&action, "action", "", "only of this rpc, such as UpdateMailServer")
	f.StringVar(&team, "team", "", "only of this team; \"-\" = of the system")
	f.StringVar(&since, "since", "", "since: 2d, 2026-11-30")
	f.StringVar(&until, "until", "", "before")
	f.IntVarP(&limit, "limit", "n", 50, "at most so many")
	return c
}

// whoami is the command of that name.
func (a *app) whoami() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Say as whom the service knows the caller", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		s, err := a.access()
		if err != nil {
			return err
		}
		res, err := s.WhoAmI(c.Context(), &maildispatchv1.WhoAmIRequest{})
		if err != nil {
			return err
		}
		a.print(res, func() {
			who := safe(res.GetActor())
			if who == "" {
				who = "nobody: the service asks nobody"
			}
			a.printf("%s\nroles %s, teams %s\n", who, roles(res.GetRoles()), teams(res.GetTeams(), res.GetSystem()))
		})
		return nil
	}}
}

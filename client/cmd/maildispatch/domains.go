package main

import (
	"strings"

	"github.com/spf13/cobra"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// domains is the command of that name.
func (a *app) domains() *cobra.Command {
	c := &cobra.Command{Use: "domains", Short: "Say under which domains a team may send"}
	list := &cobra.Command{Use: "list", Short: "List the teams that are bound to domains", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		s, err := a.access()
		if err != nil {
			return err
		}
		rows := [][]string{{"TEAM", "DOMAINS", "SINCE"}}
		for req := (&maildispatchv1.ListSenderDomainsRequest{}); ; {
			res, err := s.ListSenderDomains(c.Context(), req)
			if err != nil {
				return err
			}
			for _, d := range res.GetSenderDomains() {
				if a.json {
					a.print(d, nil)
				}
				rows = append(rows, []string{safe(d.Team), safe(strings.Join(d.Domains, ", ")), clock(d.UpdateTime)})
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
	var reason string
	set := &cobra.Command{Use: "set TEAM [DOMAIN...]", Short: "Bind a team to domains, in place of those it had; without one it is free", Args: cobra.MinimumNArgs(1),
		Example: "  maildispatch domains set billing x.example '*.x.example'",
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.access()
			if err != nil {
				return err
			}
			res, err := s.SetSenderDomains(c.Context(), &maildispatchv1.SetSenderDomainsRequest{Team: args[0], Domains: args[1:], Reason: reason})
			if err != nil {
				return err
			}
			a.print(res.GetSenderDomains(), func() {
				if len(res.GetSenderDomains().GetDomains()) == 0 {
					a.printf("Team %s may send under any domain.\n", safe(args[0]))
					return
				}
				a.printf("Team %s may send under %s.\n", safe(args[0]), safe(strings.Join(res.GetSenderDomains().GetDomains(), ", ")))
			})
			return nil
		}}
	set.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	c.AddCommand(list, set)
	return c
}

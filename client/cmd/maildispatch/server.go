package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// server is the command of that name.
func (a *app) server() *cobra.Command {
	c := &cobra.Command{Use: "server", Short: "Keep mail servers"}
	c.AddCommand(a.serverList(), a.serverShow(), a.serverAdd(), a.serverEdit(), a.serverTest(), a.serverPause(), a.serverResume(), a.serverDefault(), a.serverDelete())
	return c
}

func (a *app) serverList() *cobra.Command {
	var deleted bool
	var team string
	c := &cobra.Command{Use: "list", Short: "List mail servers", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		req := &maildispatchv1.ListMailServersRequest{ShowDeleted: deleted, Team: ofTeam(team)}
		rows := [][]string{{"NAME", "TEAM", "MODE", "STATE", "TO", "FROM"}}
		for m, err := range s.MailServers(c.Context(), req) {
			if err != nil {
				return err
			}
			if a.json {
				a.print(m, nil)
				continue
			}
			to := "this machine"
			if m.Smtp != nil {
				to = fmt.Sprintf("%s:%d", m.Smtp.Host, m.Smtp.Port)
			}
			rows = append(rows, []string{safe(m.Name), safe(m.Team), word(m.Mode), state(m), safe(to), safe(m.From)})
		}
		if !a.json {
			a.table(rows)
		}
		return nil
	}}
	c.Flags().BoolVar(&deleted, "deleted", false, "deleted ones as well")
	c.Flags().StringVar(&team, "team", "", "only this team's; \"-\" = only the system's")
	return c
}

// state is what a mail server can be used for just now.
func state(m *maildispatchv1.MailServer) string {
	var words []string
	switch {
	case m.DeleteTime != nil:
		words = append(words, "deleted")
	case m.Status == maildispatchv1.MailServer_STATUS_UNAVAILABLE:
		words = append(words, "unavailable")
	case m.PauseUntil != nil && m.PauseUntil.AsTime().After(time.Now()):
		words = append(words, "paused until "+clock(m.PauseUntil))
	case m.Health.GetState() == maildispatchv1.Health_STATE_SUSPENDED:
		words = append(words, "suspended: "+safe(m.Health.SuspendedReason))
	default:
		words = append(words, "ok")
	}
	if m.GetIsDefault() {
		words = append(words, "default")
	}
	return strings.Join(words, ", ")
}

func (a *app) serverShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show a mail server, as JSON", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		res, err := s.GetMailServer(c.Context(), &maildispatchv1.GetMailServerRequest{Name: args[0]})
		if err != nil {
			return err
		}
		a.print(res.GetMailServer(), func() { a.printf("%s\n", indented(res.GetMailServer())) })
		return nil
	}}
}

// serverFlags are what of a mail server can be set.
type serverFlags struct {
	team, display, from, mode, host, encryption, user, passwordFile, ca, fallback, status string
	port                                                                                  int32
	perMinute, perDay, connections                                                        int32
}

func (x *serverFlags) add(c *cobra.Command, isNew bool) {
	f := c.Flags()
	if isNew {
		f.StringVar(&x.team, "team", "", "owner; empty = the whole system")
	}
	f.StringVar(&x.display, "display-name", "", "what it is for")
	f.StringVar(&x.from, "from", "", "sender of its mail: \"Shop <shop@shop.example>\"")
	f.StringVar(&x.mode, "mode", "", "php (sent while the caller waits) or daemon (queued)")
	f.StringVar(&x.host, "host", "", "host; without one it is the mail program of the service's machine")
	f.Int32Var(&x.port, "port", 0, "port")
	f.StringVar(&x.encryption, "encryption", "", "starttls, tls or none")
	f.StringVar(&x.user, "user", "", "login name")
	f.StringVar(&x.passwordFile, "password-file", "", "file with its password; - = piped in")
	f.StringVar(&x.ca, "server-ca", "", "PEM file of a private authority of its certificate")
	f.StringVar(&x.fallback, "fallback", "", "mail server that mail goes on through while this one is down")
	f.StringVar(&x.status, "status", "", "available or unavailable")
	f.Int32Var(&x.perMinute, "per-minute", 0, "mails a minute, at most")
	f.Int32Var(&x.perDay, "per-day", 0, "mails a day, at most")
	f.Int32Var(&x.connections, "connections", 0, "connections, at most")
}

// server is the mail server that the flags describe, and the paths that were given.
func (x *serverFlags) server(a *app, c *cobra.Command, name string) (m *maildispatchv1.MailServer, paths []string, err error) {
	m = &maildispatchv1.MailServer{Name: name, Team: x.team, DisplayName: x.display, From: x.from, Fallback: x.fallback}
	smtp, limits := &maildispatchv1.Smtp{Host: x.host, Port: x.port, Username: x.user}, &maildispatchv1.Limits{MailsPerMinute: x.perMinute, MailsPerDay: x.perDay, MaxConnections: x.connections}
	for flag, path := range map[string]string{"display-name": "display_name", "from": "from", "mode": "mode", "host": "smtp.host", "port": "smtp.port", "encryption": "smtp.encryption",
		"user": "smtp.username", "password-file": "smtp.password", "server-ca": "smtp.ca_pem", "fallback": "fallback", "status": "status", "per-minute": "limits.mails_per_minute",
		"per-day": "limits.mails_per_day", "connections": "limits.max_connections"} {
		if c.Flags().Changed(flag) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	if x.mode != "" {
		n, err := fromWord("--mode", maildispatchv1.Mode(0), x.mode)
		if err != nil {
			return nil, nil, err
		}
		m.Mode = maildispatchv1.Mode(n)
	}
	if x.status != "" {
		n, err := fromWord("--status", maildispatchv1.MailServer_Status(0), x.status)
		if err != nil {
			return nil, nil, err
		}
		m.Status = maildispatchv1.MailServer_Status(n)
	}
	if x.encryption != "" {
		n, err := fromWord("--encryption", maildispatchv1.Smtp_Encryption(0), x.encryption)
		if err != nil {
			return nil, nil, err
		}
		smtp.Encryption = maildispatchv1.Smtp_Encryption(n)
	}
	if x.passwordFile != "" {
		b, err := a.read(x.passwordFile)
		if err != nil {
			return nil, nil, usageError{err}
		}
		smtp.Password = strings.TrimRight(string(b), "\r\n")
	}
	if x.ca != "" {
		b, err := os.ReadFile(x.ca)
		if err != nil {
			return nil, nil, usageError{err}
		}
		smtp.CaPem = string(b)
	}
	has := func(prefix string) bool {
		return slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, prefix) })
	}
	if has("smtp.") {
		m.Smtp = smtp
	}
	if has("limits.") {
		m.Limits = limits
	}
	return m, paths, nil
}

func (a *app) serverAdd() *cobra.Command {
	var x serverFlags
	var isDefault bool
	c := &cobra.Command{Use: "add NAME", Short: "Save a new mail server", Args: cobra.ExactArgs(1),
		Example: "  maildispatch server add billing --host smtp.shop.example --port 587 --encryption starttls --user billing \\\n    --password-file /run/secrets/smtp --from \"Shop <billing@shop.example>\" --mode php",
		RunE: func(c *cobra.Command, args []string) error {
			m, _, err := x.server(a, c, args[0])
			if err != nil {
				return err
			}
			if m.Type = maildispatchv1.MailServer_TYPE_LOCALHOST; m.Smtp != nil {
				m.Type = maildispatchv1.MailServer_TYPE_SMTP
			}
			if isDefault {
				m.IsDefault = &isDefault
			}
			s, err := a.service()
			if err != nil {
				return err
			}
			res, err := s.CreateMailServer(c.Context(), &maildispatchv1.CreateMailServerRequest{MailServer: m})
			if err != nil {
				return err
			}
			a.print(res.GetMailServer(), func() {
				a.printf("Mail server %s is saved. Try it with: maildispatch server test %s\n", safe(args[0]), safe(args[0]))
			})
			return nil
		}}
	x.add(c, true)
	c.Flags().BoolVar(&isDefault, "default", false, "the default of its team, or of the system")
	return c
}

func (a *app) serverEdit() *cobra.Command {
	var x serverFlags
	c := &cobra.Command{Use: "edit NAME", Short: "Change a mail server", Args: cobra.ExactArgs(1),
		Example: "  maildispatch server edit billing --password-file -\n  maildispatch server edit billing --fallback backup",
		RunE: func(c *cobra.Command, args []string) error {
			m, paths, err := x.server(a, c, args[0])
			if err != nil {
				return err
			}
			if len(paths) == 0 {
				return usage("say what to change")
			}
			return a.update(c, m, "changed", paths...)
		}}
	x.add(c, false)
	return c
}

// update changes the named fields of a mail server.
func (a *app) update(c *cobra.Command, m *maildispatchv1.MailServer, did string, paths ...string) error {
	s, err := a.service()
	if err != nil {
		return err
	}
	res, err := s.UpdateMailServer(c.Context(), &maildispatchv1.UpdateMailServerRequest{MailServer: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
	if err != nil {
		return err
	}
	a.print(res.GetMailServer(), func() { a.printf("Mail server %s is %s.\n", safe(m.Name), did) })
	return nil
}

func (a *app) serverTest() *cobra.Command {
	var to string
	c := &cobra.Command{Use: "test NAME", Short: "Try a mail server on the path a mail takes; no mail leaves", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		res, err := s.TestMailServer(c.Context(), &maildispatchv1.TestMailServerRequest{Name: args[0], ProbeRecipient: to})
		if err != nil {
			return err
		}
		a.print(res, func() {
			marks := map[maildispatchv1.TestStep_Outcome]string{maildispatchv1.TestStep_OUTCOME_OK: "ok", maildispatchv1.TestStep_OUTCOME_WARNING: "look",
				maildispatchv1.TestStep_OUTCOME_FAILED: "FAILED", maildispatchv1.TestStep_OUTCOME_SKIPPED: "-"}
			for _, x := range res.GetSteps() {
				a.printf("%-7s %-10s %s\n", marks[x.Outcome], word(x.Kind), safe(x.Detail))
				if x.Hint != "" {
					a.printf("%-18s %s\n", "", safe(x.Hint))
				}
			}
			a.printf("%s\n", safe(res.GetMessage()))
		})
		if !res.GetSuccess() && !a.grpcurl {
			return errNotAll
		}
		return nil
	}}
	c.Flags().StringVar(&to, "to", "", "also ask whether it would take mail for this address")
	return c
}

func (a *app) serverPause() *cobra.Command {
	var forTime, until string
	c := &cobra.Command{Use: "pause NAME", Short: "Let a mail server take mail and send none for a while", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		m := &maildispatchv1.MailServer{Name: args[0]}
		if until != "" {
			t, err := moment("until", until, time.Now())
			if err != nil {
				return err
			}
			m.PauseUntil = t
		} else {
			d, err := plain.Span(forTime)
			if err != nil {
				return usage("--for is a time such as 90m or 2d")
			}
			m.PauseUntil = timestamppb.New(time.Now().Add(d))
		}
		return a.update(c, m, "paused until "+clock(m.PauseUntil), "pause_until")
	}}
	c.Flags().StringVar(&forTime, "for", "1h", "how long: 90m, 2d")
	c.Flags().StringVar(&until, "until", "", "until then, in place of --for: 2026-11-30 18:00")
	return c
}

func (a *app) serverResume() *cobra.Command {
	return &cobra.Command{Use: "resume NAME", Short: "End a pause", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return a.update(c, &maildispatchv1.MailServer{Name: args[0]}, "sending again", "pause_until")
	}}
}

func (a *app) serverDefault() *cobra.Command {
	return &cobra.Command{Use: "default NAME", Short: "Make a mail server the default of its team, or of the system", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		res, err := s.SetDefaultMailServer(c.Context(), &maildispatchv1.SetDefaultMailServerRequest{Name: args[0]})
		if err != nil {
			return err
		}
		a.print(res, func() {
			a.printf("Mail server %s is the default.", safe(args[0]))
			if was := res.GetPreviousDefault().GetName(); was != "" {
				a.printf(" Before it was %s.", safe(was))
			}
			a.printf("\n")
		})
		return nil
	}}
}

func (a *app) serverDelete() *cobra.Command {
	var force bool
	c := &cobra.Command{Use: "delete NAME", Short: "Delete a mail server; its name stays taken", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		if err := a.sure("Mail server %s is deleted.", safe(args[0])); err != nil {
			return err
		}
		s, err := a.service()
		if err != nil {
			return err
		}
		res, err := s.DeleteMailServer(c.Context(), &maildispatchv1.DeleteMailServerRequest{Name: args[0], Force: force})
		if err != nil {
			return err
		}
		a.print(res, func() {
			a.printf("Mail server %s is deleted; %s held.\n", safe(args[0]), plural(res.GetHeldMails(), "mail"))
		})
		return nil
	}}
	c.Flags().BoolVar(&force, "force", false, "also with unfinished mail, which is held then")
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return c
}

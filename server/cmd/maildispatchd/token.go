package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server"
)

const tokenUse = "token: write `maildispatchd token create --name NAME --roles send,read,admin --teams A,B`, `token list` or `token revoke ID`"

// token makes, lists and revokes tokens: through the socket of the running service, else in the
// database itself.
func token(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(tokenUse)
	}
	verb, args := args[0], args[1:]
	if isHelp(verb) {
		fmt.Println(tokenUse)
		return flag.ErrHelp
	}
	id := ""
	if verb == "revoke" && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		id, args = args[0], args[1:]
	}
	var name, roles, teams, kinds, servers, reason string
	var system, ended bool
	var ttl time.Duration
	var mails, recipients int64
	c, err := configOf("token "+verb, args, func(fs *flag.FlagSet) {
		switch verb {
		case "create":
			fs.StringVar(&name, "name", "", "whose it is")
			fs.StringVar(&roles, "roles", "", "what its holder may do: some of send,read,admin")
			fs.StringVar(&teams, "teams", "", "for which teams: A,B")
			fs.BoolVar(&system, "system", false, "for all teams and the system itself")
			fs.StringVar(&kinds, "kinds", "", "hands over only mail of these kinds: agent_message,invoice,work_order,bulk,other")
			fs.StringVar(&servers, "mail-servers", "", "hands over mail only through these mail servers: A,B")
			fs.Int64Var(&mails, "mails-per-day", 0, "hands over at most so many mails in any 24 hours; 0 = no limit of its own")
			fs.Int64Var(&recipients, "recipients-per-day", 0, "the same of recipients")
			fs.DurationVar(&ttl, "ttl", 90*24*time.Hour, "how long it holds, up to 366 days")
		case "list":
			fs.BoolVar(&ended, "ended", false, "also those that were revoked or have expired")
		}
		fs.StringVar(&reason, "reason", "", "why, for the audit log")
	})
	if err != nil {
		return err
	}
	ctx, admin, done, err := accessAdmin(ctx, c, false)
	if err != nil {
		return err
	}
	defer done()
	switch verb {
	case "create":
		r := &pb.CreateTokenRequest{Name: name, Teams: words(teams), System: system, MailServers: words(servers), MailsPerDay: mails, RecipientsPerDay: recipients, Ttl: durationpb.New(ttl), Reason: reason}
		for _, w := range words(roles) {
			r.Roles = append(r.Roles, pb.Role(pb.Role_value["ROLE_"+strings.ToUpper(w)]))
		}
		for _, w := range words(kinds) {
			r.Kinds = append(r.Kinds, pb.Kind(pb.Kind_value["KIND_"+strings.ToUpper(w)]))
		}
		made, err := admin.CreateToken(ctx, r)
		if err != nil {
			return tokenFault(err)
		}
		// The token alone goes to standard output, so that it can go into a file.
		fmt.Fprintf(os.Stderr, "token %s of %s, until %s; it is shown this once\n", made.Info.Id, made.Info.Name, made.Info.ExpireTime.AsTime().Format(time.RFC3339))
		fmt.Println(made.Secret)
		return nil
	case "list":
		return listTokens(ctx, admin, ended)
	case "revoke":
		t, err := admin.RevokeToken(ctx, &pb.RevokeTokenRequest{Id: id, Reason: reason})
		if err != nil {
			return tokenFault(err)
		}
		fmt.Printf("token %s of %s was revoked at %s\n", t.Info.Id, t.Info.Name, t.Info.RevokeTime.AsTime().Format(time.RFC3339))
		return nil
	}
	return errors.New(tokenUse)
}

func listTokens(ctx context.Context, admin pb.AccessAdminServer, ended bool) error {
	for page := ""; ; {
		r, err := admin.ListTokens(ctx, &pb.ListTokensRequest{PageSize: 500, PageToken: page, ShowEnded: ended})
		if err != nil {
			return tokenFault(err)
		}
		for _, t := range r.Tokens {
			var can []string
			for _, role := range t.Roles {
				can = append(can, strings.ToLower(strings.TrimPrefix(role.String(), "ROLE_")))
			}
			of := strings.Join(t.Teams, ",")
			if t.System {
				of = "(all)"
			}
			state := "until " + t.ExpireTime.AsTime().Format(time.RFC3339)
			if t.RevokeTime != nil {
				state = "revoked " + t.RevokeTime.AsTime().Format(time.RFC3339)
			}
			fmt.Printf("%s  %-20s %-15s %-20s %s%s\n", t.Id, t.Name, strings.Join(can, ","), of, state, budgetOf(t))
		}
		if page = r.NextPageToken; page == "" {
			return nil
		}
	}
}

// budgetOf says what a token may hand over in a day, where it has a budget of its own.
func budgetOf(t *pb.Token) (text string) {
	if t.MailsPerDay > 0 {
		text += fmt.Sprintf(", %d mails a day", t.MailsPerDay)
	}
	if t.RecipientsPerDay > 0 {
		text += fmt.Sprintf(", %d recipients a day", t.RecipientsPerDay)
	}
	return text
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func tokenFault(err error) error {
	return failed{fmt.Errorf("token: %s", status.Convert(err).Message())}
}

// overSocket asks the running service.
type overSocket struct {
	pb.UnimplementedAccessAdminServer
	client pb.AccessAdminClient
}

func (o overSocket) CreateToken(ctx context.Context, r *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	return o.client.CreateToken(ctx, r)
}

func (o overSocket) ListTokens(ctx context.Context, r *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	return o.client.ListTokens(ctx, r)
}

func (o overSocket) RevokeToken(ctx context.Context, r *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	return o.client.RevokeToken(ctx, r)
}

func (o overSocket) ResealSecrets(ctx context.Context, r *pb.ResealSecretsRequest) (*pb.ResealSecretsResponse, error) {
	return o.client.ResealSecrets(ctx, r)
}

// accessAdmin is the running service, or the database where none runs; with secrets those can
// be sealed anew.
func accessAdmin(ctx context.Context, c server.Config, secrets bool) (context.Context, pb.AccessAdminServer, func(), error) {
	if path := c.Socket(); path != "" {
		if probe, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = probe.Close() // it only asked whether somebody is there
			conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return nil, nil, nil, err
			}
			tctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			return tctx, overSocket{client: pb.NewAccessAdminClient(conn)}, func() { cancel(); _ = conn.Close() }, nil
		}
	}
	tctx, admin, end, err := server.LocalAdmin(ctx, c, secrets)
	return tctx, admin, func() { _ = end() }, err
}

package api_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client/clienttest"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestAgreesAboutCallers: the service in memory refuses whom the service refuses, with the same
// code and reason, by every rpc, role and team. That somebody else's object is not there the
// service in memory does not say.
func TestAgreesAboutCallers(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.server("its-server", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Team = "t1" })
	fake := clienttest.New(t)
	fake.AddMailServer(&pb.MailServer{Name: "its-server", Team: "t1", Mode: pb.Mode_MODE_DAEMON})
	conn, err := grpc.NewClient(clienttest.Target, fake.DialOption(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	memory := &guardedRig{rig: r.rig, conn: conn}
	tokens := map[string]string{"nobody": "", "revoked": "md_nothing"}
	for role, name := range map[store.Role]pb.Role{store.RoleSend: pb.Role_ROLE_SEND, store.RoleRead: pb.Role_ROLE_READ, store.RoleAdmin: pb.Role_ROLE_ADMIN} {
		for _, teams := range []string{"t2", "t1 t2", "system"} {
			p := clienttest.Principal{Roles: []pb.Role{name}, Teams: strings.Fields(teams)}
			if teams == "system" {
				p = clienttest.Principal{Roles: p.Roles, System: true}
			}
			secret, _ := r.token("", role, func(x *store.Token) { x.Teams, x.System = p.Teams, p.System })
			fake.Allow(secret, p)
			tokens[teams+" "+string(role)] = secret
		}
	}
	fake.Allow(tokens["revoked"], clienttest.Principal{System: true, Roles: []pb.Role{pb.Role_ROLE_ADMIN}})
	fake.Revoke(tokens["revoked"])
	refusal := func(err error) string {
		for _, reason := range []string{pb.ReasonTokenRefused, pb.ReasonRoleMissing, pb.ReasonTeamNotYours} {
			if reasonOf(err) == reason {
				return status.Code(err).String() + " " + reason
			}
		}
		switch verdict(err) {
		case "UNAUTHENTICATED": // from the tap it brings no reason
			return "Unauthenticated " + pb.ReasonTokenRefused
		case "PERMISSION_DENIED":
			return err.Error()
		}
		return "let in"
	}
	const none = "01890000-0000-7000-8000-000000000000"
	asked := 0
	for short, request := range requests {
		if !strings.HasPrefix(short, "Dispatch/") && !strings.HasPrefix(short, "MailServerAdmin/") {
			continue
		}
		method := "/maildispatch.v1." + short
		request = strings.NewReplacer("$server", "its-server", "$mail", none, "$batch", none).Replace(request)
		for who, secret := range tokens {
			for _, text := range []string{request, strings.ReplaceAll(request, `"team": "t1"`, `"team": ""`)} {
				asked++
				want, got := refusal(r.call(method, secret, text)), refusal(memory.call(method, secret, text))
				if got != want {
					t.Errorf("%s %s by %s: the service in memory says %s, the service %s", short, text, who, got, want)
				}
			}
		}
	}
	if asked < 500 {
		t.Errorf("got %d calls, want at least 700", asked)
	}
}

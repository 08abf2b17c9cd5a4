package api_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

var update = flag.Bool("update", false, "write the table of proto/README.md anew")

// guardedRig is a rig whose callers are asked who they are.
type guardedRig struct {
	*rig
	book *access.Book
	grpc *grpc.Server
	conn *grpc.ClientConn
}

func newGuardedRig(t testing.TB, dsn string) *guardedRig {
	t.Helper()
	r := &guardedRig{rig: newRig(t, dsn, nil)}
	var err error
	if r.book, err = access.NewBook(ctx(t), access.Config{Store: r.store, Mode: access.Required}); err != nil {
		t.Fatal(err)
	}
	r.conn = r.serve(r.book.Guard(), func(g *grpc.Server) {
		pb.RegisterAccessAdminServer(g, r.rig.api.AccessAdmin(r.store, func(c context.Context) { _ = r.book.Read(c) }, r.book.On))
		healthpb.RegisterHealthServer(g, health.NewServer())
		reflection.Register(g)
		r.grpc = g
	})
	return r
}

// token makes a token of "n" for a team.
func (r *guardedRig) token(team string, role store.Role, change ...func(*store.Token)) (secret, id string) {
	r.t.Helper()
	secret, id, hash := access.NewSecret()
	tok := &store.Token{ID: id, Name: "n", Hash: hash, Roles: []store.Role{role}, Teams: []string{team}, CreateTime: time.Now(), ExpireTime: time.Now().Add(time.Hour)}
	for _, c := range change {
		c(tok)
	}
	if err := r.store.CreateToken(ctx(r.t), tok, store.Audit{Actor: "test"}); err != nil {
		r.t.Fatal(err)
	}
	if err := r.book.Read(ctx(r.t)); err != nil {
		r.t.Fatal(err)
	}
	return secret, id
}

func system(t *store.Token) { t.System, t.Teams = true, nil }

// with is a context that carries a token.
func with(c context.Context, secret string) context.Context {
	if secret == "" {
		return c
	}
	return metadata.AppendToOutgoingContext(c, "authorization", "Bearer "+secret)
}

// requests has a request of team t1 for every method, which the right caller is not refused.
// $server and $mail are a mail server of t1, and a held mail of it that "n" has handed over.
var requests = map[string]string{
	"MailServerAdmin/ListMailServers":       `{"team": "t1"}`,
	"MailServerAdmin/GetMailServer":         `{"name": "$server"}`,
	"MailServerAdmin/CreateMailServer":      `{"mail_server": {"name": "new-one", "team": "t1", "type": "TYPE_SMTP", "mode": "MODE_DAEMON", "from": "a@x.example", "smtp": {"host": "mx.example", "port": 587, "encryption": "ENCRYPTION_STARTTLS", "username": "u", "password": "p"}}, "validate_only": true}`,
	"MailServerAdmin/UpdateMailServer":      `{"mail_server": {"name": "$server", "display_name": "x"}}`,
	"MailServerAdmin/DeleteMailServer":      `{"name": "$server", "force": true}`,
	"MailServerAdmin/UndeleteMailServer":    `{"name": "$server"}`,
	"MailServerAdmin/SetDefaultMailServer":  `{"name": "$server"}`,
	"MailServerAdmin/TestMailServer":        `{"name": "$server"}`,
	"MailServerAdmin/RunBatch":              `{"mail_server": "$server"}`,
	"Dispatch/Send":                         `{"options": {"team": "t1", "mail_server": "$server"}, "message": {"to": ["a@y.example"], "subject": "s", "text": "x"}, "validate_only": true}`,
	"Dispatch/SendBatch":                    `{"options": {"options": {"team": "t1", "mail_server": "$server"}}, "items": [{"message": {"to": ["a@y.example"], "subject": "s", "text": "x"}}]}`,
	"Dispatch/SendStream":                   `{"options": {"options": {"team": "t1", "mail_server": "$server"}}, "items": [{"message": {"to": ["a@y.example"], "subject": "s", "text": "x"}}]}`,
	"Dispatch/UploadAttachment":             `{"header": {"team": "t1"}}`,
	"Dispatch/GetBatch":                     `{"team": "t1", "batch_id": "$batch"}`,
	"Dispatch/GetMail":                      `{"id": "$mail"}`,
	"Dispatch/DownloadMail":                 `{"id": "$mail"}`,
	"Dispatch/ListDueOutMails":              `{"filter": {"team": "t1"}}`,
	"Dispatch/ListArchivedMails":            `{"filter": {"team": "t1"}}`,
	"Dispatch/RetryMails":                   `{"filter": {"team": "t1"}, "validate_only": true}`,
	"Dispatch/CancelMails":                  `{"filter": {"team": "t1"}, "validate_only": true}`,
	"Dispatch/HoldMails":                    `{"filter": {"team": "t1"}, "validate_only": true}`,
	"Dispatch/ReleaseMails":                 `{"filter": {"team": "t1"}, "validate_only": true}`,
	"Dispatch/MoveMails":                    `{"filter": {"team": "t1"}, "mail_server": "$server", "validate_only": true}`,
	"Dispatch/ResolveMail":                  `{"id": "$mail", "resolution": "RESOLUTION_DELIVERED", "reason": "r"}`,
	"Dispatch/ResendMail":                   `{"id": "$mail", "reason": "r"}`,
	"Dispatch/WatchMails":                   `{"filter": {"team": "t1"}}`,
	"Dispatch/GetQueueStats":                `{"team": "t1"}`,
	"AccessAdmin/CreateToken":               `{"name": "x", "roles": ["ROLE_SEND"], "teams": ["t1"]}`,
	"AccessAdmin/ListTokens":                `{}`,
	"AccessAdmin/ListAudit":                 `{"team": "t1"}`,
	"AccessAdmin/RevokeToken":               `{"id": "$token"}`,
	"AccessAdmin/WhoAmI":                    `{}`,
	"AccessAdmin/GetServiceInfo":            `{}`,
	"Health/Check":                          `{}`,
	"Health/Watch":                          `{}`,
	"Health/List":                           `{}`,
	"ServerReflection/ServerReflectionInfo": `{"list_services": ""}`,
}

// call makes one call of a method, and returns the code of its first answer.
func (r *guardedRig) call(method, secret, request string) error {
	r.t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(method[1:], "/", ".")))
	if err != nil {
		r.t.Fatal(err)
	}
	m := d.(protoreflect.MethodDescriptor)
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if err := protojson.Unmarshal([]byte(request), in); err != nil {
		r.t.Fatalf("%s: %v", method, err)
	}
	c, cancel := context.WithCancel(with(ctx(r.t), secret))
	defer cancel()
	s, err := r.conn.NewStream(c, &grpc.StreamDesc{ClientStreams: m.IsStreamingClient(), ServerStreams: m.IsStreamingServer()}, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.RecvMsg(out); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// words of the table.
func verdict(err error) string {
	switch c := status.Code(err); c {
	case codes.Unauthenticated:
		return "UNAUTHENTICATED"
	case codes.PermissionDenied:
		return "PERMISSION_DENIED"
	case codes.NotFound:
		return "NOT_FOUND"
	case codes.Unimplemented, codes.Internal, codes.Unknown, codes.Unavailable:
		return c.String()
	}
	return "allowed"
}

var columns = []string{"no token", "expired", "revoked", "wrong role", "wrong team", "right"}

// TestMatrix: every method of a server, called by each kind of caller. The table that comes of
// it stands in proto/README.md; -update writes it.
func TestMatrix(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	expired, _ := r.token("t1", store.RoleAdmin, system, func(x *store.Token) { x.ExpireTime = time.Now().Add(-time.Minute) })
	revoked, id := r.token("t1", store.RoleAdmin, system)
	if _, err := r.store.RevokeToken(ctx(t), id, store.Audit{Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	// Every kind of token there is: team, role.
	tokens := map[string]string{}
	for _, role := range []store.Role{store.RoleSend, store.RoleRead, store.RoleAdmin} {
		tokens["t1 "+string(role)], _ = r.token("t1", role)
		tokens["t2 "+string(role)], _ = r.token("t2", role)
		tokens["system "+string(role)], _ = r.token("", role, system)
	}
	var table strings.Builder
	fmt.Fprintf(&table, "| rpc | role | %s |\n| --- | --- |%s\n", strings.Join(columns, " | "), strings.Repeat(" --- |", len(columns)))
	n := 0
	services := r.grpc.GetServiceInfo()
	for _, service := range slices.Sorted(maps.Keys(services)) {
		methods := slices.SortedFunc(slices.Values(services[service].Methods), func(a, b grpc.MethodInfo) int { return strings.Compare(a.Name, b.Name) })
		for _, m := range methods {
			if strings.HasSuffix(service, "v1alpha.ServerReflection") {
				continue // the same under its older name
			}
			n++
			method := "/" + service + "/" + m.Name
			short := service[strings.LastIndex(service, ".")+1:] + "/" + m.Name
			request, ok := requests[short]
			if !ok {
				t.Fatalf("%s has no request here", short)
			}
			pol, _ := access.PolicyOf(method)
			name := fmt.Sprintf("server-%d", n)
			r.server(name, pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Team = "t1" })
			mail, batch := r.held(tokens["t1 send"], name)
			_, token := r.token("t1", store.RoleSend)
			request = strings.NewReplacer("$server", name, "$mail", mail, "$batch", batch, "$token", token).Replace(request)
			right, wrongRole, wrongTeam := callersOf(pol)
			got := []string{verdict(r.call(method, "", request)), verdict(r.call(method, expired, request)), verdict(r.call(method, revoked, request)), "-", "-"}
			if wrongRole != "" {
				got[3] = verdict(r.call(method, tokens[wrongRole], request))
			}
			if wrongTeam != "" {
				got[4] = verdict(r.call(method, tokens[wrongTeam], request))
			}
			got = append(got, verdict(r.call(method, tokens[right], request)))
			if want := wanted(pol, got[4]); !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", short, got, want)
			}
			fmt.Fprintf(&table, "| %s | %s | %s |\n", short, roleWords(pol), strings.Join(got, " | "))
		}
	}
	if n < 35 {
		t.Errorf("got %d methods, want at least 35", n)
	}
	publish(t, table.String())
}

// callersOf are kinds of tokens for a policy: the least that is right, one that lacks the role,
// and the right one of another team; "" where there is none.
func callersOf(p *access.Policy) (right, wrongRole, wrongTeam string) {
	switch {
	case p.GetOpen(), len(p.GetRoles()) == 0:
		return "t2 send", "", ""
	case p.GetSystem():
		return "system admin", "system read", "t1 admin"
	}
	word := func(r pb.Role) string { return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_")) }
	least := word(p.GetRoles()[0])
	for _, r := range []pb.Role{pb.Role_ROLE_READ, pb.Role_ROLE_SEND} {
		if !slices.Contains(p.GetRoles(), r) {
			wrongRole = "t1 " + word(r)
		}
	}
	return "t1 " + least, wrongRole, "t2 " + least
}

// wanted is what a policy says. Of a foreign team both words are right: PERMISSION_DENIED where
// the request names it, NOT_FOUND where it is the object's.
func wanted(p *access.Policy, foreign string) []string {
	const un, denied = "UNAUTHENTICATED", "PERMISSION_DENIED"
	switch {
	case p.GetOpen():
		return []string{"allowed", "allowed", "allowed", "-", "-", "allowed"}
	case len(p.GetRoles()) == 0:
		return []string{un, un, un, "-", "-", "allowed"}
	case p.GetSystem():
		return []string{un, un, un, denied, denied, "allowed"}
	}
	team := "NOT_FOUND"
	if p.GetTeam() != "" && !(p.GetTeam() == "mail_server.team" && !p.GetOwnTeam()) {
		// TestMailServer takes a name, too
		team = denied
	}
	role := denied
	if len(p.GetRoles()) == 2 {
		role = "-"
	}
	_ = foreign
	return []string{un, un, un, role, team, "allowed"}
}

func roleWords(p *access.Policy) string {
	switch {
	case p.GetOpen():
		return "nobody is asked"
	case p.GetSystem():
		return "system admin"
	case len(p.GetRoles()) == 0:
		return "any"
	}
	words := []string{}
	for _, r := range p.GetRoles() {
		words = append(words, strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_")))
	}
	return strings.Join(words, ", ")
}

// held hands over a mail that is held.
func (r *guardedRig) held(secret, server string) (id, batch string) {
	r.t.Helper()
	s, err := pb.NewDispatchClient(r.conn).SendStream(with(ctx(r.t), secret))
	if err != nil {
		r.t.Fatal(err)
	}
	err = s.Send(&pb.SendStreamRequest{Options: &pb.BatchOptions{Options: &pb.SendOptions{MailServer: server, Hold: true}},
		Items: []*pb.BatchItem{{Message: message("a@y.example")}}})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		r.t.Fatal(err)
	}
	ans, err := s.Recv()
	if err != nil || ans.MailId == "" {
		r.t.Fatalf("got %v, %v, want a mail", ans, err)
	}
	if _, err := s.Recv(); err != io.EOF {
		r.t.Fatal(err)
	}
	return ans.MailId, ans.BatchId
}

// publish holds a table against the one between the marks of proto/README.md, or writes it.
func publish(t *testing.T, table string) {
	t.Helper()
	const path, begin, end = "../../../proto/README.md", "<!-- matrix -->\n", "<!-- end of matrix -->"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	text := before + begin + "\n" + table + "\n" + end + after
	if text == string(b) || t.Failed() {
		return
	}
	if !*update {
		t.Fatalf("%s has another table: write it with `go test ./server/internal/api -run TestMatrix -update`", path)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestForeignIsNotThere: what belongs to another team, or to another sender of the same team,
// is told by no word and no time from what does not exist.
func TestForeignIsNotThere(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.server("theirs", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Team = "t1" })
	theirs, _ := r.token("t1", store.RoleSend)
	mail, _ := r.held(theirs, "theirs")
	otherTeam, _ := r.token("t2", store.RoleAdmin)
	otherName, _ := r.token("t1", store.RoleSend, func(x *store.Token) { x.Name = "another" })
	const noMail, noServer = "01890000-0000-7000-8000-000000000000", "nobody"
	for _, c := range []struct {
		who, method, request, own, none string
	}{
		{otherTeam, "/maildispatch.v1.Dispatch/GetMail", `{"id": "%s"}`, mail, noMail},
		{otherTeam, "/maildispatch.v1.Dispatch/DownloadMail", `{"id": "%s"}`, mail, noMail},
		{otherTeam, "/maildispatch.v1.Dispatch/ResendMail", `{"id": "%s", "reason": "r"}`, mail, noMail},
		{otherTeam, "/maildispatch.v1.Dispatch/ResolveMail", `{"id": "%s", "reason": "r", "resolution": "RESOLUTION_DELIVERED"}`, mail, noMail},
		{otherName, "/maildispatch.v1.Dispatch/GetMail", `{"id": "%s"}`, mail, noMail},
		{otherName, "/maildispatch.v1.Dispatch/ResendMail", `{"id": "%s", "reason": "r"}`, mail, noMail},
		{otherTeam, "/maildispatch.v1.MailServerAdmin/GetMailServer", `{"name": "%s"}`, "theirs", noServer},
		{otherTeam, "/maildispatch.v1.MailServerAdmin/TestMailServer", `{"name": "%s"}`, "theirs", noServer},
		{otherTeam, "/maildispatch.v1.MailServerAdmin/RunBatch", `{"mail_server": "%s"}`, "theirs", noServer},
		{otherTeam, "/maildispatch.v1.Dispatch/Send", `{"options": {"mail_server": "%s"}, "message": {"to": ["a@y.example"], "text": "x"}}`, "theirs", noServer},
	} {
		ask := func(what string) (string, time.Duration) {
			fastest := time.Hour
			text := ""
			for range 5 { // the least of some is what the work takes
				start := time.Now()
				err := r.call(c.method, c.who, fmt.Sprintf(c.request, what))
				fastest = min(fastest, time.Since(start))
				if status.Code(err) != codes.NotFound {
					t.Errorf("%s of %s: got %v, want NOT_FOUND", c.method, what, err)
				}
				text = strings.ReplaceAll(status.Convert(err).Message(), what, "X")
			}
			return text, fastest
		}
		foreign, took := ask(c.own)
		missing, missed := ask(c.none)
		if foreign != missing {
			t.Errorf("%s: got %q for a foreign one and %q for none, want the same", c.method, foreign, missing)
		}
		if d := (took - missed).Abs(); d > 5*time.Millisecond {
			t.Errorf("%s: a foreign one took %v, none %v, want within 5 ms", c.method, took, missed)
		}
	}
}

// TestReservedForSystemAdmins: what reaches this machine or says whom to believe is not set by
// an administrator of a team, not even to try it.
func TestReservedForSystemAdmins(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	secret, _ := r.token("t1", store.RoleAdmin)
	admin := pb.NewMailServerAdminClient(r.conn)
	c := with(ctx(t), secret)
	base := func() *pb.MailServer {
		return &pb.MailServer{Name: "mx", Type: pb.MailServer_TYPE_SMTP, From: "a@x.example", Mode: pb.Mode_MODE_DAEMON,
			Smtp: &pb.Smtp{Host: "mx.example", Port: 587, Encryption: pb.Smtp_ENCRYPTION_STARTTLS, Username: "u", Password: "p"}}
	}
	for what, change := range map[string]func(*pb.MailServer){
		"TYPE_LOCALHOST": func(m *pb.MailServer) { m.Type, m.Smtp = pb.MailServer_TYPE_LOCALHOST, nil },
		"loopback":       func(m *pb.MailServer) { m.Smtp.Host = "127.0.0.2" },
		"localhost":      func(m *pb.MailServer) { m.Smtp.Host = "LOCALHOST" },
		"mapped":         func(m *pb.MailServer) { m.Smtp.Host = "::ffff:127.0.0.1" },
		"no login":       func(m *pb.MailServer) { m.Smtp.Username, m.Smtp.Password = "", "" },
		"the system's":   func(m *pb.MailServer) { m.Team = "t9" },
	} {
		m := base()
		change(m)
		if _, err := admin.CreateMailServer(c, &pb.CreateMailServerRequest{MailServer: m, ValidateOnly: true}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: CreateMailServer: got %v, want PERMISSION_DENIED", what, err)
		}
		if _, err := admin.TestMailServer(c, &pb.TestMailServerRequest{MailServer: m}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: TestMailServer: got %v, want PERMISSION_DENIED", what, err)
		}
	}
	made, err := admin.CreateMailServer(c, &pb.CreateMailServerRequest{MailServer: base()})
	if err != nil || made.MailServer.Team != "t1" {
		t.Fatalf("got %v, %v, want a mail server of t1, the caller's only team", made, err)
	}
	update := &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "mx", Smtp: &pb.Smtp{Host: "127.0.0.1"}}}
	if _, err := admin.UpdateMailServer(c, update); status.Code(err) != codes.PermissionDenied {
		t.Errorf("UpdateMailServer to loopback: got %v, want PERMISSION_DENIED", err)
	}
	// What a system administrator has set up, one of the team may rename.
	r.server("local", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Team = "t1" })
	if _, err := admin.UpdateMailServer(c, &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "local", DisplayName: "ours"}}); err != nil {
		t.Errorf("a new display_name: %v", err)
	}
	// It takes every sender, and so the sender is the system administrator's word, too.
	r.server("program", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Team, m.Type, m.Smtp = "t1", pb.MailServer_TYPE_LOCALHOST, nil })
	r.server("mailbox", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) {
		m.Team, m.Smtp.Host, m.Smtp.Encryption, m.Smtp.Auth = "t1", "mx.example", pb.Smtp_ENCRYPTION_STARTTLS, pb.Smtp_AUTH_XOAUTH2
		m.Smtp.Oauth2 = &pb.OAuth2{ClientId: "app", TokenUrl: "https://login.example/token", Grant: pb.OAuth2_GRANT_CLIENT_CREDENTIALS, ClientSecret: "s"}
	})
	for _, name := range []string{"local", "program", "mailbox"} {
		another := &pb.MailServer{Name: name, From: "ceo@x.example"}
		if _, err := admin.UpdateMailServer(c, &pb.UpdateMailServerRequest{MailServer: another}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("another sender of %s: got %v, want PERMISSION_DENIED", name, err)
		}
		if _, err := admin.TestMailServer(c, &pb.TestMailServerRequest{Name: name, MailServer: another}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("TestMailServer of another sender of %s: got %v, want PERMISSION_DENIED", name, err)
		}
	}
	if _, err := admin.UpdateMailServer(c, &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "mx", From: "b@x.example"}}); err != nil {
		t.Errorf("another sender of the team's own mail server: %v", err)
	}
	if _, err := admin.RunBatch(c, &pb.RunBatchRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("RunBatch of everything: got %v, want PERMISSION_DENIED", err)
	}
}

// TestRetryReleasesForAdministratorsOnly: who may send does not let go what is held.
func TestRetryReleasesForAdministratorsOnly(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.server("one", pb.Mode_MODE_DAEMON)
	sender, _ := r.token("t1", store.RoleSend)
	admin, _ := r.token("t1", store.RoleAdmin)
	id, batch := r.held(sender, "one")
	d := pb.NewDispatchClient(r.conn)
	for _, request := range []*pb.RetryMailsRequest{{Ids: []string{id}, ValidateOnly: true}, {Ids: []string{id}}, {Filter: &pb.MailFilter{BatchId: batch}}} {
		res, err := d.RetryMails(with(ctx(t), sender), request)
		if err != nil || res.Changed != 0 || len(res.Failures) != 1 || res.Failures[0].Reason != pb.ReasonWrongState {
			t.Errorf("%v of a sender: got %v, %v, want one failure", request, res, err)
		}
	}
	if got, err := d.GetMail(with(ctx(t), sender), &pb.GetMailRequest{Id: id}); err != nil || got.Mail.Status != pb.MailStatus_MAIL_STATUS_HELD {
		t.Errorf("got %v, %v, want it held", got, err)
	}
	if res, err := d.RetryMails(with(ctx(t), admin), &pb.RetryMailsRequest{Ids: []string{id}}); err != nil || res.Changed != 1 {
		t.Errorf("an administrator: got %v, %v, want it released", res, err)
	}
}

// TestNobodyMakesNoSecondToken: a replica that does not ask yet makes the first token for
// whoever calls, and no other; who has this machine's user may.
func TestNobodyMakesNoSecondToken(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	as := func(p *access.Principal) pb.AccessAdminClient {
		return pb.NewAccessAdminClient(r.serve(access.As(p), func(g *grpc.Server) {
			pb.RegisterAccessAdminServer(g, r.rig.api.AccessAdmin(r.store, func(context.Context) {}, r.book.On))
		}))
	}
	open, local := as(access.Everybody()), as(access.Local())
	request := &pb.CreateTokenRequest{Name: "n", Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true}
	first, err := open.CreateToken(ctx(t), request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.CreateToken(ctx(t), request); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a second token: got %v, want PERMISSION_DENIED", err)
	}
	if _, err := open.RevokeToken(ctx(t), &pb.RevokeTokenRequest{Id: first.Info.Id}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("to revoke: got %v, want PERMISSION_DENIED", err)
	}
	if _, err := local.CreateToken(ctx(t), request); err != nil {
		t.Errorf("who has this machine's user: %v", err)
	}
	if _, err := local.RevokeToken(ctx(t), &pb.RevokeTokenRequest{Id: first.Info.Id}); err != nil {
		t.Errorf("who has this machine's user: %v", err)
	}
}

// TestBoundTokens: a token hands over only what it is bound to, by every way in.
func TestBoundTokens(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	for _, name := range []string{"one", "two"} {
		r.server(name, pb.Mode_MODE_DAEMON)
	}
	secret, _ := r.token("t1", store.RoleSend, func(x *store.Token) { x.Kinds, x.MailServers = []store.Kind{store.KindInvoice}, []string{"one"} })
	for _, c := range []struct {
		server, kind string
		want         string
	}{{"one", "KIND_INVOICE", "allowed"}, {"two", "KIND_INVOICE", "PERMISSION_DENIED"}, {"one", "KIND_BULK", "PERMISSION_DENIED"}} {
		options := fmt.Sprintf(`{"mail_server": "%s", "kind": "%s", "hold": true}`, c.server, c.kind)
		mail := `{"to": ["a@y.example"], "text": "x"}`
		for method, request := range map[string]string{
			"Send":       fmt.Sprintf(`{"options": %s, "message": %s}`, options, mail),
			"SendBatch":  fmt.Sprintf(`{"options": {"options": %s}, "items": [{"message": %s}]}`, options, mail),
			"SendStream": fmt.Sprintf(`{"options": {"options": %s}, "items": [{"message": %s}]}`, options, mail),
		} {
			for range 2 { // the second time the mail server is remembered
				if got := verdict(r.call("/maildispatch.v1.Dispatch/"+method, secret, request)); got != c.want {
					t.Errorf("%s of %s through %s: got %s, want %s", method, c.kind, c.server, got, c.want)
				}
			}
		}
	}
}

// TestBoundTokensControl: what a token may not hand over it does not let go either, nor to a
// mail server of others.
func TestBoundTokensControl(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	for _, name := range []string{"one", "two"} {
		r.server(name, pb.Mode_MODE_DAEMON)
	}
	sender, _ := r.token("t1", store.RoleSend)
	id, _ := r.held(sender, "two")
	d := pb.NewDispatchClient(r.conn)
	only := func(change func(*store.Token)) context.Context {
		secret, _ := r.token("t1", store.RoleAdmin, change)
		return with(ctx(t), secret)
	}
	for what, c := range map[string]context.Context{"mail servers": only(func(x *store.Token) { x.MailServers = []string{"one"} }),
		"kinds": only(func(x *store.Token) { x.Kinds = []store.Kind{store.KindInvoice} })} {
		bound := func(method string, failures []*pb.MailFailure, err error) {
			t.Helper()
			if err != nil || len(failures) != 1 || failures[0].Reason != pb.ReasonTokenBound {
				t.Errorf("bound to %s, %s: got %v, %v, want a failure with TOKEN_BOUND", what, method, failures, err)
			}
		}
		released, err := d.ReleaseMails(c, &pb.ReleaseMailsRequest{Ids: []string{id}})
		bound("ReleaseMails", released.GetFailures(), err)
		retried, err := d.RetryMails(c, &pb.RetryMailsRequest{Ids: []string{id}})
		bound("RetryMails", retried.GetFailures(), err)
		if _, err := d.ResolveMail(c, &pb.ResolveMailRequest{Id: id, Reason: "r", Resolution: pb.Resolution_RESOLUTION_RESEND}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("bound to %s, ResolveMail: got %v, want PERMISSION_DENIED", what, err)
		}
		if what == "kinds" {
			moved, err := d.MoveMails(c, &pb.MoveMailsRequest{Ids: []string{id}, MailServer: "one"})
			bound("MoveMails", moved.GetFailures(), err)
		} else if _, err := d.MoveMails(c, &pb.MoveMailsRequest{Ids: []string{id}, MailServer: "two"}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("bound to %s, MoveMails to another: got %v, want PERMISSION_DENIED", what, err)
		}
	}
	right := only(func(x *store.Token) { x.MailServers, x.Kinds = []string{"one"}, []store.Kind{store.KindBulk} })
	if res, err := d.MoveMails(right, &pb.MoveMailsRequest{Ids: []string{id}, MailServer: "one"}); err != nil || res.Changed != 1 {
		t.Errorf("MoveMails to its own mail server: got %v, %v, want it moved", res, err)
	}
	if res, err := d.ReleaseMails(right, &pb.ReleaseMailsRequest{Ids: []string{id}}); err != nil || res.Changed != 1 {
		t.Errorf("ReleaseMails: got %v, %v, want it released", res, err)
	}
}

// TestLongCallsEnd: a revoked token ends the calls that last.
func TestLongCallsEnd(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.server("one", pb.Mode_MODE_DAEMON)
	secret, id := r.token("t1", store.RoleSend)
	d := pb.NewDispatchClient(r.conn)
	c := with(ctx(t), secret)
	watch, err := d.WatchMails(c, &pb.WatchMailsRequest{})
	if err == nil {
		_, err = watch.Recv() // it has begun
	}
	if err != nil {
		t.Fatal(err)
	}
	options := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "one", Hold: true}}
	item := []*pb.BatchItem{{Message: message("a@y.example")}}
	stream, err := d.SendStream(c)
	if err == nil {
		err = stream.Send(&pb.SendStreamRequest{Options: options, Items: item})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	batch, err := d.SendBatch(c)
	if err == nil {
		err = batch.Send(&pb.SendBatchRequest{Options: options, Items: item})
	}
	if err != nil {
		t.Fatal(err)
	}
	upload, err := d.UploadAttachment(c)
	if err == nil {
		err = upload.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.RevokeToken(ctx(t), id, store.Audit{Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := r.book.Read(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if _, err = watch.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("WatchMails: got %v, want UNAUTHENTICATED", err)
	}
	if _, err = stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("SendStream: got %v, want UNAUTHENTICATED", err)
	}
	if err := batch.RecvMsg(&pb.SendBatchResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("SendBatch: got %v, want UNAUTHENTICATED", err)
	}
	// the answer says why it failed
	_ = upload.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: []byte("x")}})
	if _, err := upload.CloseAndRecv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("UploadAttachment: got %v, want UNAUTHENTICATED", err)
	}
}

// TestTokenSecretsStayHidden: the secret of a token is in the answer that makes it, and nowhere
// else: not in the log, not in an error, not in the database.
func TestTokenSecretsStayHidden(t *testing.T) {
	each(t, func(t *testing.T, plain *rig) {
		r := &guardedRig{rig: plain}
		var err error
		if r.book, err = access.NewBook(ctx(t), access.Config{Store: r.store, Mode: access.Required}); err != nil {
			t.Fatal(err)
		}
		r.conn = r.serve(r.book.Guard(), func(g *grpc.Server) {
			pb.RegisterAccessAdminServer(g, r.rig.api.AccessAdmin(r.store, func(c context.Context) { _ = r.book.Read(c) }, r.book.On))
		})
		root, _ := r.token("", store.RoleAdmin, system)
		c := with(ctx(t), root)
		admin := pb.NewAccessAdminClient(r.conn)
		made, err := admin.CreateToken(c, &pb.CreateTokenRequest{Name: "n", Roles: []pb.Role{pb.Role_ROLE_SEND}, Teams: []string{"t1"}})
		if err != nil {
			t.Fatal(err)
		}
		var told strings.Builder
		tell := func(v any, err error) { fmt.Fprintln(&told, v, err) }
		tell(admin.ListTokens(c, &pb.ListTokensRequest{ShowEnded: true}))
		tell(admin.WhoAmI(with(ctx(t), made.Secret), &pb.WhoAmIRequest{}))
		// the whole token, by mistake
		tell(admin.RevokeToken(c, &pb.RevokeTokenRequest{Id: made.Secret[:60]}))
		tell(admin.RevokeToken(c, &pb.RevokeTokenRequest{Id: made.Secret}))
		tell(admin.RevokeToken(with(ctx(t), made.Secret), &pb.RevokeTokenRequest{Id: "x"}))
		tell(admin.WhoAmI(with(ctx(t), made.Secret+"x"), &pb.WhoAmIRequest{}))
		tell(admin.RevokeToken(c, &pb.RevokeTokenRequest{Id: made.Info.Id}))
		tell(admin.WhoAmI(with(ctx(t), made.Secret), &pb.WhoAmIRequest{}))
		ts, err := r.store.Tokens(ctx(t), "", true, 10)
		if err != nil || len(ts) != 2 {
			t.Fatalf("got %d tokens, %v, want 2", len(ts), err)
		}
		for _, x := range ts {
			fmt.Fprintf(&told, "%+v %q\n", x, x.Hash[:])
		}
		for what, text := range map[string]string{"the log": r.log.String(), "an answer or the database": told.String(), "the audit": fmt.Sprint(r.audits())} {
			for _, canary := range []string{root, made.Secret} {
				if secret := strings.Split(canary, "_")[2]; strings.Contains(text, secret[:20]) || strings.Contains(text, secret[30:]) {
					t.Errorf("%s has a secret", what)
				}
			}
		}
	})
}

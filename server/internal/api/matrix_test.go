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

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
	"Dispatch/SendMail":                     `{"options": {"team": "t1", "mail_server": "$server"}, "message": {"to": ["a@y.example"], "subject": "s", "text": "x"}, "validate_only": true}`,
	"Dispatch/PreviewMail":                  `{"options": {"team": "t1", "mail_server": "$server"}, "message": {"to": ["a@y.example"], "subject": "s", "text": "x"}}`,
	"Dispatch/FindMails":                    `{"filter": {"team": "t1"}}`,
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
	"Operations/GetOperation":               `{"id": "$operation"}`,
	"Operations/WatchOperation":             `{"id": "$operation"}`,
	"Operations/StopOperation":              `{"id": "$operation"}`,
	"Operations/ListOperations":             `{"team": "t1"}`,
	"Retention/PlaceLegalHold":              `{"team": "t1", "all_mail": true, "reason": "r"}`,
	"Retention/LiftLegalHold":               `{"id": "$hold", "reason": "r"}`,
	"Retention/ListLegalHolds":              `{"team": "t1"}`,
	"Retention/EraseRecipient":              `{"address": "nobody@x.example", "validate_only": true, "reason": "r"}`,
	"Retention/GetRetention":                `{}`,
	"AccessAdmin/CreateToken":               `{"name": "x", "roles": ["ROLE_SEND"], "teams": ["t1"]}`,
	"AccessAdmin/ListTokens":                `{}`,
	"AccessAdmin/ListAudit":                 `{"team": "t1"}`,
	"AccessAdmin/RevokeToken":               `{"id": "$token"}`,
	"AccessAdmin/ResealSecrets":             `{"validate_only": true}`,
	"AccessAdmin/SetSenderDomains":          `{"team": "t1", "domains": ["x.example"]}`,
	"AccessAdmin/ListSenderDomains":         `{}`,
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
	t.Parallel()
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
			hold := uuid.Must(uuid.NewV7())
			if err := r.store.PlaceHold(ctx(t), &store.LegalHold{ID: hold, Team: "t1"}, store.Audit{Actor: "test"}); err != nil {
				t.Fatal(err)
			}
			op := &store.Operation{Action: "RetryMails", Scope: store.Scope{Teams: []string{"t1"}, Caller: "n"}, Request: "{}"}
			if err := r.store.BeginOperation(ctx(t), op); err != nil {
				t.Fatal(err)
			}
			if err := r.store.StopOperation(ctx(t), op.ID, store.Audit{Actor: "test"}); err != nil {
				// a watcher ends with it
				t.Fatal(err)
			}
			request = strings.NewReplacer("$operation", op.ID.String(), "$hold", hold.String(), "$server", name, "$mail", mail, "$batch", batch, "$token", token).Replace(request)
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

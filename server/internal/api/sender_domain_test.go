package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestSenderDomains: a team keeps to its domains, in the configuration of its mail servers and
// in all mail through them, until a system administrator says otherwise.
func TestSenderDomains(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.rig.api.SenderDomains = r.book.SenderDomains
	boss, _ := r.token("", store.RoleAdmin, system)
	admin, _ := r.token("t1", store.RoleAdmin)
	sender, _ := r.token("t1", store.RoleSend)
	other, _ := r.token("t2", store.RoleAdmin)
	own := func(name, from string) *pb.MailServer {
		return &pb.MailServer{Name: name, Team: "t1", Type: pb.MailServer_TYPE_SMTP, From: from, Mode: pb.Mode_MODE_DAEMON,
			Smtp: &pb.Smtp{Host: "mx.example", Port: 587, Encryption: pb.Smtp_ENCRYPTION_STARTTLS, Username: "u", Password: "p"}}
	}
	servers, tokens := pb.NewMailServerAdminClient(r.conn), pb.NewAccessAdminClient(r.conn)
	create := func(secret string, m *pb.MailServer) error {
		_, err := servers.CreateMailServer(with(ctx(t), secret), &pb.CreateMailServerRequest{MailServer: m})
		return err
	}
	if err := create(admin, own("before", "a@old.example")); err != nil {
		t.Fatalf("nobody is bound: %v", err)
	}
	r.server("shared", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.From = "a@corp.example" })
	set := func(domains ...string) []string {
		t.Helper()
		res, err := tokens.SetSenderDomains(with(ctx(t), boss), &pb.SetSenderDomainsRequest{Team: "t1", Domains: domains, Reason: "r"})
		if err != nil {
			t.Fatal(err)
		}
		return res.SenderDomains.Domains
	}
	if got := set("X.example", "*.Bücher.example", "x.example"); !slices.Equal(got, []string{"x.example", "*.xn--bcher-kva.example"}) {
		t.Errorf("got %q", got)
	}
	for _, bad := range []string{"", "*", "*.", "a@x.example", "x example", "*.*.example", "[1.2.3.4]", "x.example>", "\n"} {
		if _, err := tokens.SetSenderDomains(with(ctx(t), boss), &pb.SetSenderDomainsRequest{Team: "t1", Domains: []string{bad}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: got %v, want INVALID_ARGUMENT", bad, err)
		}
	}
	denied := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "mail_server.from") || !strings.Contains(err.Error(), "x.example") {
			t.Errorf("%s: got %v, want PERMISSION_DENIED that names the field and the domains", what, err)
		}
	}
	for i, c := range []struct {
		from string
		want bool
	}{{"a@x.example", true}, {"A <a@X.EXAMPLE>", true}, {"a@shop.bücher.example", true}, {"a@y.example", false}, {"a@sub.x.example", false}, {"a@bücher.example", false},
		{"a@notx.example", false}, {"a@x.example.evil.example", false}, {"\"a@x.example\" <a@y.example>", false}} {
		m := own(fmt.Sprintf("mx-%c", 'a'+i), c.from)
		err := create(admin, proto.CloneOf(m))
		if c.want && err != nil {
			t.Errorf("%s: %v", c.from, err)
		}
		if c.want {
			continue
		}
		denied("CreateMailServer from "+c.from, err)
		_, err = servers.TestMailServer(with(ctx(t), admin), &pb.TestMailServerRequest{MailServer: m})
		denied("TestMailServer from "+c.from, err)
		_, err = servers.UpdateMailServer(with(ctx(t), admin), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "mx-a", From: c.from}})
		denied("UpdateMailServer to "+c.from, err)
	}
	if _, err := servers.UpdateMailServer(with(ctx(t), admin), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "before", DisplayName: "as it was"}}); err != nil {
		t.Errorf("another display_name of a mail server from before: %v", err)
	}
	if err := create(boss, own("outside", "a@outside.example")); err != nil {
		t.Errorf("a system administrator: %v", err)
	}
	if err := create(other, func() *pb.MailServer { m := own("theirs", "a@outside.example"); m.Team = "t2"; return m }()); err != nil {
		t.Errorf("another team: %v", err)
	}
	send := func(secret, server string, see func(what string, err error)) {
		t.Helper()
		options := fmt.Sprintf(`{"team": "t1", "mail_server": "%s", "hold": true}`, server)
		mail := `{"to": ["a@y.example"], "text": "x"}`
		for method, request := range map[string]string{
			"Send":        fmt.Sprintf(`{"options": %s, "message": %s}`, options, mail),
			"SendMail":    fmt.Sprintf(`{"options": %s, "message": %s}`, options, mail),
			"PreviewMail": fmt.Sprintf(`{"options": %s, "message": %s}`, options, mail),
			"SendBatch":   fmt.Sprintf(`{"options": {"options": %s}, "items": [{"message": %s}]}`, options, mail),
			"SendStream":  fmt.Sprintf(`{"options": {"options": %s}, "items": [{"message": %s}]}`, options, mail),
		} {
			for range 2 { // the second time the mail server is remembered
				see(method+" through "+server, r.call("/maildispatch.v1.Dispatch/"+method, secret, request))
			}
		}
	}
	allowed := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	send(sender, "mx-a", allowed)
	send(sender, "shared", allowed)
	send(boss, "outside", allowed)
	send(sender, "outside", denied)
	send(admin, "before", denied)
	if listed, err := tokens.ListSenderDomains(with(ctx(t), boss), &pb.ListSenderDomainsRequest{PageSize: 1}); err != nil || len(listed.SenderDomains) != 1 || len(listed.SenderDomains[0].Domains) != 2 {
		t.Errorf("ListSenderDomains: got %v, %v", listed, err)
	}
	rows, err := tokens.ListAudit(with(ctx(t), admin), &pb.ListAuditRequest{Action: "SetSenderDomains"})
	if err != nil || len(rows.Rows) != 1 || rows.Rows[0].Team != "t1" || len(rows.Rows[0].Detail.Fields["after"].GetListValue().GetValues()) != 2 {
		t.Errorf("the audit log: got %v, %v", rows, err)
	}
	set()
	send(sender, "outside", allowed)
}

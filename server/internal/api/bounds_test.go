package api_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestReservedForSystemAdmins: what reaches this machine or says whom to believe is not set by
// an administrator of a team, not even to try it.
func TestReservedForSystemAdmins(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// TestBoundTokens: a token hands over only what it is bound to, by every way in.
func TestBoundTokens(t *testing.T) {
	t.Parallel()
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

// TestBudgetOfAToken: a token with a budget hands over no more by any way in, hears when it may
// again and what is left, and another of the same name goes on.
func TestBudgetOfAToken(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.limited(quota.Limits{})
	r.server("one", pb.Mode_MODE_DAEMON)
	boss, _ := r.token("", store.RoleAdmin, system)
	admin := pb.NewAccessAdminClient(r.conn)
	request := &pb.CreateTokenRequest{Name: "shop", Roles: []pb.Role{pb.Role_ROLE_SEND}, Teams: []string{"t1"}, MailsPerDay: 4, RecipientsPerDay: 1_000_000_001}
	if _, err := admin.CreateToken(with(ctx(t), boss), request); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "recipients_per_day") {
		t.Errorf("too large a budget: got %v", err)
	}
	request.RecipientsPerDay = 50
	made, err := admin.CreateToken(with(ctx(t), boss), request)
	if err != nil || made.Info.MailsPerDay != 4 || made.Info.RecipientsPerDay != 50 {
		t.Fatalf("got %v, %v", made, err)
	}
	listed, err := admin.ListTokens(with(ctx(t), boss), &pb.ListTokensRequest{})
	if err != nil || !slices.ContainsFunc(listed.Tokens, func(x *pb.Token) bool { return x.Id == made.Info.Id && x.MailsPerDay == 4 && x.RecipientsPerDay == 50 }) {
		t.Errorf("ListTokens: got %v, %v", listed, err)
	}
	options := `{"mail_server": "one", "hold": true}`
	mail := `{"to": ["a@y.example"], "text": "x"}`
	ways := map[string]string{
		"Send":       fmt.Sprintf(`{"options": %s, "message": %s}`, options, mail),
		"SendMail":   fmt.Sprintf(`{"options": %s, "message": %s}`, options, mail),
		"SendBatch":  fmt.Sprintf(`{"options": {"options": %s}, "items": [{"message": %s}]}`, options, mail),
		"SendStream": fmt.Sprintf(`{"options": {"options": %s}, "items": [{"message": %s}]}`, options, mail),
	}
	for method, request := range ways {
		if got := r.call("/maildispatch.v1.Dispatch/"+method, made.Secret, request); got != nil {
			t.Errorf("%s within the budget: got %v", method, got)
		}
	}
	for method, request := range ways {
		err := r.call("/maildispatch.v1.Dispatch/"+method, made.Secret, request)
		if method == "SendStream" { // it answers each item
			continue
		}
		if limit, after := overQuota(t, method, err); limit != "token_mails_per_day" || after < time.Hour {
			t.Errorf("%s beyond the budget: got the limit %q and %v to wait", method, limit, after)
		}
	}
	who, err := admin.WhoAmI(with(ctx(t), made.Secret), &pb.WhoAmIRequest{})
	if err != nil || len(who.Allowances) != 2 || who.Allowances[0].Limit != "token_mails_per_day" || who.Allowances[0].Left != 0 || who.Allowances[1].Left != 46 {
		t.Errorf("WhoAmI: got %v, %v", who, err)
	}
	again, _ := r.token("t1", store.RoleSend, func(x *store.Token) { x.Name = "shop" })
	if err := r.call("/maildispatch.v1.Dispatch/SendMail", again, ways["SendMail"]); err != nil {
		t.Errorf("another token of the name: got %v", err)
	}
	if n := r.counted("select count(*) from mail"); n != 5 {
		t.Errorf("%d mails are stored, want four of the token and one of another", n)
	}
}

// TestBoundTokensControl: what a token may not hand over it does not let go either, nor to a
// mail server of others.
func TestBoundTokensControl(t *testing.T) {
	t.Parallel()
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

package api_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestListAudit: administrators see who did what to their teams, by filter and page by page,
// and nothing of other teams, nor a secret.
func TestListAudit(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newGuardedRig(t, dsn)
			servers, audit := pb.NewMailServerAdminClient(r.conn), pb.NewAccessAdminClient(r.conn)
			t1, id := r.token("t1", store.RoleAdmin)
			t2, _ := r.token("t2", store.RoleAdmin)
			all, _ := r.token("", store.RoleAdmin, system)
			create := func(secret, team string) {
				t.Helper()
				_, err := servers.CreateMailServer(with(ctx(t), secret), &pb.CreateMailServerRequest{MailServer: &pb.MailServer{
					Name: "of-" + team, Team: team, Type: pb.MailServer_TYPE_SMTP, Mode: pb.Mode_MODE_DAEMON, From: "a@x.example",
					Smtp: &pb.Smtp{Host: "mx.example", Port: 587, Encryption: pb.Smtp_ENCRYPTION_STARTTLS, Username: "u", Password: "canary-secret"},
				}})
				if err != nil {
					t.Fatal(err)
				}
			}
			create(t1, "t1")
			create(t2, "t2")
			for range 3 {
				_, err := servers.UpdateMailServer(with(ctx(t), t1), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "of-t1", Smtp: &pb.Smtp{Password: "canary-secret-2"}}})
				if err != nil {
					t.Fatal(err)
				}
			}
			list := func(secret string, q *pb.ListAuditRequest) *pb.ListAuditResponse {
				t.Helper()
				got, err := audit.ListAudit(with(ctx(t), secret), q)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(got.String(), "canary") {
					t.Errorf("a secret is in the audit log: %v", got)
				}
				return got
			}
			if got := list(t1, &pb.ListAuditRequest{}); len(got.Rows) != 4 || slices.ContainsFunc(got.Rows, func(row *pb.AuditRow) bool { return row.Team != "t1" }) {
				t.Errorf("got %v, want the four rows of t1", got)
			}
			if got := list(t2, &pb.ListAuditRequest{}); len(got.Rows) != 1 || got.Rows[0].Target != "of-t2" {
				t.Errorf("got %v, want the row of t2", got)
			}
			if _, err := audit.ListAudit(with(ctx(t), t2), &pb.ListAuditRequest{Team: new("t1")}); status.Code(err) != codes.PermissionDenied {
				t.Errorf("another team: got %v, want PERMISSION_DENIED", err)
			}
			// The tokens were made by nobody, for no team.
			if got := list(all, &pb.ListAuditRequest{}); len(got.Rows) < 5 {
				t.Errorf("got %v, want the rows of both teams", got)
			}
			change := list(all, &pb.ListAuditRequest{Action: "UpdateMailServer", Target: "of-t1", PageSize: 1}).Rows[0]
			if detail := change.Detail.AsMap(); detail["password_changed"] != true || detail["before"] == nil || detail["after"] == nil ||
				!strings.Contains(change.Actor, id) || change.Number == 0 || len(change.Hash) != 64 || !change.Time.IsValid() {
				t.Errorf("got %v, want a linked row of %s with before and after", change, id)
			}
			var numbers []int64
			q := &pb.ListAuditRequest{Team: new("t1"), PageSize: 3}
			for {
				page := list(all, q)
				for _, row := range page.Rows {
					numbers = append(numbers, row.Number)
				}
				if q.PageToken = page.NextPageToken; q.PageToken == "" {
					break
				}
			}
			if len(numbers) != 4 || !slices.IsSortedFunc(numbers, func(a, b int64) int { return int(b - a) }) {
				t.Errorf("got numbers %v, want four, the newest first", numbers)
			}
			if _, err := audit.ListAudit(with(ctx(t), all), &pb.ListAuditRequest{PageToken: list(all, &pb.ListAuditRequest{PageSize: 1}).NextPageToken, Actor: "x"}); status.Code(err) != codes.InvalidArgument {
				t.Errorf("a page token of another filter: got %v, want INVALID_ARGUMENT", err)
			}
		})
	}
}

// TestReasonOfChanges: why a mail server was changed stands in the audit log, and is no longer
// than what people read.
func TestReasonOfChanges(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newGuardedRig(t, dsn)
			servers, audit := pb.NewMailServerAdminClient(r.conn), pb.NewAccessAdminClient(r.conn)
			secret, _ := r.token("", store.RoleAdmin, system)
			c := with(ctx(t), secret)
			if _, err := servers.CreateMailServer(c, &pb.CreateMailServerRequest{MailServer: &pb.MailServer{Name: "m1", Type: pb.MailServer_TYPE_LOCALHOST, Mode: pb.Mode_MODE_DAEMON, From: "a@x.example"}}); err != nil {
				t.Fatal(err)
			}
			for _, x := range []struct {
				action string
				call   func(why string) error
			}{
				{"UpdateMailServer", func(why string) error {
					_, err := servers.UpdateMailServer(c, &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "m1", DisplayName: "x"}, Reason: why})
					return err
				}},
				{"SetDefaultMailServer", func(why string) error {
					_, err := servers.SetDefaultMailServer(c, &pb.SetDefaultMailServerRequest{Name: "m1", Reason: why})
					return err
				}},
				{"DeleteMailServer", func(why string) error {
					_, err := servers.DeleteMailServer(c, &pb.DeleteMailServerRequest{Name: "m1", Reason: why})
					return err
				}},
				{"UndeleteMailServer", func(why string) error {
					_, err := servers.UndeleteMailServer(c, &pb.UndeleteMailServerRequest{Name: "m1", Reason: why})
					return err
				}},
			} {
				if err := x.call(strings.Repeat("x", 501)); status.Code(err) != codes.InvalidArgument {
					t.Errorf("%s with 501 characters: got %v", x.action, err)
				}
				if err := x.call("because of " + x.action); err != nil {
					t.Fatal(err)
				}
				got, err := audit.ListAudit(c, &pb.ListAuditRequest{Action: x.action})
				if err != nil || len(got.Rows) != 1 || got.Rows[0].Reason != "because of "+x.action {
					t.Errorf("%s: got %v, %v", x.action, got, err)
				}
			}
		})
	}
}

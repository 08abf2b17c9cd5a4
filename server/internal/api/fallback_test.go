package api_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestFallbackOfMailServer: a fallback is saved and shown; a chain is refused with the field's
// name, also by validate_only; a mail server in use as one is deleted only by force.
func TestFallbackOfMailServer(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		r.server("spare", pb.Mode_MODE_DAEMON)
		r.server("main", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Fallback = "spare" })
		got := func() *pb.MailServer {
			t.Helper()
			res, err := r.admin.GetMailServer(ctx(t), &pb.GetMailServerRequest{Name: "main"})
			if err != nil {
				t.Fatal(err)
			}
			return res.MailServer
		}
		if m := got(); m.Fallback != "spare" {
			t.Errorf("got fallback %q, want spare", m.Fallback)
		}
		for _, validateOnly := range []bool{true, false} {
			_, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "spare", Fallback: "main"}, ValidateOnly: validateOnly})
			refused(t, "a chain", err, codes.InvalidArgument, pb.ReasonValidationFailed)
			if err == nil || !strings.Contains(err.Error(), "mail_server.fallback") {
				t.Errorf("got %v, want the field named", err)
			}
		}
		_, err := r.admin.DeleteMailServer(ctx(t), &pb.DeleteMailServerRequest{Name: "spare"})
		refused(t, "in use", err, codes.FailedPrecondition, pb.ReasonMailServerInUse)
		clear := &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"fallback"}}}
		if _, err := r.admin.UpdateMailServer(ctx(t), clear); err != nil || got().Fallback != "" {
			t.Errorf("cleared: got %v, %v", got(), err)
		}
		if _, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", Fallback: "spare"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.admin.DeleteMailServer(ctx(t), &pb.DeleteMailServerRequest{Name: "spare", Force: true}); err != nil || got().Fallback != "" {
			t.Errorf("deleted by force: got %v, %v, want main without a fallback", got(), err)
		}
		rows := r.audits()
		for i, target := range []string{"main", "spare"} {
			if row := rows[len(rows)-2+i]; row[0] != "DeleteMailServer" || row[2] != target {
				t.Errorf("got audit %v, want the deletion told of %s", row, target)
			}
		}
	})
}

package api_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestFallbackOfMailServer: a fallback is saved and shown; a chain is refused with the field's
// name, also by validate_only; a mail server in use as one is deleted only by force.
func TestFallbackOfMailServer(t *testing.T) {
	t.Parallel()
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

// TestRunBatchThroughFallback: asked for by name, the mail of a mail server that is switched
// off goes through its fallback, as it does in the batch of every minute. Without one that can
// be used the call is refused.
func TestRunBatchThroughFallback(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("spare", pb.Mode_MODE_DAEMON)
		r.server("main", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Fallback = "spare" })
		r.queue("main", 3)
		off := func(name string) {
			t.Helper()
			req := &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: name, Status: pb.MailServer_STATUS_UNAVAILABLE}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"status"}}}
			if _, err := r.admin.UpdateMailServer(ctx(t), req); err != nil {
				t.Fatal(err)
			}
		}
		off("main")
		run := &pb.RunBatchRequest{MailServer: "main", Wait: true}
		if got, err := r.admin.RunBatch(ctx(t), run); err != nil || got.Sent != 3 {
			t.Errorf("got %v, %v, want 3 sent through spare", got, err)
		}
		off("spare")
		if _, err := r.admin.RunBatch(ctx(t), run); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("without a usable fallback: got %v, want FAILED_PRECONDITION", err)
		}
	})
}

package api_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestMoveMails: mails that wait go on through another mail server and arrive there; those of
// another team do not; nothing happens with validate_only.
func TestMoveMails(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		other := (&smtpxtest.Server{}).Start(t)
		there := func(m *pb.MailServer) { m.Smtp.Port = int32(other.Port()) }
		r.server("main", pb.Mode_MODE_DAEMON)
		r.server("spare", pb.Mode_MODE_DAEMON, there)
		r.server("sales", pb.Mode_MODE_DAEMON, there, func(m *pb.MailServer) { m.Team = "sales" })
		ids := r.queue("main", 3)
		move := func(req *pb.MoveMailsRequest) *pb.MoveMailsResponse {
			t.Helper()
			res, err := r.dispatch.MoveMails(ctx(t), req)
			if err != nil {
				t.Fatal(err)
			}
			return res
		}
		if res := move(&pb.MoveMailsRequest{Ids: ids[:2], MailServer: "spare", ValidateOnly: true}); res.Changed != 2 {
			t.Errorf("validate_only: got %v, want 2 that would be moved", res)
		}
		if got, err := r.dispatch.GetMail(ctx(t), &pb.GetMailRequest{Id: ids[0]}); err != nil || got.Mail.MailServer != "main" {
			t.Errorf("validate_only moved a mail: %v, %v", got, err)
		}
		if res := move(&pb.MoveMailsRequest{Filter: &pb.MailFilter{MailServer: "main"}, MailServer: "sales"}); res.Changed != 0 || len(res.Failures) != 3 {
			t.Errorf("to another team: got %v, want three failures", res)
		}
		if res := move(&pb.MoveMailsRequest{Ids: ids[:2], MailServer: "spare", Reason: "main is down"}); res.Changed != 2 || res.MailServer != "spare" {
			t.Errorf("got %v, want 2 moved to spare", res)
		}
		if res := move(&pb.MoveMailsRequest{Ids: ids[:2], MailServer: "spare"}); res.Matched != 2 || res.Changed != 0 || len(res.Failures) != 0 {
			t.Errorf("again: got %v, want nothing changed and no failure", res)
		}
		list, err := r.dispatch.ListDueOutMails(ctx(t), &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{MailServer: "spare"}})
		if err != nil || len(list.Mails) != 2 {
			t.Errorf("through spare: got %v, %v, want two mails", list, err)
		}
		if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "spare", Wait: true}); err != nil {
			t.Fatal(err)
		}
		if a, b := len(r.relay.Mails()), len(other.Mails()); a != 0 || b != 2 {
			t.Errorf("the relays took %d and %d mails, want 0 and 2", a, b)
		}
		for i, id := range ids {
			got, err := r.dispatch.GetMail(ctx(t), &pb.GetMailRequest{Id: id})
			want, through := pb.MailStatus_MAIL_STATUS_SENT, "spare"
			if i == 2 {
				want, through = pb.MailStatus_MAIL_STATUS_QUEUED, "main"
			}
			if err != nil || got.Mail.Status != want || got.Mail.MailServer != through {
				t.Errorf("mail %d: got %v, %v, want %v through %s", i, got, err, want, through)
			}
		}
		_, err = r.dispatch.MoveMails(ctx(t), &pb.MoveMailsRequest{Ids: ids[2:], MailServer: "nothing"})
		refused(t, "a target that is not there", err, codes.NotFound, "MAIL_SERVER_NOT_FOUND")
		off := &pb.MailServer{Name: "spare", Status: pb.MailServer_STATUS_UNAVAILABLE}
		if _, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: off}); err != nil {
			t.Fatal(err)
		}
		_, err = r.dispatch.MoveMails(ctx(t), &pb.MoveMailsRequest{Ids: ids[2:], MailServer: "spare"})
		refused(t, "a target that is off", err, codes.FailedPrecondition, "MAIL_SERVER_UNAVAILABLE")
		moved := 0
		for _, a := range r.audits() {
			if a[0] == "MoveMails" && strings.Contains(a[3], "spare") {
				moved++
			}
		}
		if moved != 1 {
			t.Errorf("%d audit rows name the target, want 1", moved)
		}
	})
}

// TestMoveNeverUnknown: a mail that may have arrived is not sent through another mail server.
func TestMoveNeverUnknown(t *testing.T) {
	t.Parallel()
	silent := &smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			return &smtpxtest.Action{Close: true}
		}
		return nil
	}}
	r := newRig(t, storetest.SQLiteDSN(t), silent)
	r.server("main", pb.Mode_MODE_PHP)
	r.server("spare", pb.Mode_MODE_PHP)
	evs, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main", Kind: pb.Kind_KIND_INVOICE}, Message: message("a@y.example")})
	if err != nil {
		t.Fatal(err)
	}
	id := evs[0].MailId
	if done := evs[len(evs)-1].GetCompleted().GetMail(); done.GetStatus() != pb.MailStatus_MAIL_STATUS_UNKNOWN {
		t.Fatalf("got %v, want it unknown", done)
	}
	res, err := r.dispatch.MoveMails(ctx(t), &pb.MoveMailsRequest{Ids: []string{id}, MailServer: "spare"})
	if err != nil || res.Changed != 0 || len(res.Failures) != 1 || res.Failures[0].Reason != "WRONG_STATE" {
		t.Errorf("got %v, %v, want a failure", res, err)
	}
}

// TestPause: a mail server that is paused takes mail and sends none, also as a default. Its
// php-mode mail is queued, and the answer says so. Cleared, the batch sends what waits.
func TestPause(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		yes := true
		until := time.Now().Add(time.Hour)
		r.server("main", pb.Mode_MODE_PHP, func(m *pb.MailServer) { m.IsDefault, m.PauseUntil = &yes, timestamppb.New(until) })
		evs, err := r.send(ctx(t), &pb.SendRequest{Message: message("a@y.example")})
		if err != nil {
			t.Fatal(err)
		}
		if text := evs[0].GetAccepted().GetRouteDetail(); !strings.Contains(text, "nothing until "+until.UTC().Format(time.RFC3339)) {
			t.Errorf("got %q, want it to say until when nothing is sent", text)
		}
		if done := evs[len(evs)-1].GetCompleted().GetMail(); done.GetStatus() != pb.MailStatus_MAIL_STATUS_QUEUED {
			t.Errorf("got %v, want it queued", done)
		}
		if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{Wait: true}); err != nil {
			t.Fatal(err)
		}
		_, err = r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main", Wait: true})
		refused(t, "its own batch", err, codes.FailedPrecondition, "MAIL_SERVER_UNAVAILABLE")
		if n := len(r.relay.Mails()); n != 0 {
			t.Errorf("%d mails left through a mail server that is paused", n)
		}
		clear := &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"pause_until"}}}
		if res, err := r.admin.UpdateMailServer(ctx(t), clear); err != nil || res.MailServer.PauseUntil != nil || !res.MailServer.GetIsDefault() {
			t.Fatalf("clearing the pause: %v, %v", res, err)
		}
		if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main", Wait: true}); err != nil {
			t.Fatal(err)
		}
		if n := len(r.relay.Mails()); n != 1 {
			t.Errorf("%d mails left after the pause, want 1", n)
		}
		evs, err = r.send(ctx(t), &pb.SendRequest{Message: message("b@y.example")})
		if err != nil || evs[len(evs)-1].GetCompleted().GetMail().GetStatus() != pb.MailStatus_MAIL_STATUS_SENT {
			t.Errorf("after the pause: got %v, %v, want it sent while the caller waits", evs, err)
		}
	})
}

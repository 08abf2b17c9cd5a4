package e2e

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestHoldDuringTheBatch: what comes while the batch runs goes to it in memory, and the same
// rules hold there.
func TestHoldDuringTheBatch(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		reached, release := make(chan struct{}), make(chan struct{})
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			switch {
			case c.Verb == "DOT" && strings.Contains(c.Arg, "Slow"):
				close(reached)
				<-release
			case c.Verb == "DOT" && strings.Contains(c.Arg, "Lost"):
				return &smtpxtest.Action{Close: true}
			}
			return nil
		}}).Start(t)
		s.addServer("careful", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.HoldUnknown, m.Limits = new(true), &pb.Limits{MaxConnections: 1} })
		slow := s.mustSend(one("careful", pb.Kind_KIND_BULK, "Slow", "a@y.example"))
		if _, err := s.admin.RunBatch(timeout(t), &pb.RunBatchRequest{}); err != nil {
			t.Fatal(err)
		}
		<-reached
		r := one("careful", pb.Kind_KIND_BULK, "Stopped", "b@y.example")
		r.Options.Hold = true
		held := s.mustSend(r)
		lost := s.mustSend(one("careful", pb.Kind_KIND_BULK, "Lost", "c@y.example"))
		close(release)
		eventually(t, 20*time.Second, "both are settled", func() bool {
			return s.mail(slow.id).Status == pb.MailStatus_MAIL_STATUS_SENT && s.mail(lost.id).AttemptCount > 0
		})
		wantState(t, s.mail(lost.id), "UNKNOWN c=UNKNOWN")
		wantState(t, s.mail(held.id), "HELD b=PENDING")
		if n := len(relay.Mails()); n != 1 {
			t.Errorf("%d mails taken", n)
		}
	})
}

// TestHoldUnknown: bulk of unknown outcome is sent again, flagged, unless its mail server holds
// all.
func TestHoldUnknown(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := startSilence(t)
		s.addServer("daily", pb.Mode_MODE_DAEMON, relay.Port())
		s.addServer("careful", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.HoldUnknown = new(true) })
		relay.set(true)
		again, held := s.mustSend(one("daily", pb.Kind_KIND_BULK, "Again", "a@y.example")), s.mustSend(one("careful", pb.Kind_KIND_BULK, "Careful", "a@y.example"))
		if b := s.batch(); b.Unknown != 2 {
			t.Fatalf("%v", b)
		}
		relay.set(false)
		wantState(t, s.mail(again.id), "DEFERRED a=UNKNOWN due flagged")
		wantState(t, s.mail(held.id), "UNKNOWN a=UNKNOWN")
		// By filter nobody's state is changed: it is policy that sends the unknown one again.
		if r, err := s.dispatch.RetryMails(timeout(t), &pb.RetryMailsRequest{Filter: &pb.MailFilter{Kind: pb.Kind_KIND_BULK}}); err != nil || r.Changed != 1 || len(r.Failures) != 1 {
			t.Fatalf("%v %v", r, err)
		}
		wantState(t, s.mail(again.id), "DEFERRED a=UNKNOWN due flagged")
		if b := s.batch(); b.Claimed != 1 || b.Sent != 1 {
			t.Fatalf("%v", b)
		}
		wantState(t, s.mail(again.id), "SENT a=ACCEPTED flagged")
		if bodies, _ := relay.of("Again"); len(bodies) != 2 || bodies[0] != bodies[1] {
			t.Fatalf("%d bodies, or other bytes", len(bodies))
		}
		if bodies, _ := relay.of("Careful"); len(bodies) != 1 {
			t.Fatalf("%d bodies of a held one", len(bodies))
		}
		wantState(t, s.resolve(held.id, resend, "go on"), "DEFERRED a=PENDING due flagged")
		s.batch()
		wantState(t, s.mail(held.id), "SENT a=ACCEPTED flagged")

		if r, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "careful", DisplayName: "still"}}); err != nil || !r.MailServer.GetHoldUnknown() {
			t.Fatalf("absent is unchanged: %v %v", r, err)
		}
		if r, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "careful", HoldUnknown: new(false)}}); err != nil || r.MailServer.GetHoldUnknown() {
			t.Fatalf("%v %v", r, err)
		}
	})
}

// TestHoldAndRelease: held mail is out of the batch's reach; released it goes on where it was,
// at its time.
func TestHoldAndRelease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := startSilence(t)
		s.addServer("daily", pb.Mode_MODE_DAEMON, relay.Port())
		later := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
		scheduled := one("daily", pb.Kind_KIND_BULK, "Ref", "c@y.example")
		scheduled.Options.SendAfter = timestamppb.New(later)
		partial, gone := s.mustSend(one("daily", pb.Kind_KIND_BULK, "Ref", "a@y.example", "later@y.example")), s.mustSend(one("daily", pb.Kind_KIND_BULK, "Ref", "nobody@y.example"))
		s.batch()
		greylisted := s.mail(partial.id)
		wantState(t, greylisted, "PARTIALLY_SENT a=ACCEPTED l=DEFERRED due")
		wantState(t, s.mail(gone.id), "FAILED n=REJECTED")
		first, third, other := s.mustSend(one("daily", pb.Kind_KIND_BULK, "Ref", "b@y.example")), s.mustSend(scheduled), s.mustSend(one("daily", pb.Kind_KIND_BULK, "Other", "d@y.example"))

		f := &pb.MailFilter{Reference: "Ref"}
		for _, dry := range []bool{true, false} {
			if r, err := s.dispatch.HoldMails(timeout(t), &pb.HoldMailsRequest{Filter: f, ValidateOnly: dry, Reason: "wrong price"}); err != nil || r.Matched != 3 || r.Changed != 3 || len(r.Failures) != 0 {
				t.Fatalf("validate_only %v: %v %v", dry, r, err)
			}
			if m := s.mail(first.id); (m.Status == pb.MailStatus_MAIL_STATUS_HELD) == dry {
				t.Fatalf("validate_only %v: %v", dry, m)
			}
		}
		m := s.mail(partial.id)
		wantState(t, m, "HELD a=ACCEPTED l=DEFERRED")
		if m.LastError != "held: wrong price" || m.Recipients[1].NextAttemptTime != nil || s.audits("HoldMails", "", "wrong price") != 1 {
			t.Fatalf("%v", m)
		}
		if b := s.batch(); b.Claimed != 1 || s.mail(other.id).Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Fatalf("%v", b)
		}
		r, err := s.dispatch.HoldMails(timeout(t), &pb.HoldMailsRequest{Ids: []string{first.id, gone.id, other.id, uuidOfNobody}})
		if err != nil || r.Changed != 0 || len(r.Failures) != 4 {
			t.Fatalf("%v %v", r, err)
		}
		for _, x := range r.Failures {
			if want := map[bool]string{true: pb.ReasonMailNotFound, false: pb.ReasonWrongState}[x.Id == uuidOfNobody]; x.Reason != want || x.Message == "" {
				t.Errorf("%v", x)
			}
		}

		l, err := s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Ids: []string{gone.id}})
		if err != nil || l.Changed != 0 || len(l.Failures) != 1 || l.Failures[0].Reason != pb.ReasonWrongState {
			t.Fatalf("%v %v", l, err)
		}
		if l, err = s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: f, Reason: "price is right"}); err != nil || l.Matched != 3 || l.Changed != 3 || s.audits("ReleaseMails", "", "price is right") != 1 {
			t.Fatalf("%v %v", l, err)
		}
		m = s.mail(partial.id)
		wantState(t, m, "PARTIALLY_SENT a=ACCEPTED l=DEFERRED due")
		if !m.DueTime.AsTime().Equal(greylisted.DueTime.AsTime()) || m.LastError != greylisted.LastError {
			t.Fatalf("%v, was %v", m, greylisted)
		}
		wantState(t, s.mail(first.id), "QUEUED b=PENDING due")
		if m = s.mail(third.id); m.Status != pb.MailStatus_MAIL_STATUS_QUEUED || !m.DueTime.AsTime().Equal(later) {
			t.Fatalf("released before its send_after: %v", m)
		}
		if b := s.batch(); b.Claimed != 1 || b.Sent != 1 {
			t.Fatalf("%v", b)
		}
		wantState(t, s.mail(first.id), "SENT b=ACCEPTED")

		// The mail server's deletion holds in the same way, and it has to be back before
		// anything is released.
		if d, err := s.admin.DeleteMailServer(timeout(t), &pb.DeleteMailServerRequest{Name: "daily", Force: true}); err != nil || d.HeldMails != 2 {
			t.Fatalf("%v %v", d, err)
		}
		stuck := func() {
			t.Helper()
			if l, err := s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: f}); err != nil || l.Matched != 2 || l.Changed != 0 || len(l.Failures) != 2 || l.Failures[0].Reason != pb.ReasonWrongState {
				t.Fatalf("%v %v", l, err)
			}
		}
		stuck()
		if _, err := s.admin.UndeleteMailServer(timeout(t), &pb.UndeleteMailServerRequest{Name: "daily"}); err != nil {
			t.Fatal(err)
		}
		wantState(t, s.mail(third.id), "HELD c=PENDING")
		for _, st := range []pb.MailServer_Status{pb.MailServer_STATUS_UNAVAILABLE, pb.MailServer_STATUS_AVAILABLE} {
			if _, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "daily", Status: st}}); err != nil {
				t.Fatal(err)
			}
			if st == pb.MailServer_STATUS_UNAVAILABLE {
				stuck()
			}
		}
		if l, err := s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: f}); err != nil || l.Changed != 2 {
			t.Fatalf("%v %v", l, err)
		}
		if m = s.mail(third.id); !m.DueTime.AsTime().Equal(later) {
			t.Fatalf("%v", m)
		}
	})
}

// TestHoldAtSend: a mail that is sent with hold is durable and goes nowhere, whatever the mode.
func TestHoldAtSend(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := startSilence(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		s.addServer("daily", pb.Mode_MODE_DAEMON, relay.Port())
		later := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
		var ids []string
		for _, server := range []string{"now", "daily"} {
			r := one(server, pb.Kind_KIND_OTHER, "Born held", "a@y.example")
			r.Options.Hold, r.RequestId = true, server
			m := s.mustSend(r)
			if m.order != "ac" || m.mail.LastError == "" {
				t.Fatalf("%s %v", m.order, m.mail)
			}
			wantState(t, m.mail, "HELD a=PENDING")
			again := s.mustSend(r)
			if again.id != m.id || !again.accepted.Duplicate {
				t.Fatalf("%v", again)
			}
			wantState(t, again.mail, "HELD a=PENDING")
			r.Options.Hold = false
			if _, err := s.send(timeout(t), r); client.ReasonOf(err) != pb.ReasonRequestIDReused {
				t.Fatalf("without hold it is another request: %v", err)
			}
			ids = append(ids, m.id)
		}
		r := one("now", pb.Kind_KIND_OTHER, "Born held", "b@y.example")
		r.Options.Hold, r.Options.SendAfter = true, timestamppb.New(later)
		scheduled := s.mustSend(r)
		if b := s.batch(); b.Claimed != 0 {
			t.Fatalf("%v", b)
		}
		if l, err := s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Ids: append(ids, scheduled.id)}); err != nil || l.Changed != 3 {
			t.Fatalf("%v %v", l, err)
		}
		if m := s.mail(scheduled.id); m.Status != pb.MailStatus_MAIL_STATUS_QUEUED || !m.DueTime.AsTime().Equal(later) || m.LastError != "" {
			t.Fatalf("%v", m)
		}
		if b := s.batch(); b.Claimed != 2 || b.Sent != 2 {
			t.Fatalf("%v", b)
		}
	})
}

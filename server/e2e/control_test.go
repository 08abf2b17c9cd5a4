package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// silence is a relay that can be told to hang up after the dot, so that nobody knows what
// became of the mail. It keeps every body that reached it.
type silence struct {
	*smtpxtest.Server
	mu     sync.Mutex
	on     bool
	bodies []string
	to     [][]string // recipients of each body
	rcpt   []string
}

func startSilence(t *testing.T) *silence {
	r := &silence{}
	r.Server = (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch c.Verb {
		case "MAIL":
			r.rcpt = nil
		case "RCPT":
			if a := refuseBad(c); a != nil {
				return a
			}
			_, to, _ := strings.Cut(c.Arg, "<")
			to, _, _ = strings.Cut(to, ">")
			r.rcpt = append(r.rcpt, to)
		case "DOT":
			r.bodies, r.to = append(r.bodies, c.Arg), append(r.to, r.rcpt)
			if r.on {
				return &smtpxtest.Action{Close: true}
			}
		}
		return nil
	}}).Start(t)
	return r
}

func (r *silence) set(on bool) {
	r.mu.Lock()
	r.on = on
	r.mu.Unlock()
}

// of are the bodies that contain a text, and the recipients of each.
func (r *silence) of(text string) (bodies []string, to [][]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, b := range r.bodies {
		if strings.Contains(b, text) {
			bodies, to = append(bodies, b), append(to, r.to[i])
		}
	}
	return bodies, to
}

// one is a daemon-mode mail with a subject to know it by.
func one(server string, kind pb.Kind, subject string, to ...string) *pb.SendRequest {
	return &pb.SendRequest{Options: &pb.SendOptions{MailServer: server, Kind: kind, Reference: subject}, Message: &pb.MailMessage{To: to, Subject: subject, Text: "t"}}
}

func (s *service) resolve(id string, word pb.Resolution, reason string, recipients ...string) *pb.Mail {
	s.t.Helper()
	r, err := s.dispatch.ResolveMail(timeout(s.t), &pb.ResolveMailRequest{Id: id, Recipients: recipients, Resolution: word, Reason: reason})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Mail
}

func states(m *pb.Mail) string {
	var b strings.Builder
	b.WriteString(strings.TrimPrefix(m.Status.String(), "MAIL_STATUS_"))
	for _, r := range m.Recipients {
		fmt.Fprintf(&b, " %s=%s", r.Address[:1], strings.TrimPrefix(r.Status.String(), "STATUS_"))
	}
	if m.DueTime != nil {
		b.WriteString(" due")
	}
	if m.PossibleDuplicate {
		b.WriteString(" flagged")
	}
	return b.String()
}

func wantState(t *testing.T, m *pb.Mail, want string) {
	t.Helper()
	if got := states(m); got != want {
		t.Fatalf("it is %q, want %q\n%v", got, want, m)
	}
}

const (
	delivered    = pb.Resolution_RESOLUTION_DELIVERED
	notDelivered = pb.Resolution_RESOLUTION_NOT_DELIVERED
	resend       = pb.Resolution_RESOLUTION_RESEND
)

// TestResolve: an invoice whose outcome is unknown waits for a person, whose word is kept with
// its reason.
func TestResolve(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := startSilence(t)
		s.addServer("daily", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 1} })
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		lost := func(t *testing.T, kind pb.Kind, subject string, to ...string) string {
			t.Helper()
			relay.set(true)
			defer relay.set(false)
			m := s.mustSend(one("daily", kind, subject, to...))
			if b := s.batch(); b.Claimed != 1 || b.Unknown != 1 {
				t.Fatalf("%v", b)
			}
			return m.id
		}

		t.Run("delivered", func(t *testing.T) {
			id := lost(t, pb.Kind_KIND_INVOICE, "Delivered", "a@y.example", "b@y.example")
			wantState(t, s.mail(id), "UNKNOWN a=UNKNOWN b=UNKNOWN")
			if b := s.batch(); b.Claimed != 0 {
				t.Fatalf("the batch took an unknown invoice: %v", b)
			}
			if r, err := s.dispatch.RetryMails(timeout(t), &pb.RetryMailsRequest{Filter: &pb.MailFilter{Reference: "Delivered"}}); err != nil || r.Changed != 0 {
				t.Fatalf("%v %v", r, err)
			}
			wantState(t, s.resolve(id, delivered, "Mrs. Ä has it", "A <A@y.example>", "a@Y.example"), "UNKNOWN a=ACCEPTED b=UNKNOWN")
			m := s.resolve(id, delivered, "Mrs. Ö as well")
			wantState(t, m, "SENT a=ACCEPTED b=ACCEPTED")
			if m.FinishTime == nil || m.LastError != "" || !strings.Contains(m.Recipients[0].Detail, "person") || !strings.Contains(m.Recipients[0].Detail, "Mrs. Ä") ||
				!strings.Contains(m.Recipients[1].Detail, "Mrs. Ö") || m.Recipients[0].SmtpCode != 0 {
				t.Fatalf("%v", m)
			}
			wantState(t, s.mail(id), "SENT a=ACCEPTED b=ACCEPTED")
			if n, o := s.audits("ResolveMail", id, "Mrs. Ä has it"), s.audits("ResolveMail", id, "Mrs. Ö as well"); n != 1 || o != 1 {
				t.Fatalf("%d and %d audit rows", n, o)
			}
			if bodies, _ := relay.of("Delivered"); len(bodies) != 1 {
				t.Fatalf("sent %d times", len(bodies))
			}
		})

		t.Run("not delivered", func(t *testing.T) {
			id := lost(t, pb.Kind_KIND_WORK_ORDER, "Not delivered", "a@y.example")
			m := s.resolve(id, notDelivered, "he has nothing")
			wantState(t, m, "FAILED a=REJECTED")
			if !strings.Contains(m.LastError, "he has nothing") || !strings.Contains(m.Recipients[0].Detail, "person") {
				t.Fatalf("%v", m)
			}
			if b := s.batch(); b.Claimed != 0 {
				t.Fatalf("%v", b)
			}
			if r, err := s.dispatch.RetryMails(timeout(t), &pb.RetryMailsRequest{Ids: []string{id}}); err != nil || r.Changed != 1 {
				t.Fatalf("%v %v", r, err)
			}
			if b := s.batch(); b.Sent != 1 {
				t.Fatalf("%v", b)
			}
			wantState(t, s.mail(id), "SENT a=ACCEPTED")
		})

		t.Run("resend", func(t *testing.T) {
			id := lost(t, pb.Kind_KIND_INVOICE, "Resend", "a@y.example")
			before := s.mail(id)
			wantState(t, s.resolve(id, resend, "once more"), "DEFERRED a=PENDING due flagged")
			if b := s.batch(); b.Sent != 1 {
				t.Fatalf("%v", b)
			}
			m := s.mail(id)
			wantState(t, m, "SENT a=ACCEPTED flagged")
			bodies, _ := relay.of("Resend")
			if len(bodies) != 2 || bodies[0] != bodies[1] || !strings.Contains(bodies[1], before.MessageId) || m.MessageId != before.MessageId || m.AttemptCount != 2 {
				t.Fatalf("%d bodies\n%v", len(bodies), m)
			}
		})

		t.Run("one of several", func(t *testing.T) {
			id := lost(t, pb.Kind_KIND_INVOICE, "Several", "a@y.example", "b@y.example", "nobody@y.example")
			wantState(t, s.mail(id), "UNKNOWN a=UNKNOWN b=UNKNOWN n=REJECTED")
			wantState(t, s.resolve(id, resend, "a is sure to have nothing", "a@y.example"), "DEFERRED a=PENDING b=UNKNOWN n=REJECTED due flagged")
			s.batch()
			m := s.mail(id)
			wantState(t, m, "UNKNOWN a=ACCEPTED b=UNKNOWN n=REJECTED flagged")
			if m.LastError == "" {
				t.Fatal("it does not say why it stays")
			}
			if _, to := relay.of("Several"); len(to) != 2 || !slices.Equal(to[1], []string{"a@y.example"}) {
				t.Fatalf("sent to %v", to)
			}
			if b := s.batch(); b.Claimed != 0 {
				t.Fatalf("%v", b)
			}
			m = s.resolve(id, notDelivered, "b neither", "b@y.example")
			wantState(t, m, "PARTIALLY_SENT a=ACCEPTED b=REJECTED n=REJECTED flagged")
			if !strings.Contains(m.LastError, "b neither") {
				t.Fatalf("%v", m)
			}
			_, err := s.dispatch.ResolveMail(timeout(t), &pb.ResolveMailRequest{Id: id, Resolution: delivered, Reason: "r"})
			if status.Code(err) != codes.FailedPrecondition || client.ReasonOf(err) != pb.ReasonWrongState {
				t.Fatalf("nobody unknown any more: %v", err)
			}
		})

		// Bulk that the batch may double is no exception for a recipient whom a person has left
		// open.
		t.Run("one of several in php mode", func(t *testing.T) {
			relay.set(true)
			r := s.mustSend(one("now", pb.Kind_KIND_BULK, "Php", "a@y.example", "b@y.example", "later@y.example"))
			relay.set(false)
			wantState(t, r.mail, "UNKNOWN a=UNKNOWN b=UNKNOWN l=DEFERRED")
			wantState(t, s.resolve(r.id, resend, "a called", "a@y.example"), "DEFERRED a=PENDING b=UNKNOWN l=DEFERRED due flagged")
			s.batch()
			m := s.mail(r.id)
			wantState(t, m, "PARTIALLY_SENT a=ACCEPTED b=UNKNOWN l=DEFERRED due flagged")
			at := m.DueTime.AsTime()
			m = s.resolve(r.id, delivered, "b has it", "b@y.example")
			wantState(t, m, "PARTIALLY_SENT a=ACCEPTED b=ACCEPTED l=DEFERRED due flagged")
			if !m.DueTime.AsTime().Equal(at) {
				t.Fatalf("due %v, was %v", m.DueTime.AsTime(), at)
			}
			if _, to := relay.of("Php"); len(to) != 2 || !slices.Equal(to[1], []string{"a@y.example"}) {
				t.Fatalf("sent to %v", to)
			}
		})

		t.Run("refused", func(t *testing.T) {
			id := lost(t, pb.Kind_KIND_INVOICE, "Refused", "a@y.example", "nobody@y.example")
			try := func(r *pb.ResolveMailRequest) error {
				if r.Reason == "" {
					r.Reason = "refused"
				}
				_, err := s.dispatch.ResolveMail(timeout(t), r)
				return err
			}
			want := func(err error, code codes.Code, reason string) {
				t.Helper()
				if status.Code(err) != code || client.ReasonOf(err) != reason {
					t.Errorf("%v, want %v %s", err, code, reason)
				}
			}
			want(try(&pb.ResolveMailRequest{Id: uuidOfNobody, Resolution: delivered}), codes.NotFound, pb.ReasonMailNotFound)
			want(try(&pb.ResolveMailRequest{Id: uuidOfNobody, Resolution: resend}), codes.NotFound, pb.ReasonMailNotFound)
			refused(t, try(&pb.ResolveMailRequest{Id: id, Resolution: delivered, Recipients: []string{"a@y.example", "x@y.example", "nobody@y.example"}}), "recipients[1]")
			want(try(&pb.ResolveMailRequest{Id: id, Resolution: delivered, Recipients: []string{"a@y.example", "nobody@y.example"}}), codes.FailedPrecondition, pb.ReasonWrongState)
			wantState(t, s.mail(id), "UNKNOWN a=UNKNOWN n=REJECTED")

			sent := s.mustSend(one("now", pb.Kind_KIND_INVOICE, "Finished", "a@y.example"))
			want(try(&pb.ResolveMailRequest{Id: sent.id, Resolution: resend}), codes.FailedPrecondition, pb.ReasonWrongState)
			queued := s.mustSend(one("daily", pb.Kind_KIND_INVOICE, "Queued", "a@y.example"))
			want(try(&pb.ResolveMailRequest{Id: queued.id, Resolution: resend}), codes.FailedPrecondition, pb.ReasonWrongState)
			s.batch()

			stale := one("daily", pb.Kind_KIND_INVOICE, "Stale", "a@y.example")
			stale.Options.ExpireTime = timestamppb.New(time.Now().Add(2 * time.Second))
			relay.set(true)
			old := s.mustSend(stale)
			s.batch()
			relay.set(false)
			wantState(t, s.mail(old.id), "UNKNOWN a=UNKNOWN")
			<-time.After(time.Until(stale.Options.ExpireTime.AsTime()))
			want(try(&pb.ResolveMailRequest{Id: old.id, Resolution: resend}), codes.FailedPrecondition, pb.ReasonWrongState)
			wantState(t, s.resolve(old.id, delivered, "it came in time"), "SENT a=ACCEPTED")

			set := func(st pb.MailServer_Status) {
				t.Helper()
				if _, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "daily", Status: st}}); err != nil {
					t.Fatal(err)
				}
			}
			set(pb.MailServer_STATUS_UNAVAILABLE)
			want(try(&pb.ResolveMailRequest{Id: id, Resolution: resend}), codes.FailedPrecondition, pb.ReasonMailServerUnavailable)
			set(pb.MailServer_STATUS_AVAILABLE)
			if _, err := s.admin.DeleteMailServer(timeout(t), &pb.DeleteMailServerRequest{Name: "daily"}); err != nil {
				t.Fatal(err)
			}
			want(try(&pb.ResolveMailRequest{Id: id, Resolution: resend}), codes.FailedPrecondition, pb.ReasonMailServerDeleted)
			if n := s.audits("ResolveMail", "", "refused"); n != 0 {
				t.Errorf("%d refused calls are in the audit log", n)
			}
			wantState(t, s.resolve(id, notDelivered, "needs no mail server"), "FAILED a=REJECTED n=REJECTED")
		})
	})
}

// TestBeingSent: nobody's word changes a mail that is being sent just now.
func TestBeingSent(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	reached, release := make(chan struct{}), make(chan struct{})
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			close(reached)
			<-release
		}
		return nil
	}}).Start(t)
	s.addServer("daily", pb.Mode_MODE_DAEMON, relay.Port())
	id := s.mustSend(one("daily", pb.Kind_KIND_INVOICE, "Slow", "a@y.example")).id
	done := make(chan error, 1)
	go func() {
		_, err := s.admin.RunBatch(context.Background(), &pb.RunBatchRequest{Wait: true})
		done <- err
	}()
	<-reached
	_, err := s.dispatch.ResolveMail(timeout(t), &pb.ResolveMailRequest{Id: id, Resolution: delivered, Reason: "r"})
	if status.Code(err) != codes.FailedPrecondition || client.ReasonOf(err) != pb.ReasonWrongState {
		t.Errorf("resolve: %v", err)
	}
	h, err := s.dispatch.HoldMails(timeout(t), &pb.HoldMailsRequest{Filter: &pb.MailFilter{MailServer: "daily"}})
	if err != nil || h.Matched != 1 || h.Changed != 0 || len(h.Failures) != 1 || h.Failures[0].Id != id || h.Failures[0].Reason != pb.ReasonWrongState {
		t.Errorf("hold: %v %v", h, err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantState(t, s.mail(id), "SENT a=ACCEPTED")
}

// TestPriorities: what waits at one mail server leaves by priority, then in the order it came.
func TestPriorities(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := startSilence(t)
		s.addServer("daily", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 1} })
		const before = 60 // more than the batch takes at first
		for range before {
			s.mustSend(one("daily", pb.Kind_KIND_BULK, "first", "first@y.example"))
		}
		sent := before
		for _, x := range []struct {
			name     string
			kind     pb.Kind
			asked    pb.Priority
			priority pb.Priority
		}{
			{"bulk", pb.Kind_KIND_BULK, 0, pb.Priority_PRIORITY_LOW},
			{"other", 0, 0, pb.Priority_PRIORITY_NORMAL},
			{"invoice", pb.Kind_KIND_INVOICE, 0, pb.Priority_PRIORITY_HIGH},
			{"agent", pb.Kind_KIND_AGENT_MESSAGE, 0, pb.Priority_PRIORITY_URGENT},
			{"order", pb.Kind_KIND_WORK_ORDER, 0, pb.Priority_PRIORITY_HIGH},
			{"late", pb.Kind_KIND_AGENT_MESSAGE, pb.Priority_PRIORITY_LOW, pb.Priority_PRIORITY_LOW},
			{"fast", pb.Kind_KIND_BULK, pb.Priority_PRIORITY_URGENT, pb.Priority_PRIORITY_URGENT},
			{"middle", pb.Kind_KIND_BULK, pb.Priority_PRIORITY_NORMAL, pb.Priority_PRIORITY_NORMAL},
			{"better", 0, pb.Priority_PRIORITY_HIGH, pb.Priority_PRIORITY_HIGH},
		} {
			r := one("daily", x.kind, x.name, x.name+"@y.example")
			r.Options.Priority = x.asked
			m := s.mustSend(r)
			if m.mail.Priority != x.priority || s.mail(m.id).Priority != x.priority {
				t.Errorf("%s: %v and %v, want %v", x.name, m.mail.Priority, s.mail(m.id).Priority, x.priority)
			}
			sent++
		}
		if b := s.batch(); int(b.Sent) != sent {
			t.Fatalf("%v", b)
		}
		var order []string
		for _, m := range relay.Mails() {
			name, _, _ := strings.Cut(m.To[0], "@")
			order = append(order, name)
		}
		want := strings.Fields("agent fast invoice order better other middle " + strings.Repeat("first ", before) + "bulk late")
		if !slices.Equal(order, want) {
			t.Errorf("sent in the order %v, want %v", order, want)
		}
	})
}

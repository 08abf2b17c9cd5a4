package clienttest_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func send(t *testing.T, c *client.Client, o *maildispatchv1.SendOptions, to ...string) *client.Result {
	t.Helper()
	res, err := c.Deliver(t.Context(), &maildispatchv1.SendRequest{Options: o, Message: &maildispatchv1.MailMessage{To: to, Subject: "Hello", Text: "How are you?"}})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func wantReason(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || client.ReasonOf(err) != reason {
		t.Errorf("want %v %s, got %v", code, reason, err)
	}
}

func TestMailServers(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	ctx := t.Context()
	create := func(m *maildispatchv1.MailServer) error {
		_, err := c.CreateMailServer(ctx, &maildispatchv1.CreateMailServerRequest{MailServer: m})
		return err
	}
	err := create(&maildispatchv1.MailServer{})
	wantReason(t, err, codes.InvalidArgument, maildispatchv1.ReasonValidationFailed)
	if vs := client.Violations(err); len(vs) != 4 {
		t.Errorf("violations %v", vs)
	}
	billing := &maildispatchv1.MailServer{
		Name: "billing", Team: "billing", Type: maildispatchv1.MailServer_TYPE_SMTP, From: "billing@example.com", Mode: maildispatchv1.Mode_MODE_PHP,
		Smtp: &maildispatchv1.Smtp{Host: "smtp.example.com", Port: 587, Username: "u", Password: "p"}, IsDefault: proto.Bool(true)}
	if err := create(billing); err != nil {
		t.Fatal(err)
	}
	wantReason(t, create(billing), codes.AlreadyExists, maildispatchv1.ReasonMailServerExists)
	second := proto.CloneOf(billing)
	second.Name = "second"
	wantReason(t, create(second), codes.FailedPrecondition, maildispatchv1.ReasonDefaultExists)
	second.IsDefault = nil
	if err := create(second); err != nil {
		t.Fatal(err)
	}

	got, err := c.GetMailServer(ctx, &maildispatchv1.GetMailServerRequest{Name: "billing"})
	if s := got.GetMailServer().GetSmtp(); err != nil || s.GetPassword() != "" || !s.GetHasPassword() {
		t.Errorf("%v, %v", got, err)
	}
	_, err = c.GetMailServer(ctx, &maildispatchv1.GetMailServerRequest{Name: "nothing"})
	wantReason(t, err, codes.NotFound, maildispatchv1.ReasonMailServerNotFound)

	etag := got.GetMailServer().GetEtag()
	up, err := c.UpdateMailServer(ctx, &maildispatchv1.UpdateMailServerRequest{MailServer: &maildispatchv1.MailServer{
		Name: "billing", Etag: etag, Smtp: &maildispatchv1.Smtp{Port: 465}}})
	if m := up.GetMailServer(); err != nil || m.GetSmtp().GetPort() != 465 || m.GetSmtp().GetHost() != "smtp.example.com" || m.GetEtag() == etag || !m.GetSmtp().GetHasPassword() {
		t.Errorf("%v, %v", up, err)
	}
	_, err = c.UpdateMailServer(ctx, &maildispatchv1.UpdateMailServerRequest{MailServer: &maildispatchv1.MailServer{Name: "billing", Etag: etag}})
	wantReason(t, err, codes.Aborted, maildispatchv1.ReasonETagMismatch)
	up, err = c.UpdateMailServer(ctx, &maildispatchv1.UpdateMailServerRequest{MailServer: &maildispatchv1.MailServer{Name: "billing"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"smtp.username", "display_name"}}})
	if m := up.GetMailServer(); err != nil || m.GetSmtp().GetUsername() != "" || m.GetSmtp().GetPort() != 465 || m.GetFrom() != "billing@example.com" {
		t.Errorf("%v, %v", up, err)
	}
	_, err = c.UpdateMailServer(ctx, &maildispatchv1.UpdateMailServerRequest{MailServer: &maildispatchv1.MailServer{Name: "billing"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"nonsense"}}})
	if status.Code(err) == codes.OK {
		t.Error("an unknown path was taken")
	}

	swap, err := c.SetDefaultMailServer(ctx, &maildispatchv1.SetDefaultMailServerRequest{Name: "second"})
	if err != nil || swap.GetPreviousDefault().GetName() != "billing" || !swap.GetMailServer().GetIsDefault() {
		t.Errorf("%v, %v", swap, err)
	}
	if r := send(t, c, &maildispatchv1.SendOptions{Team: "billing"}, "a@example.com"); r.Accepted.GetMailServer() != "second" || r.Accepted.GetRoute() != maildispatchv1.Route_ROUTE_TEAM_DEFAULT {
		t.Errorf("route %v", r.Accepted)
	}

	srv.Answer("late@example.com", clienttest.Deferred)
	held := send(t, c, &maildispatchv1.SendOptions{Team: "billing"}, "late@example.com")
	_, err = c.DeleteMailServer(ctx, &maildispatchv1.DeleteMailServerRequest{Name: "second"})
	wantReason(t, err, codes.FailedPrecondition, maildispatchv1.ReasonMailsPending)
	del, err := c.DeleteMailServer(ctx, &maildispatchv1.DeleteMailServerRequest{Name: "second", Force: true})
	if err != nil || del.GetHeldMails() != 1 || del.GetMailServer().GetDeleteTime() == nil {
		t.Errorf("%v, %v", del, err)
	}
	if m, err := c.GetMail(ctx, &maildispatchv1.GetMailRequest{Id: held.MailID}); err != nil || m.GetMail().GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_HELD {
		t.Errorf("%v, %v", m, err)
	}
	_, err = c.Deliver(ctx, &maildispatchv1.SendRequest{Options: &maildispatchv1.SendOptions{Team: "billing", MailServer: "second"}, Message: &maildispatchv1.MailMessage{To: []string{"a@example.com"}}})
	wantReason(t, err, codes.FailedPrecondition, maildispatchv1.ReasonMailServerDeleted)
	if _, err = c.UndeleteMailServer(ctx, &maildispatchv1.UndeleteMailServerRequest{Name: "second"}); err != nil {
		t.Error(err)
	}
	_, err = c.UndeleteMailServer(ctx, &maildispatchv1.UndeleteMailServerRequest{Name: "second"})
	wantReason(t, err, codes.FailedPrecondition, maildispatchv1.ReasonMailServerNotDeleted)
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.AddMailServer(&maildispatchv1.MailServer{Name: "off", Status: maildispatchv1.MailServer_STATUS_UNAVAILABLE})
	srv.AddMailServer(&maildispatchv1.MailServer{Name: "foreign", Team: "other"})
	c := srv.Client(t, client.Options{})
	try := func(o *maildispatchv1.SendOptions) error {
		_, err := c.Deliver(t.Context(), &maildispatchv1.SendRequest{Options: o, Message: &maildispatchv1.MailMessage{To: []string{"a@example.com"}}})
		return err
	}
	wantReason(t, try(&maildispatchv1.SendOptions{MailServer: "off"}), codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable)
	wantReason(t, try(&maildispatchv1.SendOptions{MailServer: "foreign", Team: "billing"}), codes.NotFound, maildispatchv1.ReasonMailServerNotFound)
	if err := try(&maildispatchv1.SendOptions{MailServer: "foreign", Team: "other"}); err != nil {
		t.Error(err)
	}
	srv.AddMailServer(&maildispatchv1.MailServer{Name: "theirs", Team: "other", IsDefault: proto.Bool(true)})
	for _, turn := range []struct {
		server string
		team   string
	}{{"theirs", "other"}, {"test", ""}, {"test", "billing"}} {
		status := func(to maildispatchv1.MailServer_Status) {
			t.Helper()
			res, err := c.UpdateMailServer(t.Context(), &maildispatchv1.UpdateMailServerRequest{MailServer: &maildispatchv1.MailServer{Name: turn.server, Status: to}})
			if err != nil || !res.GetMailServer().GetIsDefault() {
				t.Fatalf("%s: got %v, %v, want it to stay the default", turn.server, res, err)
			}
		}
		status(maildispatchv1.MailServer_STATUS_UNAVAILABLE)
		err := try(&maildispatchv1.SendOptions{Team: turn.team})
		wantReason(t, err, codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable)
		if err == nil || !strings.Contains(err.Error(), turn.server) {
			t.Errorf("got %v, want it to name %s", err, turn.server)
		}
		_, err = c.SetDefaultMailServer(t.Context(), &maildispatchv1.SetDefaultMailServerRequest{Name: turn.server})
		wantReason(t, err, codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable)
		status(maildispatchv1.MailServer_STATUS_AVAILABLE)
		if err := try(&maildispatchv1.SendOptions{Team: turn.team}); err != nil {
			t.Errorf("%s is available again: %v", turn.server, err)
		}
	}
	srv.AddMailServer(&maildispatchv1.MailServer{Name: "test"}) // no default any more
	wantReason(t, try(nil), codes.FailedPrecondition, maildispatchv1.ReasonNoDefaultMailServer)
}

func TestTestMailServer(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.AnswerTest("smtp.example.com", &maildispatchv1.TestStep{Kind: maildispatchv1.TestStep_KIND_AUTH, Outcome: maildispatchv1.TestStep_OUTCOME_FAILED,
		Detail: "login refused", Hint: "check the password", SmtpCode: 535})
	c := srv.Client(t, client.Options{})
	good, err := c.TestMailServer(t.Context(), &maildispatchv1.TestMailServerRequest{Name: "test"})
	if err != nil || !good.GetSuccess() || good.GetMessage() != "connect success!" || len(good.GetSteps()) != 11 {
		t.Errorf("%v, %v", good, err)
	}
	bad, err := c.TestMailServer(t.Context(), &maildispatchv1.TestMailServerRequest{MailServer: &maildispatchv1.MailServer{
		Smtp: &maildispatchv1.Smtp{Host: "smtp.example.com", Encryption: maildispatchv1.Smtp_ENCRYPTION_STARTTLS, Username: "u"}}})
	if err != nil || bad.GetSuccess() || bad.GetMessage() != "auth: login refused" {
		t.Errorf("%v, %v", bad, err)
	}
	var outcomes []string
	for _, s := range bad.GetSteps() {
		outcomes = append(outcomes, s.GetOutcome().String()[len("OUTCOME_"):])
	}
	if want := []string{"OK", "OK", "OK", "SKIPPED", "OK", "OK", "OK", "FAILED", "SKIPPED", "SKIPPED", "SKIPPED"}; !slices.Equal(outcomes, want) {
		t.Errorf("%v", outcomes)
	}
}

// A mail server that is suspended keeps its mails in mode daemon, and fails those in mode php
// for now, with the words and what to do.
func TestSuspend(t *testing.T) {
	t.Parallel()
	for _, why := range []clienttest.Outcome{clienttest.Unreachable, clienttest.LoginRefused, clienttest.NoToken, clienttest.Throttled} {
		srv := clienttest.New(t)
		srv.AddMailServer(&maildispatchv1.MailServer{Name: "bulk", Mode: maildispatchv1.Mode_MODE_DAEMON})
		c := srv.Client(t, client.Options{})
		send := func(via string) *maildispatchv1.Mail {
			t.Helper()
			d, err := c.Deliver(t.Context(), &maildispatchv1.SendRequest{Message: &maildispatchv1.MailMessage{To: []string{"a@example.com"}, Subject: "s", Text: "t"}, Options: &maildispatchv1.SendOptions{MailServer: via}})
			if err != nil {
				t.Fatal(err)
			}
			m, err := c.GetMail(t.Context(), &maildispatchv1.GetMailRequest{Id: d.MailID})
			if err != nil {
				t.Fatal(err)
			}
			return m.GetMail()
		}
		srv.Suspend("test", why)
		srv.Suspend("bulk", why)
		m := send("test")
		if r := m.Recipients[0]; m.Status != maildispatchv1.MailStatus_MAIL_STATUS_FAILED || r.Status != maildispatchv1.RecipientResult_STATUS_DEFERRED || r.Failure != why.Failure || r.Hint != why.Hint ||
			!strings.Contains(m.LastError, why.Detail) {
			t.Errorf("%s: %v", why.Detail, m)
		}
		queued := send("bulk")
		run := func() *maildispatchv1.Mail {
			t.Helper()
			if _, err := c.RunBatch(t.Context(), &maildispatchv1.RunBatchRequest{}); err != nil {
				t.Fatal(err)
			}
			got, err := c.GetMail(t.Context(), &maildispatchv1.GetMailRequest{Id: queued.Id})
			if err != nil {
				t.Fatal(err)
			}
			return got.GetMail()
		}
		if m := run(); m.Status != maildispatchv1.MailStatus_MAIL_STATUS_QUEUED || m.AttemptCount != 0 {
			t.Errorf("%s: %v", why.Detail, m)
		}
		health := func() *maildispatchv1.Health {
			got, err := c.GetMailServer(t.Context(), &maildispatchv1.GetMailServerRequest{Name: "bulk"})
			if err != nil {
				t.Fatal(err)
			}
			return got.GetMailServer().GetHealth()
		}
		if h := health(); h.GetState() != maildispatchv1.Health_STATE_SUSPENDED || !strings.Contains(h.GetSuspendedReason(), why.Detail) || h.GetRetryTime() == nil {
			t.Errorf("%s: %v", why.Detail, h)
		}
		srv.Resume("bulk")
		if m := run(); m.Status != maildispatchv1.MailStatus_MAIL_STATUS_SENT || health().GetState() != maildispatchv1.Health_STATE_OK {
			t.Errorf("%s: %v", why.Detail, m)
		}
	}
}

// A daemon-mode mail goes through its whole life: queued, deferred, due again, sent.
func TestBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.AddMailServer(&maildispatchv1.MailServer{Name: "bulk", Mode: maildispatchv1.Mode_MODE_DAEMON})
		srv.Answer("late@example.com", clienttest.Deferred)
		srv.Answer("lost@example.com", clienttest.NoReply)
		c := srv.Client(t, client.Options{})
		bulk := &maildispatchv1.SendOptions{MailServer: "bulk", Kind: maildispatchv1.Kind_KIND_BULK}
		late := send(t, c, bulk, "late@example.com").MailID
		lost := send(t, c, &maildispatchv1.SendOptions{MailServer: "bulk", Kind: maildispatchv1.Kind_KIND_INVOICE}, "lost@example.com").MailID
		send(t, c, bulk, "anna@example.com")
		send(t, c, bulk, "anna@example.com", "late@example.com")
		send(t, c, &maildispatchv1.SendOptions{MailServer: "bulk", SendAfter: timestamppb.New(time.Now().Add(time.Hour))}, "anna@example.com")
		send(t, c, &maildispatchv1.SendOptions{MailServer: "bulk", SendAfter: timestamppb.New(time.Now().Add(time.Hour)), ExpireTime: timestamppb.New(time.Now().Add(2 * time.Hour))}, "old@example.com")

		got, err := c.RunBatch(t.Context(), &maildispatchv1.RunBatchRequest{Wait: true})
		if want := (&maildispatchv1.RunBatchResponse{Claimed: 4, Sent: 1, PartiallySent: 1, Deferred: 1, Unknown: 1}); err != nil || !proto.Equal(got, want) {
			t.Errorf("first pass %v, %v", got, err)
		}
		if got := srv.RunBatch(); got.GetClaimed() != 0 {
			t.Errorf("nothing was due: %v", got)
		}
		status := func(id string) *maildispatchv1.Mail {
			m, err := c.GetMail(t.Context(), &maildispatchv1.GetMailRequest{Id: id})
			if err != nil {
				t.Fatal(err)
			}
			return m.GetMail()
		}
		if m := status(late); m.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_DEFERRED || m.GetDueTime() == nil {
			t.Errorf("%v", m)
		}

		// A mail of unknown outcome is sent again only by its id, and marked.
		filter := &maildispatchv1.MailFilter{Statuses: []maildispatchv1.MailStatus{maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN}}
		retry, err := c.RetryMails(t.Context(), &maildispatchv1.RetryMailsRequest{Filter: filter})
		if err != nil || retry.GetMatched() != 1 || retry.GetChanged() != 0 || len(retry.GetFailures()) != 1 || retry.GetFailures()[0].GetReason() != maildispatchv1.ReasonWrongState {
			t.Errorf("%v, %v", retry, err)
		}
		srv.Answer("lost@example.com", clienttest.Accepted)
		srv.Answer("late@example.com", clienttest.Accepted)
		for _, dry := range []bool{true, false} {
			retry, err = c.RetryMails(t.Context(), &maildispatchv1.RetryMailsRequest{Ids: []string{lost, "nothing"}, ValidateOnly: dry})
			if err != nil || retry.GetMatched() != 2 || retry.GetChanged() != 1 || len(retry.GetFailures()) != 1 || retry.GetFailures()[0].GetReason() != maildispatchv1.ReasonMailNotFound {
				t.Errorf("%v, %v", retry, err)
			}
			if waits := status(lost).GetStatus() == maildispatchv1.MailStatus_MAIL_STATUS_DEFERRED; waits == dry {
				t.Errorf("dry run %v: %v", dry, status(lost))
			}
		}
		<-time.After(3 * time.Hour)
		if got, want := srv.RunBatch(), (&maildispatchv1.RunBatchResponse{Claimed: 5, Sent: 4, Expired: 1}); !proto.Equal(got, want) {
			t.Errorf("last pass %v", got)
		}
		if m := status(lost); m.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_SENT || !m.GetPossibleDuplicate() || m.GetAttemptCount() != 2 {
			t.Errorf("%v", m)
		}
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.AddMailServer(&maildispatchv1.MailServer{Name: "bulk", Mode: maildispatchv1.Mode_MODE_DAEMON})
	c := srv.Client(t, client.Options{})
	o := &maildispatchv1.SendOptions{MailServer: "bulk", Labels: map[string]string{"campaign": "spring"}}
	send(t, c, o, "a@example.com")
	send(t, c, o, "b@example.com")
	keep := send(t, c, &maildispatchv1.SendOptions{MailServer: "bulk"}, "c@example.com").MailID

	for name, req := range map[string]*maildispatchv1.CancelMailsRequest{
		"nothing": {}, "empty filter": {Filter: &maildispatchv1.MailFilter{}},
		"both": {Ids: []string{keep}, Filter: &maildispatchv1.MailFilter{Reference: "x"}},
	} {
		if _, err := c.CancelMails(t.Context(), req); client.ReasonOf(err) != maildispatchv1.ReasonValidationFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
	res, err := c.CancelMails(t.Context(), &maildispatchv1.CancelMailsRequest{Filter: &maildispatchv1.MailFilter{Labels: o.Labels}})
	if err != nil || res.GetMatched() != 2 || res.GetChanged() != 2 {
		t.Errorf("%v, %v", res, err)
	}
	again, err := c.CancelMails(t.Context(), &maildispatchv1.CancelMailsRequest{Ids: []string{srv.Mails()[0].Mail.GetId()}})
	if err != nil || again.GetChanged() != 0 || again.GetFailures()[0].GetReason() != maildispatchv1.ReasonWrongState {
		t.Errorf("%v, %v", again, err)
	}
	var left []string
	for _, m := range srv.Mails() {
		if m.Mail.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_CANCELLED {
			left = append(left, m.Mail.GetId())
		}
	}
	if !slices.Equal(left, []string{keep}) {
		t.Errorf("left are %v", left)
	}
}

func TestHoldAndResolve(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Answer("lost@example.com", clienttest.NoReply)
	srv.Answer("gone@example.com", clienttest.NoReply)
	c := srv.Client(t, client.Options{})
	held := send(t, c, &maildispatchv1.SendOptions{Hold: true, Kind: maildispatchv1.Kind_KIND_INVOICE}, "a@example.com")
	if held.Mail.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_HELD || held.Mail.GetPriority() != maildispatchv1.Priority_PRIORITY_HIGH || srv.RunBatch().GetClaimed() != 0 {
		t.Errorf("%v", held.Mail)
	}
	release := &maildispatchv1.ReleaseMailsRequest{Filter: &maildispatchv1.MailFilter{MailServer: "test"}}
	if r, err := c.ReleaseMails(t.Context(), release); err != nil || r.GetChanged() != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.HoldMails(t.Context(), &maildispatchv1.HoldMailsRequest{Ids: []string{held.MailID}}); err != nil || r.GetChanged() != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.HoldMails(t.Context(), &maildispatchv1.HoldMailsRequest{Ids: []string{held.MailID}}); err != nil || len(r.GetFailures()) != 1 {
		t.Errorf("held twice: %v, %v", r, err)
	}
	if r, err := c.ReleaseMails(t.Context(), release); err != nil || r.GetChanged() != 1 || srv.RunBatch().GetSent() != 1 {
		t.Errorf("%v, %v", r, err)
	}

	lost := send(t, c, nil, "lost@example.com", "gone@example.com").MailID
	if r, err := c.MoveMails(t.Context(), &maildispatchv1.MoveMailsRequest{Ids: []string{lost}, MailServer: "test"}); err != nil || len(r.GetFailures()) != 1 {
		t.Errorf("a mail whose outcome is unknown was moved: %v, %v", r, err)
	}
	resolve := func(word maildispatchv1.Resolution, reason string, to ...string) (*maildispatchv1.Mail, error) {
		r, err := c.ResolveMail(t.Context(), &maildispatchv1.ResolveMailRequest{Id: lost, Resolution: word, Reason: reason, Recipients: to})
		return r.GetMail(), err
	}
	_, err := resolve(maildispatchv1.Resolution_RESOLUTION_DELIVERED, "")
	wantReason(t, err, codes.InvalidArgument, maildispatchv1.ReasonValidationFailed)
	_, err = resolve(maildispatchv1.Resolution_RESOLUTION_DELIVERED, "seen", "nobody@example.com")
	wantReason(t, err, codes.InvalidArgument, maildispatchv1.ReasonValidationFailed)
	srv.Answer("lost@example.com", clienttest.Accepted)
	if m, err := resolve(maildispatchv1.Resolution_RESOLUTION_RESEND, "has nothing", "Lost@example.com"); err != nil || m.GetDueTime() == nil || !m.GetPossibleDuplicate() {
		t.Errorf("%v, %v", m, err)
	}
	srv.RunBatch()
	_, err = resolve(maildispatchv1.Resolution_RESOLUTION_DELIVERED, "seen", "lost@example.com")
	wantReason(t, err, codes.FailedPrecondition, maildispatchv1.ReasonWrongState)
	if m, err := resolve(maildispatchv1.Resolution_RESOLUTION_DELIVERED, "seen"); err != nil || m.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_SENT || m.GetAttemptCount() != 2 || m.GetRecipients()[1].GetAttempt() != 1 {
		t.Errorf("%v, %v", m, err)
	}
}

// What was taken can be looked at, and looking changes nothing.
func TestMailsAreCopies(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	send(t, c, nil, "a@example.com")
	m := srv.Mails()[0]
	if m.Request.GetMessage().GetSubject() != "Hello" || m.Mail.GetRecipients()[0].GetAddress() != "a@example.com" {
		t.Errorf("%v", m)
	}
	m.Mail.Status, m.Request.Message.Subject = 0, ""
	if again := srv.Mails()[0]; again.Mail.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_SENT || again.Request.GetMessage().GetSubject() != "Hello" {
		t.Errorf("%v", again)
	}
}

package client_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestResultWords: each word lists its recipients, and WillRetry goes by whether the service
// has a time for the next attempt.
func TestResultWords(t *testing.T) {
	t.Parallel()
	s := clienttest.New(t)
	c := s.Client(t, client.Options{})
	s.AddMailServer(&maildispatchv1.MailServer{Name: "daemon", Mode: maildispatchv1.Mode_MODE_DAEMON})
	s.Answer("no@x.example", clienttest.Refused)
	s.Answer("maybe@x.example", clienttest.NoReply)
	s.Answer("later@x.example", clienttest.Deferred)
	send := func(server string, after *timestamppb.Timestamp, to ...string) *client.Result {
		t.Helper()
		r, err := c.Deliver(context.Background(), &maildispatchv1.SendRequest{Options: &maildispatchv1.SendOptions{MailServer: server, SendAfter: after}, Message: &maildispatchv1.MailMessage{To: to}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, tc := range map[string]struct {
		r                         *client.Result
		refused, unknown, waiting int
		willRetry                 bool
	}{
		"sent":          {send("test", nil, "a@x.example"), 0, 0, 0, false},
		"each kind":     {send("test", nil, "a@x.example", "no@x.example", "maybe@x.example", "later@x.example"), 1, 1, 1, false},
		"queued":        {send("daemon", nil, "a@x.example"), 0, 0, 1, true},
		"later":         {send("test", timestamppb.New(time.Now().Add(time.Hour)), "a@x.example"), 0, 0, 1, true},
		"nothing heard": {&client.Result{}, 0, 0, 0, false},
	} {
		if got := [3]int{len(tc.r.Refused()), len(tc.r.Unknown()), len(tc.r.Waiting())}; got != [3]int{tc.refused, tc.unknown, tc.waiting} || tc.r.WillRetry() != tc.willRetry {
			t.Errorf("%s: got %v, will retry %v", name, got, tc.r.WillRetry())
		}
	}
}

// TestSendMailAndFind: what SendMail has sent, Find finds.
func TestSendMailAndFind(t *testing.T) {
	t.Parallel()
	s := clienttest.New(t)
	c := s.Client(t, client.Options{})
	res, err := c.SendMail(context.Background(), &maildispatchv1.SendMailRequest{Options: &maildispatchv1.SendOptions{Reference: "INV-1"}, Message: &maildispatchv1.MailMessage{To: []string{"a@x.example"}}})
	if err != nil || res.Mail.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_SENT {
		t.Fatal(res, err)
	}
	for m, err := range c.Find(context.Background(), &maildispatchv1.FindMailsRequest{Text: "INV-1"}) {
		if err != nil || m.Id != res.MailId {
			t.Fatal(m, err)
		}
		return
	}
	t.Error("nothing was found")
}

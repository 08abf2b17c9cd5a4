package client_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func mailTo(to ...string) *maildispatchv1.SendRequest {
	return &maildispatchv1.SendRequest{Message: &maildispatchv1.MailMessage{To: to, Subject: "Invoice 4711", Text: "Please find it attached."}}
}

// events names what Follow yields, and its error last.
func events(c *client.Client, ctx context.Context, req *maildispatchv1.SendRequest) (names []string, err error) {
	for e, err := range c.Follow(ctx, req) {
		if err != nil {
			return names, err
		}
		switch e := e.GetEvent().(type) {
		case *maildispatchv1.SendResponse_Accepted_:
			names = append(names, "accepted")
		case *maildispatchv1.SendResponse_Attempt:
			names = append(names, "attempt")
		case *maildispatchv1.SendResponse_Recipient:
			names = append(names, e.Recipient.GetAddress())
		case *maildispatchv1.SendResponse_Completed_:
			names = append(names, "completed")
		}
	}
	return names, nil
}

func TestDeliver(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		mode        maildispatchv1.Mode
		answers     map[string]clienttest.Outcome
		status      maildispatchv1.MailStatus
		notAccepted []string
	}{
		"php, all accepted": {maildispatchv1.Mode_MODE_PHP, nil, maildispatchv1.MailStatus_MAIL_STATUS_SENT, nil},
		"php, one refused": {maildispatchv1.Mode_MODE_PHP, map[string]clienttest.Outcome{"b@example.com": clienttest.Refused},
			maildispatchv1.MailStatus_MAIL_STATUS_PARTIALLY_SENT, []string{"b@example.com"}},
		"php, all refused": {maildispatchv1.Mode_MODE_PHP, map[string]clienttest.Outcome{"a@example.com": clienttest.Refused, "B@example.com": clienttest.Deferred},
			maildispatchv1.MailStatus_MAIL_STATUS_FAILED, []string{"a@example.com", "b@example.com"}},
		"php, no reply": {maildispatchv1.Mode_MODE_PHP, map[string]clienttest.Outcome{"a@example.com": clienttest.NoReply, "b@example.com": clienttest.NoReply},
			maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN, []string{"a@example.com", "b@example.com"}},
		"daemon": {maildispatchv1.Mode_MODE_DAEMON, nil, maildispatchv1.MailStatus_MAIL_STATUS_QUEUED, []string{"a@example.com", "b@example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := clienttest.New(t)
			srv.AddMailServer(&maildispatchv1.MailServer{Name: "test", Mode: test.mode, IsDefault: proto.Bool(true)})
			for a, o := range test.answers {
				srv.Answer(a, o)
			}
			c := srv.Client(t, client.Options{})
			req := mailTo("Anna <a@example.com>", "b@example.com")
			res, err := c.Deliver(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if got := res.Mail.GetStatus(); got != test.status {
				t.Errorf("status %v", got)
			}
			if want := test.status == maildispatchv1.MailStatus_MAIL_STATUS_SENT; res.Sent() != want {
				t.Errorf("Sent() = %v", !want)
			}
			var not []string
			for _, r := range res.NotAccepted() {
				not = append(not, r.GetAddress())
			}
			if !slices.Equal(not, test.notAccepted) {
				t.Errorf("not accepted: %v", not)
			}
			if a := res.Accepted; a.GetMailServer() != "test" || a.GetMode() != test.mode || a.GetRoute() != maildispatchv1.Route_ROUTE_SYSTEM_DEFAULT || a.GetDuplicate() {
				t.Errorf("accepted %v", a)
			}
			if res.MailID == "" || res.MailID != res.Mail.GetId() || res.RequestID == "" || res.RequestID != res.Mail.GetRequestId() {
				t.Errorf("ids %q %q of %v", res.MailID, res.RequestID, res.Mail)
			}
			if req.GetRequestId() != "" {
				t.Error("the caller's request was written to")
			}
		})
	}
}

func TestFollowYieldsEveryEventInOrder(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	got, err := events(c, t.Context(), mailTo("a@example.com", "b@example.com"))
	if want := []string{"accepted", "attempt", "a@example.com", "b@example.com", "completed"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

// The heart of the helper: wherever the stream breaks, once or twice, the caller hears every
// event once and there is one mail.
func TestDeliverSurvivesBreaks(t *testing.T) {
	t.Parallel()
	big := mailTo("a@example.com", "b@example.com")
	// far beyond what grpc repeats by itself
	big.Message.Attachments = []*maildispatchv1.Attachment{{Filename: "scan.tiff", Content: make([]byte, 2<<20)}}
	want := []string{"accepted", "attempt", "a@example.com", "b@example.com", "completed"}
	for size, req := range map[string]*maildispatchv1.SendRequest{"small": mailTo("a@example.com", "b@example.com"), "big": big} {
		for name, faults := range map[string][]clienttest.Fault{
			"refused before anything":   {{}},
			"answer lost":               {{Done: true}},
			"after accepted":            {{After: 1}},
			"after attempt":             {{After: 2}},
			"after one recipient":       {{After: 3}},
			"after both":                {{After: 4}},
			"after completed":           {{After: 5}},
			"three times before":        {{}, {Done: true}, {}},
			"at every event":            {{Done: true}, {After: 1}, {After: 2}, {After: 3}, {After: 4}},
			"more than tries, progress": {{}, {}, {After: 1}, {}, {}, {After: 2}, {}, {}},
			"closed politely":           {{After: 2, Quiet: true}},
		} {
			t.Run(size+"/"+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					srv := clienttest.New(t)
					srv.Fault("Send", faults...)
					c := srv.Client(t, client.Options{})
					got, err := events(c, t.Context(), req)
					if err != nil || !slices.Equal(got, want) {
						t.Errorf("heard %v, %v", got, err)
					}
					if n := len(srv.Mails()); n != 1 {
						t.Errorf("%d mails", n)
					}
					ids := map[string]bool{}
					for _, r := range srv.Requests("Send") {
						ids[r.Message.(*maildispatchv1.SendRequest).GetRequestId()] = true
					}
					if len(ids) != 1 || ids[""] {
						t.Errorf("request ids %v", ids)
					}
				})
			})
		}
	}
}

func TestDeliverGivesUp(t *testing.T) {
	t.Parallel()
	down := []clienttest.Fault{{}, {}, {}, {}, {}, {}, {}, {}}
	for name, test := range map[string]struct {
		faults []clienttest.Fault
		code   codes.Code
		reason string
		calls  int
		mailID bool // known although the call failed
	}{
		"away for long":            {down, codes.Unavailable, maildispatchv1.ReasonDraining, 4, false},
		"away for long, later":     {append([]clienttest.Fault{{After: 1}}, down...), codes.Unavailable, maildispatchv1.ReasonDraining, 4, true},
		"asked to wait for longer": {[]clienttest.Fault{{Err: clienttest.Overloaded(time.Hour)}}, codes.ResourceExhausted, maildispatchv1.ReasonOverloaded, 1, false},
		"too large":                {[]clienttest.Fault{{Err: clienttest.Error(codes.ResourceExhausted, maildispatchv1.ReasonMailTooLarge, "no")}}, codes.ResourceExhausted, maildispatchv1.ReasonMailTooLarge, 1, false},
		"a bug":                    {[]clienttest.Fault{{Err: status.Error(codes.Internal, "oops")}}, codes.Internal, "", 1, false},
		"a bug after it was taken": {[]clienttest.Fault{{After: 2, Err: status.Error(codes.Internal, "oops")}}, codes.Internal, "", 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault("Send", test.faults...)
				c := srv.Client(t, client.Options{})
				res, err := c.Deliver(t.Context(), mailTo("a@example.com"))
				if status.Code(err) != test.code || client.ReasonOf(err) != test.reason {
					t.Errorf("error %v", err)
				}
				if n := len(srv.Requests("Send")); n != test.calls {
					t.Errorf("%d calls", n)
				}
				if (res.MailID != "") != test.mailID || res.RequestID == "" || res.Mail != nil {
					t.Errorf("result %+v", res)
				}
			})
		})
	}
}

// A service that asks to be left alone for a while is called again after it, by every helper.
func TestRetryInfoIsFollowed(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]struct {
		method string
		do     func(context.Context, *client.Client) error
	}{
		"Deliver": {"Send", func(ctx context.Context, c *client.Client) error {
			_, err := c.Deliver(ctx, mailTo("a@example.com"))
			return err
		}},
		"SendAll": {"SendBatch", func(ctx context.Context, c *client.Client) error {
			_, err := c.SendAll(ctx, nil, slices.Values([]*maildispatchv1.BatchItem{{Message: mailTo("a@example.com").Message}}))
			return err
		}},
		"Upload": {"UploadAttachment", func(ctx context.Context, c *client.Client) error {
			_, err := c.Upload(ctx, nil, strings.NewReader("x"))
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault(call.method, clienttest.Fault{Err: clienttest.Overloaded(20 * time.Second)})
				began := time.Now()
				err := call.do(t.Context(), srv.Client(t, client.Options{}))
				if took := time.Since(began); err != nil || took < 20*time.Second || took > 25*time.Second {
					t.Errorf("got %v after %v, want the second call to succeed after 20 to 24 s", err, took)
				}
			})
		})
	}
}

// What a caller does after an error: the same request_id attaches to the same mail.
func TestRequestIDAttaches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		c := srv.Client(t, client.Options{})
		srv.Fault("Send", clienttest.Fault{After: 1, Err: status.Error(codes.Internal, "oops")})
		first, err := c.Deliver(t.Context(), mailTo("a@example.com"))
		if status.Code(err) != codes.Internal {
			t.Fatal(err)
		}
		req := mailTo("a@example.com")
		req.RequestId = first.RequestID
		second, err := c.Deliver(t.Context(), req)
		if err != nil || second.MailID != first.MailID || !second.Accepted.GetDuplicate() || !second.Sent() {
			t.Errorf("%+v, %v", second, err)
		}
		req.Message.Subject = "something else"
		if _, err := c.Deliver(t.Context(), req); status.Code(err) != codes.AlreadyExists || client.ReasonOf(err) != maildispatchv1.ReasonRequestIDReused {
			t.Errorf("other content: %v", err)
		}
	})
}

// Nobody else can have used an id that was made for this call, so a duplicate is the echo of
// its own first try.
func TestOwnEchoIsNoDuplicate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		c := srv.Client(t, client.Options{})
		srv.Fault("Send", clienttest.Fault{Done: true})
		res, err := c.Deliver(t.Context(), mailTo("a@example.com"))
		if err != nil || res.Accepted.GetDuplicate() || len(srv.Requests("Send")) != 2 {
			t.Errorf("%v, %v", res.Accepted, err)
		}
	})
}

func TestSameRequestTwiceIsTwoMails(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	req := mailTo("a@example.com")
	for range 2 {
		if _, err := c.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(srv.Mails()); n != 2 {
		t.Errorf("%d mails", n)
	}
	story := c.Follow(t.Context(), req) // but ranged over twice it is one
	for range 2 {
		for _, err := range story {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(srv.Mails()); n != 3 {
		t.Errorf("%d mails", n)
	}
}

func TestFiftyCallersOneMail(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	req := mailTo("a@example.com")
	req.RequestId = "invoice-4711"
	var first int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			res, err := c.Deliver(t.Context(), req)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || !res.Sent() {
				t.Errorf("%+v, %v", res, err)
			}
			if !res.Accepted.GetDuplicate() {
				first++
			}
		})
	}
	wg.Wait()
	if n := len(srv.Mails()); n != 1 || first != 1 {
		t.Errorf("%d mails, %d callers were the first", n, first)
	}
}

func TestValidateOnly(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	req := mailTo("a@example.com")
	req.ValidateOnly = true
	res, err := c.Deliver(t.Context(), req)
	if err != nil || res.MailID != "" || res.Mail != nil || res.Accepted.GetMailServer() != "test" || len(srv.Mails()) != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	req.Message.To = []string{"a@example.com", "no address"}
	res, err = c.Deliver(t.Context(), req)
	if status.Code(err) != codes.InvalidArgument || client.ReasonOf(err) != maildispatchv1.ReasonValidationFailed {
		t.Errorf("%+v, %v", res, err)
	}
	if vs := client.Violations(err); len(vs) != 1 || vs[0].Field != "message.to[1]" {
		t.Errorf("violations %v", vs)
	}
	if _, err := c.Deliver(t.Context(), nil); client.ReasonOf(err) != maildispatchv1.ReasonValidationFailed {
		t.Errorf("nil request: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	const own = 42 * time.Second
	for name, test := range map[string]struct {
		options client.Options
		ctx     time.Duration
		faults  []clienttest.Fault
		want    time.Duration
		mailID  bool
	}{
		"default":                  {client.Options{}, 0, []clienttest.Fault{{Hang: true}}, 5 * time.Minute, false},
		"from options":             {client.Options{SendTimeout: time.Minute}, 0, []clienttest.Fault{{Hang: true}}, time.Minute, false},
		"the caller's own":         {client.Options{SendTimeout: time.Minute}, own, []clienttest.Fault{{Hang: true}}, own, false},
		"the caller's own, longer": {client.Options{SendTimeout: time.Second}, own, []clienttest.Fault{{Hang: true}}, own, false},
		"over all tries":           {client.Options{SendTimeout: time.Minute}, 0, []clienttest.Fault{{}, {After: 2, Hang: true}}, time.Minute, true},
		"while waiting":            {client.Options{SendTimeout: 50 * time.Millisecond}, 0, []clienttest.Fault{{}, {}}, 50 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault("Send", test.faults...)
				c := srv.Client(t, test.options)
				ctx := t.Context()
				if test.ctx > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.ctx)
					defer cancel()
				}
				begun := time.Now()
				res, err := c.Deliver(ctx, mailTo("a@example.com"))
				if status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("error %v", err)
				}
				if took := time.Since(begun); took < test.want || took > test.want+time.Second {
					t.Errorf("took %v", took)
				}
				if (res.MailID != "") != test.mailID {
					t.Errorf("result %+v", res)
				}
			})
		})
	}
}

func TestCancelledCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Fault("Send", clienttest.Fault{After: 1, Hang: true})
		c := srv.Client(t, client.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var heard int
		for _, err := range c.Follow(ctx, mailTo("a@example.com")) {
			if err != nil {
				if status.Code(err) != codes.Canceled {
					t.Error(err)
				}
				break
			}
			heard++
			cancel()
		}
		if heard != 1 || len(srv.Requests("Send")) != 1 {
			t.Errorf("heard %d of %d calls", heard, len(srv.Requests("Send")))
		}
	})
}

// Leaving the loop frees the stream: the bubble ends only when every goroutine has.
func TestLeavingTheLoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Fault("Send", clienttest.Fault{After: 2, Hang: true})
		c := srv.Client(t, client.Options{})
		for _, err := range c.Follow(t.Context(), mailTo("a@example.com")) {
			if err != nil {
				t.Error(err)
			}
			break
		}
		synctest.Wait()
	})
}

// The stub is still the stub: grpc repeats a small mail until the first event, and the filled
// request_id makes that one mail.
func TestBareSendIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Fault("Send", clienttest.Fault{}, clienttest.Fault{Done: true})
		c := srv.Client(t, client.Options{})
		stream, err := c.Send(t.Context(), mailTo("a@example.com"))
		if err != nil {
			t.Fatal(err)
		}
		var last *maildispatchv1.SendResponse
		for {
			e, err := stream.Recv()
			if err != nil {
				break
			}
			last = e
		}
		if last.GetCompleted().GetMail().GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_SENT || len(srv.Mails()) != 1 || len(srv.Requests("Send")) != 3 {
			t.Errorf("%v, %d mails, %d calls", last, len(srv.Mails()), len(srv.Requests("Send")))
		}
	})
}

func TestErrorsWhileWaitingKeepTheirCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Fault("Send", clienttest.Fault{}, clienttest.Fault{})
		c := srv.Client(t, client.Options{SendTimeout: 20 * time.Millisecond})
		_, err := c.Deliver(t.Context(), mailTo("a@example.com"))
		var wrapped interface{ Unwrap() []error }
		if !errors.As(err, &wrapped) || !strings.Contains(err.Error(), "the service is stopping") {
			t.Errorf("%v", err)
		}
	})
}

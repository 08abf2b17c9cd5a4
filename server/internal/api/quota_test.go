package api_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// overQuota wants the error of a limit, and returns its name and when to come again.
func overQuota(t *testing.T, what string, err error) (limit string, after time.Duration) {
	t.Helper()
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("%s: got %v, want RESOURCE_EXHAUSTED", what, err)
	}
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.Reason != pb.ReasonQuotaExceeded {
				t.Errorf("%s: got %s, want QUOTA_EXCEEDED", what, d.Reason)
			}
			limit = d.Metadata["limit"]
		case *errdetails.RetryInfo:
			after = d.RetryDelay.AsDuration()
		}
	}
	return limit, after
}

// TestCallsAreCountedInTheTap: who calls too often hears so with RetryInfo, whichever of its
// tokens it takes, and others and health checks go on.
func TestCallsAreCountedInTheTap(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	q := quota.New(quota.Config{Limits: quota.Limits{CallsPerSecond: 5}, Now: func() time.Time { return time.Unix(1_800_000_000, 0) }})
	guard := r.book.Guard()
	guard.Charge = func(p *access.Principal) error { return q.Call(p.Name) }
	d := pb.NewDispatchClient(r.serve(guard, func(*grpc.Server) {}))
	one, _ := r.token("t1", store.RoleRead)
	two, _ := r.token("t1", store.RoleRead)
	other, _ := r.token("t1", store.RoleRead, func(tok *store.Token) { tok.Name = "other" })
	call := func(secret string) error {
		_, err := d.ListDueOutMails(with(ctx(t), secret), &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{Team: new("t1")}})
		return err
	}
	for i := range 5 {
		if err := call([]string{one, two}[i%2]); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	for _, secret := range []string{one, two} {
		if limit, after := overQuota(t, "the sixth call", call(secret)); limit != "calls_per_second" || after <= 0 {
			t.Errorf("got the limit %q and %v to wait", limit, after)
		}
	}
	if err := call(other); err != nil {
		t.Errorf("another caller: %v", err)
	}
}

// TestTestsAreFew: of a thousand tests of a mail server at once two dial.
func TestTestsAreFew(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	var dials atomic.Int64
	let := make(chan struct{})
	r.api.Probe = func(ctx context.Context, _ *store.MailServer, _ smtpx.Relay, _ smtpx.ProbeOptions) smtpx.ProbeResult {
		dials.Add(1)
		select {
		case <-let:
		case <-ctx.Done():
		}
		return smtpx.ProbeResult{Success: true}
	}
	r.api.Quota = quota.New(quota.Config{Limits: quota.Defaults()})
	r.server("main", pb.Mode_MODE_DAEMON)
	var wg sync.WaitGroup
	errs := make(chan error, 1000)
	for range cap(errs) {
		wg.Go(func() {
			_, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main"})
			errs <- err
		})
	}
	for range cap(errs) - 2 {
		if limit, after := overQuota(t, "one of many", <-errs); limit != "tests" || after <= 0 {
			t.Fatalf("got the limit %q and %v to wait", limit, after)
		}
	}
	close(let)
	wg.Wait()
	if err := errors.Join(<-errs, <-errs); err != nil || dials.Load() != 2 {
		t.Errorf("got %d dials, %v; want two that succeed", dials.Load(), err)
	}
}

// TestOpenCallsAreBounded: what a caller holds open is bounded, and free again when it ends.
func TestOpenCallsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_PHP)
	r.server("later", pb.Mode_MODE_DAEMON)
	text := func(n int) *pb.BatchItem {
		return &pb.BatchItem{Message: &pb.MailMessage{To: []string{"a@y.example"}, Text: strings.Repeat("x", n)}}
	}
	// Each opens a call, and returns how to hear its first answer.
	for name, open := range map[quota.Thing]func(c context.Context) (recv func(any) error, err error){
		quota.Watchers: func(c context.Context) (func(any) error, error) {
			s, err := r.dispatch.WatchMails(c, &pb.WatchMailsRequest{})
			return s.RecvMsg, err
		},
		quota.Streams: func(c context.Context) (func(any) error, error) {
			s, err := r.dispatch.SendStream(c)
			return s.RecvMsg, firstErr(err, s.Send(&pb.SendStreamRequest{Options: &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "main"}}}))
		},
		quota.UploadBytes: func(c context.Context) (func(any) error, error) {
			s, err := r.dispatch.UploadAttachment(c)
			return s.RecvMsg, firstErr(err, s.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{}}}),
				s.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: make([]byte, 600)}}))
		},
		quota.Uploads: func(c context.Context) (func(any) error, error) {
			s, err := r.dispatch.UploadAttachment(c)
			return s.RecvMsg, firstErr(err, s.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{}}}))
		},
		quota.StrictBytes: func(c context.Context) (func(any) error, error) {
			s, err := r.dispatch.SendBatch(c)
			return s.RecvMsg, firstErr(err, s.Send(&pb.SendBatchRequest{Options: &pb.BatchOptions{Strict: true, Options: &pb.SendOptions{MailServer: "later"}}, Items: []*pb.BatchItem{text(1600)}}))
		},
	} {
		t.Run(string(name), func(t *testing.T) {
			limits := quota.Limits{Streams: 1, Watchers: 1, Uploads: 1, UploadBytes: 1000, StrictBytes: 3000}
			if name == quota.UploadBytes {
				limits.Uploads = 2
			}
			r.api.Quota = quota.New(quota.Config{Limits: limits})
			first, end := context.WithCancel(ctx(t))
			defer end()
			if _, err := open(first); err != nil {
				t.Fatalf("the first: %v", err)
			}
			until(t, "the first is open", func() bool { return r.api.Quota.Holds("", name) > 0 })
			recv, err := open(ctx(t))
			if err != nil {
				t.Fatal(err)
			}
			if limit, after := overQuota(t, "the second", recv(new(pb.WatchMailsResponse))); limit != string(name) || after <= 0 {
				t.Errorf("got the limit %q and %v to wait", limit, after)
			}
			end()
			until(t, "the first is over", func() bool { return r.api.Quota.Holds("", name) == 0 })
		})
	}
}

func firstErr(errs ...error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, io.EOF) { // the answer says why it is over
			return err
		}
	}
	return nil
}

// until polls for what another goroutine brings about.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// limited puts the rig's mail behind limits.
func (r *rig) limited(l quota.Limits) *quota.Quota {
	q := quota.New(quota.Config{Limits: l, Store: r.store, Secret: []byte("secret")})
	r.api.Quota, r.api.Sender = q, q.Sender(r.commits)
	return q
}

// TestA13: a team's limit holds within a tenth over two replicas, several connections and
// several tokens at once.
func TestA13(t *testing.T) {
	t.Parallel()
	const limit = 120
	dsn := storetest.PostgresDSN(t)
	var senders []func() error
	for i := range 2 {
		r := newGuardedRig(t, dsn)
		r.limited(quota.Limits{TeamMails: limit})
		if i == 0 {
			r.server("main", pb.Mode_MODE_DAEMON)
		}
		for k := range 2 {
			secret, _ := r.token("t1", store.RoleSend, func(tok *store.Token) { tok.Name = []string{"one", "two"}[k] })
			d := pb.NewDispatchClient(r.serve(r.book.Guard(), func(*grpc.Server) {}))
			senders = append(senders, func() error {
				s, err := d.Send(with(ctx(t), secret), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: message("a@y.example")})
				for err == nil {
					_, err = s.Recv()
				}
				return err
			})
		}
	}
	var wg sync.WaitGroup
	var taken atomic.Int64
	for _, send := range senders {
		wg.Go(func() {
			for range limit / 2 {
				switch err := send(); {
				case errors.Is(err, io.EOF):
					taken.Add(1)
				case status.Code(err) != codes.ResourceExhausted:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n > limit*11/10 || n < limit*9/10 {
		t.Errorf("got %d mails, want %d within a tenth", n, limit)
	}
}

// TestGuardedMail: what is beyond a budget is accepted and held in php mode, in daemon mode and
// in a batch. Its own caller cannot release it, also as an administrator; another one can, and
// then it leaves.
func TestGuardedMail(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.limited(quota.Limits{Guard: quota.Guard{Team: 1}})
		book, err := access.NewBook(ctx(t), access.Config{Store: r.store, Mode: access.Required})
		if err != nil {
			t.Fatal(err)
		}
		g := &guardedRig{rig: r, book: book}
		d := pb.NewDispatchClient(r.serve(book.Guard(), func(*grpc.Server) {}))
		r.server("now", pb.Mode_MODE_PHP)
		r.server("later", pb.Mode_MODE_DAEMON)
		own, _ := g.token("t1", store.RoleAdmin)
		other, _ := g.token("t1", store.RoleAdmin, func(tok *store.Token) { tok.Name = "other" })
		send := func(server string) *pb.Mail {
			t.Helper()
			s, err := d.Send(with(ctx(t), own), &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: message("a@y.example")})
			if err != nil {
				t.Fatal(err)
			}
			for {
				ev, err := s.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if c := ev.GetCompleted(); c != nil {
					return c.Mail
				}
			}
		}
		if m := send("now"); m.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Fatalf("within the budget: %v", m)
		}
		var ids []string
		for _, server := range []string{"now", "later"} {
			m := send(server)
			if m.Status != pb.MailStatus_MAIL_STATUS_HELD || !strings.Contains(m.LastError, `more than 1 mails an hour from team "t1"; somebody else`) {
				t.Fatalf("%s: got %v, want it held, with the reason", server, m)
			}
			ids = append(ids, m.Id)
		}
		batch, err := d.SendBatch(with(ctx(t), own))
		if err != nil {
			t.Fatal(err)
		}
		_ = batch.Send(&pb.SendBatchRequest{Options: &pb.BatchOptions{BatchId: "b1", Options: &pb.SendOptions{MailServer: "later"}}, Items: []*pb.BatchItem{{Message: message("a@y.example")}}})
		sum, err := batch.CloseAndRecv()
		if err != nil || sum.Accepted != 1 {
			t.Fatalf("a batch: got %v, %v", sum, err)
		}
		resend := func(secret, id string) error {
			_, err := d.ResendMail(with(ctx(t), secret), &pb.ResendMailRequest{Id: id, Reason: "r"})
			return err
		}
		for _, id := range ids {
			if err := resend(own, id); reason(err) != pb.ReasonOwnRelease {
				t.Errorf("ResendMail of a held one by its caller: got %v", err)
			}
		}
		gone := send("later").Id
		if res, err := d.CancelMails(with(ctx(t), own), &pb.CancelMailsRequest{Ids: []string{gone}, Reason: "r"}); err != nil || res.Changed != 1 {
			t.Fatalf("got %v, %v", res, err)
		}
		if err := resend(own, gone); reason(err) != pb.ReasonOwnRelease {
			t.Errorf("ResendMail of a cancelled one by its caller: got %v", err)
		}
		if err := resend(other, gone); err != nil {
			// held by the team's budget, and the other's now
			t.Errorf("ResendMail by another: got %v", err)
		}
		for name, release := range map[string]func(secret string) ([]*pb.MailFailure, int32, error){
			"ReleaseMails": func(secret string) ([]*pb.MailFailure, int32, error) {
				res, err := d.ReleaseMails(with(ctx(t), secret), &pb.ReleaseMailsRequest{Ids: ids[:1], Reason: "r"})
				return res.GetFailures(), res.GetChanged(), err
			},
			"RetryMails": func(secret string) ([]*pb.MailFailure, int32, error) {
				res, err := d.RetryMails(with(ctx(t), secret), &pb.RetryMailsRequest{Ids: ids[1:], Reason: "r"})
				return res.GetFailures(), res.GetChanged(), err
			},
			"ReleaseMails by filter": func(secret string) ([]*pb.MailFailure, int32, error) {
				res, err := d.ReleaseMails(with(ctx(t), secret), &pb.ReleaseMailsRequest{Filter: &pb.MailFilter{BatchId: "b1"}, Reason: "r"})
				return res.GetFailures(), res.GetChanged(), err
			},
		} {
			if failures, _, err := release(own); err != nil || len(failures) != 1 || failures[0].Reason != pb.ReasonOwnRelease {
				t.Errorf("%s by its caller: got %v, %v; want OWN_RELEASE", name, failures, err)
			}
			if failures, changed, err := release(other); err != nil || len(failures) != 0 || changed != 1 {
				t.Errorf("%s by another: got %v, %d changed, %v", name, failures, changed, err)
			}
		}
		// the second person has spoken: what holds it later is no affair of the guard
		if res, err := d.HoldMails(with(ctx(t), own), &pb.HoldMailsRequest{Ids: ids, Reason: "r"}); err != nil || res.Changed != 2 {
			t.Fatalf("got %v, %v", res, err)
		}
		if res, err := d.ReleaseMails(with(ctx(t), own), &pb.ReleaseMailsRequest{Ids: ids, Reason: "r"}); err != nil || res.Changed != 2 {
			t.Errorf("held once more, its caller releases it: got %v, %v", res, err)
		}
		if _, err := r.commits.RunBatch(ctx(t), "", true); err != nil {
			t.Fatal(err)
		}
		until(t, "all have left", func() bool { return len(r.relay.Mails()) == 4 })
	})
}

// TestStreamWaits: items of a stream in php mode wait for their turn instead of being refused.
func TestStreamWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := &turns{Store: r.store}
	q := quota.New(quota.Config{Limits: quota.Limits{TeamMails: 3}, Store: s, Secret: []byte("s")})
	r.api.Sender = q.Sender(r.commits)
	r.server("now", pb.Mode_MODE_PHP)
	st, err := r.dispatch.SendStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	items := make([]*pb.BatchItem, 6)
	for i := range items {
		items[i] = &pb.BatchItem{Message: message("a@y.example")}
	}
	_ = st.Send(&pb.SendStreamRequest{Options: &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "now"}}, Items: items})
	_ = st.CloseSend()
	for i := range items {
		ans, err := st.Recv()
		if err != nil || ans.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Fatalf("answer %d: got %v, %v", i, ans, err)
		}
	}
	if s.refused.Load() == 0 {
		t.Error("nothing had to wait: this test shows nothing")
	}
}

// few grants so many, and afterwards nothing for long. mu guards left.
type few struct {
	*store.Store
	mu   sync.Mutex
	left int64
}

func (s *few) TakeAllowances(_ context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]store.AllowanceGrant, len(takes))
	for i, t := range takes {
		s.left += t.Back
		out[i] = store.AllowanceGrant{Granted: min(t.Want, s.left), Next: time.Hour}
		s.left -= out[i].Granted
	}
	return out, nil
}

// TestLimitInTheMiddle: what was taken before a limit is answered, and the rest is rejected
// with its reason. A batch of which nothing was taken fails.
func TestLimitInTheMiddle(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("later", pb.Mode_MODE_DAEMON)
	r.server("now", pb.Mode_MODE_PHP)
	items := make([]*pb.BatchItem, 40)
	for i := range items {
		items[i] = &pb.BatchItem{Message: message("a@y.example")}
	}
	options := func(server string) *pb.BatchOptions {
		return &pb.BatchOptions{Options: &pb.SendOptions{MailServer: server}}
	}
	grant := func(n int64) {
		q := quota.New(quota.Config{Limits: quota.Limits{TeamMails: 100}, Store: &few{Store: r.store, left: n}, Secret: []byte("s")})
		r.api.Sender = q.Sender(r.commits)
	}
	batch := func() (*pb.SendBatchResponse, error) {
		st, err := r.dispatch.SendBatch(ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		_ = st.Send(&pb.SendBatchRequest{Options: options("later"), Items: items})
		return st.CloseAndRecv()
	}
	grant(25)
	sum, err := batch()
	if err != nil || sum.Received != 40 || sum.Accepted != 25 || sum.Rejected != 15 || sum.Rejections[0].Position != 25 || sum.Rejections[0].Reason != pb.ReasonQuotaExceeded {
		t.Errorf("a batch: got %v, %v; want 25 accepted and 15 rejected", sum, err)
	}
	grant(0)
	if sum, err := batch(); err == nil {
		t.Errorf("a batch of which nothing is taken: got %v", sum)
	} else if limit, after := overQuota(t, "a batch of which nothing is taken", err); limit != "team_mails_per_minute" || after <= 0 {
		t.Errorf("a batch of which nothing is taken: got %s, %v", limit, after)
	}
	for _, server := range []string{"later", "now"} {
		grant(25)
		st, err := r.dispatch.SendStream(ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		_ = st.Send(&pb.SendStreamRequest{Options: options(server), Items: items})
		_ = st.CloseSend()
		taken, refused := 0, 0
		for range items {
			ans, err := st.Recv()
			if err != nil {
				t.Fatalf("%s: %v", server, err)
			}
			switch {
			case ans.Rejection == nil && ans.MailId != "":
				taken++
			case ans.Rejection.GetReason() == pb.ReasonQuotaExceeded && ans.MailId == "":
				refused++
			}
		}
		if taken != 25 || refused != 15 {
			t.Errorf("a stream through %s: got %d taken and %d refused, want 25 and 15", server, taken, refused)
		}
	}
}

// turns refuses every second question, and says that it is over at once.
type turns struct {
	*store.Store
	n, refused atomic.Int64
}

func (s *turns) TakeAllowances(_ context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error) {
	out := make([]store.AllowanceGrant, len(takes))
	for i, t := range takes {
		if s.n.Add(1)%2 == 0 {
			s.refused.Add(1)
			out[i].Next = time.Millisecond
		} else {
			out[i].Granted = t.Need
		}
	}
	return out, nil
}

// TestLimitsAreTold: GetServiceInfo says the limits, and WhoAmI what is left of those that are
// shared.
func TestLimitsAreTold(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.limited(quota.Limits{TeamMails: 10, Watchers: 3})
	r.server("main", pb.Mode_MODE_DAEMON)
	secret, _ := r.token("t1", store.RoleSend)
	s, err := pb.NewDispatchClient(r.conn).Send(with(ctx(t), secret), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: message("a@y.example")})
	for err == nil {
		_, err = s.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	a := pb.NewAccessAdminClient(r.conn)
	who, err := a.WhoAmI(with(ctx(t), secret), &pb.WhoAmIRequest{})
	if err != nil || len(who.Allowances) != 1 || who.Allowances[0].Limit != "team_mails_per_minute" || who.Allowances[0].Team != "t1" || who.Allowances[0].Value != 10 || who.Allowances[0].Left != 9 {
		t.Errorf("WhoAmI: got %v, %v; want 9 of 10 left to t1", who, err)
	}
	info, err := a.GetServiceInfo(with(ctx(t), secret), &pb.GetServiceInfoRequest{})
	if err != nil || len(info.Limits) != 2 || info.Limits["watchers"] != 3 || info.Limits["team_mails_per_minute"] != 10 {
		t.Errorf("GetServiceInfo: got %v, %v; want two limits", info, err)
	}
}

package api_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"google.golang.org/genproto/googleapis/rpc/errdetails"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// reason is an error's constant.
func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, is := d.(*errdetails.ErrorInfo); is {
			return info.Reason
		}
	}
	return ""
}

// refused wants an error with this code and reason.
func refused(t *testing.T, what string, err error, code codes.Code, why string) {
	t.Helper()
	if status.Code(err) != code || reason(err) != why {
		t.Errorf("%s: got %v %s (%v), want %v %s", what, status.Code(err), reason(err), err, code, why)
	}
}

// TestSendTwice: a request_id and the same content is the first mail again; other content, in
// whatever part, is refused and changes nothing.
func TestSendTwice(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		first := func() *pb.SendRequest {
			return &pb.SendRequest{RequestId: "r1", Options: &pb.SendOptions{MailServer: "main", Kind: pb.Kind_KIND_INVOICE, Labels: map[string]string{"a": "1", "b": "2", "c": "3"}},
				Message: &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Text: "t", Headers: map[string]string{"X-A": "1", "X-B": "2"}}}
		}
		evs, err := r.send(ctx(t), first())
		if err != nil {
			t.Fatal(err)
		}
		id := evs[0].MailId
		for range 5 { // maps have no order of their own
			evs, err := r.send(ctx(t), first())
			if err != nil || evs[0].MailId != id || !evs[0].GetAccepted().GetDuplicate() {
				t.Fatalf("the same again: got %v, %v, want mail %s as a duplicate", evs, err, id)
			}
		}
		for name, change := range map[string]func(*pb.SendRequest){
			"subject":   func(r *pb.SendRequest) { r.Message.Subject = "other" },
			"text":      func(r *pb.SendRequest) { r.Message.Text = "other" },
			"recipient": func(r *pb.SendRequest) { r.Message.To = []string{"b@y.example"} },
			"bcc":       func(r *pb.SendRequest) { r.Message.Bcc = []string{"b@y.example"} },
			"kind":      func(r *pb.SendRequest) { r.Options.Kind = pb.Kind_KIND_BULK },
			"label":     func(r *pb.SendRequest) { r.Options.Labels["a"] = "2" },
			"header":    func(r *pb.SendRequest) { r.Message.Headers["X-A"] = "2" },
			"hold":      func(r *pb.SendRequest) { r.Options.Hold = true },
			"file": func(r *pb.SendRequest) {
				r.Message.Attachments = []*pb.Attachment{{Filename: "a.txt", Content: []byte("x")}}
			},
		} {
			req := first()
			change(req)
			_, err := r.send(ctx(t), req)
			refused(t, "another "+name, err, codes.AlreadyExists, "REQUEST_ID_REUSED")
		}
		// The same request_id in another team is another mail.
		other := first()
		other.Options.Team = "sales"
		if evs, err := r.send(ctx(t), other); err != nil || evs[0].MailId == id {
			t.Errorf("in another team: got %v, %v, want a mail of its own", evs, err)
		}
	})
}

// batch sends items as one SendBatch.
func (r *rig) batch(c context.Context, opts *pb.BatchOptions, items ...*pb.BatchItem) (*pb.SendBatchResponse, error) {
	st, err := r.dispatch.SendBatch(c)
	if err != nil {
		return nil, err
	}
	if err := st.Send(&pb.SendBatchRequest{Options: opts, Items: items}); err != nil && err != io.EOF {
		return nil, err
	}
	return st.CloseAndRecv()
}

// TestBatchTwice: an item is known again by its request_id and what it becomes, which the
// shared part has a share in.
func TestBatchTwice(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		options := func() *pb.BatchOptions {
			return &pb.BatchOptions{BatchId: "b1", Options: &pb.SendOptions{MailServer: "main"}, Message: &pb.MailMessage{Subject: "Hello {{name}}", Text: "t {{name}}"}}
		}
		to := func(a string) *pb.MailMessage { return &pb.MailMessage{To: []string{a}} }
		items := func() []*pb.BatchItem {
			return []*pb.BatchItem{
				{RequestId: "r1", Message: to("a@y.example"), Variables: map[string]string{"name": "A", "x": "1", "y": "2"}},
				{RequestId: "r2", Message: to("b@y.example"), Variables: map[string]string{"name": "B"}},
			}
		}
		if res, err := r.batch(ctx(t), options(), items()...); err != nil || res.Accepted != 2 {
			t.Fatalf("first: %v, %v", res, err)
		}
		// By another batch and place, without one of them: the same items all the same.
		again := options()
		again.BatchId = "b2"
		if res, err := r.batch(ctx(t), again, items()[1], items()[0]); err != nil || res.Duplicates != 2 || res.Accepted != 0 {
			t.Errorf("again: got %v, %v, want two duplicates", res, err)
		}
		for name, change := range map[string]func(*pb.BatchOptions){
			"shared text":     func(o *pb.BatchOptions) { o.Message.Text = "other {{name}}" },
			"shared subject":  func(o *pb.BatchOptions) { o.Message.Subject = "other" },
			"shared header":   func(o *pb.BatchOptions) { o.Message.Headers = map[string]string{"X-A": "1"} },
			"option":          func(o *pb.BatchOptions) { o.Options.Kind = pb.Kind_KIND_INVOICE },
			"shared reply-to": func(o *pb.BatchOptions) { o.Message.ReplyTo = "c@y.example" },
		} {
			o := options()
			change(o)
			res, err := r.batch(ctx(t), o, items()...)
			if err != nil || res.Accepted+res.Duplicates != 0 || len(res.Rejections) != 2 || res.Rejections[0].Reason != "REQUEST_ID_REUSED" {
				t.Errorf("another %s: got %v, %v, want both refused as REQUEST_ID_REUSED", name, res, err)
			}
		}
		changed := items()
		changed[0].Variables["name"] = "C"
		res, err := r.batch(ctx(t), options(), changed...)
		if err != nil || res.Duplicates != 1 || len(res.Rejections) != 1 || res.Rejections[0].RequestId != "r1" {
			t.Errorf("another variable: got %v, %v, want one duplicate and one refused", res, err)
		}
	})
}

// TestPageTokens: pages hold every mail once, and a token is good for its own listing and
// filter.
func TestPageTokens(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		r.server("other", pb.Mode_MODE_DAEMON)
		want := r.queue("main", 7)
		r.queue("other", 3)
		of := func(server string) *pb.MailFilter { return &pb.MailFilter{MailServer: server} }
		var got []string
		token, first := "", ""
		for {
			res, err := r.dispatch.ListDueOutMails(ctx(t), &pb.ListDueOutMailsRequest{Filter: of("main"), PageSize: 3, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range res.Mails {
				got = append(got, m.Id)
			}
			if token = res.NextPageToken; token == "" {
				break
			}
			if first == "" {
				first = token
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("the pages hold %d mails, want each of %d once", len(got), len(want))
		}
		list := func(f *pb.MailFilter, token string) error {
			_, err := r.dispatch.ListDueOutMails(ctx(t), &pb.ListDueOutMailsRequest{Filter: f, PageSize: 3, PageToken: token})
			return err
		}
		if err := list(of("main"), first); err != nil {
			t.Errorf("a token with its own filter: %v", err)
		}
		team := "sales"
		for name, f := range map[string]*pb.MailFilter{"another mail server": of("other"), "no filter": nil, "one condition more": {MailServer: "main", Team: &team},
			"one status more": {MailServer: "main", Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_QUEUED}}} {
			refused(t, name, list(f, first), codes.InvalidArgument, "PAGE_TOKEN_INVALID")
		}
		turned := []byte(first)
		turned[5] ^= 1
		for name, bad := range map[string]string{"changed": string(turned), "cut": first[:len(first)-2], "made up": "AAAA", "no token": "!"} {
			refused(t, "a token that is "+name, list(of("main"), bad), codes.InvalidArgument, "PAGE_TOKEN_INVALID")
		}
		_, err := r.dispatch.ListArchivedMails(ctx(t), &pb.ListArchivedMailsRequest{Filter: of("main"), PageToken: first})
		refused(t, "a token of another listing", err, codes.InvalidArgument, "PAGE_TOKEN_INVALID")
		_, err = r.admin.ListMailServers(ctx(t), &pb.ListMailServersRequest{PageToken: first})
		refused(t, "a token of another service", err, codes.InvalidArgument, "PAGE_TOKEN_INVALID")
		servers, err := r.admin.ListMailServers(ctx(t), &pb.ListMailServersRequest{PageSize: 1})
		if err != nil || servers.NextPageToken == "" {
			t.Fatal(servers, err)
		}
		_, err = r.admin.ListMailServers(ctx(t), &pb.ListMailServersRequest{PageSize: 1, PageToken: servers.NextPageToken, ShowDeleted: true})
		refused(t, "mail servers with another filter", err, codes.InvalidArgument, "PAGE_TOKEN_INVALID")
	})
}

// TestMasks: what an update changes, with a mask and without.
func TestMasks(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		yes, no := true, false
		r.server("main", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) {
			m.DisplayName, m.HoldUnknown, m.Annotations = "Main", &yes, map[string]string{"a": "1", "b": "2"}
			m.Limits = &pb.Limits{MaxConnections: 3, MailsPerMinute: 100}
			m.Smtp.Timeout = durationpb.New(5e9)
		})
		update := func(m *pb.MailServer, paths ...string) (*pb.MailServer, error) {
			m.Name = "main"
			req := &pb.UpdateMailServerRequest{MailServer: m}
			if len(paths) > 0 {
				req.UpdateMask = &fieldmaskpb.FieldMask{Paths: paths}
			}
			res, err := r.admin.UpdateMailServer(ctx(t), req)
			return res.GetMailServer(), err
		}
		for _, step := range []struct {
			what   string
			change *pb.MailServer
			paths  []string
			want   func(*pb.MailServer) // what differs from before
		}{
			{"without a mask, one field", &pb.MailServer{DisplayName: "New"}, nil, func(m *pb.MailServer) { m.DisplayName = "New" }},
			{"without a mask, inside a message", &pb.MailServer{Limits: &pb.Limits{MaxConnections: 5}}, nil, func(m *pb.MailServer) { m.Limits.MaxConnections = 5 }},
			{"without a mask, false", &pb.MailServer{HoldUnknown: &no}, nil, func(m *pb.MailServer) { m.HoldUnknown = &no }},
			{"without a mask, a map whole", &pb.MailServer{Annotations: map[string]string{"c": "3"}}, nil, func(m *pb.MailServer) { m.Annotations = map[string]string{"c": "3"} }},
			{"a path that is absent clears", &pb.MailServer{}, []string{"display_name"}, func(m *pb.MailServer) { m.DisplayName = "" }},
			{"a nested path", &pb.MailServer{Limits: &pb.Limits{MailsPerMinute: 7, MaxConnections: 99}}, []string{"limits.mails_per_minute"}, func(m *pb.MailServer) { m.Limits.MailsPerMinute = 7 }},
			{"a nested path that is absent", &pb.MailServer{}, []string{"smtp.timeout"}, func(m *pb.MailServer) { m.Smtp.Timeout = nil }},
			{"a message whole", &pb.MailServer{Limits: &pb.Limits{MaxAttempts: 2}}, []string{"limits"}, func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxAttempts: 2} }},
		} {
			before, err := r.admin.GetMailServer(ctx(t), &pb.GetMailServerRequest{Name: "main"})
			if err != nil {
				t.Fatal(err)
			}
			got, err := update(step.change, step.paths...)
			want := proto.CloneOf(before.MailServer)
			step.want(want)
			want.Etag, want.UpdateTime = got.GetEtag(), got.GetUpdateTime()
			if err != nil || !proto.Equal(got, want) {
				t.Errorf("%s: got %v, %v, want %v", step.what, got, err, want)
			}
		}
		for what, x := range map[string]struct {
			change *pb.MailServer
			paths  []string
		}{
			"an unknown path":             {&pb.MailServer{}, []string{"nothing"}},
			"a path into a duration":      {&pb.MailServer{}, []string{"smtp.timeout.seconds"}},
			"an immutable path":           {&pb.MailServer{}, []string{"team"}},
			"an output-only path":         {&pb.MailServer{}, []string{"etag"}},
			"an output-only path, nested": {&pb.MailServer{}, []string{"smtp.has_password"}},
			"a star among others":         {&pb.MailServer{}, []string{"*", "mode"}},
			"another team":                {&pb.MailServer{Team: "sales"}, nil},
			"another type":                {&pb.MailServer{Type: pb.MailServer_TYPE_LOCALHOST}, nil},
			"a required field cleared":    {&pb.MailServer{}, []string{"from"}},
			"too many paths":              {&pb.MailServer{}, slices.Repeat([]string{"mode"}, 65)},
		} {
			_, err := update(x.change, x.paths...)
			refused(t, what, err, codes.InvalidArgument, "VALIDATION_FAILED")
		}
		_, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", Etag: "1", DisplayName: "x"}})
		refused(t, "a stale etag", err, codes.Aborted, "ETAG_MISMATCH")
	})
}

// TestBccAlone: a mail with nobody in to and cc is delivered to those in bcc, and none of them
// stands in it.
func TestBccAlone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_PHP)
		msg := &pb.MailMessage{Bcc: []string{"One <one@y.example>", "two@y.example"}, Subject: "s", Text: "t"}
		evs, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: msg})
		if err != nil {
			t.Fatal(err)
		}
		done := evs[len(evs)-1].GetCompleted().GetMail()
		if done.GetStatus() != pb.MailStatus_MAIL_STATUS_SENT || len(done.Recipients) != 2 {
			t.Fatalf("got %v, want it sent to two", done)
		}
		for _, x := range done.Recipients {
			if x.Kind != pb.RecipientResult_KIND_BCC || x.Status != pb.RecipientResult_STATUS_ACCEPTED {
				t.Errorf("got %v, want it accepted as bcc", x)
			}
		}
		if mails := r.relay.Mails(); len(mails) != 1 || len(mails[0].To) != 2 || strings.Contains(string(mails[0].Data), "one@y") {
			t.Errorf("the relay took %+v, want one mail for two that names neither", mails)
		}
		var raw []byte
		st, err := r.dispatch.DownloadMail(ctx(t), &pb.DownloadMailRequest{Id: done.Id})
		if err != nil {
			t.Fatal(err)
		}
		for {
			part, err := st.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, part.Chunk...)
		}
		if s := string(raw); strings.Contains(s, "one@y") || strings.Contains(s, "two@y") || !strings.Contains(s, "Subject: s") {
			t.Errorf("the stored mail shows who is in bcc, or lacks its subject:\n%s", s)
		}
	})
}

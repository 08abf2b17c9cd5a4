package api_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// rawCodec sends bytes as they are and takes no notice of answers.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }
func (rawCodec) Name() string                         { return "proto" }

// raw calls a method with the bytes of a request and returns the call's error.
func (r *rig) raw(c context.Context, method string, request []byte) error {
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	st, err := r.conn.NewStream(c, desc, method, grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallSendMsgSize(64<<20))
	if err != nil {
		return err
	}
	if err := st.SendMsg(request); err != nil && err != io.EOF {
		return err
	}
	if err := st.CloseSend(); err != nil {
		return err
	}
	for {
		if err := st.RecvMsg(nil); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// cost is what something took of this process.
type cost struct {
	cpu   time.Duration
	alloc int64
}

func measure(f func()) cost {
	var before, after runtime.MemStats
	cpu := func() time.Duration {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	runtime.ReadMemStats(&before)
	began := cpu()
	f()
	took := cpu() - began
	runtime.ReadMemStats(&after)
	return cost{took, int64(after.TotalAlloc - before.TotalAlloc)}
}

// within measures f until it took at most so much of both, five times at most, and keeps the
// least: other tests share the process.
func within(cpu time.Duration, alloc int64, f func()) cost {
	least := measure(f)
	for n := 1; n < 5 && (least.cpu > slowed*cpu || least.alloc > alloc); n++ {
		c := measure(f)
		least.cpu, least.alloc = min(least.cpu, c.cpu), min(least.alloc, c.alloc)
	}
	return least
}

// over is whether it took more CPU than a limit for an idle machine.
func (c cost) over(limit time.Duration) bool {
	return c.cpu > slowed*limit && float64(c.cpu) > slowed*float64(limit)*busy()
}

// trailer is how many octets a status is in the trailers of a call: its message
// percent-encoded, its details in base64.
func trailer(err error) int {
	st := status.Convert(err)
	b, _ := proto.Marshal(st.Proto()) // it came over the wire
	return len(url.PathEscape(st.Message())) + base64.RawStdEncoding.EncodedLen(len(b))
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	methodSend   = "/maildispatch.v1.Dispatch/Send"
	methodBatch  = "/maildispatch.v1.Dispatch/SendBatch"
	methodRetry  = "/maildispatch.v1.Dispatch/RetryMails"
	methodList   = "/maildispatch.v1.Dispatch/ListDueOutMails"
	methodUpdate = "/maildispatch.v1.MailServerAdmin/UpdateMailServer"
)

// hostile are requests that are small on the wire and would be large in memory.
func hostile(t testing.TB) map[string]struct {
	method string
	bytes  []byte
	says   string // of what the answer has to speak
} {
	many := func(n int, f func(i int) string) (out []string) {
		for i := range n {
			out = append(out, f(i))
		}
		return out
	}
	headers, variables, labels := map[string]string{}, map[string]string{}, map[string]string{}
	for i := range 300_000 {
		headers[fmt.Sprintf("b%d!", i)] = ""
	}
	for i := range 100_000 {
		variables[fmt.Sprintf("v%d", i)], labels[fmt.Sprintf("l%d", i)] = "", ""
	}
	statuses := make([]pb.MailStatus, 1_000_000)
	for i := range statuses {
		statuses[i] = pb.MailStatus_MAIL_STATUS_FAILED
	}
	message := message("a@y.example")
	attached := proto.CloneOf(message)
	attached.Attachments = make([]*pb.Attachment, 1_000_000)
	for i := range attached.Attachments {
		attached.Attachments[i] = &pb.Attachment{}
	}
	// The same as many times the field "message", with one attachment each: merged they are
	// one.
	var merged []byte
	part := marshal(t, &pb.SendRequest{Message: &pb.MailMessage{Attachments: []*pb.Attachment{{}}}})
	for range 200_000 {
		merged = append(merged, part...)
	}
	headed := proto.CloneOf(message)
	headed.Headers = headers
	wrong := proto.CloneOf(message)
	wrong.To = many(1000, func(i int) string { return strings.Repeat("ü", 900) + fmt.Sprint(i) })
	item := func(i *pb.BatchItem) []byte { return marshal(t, &pb.SendBatchRequest{Items: []*pb.BatchItem{i}}) }
	items := &pb.SendBatchRequest{Items: make([]*pb.BatchItem, 1_000_000)}
	for i := range items.Items {
		items.Items[i] = &pb.BatchItem{}
	}
	type request = struct {
		method string
		bytes  []byte
		says   string
	}
	return map[string]request{
		"attachments":         {methodSend, marshal(t, &pb.SendRequest{Message: attached}), "attachments"},
		"attachments, merged": {methodSend, merged, "attachments"},
		"headers":             {methodSend, marshal(t, &pb.SendRequest{Message: headed}), "headers"},
		"recipients": {methodSend, marshal(t, &pb.SendRequest{Message: &pb.MailMessage{To: many(1_000_000, func(int) string { return "" })}}),
			"message.to"},
		"wrong recipients": {methodSend, marshal(t, &pb.SendRequest{Message: wrong}), "message.to"},
		"labels":           {methodSend, marshal(t, &pb.SendRequest{Message: message, Options: &pb.SendOptions{Labels: labels}}), "labels"},
		"mask": {methodUpdate, marshal(t, &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main"},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: many(500_000, func(int) string { return "" })}}), "update_mask"},
		"ids":       {methodRetry, marshal(t, &pb.RetryMailsRequest{Ids: many(500_000, func(int) string { return "" })}), "ids"},
		"statuses":  {methodList, marshal(t, &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{Statuses: statuses}}), "statuses"},
		"items":     {methodBatch, marshal(t, items), "items"},
		"variables": {methodBatch, item(&pb.BatchItem{Message: message, Variables: variables}), ""},
	}
}

// TestRequestsThatCostMore: what a request of few bytes costs is bounded before anything is
// done with it, and so is what is answered.
func TestRequestsThatCostMore(t *testing.T) {
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { yes := true; m.IsDefault = &yes })
	for name, x := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			var err error
			// The request itself is there twice: in the connection and in one piece.
			const cpu = 50 * time.Millisecond
			alloc := int64(10<<20) + 2*int64(len(x.bytes))
			c := within(cpu, alloc, func() { err = r.raw(ctx(t), x.method, x.bytes) })
			t.Logf("%d bytes of request: %v of CPU, %d KiB allocated, %d bytes of trailer", len(x.bytes), c.cpu, c.alloc>>10, trailer(err))
			if x.says != "" && (status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), x.says)) {
				t.Errorf("got %v, want INVALID_ARGUMENT that speaks of %s", err, x.says)
			}
			if trailer(err) >= 6000 {
				t.Errorf("the status has %d octets, want less than 6 KB", trailer(err))
			}
			if c.alloc > alloc {
				t.Errorf("%d KiB were allocated for %d KiB of request", c.alloc>>10, len(x.bytes)>>10)
			}
			if c.over(cpu) {
				t.Errorf("it took %v of CPU, want less than 50ms", c.cpu)
			}
		})
	}
}

// TestViolationsThatFitEveryClient: some clients take 8 KiB of headers in all, and a client
// whose limit is passed loses its connection with every call on it.
func TestViolationsThatFitEveryClient(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	for _, n := range []int{1, 49, 50, 51, 400, 1000} {
		req := &pb.SendRequest{Message: &pb.MailMessage{}}
		for i := range n {
			req.Message.To = append(req.Message.To, fmt.Sprintf("not an address %d", i))
		}
		_, err := r.send(ctx(t), req)
		if status.Code(err) != codes.InvalidArgument || trailer(err) >= 6000 {
			t.Errorf("%d bad recipients: %v in %d octets, want INVALID_ARGUMENT in less than 6 KB", n, status.Code(err), trailer(err))
		}
		if want := fmt.Sprintf("(and %d more)", n-1); n > 1 && !strings.HasSuffix(status.Convert(err).Message(), want) {
			t.Errorf("%d bad recipients: got %q, want it to end with %q", n, status.Convert(err).Message(), want)
		}
	}
}

// TestGarbage: bytes that are no message are the caller's fault and no error of the service.
func TestGarbage(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	garbage := []byte("\xff\xff\xff\xff garbage")
	for _, m := range []string{methodSend, methodBatch, methodRetry, methodUpdate, "/maildispatch.v1.Dispatch/SendStream",
		"/maildispatch.v1.Dispatch/UploadAttachment", "/maildispatch.v1.Dispatch/WatchMails"} {
		if err := r.raw(ctx(t), m, garbage); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v, want INVALID_ARGUMENT", m, err)
		}
	}
	if err := r.raw(ctx(t), methodRetry, make([]byte, 2<<20)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("2 MiB of a unary request: got %v, want INVALID_ARGUMENT", err)
	}
	if log := r.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("the log speaks of errors:\n%s", log)
	}
}

// TestValuesInManyPlaces: what values make of a small request is found out before it is
// encoded, a call makes a bounded number of bytes, and a strict batch keeps a bounded number.
func TestValuesInManyPlaces(t *testing.T) {
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_DAEMON)
	r.server("large", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxMailBytes: 25 << 20} })
	options := func(server string, places int, strict bool) *pb.BatchOptions {
		return &pb.BatchOptions{Strict: strict, Options: &pb.SendOptions{MailServer: server}, Message: &pb.MailMessage{Subject: "s", Text: strings.Repeat("{{a}} ", places)}}
	}
	items := func(n int, value string) (out []*pb.BatchItem) {
		for range n {
			out = append(out, &pb.BatchItem{Message: &pb.MailMessage{To: []string{"a@y.example"}}, Variables: map[string]string{"a": value}})
		}
		return out
	}
	// 32 KiB in lines, which stay as they are and so cost little
	lines := strings.Repeat(strings.Repeat("v", 62)+"\r\n", 512)
	t.Run("too large by its values", func(t *testing.T) {
		const cpu, alloc = 50 * time.Millisecond, 10 << 20
		c := within(cpu, alloc, func() {
			res, err := r.batch(ctx(t), options("main", 490, false), items(1, strings.Repeat("v", 64<<10))...)
			if err != nil || len(res.Rejections) != 1 || res.Rejections[0].Reason != "MAIL_TOO_LARGE" {
				t.Errorf("got %v, %v, want it refused as MAIL_TOO_LARGE", res, err)
			}
		})
		t.Logf("%v of CPU, %d KiB allocated", c.cpu, c.alloc>>10)
		if c.alloc > alloc || c.over(cpu) {
			t.Errorf("%d KiB and %v of CPU for a mail that is refused", c.alloc>>10, c.cpu)
		}
	})
	t.Run("a strict batch", func(t *testing.T) {
		_, err := r.batch(ctx(t), options("large", 300, true), items(20, lines)...)
		refused(t, "20 items of 10 MB each", err, codes.InvalidArgument, "VALIDATION_FAILED")
		if n := r.counted("select count(*) from mail"); n != 0 {
			t.Errorf("%d mails are stored of a strict batch that was refused", n)
		}
	})
	t.Run("a call", func(t *testing.T) {
		_, err := r.batch(ctx(t), func() *pb.BatchOptions { o := options("large", 300, false); o.ValidateOnly = true; return o }(), items(60, lines)...)
		refused(t, "60 items of 10 MB each", err, codes.ResourceExhausted, "OVERLOADED")
	})
}

// TestManyUploads: a message that names too many uploads asks for none, and one that names as
// many as it may asks for each once, all with one statement.
func TestManyUploads(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		one := r.upload(t, "a.txt", "hello")
		named := func(n int, id func(i int) string) *pb.SendRequest {
			m := message("a@y.example")
			for i := range n {
				m.Attachments = append(m.Attachments, &pb.Attachment{UploadId: id(i)})
			}
			return &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: m}
		}
		strange := func(int) string { return uuid.NewString() }
		for _, x := range []struct {
			name string
			req  *pb.SendRequest
			code codes.Code
			want []int
		}{
			{"20,000", named(20_000, strange), codes.InvalidArgument, nil},
			{"100 that are not there", named(100, strange), codes.NotFound, []int{100}},
			{"one 100 times", named(100, func(int) string { return one }), codes.OK, []int{1}},
			{"no uuid", named(1, func(int) string { return "x" }), codes.InvalidArgument, nil},
			{"the zero uuid", named(1, func(int) string { return uuid.Nil.String() }), codes.NotFound, []int{1}},
		} {
			_, err := r.send(ctx(t), x.req)
			if got := r.lookups.take(); status.Code(err) != x.code || !slices.Equal(got, x.want) {
				t.Errorf("%s: got %v and statements for %v ids, want %v and %v", x.name, err, got, x.code, x.want)
			}
		}
	})
}

// heap is what is in use after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what was in pools goes the second time
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestDownloadsThatNobodyReads: a download holds a piece of its mail and not the mail, whether
// the bytes lie in the mail's row or are shared, and its reader gets all of them.
func TestDownloadsThatNobodyReads(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		// else the caller takes what it does not read
		conn := r.serve(access.As(access.Everybody()), func(*grpc.Server) {}, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(16<<20))
		dispatch := pb.NewDispatchClient(conn)
		const streams, size = 20, 2 << 20
		own := message("a@y.example")
		own.Text = strings.Repeat("a line of a long text\r\n", size/23)
		shared := message("a@y.example")
		shared.Attachments = []*pb.Attachment{{Filename: "a.bin", Content: []byte(strings.Repeat("0123456789abcdef", size/16))}}
		for name, m := range map[string]*pb.MailMessage{"own": own, "shared": shared} {
			evs, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: m})
			if err != nil {
				t.Fatal(err)
			}
			id := evs[0].MailId
			c, cancel := context.WithCancel(ctx(t))
			before := heap()
			for range streams {
				st, err := dispatch.DownloadMail(c, &pb.DownloadMailRequest{Id: id})
				if err == nil {
					_, err = st.Recv()
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			// A piece of the store, a message under way, the buffers of both ends of the
			// connection.
			held := heap() - before
			t.Logf("%s: %d downloads of %d MiB hold %d KiB", name, streams, size>>20, held>>10)
			if held > streams*(768<<10) {
				t.Errorf("%s: %d downloads hold %d KiB, want less than 768 KiB each", name, streams, held>>10)
			}
			cancel()
			st, err := r.dispatch.DownloadMail(ctx(t), &pb.DownloadMailRequest{Id: id})
			if err != nil {
				t.Fatal(err)
			}
			total, want := int64(0), int64(0)
			for {
				p, err := st.Recv()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if len(p.Chunk) > 64<<10 {
					t.Errorf("a piece of %d bytes", len(p.Chunk))
				}
				total, want = total+int64(len(p.Chunk)), max(want, p.SizeBytes)
			}
			if total != want || total < size {
				t.Errorf("%s: got %d bytes of %d", name, total, want)
			}
		}
	})
}

// upload uploads a file and returns its id.
func (r *rig) upload(t *testing.T, name, content string) string {
	t.Helper()
	st, err := r.dispatch.UploadAttachment(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []*pb.UploadAttachmentRequest{{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{Filename: name}}},
		{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: []byte(content)}}} {
		if err := st.Send(q); err != nil {
			t.Fatal(err)
		}
	}
	res, err := st.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	return res.UploadId
}

// counted is a number out of the database.
func (r *rig) counted(query string) (n int) {
	r.t.Helper()
	if err := r.database().QueryRow(query).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// TestHeadersAreBounded: a call with large headers is refused, and the others on its connection
// go on.
func TestHeadersAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	big := metadata.AppendToOutgoingContext(ctx(t), "x-big", strings.Repeat("x", 1<<20))
	if _, err := r.admin.ListMailServers(big, &pb.ListMailServersRequest{}); err == nil {
		t.Error("1 MiB of headers was taken")
	}
	if _, err := r.admin.ListMailServers(metadata.AppendToOutgoingContext(ctx(t), "x-own", strings.Repeat("x", 4<<10)), &pb.ListMailServersRequest{}); err != nil {
		t.Errorf("a call with headers of 4 KiB: %v", err)
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// abuse measures php-mode sends of one caller, alone and while another one, with a connection
// and a token of its own, does what costs the service most.
func abuse(ctx context.Context, b *bench) error {
	if !b.access {
		return errors.New("abuse needs callers who are told apart: -access")
	}
	p, err := b.begin(ctx, "--batch-interval=1h")
	if err != nil {
		return err
	}
	if err := b.addServer(ctx, p, "php", pb.Mode_MODE_PHP, b.tally.sink.Port(), b.conns); err != nil {
		return err
	}
	if err := b.addServer(ctx, p, "later", pb.Mode_MODE_DAEMON, b.tally.sink.Port(), b.conns); err != nil {
		return err
	}
	secret, err := newToken(ctx, p.tokens, "mallory", pb.Role_ROLE_ADMIN)
	if err != nil {
		return err
	}
	if _, err := b.paced(ctx, p, min(100, b.mails)); err != nil { // warms up
		return err
	}
	ls, err := b.paced(ctx, p, b.mails)
	if err != nil {
		return err
	}
	_, alone := b.latencies("php alone", ls)
	for _, x := range attacks() {
		if !strings.Contains(x.name, b.attack) {
			continue
		}
		m, err := newMallory(ctx, p, secret)
		if err != nil {
			return err
		}
		stop := m.begin(x)
		ls, err := b.paced(ctx, p, b.mails)
		stop()
		if err := errors.Join(err, m.conn.Close()); err != nil {
			return fmt.Errorf("beside %s: %w", x.name, err)
		}
		_, p99 := b.latencies("php, beside "+x.name, ls)
		b.add("php, beside "+x.name+" p99 / alone", "%.1f", "<= 3", p99/alone)
		b.add(x.name+": calls of the other", "%.0f", "", float64(m.calls.Load()))
		if m.calls.Load() == 0 {
			b.broke = append(b.broke, x.name+": the other made no call")
		}
	}
	return nil
}

// attack is one way to cost much. It is repeated, after a pause each time, until ctx ends.
type attack struct {
	name  string
	pause time.Duration
	once  func(ctx context.Context, m *mallory)
}

// mallory is the caller who means harm.
type mallory struct {
	secret token
	addr   string
	conn   *grpc.ClientConn
	large  string // id of a large mail of its own
	upload string // id of a small upload
	calls  atomic.Int64
}

func newMallory(ctx context.Context, p *process, secret token) (*mallory, error) {
	// Windows that do not grow: what nobody reads stays where it is.
	conn, err := p.dial(secret, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(16<<20))
	if err != nil {
		return nil, err
	}
	p.conns = p.conns[:len(p.conns)-1] // closed by who uses it
	m := &mallory{secret: secret, addr: p.addr, conn: conn}
	d := pb.NewDispatchClient(conn)
	if m.upload, err = upload(ctx, d, pdf(1000)); err != nil {
		return nil, err
	}
	large, err := upload(ctx, d, pdf(4<<20))
	if err != nil {
		return nil, err
	}
	sent, err := d.SendMail(ctx, &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "later", Hold: true},
		Message: &pb.MailMessage{To: []string{"m@load.example"}, Subject: "large", Attachments: []*pb.Attachment{{Filename: "a.pdf", UploadId: large}}}})
	if err != nil {
		return nil, err
	}
	m.large = sent.MailId
	return m, nil
}

// begin attacks until stop, which waits for the end.
func (m *mallory) begin(x attack) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			m.calls.Add(1)
			x.once(ctx, m)
			select {
			case <-time.After(x.pause):
			case <-ctx.Done():
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// asIs sends bytes as they are and takes no notice of answers.
type asIs struct{}

func (asIs) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (asIs) Unmarshal(mem.BufferSlice, any) error { return nil }
func (asIs) Name() string                         { return "proto" }

// call makes a call with one request and hears its end, which is most often a refusal.
func (m *mallory) call(ctx context.Context, method string, request []byte) {
	s, err := m.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/maildispatch.v1."+method, grpc.ForceCodecV2(asIs{}), grpc.MaxCallSendMsgSize(64<<20))
	if err != nil || s.SendMsg(request) != nil || s.CloseSend() != nil {
		return
	}
	for s.RecvMsg(nil) == nil {
	}
}

// repeated is an attack by one request, again and again.
func repeated(name, method string, request proto.Message) attack {
	raw, err := proto.Marshal(request)
	if err != nil {
		panic(err) // it is made below
	}
	return attack{name, 0, func(ctx context.Context, m *mallory) { m.call(ctx, method, raw) }}
}

// held is an attack by calls that stay open: n of them are begun, and are ended with the phase.
func held(name string, n int, open func(ctx context.Context, m *mallory)) attack {
	return attack{name, 0, func(ctx context.Context, m *mallory) {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				m.calls.Add(1)
				open(ctx, m)
			})
		}
		wg.Wait()
		<-ctx.Done()
	}}
}

func attacks() []attack {
	mail := func() *pb.MailMessage { return &pb.MailMessage{To: []string{"m@load.example"}, Text: "x"} }
	many := func(n int, f func(i int) string) (out []string) {
		for i := range n {
			out = append(out, f(i))
		}
		return out
	}
	empty := func(int) string { return "" }
	attached, headed, wrong := mail(), mail(), mail()
	for range 1_000_000 {
		attached.Attachments = append(attached.Attachments, &pb.Attachment{})
	}
	headed.Headers = map[string]string{}
	for i := range 300_000 {
		headed.Headers[fmt.Sprintf("b%d!", i)] = ""
	}
	wrong.To = many(400, func(i int) string { return strings.Repeat("ü", 900) + fmt.Sprint(i) })
	options := func(places int, strict bool) *pb.BatchOptions {
		return &pb.BatchOptions{Strict: strict, Options: &pb.SendOptions{MailServer: "later", Hold: true}, Message: &pb.MailMessage{Subject: "s", Text: strings.Repeat("{{a}} ", places)}}
	}
	value := func(size int) *pb.BatchItem {
		return &pb.BatchItem{Message: &pb.MailMessage{To: []string{"m@load.example"}}, Variables: map[string]string{"a": strings.Repeat("v", size)}}
	}
	uploads := &pb.SendBatchRequest{Options: options(1, false)}
	for range 200 {
		it := &pb.BatchItem{Message: mail()}
		for i := range 100 {
			it.Message.Attachments = append(it.Message.Attachments, &pb.Attachment{Filename: "a", UploadId: fmt.Sprintf("01890000-0000-7000-8000-%012d", i)})
		}
		uploads.Items = append(uploads.Items, it)
	}
	fits := repeated("490 places that fit", "Dispatch/SendBatch", &pb.SendBatchRequest{Options: options(490, false), Items: []*pb.BatchItem{value(3 << 10), value(3 << 10)}})
	fits.pause = 100 * time.Millisecond // each is stored
	return []attack{
		repeated("a million attachments", "Dispatch/Send", &pb.SendRequest{Message: attached}),
		repeated("half a million mask paths", "MailServerAdmin/UpdateMailServer", &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "later"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: many(500_000, empty)}}),
		repeated("300,000 bad headers", "Dispatch/Send", &pb.SendRequest{Message: headed}),
		repeated("400 bad recipients", "Dispatch/Send", &pb.SendRequest{Message: wrong}),
		repeated("20,000 upload_ids", "Dispatch/SendBatch", uploads),
		held("half-open strict batches", 16, strict),
		repeated("500 places x 64 KiB", "Dispatch/SendBatch", &pb.SendBatchRequest{Options: options(500, false), Items: []*pb.BatchItem{value(64 << 10)}}),
		fits,
		{"12 half-sent messages of 31 MiB", 100 * time.Millisecond, func(ctx context.Context, m *mallory) { halfSent(ctx, m, 12, 31<<20) }},
		{"40 half-sent messages of 8 MiB", 100 * time.Millisecond, func(ctx context.Context, m *mallory) { halfSent(ctx, m, 40, 8<<20) }},
		{"24 calls with 15 MiB of metadata", 100 * time.Millisecond, func(ctx context.Context, m *mallory) { metadata(ctx, m, 24, 15<<20) }},
		held("256 downloads that nobody reads", 256, func(ctx context.Context, m *mallory) {
			s, err := pb.NewDispatchClient(m.conn).DownloadMail(ctx, &pb.DownloadMailRequest{Id: m.large})
			if err == nil {
				_, _ = s.Recv() // the rest is left lying
			}
		}),
		held("2,000 idle WatchMails", 2000, func(ctx context.Context, m *mallory) {
			s, err := pb.NewDispatchClient(m.conn).WatchMails(ctx, &pb.WatchMailsRequest{})
			if err == nil {
				_, _ = s.Recv() // that it has begun, or why not
			}
		}),
		held("1,000 slow uploads", 1000, slowUpload),
		{"TestMailServer, 50 at once", 20 * time.Millisecond, func(ctx context.Context, m *mallory) {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					m.calls.Add(1)
					_, _ = pb.NewMailServerAdminClient(m.conn).TestMailServer(ctx, &pb.TestMailServerRequest{Name: "later"})
				})
			}
			wg.Wait()
		}},
		{"garbage on a stream", 0, func(ctx context.Context, m *mallory) {
			m.call(ctx, "Dispatch/SendStream", []byte("\xff\xff\xff\xff garbage"))
		}},
	}
}

// strict opens a strict batch of 120 items that are much larger than what is sent, and goes on
// saying nothing.
func strict(ctx context.Context, m *mallory) {
	s, err := pb.NewDispatchClient(m.conn).SendBatch(ctx)
	if err != nil {
		return
	}
	r := &pb.SendBatchRequest{Options: &pb.BatchOptions{Strict: true, Options: &pb.SendOptions{MailServer: "later"},
		Message: &pb.MailMessage{Subject: "s", Text: strings.Repeat("{{a}} ", 100)}}}
	for range 120 {
		r.Items = append(r.Items, &pb.BatchItem{Message: &pb.MailMessage{To: []string{"m@load.example"}}, Variables: map[string]string{"a": strings.Repeat("v", 4<<10)}})
	}
	_ = s.Send(r) // what becomes of it is the service's to say
	_ = s.RecvMsg(&pb.SendBatchResponse{})
}

// slowUpload brings a few bytes a second.
func slowUpload(ctx context.Context, m *mallory) {
	s, err := pb.NewDispatchClient(m.conn).UploadAttachment(ctx)
	if err != nil {
		return
	}
	r := &pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{}}}
	for s.Send(r) == nil {
		r = &pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: make([]byte, 100)}}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

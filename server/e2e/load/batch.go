package main

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"time"

	_ "modernc.org/sqlite" // to look at the stored size

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// batch measures daemon mode end to end: from the first request of SendBatch to the last mail
// recorded in the archive.
func batch(ctx context.Context, b *bench) error {
	p, err := b.begin(ctx, "--batch-interval=0")
	if err != nil {
		return err
	}
	if err := b.addServer(ctx, p, "bulk", pb.Mode_MODE_DAEMON, b.tally.sink.Port(), b.conns); err != nil {
		return err
	}
	aim := ">= 6000"
	if b.database == "sqlite" {
		aim = ">= 4000"
	}
	_, err = b.endToEnd(ctx, p, "batch", aim, "bulk", b.mails, b.own)
	return err
}

// endToEnd sends n items by SendBatch, waits until all are recorded, and notes the rates and
// the CPU.
func (b *bench) endToEnd(ctx context.Context, p *process, name, aim, server string, n int, item func(n int) *pb.BatchItem) (time.Duration, error) {
	return b.endToEndWith(ctx, p, name, aim, &pb.BatchOptions{Options: &pb.SendOptions{MailServer: server}}, n, item)
}

func (b *bench) endToEndWith(ctx context.Context, p *process, name, aim string, o *pb.BatchOptions, n int, item func(n int) *pb.BatchItem) (time.Duration, error) {
	before := b.usage()
	begin := time.Now()
	if err := b.bulk(ctx, p, n, o, item); err != nil {
		return 0, err
	}
	accepted := time.Since(begin)
	if err := b.recorded(ctx, p, b.given()); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	b.rate(name+": accepted", "", n, accepted)
	b.rate(name+": archived", aim, n, took)
	b.cpu(name, "<= 0.200", before, n)
	return took, nil
}

// far is batch with a relay behind a delay.
func far(ctx context.Context, b *bench) error {
	d, err := newDelay(b.rtt/2, b.tally.sink.Port())
	if err != nil {
		return err
	}
	defer d.close()
	rtt, err := d.measure()
	if err != nil {
		return err
	}
	b.add("measured round trip ms", "%.1f", "", ms(rtt))
	p, err := b.begin(ctx, "--batch-interval=0")
	if err != nil {
		return err
	}
	for _, x := range []struct {
		conns, mails int
		aim          string
	}{{b.conns, b.mails, ">= 1800"}, {max(1, b.conns/5), max(1, b.mails/5), ">= 380"}} {
		name := fmt.Sprintf("far-%d", x.conns)
		if err := b.addServer(ctx, p, name, pb.Mode_MODE_DAEMON, d.port(), x.conns); err != nil {
			return err
		}
		if _, err := b.endToEnd(ctx, p, fmt.Sprintf("%d connections", x.conns), x.aim, name, x.mails, b.own); err != nil {
			return err
		}
	}
	return nil
}

// shared measures one body with variables to many, and then one file to a twentieth of them.
func shared(ctx context.Context, b *bench) error {
	p, err := b.begin(ctx, "--batch-interval=0")
	if err != nil {
		return err
	}
	for _, server := range []string{"body", "file"} {
		if err := b.addServer(ctx, p, server, pb.Mode_MODE_DAEMON, b.tally.sink.Port(), b.conns); err != nil {
			return err
		}
	}
	m := b.body.message(0)
	m.To, m.Subject = nil, "Load {{no}}"
	m.Text = "No {{no}}.\nDear {{name}},\n" + b.body.text[0]
	o := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "body"}, Message: m}
	_, err = b.endToEndWith(ctx, p, "shared body", ">= 6000", o, b.mails, func(n int) *pb.BatchItem {
		no := strconv.Itoa(n)
		return &pb.BatchItem{Message: &pb.MailMessage{To: []string{"m" + no + "@load.example"}}, Variables: map[string]string{"no": no, "name": "Customer " + no}}
	})
	if err != nil {
		return err
	}
	bodies, err := b.stored(ctx)
	if err != nil {
		return err
	}
	b.add("shared body: bytes stored a mail", "%.0f", fmt.Sprintf("< %d", b.size/2), float64(bodies.raw)/float64(b.mails))
	b.add("shared body: contents stored", "%.0f", "", float64(bodies.contents))
	if bodies.raw > int64(b.mails*b.size/2) {
		b.broke = append(b.broke, "the shared body is not stored once")
	}

	id, err := upload(ctx, p.dispatch[0], pdf(1<<20))
	if err != nil {
		return err
	}
	n := max(1, b.mails/20)
	o = &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "file"}, Message: &pb.MailMessage{Attachments: []*pb.Attachment{{Filename: "prices.pdf", UploadId: id}}}}
	if _, err := b.endToEndWith(ctx, p, "1 MiB file", "", o, n, b.own); err != nil {
		return err
	}
	files, err := b.stored(ctx)
	if err != nil {
		return err
	}
	b.add("1 MiB file: contents stored", "%.0f", "", float64(files.contents-bodies.contents))
	b.add("1 MiB file: MB stored", "%.1f", "", float64(files.bytes-bodies.bytes)/1e6)
	if files.bytes-bodies.bytes > 3<<20 {
		b.broke = append(b.broke, "the file is not stored once")
	}
	if err := b.end(); err != nil { // its peak is known now
		return err
	}
	if b.peak >= 256 {
		b.broke = append(b.broke, fmt.Sprintf("the service's memory went up to %.0f MiB", b.peak))
	}
	return nil
}

// upload takes a file to the service in chunks.
func upload(ctx context.Context, d pb.DispatchClient, file []byte) (string, error) {
	s, err := d.UploadAttachment(ctx)
	if err != nil {
		return "", err
	}
	if err := s.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{Filename: "prices.pdf", ContentType: "application/pdf"}}}); err != nil {
		return "", err
	}
	for len(file) > 0 {
		n := min(len(file), 128<<10)
		if err := s.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: file[:n]}}); err != nil {
			break // CloseAndRecv has the reason
		}
		file = file[n:]
	}
	r, err := s.CloseAndRecv()
	if err != nil {
		return "", fmt.Errorf("UploadAttachment: %w", err)
	}
	return r.UploadId, nil
}

// pdf is a file of n bytes that looks compressed, as PDFs do.
func pdf(n int) []byte {
	var b bytes.Buffer
	b.WriteString("%PDF-1.4\n")
	for r := rand.New(rand.NewPCG(1, 2)); b.Len() < n; {
		b.WriteByte(byte(r.Uint32()))
	}
	return b.Bytes()
}

// size is what the database holds of messages.
type size struct {
	raw             int64 // bytes of what is kept of each mail alone
	contents, bytes int64 // shared contents, and their bytes
}

// stored asks the database itself.
func (b *bench) stored(ctx context.Context) (size, error) {
	driver, dsn := "postgres", b.dsn
	if path, ok := strings.CutPrefix(b.dsn, "sqlite:"); ok {
		driver, dsn = "sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return size{}, err
	}
	defer db.Close()
	var s size
	err = db.QueryRowContext(ctx, "select (select coalesce(sum(length(raw)), 0) from mail), count(*), coalesce(sum(size), 0) from content").Scan(&s.raw, &s.contents, &s.bytes)
	return s, err
}

package api_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	gomessage "github.com/emersion/go-message"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// noise is n octets that nothing compresses and no two calls share.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	// never fails
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// TestSharedFileWithOwnText: what the items share is encoded once, kept once in memory and
// stored once, also where every item has a text of its own.
func TestSharedFileWithOwnText(t *testing.T) {
	const items = 300
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_DAEMON)
	file := noise(1, 6<<20)
	options := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "main", Hold: true},
		Message: &pb.MailMessage{Subject: "Invoice", Text: "shared", Attachments: []*pb.Attachment{{Filename: "terms.pdf", Content: file}}}}
	var in []*pb.BatchItem
	for i := range items {
		in = append(in, &pb.BatchItem{Message: &pb.MailMessage{To: []string{fmt.Sprintf("a%d@y.example", i)}, Text: fmt.Sprintf("Dear %d", i)}})
	}
	var res *pb.SendBatchResponse
	var err error
	began := time.Now()
	c := measure(func() { res, err = r.batch(ctx(t), options, in...) })
	took := time.Since(began)
	if err != nil || res.Accepted != items {
		t.Fatalf("got %v, %v", res, err)
	}
	t.Logf("%d items of a shared file of 6 MiB with a text of their own: %v, %v of CPU, %d MiB allocated in all", items, took, c.cpu, c.alloc>>20)
	if c.alloc > 200<<20 {
		t.Errorf("%d MiB allocated, want at most 200", c.alloc>>20)
	}
	if c.over(2 * time.Second) {
		t.Errorf("%v of CPU, want at most 2 s", c.cpu)
	}
}

// TestMixesAreStoredOnce: one file is one copy for every mix of what is shared and what an item
// brings itself.
func TestMixesAreStoredOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		for _, size := range []int{5 << 10, 300 << 10} {
			before := r.counted("select coalesce(sum(size), 0) from content")
			own := r.counted("select coalesce(sum(length(raw)), 0) from mail")
			file := noise(uint64(size), size)
			html := "<p>{{name}}</p>" + strings.Repeat("<p>terms and conditions</p>\n", 400)
			options := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "main", Hold: true},
				Message: &pb.MailMessage{Subject: "Invoice", Text: "shared", Html: html, Attachments: []*pb.Attachment{{Filename: "terms.pdf", Content: file}}}}
			var in []*pb.BatchItem
			for i := range 40 {
				m := &pb.MailMessage{To: []string{fmt.Sprintf("a%d@y.example", i)}}
				switch i % 5 {
				case 1:
					m.Text = fmt.Sprintf("Dear %d", i)
				case 2:
					m.Html = fmt.Sprintf("<p>Dear %d", i)
				case 3:
					m.Text, m.Attachments = "Dear {{name}}", []*pb.Attachment{{Filename: "own.txt", Content: fmt.Appendf(nil, "item %d", i)}}
				case 4:
					m.Subject, m.Headers = "other", map[string]string{"X-Item": fmt.Sprint(i)}
				}
				in = append(in, &pb.BatchItem{Message: m, Variables: map[string]string{"name": fmt.Sprintf("N%d", i)}, Labels: map[string]string{"i": fmt.Sprint(i)}})
			}
			res, err := r.batch(ctx(t), options, in...)
			if err != nil || res.Accepted != 40 {
				t.Fatalf("got %v, %v", res, err)
			}
			encoded := size * 78 / 57
			// the file once, the html once for the mails without a body of their own and once
			// for the rest
			if n := r.counted("select coalesce(sum(size), 0) from content") - before; n > encoded+2*len(html)+20<<10 {
				t.Errorf("file of %d: %d octets of content are stored, want one copy of %d and two of %d", size, n, encoded, len(html))
			}
			if n := r.counted("select coalesce(sum(length(raw)), 0) from mail") - own; n > 40*2000 {
				t.Errorf("file of %d: the mails have %d octets of their own", size, n)
			}
			list, err := r.dispatch.ListDueOutMails(ctx(t), &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{BatchId: res.BatchId}})
			if err != nil || len(list.Mails) != 40 {
				t.Fatal(len(list.GetMails()), err)
			}
			for _, m := range list.Mails {
				r.wantMix(m, file, html)
			}
		}
	})
}

// wantMix reads a mail of the mix back.
func (r *rig) wantMix(m *pb.Mail, file []byte, html string) {
	r.t.Helper()
	i, name := 0, "N"+m.Labels["i"]
	_, _ = fmt.Sscan(m.Labels["i"], &i) // it was written by Sprint
	want := map[string]string{"text/plain": "shared", "text/html": strings.ReplaceAll(html, "{{name}}", name), "application/pdf": string(file)}
	switch i % 5 {
	case 1:
		want["text/plain"] = fmt.Sprintf("Dear %d", i)
	case 2:
		want["text/html"] = fmt.Sprintf("<p>Dear %d", i)
	case 3:
		want["text/plain"], want["own.txt"] = "Dear "+name, fmt.Sprintf("item %d", i)
	}
	raw := r.download(m.Id)
	e, err := gomessage.Read(bytes.NewReader(raw))
	if err != nil {
		r.t.Fatal(err)
	}
	err = e.Walk(func(_ []int, p *gomessage.Entity, err error) error {
		if err != nil {
			return err
		}
		t, _, err := p.Header.ContentType()
		if err != nil || strings.HasPrefix(t, "multipart/") {
			return err
		}
		if _, params, _ := p.Header.ContentDisposition(); params["filename"] == "own.txt" {
			t = "own.txt"
		}
		body, err := io.ReadAll(p.Body)
		text := string(body)
		if strings.HasPrefix(t, "text/") {
			text = strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
		}
		if w := strings.TrimRight(want[t], "\n"); text != w && text != want[t] {
			r.t.Errorf("item %d: %s has %d octets %.80q, want %d: %.80q", i, t, len(text), text, len(w), w)
		}
		delete(want, t)
		return err
	})
	if err != nil || len(want) > 0 {
		r.t.Errorf("item %d: %v; %d parts are missing", i, err, len(want))
	}
	if int64(len(raw)) != m.SizeBytes {
		r.t.Errorf("item %d: %d octets, the journal says %d", i, len(raw), m.SizeBytes)
	}
}

// download is the raw message of a mail.
func (r *rig) download(id string) []byte {
	r.t.Helper()
	st, err := r.dispatch.DownloadMail(ctx(r.t), &pb.DownloadMailRequest{Id: id})
	if err != nil {
		r.t.Fatal(err)
	}
	var raw []byte
	for {
		part, err := st.Recv()
		if err == io.EOF {
			return raw
		}
		if err != nil {
			r.t.Fatal(err)
		}
		raw = append(raw, part.Chunk...)
	}
}

// TestOwnFilesDoNotPileUp: items that each bring a large file are made durable a few at a time,
// so that a stream of them does not keep them all in memory.
func TestOwnFilesDoNotPileUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_DAEMON)
	var in []*pb.BatchItem
	for i := range 12 {
		in = append(in, &pb.BatchItem{Message: &pb.MailMessage{To: []string{"a@y.example"}, Text: "t", Attachments: []*pb.Attachment{{Filename: "a.pdf", Content: noise(uint64(i), 2<<20)}}}})
	}
	res, err := r.batch(ctx(t), &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "main", Hold: true}}, in...)
	if err != nil || res.Accepted != 12 {
		t.Fatal(res, err)
	}
	for _, n := range r.commits.get() {
		if n > 2 {
			t.Errorf("%d mails with a file of 2 MiB each in one commit, want at most 2: a chunk has 4 MiB", n)
		}
	}
}

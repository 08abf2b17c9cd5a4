package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	entity "github.com/emersion/go-message"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

const (
	// maxPreviewRaw is how much of a raw message a preview shows.
	maxPreviewRaw = 1 << 20
	// maxPreviewText is how much of a text part it shows, and maxPreviewTexts of all of them:
	// an answer stays below the 4 MiB that clients take.
	maxPreviewText  = 64 << 10
	maxPreviewTexts = 1 << 20
	// maxPreviewHeaders is how much of the headers it shows, and maxPreviewName of a name in
	// them.
	maxPreviewHeaders = 256 << 10
	maxPreviewName    = 1 << 10
	// maxPreviewMissing is how many files that its HTML wants and lacks are named.
	maxPreviewMissing = 20
	// maxPreviewParts and maxPreviewDepth bound what is read of a finished message.
	maxPreviewParts = 100
	maxPreviewDepth = 10
	// largeForMany is the size from which many mail servers refuse a mail.
	largeForMany = 10 << 20
)

// PreviewMail implements the service: a Send that ends before anything is stored.
func (a *API) PreviewMail(ctx context.Context, r *pb.PreviewMailRequest) (*pb.PreviewMailResponse, error) {
	send := &pb.SendRequest{Options: r.Options, Message: r.Message}
	d, err := a.draft(ctx, send, true)
	if err != nil {
		return nil, err
	}
	sub, err := a.compose(ctx, d, send)
	if err != nil {
		return nil, err
	}
	m, s := sub.Mail, sub.Server
	breakers, err := a.Store.Breakers(ctx)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.PreviewMailResponse{
		Accepted: viewerOf(ctx).event(delivery.Event{Time: m.CreateTime, Accepted: &delivery.Accepted{Server: m.MailServer, Mode: m.Mode, Route: m.Route}}, m.SizeBytes).GetAccepted(),
		Handling: handling(d, m, s),
	}
	for _, to := range m.Recipients {
		out.Recipients = append(out.Recipients, to.Mailbox)
	}
	p := &preview{out: out, raw: r.IncludeRaw}
	if err := p.read(func(w io.Writer) error { return a.writeMail(ctx, w, m) }); err != nil {
		return nil, a.fault(err)
	}
	out.Warnings = p.warnings(r, m, s, breakers[s.Name])
	return out, nil
}

// writeMail writes the raw message of a mail that is not stored.
func (a *API) writeMail(ctx context.Context, w io.Writer, m *store.NewMail) error {
	for _, p := range m.Raw {
		piece := message.Piece{Data: p.Data, Offset: p.Offset, Length: p.Length}
		if p.Shared != nil {
			piece.Shared = &message.Content{Sum: p.Shared.Sum, Size: p.Shared.Size, Data: p.Shared.Data}
		}
		if err := a.writePieces(ctx, w, []message.Piece{piece}); err != nil {
			return err
		}
	}
	return nil
}

// handling says what Send would do with the mail now.
func handling(d *draft, m *store.NewMail, s *store.MailServer) string {
	switch {
	case m.Held != "":
		return "held until ReleaseMails: its sender asked for it"
	case m.RunAt.After(d.now):
		return "queued: not before " + m.RunAt.UTC().Format(timeForm) + ", as send_after says"
	case s.PauseUntil != nil && s.PauseUntil.After(d.now):
		return "queued: mail server " + s.Name + " sends nothing until " + s.PauseUntil.UTC().Format(timeForm)
	case m.Mode == store.ModeDaemon:
		return "queued, and sent by the batch: mail server " + s.Name + " is in daemon mode"
	case m.RetryInBatch:
		return "sent at once while the caller waits; what fails for now goes on in the batch"
	}
	return "sent at once while the caller waits: mail server " + s.Name + " is in php mode"
}

const timeForm = "2006-01-02T15:04:05Z07:00"

// preview reads a message that would be sent.
type preview struct {
	out  *pb.PreviewMailResponse
	raw  bool
	html []string // the HTML parts, as far as they were read
	text int      // octets of text that are shown
}

// read reads what write writes, without having it in memory as a whole.
func (p *preview) read(write func(io.Writer) error) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := write(w)
		_ = w.CloseWithError(err) // it never fails
		done <- err
	}()
	var from io.Reader = r
	var raw bytes.Buffer
	if p.raw {
		from = io.TeeReader(r, &limited{w: &raw, left: maxPreviewRaw})
	}
	e, err := entity.Read(from)
	if err == nil || entity.IsUnknownCharset(err) || entity.IsUnknownEncoding(err) {
		p.headers(e)
		err = p.walk(e, 0)
	}
	if _, rest := io.Copy(io.Discard, from); rest != nil && err == nil {
		err = rest
	}
	_ = r.Close() // it never fails
	if failed := <-done; failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		return failed
	}
	p.out.Raw = raw.Bytes()
	if err != nil {
		p.out.Warnings = append(p.out.Warnings, "a mail program may not read it to its end: "+err.Error())
	}
	return nil
}

func (p *preview) headers(e *entity.Entity) {
	left := maxPreviewHeaders
	for f := e.Header.Fields(); f.Next(); {
		value, err := f.Text()
		if err != nil {
			value = f.Value()
		}
		if left -= len(f.Key()) + len(value); left < 0 {
			p.out.Warnings = append(p.out.Warnings, "it has more headers than are shown")
			return
		}
		p.out.Headers = append(p.out.Headers, &pb.PreviewMailResponse_Header{Name: f.Key(), Value: strings.ToValidUTF8(value, "?")})
	}
}

func (p *preview) walk(e *entity.Entity, depth int) error {
	if many := e.MultipartReader(); many != nil && depth < maxPreviewDepth {
		for {
			child, err := many.NextPart()
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil && !entity.IsUnknownCharset(err) && !entity.IsUnknownEncoding(err):
				return err
			}
			if err := p.walk(child, depth+1); err != nil {
				return err
			}
		}
	}
	if len(p.out.Parts) == maxPreviewParts {
		return nil
	}
	kind, params, err := e.Header.ContentType()
	if err != nil {
		kind = "text/plain" // what a mail program takes it for
	}
	how, named, _ := e.Header.ContentDisposition() // none, or none that can be read
	name := named["filename"]
	if name == "" {
		name = params["name"]
	}
	id, _ := e.Header.Text("Content-Id") // absent, or of no use
	part := &pb.PreviewMailResponse_Part{ContentType: beginning(kind), Filename: beginning(name), ContentId: beginning(strings.Trim(id, "<> ")), Attachment: how == "attachment"}
	var text bytes.Buffer
	var keep io.Writer = io.Discard
	if strings.HasPrefix(kind, "text/") && !part.Attachment {
		keep = &limited{w: &text, left: min(maxPreviewText, maxPreviewTexts-p.text)}
	}
	n, err := io.Copy(keep, e.Body)
	p.text += text.Len()
	part.SizeBytes, part.Text = n, strings.ToValidUTF8(text.String(), "?")
	if kind == "text/html" {
		p.html = append(p.html, part.Text)
	}
	p.out.Parts = append(p.out.Parts, part)
	return err
}

// beginning is what is shown of a name.
func beginning(name string) string {
	return strings.ToValidUTF8(name[:min(len(name), maxPreviewName)], "?")
}

// limited keeps the beginning of what is written.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	if _, err := l.w.Write(b[:n]); err != nil {
		return 0, err
	}
	return len(b), nil
}

var contentID = regexp.MustCompile(`(?i)["'(]cid:([^"')]+)["')]`)

// warnings are what a person should know before the mail leaves.
func (p *preview) warnings(r *pb.PreviewMailRequest, m *store.NewMail, s *store.MailServer, b *store.Breaker) []string {
	out := p.out.Warnings
	warn := func(is bool, format string, args ...any) {
		if is {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	var text, html bool
	ids := map[string]bool{}
	for _, x := range p.out.Parts {
		text = text || x.ContentType == "text/plain" && !x.Attachment
		html = html || x.ContentType == "text/html" && !x.Attachment
		ids[x.ContentId] = true
	}
	given := len(r.GetMessage().GetTo()) + len(r.GetMessage().GetCc()) + len(r.GetMessage().GetBcc())
	suspended := b != nil && b.Failures > 0 && b.Version == s.Version
	switch {
	case suspended && s.Fallback != "":
		warn(true, "mail server %s is suspended; until it is well the mail goes on through its fallback %s", s.Name, s.Fallback)
	case suspended:
		warn(true, "mail server %s is suspended: see GetMailServer", s.Name)
	}
	warn(m.Subject == "" && len(r.GetMessage().GetRaw()) == 0, "it has no subject")
	warn(html && !text, "it has HTML and no text: give text for programs that show no HTML, and because filters look for it")
	warn(given > len(m.Recipients), "%d recipients are given twice, and get it once", given-len(m.Recipients))
	warn(m.Kind == store.KindBulk && r.GetOptions().GetUnsubscribeUrl() == "" && len(r.GetMessage().GetRaw()) == 0,
		"it is bulk without unsubscribe_url: large mailbox providers demand one click to leave")
	warn(m.SizeBytes > largeForMany, "it has %d bytes: many mail servers refuse more than 10 MiB", m.SizeBytes)
	warn(m.UTF8, "an address in its header needs SMTPUTF8: a mail server without it refuses the mail")
	missing := 0
	for _, h := range p.html {
		for rest := contentID.FindStringSubmatchIndex(h); rest != nil; rest = contentID.FindStringSubmatchIndex(h) {
			id := beginning(h[rest[2]:rest[3]])
			h = h[rest[1]:]
			if ids[id] {
				continue
			}
			ids[id] = true // told once
			if missing++; missing > maxPreviewMissing {
				return append(out, "the HTML shows more files that are not there")
			}
			warn(true, "the HTML shows cid:%s, and no part has that content_id", id)
		}
	}
	return out
}

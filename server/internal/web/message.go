package web

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // of bodies that are not UTF-8
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

const (
	// maxFrame is how much of a part a frame shows; the whole can be downloaded.
	maxFrame = 64 << 10
	// littlePart is how many octets of a part fit into a low frame.
	littlePart = 600
	// maxParts and maxDepth bound what is read of a message that somebody else made.
	maxParts = 100
	maxDepth = 10
	// maxHeaders is how many header fields are shown.
	maxHeaders = 60
	// maxReading is how many messages are held in memory at once, to be taken apart: each is up
	// to 25 MiB, and needs some times that.
	maxReading = 4
	// downloadTime is what a download may take.
	downloadTime = 10 * time.Minute
)

// part is a leaf of a message.
type part struct {
	Number int
	Type   string
	Name   string
	Size   int
	Inline bool // a frame can show it
	body   []byte
}

// header is a line above a message.
type header struct{ Name, Value string }

// messageBody is what the view of a message shows.
type messageBody struct {
	Mail    *pb.Mail
	Headers []header
	More    bool // header fields than are shown
	Parts   []part
	Shown   int // of Parts, in the frame; 0 = none
	Cut     bool
	Little  bool   // the part is short
	Fault   string // why it could not be read to its end
}

// parsed is a message that was read.
type parsed struct {
	headers []header
	parts   []part
	fault   string
}

// download reads a message whole. The service bounds it at 25 MiB.
func (v *view) download(id string, w io.Writer, begin func(*pb.DownloadMailResponse)) error {
	s, err := v.dispatch().DownloadMail(v.ctx(), &pb.DownloadMailRequest{Id: id})
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		r, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if first && begin != nil {
			begin(r)
		}
		if _, err := w.Write(r.Chunk); err != nil {
			return err
		}
	}
}

// raw hands the message out as a file.
func raw(v *view) error {
	begun := false
	// the connection's own time would end a large mail on a slow line
	// else it is as it was
	_ = http.NewResponseController(v.w).SetWriteDeadline(time.Now().Add(downloadTime))
	err := v.download(v.r.PathValue("id"), v.w, func(r *pb.DownloadMailResponse) {
		begun = true
		h := v.w.Header()
		h.Set("Content-Type", "message/rfc822")
		h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": r.Filename}))
		h.Set("Content-Length", strconv.FormatInt(r.SizeBytes, 10))
		h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	})
	if err != nil && begun {
		panic(http.ErrAbortHandler) // so that nobody takes a part for the whole
	}
	return err
}

// read downloads a message, takes it apart and has it used. Only so many are in memory.
func (v *view) read(id string, use func(*parsed) error) error {
	select {
	case v.page.reading <- struct{}{}:
	case <-v.ctx().Done():
		return status.Error(codes.ResourceExhausted, "Other people are reading large messages. Wait a moment.")
	}
	defer func() { <-v.page.reading }()
	p, err := v.takeApart(id)
	if err != nil {
		return err
	}
	return use(p)
}

// takeApart reads a message into memory.
func (v *view) takeApart(id string) (*parsed, error) {
	var b bytes.Buffer
	if err := v.download(id, &b, nil); err != nil {
		return nil, err
	}
	p := &parsed{}
	e, err := message.Read(&b)
	if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
		p.fault = "The message cannot be read: " + err.Error()
		return p, nil
	}
	var words mime.WordDecoder
	for f := e.Header.Fields(); f.Next(); {
		value := f.Value()
		if text, err := words.DecodeHeader(value); err == nil {
			value = text
		}
		name := f.Key()
		if raw, err := f.Raw(); err == nil { // as it was written
			if as, _, ok := bytes.Cut(raw, []byte(":")); ok && strings.EqualFold(string(as), name) {
				name = string(as)
			}
		}
		p.headers = append(p.headers, header{name, value})
	}
	p.walk(e, 0)
	return p, nil
}

// walk collects the leaves.
func (p *parsed) walk(e *message.Entity, depth int) {
	if r := e.MultipartReader(); r != nil && depth < maxDepth {
		for len(p.parts) < maxParts {
			x, err := r.NextPart()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
				p.fault = "The message cannot be read to its end: " + err.Error()
				return
			}
			p.walk(x, depth+1)
		}
		return
	}
	typ, params, err := e.Header.ContentType()
	if err != nil || typ == "" {
		typ = "text/plain"
	}
	disposition, more, _ := e.Header.ContentDisposition() // without one it is shown
	name := more["filename"]
	if name == "" {
		name = params["name"]
	}
	body, err := io.ReadAll(e.Body)
	if err != nil {
		p.fault = "A part cannot be read to its end: " + err.Error()
	}
	p.parts = append(p.parts, part{Number: len(p.parts) + 1, Type: typ, Name: name, Size: len(body), Inline: strings.HasPrefix(typ, "text/") && disposition != "attachment", body: body})
}

// showMessage shows the headers of a mail, its parts, and one of them in a frame.
func showMessage(v *view) error {
	id := v.r.PathValue("id")
	res, err := v.dispatch().GetMail(v.ctx(), &pb.GetMailRequest{Id: id})
	if err != nil {
		return err
	}
	var p *parsed
	if err := v.read(id, func(whole *parsed) error {
		for i := range whole.parts {
			whole.parts[i].body = nil // the view has the names alone
		}
		p = whole
		return nil
	}); err != nil {
		return err
	}
	b := messageBody{Mail: res.Mail, Headers: p.headers, Parts: p.parts, Fault: p.fault}
	if len(b.Headers) > maxHeaders {
		b.Headers, b.More = b.Headers[:maxHeaders], true
	}
	want, _ := strconv.Atoi(v.r.URL.Query().Get("part")) // 0 = the best
	for _, x := range p.parts {
		if x.Inline && (x.Number == want || want == 0) {
			// with alternatives the last is the best
			b.Shown, b.Cut, b.Little = x.Number, x.Size > maxFrame, x.Size < littlePart
		}
	}
	return v.render("message", "Message of "+id, b)
}

// showPart hands one part out: text for the frame, anything else as a file.
func showPart(v *view) error {
	var x part
	n, err := strconv.Atoi(v.r.PathValue("part"))
	if err == nil {
		err = v.read(v.r.PathValue("id"), func(p *parsed) error {
			if n < 1 || n > len(p.parts) {
				return status.Error(codes.NotFound, "the message has no such part")
			}
			x = p.parts[n-1]
			x.body = bytes.Clone(x.body) // the rest of the message is let go
			return nil
		})
	} else {
		err = status.Error(codes.NotFound, "the message has no such part")
	}
	if err != nil {
		return err
	}
	h := v.w.Header()
	// Neither scripts nor loads nor forms, and an origin of its own: whatever the part holds,
	// it reaches nothing. Only styles in it count.
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'")
	h.Set("X-Frame-Options", "SAMEORIGIN")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	body := x.body
	switch {
	case v.r.URL.Query().Has("save") || !x.Inline:
		h.Set("Content-Type", "application/octet-stream")
		name := x.Name
		if name == "" {
			name = "part-" + strconv.Itoa(n)
		}
		h.Set("Content-Disposition", "attachment; filename*=UTF-8''"+url.PathEscape(safeName(name)))
	case x.Type == "text/html":
		h.Set("Content-Type", "text/html; charset=utf-8")
		body = disarm(cutText(body))
	default:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = cutText(body)
	}
	_, _ = v.w.Write(body) // a browser that is gone needs no answer
	return errDone
}

// reaching are the elements by which a document without scripts makes a browser speak to others
// although its policy forbids every load: a name is looked up or a connection is opened ahead
// (link), or another page is loaded (meta, base for where links lead).
var reaching = regexp.MustCompile(`(?i)<(/?)(link|meta|base)`)

// disarm turns these into elements that mean nothing. The start of a tag is always written as
// these characters in UTF-8, so no parser has to agree with the browser's.
func disarm(html []byte) []byte { return reaching.ReplaceAll(html, []byte("<${1}x-$2")) }

// cutText is as much of a text as a frame shows.
func cutText(b []byte) []byte {
	if len(b) > maxFrame {
		b = b[:maxFrame]
	}
	return bytes.ToValidUTF8(b, []byte("\ufffd"))
}

// safeName is a file name without a path and without what hides its ending.
func safeName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || strings.ContainsRune("/\\:*?\"<>|\u007f", r) || r >= 0x200b && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '_'
		}
		return r
	}, s)
	return strings.TrimLeft(s, ".")
}

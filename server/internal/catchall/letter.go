package catchall

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"strings"
)

// Letter is a message as its reader sees it, line by line: who it is from and for, the subject,
// the text, and what is attached. Of an HTML part it says the size. What it cannot read it says
// in place of it. The lines are as foreign as the message is.
func Letter(raw []byte) []string {
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return []string{fmt.Sprintf("not a message: %v", err)}
	}
	var lines []string
	for _, name := range []string{"From", "To", "Cc", "Subject"} {
		if v := msg.Header.Get(name); v != "" {
			lines = append(lines, fmt.Sprintf("%-8s %s", name+":", decoded(v)))
		}
	}
	l := letter{}
	l.part(textproto.MIMEHeader(msg.Header), msg.Body, 0)
	if len(l.text) > 0 {
		lines = append(append(lines, ""), l.text...)
	}
	if len(l.others) > 0 {
		lines = append(append(lines, ""), l.others...)
	}
	return lines
}

// maxDepth is how deep parts are looked into.
const maxDepth = 10

// letter gathers what a message holds.
type letter struct {
	text   []string // the lines of its text parts
	others []string // a line for each other part
}

func (l *letter) part(h textproto.MIMEHeader, body io.Reader, depth int) {
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || kind == "" {
		kind = "text/plain"
	}
	if strings.HasPrefix(kind, "multipart/") && depth < maxDepth {
		r := multipart.NewReader(body, params["boundary"])
		for {
			p, err := r.NextRawPart()
			if err == io.EOF {
				return
			}
			if err != nil {
				l.others = append(l.others, fmt.Sprintf("not readable: %v", err))
				return
			}
			l.part(p.Header, p, depth+1)
		}
	}
	switch strings.ToLower(h.Get("Content-Transfer-Encoding")) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	content, err := io.ReadAll(body)
	if err != nil {
		l.others = append(l.others, fmt.Sprintf("not readable: %v", err))
		return
	}
	how, named, err := mime.ParseMediaType(h.Get("Content-Disposition"))
	if err != nil {
		how, named = "", nil
	}
	name := named["filename"]
	if name == "" {
		name = params["name"]
	}
	switch {
	case kind == "text/plain" && how != "attachment":
		text := strings.TrimRight(strings.ReplaceAll(string(content), "\r\n", "\n"), "\n")
		if text != "" {
			l.text = append(l.text, strings.Split(text, "\n")...)
		}
	case how == "attachment" || name != "":
		l.others = append(l.others, fmt.Sprintf("attached: %s (%s, %d bytes)", decoded(name), kind, len(content)))
	default:
		l.others = append(l.others, fmt.Sprintf("also as %s (%d bytes)", kind, len(content)))
	}
}

// decoded is a header's value without the encoding of its words.
func decoded(v string) string {
	d, err := new(mime.WordDecoder).DecodeHeader(v)
	if err != nil {
		return v
	}
	return d
}

package e2e

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// letter is a mail as its reader sees it, read with the standard library, which has no part in
// composing.
type letter struct {
	header     netmail.Header
	subject    string
	text, html string
	files      map[string]string
}

func read(t *testing.T, raw []byte) *letter {
	t.Helper()
	m, err := netmail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	l := &letter{header: m.Header, files: map[string]string{}}
	if l.subject, err = new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject")); err != nil {
		t.Fatal(err)
	}
	l.part(t, m.Header.Get, m.Body)
	return l
}

func (l *letter) part(t *testing.T, field func(string) string, body io.Reader) {
	t.Helper()
	mediaType, params, err := mime.ParseMediaType(field("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(mediaType, "multipart/") {
		r := multipart.NewReader(body, params["boundary"])
		for {
			p, err := r.NextRawPart()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			l.part(t, p.Header.Get, p)
		}
	}
	switch field("Content-Transfer-Encoding") {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	_, disposition, _ := mime.ParseMediaType(field("Content-Disposition"))
	switch name := disposition["filename"]; {
	case name != "":
		l.files[name] = string(b)
	case mediaType == "text/html":
		// the line end that every text of a mail has
		l.html = strings.TrimSuffix(string(b), "\r\n")
	default:
		l.text = strings.TrimSuffix(string(b), "\r\n")
	}
}

// letters are what a relay has, by the first recipient.
func letters(t *testing.T, relay *smtpxtest.Server) map[string]*letter {
	t.Helper()
	all := map[string]*letter{}
	for _, m := range relay.Mails() {
		if all[m.To[0]] != nil {
			t.Errorf("%s got two mails", m.To[0])
		}
		all[m.To[0]] = read(t, m.Data)
	}
	return all
}

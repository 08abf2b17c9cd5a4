package clienttest

import (
	"bytes"
	"mime"
	"net/mail"

	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// checkRaw finds what is worst about a finished message; the service is far stricter.
func checkRaw(m *maildispatchv1.MailMessage) []client.Violation {
	if len(m.GetRaw()) == 0 {
		return nil
	}
	bad := func(field, text string) []client.Violation {
		return []client.Violation{{Field: "message." + field, Description: text}}
	}
	rest := proto.CloneOf(m)
	rest.Raw, rest.To, rest.Cc, rest.Bcc = nil, nil, nil, nil
	if proto.Size(rest) > 0 {
		return bad("raw", "stands beside what it should hold: nothing is added to it")
	}
	if bytes.Count(m.GetRaw(), []byte("\n")) != bytes.Count(m.GetRaw(), []byte("\r\n")) {
		return bad("raw", "has a line end that is not CRLF")
	}
	read, err := mail.ReadMessage(bytes.NewReader(m.GetRaw()))
	if err != nil {
		return bad("raw", "is not a message")
	}
	if as, err := read.Header.AddressList("From"); err != nil || len(as) != 1 {
		return bad("raw", "has no From of one address")
	}
	if len(recipientsOf(read)[0])+len(recipientsOf(read)[1])+len(recipientsOf(read)[2])+len(m.GetTo())+len(m.GetCc())+len(m.GetBcc()) == 0 {
		return bad("to", "no recipient: give one in to, cc or bcc, or in raw")
	}
	return nil
}

// recipientsOf are the addresses in To, Cc and Bcc.
func recipientsOf(read *mail.Message) (lists [3][]string) {
	for i, k := range []string{"To", "Cc", "Bcc"} {
		as, _ := read.Header.AddressList(k) // none is none
		for _, a := range as {
			lists[i] = append(lists[i], a.Address)
		}
	}
	return lists
}

// readRaw takes out of a finished message what the journal shows of it.
func (e *entry) readRaw() {
	m := e.request.GetMessage()
	read, err := mail.ReadMessage(bytes.NewReader(m.GetRaw()))
	if err != nil {
		return // checkRaw read it
	}
	if len(m.GetTo())+len(m.GetCc())+len(m.GetBcc()) == 0 {
		lists := recipientsOf(read)
		m.To, m.Cc, m.Bcc = lists[0], lists[1], lists[2]
	}
	if e.mail.Subject, err = new(mime.WordDecoder).DecodeHeader(read.Header.Get("Subject")); err != nil {
		e.mail.Subject = read.Header.Get("Subject")
	}
	if id := read.Header.Get("Message-Id"); id != "" {
		e.mail.MessageId = id
	}
	// a Bcc is in no mail that anybody gets
	head, body, _ := bytes.Cut(m.GetRaw(), []byte("\r\n\r\n"))
	var kept []byte
	drop := false
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if len(line) > 0 && line[0] != ' ' && line[0] != '\t' {
			drop = len(line) > 3 && bytes.EqualFold(line[:4], []byte("bcc:"))
		}
		if !drop {
			kept = append(append(kept, line...), "\r\n"...)
		}
	}
	m.Raw = append(append(kept, "\r\n"...), body...)
}

package clienttest

import (
	"crypto/sha256"
	"fmt"
	"mime"
	"net/mail"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// check finds the worst; the service is far stricter.
func check(req *maildispatchv1.SendRequest) []client.Violation {
	m := req.GetMessage()
	if m == nil {
		return []client.Violation{{Field: "message", Description: "is required"}}
	}
	var vs []client.Violation
	for _, list := range []struct {
		field     string
		addresses []string
	}{{"to", m.GetTo()}, {"cc", m.GetCc()}, {"bcc", m.GetBcc()}} {
		for i, a := range list.addresses {
			if _, err := mail.ParseAddress(a); err != nil {
				vs = append(vs, client.Violation{Field: fmt.Sprintf("message.%s[%d]", list.field, i), Description: "is not an address"})
			}
		}
	}
	if n := len(m.GetTo()) + len(m.GetCc()) + len(m.GetBcc()); n == 0 && len(m.GetRaw()) == 0 || n > 500 {
		vs = append(vs, client.Violation{Field: "message.to", Description: "1 to 500 recipients over to, cc and bcc are required"})
	}
	vs = append(vs, checkRaw(m)...)
	for i, a := range m.GetAlternatives() {
		if t, _, err := mime.ParseMediaType(a.GetContentType()); err != nil || !strings.HasPrefix(t, "text/") || t == "text/plain" || t == "text/html" {
			vs = append(vs, client.Violation{Field: fmt.Sprintf("message.alternatives[%d].content_type", i), Description: "is not a text type other than text/plain and text/html"})
		}
	}
	if strings.ContainsAny(m.GetFromName(), "\r\n") {
		vs = append(vs, client.Violation{Field: "message.from_name", Description: "contains a control character"})
	}
	if u := req.GetOptions().GetUnsubscribeUrl(); u != "" && !strings.HasPrefix(u, "https://") {
		vs = append(vs, client.Violation{Field: "options.unsubscribe_url", Description: "is not an https URL"})
	}
	if len(req.GetRequestId()) > 64 {
		vs = append(vs, client.Violation{Field: "request_id", Description: "has more than 64 characters"})
	}
	return vs
}

func invalid(vs []client.Violation) error {
	return Error(codes.InvalidArgument, maildispatchv1.ReasonValidationFailed, "the request is not valid", vs...)
}

func noMail(id string) error {
	return Error(codes.NotFound, maildispatchv1.ReasonMailNotFound, fmt.Sprintf("there is no mail %q", id))
}

func noUpload(id string) error {
	return Error(codes.NotFound, maildispatchv1.ReasonUploadNotFound, fmt.Sprintf("there is no upload %q", id))
}

func noServer(name string) error {
	return Error(codes.NotFound, maildispatchv1.ReasonMailServerNotFound, fmt.Sprintf("there is no mail server %q", name))
}

// bare is the mailbox of an address; what is none stays as it is.
func bare(address string) string {
	a, err := mail.ParseAddress(address)
	if err != nil {
		return address
	}
	return a.Address
}

// fingerprint sums up what a request asks for.
func fingerprint(req proto.Message) [32]byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		panic("clienttest: " + err.Error()) // it came over the wire
	}
	return sha256.Sum256(b)
}

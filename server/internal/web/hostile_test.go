package web

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// hostiles are texts that a careless page would obey.
var hostiles = map[string]string{
	"script":    `"><script>alert(1)</script><img src=x onerror=alert(1)>'`,
	"link":      `javascript:alert(1)//http://evil.example/`,
	"template":  `{{.}}</textarea></title></style><style>*{background:url(http://evil.example)}</style>`,
	"terminal":  "\x1b[31mred\x1b]0;title\x07\x00\r\nSet-Cookie: a=b",
	"direction": "\u202egnp.exe\u2066\u200b\u2028\ufeff\U000e0041",
	"invalid":   "\xff\xfe<\xc0",
	"long":      strings.Repeat("<&\"'\u202e", 13_000), // 64 KiB and more
}

// hostile is a service that answers every call with foreign text in every field.
type hostile struct {
	text string
	fail bool // refuse what changes, in the same words
}

func (h hostile) Invoke(_ context.Context, method string, _, reply any, _ ...grpc.CallOption) error {
	if h.fail && !strings.HasSuffix(method, "/WhoAmI") {
		return status.Error(codes.InvalidArgument, h.text)
	}
	h.fill(reply.(proto.Message).ProtoReflect(), 0)
	switch r := reply.(type) {
	case *pb.WhoAmIResponse:
		r.Roles, r.System = []pb.Role{pb.Role_ROLE_ADMIN}, true
	case *pb.FindMailsResponse:
		for len(r.Mails) < pageSize {
			r.Mails = append(r.Mails, r.Mails[0])
		}
	case *pb.GetMailResponse:
		for len(r.Mail.Recipients) < 500 {
			r.Mail.Recipients = append(r.Mail.Recipients, r.Mail.Recipients[0])
		}
		for len(r.Mail.Attempts) < 20 {
			r.Mail.Attempts = append(r.Mail.Attempts, r.Mail.Attempts[0])
		}
	case *pb.ListAuditResponse:
		for len(r.Rows) < pageSize {
			r.Rows = append(r.Rows, r.Rows[0])
		}
	case *pb.ListMailServersResponse:
		for len(r.MailServers) < pageSize {
			r.MailServers = append(r.MailServers, r.MailServers[0])
		}
	case *pb.ListOperationsResponse:
		for len(r.Operations) < pageSize {
			r.Operations = append(r.Operations, r.Operations[0])
		}
	case *pb.ListTokensResponse:
		for len(r.Tokens) < pageSize {
			r.Tokens = append(r.Tokens, r.Tokens[0])
		}
	case *pb.ListLegalHoldsResponse:
		for len(r.LegalHolds) < pageSize {
			r.LegalHolds = append(r.LegalHolds, r.LegalHolds[0])
		}
	case *pb.HoldMailsResponse:
		r.Operation = nil
		for len(r.Failures) < 100 {
			r.Failures = append(r.Failures, r.Failures[0])
		}
	}
	return nil
}

// fill writes the text into every field, and one element into every list.
func (h hostile) fill(m protoreflect.Message, depth int) {
	switch x := m.Interface().(type) {
	case *timestamppb.Timestamp:
		x.Seconds = 1_900_000_000
		return
	case *structpb.Struct:
		x.Fields = map[string]*structpb.Value{strings.ToValidUTF8(h.text, "?"): structpb.NewStringValue(strings.ToValidUTF8(h.text, "?"))}
		return
	}
	if depth > 6 {
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		scalar := func() (protoreflect.Value, bool) {
			switch f.Kind() {
			case protoreflect.StringKind:
				text := h.text
				switch f.Name() { // the service itself bounds what names something
				case "id", "name", "batch_id", "mail_server", "team", "next_page_token", "etag", "fallback", "resent_from":
					text = text[:min(len(text), 64)]
				}
				return protoreflect.ValueOfString(text), true
			case protoreflect.EnumKind:
				return protoreflect.ValueOfEnum(f.Enum().Values().Get(f.Enum().Values().Len() - 1).Number()), true
			case protoreflect.Int64Kind:
				return protoreflect.ValueOfInt64(7), true
			case protoreflect.Int32Kind:
				return protoreflect.ValueOfInt32(7), true
			}
			return protoreflect.Value{}, false
		}
		switch {
		case f.IsMap():
			if f.MapValue().Kind() == protoreflect.StringKind {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString(h.text).MapKey(), protoreflect.ValueOfString(h.text))
			}
		case f.IsList() && f.Message() != nil:
			h.fill(m.Mutable(f).List().AppendMutable().Message(), depth+1)
		case f.IsList():
			if v, ok := scalar(); ok {
				m.Mutable(f).List().Append(v)
			}
		case f.Message() != nil:
			h.fill(m.Mutable(f).Message(), depth+1)
		default:
			if v, ok := scalar(); ok {
				m.Set(f, v)
			}
		}
	}
}

func (h hostile) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	t := strings.NewReplacer("\r", " ", "\n", " ").Replace(h.text)
	short := t[:min(len(t), 600)]
	raw := "From: " + short + "\r\nSubject: " + short + "\r\nX-" + strings.Repeat("y", 900) + ": " + t + "\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n" + h.text +
		"\r\n--b\r\nContent-Type: application/x; name=\"" + strings.ReplaceAll(short, `"`, `\"`) + "\"\r\n\r\nx\r\n--b--\r\n"
	return &hostileStream{text: raw}, nil
}

type hostileStream struct {
	grpc.ClientStream
	text string
	done bool
}

func (s *hostileStream) SendMsg(any) error { return nil }
func (s *hostileStream) CloseSend() error  { return nil }
func (s *hostileStream) RecvMsg(m any) error {
	if s.done {
		return io.EOF
	}
	s.done = true
	proto.Merge(m.(proto.Message), &pb.DownloadMailResponse{Chunk: []byte(s.text), Filename: "\"; x=\u202e\r\n", SizeBytes: int64(len(s.text))})
	return nil
}

// TestHostile: whatever stands in a field of an answer, a view shows it, stays under 100 KiB,
// and obeys none of it.
func TestHostile(t *testing.T) {
	t.Parallel()
	paths := []string{"/queue", "/queue?server=x", "/mails", "/mails?%s", "/mails/x", "/mails/x?from=40", "/mails/x/message", "/servers", "/servers/x", "/server/add", "/server/edit?name=x", "/batches", "/batch?id=x",
		"/audit", "/audit?%s", "/act?do=hold&id=x", "/act?do=resolve&id=x", "/act?do=resend&id=x", "/act?do=pause&name=x", "/act?do=delete&name=x", "/act?do=test-mail&name=x", "/act?do=stop&operation=x", "/act?do=keep&id=x", "/act?do=run&name=x", "/act?do=%s&token=x", "/act?do=revoke&token=%s",
		"/act?do=lift&hold=%s", "/move?id=x", "/move?batch=x", "/operations", "/operations/x", "/tokens", "/token", "/holds", "/service", "/login?next=%s", "/act?do=%s"}
	for name, text := range hostiles {
		for _, fail := range []bool{false, true} {
			p, err := New(Config{Calls: hostile{text, fail}, Samples: hostile{text, fail}, Asks: func() bool { return false }, Named: func(string) bool { return false }, Loopback: true,
				Target: func(string, string) plain.Target { return plain.Target{Address: "127.0.0.1:1", Plaintext: true} }})
			if err != nil {
				t.Fatal(err)
			}
			p.history.watch("", time.Now())
			p.history.add("", sample{time.Now().Add(-time.Hour), 5, 1})
			p.history.add("", sample{time.Now(), 1 << 60, 0})
			cookie := random()
			ask := func(method, path, form string) {
				q := httptest.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(form))
				q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				q.AddCookie(&http.Cookie{Name: p.cookieName(), Value: cookie})
				w := httptest.NewRecorder()
				p.ServeHTTP(w, q)
				checkHarmless(t, fmt.Sprintf("%s (fails: %v) %s %.60s", name, fail, method, path), w, text)
			}
			escaped := urlEscape(text[:min(len(text), 600)])
			for _, path := range paths {
				if strings.Contains(path, "%s") {
					arg := escaped
					if !strings.HasSuffix(path, "=%s") {
						for i, k := range append([]string{"q", "actor", "action", "target"}, searchFields...) {
							if i == 0 {
								arg = ""
							}
							if k != "status" && k != "kind" && k != "failure" && k != "label" && !strings.Contains(k, "since") && !strings.Contains(k, "until") {
								arg += "&" + k + "=" + urlEscape(text[:min(len(text), 35)])
							}
						}
					}
					path = fmt.Sprintf(path, arg)
				}
				ask("GET", path, "")
			}
			csrf := "csrf=" + urlEscape(p.csrf(cookie))
			escaped = urlEscape(text)
			all := csrf + "&draft=1&name=" + escaped
			for _, f := range serverFields {
				if f.Kind == "text" || f.Kind == "area" {
					all += "&" + f.Path + "=" + escaped
				}
			}
			ask("POST", "/server/save", all)
			ask("POST", "/server/test", all)
			ask("POST", "/server/test", csrf+"&saved=x")
			ask("POST", "/act", csrf+"&query="+urlEscape("do=hold&id=x")+"&reason="+escaped)
			ask("POST", "/act", csrf+"&query="+urlEscape("do=hold&id=x")+"&reason=x&confirm=7")
			ask("POST", "/token", csrf+"&once="+random()+"&name="+escaped+"&teams="+escaped+"&role=admin&ttl=1d&confirm=1&reason="+escaped)
			ask("POST", "/token", csrf+"&once="+random()+"&name="+escaped+"&teams="+escaped+"&role="+escaped+"&ttl="+escaped+"&confirm=1&reason="+escaped)
		}
	}
}

func urlEscape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02x", c)
	}
	return b.String()
}

// checkHarmless parses a view as a browser does and looks for what it must not have.
func checkHarmless(t *testing.T, what string, w *httptest.ResponseRecorder, text string) {
	t.Helper()
	body := w.Body.String()
	if w.Code == http.StatusInternalServerError {
		t.Errorf("%s: got %d %s", what, w.Code, body)
	}
	if len(body) > 100<<10 {
		t.Errorf("%s: got %d octets", what, len(body))
	}
	if i := strings.IndexAny(body, "\x1b\x07\x00\u202e\u2066\u200b\u2028\ufeff\U000e0041"); i >= 0 {
		t.Errorf("%s: %q reaches the browser", what, body[max(0, i-80):min(len(body), i+20)])
	}
	for k, v := range w.Header() {
		if strings.ContainsAny(strings.Join(v, ""), "\r\n\x00") || k == "Set-Cookie" && strings.Contains(v[0], "a=b") {
			t.Errorf("%s: header %s is %q", what, k, v)
		}
	}
	if l := w.Header().Get("Location"); l != "" && !strings.HasPrefix(l, "/") {
		t.Errorf("%s: leads to %q", what, l)
	}
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
		return
	}
	n, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for x := range n.Descendants() {
		if x.Type != html.ElementNode {
			continue
		}
		switch x.Data {
		case "script", "style", "object", "embed", "base", "img":
			t.Errorf("%s: has a <%s>", what, x.Data)
		}
		for _, a := range x.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on"), a.Key == "style", a.Key == "srcdoc":
				t.Errorf("%s: <%s> has %s", what, x.Data, a.Key)
			case a.Key == "href" || a.Key == "src" || a.Key == "action" || a.Key == "formaction":
				if !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "#") || strings.HasPrefix(a.Val, "//") {
					t.Errorf("%s: leads to %.100q", what, a.Val)
				}
			}
		}
	}
}

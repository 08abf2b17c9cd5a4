package web_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// rig is the real service in this process, with its page, and a browser without JavaScript. The
// mail server refuses addresses that begin with "no", in foreign words, and is silent after the
// message to those with "silent".
type rig struct {
	testing.TB
	addr  string // of the service
	url   string // of the page
	conn  *grpc.ClientConn
	relay *smtpxtest.Server
	http  *http.Client
	token string
}

// hostileReply is what the relay says to those whom it refuses.
const hostileReply = "550 5.1.1 <script>alert(1)</script> \x1b[31mred \xe2\x80\xaegnp\r\n"

func newRig(t testing.TB, flags ...string) *rig {
	t.Helper()
	r := &rig{TB: t}
	r.relay = (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		switch {
		case c.Verb == "RCPT" && strings.Contains(c.Arg, "<no"):
			return &smtpxtest.Action{Reply: hostileReply}
		case c.Verb == "DOT" && strings.Contains(c.Arg, "silent@"):
			return &smtpxtest.Action{Close: true}
		}
		return nil
	}}).Start(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cfg, fs := server.Config{LogOutput: io.Discard}, flag.NewFlagSet("serve", flag.ContinueOnError)
	if err := errors.Join(cfg.Flags(fs), fs.Parse(append([]string{"--listen=127.0.0.1:0", "--web-listen=127.0.0.1:0", "--database=sqlite:" + filepath.Join(dir, "md.db"), "--key-file=" + filepath.Join(dir, "key"),
		"--smtp-destinations=loopback:*", "--admin-socket=none", "--batch-interval=1h", "--shutdown-grace=2s"}, flags...))); err != nil {
		t.Fatal(err)
	}
	s, err := server.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	r.addr, r.url = s.Addr().String(), "http://"+s.WebAddr().String()
	if r.conn, err = grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true))); err != nil {
		t.Fatal(err)
	}
	r.http = browser()
	t.Cleanup(func() {
		_ = r.conn.Close() // nothing is asked any more
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// browser keeps cookies and does not follow redirects by itself.
func browser() *http.Client {
	jar, _ := cookiejar.New(nil) // never fails
	return &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ctx is that of calls past the page, with the rig's token.
func (r *rig) ctx() context.Context {
	if r.token == "" {
		return context.Background()
	}
	return metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+r.token)
}

func (r *rig) dispatch() pb.DispatchClient       { return pb.NewDispatchClient(r.conn) }
func (r *rig) servers() pb.MailServerAdminClient { return pb.NewMailServerAdminClient(r.conn) }
func (r *rig) access() pb.AccessAdminClient      { return pb.NewAccessAdminClient(r.conn) }

// server saves a mail server that leads to the relay.
func (r *rig) server(name string, mode pb.Mode) {
	r.Helper()
	if _, err := r.servers().CreateMailServer(r.ctx(), &pb.CreateMailServerRequest{MailServer: &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, Mode: mode, From: "Shop <shop@x.example>",
		Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(r.relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE}}}); err != nil {
		r.Fatal(err)
	}
}

// mail hands a mail over and returns it.
func (r *rig) mail(server, reference string, kind pb.Kind, to ...string) *pb.Mail {
	r.Helper()
	res, err := r.dispatch().SendMail(r.ctx(), &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: server, Reference: reference, Kind: kind},
		Message: &pb.MailMessage{To: to, Subject: "Invoice " + reference + " <b>\u202egnp", Text: "hello", Html: "<p>hello <script>alert(1)</script><img src=\"http://tracker.example/x.png\"></p>"}})
	if err != nil {
		r.Fatal(err)
	}
	return res.Mail
}

// page is an answer of the page.
type page struct {
	code   int
	header http.Header
	text   string
	root   *html.Node
}

// maxPage is what a view may have.
const maxPage = 100 << 10

// do makes a request and looks at what holds for every answer.
func (r *rig) do(req *http.Request) *page {
	r.Helper()
	res, err := r.http.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.Fatal(err)
	}
	p := &page{code: res.StatusCode, header: res.Header, text: string(b)}
	for _, h := range []string{"Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options"} {
		if p.header.Get(h) == "" {
			r.Errorf("%s: no %s", req.URL, h)
		}
	}
	if strings.HasPrefix(p.header.Get("Content-Type"), "text/html") {
		if len(b) > maxPage {
			r.Errorf("%s: got %d octets, want at most %d", req.URL, len(b), maxPage)
		}
		if p.root, err = html.Parse(strings.NewReader(p.text)); err != nil {
			r.Fatal(err)
		}
		harmless(r, req.URL.String(), p.text, p.root)
	}
	return p
}

// harmless holds a view against what no view may have: scripts, styles of its own, loads from
// elsewhere, characters that steer a terminal or turn text around.
func harmless(t testing.TB, url, text string, n *html.Node) {
	t.Helper()
	if i := strings.IndexAny(text, "\x1b\x07\x00\u202e\u202d\u2066\u200b"); i >= 0 {
		t.Errorf("%s: %q reaches the browser", url, text[max(0, i-60):min(len(text), i+20)])
	}
	for x := range n.Descendants() {
		if x.Type != html.ElementNode {
			continue
		}
		switch x.Data {
		case "script", "style", "object", "embed", "base", "img", "b-foreign":
			t.Errorf("%s: has a <%s>", url, x.Data)
		}
		for _, a := range x.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on"), a.Key == "style", a.Key == "srcdoc":
				t.Errorf("%s: <%s> has %s", url, x.Data, a.Key)
			case a.Key == "href" || a.Key == "src" || a.Key == "action" || a.Key == "formaction":
				if !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "?") && !strings.HasPrefix(a.Val, "#") || strings.HasPrefix(a.Val, "//") {
					t.Errorf("%s: leads to %q", url, a.Val)
				}
			}
		}
	}
}

// get looks at a view that has to be there.
func (r *rig) get(path string) *page {
	r.Helper()
	p := r.look(path)
	if p.code != http.StatusOK {
		r.Fatalf("GET %s: got %d\n%s", path, p.code, p.words())
	}
	return p
}

// look makes a GET, whatever the answer.
func (r *rig) look(path string) *page {
	r.Helper()
	req, err := http.NewRequest(http.MethodGet, r.url+path, nil)
	if err != nil {
		r.Fatal(err)
	}
	return r.do(req)
}

// post sends a form as a browser does.
func (r *rig) post(path string, form url.Values) *page {
	r.Helper()
	req, err := http.NewRequest(http.MethodPost, r.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		r.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r.do(req)
}

// follow goes where a form has led to.
func (r *rig) follow(p *page) *page {
	r.Helper()
	if p.code != http.StatusSeeOther {
		r.Fatalf("got %d, want to be led on\n%s", p.code, p.words())
	}
	return r.get(p.header.Get("Location"))
}

// words are the text of a view without markup.
func (p *page) words() string {
	if p.root == nil {
		return p.text
	}
	var b strings.Builder
	for x := range p.root.Descendants() {
		if x.Type == html.TextNode {
			b.WriteString(x.Data)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// attr is an attribute of an element.
func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// form is what the form with an action would send as it stands.
func (p *page) form(t testing.TB, action string) url.Values {
	t.Helper()
	for x := range p.root.Descendants() {
		if x.Data != "form" || attr(x, "action") != action {
			continue
		}
		v := url.Values{}
		for f := range x.Descendants() {
			name := attr(f, "name")
			switch {
			case name == "" || f.Type != html.ElementNode:
			case f.Data == "textarea" && f.FirstChild != nil:
				v.Add(name, strings.TrimPrefix(f.FirstChild.Data, "\n"))
			case f.Data == "textarea":
				v.Add(name, "")
			case f.Data == "select":
				chosen := ""
				for i, o := 0, range_(f); i < len(o); i++ {
					if i == 0 || has(o[i], "selected") {
						chosen = attr(o[i], "value")
					}
				}
				v.Add(name, chosen)
			case f.Data == "input" && (attr(f, "type") == "checkbox" || attr(f, "type") == "radio"):
				if has(f, "checked") {
					v.Add(name, attr(f, "value"))
				}
			case f.Data == "input":
				v.Add(name, attr(f, "value"))
			}
		}
		return v
	}
	t.Fatalf("there is no form for %s", action)
	return nil
}

func range_(sel *html.Node) (out []*html.Node) {
	for o := range sel.Descendants() {
		if o.Data == "option" && o.Type == html.ElementNode {
			out = append(out, o)
		}
	}
	return out
}

func has(n *html.Node, key string) bool {
	for _, a := range n.Attr {
		if a.Key == key {
			return true
		}
	}
	return false
}

func mustURL(t testing.TB, s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// secret makes a token.
func (r *rig) secret(name string, change ...func(*pb.CreateTokenRequest)) (secret, id string) {
	r.Helper()
	req := &pb.CreateTokenRequest{Name: name, Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true}
	for _, f := range change {
		f(req)
	}
	res, err := r.access().CreateToken(r.ctx(), req)
	if err != nil {
		r.Fatal(err)
	}
	return res.Secret, res.Info.Id
}

// signIn has the browser sign in.
func (r *rig) signIn(secret string) *page {
	r.Helper()
	f := r.get("/login?next=%2Fqueue").form(r, "/login")
	f.Set("token", secret)
	return r.post("/login", f)
}

// batch hands over n mails as one.
func (r *rig) batch(id, server string, n int) {
	r.Helper()
	s, err := r.dispatch().SendBatch(r.ctx())
	if err != nil {
		r.Fatal(err)
	}
	req := &pb.SendBatchRequest{Options: &pb.BatchOptions{BatchId: id, Options: &pb.SendOptions{MailServer: server}, Message: &pb.MailMessage{Subject: "News", Text: "x"}}}
	for i := range n {
		req.Items = append(req.Items, &pb.BatchItem{Message: &pb.MailMessage{To: []string{fmt.Sprintf("n%d@many.example", i)}}})
	}
	if err = s.Send(req); err == nil {
		_, err = s.CloseAndRecv()
	}
	if err != nil {
		r.Fatal(err)
	}
}

// status is a mail's as the journal has it.
func (r *rig) status(id string) pb.MailStatus {
	r.Helper()
	res, err := r.dispatch().GetMail(r.ctx(), &pb.GetMailRequest{Id: id})
	if err != nil {
		r.Fatal(err)
	}
	return res.Mail.Status
}

// audit is what was done to a mail server or mail, the newest first.
func (r *rig) audit(target string) []*pb.AuditRow {
	r.Helper()
	res, err := r.access().ListAudit(r.ctx(), &pb.ListAuditRequest{Target: target})
	if err != nil {
		r.Fatal(err)
	}
	return res.Rows
}

func (r *rig) port() string { return fmt.Sprint(r.relay.Port()) }

func (p *page) has(words string) bool {
	return strings.Contains(p.words(), strings.Join(strings.Fields(words), " "))
}

// find is the text of the first element of a class, "" when there is none.
func (p *page) find(element, class string) string {
	for x := range p.root.Descendants() {
		if x.Type == html.ElementNode && x.Data == element && attr(x, "class") == class {
			return (&page{root: x}).words()
		}
	}
	return ""
}

func body(t testing.TB, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// found is how many mails have a name.
func (r *rig) found(text string) int {
	r.Helper()
	res, err := r.dispatch().FindMails(r.ctx(), &pb.FindMailsRequest{Text: text})
	if err != nil {
		r.Fatal(err)
	}
	return len(res.Mails)
}

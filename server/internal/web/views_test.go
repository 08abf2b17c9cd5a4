package web_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestViews: each view says what it is there for, and every line of grpcurl that it shows
// works.
func TestViews(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server("main", pb.Mode_MODE_PHP)
	r.server("later", pb.Mode_MODE_DAEMON)
	refused := r.mail("main", "INV-1", pb.Kind_KIND_INVOICE, "nobody@shop.example", "ann@shop.example")
	fine := r.mail("main", "INV-2", pb.Kind_KIND_INVOICE, "ann@shop.example")
	unknown := r.mail("main", "INV-3", pb.Kind_KIND_INVOICE, "silent@shop.example")
	r.batch("news", "later", 7)
	if _, err := r.dispatch().HoldMails(r.ctx(), &pb.HoldMailsRequest{Filter: &pb.MailFilter{BatchId: "news"}, Reason: "<b>typo</b>\u202e"}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path string
		want []string // parts of what it says
		not  []string
	}{
		{"/queue", []string{"Queue", "due now", "held 7", "partially sent 1", "unknown 1", "main", "later"}, nil},
		{"/queue?server=later", []string{"Queue for later", "held 7"}, []string{"unknown 1"}},
		{"/mails", []string{"INV-1", "INV-2", "INV-3", `Invoice INV-1 <b>\u{202e}gnp`, "All mails"}, nil},
		{"/mails?q=INV-1", []string{"INV-1", "nobody@shop.example", "and 1 more"}, []string{"INV-2"}},
		{"/mails?q=ann%40shop.example", []string{"INV-1", "INV-2"}, []string{"INV-3"}},
		{"/mails?q=invoice+inv-2", []string{"No mail has this as its reference", "INV-2"}, []string{"INV-1"}},
		{"/mails?q=INV-77", []string{"Nothing was found"}, []string{"INV-1"}},
		{"/mails?journal=archive", []string{"INV-2"}, []string{"INV-1", "INV-3"}},
		{"/mails?journal=due-out&kind=invoice", []string{"INV-1", "INV-3", "With all that this selects"}, []string{"INV-2"}},
		{"/mails?status=unknown&kind=invoice&since=7d", []string{"INV-3"}, []string{"INV-2"}},
		{"/mails?failure=no-such-mailbox", []string{"INV-1"}, []string{"INV-2"}},
		{"/mails?domain=many.example", []string{"News"}, []string{"INV-1"}},
		{"/mails/" + refused.Id, []string{"INV-1", "Delivered to some", "given to the service", "attempt 1 through main", `no such mailbox`, `550 5.1.1 <script>alert(1)</script>`, "ann@shop.example", "accepted"}, nil},
		{"/mails/" + unknown.Id, []string{"Nobody knows", "Say what became of it"}, nil},
		{"/mails/" + fine.Id + "/message", []string{"Headers", "Subject", "text/html", "Part 2", "can neither run anything nor load anything"}, nil},
		{"/servers", []string{"main", "later", "127.0.0.1:", "Shop <shop@x.example>", "Add a mail server"}, nil},
		{"/servers/main", []string{"main", "php", "Test", "Pause", "Delete", "Make it the default"}, nil},
		{"/server/edit?name=main", []string{"Change main", "Host", "Password"}, nil},
		{"/batches", []string{"news", "7 mails, 0 sent, 7 held"}, nil},
		{"/batch?id=news", []string{"Batch news", "7 mails", "7 are held until somebody releases them", "held 7", "Cancel"}, nil},
		{"/audit", []string{"HoldMails", "CreateMailServer", `<b>typo</b>\u{202e}`}, nil},
		{"/audit?target=later", []string{"CreateMailServer", "later"}, []string{"HoldMails"}},
	} {
		p := r.get(tc.path)
		for _, w := range tc.want {
			if !strings.Contains(p.words(), w) {
				t.Errorf("%s: got\n%s\nwant %q in it", tc.path, p.words(), w)
			}
		}
		for _, w := range tc.not {
			if strings.Contains(strings.SplitN(p.words(), "This view by grpcurl", 2)[0], w) {
				t.Errorf("%s: got\n%s\nwant no %q in it", tc.path, p.words(), w)
			}
		}
		lines := p.lines()
		if len(lines) == 0 {
			t.Errorf("%s shows no call", tc.path)
		}
		for _, l := range lines {
			r.grpcurl(l)
		}
	}
	for path, want := range map[string]int{"/mails/01980000-0000-7000-8000-000000000000": http.StatusNotFound, "/mails/nonsense": http.StatusBadRequest, "/servers/nobody": http.StatusNotFound,
		"/mails?status=nonsense": http.StatusBadRequest, "/mails?since=nonsense": http.StatusBadRequest, "/act?do=nonsense": http.StatusNotFound, "/mails/" + fine.Id + "/parts/99": http.StatusNotFound,
		"/act?do=hold": http.StatusBadRequest} {
		if p := r.look(path); p.code != want {
			t.Errorf("%s: got %d, want %d", path, p.code, want)
		}
	}
	t.Run("parts", func(t *testing.T) { r.parts(t, fine) })
}

// parts looks at how foreign content is handed out.
func (r *rig) parts(t *testing.T, m *pb.Mail) {
	ask := func(path string) *page {
		res, err := r.http.Get(r.url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return &page{code: res.StatusCode, header: res.Header, text: body(t, res)}
	}
	p := ask("/mails/" + m.Id + "/parts/2")
	if csp := p.header.Get("Content-Security-Policy"); csp != "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'" || p.header.Get("X-Frame-Options") != "SAMEORIGIN" {
		t.Errorf("a part in the frame: got %v", p.header)
	}
	if p.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(p.text, "tracker.example") {
		t.Errorf("got %s: %s", p.header.Get("Content-Type"), p.text)
	}
	p = ask("/mails/" + m.Id + "/parts/2?save=1")
	if !strings.HasPrefix(p.header.Get("Content-Disposition"), "attachment") || p.header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("a part to save: got %v", p.header)
	}
	p = ask("/mails/" + m.Id + "/raw")
	if !strings.HasPrefix(p.header.Get("Content-Disposition"), "attachment") || p.header.Get("Content-Type") != "message/rfc822" || int64(len(p.text)) != m.SizeBytes || !strings.Contains(p.text, "Message-ID: "+m.MessageId) {
		t.Errorf("raw: got %v, %d octets of %d", p.header, len(p.text), m.SizeBytes)
	}
	frame := r.get("/mails/" + m.Id + "/message")
	for x := range frame.root.Descendants() {
		if x.Data == "iframe" && (!has(x, "sandbox") || attr(x, "sandbox") != "") {
			t.Errorf("the frame is %q", attr(x, "sandbox"))
		}
	}
}

// TestServers: a mail server is added, tried, mended, and used, by forms alone.
func TestServers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	f := r.get("/server/add").form(t, "/server/save")
	fill := func(pairs ...string) {
		for i := 0; i < len(pairs); i += 2 {
			f.Set(pairs[i], pairs[i+1])
		}
	}
	fill("name", "shop", "from", "Shop <shop@x.example>", "mode", "php", "smtp.host", "127.0.0.1", "smtp.port", "1", "smtp.encryption", "none", "smtp.username", "", "limits.mails_per_minute", "6000")
	p := r.post("/server/test", f)
	if !strings.Contains(p.words(), "Test of what is not saved yet") || !strings.Contains(p.words(), "failed") || strings.Contains(p.words(), "connect success!") {
		t.Fatalf("a test that fails: got %d %s", p.code, p.words())
	}
	if hint := p.find("p", "note warn"); hint == "" {
		t.Errorf("no hint: %s", p.words())
	}
	f = p.form(t, "/server/save")
	fill("smtp.port", "none")
	if p = r.post("/server/save", f); p.code != http.StatusBadRequest || !strings.Contains(p.words(), `smtp.port: "none" is not a number`) {
		t.Errorf("a port that is none: got %d %s", p.code, p.words())
	}
	fill("smtp.port", "1", "from", "nonsense")
	if p = r.post("/server/save", f); p.code != http.StatusBadRequest || !strings.Contains(p.words(), "from") {
		t.Errorf("a sender that is none: got %d %s", p.code, p.words())
	}
	f = p.form(t, "/server/save")
	fill("from", "Shop <shop@x.example>", "smtp.password", "secret-1", "smtp.username", "shop", "smtp.allow_plaintext_auth", "true")
	p = r.follow(r.post("/server/save", f))
	if !strings.Contains(p.words(), "The mail server is saved") {
		t.Errorf("got %s", p.words())
	}
	if again := r.post("/server/save", f); again.code != http.StatusSeeOther {
		t.Errorf("the form once more: got %d %s", again.code, again.words())
	}
	p = r.get("/server/edit?name=shop")
	if strings.Contains(p.text, "secret-1") {
		t.Error("the password is shown")
	}
	f = p.form(t, "/server/save")
	if p = r.post("/server/save", f); p.code != http.StatusSeeOther || r.audit("shop")[0].Action != "CreateMailServer" {
		t.Errorf("nothing was changed: got %d, %v", p.code, r.audit("shop"))
	}
	fill("smtp.port", r.port(), "smtp.username", "", "reason", "moved")
	p = r.post("/server/test", f)
	if !strings.Contains(p.words(), "Test of what is not saved yet") {
		t.Errorf("got %s", p.words())
	}
	stale := f.Get("etag")
	r.follow(r.post("/server/save", f))
	if rows := r.audit("shop"); rows[0].Action != "UpdateMailServer" || rows[0].Reason != "moved" {
		t.Errorf("audit: got %v", rows)
	}
	m, err := r.servers().GetMailServer(r.ctx(), &pb.GetMailServerRequest{Name: "shop"})
	if err != nil || m.MailServer.Limits.MailsPerMinute != 6000 || m.MailServer.Smtp.HasPassword || m.MailServer.Smtp.Username != "" {
		t.Errorf("got %v, %v", m, err)
	}
	fill("etag", stale, "display_name", "other")
	if p = r.post("/server/save", f); p.code != http.StatusBadRequest {
		t.Errorf("a form of before another's change: got %d %s", p.code, p.words())
	}
	f = r.get("/servers/shop").form(t, "/server/test")
	p = r.post("/server/test", f)
	for _, want := range []string{"connect success!", "greeting", "ehlo", "ok"} {
		if !strings.Contains(p.words(), want) {
			t.Errorf("a test that succeeds: got %s, want %q", p.words(), want)
		}
	}
	for _, l := range p.lines() {
		r.grpcurl(l)
	}
}

// TestActs: each act is counted, takes a reason and a confirmation, and does what it says. The
// lines of its view do the same.
func TestActs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server("main", pb.Mode_MODE_PHP)
	r.server("later", pb.Mode_MODE_DAEMON)
	held := func(ref string) *pb.Mail {
		m := r.mail("later", ref, pb.Kind_KIND_WORK_ORDER, "bob@other.example")
		if _, err := r.dispatch().HoldMails(r.ctx(), &pb.HoldMailsRequest{Ids: []string{m.Id}}); err != nil {
			t.Fatal(err)
		}
		return m
	}
	queued := func(ref string) *pb.Mail { return r.mail("later", ref, pb.Kind_KIND_WORK_ORDER, "bob@other.example") }
	unknown := func(ref string) *pb.Mail { return r.mail("main", ref, pb.Kind_KIND_INVOICE, "silent@shop.example") }
	is := func(m *pb.Mail, want pb.MailStatus) func() bool {
		return func() bool { return r.status(m.Id) == want }
	}
	later := func() *pb.MailServer {
		res, err := r.servers().GetMailServer(r.ctx(), &pb.GetMailServerRequest{Name: "later"})
		if err != nil {
			t.Fatal(err)
		}
		return res.MailServer
	}
	one, two, three, four := queued("WO-1"), held("WO-2"), queued("WO-3"), r.mail("main", "INV-4", pb.Kind_KIND_INVOICE, "nobody@shop.example")
	five, six := unknown("INV-5"), r.mail("main", "INV-6", pb.Kind_KIND_INVOICE, "nobody@shop.example", "ann@shop.example")
	r.batch("news", "later", 3)
	for _, tc := range []struct {
		address string
		count   string
		fields  []string
		effect  func() bool
		action  string
	}{
		{"/act?do=hold&id=" + one.Id, "1 mail would be held", nil, is(one, pb.MailStatus_MAIL_STATUS_HELD), "HoldMails"},
		{"/act?do=release&id=" + two.Id, "1 mail would be released", nil, is(two, pb.MailStatus_MAIL_STATUS_QUEUED), "ReleaseMails"},
		{"/act?do=cancel&id=" + three.Id, "1 mail would be cancelled", nil, is(three, pb.MailStatus_MAIL_STATUS_CANCELLED), "CancelMails"},
		{"/act?do=retry&id=" + four.Id, "1 mail would be tried again", nil, func() bool { return r.get("/mails/" + four.Id).has("tried next") }, "RetryMails"},
		{"/act?do=resolve&id=" + five.Id, "Of 1 recipient the outcome is unknown", []string{"resolution", "delivered"}, is(five, pb.MailStatus_MAIL_STATUS_SENT), "ResolveMail"},
		{"/act?do=resend&id=" + six.Id, "1 new mail would go to 2 recipients", []string{"to", "right@shop.example", "only", "1"}, func() bool { return r.found("right@shop.example") == 1 }, "ResendMail"},
		{"/act?do=hold&batch=news", "3 mails would be held", nil, func() bool { return r.get("/batch?id=news").has("held 3") }, "HoldMails"},
		{"/act?do=cancel&batch=news", "3 mails would be cancelled", nil, func() bool { return r.get("/batch?id=news").has("cancelled 3") }, "CancelMails"},
		{"/act?do=pause&name=later", "1 mail server: later", []string{"for", "2h"}, func() bool { return time.Until(later().PauseUntil.AsTime()) > 119*time.Minute }, "UpdateMailServer"},
		{"/act?do=resume&name=later", "1 mail server: later", nil, func() bool { return later().PauseUntil == nil }, "UpdateMailServer"},
		{"/act?do=default&name=later", "1 mail server: later", nil, func() bool { return later().GetIsDefault() }, "SetDefaultMailServer"},
		{"/act?do=test-mail&name=main", "1 mail would leave now", []string{"to", "me@shop.example"}, func() bool { return r.found("me@shop.example") == 1 }, ""},
		{"/act?do=keep&id=" + one.Id, "1 legal hold would be placed", []string{"scope", "reference"}, func() bool { return r.get("/holds").has("reference WO-1") }, "PlaceLegalHold"},
		{"/act?do=delete&name=later", "1 mail server: later", []string{"force", "true"}, func() bool { return later().DeleteTime != nil }, "DeleteMailServer"},
		{"/act?do=undelete&name=later", "1 mail server: later", nil, func() bool { return later().DeleteTime == nil }, "UndeleteMailServer"},
	} {
		p := r.get(tc.address)
		if !p.has(tc.count) {
			t.Fatalf("%s: got %s, want %q", tc.address, p.words(), tc.count)
		}
		f := p.form(t, "/act")
		for i := 0; i < len(tc.fields); i += 2 {
			f.Set(tc.fields[i], tc.fields[i+1])
		}
		f.Set("reason", "as the customer said "+tc.address)
		if p := r.post("/act", f); p.code != http.StatusBadRequest || !p.has("Confirm it first") {
			t.Errorf("%s without a confirmation: got %d %s", tc.address, p.code, p.words())
		}
		f.Set("confirm", "999")
		if p := r.post("/act", f); p.code != http.StatusBadRequest || !p.has("another number now") {
			t.Errorf("%s confirmed for another number: got %d", tc.address, p.code)
		}
		n, _, _ := strings.Cut(strings.TrimPrefix(tc.count, "Of "), " ")
		f.Set("confirm", n)
		why := f.Get("reason")
		f.Set("reason", " ")
		if p := r.post("/act", f); p.code != http.StatusBadRequest || !p.has("Say why") {
			t.Errorf("%s without a reason: got %d", tc.address, p.code)
		}
		if tc.effect() {
			t.Errorf("%s was done before it was confirmed", tc.address)
		}
		f.Set("reason", why)
		if p := r.post("/act", f); p.code != http.StatusSeeOther {
			t.Fatalf("%s: got %d %s", tc.address, p.code, p.words())
		} else if p = r.follow(p); p.find("p", "note good") == "" {
			t.Errorf("%s: got %s, want to hear that it is done", tc.address, p.words())
		}
		if !tc.effect() {
			t.Errorf("%s has no effect", tc.address)
		}
		if tc.action != "" {
			res, err := r.access().ListAudit(r.ctx(), &pb.ListAuditRequest{Action: tc.action})
			if err != nil || len(res.Rows) == 0 || res.Rows[0].Reason != why {
				t.Errorf("%s: audit has %v, %v", tc.address, res, err)
			}
		}
	}
	one, two, five = queued("WO-11"), held("WO-12"), unknown("INV-15")
	for address, effect := range map[string]func() bool{
		"/act?do=hold&id=" + one.Id: is(one, pb.MailStatus_MAIL_STATUS_HELD), "/act?do=release&id=" + two.Id: is(two, pb.MailStatus_MAIL_STATUS_QUEUED), "/act?do=resolve&id=" + five.Id: is(five, pb.MailStatus_MAIL_STATUS_SENT),
		"/act?do=pause&name=later": func() bool { return later().PauseUntil != nil }, "/act?do=resend&id=" + six.Id: nil, "/act?do=test-mail&name=main": nil, "/act?do=default&name=main": func() bool { return !later().GetIsDefault() },
	} {
		lines := r.get(address).lines()
		if len(lines) < 2 {
			t.Errorf("%s: got %q, want what counts and what acts", address, lines)
		}
		for _, l := range lines {
			r.grpcurl(l)
		}
		if effect != nil && !effect() {
			t.Errorf("%s: its lines have no effect: %q", address, lines)
		}
	}
}

// TestRoles: a view offers what the caller may do, and the service refuses the rest whatever
// the browser sends.
func TestRoles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server("main", pb.Mode_MODE_PHP)
	r.token, _ = r.secret("boss")
	m := r.mail("main", "INV-1", pb.Kind_KIND_INVOICE, "nobody@shop.example")
	reader, _ := r.secret("reader", func(q *pb.CreateTokenRequest) { q.Roles = []pb.Role{pb.Role_ROLE_READ} })
	r.follow(r.signIn(reader))
	p := r.get("/mails/" + m.Id)
	if p.has("Cancel") || p.has("Try again") || !p.has("INV-1") {
		t.Errorf("got %s", p.words())
	}
	if p := r.get("/servers"); p.has("Add a mail server") {
		t.Errorf("got %s", p.words())
	}
	if p := r.look("/audit"); p.code != http.StatusForbidden {
		t.Errorf("audit: got %d", p.code)
	}
	if p := r.look("/act?do=cancel&id=" + m.Id); p.code != http.StatusForbidden {
		t.Errorf("act: got %d", p.code)
	}
	form := url.Values{"csrf": {r.get("/queue").form(t, "/logout").Get("csrf")}, "query": {"do=cancel&id=" + m.Id}, "reason": {"x"}, "confirm": {"1"}, "saved": {"main"}}
	for _, path := range []string{"/act", "/server/test"} {
		if p := r.post(path, form); p.code != http.StatusForbidden {
			t.Errorf("POST %s: got %d %s", path, p.code, p.words())
		}
	}
	for _, path := range []string{"/act", "/server/test", "/server/save", "/login"} {
		bare := url.Values{}
		for k, v := range form {
			bare[k] = v
		}
		bare.Del("csrf")
		if p := r.post(path, bare); p.code != http.StatusForbidden || !p.has("out of date") {
			t.Errorf("POST %s without its token: got %d %s", path, p.code, p.words())
		}
	}
	if r.status(m.Id) != pb.MailStatus_MAIL_STATUS_FAILED {
		t.Error("the mail was changed")
	}
	team, _ := r.secret("team", func(q *pb.CreateTokenRequest) { q.System, q.Teams = false, []string{"t1"} })
	r.follow(r.signIn(team))
	if p := r.look("/mails/" + m.Id); p.code != http.StatusNotFound {
		t.Errorf("another team's mail: got %d", p.code)
	}
	for _, tc := range [][2]string{{"/mails/" + m.Id, "/mails/01980000-0000-7000-8000-000000000000"}, {"/mails/" + m.Id + "/message", "/mails/01980000-0000-7000-8000-000000000000/message"},
		{"/act?do=cancel&id=" + m.Id, "/act?do=cancel&id=01980000-0000-7000-8000-000000000000"}, {"/servers/main", "/servers/nobody"}, {"/batch?team=t2&id=news", "/batch?team=t2&id=none"}} {
		theirs, nobodys := r.look(tc[0]), r.look(tc[1])
		bare := func(p *page) string {
			s, _, _ := strings.Cut(p.words(), "This view by grpcurl")
			return strings.NewReplacer(m.Id, "X", "01980000-0000-7000-8000-000000000000", "X", "nobody", "X", "main", "X", "none", "X", "news", "X").Replace(s)
		}
		if theirs.code != nobodys.code || bare(theirs) != bare(nobodys) || theirs.code < 400 {
			t.Errorf("%s is told from %s: got %d %s, and %d %s", tc[0], tc[1], theirs.code, bare(theirs), nobodys.code, bare(nobodys))
		}
	}
	if p := r.get("/queue"); !p.has("Queue of t1") {
		t.Errorf("got %s", p.words())
	}
	if p := r.look("/queue?team=t2"); p.code != http.StatusForbidden {
		t.Errorf("another team's queue: got %d", p.code)
	}
	if _, err := r.dispatch().GetMail(r.ctx(), &pb.GetMailRequest{Id: m.Id}); status.Code(err) != codes.OK {
		t.Fatal(err)
	}
}

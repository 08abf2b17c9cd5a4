package web_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// until looks at a view until it says something.
func (r *rig) until(path, words string) *page {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		p := r.get(path)
		if p.has(words) {
			return p
		}
		if time.Now().After(end) {
			r.Fatalf("%s: got\n%s\nwant %q in it", path, p.words(), words)
		}
	}
}

// TestOperation: an act on more mails than one call changes is counted in the background, shows
// its number, goes on after its confirmation, and is seen until it ends.
func TestOperation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server("later", pb.Mode_MODE_DAEMON)
	r.batch("news", "later", 1001)
	p := r.look("/act?do=hold&batch=news")
	at := p.header.Get("Location")
	if p.code != http.StatusSeeOther || !strings.Contains(at, "counting=") {
		t.Fatalf("got %d to %q, want the view that waits for the count", p.code, at)
	}
	p = r.until(at, "1001 mails would be held, in the background")
	f := p.form(t, "/act")
	f.Set("reason", "a wrong price")
	f.Set("confirm", "1000")
	if p := r.post("/act", f); p.code != http.StatusBadRequest || !p.has("another number now") {
		t.Errorf("confirmed for another number: got %d %s", p.code, p.words())
	}
	for what, address := range map[string]string{"another selection": strings.Replace(at, "batch=news", "server=later", 1), "another act": strings.Replace(at, "do=hold", "do=cancel", 1),
		"a seal of nobody's": regexp.MustCompile(`seal=[^&]*`).ReplaceAllString(at, "seal=x")} {
		if p := r.look(address); p.code != http.StatusSeeOther || strings.Contains(p.header.Get("Location"), "counting=") {
			t.Errorf("the count shown for %s: got %d %s", what, p.code, p.words())
		}
	}
	f.Set("confirm", "1001")
	p = r.post("/act", f)
	at = p.header.Get("Location")
	if p = r.follow(p); !p.has("It goes on in the background") {
		t.Errorf("got %s", p.words())
	}
	p = r.until(strings.Split(at, "?")[0], "1\u202f001 of 1\u202f001 mails changed")
	for _, want := range []string{"Hold done", "a wrong price", "HoldMails"} {
		if !p.has(want) {
			t.Errorf("got %s, want %q", p.words(), want)
		}
	}
	if p.header.Get("Refresh") != "" {
		t.Error("an operation that has ended is loaded again without end")
	}
	for _, l := range p.lines() {
		r.grpcurl(l)
	}
	if p := r.get("/operations"); !p.has("Hold done") || !p.has("Count: Hold done") {
		t.Errorf("got %s", p.words())
	}
	id := strings.TrimPrefix(strings.Split(at, "?")[0], "/operations/")
	if p := r.get("/act?do=stop&operation=" + id); !p.has("ended already") || strings.Contains(p.text, `name="confirm"`) {
		t.Errorf("stopping what has ended: got %s", p.words())
	}
	if p := r.look("/operations/01980000-0000-7000-8000-000000000000"); p.code != http.StatusNotFound {
		t.Errorf("an operation that there is not: got %d", p.code)
	}
}

// TestMove: mail goes on through the mail server that is chosen, once the count is confirmed.
func TestMove(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server("later", pb.Mode_MODE_DAEMON)
	r.server("other", pb.Mode_MODE_DAEMON)
	m := r.mail("later", "WO-1", pb.Kind_KIND_WORK_ORDER, "bob@other.example")
	p := r.get("/mails/" + m.Id)
	if !strings.Contains(p.text, "/move?id="+m.Id) {
		t.Fatalf("got %s", p.words())
	}
	f := r.get("/move?id="+m.Id).form(t, "/act")
	f.Set("through", "other")
	p = r.get("/act?" + f.Encode())
	if !p.has("1 mail would go on through the other mail server") || !p.has("Goes on throughother") {
		t.Fatalf("got %s", p.words())
	}
	f = p.form(t, "/act")
	f.Set("reason", "later is down")
	f.Set("confirm", "1")
	if p := r.follow(r.post("/act", f)); !p.has("Moved. 1 mail") || !p.has("Mail serverother") {
		t.Errorf("got %s", p.words())
	}
}

// TestRun: what is due leaves now, without the batch that comes in an hour.
func TestRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server("later", pb.Mode_MODE_DAEMON)
	m := r.mail("later", "WO-1", pb.Kind_KIND_WORK_ORDER, "bob@other.example")
	if p := r.get("/queue"); !strings.Contains(p.text, "/act?do=run") {
		t.Errorf("got %s", p.words())
	}
	p := r.get("/act?do=run&name=later")
	if !p.has("1 mail due now would leave") || !p.has("Send 1 mail now") {
		t.Fatalf("got %s", p.words())
	}
	f := p.form(t, "/act")
	f.Set("confirm", "1")
	if p := r.follow(r.post("/act", f)); !p.has("The batch runs") {
		t.Errorf("got %s", p.words())
	}
	r.until("/mails/"+m.Id, "Handed over")
	if p := r.get("/act?do=run"); !p.has("No mail is due now") || strings.Contains(p.text, `name="confirm"`) {
		t.Errorf("got %s", p.words())
	}
}

// TestTokens: a token is made by a form that says what it opens, its secret is shown once, and
// revoking it ends what it opened.
func TestTokens(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if p := r.get("/tokens"); !p.has("The first token closes it") {
		t.Errorf("got %s", p.words())
	}
	f := r.get("/token").form(t, "/token")
	if f.Get("role") != "read" {
		t.Errorf("got role %q to begin with", f.Get("role"))
	}
	f["role"], f["system"], f["name"] = []string{"admin"}, []string{"1"}, []string{"ops"}
	if p := r.post("/token", f); p.code != http.StatusBadRequest || !p.has("Say why") {
		t.Errorf("without a reason: got %d %s", p.code, p.words())
	}
	f.Set("reason", "the first")
	if p := r.post("/token", f); p.code != http.StatusBadRequest || !p.has("Confirm it first") {
		t.Errorf("without a confirmation: got %d %s", p.code, p.words())
	}
	f.Set("confirm", "1")
	p := r.post("/token", f)
	secret := p.find("code", "secret")
	if p.code != http.StatusOK || !strings.HasPrefix(secret, "md_") || !p.has("It is shown this once") || p.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("got %d %s", p.code, p.words())
	}
	if strings.Count(p.text, secret) != 1 {
		t.Errorf("the secret stands %d times in the view", strings.Count(p.text, secret))
	}
	if p := r.look("/tokens"); p.code != http.StatusSeeOther {
		t.Errorf("the service is still open: got %d", p.code)
	}
	r.token = secret
	r.follow(r.signIn(secret))
	again := r.get("/token").form(t, "/token")
	again["role"], again["teams"], again["name"], again["reason"], again["confirm"] = []string{"send", "read"}, []string{"t1, t2"}, []string{"shop"}, []string{"y"}, []string{"1"}
	p = r.post("/token", again)
	shop := p.find("code", "secret")
	if shop == "" {
		t.Fatalf("got %d %s", p.code, p.words())
	}
	if p = r.post("/token", again); p.find("code", "secret") != "" || !p.has("has made its token already") {
		t.Errorf("the form once more: got %s", p.words())
	}
	p = r.get("/tokens")
	if !p.has("shop") || !p.has("send, read") || !p.has("t1, t2") || strings.Contains(p.text, shop) {
		t.Errorf("got %s", p.words())
	}
	for _, l := range p.lines() {
		r.grpcurl(l)
	}
	res, err := r.access().ListTokens(r.ctx(), &pb.ListTokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range res.Tokens {
		if x.Name != "shop" {
			continue
		}
		f := r.get("/act?do=revoke&token="+url.QueryEscape(x.Id)).form(t, "/act")
		f.Set("reason", "lost")
		f.Set("confirm", "1")
		if p := r.follow(r.post("/act", f)); !p.has("The token is revoked") || p.has("shop") {
			t.Errorf("got %s", p.words())
		}
	}
	if rows := r.audit(""); rows[0].Action != "RevokeToken" || rows[0].Reason != "lost" {
		t.Errorf("audit: got %v", rows[0])
	}
	if p := r.get("/tokens?ended=1"); !p.has("revoked") {
		t.Errorf("got %s", p.words())
	}
}

// TestKeys: the form sets what signs and logs in by keys, shows none of them, keeps the stored
// ones while it says nothing about them, and takes a group away of which nothing is left.
func TestKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	f := r.get("/server/add").form(t, "/server/save")
	for k, v := range map[string]string{"name": "shop", "from": "shop@x.example", "smtp.host": "127.0.0.1", "smtp.port": r.port(), "smtp.encryption": "starttls", "smtp.username": "shop@x.example", "smtp.auth": "xoauth2",
		"smtp.oauth2.grant": "client-credentials", "smtp.oauth2.client_id": "c1", "smtp.oauth2.token_url": "http://127.0.0.1:1/token", "smtp.oauth2.scopes": "a  b", "smtp.oauth2.client_secret": "s3cret",
		"dkim.domain": "x.example", "dkim.selector": "mail2026"} {
		f.Set(k, v)
	}
	p := r.follow(r.post("/server/save", f))
	for _, want := range []string{"Client secretstored", "Refresh tokennone", "mail2026._domainkey.x.example", "v=DKIM1", "Scopesa b"} {
		if !p.has(want) {
			t.Errorf("got %s, want %q", p.words(), want)
		}
	}
	p = r.get("/server/edit?name=shop")
	if strings.Contains(p.text, "s3cret") || strings.Contains(p.text, "PRIVATE KEY") {
		t.Error("a secret is shown")
	}
	record := func() string {
		res, err := r.servers().GetMailServer(r.ctx(), &pb.GetMailServerRequest{Name: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		if !res.MailServer.Smtp.Oauth2.GetHasClientSecret() {
			t.Error("the client secret is lost")
		}
		return res.MailServer.Dkim.GetDnsValue()
	}
	key := record()
	f = p.form(t, "/server/save")
	f.Set("display_name", "the shop's")
	r.follow(r.post("/server/save", f))
	if record() != key {
		t.Error("another change has made a new key")
	}
	f = r.get("/server/edit?name=shop").form(t, "/server/save")
	f.Set("dkim.domain", "")
	f.Set("dkim.selector", "")
	r.follow(r.post("/server/save", f))
	if got := record(); got != "" {
		t.Errorf("it signs still: %q", got)
	}
}

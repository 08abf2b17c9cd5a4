package web_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestSession: while nobody is asked the page is open; the first token closes it, signing in
// opens it, and the token's end ends the session.
func TestSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if p := r.get("/queue"); !strings.Contains(p.words(), "everybody on this machine") || strings.Contains(p.text, "/logout") {
		t.Errorf("open: got %s", p.words())
	}
	var id string
	r.token, id = r.secret("ops")
	if p := r.look("/queue?team=x"); p.code != http.StatusSeeOther || p.header.Get("Location") != "/login?next=%2Fqueue%3Fteam%3Dx" {
		t.Fatalf("without a token: got %d to %q", p.code, p.header.Get("Location"))
	}
	before := r.http.Jar.Cookies(mustURL(t, r.url))[0].Value
	if p := r.signIn("md_wrong"); p.code != http.StatusForbidden || !strings.Contains(p.words(), "does not know this token") {
		t.Errorf("a wrong token: got %d %s", p.code, p.words())
	}
	p := r.signIn(r.token)
	cookie := p.header.Get("Set-Cookie")
	for _, want := range []string{"HttpOnly", "SameSite=Strict", "Path=/"} {
		if !strings.Contains(cookie, want) {
			t.Errorf("cookie: got %q, want %s", cookie, want)
		}
	}
	if strings.Contains(cookie, "Secure") {
		t.Errorf("cookie: got %q, which a browser does not keep in plaintext", cookie)
	}
	if after := r.http.Jar.Cookies(mustURL(t, r.url))[0].Value; after == before {
		t.Error("the cookie of before the login is that of the session")
	}
	if p = r.follow(p); !strings.Contains(p.words(), "ops") || !strings.Contains(p.text, `Bearer $(cat &#39;token&#39;)`) || strings.Contains(p.text, r.token) {
		t.Errorf("signed in: got %s", p.text)
	}
	other, _ := r.secret("other")
	if _, err := r.access().RevokeToken(r.ctx(), &pb.RevokeTokenRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * time.Second); r.look("/queue").code != http.StatusSeeOther; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the session outlives its token by 3 s")
		}
	}
	r.token = other
	r.follow(r.signIn(other))
	r.post("/logout", r.get("/queue").form(t, "/logout"))
	if p := r.look("/queue"); p.code != http.StatusSeeOther {
		t.Errorf("signed out: got %d", p.code)
	}
}

// TestLoginIsLimited: one address does not try tokens without end.
func TestLoginIsLimited(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--auth=required")
	for i := range 11 {
		p := r.signIn("md_guess")
		if want := map[bool]int{false: http.StatusForbidden, true: http.StatusTooManyRequests}[i == 10]; p.code != want {
			t.Fatalf("attempt %d: got %d, want %d", i+1, p.code, want)
		}
		if i == 10 && p.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
}

// TestForeignRequests: what other sites have a browser do is refused.
func TestForeignRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.get("/queue")
	ask := func(method, path string, change func(*http.Request)) *page {
		req, err := http.NewRequest(method, r.url+path, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		change(req)
		return r.do(req)
	}
	for what, tc := range map[string]struct {
		method, path string
		change       func(*http.Request)
		want         int
	}{
		"a name that leads here":    {"GET", "/queue", func(q *http.Request) { q.Host = "evil.example:8080" }, http.StatusMisdirectedRequest},
		"another address":           {"GET", "/queue", func(q *http.Request) { q.Host = "192.0.2.1" }, http.StatusMisdirectedRequest},
		"localhost":                 {"GET", "/queue", func(q *http.Request) { q.Host = "localhost:1" }, http.StatusOK},
		"a form without its token":  {"POST", "/logout", func(*http.Request) {}, http.StatusForbidden},
		"a form of another site":    {"POST", "/logout", func(q *http.Request) { q.Header.Set("Sec-Fetch-Site", "cross-site") }, http.StatusForbidden},
		"a form of another origin":  {"POST", "/logout", func(q *http.Request) { q.Header.Set("Origin", "http://evil.example") }, http.StatusForbidden},
		"another method":            {"PUT", "/queue", func(*http.Request) {}, http.StatusMethodNotAllowed},
		"a view that there is not":  {"GET", "/nothing", func(*http.Request) {}, http.StatusNotFound},
		"a redirect to another one": {"GET", "/login?next=//evil.example", func(*http.Request) {}, http.StatusSeeOther},
	} {
		p := ask(tc.method, tc.path, tc.change)
		if p.code != tc.want {
			t.Errorf("%s: got %d, want %d", what, p.code, tc.want)
		}
		if l := p.header.Get("Location"); strings.Contains(l, "evil") {
			t.Errorf("%s: leads to %s", what, l)
		}
	}
	r.http = browser() // which has no cookie yet
	if p := ask("GET", "/queue", func(q *http.Request) { q.Header.Set("Sec-Fetch-Site", "cross-site") }); p.header.Get("Set-Cookie") != "" || !strings.HasPrefix(p.header.Get("Refresh"), "0; url=/queue") {
		t.Errorf("a link of another site: got %v, want no new cookie and the page once more", p.header)
	}
	csp := r.get("/queue").header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("got %q, want %s", csp, want)
		}
	}
	if strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") {
		t.Errorf("got %q", csp)
	}
}

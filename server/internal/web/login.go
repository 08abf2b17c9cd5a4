package web

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// loginBody is what the view of signing in shows.
type loginBody struct {
	Next  string
	Fault string
}

// login is the view with the field for a token.
func (p *Page) login(v *view) error {
	next := inside(v.r.URL.Query().Get("next"))
	if !p.cfg.Asks() {
		return v.go_(next)
	}
	return v.render("login", "Sign in", loginBody{Next: next})
}

// signIn begins a session.
func (p *Page) signIn(v *view) error {
	next := inside(v.r.PostForm.Get("next"))
	if wait := p.logins.take(v.r.RemoteAddr); wait > 0 {
		v.w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		v.code = http.StatusTooManyRequests
		return v.render("login", "Sign in", loginBody{next, "There were too many attempts. Wait " + short(wait+time.Second) + " and try again."})
	}
	c := &calls{conn: p.cfg.Calls, quiet: true, token: strings.TrimSpace(v.r.PostForm.Get("token"))}
	if !headerSafe(c.token) {
		c.token = "none"
	}
	_, err := c.access().WhoAmI(v.ctx(), &pb.WhoAmIRequest{})
	switch status.Code(err) {
	case codes.OK:
	case codes.Unauthenticated:
		v.code = http.StatusForbidden
		return v.render("login", "Sign in", loginBody{next, "The service does not know this token. It may have been revoked or have expired."})
	default:
		return err
	}
	p.sessions.end(v.cookie)
	v.page.setCookie(v.w, p.sessions.begin(c.token))
	return v.go_(next)
}

// maxToken is how long a token may be: one of an OpenID provider is some KiB.
const maxToken = 8 << 10

// headerSafe reports whether a text can be a token at all.
func headerSafe(s string) bool {
	return s != "" && len(s) < maxToken && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// signOut ends a session.
func (p *Page) signOut(v *view) error {
	p.sessions.end(v.cookie)
	p.setCookie(v.w, random())
	return v.go_("/login")
}

package web

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// viewTime is what a view may take. A test of a mail server has a time of its own.
const viewTime = 25 * time.Second

// view is one request of a browser while it is answered.
type view struct {
	*calls
	page   *Page
	w      http.ResponseWriter
	r      *http.Request
	cookie string
	who    *pb.WhoAmIResponse // nil = nobody has signed in, and somebody has to
	code   int                // of the answer; 0 = 200
}

// ctx is that of the request.
func (v *view) ctx() context.Context { return v.r.Context() }

// can reports whether the person has a role, and with it the acts that need it.
func (v *view) can(r pb.Role) bool {
	return v.who != nil && (slices.Contains(v.who.Roles, pb.Role_ROLE_ADMIN) || slices.Contains(v.who.Roles, r))
}

// anybody is a view that nobody has to sign in for.
func (p *Page) anybody(show func(*view) error) http.HandlerFunc { return p.within(viewTime, show) }

// within is a view that nobody has to sign in for, and what it may take.
func (p *Page) within(limit time.Duration, show func(*view) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		r = r.WithContext(ctx)
		v := &view{calls: &calls{conn: p.cfg.Calls}, page: p, w: w, r: r, cookie: p.cookie(r)}
		if err := r.ParseForm(); r.Method == http.MethodPost && err != nil {
			code, title := http.StatusBadRequest, "This form cannot be read"
			if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
				code, title = http.StatusRequestEntityTooLarge, "This form is too large"
			}
			v.fail(code, title, "Nothing was done. A form has at most "+size(maxForm)+".")
			return
		}
		if r.Method == http.MethodPost && !p.mayPost(r) {
			v.fail(http.StatusForbidden, "This form is out of date", "Go back, load the page again and repeat it. Nothing was done.")
			return
		}
		if v.cookie == "" {
			if p.strayed(w, r) {
				return
			}
			v.cookie = random()
			p.setCookie(w, v.cookie)
		}
		v.token = p.sessions.token(v.cookie)
		v.end(show(v))
	}
}

// known is a view for somebody whom the service knows. The service is asked each time, so that
// a session ends with its token.
func (p *Page) known(show func(*view) error) http.HandlerFunc { return p.knownWithin(viewTime, show) }

// knownWithin is known with what it may take.
func (p *Page) knownWithin(limit time.Duration, show func(*view) error) http.HandlerFunc {
	return p.within(limit, func(v *view) error {
		if v.token == "" && p.cfg.Asks() {
			return status.Error(codes.Unauthenticated, "nobody has signed in")
		}
		v.quiet = true
		who, err := v.access().WhoAmI(v.ctx(), &pb.WhoAmIRequest{})
		v.quiet = false
		if err != nil {
			return err
		}
		v.who = who
		return show(v)
	})
}

// strayed answers a person who comes by a link of another site. The browser keeps the cookie
// back then (SameSite=Strict), so that a new one would take the place of a session: the page
// has to be opened once more from here.
func (p *Page) strayed(w http.ResponseWriter, r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	if r.Method != http.MethodGet || site != "cross-site" && site != "same-site" {
		return false
	}
	here := inside(r.URL.RequestURI())
	w.Header().Set("Refresh", "0; url="+here)
	v := &view{calls: &calls{}, page: p, w: w, r: r}
	v.render("stray", "One moment", here)
	return true
}

// end answers a view that has failed.
func (v *view) end(err error) {
	if err == nil || errors.Is(err, errDone) {
		return
	}
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unauthenticated:
		v.page.sessions.end(v.cookie)
		next := "/"
		if v.r.Method == http.MethodGet {
			next = v.r.URL.RequestURI()
		}
		v.go_("/login?" + url.Values{"next": {next}}.Encode())
	case codes.PermissionDenied:
		v.fail(http.StatusForbidden, "Not for you", s.Message())
	case codes.NotFound:
		v.fail(http.StatusNotFound, "Not found", s.Message())
	case codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists, codes.Aborted, codes.OutOfRange:
		v.fail(http.StatusBadRequest, "The service refused this", words(s)...)
	case codes.ResourceExhausted:
		v.fail(http.StatusTooManyRequests, "Too much at once", s.Message())
	default:
		v.fail(http.StatusServiceUnavailable, "The service does not answer as it should", s.Message())
	}
}

// faultSteps are what a person does next, by the code of an answer.
var faultSteps = map[int]string{
	http.StatusForbidden:          "An administrator can give you a token with the role or team that this takes. Sign out to use another one.",
	http.StatusNotFound:           "It may have another name, be gone, or be of a team that you do not see. Look for it in the lists.",
	http.StatusBadRequest:         "Nothing was changed. Go back, mend what is named above, and try again.",
	http.StatusTooManyRequests:    "Nothing was changed. Wait a moment, then load the page again.",
	http.StatusServiceUnavailable: "Load the page again. If that does not help, `maildispatchd doctor` on the service's machine tells what is wrong.",
}

// faultBody is what the view of a fault shows.
type faultBody struct {
	Words []string
	Next  string
	Links []link
}

// words are what a refused call says: its message and each field that is wrong.
func words(s *status.Status) []string {
	var out []string
	for _, d := range s.Details() {
		if b, is := d.(*errdetails.BadRequest); is {
			for _, f := range b.FieldViolations {
				out = append(out, f.Field+": "+f.Description)
			}
		}
	}
	if len(out) == 0 {
		out = []string{s.Message()}
	}
	return out
}

// fail shows what went wrong.
func (v *view) fail(code int, title string, words ...string) {
	v.code = code
	b := faultBody{Words: words, Next: faultSteps[code]}
	if v.r.Method == http.MethodGet && (code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable) {
		b.Links = append(b.Links, link{Label: "Load it again", Address: inside(v.r.URL.RequestURI()), Main: true})
	}
	if v.who != nil {
		b.Links = append(b.Links, link{Label: "Find a mail", Address: "/mails"}, link{Label: "Mail servers", Address: "/servers"})
	} else {
		b.Links = append(b.Links, link{Label: "To the first page", Address: "/"})
	}
	v.render("fault", title, b)
}

// go_ leads the browser to another view after a form.
func (v *view) go_(path string) error {
	http.Redirect(v.w, v.r, path, http.StatusSeeOther)
	return errDone
}

// inside is a path of this page that a form may lead to; anything else is "/".
func inside(path string) string {
	foreign := func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsFunc(path, foreign) {
		return "/"
	}
	return path
}

// frame is what every view shows around its own.
type frame struct {
	Title  string
	Tabs   []link
	Beside []link // views of the same tab
	Style  string
	Zone   string // of the times
	CSRF   string
	Who    *pb.WhoAmIResponse
	Name   string
	Signed bool     // in with a token
	Lines  []string // of grpcurl
	Done   string   // what the act before this view did
	Body   any
}

// tab is a word of the top line.
type tab struct {
	label   string
	address string
	views   []string // by the names of their templates; they belong to it
	role    pb.Role  // that it takes; 0 = any
	system  bool     // it takes one who may see everything
	beside  []tab    // views beside each other in it, the first of them its own
}

// link is a tab as the view of that name shows it; none for somebody who may not see it.
func (v *view) link(t *tab, name string) []link {
	if t.role != 0 && !v.can(t.role) || t.system && !v.who.System {
		return nil
	}
	return []link{{Label: t.label, Address: t.address, Here: slices.Contains(t.views, name)}}
}

// tabs are those of the top line.
var tabs = []tab{
	{label: "Queue", address: "/queue", views: []string{"queue"}},
	{label: "Mails", address: "/mails", views: []string{"mails", "mail", "message"}},
	{label: "Mail servers", address: "/servers", views: []string{"servers", "server", "serverform"}},
	{label: "Batches", address: "/batches", views: []string{"batches", "batch", "operations", "operation"}, beside: []tab{
		{label: "Batches", address: "/batches", views: []string{"batches"}},
		{label: "Operations", address: "/operations", views: []string{"operations"}},
	}},
	{label: "Admin", address: "/audit", views: []string{"audit", "tokens", "token", "holds", "service"}, role: pb.Role_ROLE_ADMIN, beside: []tab{
		{label: "Audit log", address: "/audit", views: []string{"audit"}},
		{label: "Tokens", address: "/tokens", views: []string{"tokens"}, system: true},
		{label: "Retention", address: "/holds", views: []string{"holds"}},
		{label: "Service", address: "/service", views: []string{"service"}},
	}},
}

// render answers with a view.
func (v *view) render(name, title string, body any) error {
	f := frame{Title: title, Style: v.page.style.path, CSRF: v.page.csrf(v.cookie), Who: v.who, Signed: v.token != "", Lines: v.lines(), Body: body}
	if v.who != nil {
		f.Zone = v.page.cfg.Now().Format("MST")
		for _, t := range tabs {
			f.Tabs = append(f.Tabs, v.link(&t, name)...)
			if slices.ContainsFunc(t.beside, func(b tab) bool { return slices.Contains(b.views, name) }) {
				for _, b := range t.beside {
					f.Beside = append(f.Beside, v.link(&b, name)...)
				}
			}
		}
		f.Done = done(v.r.URL.Query())
		if f.Name = v.who.Name; f.Name == "" {
			f.Name = "everybody on this machine"
		}
	}
	var out bytes.Buffer
	if err := v.page.views[name].Execute(&out, f); err != nil {
		v.page.cfg.Logger.Error("a view cannot be shown", "view", name, "error", err)
		http.Error(v.w, "This view cannot be shown.", http.StatusInternalServerError)
		return errDone
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if v.code != 0 {
		v.w.WriteHeader(v.code)
	}
	_, _ = v.w.Write(out.Bytes()) // a browser that is gone needs no answer
	return nil
}

// maxLine is how long a line of grpcurl may be that is shown.
const maxLine = 4 << 10

// lines are the calls of this view, for a shell.
func (v *view) lines() (out []string) {
	for _, m := range v.made {
		service, _, _ := strings.Cut(strings.TrimPrefix(m.method, "/"), "/")
		t := v.page.cfg.Target(hostOnly(v.r.Host), service)
		if v.token != "" {
			t.TokenFile = "token"
		}
		line := t.Line(m.method, m.req)
		if len(line) > maxLine {
			line = "# " + strings.TrimPrefix(m.method, "/") + ": the line is too long to be shown"
		}
		out = append(out, line)
	}
	return out
}

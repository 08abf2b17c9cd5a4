package web

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// tokensBody is what the list of tokens shows.
type tokensBody struct {
	Rows  []tokenRow
	Ended bool // also those that were revoked or have expired
	Next  string
	Open  bool // nobody is asked who calls
}

// tokenRow is a token, which can be revoked.
type tokenRow struct {
	*pb.Token
	Roles  string
	For    string
	State  string
	Revoke string
}

// tokens lists who may call.
func tokens(v *view) error {
	q := v.r.URL.Query()
	req := &pb.ListTokensRequest{ShowEnded: q.Get("ended") != "", PageSize: pageSize, PageToken: q.Get("page")}
	res, err := v.access().ListTokens(v.ctx(), req)
	if err != nil {
		return err
	}
	b := tokensBody{Ended: req.ShowEnded, Open: !v.page.cfg.Asks()}
	for _, t := range res.Tokens {
		r := tokenRow{Token: t, Roles: roleWords(t.Roles), For: strings.Join(t.Teams, ", "), State: "ok"}
		if t.System {
			r.For = "everything"
		}
		switch {
		case t.RevokeTime != nil:
			r.State = "revoked"
		case t.ExpireTime != nil && !t.ExpireTime.AsTime().After(v.page.cfg.Now()):
			r.State = "expired"
		default:
			for _, l := range v.links(url.Values{"token": {t.Id}}, "revoke") {
				r.Revoke = l.Address
			}
		}
		b.Rows = append(b.Rows, r)
	}
	if res.NextPageToken != "" {
		b.Next = with("/tokens", q, "page", res.NextPageToken)
	}
	return v.render("tokens", "Tokens", b)
}

func roleWords(roles []pb.Role) string {
	var out []string
	for _, r := range roles {
		out = append(out, plain.Word(r))
	}
	return strings.Join(out, ", ")
}

// tokenBody is what the form for a token shows, and then the token.
type tokenBody struct {
	Form   url.Values
	Roles  []choice
	Faults []string
	First  bool // it closes the service
	Secret string
	Info   *pb.Token
}

// tokenForm is the form for a new token.
func tokenForm(v *view) error {
	return v.showTokenForm(url.Values{"ttl": {"90d"}, "once": {random()}, "role": {plain.Word(pb.Role_ROLE_READ)}}, nil)
}

func (v *view) showTokenForm(form url.Values, faults []string) error {
	b := tokenBody{Form: form, Faults: faults, First: !v.page.cfg.Asks(), Roles: choices(plain.Words(pb.Role(0)), form["role"])[1:]}
	if len(faults) > 0 {
		v.code = http.StatusBadRequest
	}
	return v.render("token", "Make a token", b)
}

// makeToken makes a token and shows its secret, this once. A form that is sent again makes no
// second one.
func makeToken(v *view) error {
	form := v.r.PostForm
	req := &pb.CreateTokenRequest{Name: strings.TrimSpace(form.Get("name")), System: form.Get("system") != "", Teams: strings.FieldsFunc(form.Get("teams"), func(r rune) bool { return r == ' ' || r == ',' }),
		Reason: strings.TrimSpace(form.Get("reason"))}
	var faults []string
	for _, w := range form["role"] {
		n, ok := plain.FromWord(pb.Role(0), w)
		if !ok {
			faults = append(faults, "role: is one of "+strings.Join(plain.Words(pb.Role(0)), ", "))
			continue
		}
		req.Roles = append(req.Roles, pb.Role(n))
	}
	if d, err := plain.Span(strings.TrimSpace(form.Get("ttl"))); err != nil {
		faults = append(faults, "ttl: is a time such as 90d or 12h")
	} else {
		req.Ttl = durationpb.New(d)
	}
	switch {
	case req.Reason == "":
		faults = append(faults, "Say why: it stands in the audit log.")
	case form.Get("confirm") == "":
		faults = append(faults, "Confirm it first.")
	}
	if len(faults) > 0 {
		return v.showTokenForm(form, faults)
	}
	if !v.page.made.first(form.Get("once"), v.page.cfg.Now()) {
		return v.showTokenForm(url.Values{"ttl": {"90d"}, "once": {random()}}, []string{"This form has made its token already, and the secret is not shown again. If it is lost, revoke that token and make another one."})
	}
	res, err := v.access().CreateToken(v.ctx(), req)
	if err != nil && refused(err) {
		form.Set("once", random())
		return v.showTokenForm(form, words_(err))
	}
	if err != nil {
		return err
	}
	return v.render("token", "A new token", tokenBody{Secret: res.Secret, Info: res.Info, Roles: []choice{{Label: roleWords(res.Info.GetRoles())}}})
}

const (
	// onceLife is how long a form that was sent is known.
	onceLife = sessionLife
	maxOnce  = 1000
)

// onces are the forms that were sent and must not do their work twice.
type onces struct {
	mu   sync.Mutex // guards sent
	sent map[string]time.Time
}

// first reports whether a form is sent for the first time. Beyond maxOnce it refuses, so that
// none is forgotten too early.
func (o *onces) first(key string, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent == nil {
		o.sent = map[string]time.Time{}
	}
	for k, at := range o.sent {
		if now.Sub(at) > onceLife {
			delete(o.sent, k)
		}
	}
	if _, known := o.sent[key]; known || len(key) != len(random()) || len(o.sent) >= maxOnce {
		return false
	}
	o.sent[key] = now
	return true
}

// revokeAct ends a token.
func revokeAct() *act {
	return &act{name: "revoke", label: "Revoke", role: pb.Role_ROLE_ADMIN, reason: true, danger: true,
		count: func(v *view, q url.Values) (*counted, error) {
			id := q.Get("token")
			text := "1 token would end for good: " + plain.Text(id, 60) + ". Every replica refuses it within 3 seconds."
			return &counted{Count: 1, Text: text, next: func(made *calls, why string) {
				made.note(pb.AccessAdmin_RevokeToken_FullMethodName, &pb.RevokeTokenRequest{Id: id, Reason: why})
			}}, nil
		},
		do: func(v *view, q, form url.Values) (*did, error) {
			_, err := v.access().RevokeToken(v.ctx(), &pb.RevokeTokenRequest{Id: q.Get("token"), Reason: form.Get("reason")})
			return &did{done: "revoked", to: with("/tokens", nil, "done", "revoked")}, err
		}}
}

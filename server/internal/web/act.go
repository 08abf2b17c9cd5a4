package web

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

var isID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// idLength is how long an id is.
const idLength = 36

// act is something a person may do. It is counted first, then confirmed with a reason, and then
// counted and done.
type act struct {
	name  string
	label string
	// button has a place for the number of mails; empty = it is the label.
	button string
	role   pb.Role
	// Why has to be said.
	reason bool
	danger bool
	// what the form asks beyond the reason
	asks []ask
	// count says what would be done. It changes nothing.
	count func(v *view, q url.Values) (*counted, error)
	// do does it with the form's fields and says how it went.
	do func(v *view, q, form url.Values) (*did, error)
}

// ask is a field of an act's form.
type ask struct {
	Name     string
	Label    string
	Hint     string
	Value    string
	Kind     string // text, check, choice
	Required bool
	Choices  []choice
}

// counted is what an act would do.
type counted struct {
	Count    int64
	Mails    bool     // Count is of mails
	About    []header // what it is about
	Text     string   // in words
	More     []string // what else a person should know
	Failures []*pb.MailFailure
	Unlisted int64 // failures beyond these
	asks     []ask // fields that depend on what was counted
	next     func(c *calls, reason string)
}

// did is how an act went.
type did struct {
	to       string // the view that shows it
	done     string // a key of dones
	Text     string
	Failures []*pb.MailFailure
	Unlisted int64
}

// acts are all that there are.
var acts = map[string]*act{}

func init() { // they lead to views that lead to them
	for _, a := range slices.Concat(mailActs(), serverActs(), holdActs(), []*act{stopAct(), revokeAct()}) {
		acts[a.name] = a
	}
}

// maxReason is how long a reason may be.
const maxReason = 500

// actBody is what an act's view shows.
type actBody struct {
	Act      string
	Label    string
	Button   string
	About    []header
	Danger   bool
	Reason   bool
	Query    string // what it selects, as an address
	Words    string // the reason that was typed
	Counted  *counted
	Asks     []ask
	Fault    string
	Back     string
	Possible bool
}

// confirm is the view of an act before it is done.
func confirm(v *view) error {
	q := v.r.URL.Query()
	a, err := v.act(q.Get("do"))
	if err != nil {
		return err
	}
	return v.askAgain(a, q, nil, "")
}

// act is one that the person may do.
func (v *view) act(name string) (*act, error) {
	a := acts[name]
	if a == nil {
		return nil, status.Error(codes.NotFound, "there is no such act")
	}
	if !v.can(a.role) {
		return nil, status.Error(codes.PermissionDenied, "This takes the role "+strings.ToLower(strings.TrimPrefix(a.role.String(), "ROLE_"))+".")
	}
	return a, nil
}

func (v *view) askAgain(a *act, q, form url.Values, fault string) error {
	c, err := a.count(v, q)
	if err != nil {
		return err
	}
	b := actBody{Act: a.name, Label: a.label, Danger: a.danger, Reason: a.reason, Query: q.Encode(), Words: form.Get("reason"), Counted: c, Fault: fault, Back: back(q), Possible: c.Count > 0}
	if b.Button, b.About = a.label, c.About; c.Mails {
		b.Button = fmt.Sprintf(a.button, plural(c.Count, "mail"))
	}
	for _, x := range slices.Concat(c.asks, a.asks) {
		if form.Has(x.Name) {
			x.Value = form.Get(x.Name)
		}
		b.Asks = append(b.Asks, x)
	}
	if c.next != nil && b.Possible {
		c.next(v.calls, "WHY")
	}
	if fault != "" {
		v.code = http.StatusBadRequest
	}
	return v.render("act", a.label, b)
}

// back is where a person goes who does not want it.
func back(q url.Values) string {
	switch {
	case q.Get("id") != "":
		return "/mails/" + url.PathEscape(q.Get("id"))
	case q.Get("operation") != "":
		return operationPath(q.Get("operation"), "")
	case q.Get("token") != "":
		return "/tokens"
	case q.Get("hold") != "":
		return "/holds"
	case q.Get("do") == "run":
		return "/queue"
	case q.Get("name") != "":
		return serverPath(q.Get("name"), "")
	case q.Get("batch") != "":
		return with("/batch", url.Values{"id": q["batch"], "team": q["team"]})
	}
	return with("/mails", q, "do", "", "through", "", "counting", "", "seal", "")
}

// perform does an act that was confirmed for just what would be done now.
func perform(v *view) error {
	form := v.r.PostForm
	q, err := url.ParseQuery(form.Get("query"))
	if err != nil {
		return bad("query", "cannot be read")
	}
	a, err := v.act(q.Get("do"))
	if err != nil {
		return err
	}
	why := strings.TrimSpace(form.Get("reason"))
	form.Set("reason", why)
	switch n := len([]rune(why)); {
	case a.reason && n == 0:
		return v.askAgain(a, q, form, "Say why: it stands in the audit log.")
	case n > maxReason:
		return v.askAgain(a, q, form, fmt.Sprintf("The reason has more than %d characters.", maxReason))
	}
	c, err := a.count(v, q)
	if err != nil {
		return err
	}
	if said := form.Get("confirm"); said != strconv.FormatInt(c.Count, 10) {
		fault := "Confirm it first."
		if said != "" {
			fault = "It is another number now. Nothing was done: look again."
		}
		return v.askAgain(a, q, form, fault)
	}
	d, err := a.do(v, q, form)
	if err != nil && refused(err) {
		return v.askAgain(a, q, form, strings.Join(words_(err), "; "))
	}
	if err != nil {
		return err
	}
	if len(d.Failures) > 0 || d.done == "" {
		return v.render("did", a.label, struct {
			*did
			To string
		}{d, d.to})
	}
	return v.go_(d.to)
}

// dones are the words for what an act did. The address names one of them: what stands in an
// address may come from anywhere, and is not shown itself.
var dones = map[string]string{
	"server-added": "The mail server is saved. Try it with Test.", "server-changed": "The mail server is changed.",
	"paused": "The mail server is paused.", "resumed": "The mail server sends again.", "default": "The mail server is the default.",
	"deleted": "The mail server is deleted. Its name stays taken.", "undeleted": "The mail server is back. What was held stays held.",
	"resolved": "The mail was resolved.", "resent": "The mail goes out once more, as this one.", "test-mail": "This is the test mail.",
	"begun": "It goes on in the background.", "stopped": "It is stopped. What was done stays done.", "revoked": "The token is revoked.", "kept": "The legal hold is placed.",
	"lifted": "The legal hold is lifted.", "ran": "The batch runs.", "move": "Moved.",
	"hold": "Held.", "release": "Released.", "cancel": "Cancelled.", "retry": "Tried again as soon as the batch runs.",
}

func done(q url.Values) string {
	text := dones[q.Get("done")]
	if n, err := strconv.Atoi(q.Get("n")); err == nil && n >= 0 && text != "" {
		return text + " " + plural(int64(n), "mail") + "."
	}
	return text
}

// plural is "1 mail", "2 mails".
func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// links are the acts of a list that the person may do.
func (v *view) links(q url.Values, names ...string) (out []link) {
	for _, n := range names {
		if a := acts[n]; v.can(a.role) {
			out = append(out, link{Label: a.label, Address: with("/act", q, "do", n), Risky: a.danger})
		}
	}
	return out
}

var errNothing = errors.New("nothing is selected")

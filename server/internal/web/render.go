package web

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"reflect"
	"strings"
	"text/template/parse"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// maxShown is how many runes of one value are shown.
const maxShown = 500

// exact is a text that a template puts out as it is, HTML-escaped all the same: what a form
// brings back.
type exact string

// funcs are what templates may call.
var funcs = template.FuncMap{
	"foreign": foreign,
	"exact":   func(s string) exact { return exact(s) },
	"cut":     func(n int, s string) string { return plain.Text(s, n) },
	"word":    func(e protoreflect.Enum) string { return plain.Word(e) },
	"say":     func(e protoreflect.Enum) string { return strings.ReplaceAll(plain.Word(e), "-", " ") },
	"clock":   clock,
	"ago":     ago,
	"span":    func(d *durationpb.Duration) string { return short(d.AsDuration()) },
	"number":  number,
	"size":    size,
	"means":   func(s pb.MailStatus) string { return meanings[s] },
	"mode":    func(m pb.Mode) string { return modes[m] },
	"route":   func(r pb.Route) string { return routes[r] },
	"encryption": func(e pb.Smtp_Encryption) string {
		if e == pb.Smtp_ENCRYPTION_NONE {
			return "not encrypted"
		}
		return strings.ToUpper(plain.Word(e))
	},
	"reply": plain.Reply,
	"pem":   func(s string) exact { return exact(pemOnly(s)) },
	"field": func(name, label, value, hint string) map[string]string {
		return map[string]string{"Name": name, "Label": label, "Value": value, "Hint": hint}
	},
	"choice": func(name, label string, of []choice) map[string]any {
		return map[string]any{"Name": name, "Label": label, "Choices": of}
	},
	"recipients": recipients,
	"more":       func(r []*pb.RecipientResult) int { return len(r) - 1 },
	"paused":     func(t *timestamppb.Timestamp) bool { return t.AsTime().After(time.Now()) },
}

// meanings say what a status means for a person.
var meanings = map[pb.MailStatus]string{
	pb.MailStatus_MAIL_STATUS_QUEUED: "waits for its first attempt", pb.MailStatus_MAIL_STATUS_SENDING: "on its way", pb.MailStatus_MAIL_STATUS_DEFERRED: "is tried again automatically",
	pb.MailStatus_MAIL_STATUS_HELD: "waits until somebody releases it", pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT: "some recipients have it", pb.MailStatus_MAIL_STATUS_UNKNOWN: "may have arrived: somebody has to say",
	pb.MailStatus_MAIL_STATUS_FAILED: "refused: is not tried again automatically", pb.MailStatus_MAIL_STATUS_SENT: "handed over to every recipient's mail server", pb.MailStatus_MAIL_STATUS_CANCELLED: "is not sent any more",
}

// modes and routes are the words for how a mail leaves, and for why through this mail server.
var (
	modes  = map[pb.Mode]string{pb.Mode_MODE_PHP: "php: sent while the caller waits", pb.Mode_MODE_DAEMON: "daemon: queued for the batch"}
	routes = map[pb.Route]string{pb.Route_ROUTE_NAMED: "named by the caller", pb.Route_ROUTE_TEAM_DEFAULT: "the team's default", pb.Route_ROUTE_SYSTEM_DEFAULT: "the system's default"}
)

// foreign is the last step of every value in a template.
func foreign(v any) any {
	switch x := v.(type) {
	case exact:
		return string(x)
	case nil:
		return ""
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.String:
		return plain.Text(r.String(), maxShown)
	case reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64, reflect.Float64:
		return v
	}
	return plain.Text(fmt.Sprint(v), maxShown)
}

// parseViews reads the templates: the frame, and a view in each other file.
func parseViews() (map[string]*template.Template, error) {
	base, err := template.New("frame.html").Funcs(funcs).ParseFS(files, "templates/frame.html", "templates/parts.html")
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		return nil, err
	}
	views := map[string]*template.Template{}
	for _, name := range names {
		v := strings.TrimSuffix(path.Base(name), ".html")
		if v == "frame" || v == "parts" {
			continue
		}
		t, err := base.Clone()
		if err == nil {
			t, err = t.ParseFS(files, name)
		}
		if err != nil {
			return nil, err
		}
		for _, x := range t.Templates() {
			if x.Tree != nil {
				guard(x.Tree, x.Tree.Root)
			}
		}
		views[v] = t
	}
	return views, nil
}

// guard has every value of a template pass foreign, so that no view can forget it.
func guard(t *parse.Tree, n parse.Node) {
	switch x := n.(type) {
	case *parse.ListNode:
		if x == nil {
			return
		}
		for _, c := range x.Nodes {
			guard(t, c)
		}
	case *parse.IfNode:
		guard(t, x.List)
		guard(t, x.ElseList)
	case *parse.RangeNode:
		guard(t, x.List)
		guard(t, x.ElseList)
	case *parse.WithNode:
		guard(t, x.List)
		guard(t, x.ElseList)
	case *parse.ActionNode:
		if len(x.Pipe.Decl) > 0 {
			return
		}
		if last := x.Pipe.Cmds[len(x.Pipe.Cmds)-1]; len(last.Args) == 1 && last.Args[0].String() == "foreign" {
			return // a template that views share
		}
		f := parse.NewIdentifier("foreign").SetPos(x.Pos).SetTree(t)
		x.Pipe.Cmds = append(x.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: x.Pos, Args: []parse.Node{f}})
	}
}

// styleSheet is served under a name that changes with it.
type styleSheet struct {
	text []byte
	path string
}

func readStyle() (styleSheet, error) {
	b, err := files.ReadFile("style.css")
	sum := sha256.Sum256(b)
	return styleSheet{text: b, path: "/style.css?v=" + hex.EncodeToString(sum[:6])}, err
}

func (s styleSheet) serve(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=86400")
	_, _ = w.Write(s.text) // a browser that is gone needs no answer
}

// clock is a time as people read it, in the service's zone.
func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return "–"
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// ago is how long ago a time was, or in how long it will be.
func ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return "–"
	}
	d := time.Since(t.AsTime())
	if d < 0 {
		return "in " + short(-d)
	}
	return short(d) + " ago"
}

// short is a duration in one or two units.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// size is a count of octets in a unit that people read.
func size(v any) string {
	n := reflect.ValueOf(v).Int()
	switch {
	case n < 10<<10:
		return plural(n, "byte")
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// number is a count with a thin blank between thousands.
func number(v any) exact {
	s := fmt.Sprint(v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return exact(s)
}

// pemOnly is a text of certificates, which has no characters but these.
func pemOnly(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == ' ' || strings.ContainsRune("+/=-", r) || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, s[:min(len(s), 64<<10)])
}

package web

import (
	"net/url"
	"slices"
	"strings"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// maxTargets is how many mail servers can be chosen from.
const maxTargets = 200

// moveBody is what the view shows that asks where mail shall go on.
type moveBody struct {
	About   []header
	Fields  []header // of the act's address
	Servers []choice
	Back    string
}

// move asks through which mail server mail shall go on, and leads to the act.
func move(v *view) error {
	if _, err := v.act("move"); err != nil {
		return err
	}
	q := v.r.URL.Query()
	b := moveBody{Fields: []header{{"do", "move"}}, Back: back(q)}
	var err error
	if b.About, err = v.about(q); err != nil {
		return err
	}
	for _, k := range append([]string{"id"}, filterFields...) {
		for _, x := range q[k] {
			b.Fields = append(b.Fields, header{k, x})
		}
	}
	res, err := v.servers().ListMailServers(v.ctx(), &pb.ListMailServersRequest{Status: pb.MailServer_STATUS_AVAILABLE, PageSize: maxTargets})
	if err != nil {
		return err
	}
	for _, m := range res.MailServers {
		label := m.Name
		if m.DisplayName != "" {
			label += ": " + plain.Text(m.DisplayName, 60)
		}
		b.Servers = append(b.Servers, choice{Value: m.Name, Label: label})
	}
	return v.render("move", "Move", b)
}

// moveLink leads to where mail of a filter or an id can be moved from.
func (v *view) moveLink(q url.Values) []link {
	if !v.can(acts["move"].role) {
		return nil
	}
	return []link{{Label: "Move", Address: with("/move", q)}}
}

// limitsOf are the limits of callers, by name.
func limitsOf(m map[string]int64) (out []header) {
	for k, n := range m {
		out = append(out, header{k, string(number(n))})
	}
	slices.SortFunc(out, func(a, b header) int { return strings.Compare(a.Name, b.Name) })
	return out
}

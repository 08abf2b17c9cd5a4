package web

import (
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// changed is what the answers of all acts on selected mails hold.
type changed interface {
	proto.Message
	GetMatched() int32
	GetChanged() int32
	GetFailures() []*pb.MailFailure
	GetOperation() *pb.Operation
}

// selection is which mails an act is about, and how it is called.
type selection struct {
	ids     []string
	filter  *pb.MailFilter
	only    bool // count, change nothing
	why     string
	through string // mail server that they are moved to
}

// selecting makes the request of an act on selected mails.
type selecting func(s selection) (method string, req proto.Message, answer changed)

func mailActs() []*act {
	return []*act{
		onMails("hold", "Hold", "Hold %s", pb.Role_ROLE_SEND, "would be held", func(s selection) (string, proto.Message, changed) {
			return pb.Dispatch_HoldMails_FullMethodName, &pb.HoldMailsRequest{Ids: s.ids, Filter: s.filter, ValidateOnly: s.only, Reason: s.why}, &pb.HoldMailsResponse{}
		}),
		onMails("release", "Release", "Release %s", pb.Role_ROLE_ADMIN, "would be released", func(s selection) (string, proto.Message, changed) {
			return pb.Dispatch_ReleaseMails_FullMethodName, &pb.ReleaseMailsRequest{Ids: s.ids, Filter: s.filter, ValidateOnly: s.only, Reason: s.why}, &pb.ReleaseMailsResponse{}
		}),
		onMails("cancel", "Cancel", "Cancel %s", pb.Role_ROLE_SEND, "would be cancelled, for good", func(s selection) (string, proto.Message, changed) {
			return pb.Dispatch_CancelMails_FullMethodName, &pb.CancelMailsRequest{Ids: s.ids, Filter: s.filter, ValidateOnly: s.only, Reason: s.why}, &pb.CancelMailsResponse{}
		}),
		onMails("retry", "Try again", "Try %s again", pb.Role_ROLE_SEND, "would be tried again", func(s selection) (string, proto.Message, changed) {
			return pb.Dispatch_RetryMails_FullMethodName, &pb.RetryMailsRequest{Ids: s.ids, Filter: s.filter, ValidateOnly: s.only, Reason: s.why}, &pb.RetryMailsResponse{}
		}),
		onMails("move", "Move", "Move %s", pb.Role_ROLE_ADMIN, "would go on through the other mail server", func(s selection) (string, proto.Message, changed) {
			return pb.Dispatch_MoveMails_FullMethodName, &pb.MoveMailsRequest{Ids: s.ids, Filter: s.filter, MailServer: s.through, ValidateOnly: s.only, Reason: s.why}, &pb.MoveMailsResponse{}
		}),
		{name: "resolve", label: "Say what became of it", role: pb.Role_ROLE_ADMIN, reason: true, count: countUnknown, do: resolve,
			asks: []ask{{Name: "resolution", Label: "What became of it", Kind: "choice", Choices: []choice{{"delivered", "It arrived", true}, {"not-delivered", "It did not arrive", false}, {"resend", "Send it again", false}}}}},
		{name: "resend", label: "Send once more", role: pb.Role_ROLE_SEND, reason: true, count: countResend, do: resend,
			asks: []ask{{Name: "to", Label: "The right address, in place of the wrong one", Hint: "empty: the same as before", Kind: "text"}}},
	}
}

// onMails is an act on the mails that an address selects: by id, or by the fields of a filter.
func onMails(name, label, button string, role pb.Role, would string, request selecting) *act {
	call := func(v *view, q url.Values, only bool, why string) (changed, error) {
		ids, f, err := v.selected(q)
		if err != nil {
			return nil, err
		}
		method, req, answer := request(selection{ids, f, only, why, q.Get("through")})
		return answer, v.Invoke(v.ctx(), method, req, answer)
	}
	return &act{name: name, label: label, button: button, role: role, reason: true, danger: name == "cancel",
		count: func(v *view, q url.Values) (*counted, error) {
			about, err := v.about(q)
			if err != nil {
				return nil, err
			}
			if t := q.Get("through"); t != "" {
				about = append(about, header{"Goes on through", t})
			}
			var c *counted
			if q.Get("counting") != "" {
				if c, err = v.countedInBackground(q, would); err != nil {
					return nil, err
				}
			} else {
				r, err := call(v, q, true, "")
				if err != nil {
					return nil, err
				}
				if op := r.GetOperation(); op != nil { // more mails than a view waits for
					return nil, v.countInBackground(q, op)
				}
				c = &counted{Count: int64(r.GetChanged()), Mails: true, Text: plural(int64(r.GetChanged()), "mail") + " " + would + ".", Failures: few(r.GetFailures())}
				c.Unlisted = int64(r.GetMatched()-r.GetChanged()) - int64(len(c.Failures))
			}
			c.About = about
			c.next = func(made *calls, why string) {
				if ids, f, err := v.selected(q); err == nil {
					method, req, _ := request(selection{ids, f, false, why, q.Get("through")})
					made.note(method, req)
				}
			}
			return c, nil
		},
		do: func(v *view, q, form url.Values) (*did, error) {
			r, err := call(v, q, false, form.Get("reason"))
			if err != nil {
				return nil, err
			}
			if op := r.GetOperation(); op != nil {
				return &did{done: "begun", to: operationPath(op.GetId(), "begun")}, nil
			}
			d := &did{done: name, Failures: few(r.GetFailures()), Text: plural(int64(r.GetChanged()), "mail") + " of " + strconv.Itoa(int(r.GetMatched())) + " done."}
			d.Unlisted = int64(r.GetMatched()-r.GetChanged()) - int64(len(d.Failures))
			to := back(q)
			path, query, _ := strings.Cut(to, "?")
			rest, _ := url.ParseQuery(query) // of our own making
			d.to = with(path, rest, "done", name, "n", strconv.Itoa(int(r.GetChanged())))
			return d, nil
		}}
}

// few are the failures that a view shows.
func few(all []*pb.MailFailure) []*pb.MailFailure { return all[:min(len(all), 20)] }

// selected reads which mails an act is about.
func (v *view) selected(q url.Values) (ids []string, f *pb.MailFilter, err error) {
	if id := q.Get("id"); id != "" {
		return []string{id}, nil, nil
	}
	if f, err = v.filterOf(q); err != nil {
		return nil, nil, err
	}
	if proto.Equal(f, &pb.MailFilter{}) {
		return nil, nil, bad("filter", "%v", errNothing)
	}
	return nil, f, nil
}

// about says in words which mails an act is about.
func (v *view) about(q url.Values) (out []header, err error) {
	if q.Get("id") == "" {
		for _, k := range filterFields {
			for _, x := range q[k] {
				if x != "" {
					out = append(out, header{"All mails with " + k, x})
				}
			}
		}
		return out, nil
	}
	m, err := v.theMail(q)
	if err != nil {
		return nil, err
	}
	return aboutMail(m), nil
}

// aboutMail says in words which mail an act is about.
func aboutMail(m *pb.Mail) (out []header) {
	for _, h := range []header{{"Subject", m.Subject}, {"Reference", m.Reference}, {"To", recipients(m)}, {"State", strings.ReplaceAll(plain.Word(m.Status), "-", " ")}} {
		if h.Value != "" {
			out = append(out, h)
		}
	}
	if n := len(m.Recipients); n > 1 && len(out) > 1 {
		out[len(out)-2].Value += " and " + strconv.Itoa(n-1) + " more"
	}
	return out
}

// theMail is the mail that an act on one is about.
func (v *view) theMail(q url.Values) (*pb.Mail, error) {
	res, err := v.dispatch().GetMail(v.ctx(), &pb.GetMailRequest{Id: q.Get("id")})
	return res.GetMail(), err
}

func countUnknown(v *view, q url.Values) (*counted, error) {
	m, err := v.theMail(q)
	if err != nil {
		return nil, err
	}
	c := &counted{About: aboutMail(m)}
	for _, r := range m.Recipients {
		if r.Status == pb.RecipientResult_STATUS_UNKNOWN {
			if c.Count++; c.Count <= 10 {
				c.More = append(c.More, r.Address)
			}
		}
	}
	c.Text = "Of " + plural(c.Count, "recipient") + " the outcome is unknown."
	c.next = func(made *calls, why string) {
		made.note(pb.Dispatch_ResolveMail_FullMethodName, &pb.ResolveMailRequest{Id: m.Id, Resolution: pb.Resolution_RESOLUTION_DELIVERED, Reason: why})
	}
	return c, nil
}

func resolve(v *view, q, form url.Values) (*did, error) {
	n, ok := plain.FromWord(pb.Resolution(0), form.Get("resolution"))
	if !ok {
		return nil, bad("resolution", "is one of %s", strings.Join(plain.Words(pb.Resolution(0)), ", "))
	}
	_, err := v.dispatch().ResolveMail(v.ctx(), &pb.ResolveMailRequest{Id: q.Get("id"), Resolution: pb.Resolution(n), Reason: form.Get("reason")})
	return &did{done: "resolved", to: with("/mails/"+url.PathEscape(q.Get("id")), nil, "done", "resolved")}, err
}

func countResend(v *view, q url.Values) (*counted, error) {
	m, err := v.theMail(q)
	if err != nil {
		return nil, err
	}
	c := &counted{Count: 1, About: aboutMail(m), Text: "1 new mail would go to " + plural(int64(len(m.Recipients)), "recipient") + "."}
	only := ask{Name: "only", Label: "Only to", Kind: "choice", Choices: []choice{{"", "all of them", true}}}
	for i, r := range m.Recipients {
		if i < 50 {
			only.Choices = append(only.Choices, choice{Value: strconv.Itoa(i + 1), Label: plain.Text(r.Address, 100) + " (" + plain.Word(r.Status) + ")"})
		}
	}
	c.asks = []ask{{Name: "request", Kind: "hidden", Value: random()}}
	if len(m.Recipients) > 1 {
		c.asks = append(c.asks, only)
	}
	c.next = func(made *calls, why string) {
		made.note(pb.Dispatch_ResendMail_FullMethodName, &pb.ResendMailRequest{Id: m.Id, Reason: why})
	}
	return c, nil
}

func resend(v *view, q, form url.Values) (*did, error) {
	req := &pb.ResendMailRequest{Id: q.Get("id"), ToInstead: strings.TrimSpace(form.Get("to")), Reason: form.Get("reason"), RequestId: form.Get("request")}
	if only := form.Get("only"); only != "" {
		m, err := v.theMail(q)
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(only)
		if err != nil || n < 1 || n > len(m.Recipients) {
			return nil, bad("only", "is none of its recipients")
		}
		req.OnlyRecipients = []string{m.Recipients[n-1].Address}
	}
	res, err := v.dispatch().ResendMail(v.ctx(), req)
	if err != nil {
		return nil, err
	}
	return &did{done: "resent", to: with("/mails/"+res.Mail.Id, nil, "done", "resent")}, nil
}

// actsOnMail are what the state of a mail permits.
func (v *view) actsOnMail(m *pb.Mail) []link {
	q := url.Values{"id": {m.Id}}
	out := []link{{Label: "Message and parts", Address: "/mails/" + m.Id + "/message"}}
	if m.FinishTime != nil {
		return append(out, v.links(q, "resend", "keep")...)
	}
	switch m.Status {
	case pb.MailStatus_MAIL_STATUS_HELD:
		out = append(out, recommend(v.links(q, "release", "cancel"))...)
	case pb.MailStatus_MAIL_STATUS_UNKNOWN:
		out = append(out, recommend(v.links(q, "resolve", "retry", "cancel"))...)
	case pb.MailStatus_MAIL_STATUS_FAILED:
		out = append(out, recommend(v.links(q, "retry", "cancel"))...)
	default:
		out = append(out, v.links(q, "retry", "hold", "cancel")...)
	}
	if m.Status != pb.MailStatus_MAIL_STATUS_UNKNOWN && !m.PossibleDuplicate {
		out = append(out, v.moveLink(q)...)
	}
	return append(out, v.links(q, "resend", "keep")...)
}

// recommend marks the first act as what a person most likely wants next.
func recommend(l []link) []link {
	if len(l) > 0 && !l[0].Risky {
		l[0].Main = true
	}
	return l
}

// actsOnFilter are the acts on all mails of a filter.
func (v *view) actsOnFilter(q url.Values) []link {
	return append(v.links(q, "hold", "release", "retry", "cancel"), v.moveLink(q)...)
}

// actsOnSelection are the acts on what a search selects, when they can be said by a filter.
func (v *view) actsOnSelection(q url.Values, journal string) []link {
	f := url.Values{}
	for _, k := range filterFields {
		for _, x := range q[k] {
			if x != "" {
				f.Add(k, x)
			}
		}
	}
	for _, k := range append(searchFields, "q") {
		if q.Get(k) != "" && f.Get(k) == "" {
			return nil
		}
	}
	if len(f) == 0 || journal == "archive" {
		return nil
	}
	return v.actsOnFilter(f)
}

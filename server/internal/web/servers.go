package web

import (
	"net/url"
	"sort"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// serversBody is what the list of mail servers shows.
type serversBody struct {
	Servers []*pb.MailServer
	Deleted bool
	Next    string
	Admin   bool
}

// servers lists mail servers.
func servers(v *view) error {
	q := v.r.URL.Query()
	req := &pb.ListMailServersRequest{ShowDeleted: q.Get("deleted") != "", PageSize: pageSize, PageToken: q.Get("page")}
	if t := q.Get("team"); t != "" {
		req.Team = &t
	}
	res, err := v.servers().ListMailServers(v.ctx(), req)
	if err != nil {
		return err
	}
	b := serversBody{Servers: res.MailServers, Deleted: req.ShowDeleted, Admin: v.can(pb.Role_ROLE_ADMIN)}
	if res.NextPageToken != "" {
		b.Next = with("/servers", q, "page", res.NextPageToken)
	}
	return v.render("servers", "Mail servers", b)
}

// serverBody is what the view of one mail server shows.
type serverBody struct {
	Server *pb.MailServer
	// NextStep is what a person does now; empty = nothing.
	NextStep string
	Facts    []header // what is set, beyond the first lines
	Secrets  []header // which are stored
	Admin    bool
	Sends    bool
	Acts     []link
	Test     *testBody
}

// server shows one mail server.
func server(v *view) error { return v.showServer(v.r.PathValue("name"), nil) }

func (v *view) showServer(name string, test *testBody) error {
	res, err := v.servers().GetMailServer(v.ctx(), &pb.GetMailServerRequest{Name: name})
	if err != nil {
		return err
	}
	m := res.MailServer
	b := serverBody{Server: m, Admin: v.can(pb.Role_ROLE_ADMIN), Sends: v.can(pb.Role_ROLE_SEND), Test: test}
	for _, f := range serverFields {
		if text := f.text(m); text != "" && text != "0" && text != "false" && f.Kind != "area" && !f.head {
			label := f.Label
			if f.Kind == "check" {
				label, text = f.Short, "yes"
			}
			b.Facts = append(b.Facts, header{label, text})
		}
	}
	b.NextStep = v.nextStepOf(m)
	if m.Smtp != nil {
		b.Secrets = append(b.Secrets, header{"Password", stored(m.Smtp.HasPassword)})
		if o := m.Smtp.Oauth2; o != nil {
			b.Secrets = append(b.Secrets, header{"Client secret", stored(o.HasClientSecret)}, header{"Refresh token", stored(o.HasRefreshToken)}, header{"Key of a service account", stored(o.HasServiceAccountKey)})
		}
	}
	b.Acts = v.actsOnServer(m)
	return v.render("server", m.Name, b)
}

// stored says whether a secret is.
func stored(is bool) string {
	if is {
		return "stored"
	}
	return "none"
}

// nextStepOf says what a person does about a mail server that sends nothing.
func (v *view) nextStepOf(m *pb.MailServer) string {
	switch {
	case m.DeleteTime != nil:
		return "It is deleted and takes no mail. “Undelete” brings it back."
	case m.Status == pb.MailServer_STATUS_UNAVAILABLE:
		return "It is switched off: no mail is taken for it. “Change” makes it available."
	case v.pausedNow(m.PauseUntil):
		return "It takes mail and sends none meanwhile. “Resume” ends the pause."
	case m.GetHealth().GetState() == pb.Health_STATE_SUSPENDED:
		return "Sessions with it fail, so it is left alone for a while. “Test” shows at which step, and what to do about it."
	}
	return ""
}

// testBody is how a test went.
type testBody struct {
	*pb.TestMailServerResponse
	Steps []step
	Draft bool // of what is not saved
}

// step is a step of a test, with its facts in order.
type step struct {
	*pb.TestStep
	Facts []header
}

// maxFacts is how many facts of a step are shown.
const maxFacts = 6

// testTime is what a test may take: less than a view.
const testTime = viewTime - 5e9

// test tries a mail server: a saved one, a form, or a saved one with what the form changes.
func test(v *view) error {
	form := v.r.PostForm
	req := &pb.TestMailServerRequest{Name: form.Get("saved"), ProbeRecipient: form.Get("probe"), Timeout: durationpb.New(testTime)}
	draft := form.Get("draft") != ""
	if draft {
		m, paths, err := v.formServer(form)
		if err != nil {
			return v.showForm(form, words_(err))
		}
		if req.Name == "" || len(paths) > 0 {
			req.MailServer = m
		}
	}
	res, err := v.servers().TestMailServer(v.ctx(), req)
	if err != nil && draft && refused(err) {
		return v.showForm(form, words_(err))
	}
	if err != nil {
		return err
	}
	t := &testBody{TestMailServerResponse: res, Draft: draft}
	for _, x := range res.Steps {
		s := step{TestStep: x}
		for k, f := range x.Facts {
			if len(s.Facts) == maxFacts {
				break
			}
			s.Facts = append(s.Facts, header{k, f})
		}
		sort.Slice(s.Facts, func(i, j int) bool { return s.Facts[i].Name < s.Facts[j].Name })
		t.Steps = append(t.Steps, s)
	}
	if draft {
		return v.showFormWith(form, nil, t)
	}
	return v.showServer(req.Name, t)
}

// pausedNow reports whether a mail server is paused.
func (v *view) pausedNow(t *timestamppb.Timestamp) bool {
	return t != nil && t.AsTime().After(v.page.cfg.Now())
}

// serverPath is the address of a mail server's view.
func serverPath(name string, done string) string {
	return with("/servers/"+url.PathEscape(name), nil, "done", done)
}

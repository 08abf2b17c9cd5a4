package web

import (
	"net/url"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

func serverActs() []*act {
	admin := pb.Role_ROLE_ADMIN
	return []*act{
		{name: "pause", label: "Pause", role: admin, reason: true, do: pause, asks: []ask{{Name: "for", Label: "For how long", Hint: "90m, 2d", Value: "1h", Kind: "text", Required: true}},
			count: onServer("It takes mail and sends none meanwhile.", func(m *pb.MailServer) updating { return pausing(m, time.Now().Add(time.Hour)) })},
		{name: "resume", label: "Resume", role: admin, reason: true,
			count: onServer("It sends again, beginning with what waits.", func(m *pb.MailServer) updating { return pausing(m, time.Time{}) }),
			do: func(v *view, q, form url.Values) (*did, error) {
				return v.update(pausing(&pb.MailServer{Name: q.Get("name")}, time.Time{}), form, "resumed")
			}},
		{name: "default", label: "Make it the default", role: admin, reason: true, count: onServer("Mail that names no mail server goes through it.", nil, func(c *calls, m *pb.MailServer, why string) {
			c.note(pb.MailServerAdmin_SetDefaultMailServer_FullMethodName, &pb.SetDefaultMailServerRequest{Name: m.Name, Reason: why})
		}), do: func(v *view, q, form url.Values) (*did, error) {
			_, err := v.servers().SetDefaultMailServer(v.ctx(), &pb.SetDefaultMailServerRequest{Name: q.Get("name"), Reason: form.Get("reason")})
			return &did{done: "default", to: serverPath(q.Get("name"), "default")}, err
		}},
		{name: "delete", label: "Delete", role: admin, reason: true, danger: true, asks: []ask{{Name: "force", Label: "Also with unfinished mail, which is held then, and although others fall back to it", Kind: "check"}},
			count: onServer("Its name stays taken. It can be undeleted.", nil, func(c *calls, m *pb.MailServer, why string) {
				c.note(pb.MailServerAdmin_DeleteMailServer_FullMethodName, &pb.DeleteMailServerRequest{Name: m.Name, Reason: why})
			}), do: func(v *view, q, form url.Values) (*did, error) {
				_, err := v.servers().DeleteMailServer(v.ctx(), &pb.DeleteMailServerRequest{Name: q.Get("name"), Force: form.Get("force") == "true", Reason: form.Get("reason")})
				return &did{done: "deleted", to: serverPath(q.Get("name"), "deleted")}, err
			}},
		{name: "undelete", label: "Undelete", role: admin, reason: true, count: onServer("It can be used again.", nil, func(c *calls, m *pb.MailServer, why string) {
			c.note(pb.MailServerAdmin_UndeleteMailServer_FullMethodName, &pb.UndeleteMailServerRequest{Name: m.Name, Reason: why})
		}), do: func(v *view, q, form url.Values) (*did, error) {
			_, err := v.servers().UndeleteMailServer(v.ctx(), &pb.UndeleteMailServerRequest{Name: q.Get("name"), Reason: form.Get("reason")})
			return &did{done: "undeleted", to: serverPath(q.Get("name"), "undeleted")}, err
		}},
		{name: "run", label: "Send now", button: "Send %s now", role: admin, count: countRun, do: run},
		{name: "test-mail", label: "Send a test mail", role: pb.Role_ROLE_SEND, reason: true, count: countTestMail, do: sendTestMail,
			asks: []ask{{Name: "to", Label: "To", Kind: "text", Required: true, Hint: "an address of your own"}}},
	}
}

// updating makes the request that changes a mail server.
type updating func(only bool, why string) *pb.UpdateMailServerRequest

// pausing pauses a mail server until then; the zero time ends a pause.
func pausing(m *pb.MailServer, until time.Time) updating {
	return func(only bool, why string) *pb.UpdateMailServerRequest {
		s := &pb.MailServer{Name: m.Name}
		if !until.IsZero() {
			s.PauseUntil = timestamppb.New(until)
		}
		return &pb.UpdateMailServerRequest{MailServer: s, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"pause_until"}}, ValidateOnly: only, Reason: why}
	}
}

// onServer counts what an act on a mail server is about: itself, and the mail that it has.
func onServer(text string, change func(*pb.MailServer) updating, next ...func(*calls, *pb.MailServer, string)) func(*view, url.Values) (*counted, error) {
	return func(v *view, q url.Values) (*counted, error) {
		res, err := v.servers().GetMailServer(v.ctx(), &pb.GetMailServerRequest{Name: q.Get("name")})
		if err != nil {
			return nil, err
		}
		m := res.MailServer
		stats, err := v.dispatch().GetQueueStats(v.ctx(), &pb.GetQueueStatsRequest{MailServer: m.Name})
		if err != nil {
			return nil, err
		}
		var unfinished int64
		for _, s := range states(stats.Counts) {
			unfinished += s.Count
		}
		c := &counted{Count: 1, Text: "1 mail server: " + m.Name + ". " + text, More: []string{"It has " + plural(unfinished, "unfinished mail") + ", and " + plural(stats.Waiting, "mail") + " due now."}}
		if change != nil {
			update := change(m)
			if _, err := v.servers().UpdateMailServer(v.ctx(), update(true, "")); err != nil {
				return nil, err
			}
			c.next = func(made *calls, why string) {
				made.note(pb.MailServerAdmin_UpdateMailServer_FullMethodName, update(false, why))
			}
		}
		for _, f := range next {
			c.next = func(made *calls, why string) { f(made, m, why) }
		}
		return c, nil
	}
}

func (v *view) update(change updating, form url.Values, done string) (*did, error) {
	req := change(false, form.Get("reason"))
	_, err := v.servers().UpdateMailServer(v.ctx(), req)
	return &did{done: done, to: serverPath(req.MailServer.Name, done)}, err
}

func pause(v *view, q, form url.Values) (*did, error) {
	d, err := plain.Span(strings.TrimSpace(form.Get("for")))
	if err != nil || d <= 0 {
		return nil, bad("for", "is a time such as 90m or 2d")
	}
	return v.update(pausing(&pb.MailServer{Name: q.Get("name")}, v.page.cfg.Now().Add(d)), form, "paused")
}

// countRun counts what waits for the batch, of one mail server or of all.
func countRun(v *view, q url.Values) (*counted, error) {
	name := q.Get("name")
	stats, err := v.dispatch().GetQueueStats(v.ctx(), &pb.GetQueueStatsRequest{MailServer: name})
	if err != nil {
		return nil, err
	}
	text := plural(stats.Waiting, "mail") + " due now would leave, instead of with the next batch."
	if stats.Waiting == 0 {
		text = "No mail is due now."
	}
	return &counted{Count: stats.Waiting, Mails: true, Text: text, next: func(made *calls, _ string) {
		made.note(pb.MailServerAdmin_RunBatch_FullMethodName, &pb.RunBatchRequest{MailServer: name})
	}}, nil
}

func run(v *view, q, _ url.Values) (*did, error) {
	_, err := v.servers().RunBatch(v.ctx(), &pb.RunBatchRequest{MailServer: q.Get("name")})
	return &did{done: "ran", to: with("/queue", nil, "server", q.Get("name"), "done", "ran")}, err
}

// testMail is a mail by which a person sees that a mail server works.
func testMail(server, to, request, why string, only bool) *pb.SendMailRequest {
	return &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: server, Reference: "test mail", Labels: map[string]string{"test-mail": plain.Text(why, 250)}}, RequestId: request, ValidateOnly: only,
		Message: &pb.MailMessage{To: []string{to}, Subject: "Test mail through " + server, Text: "This is a test mail of maildispatch through the mail server " + server + ".\n"}}
}

func countTestMail(v *view, q url.Values) (*counted, error) {
	res, err := v.servers().GetMailServer(v.ctx(), &pb.GetMailServerRequest{Name: q.Get("name")})
	if err != nil {
		return nil, err
	}
	m := res.MailServer
	text := "1 mail would leave now through " + m.Name + "."
	if m.Mode == pb.Mode_MODE_DAEMON {
		text = "1 mail would be queued for " + m.Name + ", and leave with the next batch."
	}
	return &counted{Count: 1, Text: text, asks: []ask{{Name: "request", Kind: "hidden", Value: random()}}, next: func(made *calls, why string) {
		made.note(pb.Dispatch_SendMail_FullMethodName, testMail(m.Name, "you@shop.example", "", why, false))
	}}, nil
}

func sendTestMail(v *view, q, form url.Values) (*did, error) {
	to, name := strings.TrimSpace(form.Get("to")), q.Get("name")
	if _, err := v.dispatch().SendMail(v.ctx(), testMail(name, to, "", form.Get("reason"), true)); err != nil {
		return nil, err
	}
	res, err := v.dispatch().SendMail(v.ctx(), testMail(name, to, form.Get("request"), form.Get("reason"), false))
	if err != nil {
		return nil, err
	}
	return &did{done: "test-mail", to: with("/mails/"+res.MailId, nil, "done", "test-mail")}, nil
}

// actsOnServer are what the state of a mail server permits.
func (v *view) actsOnServer(m *pb.MailServer) (out []link) {
	q := url.Values{"name": {m.Name}}
	if m.DeleteTime != nil {
		return v.links(q, "undelete")
	}
	if v.can(pb.Role_ROLE_ADMIN) {
		out = append(out, link{Label: "Change", Address: with("/server/edit", q)})
	}
	out = append(out, v.links(q, "test-mail", "run")...)
	if v.pausedNow(m.PauseUntil) {
		out = append(out, v.links(q, "resume")...)
	} else {
		out = append(out, v.links(q, "pause")...)
	}
	if !m.GetIsDefault() {
		out = append(out, v.links(q, "default")...)
	}
	return append(out, v.links(q, "delete")...)
}

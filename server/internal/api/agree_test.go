package api_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client/clienttest"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// agreement is a mail and what happens to it: its mode, kind and recipients' answers (a
// accepted, r refused for good, d for now, u no reply after the dot), then the calls. A word of
// letters makes the relay answer so from then on.
type agreement struct{ mail, steps string }

// The service in memory, which callers test with, has to make the same of each of them.
var agreements = []agreement{
	// One attempt, in both modes.
	{"php invoice a", "send"}, {"php invoice r", "send"}, {"php invoice d", "send"}, {"php invoice u", "send"}, {"php bulk u", "send"},
	{"php invoice ard", "send"}, {"php other rd", "send"}, {"php invoice ur", "send"},
	{"daemon bulk a", "send batch"}, {"daemon bulk r", "send batch"}, {"daemon bulk d", "send batch"}, {"daemon bulk u", "send batch"},
	{"daemon invoice u", "send batch"}, {"daemon work_order u", "send batch"}, {"daemon agent_message u", "send batch"},
	{"daemon bulk ard", "send batch"}, {"daemon bulk ar", "send batch"}, {"daemon invoice rd", "send batch"},
	{"daemon invoice ud", "send batch"}, {"daemon bulk ud", "send batch"}, {"daemon invoice ur", "send batch"},
	// What a batch leaves is not tried before its time.
	{"daemon bulk d", "send batch a batch"},
	// A person's word before the first attempt.
	{"daemon bulk a", "send hold batch release batch"}, {"daemon bulk a", "send cancel batch"}, {"daemon bulk a", "send hold cancel"},
	{"daemon bulk a", "send hold hold"}, {"daemon bulk a", "send release"}, {"daemon bulk a", "send retry batch"},
	// After a failure.
	{"php invoice r", "send retry a batch"}, {"php invoice d", "send retry batch"}, {"php invoice d", "send cancel retry"},
	{"php invoice ar", "send retry aa batch"}, {"php invoice r", "send hold"}, {"php invoice r", "send release"},
	{"daemon bulk ard", "send batch aaa retry batch"}, {"daemon bulk d", "send batch hold release"}, {"daemon bulk d", "send batch retry batch"},
	{"daemon bulk ad", "send batch hold release cancel"},
	// Where the outcome is unknown.
	{"php invoice u", "send delivered"}, {"php invoice u", "send not-delivered"}, {"php invoice u", "send resend a batch"},
	{"php invoice u", "send retry a batch"}, {"php invoice u", "send cancel"}, {"php invoice u", "send hold"},
	{"php invoice ur", "send delivered retry aa batch"}, {"php invoice ur", "send not-delivered"},
	{"daemon bulk u", "send batch delivered"}, {"daemon bulk u", "send batch cancel"}, {"daemon bulk u", "send batch hold release"},
	{"daemon bulk u", "send batch not-delivered"}, {"daemon bulk u", "send batch retry a batch"},
	{"daemon invoice ud", "send batch delivered"}, {"daemon invoice ud", "send batch not-delivered"},
	{"php invoice a", "send delivered"}, {"php invoice a", "send retry cancel hold release"},
}

// party is one of the two services.
type party struct {
	admin    pb.MailServerAdminClient
	dispatch pb.DispatchClient
	answer   func(to []string, letters string)
	id       string
}

// TestAgreesWithTheServiceInMemory: what becomes of a mail, step by step.
func TestAgreesWithTheServiceInMemory(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	letters := map[string]byte{} // by address
	relay := &smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		mu.Lock()
		defer mu.Unlock()
		switch c.Verb {
		case "RCPT":
			for to, letter := range letters {
				if strings.Contains(c.Arg, "<"+to+">") {
					switch letter {
					case 'r':
						return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n", Refuse: true}
					case 'd':
						return &smtpxtest.Action{Reply: "450 4.2.1 mailbox busy, try again later\r\n", Refuse: true}
					}
				}
			}
		case "DOT":
			for to, letter := range letters {
				if letter == 'u' && strings.Contains(c.Arg, to) {
					return &smtpxtest.Action{Close: true}
				}
			}
		}
		return nil
	}}
	r := newRig(t, storetest.SQLiteDSN(t), relay)
	service := &party{admin: r.admin, dispatch: r.dispatch, answer: func(to []string, ls string) {
		mu.Lock()
		defer mu.Unlock()
		for i, a := range to {
			letters[a] = ls[i]
		}
	}}
	fake := clienttest.New(t)
	conn, err := grpc.NewClient(clienttest.Target, fake.DialOption(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	outcomes := map[byte]clienttest.Outcome{'a': clienttest.Accepted, 'r': clienttest.Refused, 'd': clienttest.Deferred, 'u': clienttest.NoReply}
	memory := &party{admin: pb.NewMailServerAdminClient(conn), dispatch: pb.NewDispatchClient(conn), answer: func(to []string, ls string) {
		for i, a := range to {
			fake.Answer(a, outcomes[ls[i]])
		}
	}}
	for i, x := range agreements {
		t.Run(x.mail+", "+x.steps, func(t *testing.T) {
			f := strings.Fields(x.mail)
			// A mail server of its own: a relay that breaks off must not rest for the next.
			name := fmt.Sprintf("s%d", i)
			mode, kind := pb.Mode(pb.Mode_value["MODE_"+strings.ToUpper(f[0])]), pb.Kind(pb.Kind_value["KIND_"+strings.ToUpper(f[1])])
			var to []string
			for p := range f[2] {
				to = append(to, fmt.Sprintf("u%d-%d@y.example", i, p))
			}
			both := []*party{service, memory}
			for _, p := range both {
				m := &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, From: "shop@x.example", Mode: mode,
					Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(r.relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE}}
				if _, err := p.admin.CreateMailServer(ctx(t), &pb.CreateMailServerRequest{MailServer: m}); err != nil {
					t.Fatal(err)
				}
				p.answer(to, f[2])
			}
			for _, step := range strings.Fields(x.steps) {
				want, got := service.do(ctx(t), step, name, kind, to), memory.do(ctx(t), step, name, kind, to)
				if got != want {
					t.Fatalf("after %s the service in memory has\n %s, the service\n %s", step, got, want)
				}
			}
		})
	}
}

// do lets a step happen and says what the mail is then.
func (p *party) do(c context.Context, step, server string, kind pb.Kind, to []string) string {
	said := ""
	note := func(changed int32, err error) {
		said = fmt.Sprintf("changed %d %s", changed, status.Code(err))
	}
	ids := []string{p.id}
	resolve := func(to pb.Resolution) {
		_, err := p.dispatch.ResolveMail(c, &pb.ResolveMailRequest{Id: p.id, Resolution: to, Reason: "asked them"})
		said = status.Code(err).String()
	}
	switch step {
	case "send":
		st, err := p.dispatch.Send(c, &pb.SendRequest{Options: &pb.SendOptions{MailServer: server, Kind: kind}, Message: &pb.MailMessage{To: to, Subject: "s", Text: strings.Join(to, " ")}})
		if err != nil {
			return err.Error()
		}
		for {
			ev, err := st.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err.Error()
			}
			p.id = ev.MailId
			said += " " + strings.TrimPrefix(strings.Split(fmt.Sprintf("%T", ev.Event), "_")[1], "")
		}
	case "batch":
		n, err := p.admin.RunBatch(c, &pb.RunBatchRequest{MailServer: server, Wait: true})
		said = fmt.Sprintf("%d claimed %d sent %d partial %d deferred %d failed %d unknown %s", n.GetClaimed(), n.GetSent(), n.GetPartiallySent(), n.GetDeferred(), n.GetFailed(),
			n.GetUnknown(), status.Code(err))
	case "hold":
		res, err := p.dispatch.HoldMails(c, &pb.HoldMailsRequest{Ids: ids})
		note(res.GetChanged(), err)
	case "release":
		res, err := p.dispatch.ReleaseMails(c, &pb.ReleaseMailsRequest{Ids: ids})
		note(res.GetChanged(), err)
	case "retry":
		res, err := p.dispatch.RetryMails(c, &pb.RetryMailsRequest{Ids: ids})
		note(res.GetChanged(), err)
	case "cancel":
		res, err := p.dispatch.CancelMails(c, &pb.CancelMailsRequest{Ids: ids})
		note(res.GetChanged(), err)
	case "delivered":
		resolve(pb.Resolution_RESOLUTION_DELIVERED)
	case "not-delivered":
		resolve(pb.Resolution_RESOLUTION_NOT_DELIVERED)
	case "resend":
		resolve(pb.Resolution_RESOLUTION_RESEND)
	default:
		p.answer(to, step)
	}
	got, err := p.dispatch.GetMail(c, &pb.GetMailRequest{Id: p.id})
	if err != nil {
		return err.Error()
	}
	m := got.Mail
	var results strings.Builder
	for _, x := range m.Recipients {
		results.WriteString(strings.ToLower(strings.TrimPrefix(x.Status.String(), "STATUS_"))[:1])
	}
	var outcomes []string
	for _, a := range m.Attempts {
		outcomes = append(outcomes, a.Outcome)
	}
	return fmt.Sprintf("%s [%s] %s, attempts %d %v, possible_duplicate %v, due %v, finished %v", m.Status, results.String(), said, m.AttemptCount, outcomes,
		m.PossibleDuplicate, m.DueTime != nil, m.FinishTime != nil)
}

// TestAgreesOnMailServers: what CreateMailServer, UpdateMailServer and DeleteMailServer answer,
// call by call: repeated calls, names that are taken, and fallbacks.
func TestAgreesOnMailServers(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	fake := clienttest.New(t)
	conn, err := grpc.NewClient(clienttest.Target, fake.DialOption(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	server := func(name string, change ...func(*pb.MailServer)) *pb.MailServer {
		m := &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, From: "shop@x.example", Mode: pb.Mode_MODE_PHP,
			Smtp: &pb.Smtp{Host: "mail.x.example", Port: 465, Encryption: pb.Smtp_ENCRYPTION_TLS, Username: "u", Password: "p"}}
		for _, c := range change {
			c(m)
		}
		return m
	}
	password := func(m *pb.MailServer) { m.Smtp.Password = "another" }
	port := func(m *pb.MailServer) { m.Smtp.Port = 587 }
	team := func(m *pb.MailServer) { m.Team = "red" }
	fallback := func(name string) func(*pb.MailServer) { return func(m *pb.MailServer) { m.Fallback = name } }
	for _, call := range []struct {
		name string
		do   func(a pb.MailServerAdminClient) (*pb.MailServer, bool, error)
	}{
		{"create", create(server("main"), "r1", false)},
		{"the same again", create(server("main"), "r1", false)},
		{"with another password", create(server("main", password), "r1", false)},
		{"with another port", create(server("main", port), "r1", false)},
		{"with another name", create(server("other"), "r1", false)},
		{"of another team with the same request_id", create(server("red", team), "r1", false)},
		{"the name, without a request_id", create(server("main"), "", false)},
		{"the name, with another request_id", create(server("main"), "r2", false)},
		{"checked only, a name that is taken", create(server("main"), "r1", true)},
		{"checked only", create(server("third"), "r3", true)},
		{"created after it was checked", create(server("third"), "r3", false)},
		{"changed", change(&pb.MailServer{Name: "main", DisplayName: "Main"})},
		{"the first again, after a change", create(server("main"), "r1", false)},
		{"a fallback", change(&pb.MailServer{Name: "main", Fallback: "third"})},
		{"a fallback that has one", change(&pb.MailServer{Name: "red", Fallback: "main"})},
		{"a chain", change(&pb.MailServer{Name: "third", Fallback: "main"})},
		{"a fallback of another team", change(&pb.MailServer{Name: "third", Fallback: "red"})},
		{"a fallback that is not there", create(server("fourth", fallback("nobody")), "r4", false)},
		{"a fallback of the system", create(server("fourth", team, fallback("third")), "r4", false)},
		{"a fallback is deleted", remove("third", false)},
		{"a fallback is deleted by force", remove("third", true)},
		{"that had it, changed", change(&pb.MailServer{Name: "main", DisplayName: "Main 2"})},
		{"a deleted fallback", change(&pb.MailServer{Name: "main", Fallback: "third"})},
		{"a deleted one again", create(server("third"), "r3", false)},
	} {
		say := func(a pb.MailServerAdminClient) string {
			m, duplicate, err := call.do(a)
			if err != nil {
				return status.Code(err).String() + " " + reasonOf(err)
			}
			return fmt.Sprintf("%s %q port %d password %v fallback %q version %s deleted %v, duplicate %v", m.Name, m.DisplayName, m.Smtp.Port, m.Smtp.HasPassword, m.Fallback,
				m.Etag, m.DeleteTime != nil, duplicate)
		}
		if want, got := say(r.admin), say(pb.NewMailServerAdminClient(conn)); got != want {
			t.Errorf("%s: the service in memory answers\n %s, the service\n %s", call.name, got, want)
		}
	}
}

type adminCall = func(a pb.MailServerAdminClient) (*pb.MailServer, bool, error)

func create(m *pb.MailServer, id string, validateOnly bool) adminCall {
	return func(a pb.MailServerAdminClient) (*pb.MailServer, bool, error) {
		res, err := a.CreateMailServer(context.Background(), &pb.CreateMailServerRequest{MailServer: m, RequestId: id, ValidateOnly: validateOnly})
		if validateOnly && err == nil {
			res.MailServer.Etag = "" // it has none yet
		}
		return res.GetMailServer(), res.GetDuplicate(), err
	}
}

func change(m *pb.MailServer) adminCall {
	return func(a pb.MailServerAdminClient) (*pb.MailServer, bool, error) {
		res, err := a.UpdateMailServer(context.Background(), &pb.UpdateMailServerRequest{MailServer: m})
		return res.GetMailServer(), false, err
	}
}

func remove(name string, force bool) adminCall {
	return func(a pb.MailServerAdminClient) (*pb.MailServer, bool, error) {
		res, err := a.DeleteMailServer(context.Background(), &pb.DeleteMailServerRequest{Name: name, Force: force})
		return res.GetMailServer(), false, err
	}
}

// reasonOf is the reason of an error, and of a bad request the fields.
func reasonOf(err error) string {
	text := ""
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			text += d.Reason
		case *errdetails.BadRequest:
			for _, v := range d.FieldViolations {
				text += " " + v.Field
			}
		}
	}
	return text
}

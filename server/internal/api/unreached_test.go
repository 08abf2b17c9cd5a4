package api_test

import (
	"net"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestNoPortScanner: whatever a port answers before it has greeted, who is no system
// administrator reads the same in Test, in php mode, in the journals and of the mail server.
func TestNoPortScanner(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	admin, _ := r.token("t1", store.RoleAdmin)
	root, _ := r.token("", store.RoleAdmin, system)
	ports := []struct {
		name string
		port int
		tls  bool
	}{
		{"refused-port", closedPort(t), false},
		{"hangs-up-01", answers(t, ""), false},
		{"other-proto1", answers(t, "SSH-2.0-OpenSSH_9.2\r\n"), false},
		{"busy-server1", answers(t, "421 4.3.2 busy\r\n"), false},
		{"unwelcoming1", answers(t, "554 5.7.1 listed at rbl.example\r\n"), false},
		{"no-tls-here1", answers(t, "220 hello\r\n"), true},
		{"tls-refused1", closedPort(t), true},
	}
	seen := map[string][]string{}
	for _, p := range ports {
		r.server(p.name, pb.Mode_MODE_PHP, func(m *pb.MailServer) {
			m.Team, m.Smtp.Port = "t1", int32(p.port)
			if p.tls {
				m.Smtp.Encryption = pb.Smtp_ENCRYPTION_TLS
			}
		})
		told := r.tell(admin, p.name)
		for what, text := range told {
			seen[what] = append(seen[what], text)
		}
		for what, text := range r.tell(root, p.name) {
			if text == told[what] {
				t.Errorf("%s, %s: a system administrator reads no more than others: %s", p.name, what, text)
			}
		}
	}
	for what, texts := range seen {
		for i, text := range texts {
			// TLS has a step more
			if first := texts[0]; !ports[i].tls && text != first {
				t.Errorf("%s: %s reads\n%s\n%s\n%s", what, ports[i].name, text, ports[0].name, first)
			}
		}
		if n := len(texts); texts[n-1] != texts[n-2] {
			t.Errorf("%s: %s reads\n%s\n%s\n%s", what, ports[n-1].name, texts[n-1], ports[n-2].name, texts[n-2])
		}
	}
}

// tell is what a caller is told of a mail server that cannot be reached, without names, ids and
// times.
func (r *guardedRig) tell(secret, server string) map[string]string {
	r.t.Helper()
	c := with(ctx(r.t), secret)
	out := map[string]string{}
	note := func(what string, m proto.Message, err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatalf("%s: %v", what, err)
		}
		m = proto.Clone(m)
		forget(m.ProtoReflect())
		out[what] = strings.ReplaceAll(strings.ReplaceAll(protojson.Format(m), server, "X"), "  ", " ")
	}
	d, a := pb.NewDispatchClient(r.conn), pb.NewMailServerAdminClient(r.conn)
	tested, err := a.TestMailServer(c, &pb.TestMailServerRequest{Name: server})
	note("Test", tested, err)
	sent, err := d.SendMail(c, &pb.SendMailRequest{Options: &pb.SendOptions{Team: "t1", MailServer: server}, Message: message("a@y.example")})
	note("SendMail", sent, err)
	mail, err := d.GetMail(c, &pb.GetMailRequest{Id: sent.GetMailId()})
	note("GetMail", mail, err)
	found, err := d.FindMails(c, &pb.FindMailsRequest{Id: sent.GetMailId()})
	note("FindMails", found, err)
	due, err := d.ListDueOutMails(c, &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{MailServer: server}, PageSize: 1})
	if err == nil {
		due.NextPageToken = ""
	}
	note("ListDueOutMails", due, err)
	stream, err := d.Send(c, &pb.SendRequest{Options: &pb.SendOptions{Team: "t1", MailServer: server}, Message: message("a@y.example")})
	if err != nil {
		r.t.Fatal(err)
	}
	var last *pb.SendResponse
	for {
		ev, err := stream.Recv()
		if err != nil {
			break
		}
		last = ev
	}
	note("Send", last, nil)
	got, err := a.GetMailServer(c, &pb.GetMailServerRequest{Name: server})
	if err != nil {
		r.t.Fatal(err)
	}
	note("GetMailServer", got.MailServer.Health, nil)
	return out
}

// forget takes out of a message what is another one each time.
func forget(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				forget(v.List().Get(i).Message())
			}
		case f.Message() != nil && f.Message().FullName().Parent() == "google.protobuf":
			m.Clear(f)
		case f.Message() != nil:
			forget(v.Message())
		case slices.Contains([]protoreflect.Name{"mail_id", "id", "message_id", "batch_id", "cursor"}, f.Name()):
			m.Clear(f)
		case f.Kind() == protoreflect.StringKind && !f.IsList():
			text := v.String()
			if before, rest, ok := strings.Cut(text, "suspended until "); ok { // a time
				_, after, _ := strings.Cut(rest, "Z: ")
				m.Set(f, protoreflect.ValueOfString(before+"suspended: "+after))
			}
		}
		return true
	})
}

func closedPort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// answers is a port that says one thing and hangs up.
func answers(t *testing.T, text string) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(text)) // who has hung up hears nothing
			_ = c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

package api_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// fuzzed is a service whose callers say anything. Team t1 has a secret word in its mail and in
// its mail server; what is answered to anybody else must not have it.
type fuzzed struct {
	*guardedRig
	canary  string
	methods []fuzzMethod
	callers []fuzzCaller
	mail    string // of t1, held
	times   int
	logged  int // of the log, looked at already
}

type fuzzMethod struct {
	name    string
	streams bool // of requests
	policy  *access.Policy
	seed    []byte
}

type fuzzCaller struct {
	team   string
	role   pb.Role
	secret string
}

// FuzzCalls: whatever bytes a caller sends to whatever method through the real server, nothing
// panics, nothing is INTERNAL, nobody does what its role does not say, and another team's mail
// and mail servers are neither told nor changed. The seeds are requests that store mail.
func FuzzCalls(f *testing.F) {
	z := newFuzzed(f)
	for i, m := range z.methods {
		// without a token, of another role, of the right role, and of the system
		for _, who := range []int{0, 5, 6, 7} {
			f.Add(byte(i), byte(who), m.seed, []byte(nil))
		}
		f.Add(byte(i), byte(7), []byte("\xff\xff\xff\xff garbage"), []byte(nil))
		if m.streams {
			f.Add(byte(i), byte(4), m.seed, m.seed)
		}
	}
	f.Fuzz(func(t *testing.T, method, who byte, first, second []byte) {
		z.t = t
		if z.times++; z.times%100 == 0 {
			z.repair()
		}
		m, c := z.methods[int(method)%len(z.methods)], z.callers[int(who)%len(z.callers)]
		foreign := c.team != "t1" && c.team != "*"
		var before string
		if foreign {
			before = z.state()
		}
		answers, err := z.say(m, c.secret, first, second)
		z.judge(m, c, err)
		if !foreign {
			return
		}
		for _, a := range answers {
			if bytes.Contains(a, []byte(z.canary)) {
				t.Errorf("%s tells %s of another team: %q", m.name, c.team, a)
			}
		}
		if err != nil && strings.Contains(err.Error(), z.canary) {
			t.Errorf("%s tells %s of another team: %v", m.name, c.team, err)
		}
		if after := z.state(); after != before {
			t.Errorf("%s by %s has changed another team's:\n%s\n%s", m.name, c.team, before, after)
		}
	})
}

func newFuzzed(f *testing.F) *fuzzed {
	z := &fuzzed{guardedRig: newGuardedRig(f, storetest.SQLiteDSN(f)), canary: "canary-" + rand.Text()}
	z.txt.Store(lookupTXT(func(string) ([]string, error) { return nil, errors.New("no such name") }))
	z.callers = []fuzzCaller{{team: ""}} // without a token
	for _, team := range []string{"t1", "t2"} {
		z.server("server-of-"+team, pb.Mode_MODE_DAEMON, func(m *pb.MailServer) {
			if m.Team = team; team == "t1" {
				m.DisplayName = z.canary
			}
		})
		for role, name := range map[store.Role]pb.Role{store.RoleSend: pb.Role_ROLE_SEND, store.RoleRead: pb.Role_ROLE_READ, store.RoleAdmin: pb.Role_ROLE_ADMIN} {
			secret, _ := z.token(team, role, func(x *store.Token) { x.Name = team })
			z.callers = append(z.callers, fuzzCaller{team, name, secret})
		}
	}
	slices.SortFunc(z.callers, func(a, b fuzzCaller) int {
		return strings.Compare(a.team+a.role.String(), b.team+b.role.String())
	})
	root, _ := z.token("", store.RoleAdmin, system)
	z.callers = append(z.callers, fuzzCaller{"*", pb.Role_ROLE_ADMIN, root})
	admin := func(team string) context.Context {
		i := slices.IndexFunc(z.callers, func(c fuzzCaller) bool { return c.team == team && c.role == pb.Role_ROLE_ADMIN })
		return with(context.Background(), z.callers[i].secret)
	}
	secret := message("a@y.example")
	secret.Subject, secret.Text = z.canary, z.canary
	sent, err := pb.NewDispatchClient(z.conn).SendMail(admin("t1"), &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "server-of-t1", Hold: true, Reference: z.canary}, Message: secret})
	if err != nil {
		f.Fatal(err)
	}
	z.mail = sent.MailId
	s, err := pb.NewDispatchClient(z.conn).SendStream(admin("t2"))
	if err := firstErr(err, s.Send(&pb.SendStreamRequest{Options: &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "server-of-t2", Hold: true}},
		Items: []*pb.BatchItem{{Message: message("a@y.example")}}}), s.CloseSend()); err != nil {
		f.Fatal(err)
	}
	held, err := s.Recv()
	if err != nil {
		f.Fatal(err)
	}
	own := strings.NewReplacer(`"t1"`, `"t2"`, "$server", "server-of-t2", "$mail", held.MailId, "$batch", held.BatchId, "$token", "nothing", `, "validate_only": true`, "")
	services := z.grpc.GetServiceInfo()
	for _, service := range slices.Sorted(maps.Keys(services)) {
		for _, m := range services[service].Methods {
			d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + m.Name))
			if err != nil {
				f.Fatal(err)
			}
			in := dynamicpb.NewMessage(d.(protoreflect.MethodDescriptor).Input())
			if err := protojson.Unmarshal([]byte(own.Replace(requests[service[strings.LastIndex(service, ".")+1:]+"/"+m.Name])), in); err != nil {
				f.Fatalf("%s: %v", m.Name, err)
			}
			seed, err := proto.Marshal(in)
			if err != nil {
				f.Fatal(err)
			}
			name := "/" + service + "/" + m.Name
			pol, _ := access.PolicyOf(name)
			z.methods = append(z.methods, fuzzMethod{name, m.IsClientStream, pol, seed})
		}
	}
	return z
}

// answered keeps answers as they came.
type answered struct{}

func (answered) Marshal(v any) (mem.BufferSlice, error) { return rawCodec{}.Marshal(v) }
func (answered) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
func (answered) Name() string { return "proto" }

// say makes a call and hears at most a few answers.
func (z *fuzzed) say(m fuzzMethod, secret string, requests ...[]byte) (answers [][]byte, err error) {
	c, cancel := context.WithTimeout(with(context.Background(), secret), time.Minute)
	defer cancel()
	s, err := z.conn.NewStream(c, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, m.name, grpc.ForceCodecV2(answered{}))
	if err != nil {
		return nil, err
	}
	for i, r := range requests {
		if i > 0 && (!m.streams || r == nil) {
			continue
		}
		if err := s.SendMsg(r); err != nil && err != io.EOF {
			return nil, err
		}
	}
	if err := s.CloseSend(); err != nil {
		return nil, err
	}
	watches := strings.Contains(m.name, "Watch")
	for len(answers) < 100 {
		var b []byte
		if err := s.RecvMsg(&b); err == io.EOF {
			return answers, nil
		} else if err != nil {
			return answers, err
		}
		answers = append(answers, b)
		if watches {
			return answers, nil // it goes on for ever
		}
	}
	return answers, nil
}

// judge holds the end of a call against who made it.
func (z *fuzzed) judge(m fuzzMethod, c fuzzCaller, err error) {
	z.t.Helper()
	code := status.Code(err)
	may := m.policy.GetOpen() || c.secret != "" && len(m.policy.GetRoles()) == 0 ||
		(c.role == pb.Role_ROLE_ADMIN || slices.Contains(m.policy.GetRoles(), c.role)) && (c.team == "*" || !m.policy.GetSystem())
	switch {
	case m.policy.GetOpen():
	case c.secret == "" && code != codes.Unauthenticated:
		z.t.Errorf("%s without a token: got %v, want UNAUTHENTICATED", m.name, err)
	case c.secret != "" && !may && code != codes.PermissionDenied:
		z.t.Errorf("%s by %v of %s: got %v, want PERMISSION_DENIED", m.name, c.role, c.team, err)
	}
	if code == codes.Internal || code == codes.Unknown || code == codes.DataLoss || code == codes.DeadlineExceeded {
		z.t.Errorf("%s by %v of %s: got %v", m.name, c.role, c.team, err)
	}
	log := z.log.String()
	if news := log[z.logged:]; strings.Contains(news, "level=ERROR") || strings.Contains(news, "panic") {
		z.t.Errorf("the log says\n%s", news)
	}
	if z.logged = len(log); len(log) > 1<<20 {
		z.log.forget()
		z.logged = 0
	}
}

// state is what t1 has, in so far as others could change it.
func (z *fuzzed) state() string {
	z.t.Helper()
	everything := store.Scope{All: true}
	s, err := z.store.Server(context.Background(), everything, "server-of-t1")
	if err != nil {
		z.t.Fatal(err)
	}
	m, err := z.store.Mail(context.Background(), everything, uuid.MustParse(z.mail))
	if err != nil {
		z.t.Fatal(err)
	}
	return fmt.Sprint(s.Version, s.DeleteTime, m.Status, m.LastError, m.MailServer, m.Attempts)
}

// repair gives t2 its mail server back as it was, so that mail can be stored again.
func (z *fuzzed) repair() {
	z.t.Helper()
	for _, team := range []string{"t1", "t2"} {
		c, name := context.Background(), "server-of-"+team
		// names are never free again, and so this is the mail server of the beginning
		// refused unless it is deleted
		_, _ = z.admin.UndeleteMailServer(c, &pb.UndeleteMailServerRequest{Name: name})
		word := ""
		if team == "t1" {
			word = z.canary
		}
		_, err := z.admin.UpdateMailServer(c, &pb.UpdateMailServerRequest{UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name", "mode", "from", "status", "pause_until", "limits", "smtp.host", "smtp.port", "smtp.encryption", "smtp.username"}},
			MailServer: &pb.MailServer{Name: name, Team: team, Type: pb.MailServer_TYPE_SMTP, From: "Shop <shop@x.example>", Mode: pb.Mode_MODE_DAEMON, DisplayName: word,
				Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(z.relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE}}})
		if err != nil {
			z.t.Fatal(err)
		}
	}
}

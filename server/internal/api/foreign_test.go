package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// taken are the fields in which a name that somebody else has is told: names of mail servers
// are unique, so that who wants one has to hear that it is taken.
var taken = []string{"MailServerAdmin/CreateMailServer mail_server.name"}

// TestForeignIsNotThere: what belongs to another team, or to another sender of the same team,
// is told by no word and no time from what does not exist. That is asked of every field of
// every rpc that names something, found in the descriptors: the rest of the request is the
// caller's own and right.
func TestForeignIsNotThere(t *testing.T) {
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	theirs, _ := r.token("t1", store.RoleAdmin)
	another := func(x *store.Token) { x.Name = "another" }
	own := map[string]string{}
	names := map[protoreflect.Name][2]string{} // somebody's, and nobody's
	for team, secret := range map[string]string{"t1": theirs, "t2": ""} {
		if secret == "" {
			secret, _ = r.token(team, store.RoleAdmin, another)
		}
		server := "server-of-" + team
		r.server(server, pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Team = team })
		mail, batch := r.held(secret, server)
		upload := r.uploaded(secret)
		if team == "t2" {
			own = map[string]string{"$server": server, "$mail": mail, "$batch": batch, "$token": "nothing", `"t1"`: `"t2"`}
			continue
		}
		got, err := pb.NewDispatchClient(r.conn).GetMail(with(ctx(t), secret), &pb.GetMailRequest{Id: mail})
		if err != nil {
			t.Fatal(err)
		}
		const noID = "01890000-0000-7000-8000-000000000000"
		named := [2]string{server, "server-of-no"}
		names = map[protoreflect.Name][2]string{"team": {"t1", "t9"}, "teams": {"t1", "t9"}, "mail_server": named, "mail_servers": named, "fallback": named, "name": named,
			"id": {mail, noID}, "ids": {mail, noID}, "batch_id": {batch, noID}, "upload_id": {upload, noID}, "message_id": {got.Mail.MessageId, "<none@x.example>"}}
	}
	admin, _ := r.token("t2", store.RoleAdmin, another)
	sender, _ := r.token("t1", store.RoleSend, another)
	services := r.grpc.GetServiceInfo()
	asked := 0
	for _, service := range slices.Sorted(maps.Keys(services)) {
		if !strings.HasPrefix(service, "maildispatch.") {
			continue
		}
		for _, m := range services[service].Methods {
			short := service[strings.LastIndex(service, ".")+1:] + "/" + m.Name
			d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + m.Name))
			if err != nil {
				t.Fatal(err)
			}
			method := d.(protoreflect.MethodDescriptor)
			for _, path := range naming(method.Input(), names) {
				where := short + " " + pathText(path)
				if slices.Contains(taken, where) {
					continue
				}
				asked++
				for who, c := range map[string]struct{ secret, team string }{"another team's administrator": {admin, "t2"}, "another sender": {sender, "t1"}} {
					field := path[len(path)-1].Name()
					if c.team == "t1" && field != "id" && field != "ids" && field != "batch_id" {
						continue // the team's own
					}
					replace := maps.Clone(own)
					if c.team == "t1" {
						replace[`"t1"`] = `"t1"`
						replace["$server"] = "server-of-t1"
					}
					text := requests[short]
					for from, to := range replace {
						text = strings.ReplaceAll(text, from, to)
					}
					r.alike(where+" by "+who, method, c.secret, text, path, names[field])
				}
			}
		}
	}
	if asked < 60 {
		t.Errorf("got %d fields that name something, want at least 60", asked)
	}
}

// naming are the paths of a request's fields that name something.
func naming(d protoreflect.MessageDescriptor, names map[protoreflect.Name][2]string) (out [][]protoreflect.FieldDescriptor) {
	var walk func(d protoreflect.MessageDescriptor, at []protoreflect.FieldDescriptor)
	walk = func(d protoreflect.MessageDescriptor, at []protoreflect.FieldDescriptor) {
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			path := append(slices.Clone(at), f)
			switch {
			case f.IsMap():
			case f.Message() != nil && strings.HasPrefix(string(f.Message().FullName()), "maildispatch."):
				walk(f.Message(), path)
			case f.Kind() == protoreflect.StringKind && (names[f.Name()] != [2]string{}):
				out = append(out, path)
			}
		}
	}
	walk(d, nil)
	return out
}

func pathText(path []protoreflect.FieldDescriptor) string {
	var words []string
	for _, f := range path {
		words = append(words, string(f.Name()))
	}
	return strings.Join(words, ".")
}

// set puts a value at a path, into the first of what is repeated. ids and filter exclude each
// other.
func set(m protoreflect.Message, path []protoreflect.FieldDescriptor, value string) {
	f := path[0]
	for ids, filter := range map[protoreflect.Name]protoreflect.Name{"ids": "filter", "filter": "ids"} {
		if other := m.Descriptor().Fields().ByName(filter); f.Name() == ids && other != nil {
			m.Clear(other)
		}
	}
	v := protoreflect.ValueOfString(value)
	switch {
	case len(path) == 1 && f.IsList():
		m.Mutable(f).List().Append(v)
	case len(path) == 1:
		m.Set(f, v)
	case f.IsList():
		l := m.Mutable(f).List()
		if l.Len() == 0 {
			l.AppendMutable()
		}
		set(l.Get(0).Message(), path[1:], value)
	default:
		set(m.Mutable(f).Message(), path[1:], value)
	}
}

// alike asks with somebody's name and with nobody's and compares the answers: code, text,
// details, what is in it, and how long it took.
func (r *guardedRig) alike(where string, m protoreflect.MethodDescriptor, secret, request string, path []protoreflect.FieldDescriptor, name [2]string) {
	r.t.Helper()
	var took [2]time.Duration
	// The least of some is what the work takes. A busy machine needs more of them, asked in
	// turn; what differs by its work differs after any number.
	for n := 0; n < 3 || n < 200 && (took[0]-took[1]).Abs() > 5*time.Millisecond; n++ {
		var told [2]string
		for i := range name {
			in := dynamicpb.NewMessage(m.Input())
			if err := protojson.Unmarshal([]byte(request), in); err != nil {
				r.t.Fatalf("%s: %v", where, err)
			}
			set(in, path, name[i])
			begin := time.Now()
			told[i] = strings.ReplaceAll(strings.ReplaceAll(r.answer(m, secret, in), name[i], "X"), "<X>", "X")
			if d := time.Since(begin); n == 0 || d < took[i] {
				took[i] = d
			}
		}
		if told[0] != told[1] {
			r.t.Errorf("%s: of somebody's it says\n%s\nof nobody's\n%s", where, told[0], told[1])
			return
		}
	}
	if d := (took[0] - took[1]).Abs(); d > 5*time.Millisecond {
		r.t.Errorf("%s: somebody's took %v, nobody's %v, want within 5 ms", where, took[0], took[1])
	}
}

// answer is the first answer to a call, or its error with all details, as text.
func (r *guardedRig) answer(m protoreflect.MethodDescriptor, secret string, in *dynamicpb.Message) string {
	r.t.Helper()
	out := dynamicpb.NewMessage(m.Output())
	c, cancel := context.WithCancel(with(ctx(r.t), secret))
	defer cancel()
	s, err := r.conn.NewStream(c, &grpc.StreamDesc{ClientStreams: m.IsStreamingClient(), ServerStreams: m.IsStreamingServer()}, fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name()))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
		r.t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		r.t.Fatal(err)
	}
	switch err := s.RecvMsg(out); {
	case errors.Is(err, io.EOF):
		return "nothing"
	case err != nil:
		return prototext.Format(status.Convert(err).Proto())
	}
	forget(out)
	return prototext.Format(out)
}

// uploaded is the id of a small upload.
func (r *guardedRig) uploaded(secret string) string {
	r.t.Helper()
	up, err := pb.NewDispatchClient(r.conn).UploadAttachment(with(ctx(r.t), secret))
	if err == nil {
		err = up.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{Filename: "a.txt"}}})
	}
	if err == nil {
		err = up.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: []byte("x")}})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := up.CloseAndRecv()
	if err != nil {
		r.t.Fatal(err)
	}
	return got.UploadId
}

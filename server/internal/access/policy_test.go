package access

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// everyService is a server with all services that there are.
func everyService() *grpc.Server {
	g := grpc.NewServer()
	pb.RegisterMailServerAdminServer(g, pb.UnimplementedMailServerAdminServer{})
	pb.RegisterDispatchServer(g, pb.UnimplementedDispatchServer{})
	pb.RegisterAccessAdminServer(g, pb.UnimplementedAccessAdminServer{})
	healthpb.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g)
	return g
}

func TestEveryMethodHasAPolicy(t *testing.T) {
	t.Parallel()
	if err := CheckServices(everyService().GetServiceInfo()); err != nil {
		t.Fatal(err)
	}
	err := CheckServices(map[string]grpc.ServiceInfo{"maildispatch.v1.Dispatch": {Methods: []grpc.MethodInfo{{Name: "Send"}, {Name: "SendTwice"}}}})
	if err == nil || !strings.Contains(err.Error(), "/maildispatch.v1.Dispatch/SendTwice") {
		t.Errorf("a method without a policy: got %v, want it named", err)
	}
}

// TestDecisionIsByTheWholeName: what is almost the name of a method has no policy.
func TestDecisionIsByTheWholeName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "/", "maildispatch.v1.Dispatch/Send", "//maildispatch.v1.Dispatch/Send", "/maildispatch.v1.Dispatch/send",
		"/maildispatch.v1.Dispatch/Send/", "/maildispatch.v1.Dispatch//Send", "/maildispatch.v1.dispatch/Send", "/maildispatch.v1.Dispatch/Send "} {
		if _, ok := PolicyOf(name); ok {
			t.Errorf("%q has a policy", name)
		}
	}
}

// TestEveryTeamIsLookedAt: a request that says a team says so in its policy, or a caller could
// name another's.
func TestEveryTeamIsLookedAt(t *testing.T) {
	t.Parallel()
	// A saved mail server keeps its team: another one in the request is refused as immutable.
	saved := []string{"UpdateMailServer"}
	files := []protoreflect.FileDescriptor{pb.File_maildispatch_v1_dispatch_proto, pb.File_maildispatch_v1_mail_server_admin_proto}
	seen := 0
	for _, f := range files {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				p, _ := proto.GetExtension(m.Options(), pb.E_Policy).(*pb.Policy)
				var found []string
				teams(m.Input(), "", &found)
				if len(found) > 0 && !slices.Contains(saved, string(m.Name())) {
					seen++
					if !slices.Equal(found, []string{p.GetTeam()}) {
						t.Errorf("%s: the request has the teams %v, the policy says %q", m.FullName(), found, p.GetTeam())
					}
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("got %d requests with a team, want at least 10: the walk is broken", seen)
	}
}

func teams(m protoreflect.MessageDescriptor, prefix string, out *[]string) {
	if m.ParentFile().Package() != "maildispatch.v1" {
		return
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		switch {
		case f.Name() == "team" && f.Kind() == protoreflect.StringKind:
			*out = append(*out, prefix+"team")
		case f.Message() != nil && !f.IsList() && !f.IsMap():
			teams(f.Message(), prefix+string(f.Name())+".", out)
		}
	}
}

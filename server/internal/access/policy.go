package access

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Policy says who may call one method.
type Policy struct {
	*pb.Policy
	// The fields that lead to the team in the request; empty = the team stands in the object.
	path []protoreflect.FieldDescriptor
}

// adminOnly reports whether only an administrator may call the method.
func (p *Policy) adminOnly() bool {
	return p.GetSystem() || slices.Equal(p.GetRoles(), []pb.Role{pb.Role_ROLE_ADMIN})
}

// others are the methods of services that are not ours. Health is what load balancers ask, and
// says nothing of mail. Reflection shows the schema, to whoever is known.
var others = map[string]*pb.Policy{
	"/grpc.health.v1.Health/Check":                                   {Open: true},
	"/grpc.health.v1.Health/Watch":                                   {Open: true},
	"/grpc.health.v1.Health/List":                                    {Open: true},
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {Lasting: true},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {Lasting: true},
}

// anybody are the methods of ours that every known caller may call: their line is empty, and
// so it is said here that it is meant.
var anybody = []string{"/maildispatch.v1.AccessAdmin/WhoAmI", "/maildispatch.v1.AccessAdmin/GetServiceInfo"}

// policies has a line for each method that may be called at all, by its full name. It is
// written before main and only read afterwards.
var policies = readPolicies()

func readPolicies() map[string]*Policy {
	out := map[string]*Policy{}
	for name, p := range others {
		out[name] = &Policy{Policy: p}
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("maildispatch.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				name := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
				p, _ := proto.GetExtension(m.Options(), pb.E_Policy).(*pb.Policy)
				if p == nil && slices.Contains(anybody, name) {
					p = &pb.Policy{}
				}
				if p == nil || len(p.GetRoles()) == 0 && !slices.Contains(anybody, name) {
					continue // CheckServices says so
				}
				if path, ok := teamPath(m.Input(), p.GetTeam()); ok {
					out[name] = &Policy{Policy: p, path: path}
				}
			}
		}
		return true
	})
	return out
}

// teamPath finds the fields of a path such as "options.team"; false when it leads nowhere.
func teamPath(m protoreflect.MessageDescriptor, path string) ([]protoreflect.FieldDescriptor, bool) {
	if path == "" {
		return nil, true
	}
	var out []protoreflect.FieldDescriptor
	names := strings.Split(path, ".")
	for i, name := range names {
		if m == nil {
			return nil, false
		}
		f := m.Fields().ByName(protoreflect.Name(name))
		last := i == len(names)-1
		if f == nil || f.IsList() || f.IsMap() || last != (f.Kind() == protoreflect.StringKind) {
			return nil, false
		}
		out, m = append(out, f), f.Message()
	}
	return out, true
}

// PolicyOf is the policy of a method by its full name, "/package.Service/Method". Without one,
// nobody may call the method.
func PolicyOf(method string) (*Policy, bool) {
	p, ok := policies[method]
	return p, ok
}

// CheckServices says which of the methods that a server offers have no policy.
func CheckServices(services map[string]grpc.ServiceInfo) error {
	for _, service := range slices.Sorted(maps.Keys(services)) {
		for _, m := range services[service].Methods {
			if name := "/" + service + "/" + m.Name; policies[name] == nil {
				return fmt.Errorf("access: %s has no policy, or one whose team is not in its request", name)
			}
		}
	}
	return nil
}

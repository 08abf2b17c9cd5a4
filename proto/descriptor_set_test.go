package proto_test

import (
	"os"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestDescriptorSet: the descriptor set that callers in other languages generate from is the
// schema that the service speaks, and needs no other file.
func TestDescriptorSet(t *testing.T) {
	b, err := os.ReadFile("maildispatch.binpb")
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(b, set); err != nil {
		t.Fatal(err)
	}
	if _, err := protodesc.NewFiles(set); err != nil {
		t.Fatalf("the set does not stand alone: %v", err)
	}
	files, _ := schema(t)
	for _, f := range files {
		i := slices.IndexFunc(set.File, func(d *descriptorpb.FileDescriptorProto) bool { return d.GetName() == f.Path() })
		if i < 0 {
			t.Errorf("%s is not in the set", f.Path())
			continue
		}
		if want, got := elements(protodesc.ToFileDescriptorProto(f)), elements(set.File[i]); !slices.Equal(got, want) {
			t.Errorf("%s in the set is another one: run go generate ./proto", f.Path())
		}
	}
}

// elements are the messages, enums and services of a file with their fields, methods and
// options, as they are sent, in order. What only says how a name is spelled in JSON is left
// out: not every compiler writes it.
func elements(f *descriptorpb.FileDescriptorProto) []string {
	var out []string
	add := func(m protoreflect.ProtoMessage) {
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		out = append(out, string(b))
	}
	var messages func([]*descriptorpb.DescriptorProto)
	messages = func(ms []*descriptorpb.DescriptorProto) {
		for _, m := range ms {
			for _, x := range m.Field {
				x.JsonName = nil
			}
			messages(m.NestedType)
		}
	}
	messages(f.MessageType)
	for _, x := range f.Extension {
		x.JsonName = nil
	}
	for _, m := range f.MessageType {
		add(m)
	}
	for _, e := range f.EnumType {
		add(e)
	}
	for _, s := range f.Service {
		add(s)
	}
	for _, x := range f.Extension {
		add(x)
	}
	return out
}

package budget

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestEveryListHasALimit: no repeated field that a caller can fill is without a limit, and no
// limit is of a field that is not there.
func TestEveryListHasALimit(t *testing.T) {
	found := map[protoreflect.FullName]bool{}
	var walk func(d protoreflect.MessageDescriptor)
	walk = func(d protoreflect.MessageDescriptor) {
		if found[d.FullName()] {
			return
		}
		found[d.FullName()] = true
		for i := range d.Fields().Len() {
			fd := d.Fields().Get(i)
			if fd.Cardinality() == protoreflect.Repeated {
				if found[fd.FullName()] = true; Limit(fd.FullName()) == 0 {
					t.Errorf("%s has no limit", fd.FullName())
				}
			}
			if fd.Message() != nil && !fd.IsMap() {
				walk(fd.Message())
			}
		}
		planOf(d) // panics when there is more to count than it has room for
	}
	for _, file := range []protoreflect.FileDescriptor{pb.File_maildispatch_v1_dispatch_proto, pb.File_maildispatch_v1_mail_server_admin_proto,
		pb.File_maildispatch_v1_access_proto} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				walk(methods.Get(j).Input())
			}
		}
	}
	for name := range limits {
		if !found[name] {
			t.Errorf("%s has a limit and is no field of a request", name)
		}
	}
}

func decoded[M proto.Message](t *testing.T, b []byte, m M) M {
	t.Helper()
	if err := decode(mem.BufferSlice{mem.SliceBuffer(slices.Clone(b))}, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCut: what lies within the limits is decoded as it is. Beyond them one entry more is left.
func TestCut(t *testing.T) {
	names := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("n%d", i))
		}
		return out
	}
	pairs := func(n int) map[string]string {
		out := map[string]string{}
		for _, k := range names(n) {
			out[k] = "v"
		}
		return out
	}
	t.Run("within the limits", func(t *testing.T) {
		m := &pb.SendRequest{RequestId: "r", Options: &pb.SendOptions{Labels: pairs(33)}, Message: &pb.MailMessage{To: names(1001), Headers: pairs(51), Text: "t",
			Attachments: make([]*pb.Attachment, 101)}}
		for i := range m.Message.Attachments {
			m.Message.Attachments[i] = &pb.Attachment{Filename: fmt.Sprint(i), Content: []byte("x")}
		}
		b := marshal(t, m)
		if got := decoded(t, b, &pb.SendRequest{}); !proto.Equal(got, m) {
			t.Error("a request within the limits was changed")
		}
		again := &pb.SendRequest{} // cutting changes nothing either where nothing lies beyond
		if err := proto.Unmarshal(planOf(m.ProtoReflect().Descriptor()).cut(b), again); err != nil || !proto.Equal(again, m) {
			t.Errorf("cut changed a request within the limits: %v", err)
		}
	})
	t.Run("beyond them", func(t *testing.T) {
		b := marshal(t, &pb.SendRequest{RequestId: "r", Options: &pb.SendOptions{Labels: pairs(100)},
			Message: &pb.MailMessage{To: names(5000), Headers: pairs(300), Text: "t"}})
		got := decoded(t, b, &pb.SendRequest{})
		if len(got.Message.To) != 1001 || len(got.Message.Headers) != 51 || len(got.Options.Labels) != 33 || got.Message.Text != "t" || got.RequestId != "r" {
			t.Errorf("got %d to, %d headers, %d labels, want one more than the limits and the rest as it was", len(got.Message.To), len(got.Message.Headers), len(got.Options.Labels))
		}
	})
	t.Run("only the item that is too long", func(t *testing.T) {
		long := &pb.BatchItem{RequestId: "long", Variables: pairs(5000), Message: &pb.MailMessage{To: []string{"a"}}}
		short := &pb.BatchItem{RequestId: "short", Variables: pairs(3), Message: &pb.MailMessage{To: []string{"b"}}}
		got := decoded(t, marshal(t, &pb.SendBatchRequest{Items: []*pb.BatchItem{short, long, short}}), &pb.SendBatchRequest{})
		if len(got.Items) != 3 || len(got.Items[1].Variables) != 101 || got.Items[1].RequestId != "long" || !proto.Equal(got.Items[2], short) {
			t.Errorf("got %d items, %d variables", len(got.Items), len(got.Items[1].Variables))
		}
	})
	t.Run("a message in parts", func(t *testing.T) {
		var b []byte
		for i := range 3000 {
			b = append(b, marshal(t, &pb.SendRequest{Message: &pb.MailMessage{To: []string{fmt.Sprint(i)}}})...)
		}
		if got := decoded(t, b, &pb.SendRequest{}); len(got.Message.To) != 1001 || got.Message.To[1000] != "1000" {
			t.Errorf("got %d recipients, want 1001 in their order", len(got.Message.To))
		}
	})
	t.Run("packed numbers and single ones", func(t *testing.T) {
		sts := make([]pb.MailStatus, 40)
		for i := range sts {
			sts[i] = pb.MailStatus(300 + i) // of two octets
		}
		packed := marshal(t, &pb.MailFilter{Statuses: sts})
		var single []byte
		for _, s := range sts {
			single = protowire.AppendVarint(protowire.AppendTag(single, 3, protowire.VarintType), uint64(s))
		}
		for name, b := range map[string][]byte{"packed": packed, "single": single, "both": append(slices.Clone(single[:30]), packed...)} {
			if got := decoded(t, b, &pb.MailFilter{}); len(got.Statuses) != 17 || got.Statuses[1] != 301 {
				t.Errorf("%s: got %v, want 17 of them", name, got.Statuses)
			}
		}
	})
	t.Run("the same key again and again", func(t *testing.T) {
		var b []byte
		for i := range 500 {
			b = append(b, marshal(t, &pb.SendOptions{Labels: map[string]string{fmt.Sprintf("k%d", i%3): fmt.Sprint(i)}})...)
		}
		if got := decoded(t, b, &pb.SendOptions{}); len(got.Labels) != 3 || got.Labels["k1"] != "499" {
			t.Errorf("got %v, want the last value of each key", got.Labels)
		}
	})
	t.Run("a message inside an option", func(t *testing.T) {
		b := marshal(t, &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "n", Annotations: pairs(90)}, UpdateMask: &fieldmaskpb.FieldMask{Paths: names(900)}})
		got := decoded(t, b, &pb.UpdateMailServerRequest{})
		if len(got.MailServer.Annotations) != 33 || len(got.UpdateMask.Paths) != 65 || got.MailServer.Name != "n" {
			t.Errorf("got %d annotations, %d paths", len(got.MailServer.Annotations), len(got.UpdateMask.Paths))
		}
	})
}

// FuzzCut: whatever the bytes are, cutting neither fails nor turns a message into garbage.
func FuzzCut(f *testing.F) {
	b, err := proto.Marshal(&pb.SendRequest{Options: &pb.SendOptions{Labels: map[string]string{"a": "b"}}, Message: &pb.MailMessage{To: []string{"a", "b"}, Attachments: []*pb.Attachment{{}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(strings.Repeat("\x12\x00", 300)))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := planOf((&pb.SendRequest{}).ProtoReflect().Descriptor())
		var whole, cut pb.SendRequest
		was := proto.Unmarshal(b, &whole)
		now := proto.Unmarshal(p.cut(b), &cut)
		if (was == nil) != (now == nil) {
			t.Fatalf("decoding said %v, and of what was left %v", was, now)
		}
		if was == nil && p.within(b) && !proto.Equal(&whole, &cut) {
			t.Error("a message within the limits was changed")
		}
	})
}

// BenchmarkDecode: what counting adds to decoding a batch's request.
func BenchmarkDecode(b *testing.B) {
	req := &pb.SendBatchRequest{}
	for i := range 256 {
		req.Items = append(req.Items, &pb.BatchItem{RequestId: fmt.Sprint(i), Variables: map[string]string{"name": "x", "sum": "12"}, Message: &pb.MailMessage{To: []string{"somebody@y.example"}}})
	}
	raw, err := proto.Marshal(req)
	if err != nil {
		b.Fatal(err)
	}
	p := planOf(req.ProtoReflect().Descriptor())
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			p.within(raw)
		}
	})
	b.Run("unmarshal", func(b *testing.B) {
		for b.Loop() {
			if err := proto.Unmarshal(raw, &pb.SendBatchRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

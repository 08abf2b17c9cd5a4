package web_test

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/html"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var grpcurlLine = regexp.MustCompile(`^grpcurl -plaintext (?:-H "authorization: Bearer \$\(cat 'token'\)" )?-d '(.*)' (\S+) (maildispatch\.v1\.\w+)/(\w+)$`)

// lines are the calls that a view shows.
func (p *page) lines() (out []string) {
	for x := range p.root.Descendants() {
		if x.Type == html.ElementNode && x.Data == "pre" {
			out = append(out, x.FirstChild.FirstChild.Data)
		}
	}
	return out
}

// grpcurl makes a call that a view shows, from the schema, as grpcurl does. It gives the first
// answer.
func (r *rig) grpcurl(text string) proto.Message {
	r.Helper()
	m := grpcurlLine.FindStringSubmatch(text)
	if m == nil || m[2] != r.addr {
		r.Fatalf("is no call of grpcurl: %s", text)
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(m[3] + "." + m[4]))
	if err != nil {
		r.Fatal(err)
	}
	method := d.(protoreflect.MethodDescriptor)
	var fields map[string]any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(m[1], `'\''`, "'")), &fields); err != nil {
		r.Fatalf("%v: %s", err, m[1])
	}
	if mask, is := fields["update_mask"].(map[string]any); is { // grpcurl takes it as a message
		var paths []string
		for _, p := range mask["paths"].([]any) {
			parts := strings.Split(p.(string), "_")
			for i := range parts[1:] {
				parts[i+1] = strings.ToUpper(parts[i+1][:1]) + parts[i+1][1:]
			}
			paths = append(paths, strings.Join(parts, ""))
		}
		fields["update_mask"] = strings.Join(paths, ",")
	}
	b, err := json.Marshal(fields)
	if err != nil {
		r.Fatal(err)
	}
	message := func(d protoreflect.MessageDescriptor) proto.Message {
		typ, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			r.Fatal(err)
		}
		return typ.New().Interface()
	}
	in, out := message(method.Input()), message(method.Output())
	if err := protojson.Unmarshal(b, in); err != nil {
		r.Fatalf("%s: %v", text, err)
	}
	ctx, cancel := context.WithTimeout(r.ctx(), time.Minute)
	defer cancel()
	s, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: method.IsStreamingServer()}, "/"+m[3]+"/"+m[4])
	if err == nil {
		err = s.SendMsg(in)
	}
	if err == nil {
		err = s.CloseSend()
	}
	if err == nil {
		err = s.RecvMsg(out)
	}
	if err != nil {
		r.Fatalf("%s: %v", text, err)
	}
	return out
}

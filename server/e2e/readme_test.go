package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// Where the guide for callers talks to.
const (
	readmeService = "127.0.0.1:50051"
	readmeRelay   = `"port": 2525`
	readmeUnknown = "01980000-0000-7000-8000-000000000000" // the mail to resolve
	// the change that is tried before it is saved
	readmeDeadPort = `"port": 587`
)

// TestREADME runs each grpcurl command of client/README.md, in its order, against a service
// that was just started, and wants what that guide promises. Like grpcurl it knows nothing of
// the schema but what server reflection tells.
func TestREADME(t *testing.T) {
	commands := grpcurlCommands(t)
	s := start(t, storetest.SQLiteDSN(t))
	unknown := readmeUnknown
	var back atomic.Bool // whether the relay takes the mail that it refuses at first
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "unlucky") && back.CompareAndSwap(false, true) {
			return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n"}
		}
		if c.Verb == "DOT" && strings.Contains(c.Arg, "silent@example.com") {
			return &smtpxtest.Action{Close: true}
		}
		return nil
	}}).Start(t)
	dead := deadPort(t)
	r := &reflector{t: t, conn: s.conn, files: map[string]*descriptorpb.FileDescriptorProto{}}
	promised := readmePromises(relay)
	for _, c := range commands {
		body := strings.NewReplacer(readmeUnknown, unknown, readmeRelay, fmt.Sprintf(`"port": %d`, relay.Port()), readmeDeadPort, fmt.Sprintf(`"port": %d`, dead)).Replace(c.body)
		name := c.method[strings.LastIndexByte(c.method, '/')+1:]
		if name == "TestMailServer" && body != c.body {
			name += " of a change"
		}
		if strings.Contains(body, "text/calendar") {
			name += " an invitation"
		}
		if strings.Contains(body, `"raw"`) {
			name += " a finished message"
		}
		answers, err := r.call(timeout(t), c.method, body)
		if err != nil {
			t.Fatalf("%s: %v\n%s", c.method, err, c.body)
		}
		check := promised[name]
		if check == nil {
			t.Errorf("the guide calls %s and this test does not know what it promises: say so in readmePromises", name)
			continue
		}
		check(t, answers)
		delete(promised, name)
		if name == "ReleaseMails" { // something to resolve
			unknown = s.mustSend(&pb.SendRequest{Message: message("silent@example.com")}).id
		}
		if name == "Send" {
			again, err := r.call(timeout(t), c.method, body)
			if err != nil || !isTrue(at(again[0], "accepted", "duplicate")) || len(relay.Mails()) != 1 {
				t.Errorf("the same request_id again: %v %v, the relay has %d mails", again, err, len(relay.Mails()))
			}
			// Something has to go wrong for the commands that look at it and send it again.
			if m := s.mustSend(&pb.SendRequest{Message: message("unlucky@example.com")}).mail; m.Status != pb.MailStatus_MAIL_STATUS_FAILED {
				t.Errorf("refused, and yet %v", m)
			}
		}
	}
	for name := range promised {
		t.Errorf("the guide does not show %s any more", name)
	}
	for _, symbol := range describedSymbols(t) {
		if _, err := r.file(timeout(t), symbol).FindDescriptorByName(protoreflect.FullName(symbol)); err != nil {
			t.Errorf("describe %s: %v", symbol, err)
		}
	}
}

// readmePromises says what the answer to each command of the guide has to be, beyond OK.
func readmePromises(relay *smtpxtest.Server) map[string]func(*testing.T, []map[string]any) {
	want := func(value any, path ...any) func(*testing.T, []map[string]any) {
		return func(t *testing.T, answers []map[string]any) {
			t.Helper()
			if got := at(answers[len(answers)-1], path...); got != value {
				t.Errorf("%v is %v, want %v: %v", path, got, value, answers)
			}
		}
	}
	both := func(fs ...func(*testing.T, []map[string]any)) func(*testing.T, []map[string]any) {
		return func(t *testing.T, answers []map[string]any) {
			t.Helper()
			for _, f := range fs {
				f(t, answers)
			}
		}
	}
	count := func(n int) func(*testing.T, []map[string]any) {
		return func(t *testing.T, answers []map[string]any) {
			t.Helper()
			if got, _ := at(answers[0], "mails").([]any); len(got) != n {
				t.Errorf("%d mails, want %d: %v", len(got), n, answers)
			}
		}
	}
	failingStep := func(t *testing.T, answers []map[string]any) {
		t.Helper()
		steps, _ := at(answers[0], "steps").([]any)
		if !slices.ContainsFunc(steps, func(s any) bool {
			return at(s, "outcome") == "OUTCOME_FAILED" && at(s, "kind") == "KIND_TCP" && at(s, "hint") != nil
		}) {
			t.Errorf("no failing step with a hint: %v", answers)
		}
	}
	sent := func(t *testing.T, answers []map[string]any) {
		t.Helper()
		m := relay.Mails()
		if len(m) != 1 || !slices.Equal(m[0].To, []string{"customer@example.com"}) || !bytes.Contains(m[0].Data, []byte("Invoice 4711")) || !bytes.Contains(m[0].Data, []byte("invoice.txt")) {
			t.Errorf("the relay has %v", m)
		}
	}
	return map[string]func(*testing.T, []map[string]any){
		"CreateMailServer":           both(want("main", "mail_server", "name"), want(true, "mail_server", "is_default"), want("MODE_PHP", "mail_server", "mode")),
		"TestMailServer":             both(want(true, "success"), want("connect success!", "message")),
		"TestMailServer of a change": both(want(nil, "success"), failingStep),
		"Send":                       both(want("MAIL_STATUS_SENT", "completed", "mail", "status"), sent),
		"Send a finished message":    both(want("main", "accepted", "mail_server"), want(nil, "mail_id")),
		"Send an invitation":         both(want("main", "accepted", "mail_server"), want(nil, "mail_id")),
		"ListArchivedMails":          both(count(1), want("INV-4711", "mails", 0, "reference"), want("MAIL_STATUS_SENT", "mails", 0, "status")),
		"ListDueOutMails":            both(count(1), want("unlucky@example.com", "mails", 0, "recipients", 0, "address"), want("MAIL_STATUS_FAILED", "mails", 0, "status")),
		"RetryMails":                 both(want(1.0, "matched"), want(1.0, "changed")),
		"RunBatch":                   both(want(1.0, "claimed"), want(1.0, "sent")),
		"HoldMails":                  both(want(nil, "failures")),
		"ReleaseMails":               both(want(nil, "failures")),
		"ResolveMail":                both(want("MAIL_STATUS_SENT", "mail", "status")),
		"SendBatch": both(want("spring", "batch_id"), want("3", "received"), want("2", "accepted"), want("1", "rejected"), want("2", "rejections", 0, "position"),
			want("variables.name", "rejections", 0, "violations", 0, "field")),
		"UploadAttachment": both(want("5", "size_bytes"), func(t *testing.T, a []map[string]any) {
			if at(a[0], "upload_id") == nil {
				t.Errorf("no id: %v", a)
			}
		}),
		"GetBatch": both(want("2", "batch", "mails"), want("2", "batch", "waiting"), want("2", "batch", "counts", "queued")),
		"WatchMails": both(func(t *testing.T, a []map[string]any) {
			if at(a[0], "cursor") == nil {
				t.Errorf("no cursor: %v", a)
			}
		}),
		"GetQueueStats":        both(want("2", "waiting"), want("PRIORITY_LOW", "lanes", 3, "priority"), want("2", "lanes", 3, "waiting")),
		"ResendMail":           both(want("MAIL_STATUS_QUEUED", "mail", "status"), want("the customer lost it", "mail", "resend_reason"), want("silent@example.com", "mail", "recipients", 0, "address")),
		"UpdateMailServer":     both(want("MODE_DAEMON", "mail_server", "mode"), want("everything", "mail_server", "display_name"), want("127.0.0.1", "mail_server", "smtp", "host")),
		"SetDefaultMailServer": both(want("main", "mail_server", "name"), want(true, "mail_server", "is_default")),
		"DeleteMailServer": both(want("main", "mail_server", "name"), func(t *testing.T, a []map[string]any) {
			if at(a[0], "mail_server", "delete_time") == nil {
				t.Errorf("not deleted: %v", a)
			}
		}),
		"UndeleteMailServer": both(want("main", "mail_server", "name"), want(nil, "mail_server", "delete_time")),
	}
}

// at walks JSON; nil where there is nothing.
func at(v any, path ...any) any {
	for _, p := range path {
		switch k := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[k]
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

func isTrue(v any) bool { b, _ := v.(bool); return b }

func deadPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// grpcurl is one command of the guide.
type grpcurl struct{ method, body string }

// The documents that show commands, from this folder.
const (
	callersGuide  = "../../client/README.md"
	configuration = "../CONFIGURATION.md"
)

func document(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// grpcurlCommands reads the sh blocks. What it cannot read it does not pass over: it fails.
func grpcurlCommands(t *testing.T) []grpcurl {
	t.Helper()
	var out []grpcurl
	parts := strings.Split(document(t, callersGuide), "```")
	if len(parts)%2 == 0 {
		t.Fatal("a code block does not end")
	}
	for i := 1; i < len(parts); i += 2 {
		block, isShell := strings.CutPrefix(parts[i], "sh\n")
		if !isShell {
			// bash is what the walk types and the reader does not see.
			if strings.Contains(block, "grpcurl ") && !strings.HasPrefix(block, "bash\n") {
				t.Errorf("grpcurl in a block that is not sh:\n%s", block)
			}
			continue
		}
		commands, err := shellWords(block)
		if err != nil {
			t.Fatalf("%v:\n%s", err, block)
		}
		n := 0
		for _, words := range commands {
			if words[0] != "grpcurl" {
				continue
			}
			c, err := parseGrpcurl(words[1:])
			if err != nil {
				t.Fatalf("%v: %q", err, words)
			}
			out = append(out, c)
			n++
		}
		if n != strings.Count(block, "grpcurl ") {
			t.Fatalf("not every grpcurl of this block is a command:\n%s", block)
		}
	}
	if len(out) == 0 {
		t.Fatal("the guide shows no grpcurl command")
	}
	return out
}

func parseGrpcurl(args []string) (grpcurl, error) {
	var c grpcurl
	var rest []string
	for len(args) > 0 {
		switch a := args[0]; {
		case a == "-d" && len(args) > 1:
			c.body, args = args[1], args[1:]
		case a == "-plaintext" || a == "-emit-defaults":
		case strings.HasPrefix(a, "-"):
			return c, fmt.Errorf("unknown flag %s", a)
		default:
			rest = append(rest, a)
		}
		args = args[1:]
	}
	if len(rest) != 2 || rest[0] != readmeService || !strings.Contains(rest[1], "/") {
		return c, fmt.Errorf("not %s and a method", readmeService)
	}
	c.method = rest[1]
	return c, nil
}

// shellWords splits a script into commands of words, as a shell would; of the shell's language
// it takes only words, quotes and continued lines.
func shellWords(script string) ([][]string, error) {
	var (
		all  [][]string
		cmd  []string
		word strings.Builder
		in   bool
	)
	endWord := func() {
		if in {
			cmd, in = append(cmd, word.String()), false
			word.Reset()
		}
	}
	endCommand := func() {
		endWord()
		if len(cmd) > 0 {
			all, cmd = append(all, cmd), nil
		}
	}
	for i := 0; i < len(script); i++ {
		switch c := script[i]; c {
		case '\\':
			if i++; i < len(script) && script[i] != '\n' {
				in = true
				word.WriteByte(script[i])
			}
		case '\'', '"':
			end := strings.IndexByte(script[i+1:], c)
			if end < 0 {
				return nil, errors.New("a quote does not end")
			}
			quoted := script[i+1 : i+1+end]
			if c == '"' && strings.ContainsAny(quoted, "$`\\") {
				return nil, errors.New("too clever a quote")
			}
			in = true
			word.WriteString(quoted)
			i += end + 1
		case '\n':
			endCommand()
		case ' ', '\t':
			endWord()
		case '#':
			if !in {
				for i+1 < len(script) && script[i+1] != '\n' {
					i++
				}
				continue
			}
			word.WriteByte(c)
		case '$', '`', '|', '&', ';', '<', '>', '(', ')', '*':
			return nil, fmt.Errorf("%q is more shell than this test knows", c)
		default:
			in = true
			word.WriteByte(c)
		}
	}
	endCommand()
	return all, nil
}

// describedSymbols are those the guide's prose shows with `grpcurl ... describe SYMBOL`.
func describedSymbols(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, m := range regexp.MustCompile("`grpcurl [^`]* describe ([a-zA-Z0-9_.]+)`").FindAllStringSubmatch(document(t, callersGuide), -1) {
		out = append(out, m[1])
	}
	if n := strings.Count(document(t, callersGuide), "`grpcurl "); n != len(out) {
		t.Errorf("the prose shows %d grpcurl commands, %d of them describe something", n, len(out))
	}
	return out
}

// reflector calls methods it learns of by server reflection, as grpcurl does.
type reflector struct {
	t     *testing.T
	conn  *grpc.ClientConn
	files map[string]*descriptorpb.FileDescriptorProto
}

// file asks for the file that declares symbol and for all it imports.
func (r *reflector) file(ctx context.Context, symbol string) *protoregistry.Files {
	r.t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	ask := func(q *reflectionpb.ServerReflectionRequest) {
		if err := stream.Send(q); err != nil {
			r.t.Fatal(err)
		}
		a, err := stream.Recv()
		if err != nil || a.GetErrorResponse() != nil {
			r.t.Fatalf("reflection of %s: %v %v", symbol, a, err)
		}
		for _, b := range a.GetFileDescriptorResponse().GetFileDescriptorProto() {
			f := &descriptorpb.FileDescriptorProto{}
			if err := proto.Unmarshal(b, f); err != nil {
				r.t.Fatal(err)
			}
			r.files[f.GetName()] = f
		}
	}
	ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol}})
	for missing := true; missing; {
		missing = false
		for _, f := range r.files {
			for _, d := range f.GetDependency() {
				if r.files[d] == nil {
					missing = true
					ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileByFilename{FileByFilename: d}})
				}
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		r.t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, f := range r.files {
		set.File = append(set.File, f)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		r.t.Fatal(err)
	}
	return files
}

// call makes one call of any kind with the JSON messages in body and gives the answers as JSON
// with the names of the schema, of a watch the first one: it does not end by itself.
func (r *reflector) call(ctx context.Context, method, body string) ([]map[string]any, error) {
	service, name, _ := strings.Cut(method, "/")
	files := r.file(ctx, service)
	d, err := files.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, err
	}
	sd, is := d.(protoreflect.ServiceDescriptor)
	if !is || sd.Methods().ByName(protoreflect.Name(name)) == nil {
		return nil, fmt.Errorf("%s is not a method", method)
	}
	md := sd.Methods().ByName(protoreflect.Name(name))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.conn.NewStream(ctx, &grpc.StreamDesc{StreamName: name, ClientStreams: md.IsStreamingClient(), ServerStreams: md.IsStreamingServer()}, "/"+method)
	if err != nil {
		return nil, err
	}
	types := dynamicpb.NewTypes(files)
	dec := json.NewDecoder(strings.NewReader(body))
	for {
		var one json.RawMessage
		if err := dec.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		m := dynamicpb.NewMessage(md.Input())
		if err := (protojson.UnmarshalOptions{Resolver: types}).Unmarshal(one, m); err != nil {
			return nil, err
		}
		if err := stream.SendMsg(m); err != nil {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var out []map[string]any
	for {
		m := dynamicpb.NewMessage(md.Output())
		if err := stream.RecvMsg(m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return out, err
		}
		b, err := protojson.MarshalOptions{Resolver: types, UseProtoNames: true}.Marshal(m)
		if err != nil {
			return out, err
		}
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			return out, err
		}
		if out = append(out, v); name == "WatchMails" {
			break
		}
	}
	if len(out) == 0 {
		return nil, errors.New("ended without an answer")
	}
	return out, nil
}

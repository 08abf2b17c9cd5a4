package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// task is what a support person wants: one command, and what has to be so afterwards.
type task struct {
	want   string
	args   []string
	code   int
	output []string           // parts of it
	effect func(t *testing.T) // nil = the task only looks, and
	shows  []string           // parts of what the calls of grpcurl answer
}

// TestSupportTasks: each task is one command over the real service.
func TestSupportTasks(t *testing.T) { newRig(t).byCommand(t) }

// TestSupportTasksByGrpcurl: what --grpcurl prints is at most two calls, and they have the same
// effect as the command. They are made here from the schema, as grpcurl does.
func TestSupportTasksByGrpcurl(t *testing.T) { newRig(t).byGrpcurl(t) }

func (r *rig) byCommand(t *testing.T) {
	for _, x := range r.tasks() {
		t.Run(x.want, func(t *testing.T) {
			r.t = t
			code, out, errs := r.run(context.Background(), "", x.args...)
			if code != x.code {
				t.Fatalf("got exit code %d, want %d\n%s%s", code, x.code, out, errs)
			}
			for _, part := range x.output {
				if !strings.Contains(out, part) {
					t.Errorf("got\n%s\nwant %q in it", out, part)
				}
			}
			if strings.ContainsAny(out+errs, "\x1b\x07\u202e") {
				t.Errorf("foreign text reaches the terminal: %q", out)
			}
			if x.effect != nil {
				x.effect(t)
			}
		})
	}
	r.t = t
}

// byGrpcurl makes the calls that the commands print. Where a call has ID in it, the person puts
// in the id that the call before has found.
func (r *rig) byGrpcurl(t *testing.T) {
	for _, x := range r.tasks() {
		t.Run(x.want, func(t *testing.T) {
			r.t = t
			code, lines, errs := r.run(context.Background(), "", append(x.args, "--grpcurl")...)
			if n := strings.Count(lines, "\n"); code != exitDone || n < 1 || n > 2 {
				t.Fatalf("got code %d, %d calls:\n%s%s", code, n, lines, errs)
			}
			id, answers := "01980000-0000-7000-8000-000000000000", ""
			for l := range strings.Lines(lines) {
				answer := r.call(strings.ReplaceAll(strings.TrimSpace(l), `"ID"`, `"`+id+`"`))
				if m := foundID.FindStringSubmatch(answer); m != nil {
					id = m[1]
				}
				answers += answer
			}
			for _, part := range x.shows {
				if !strings.Contains(answers, part) {
					t.Errorf("the calls answer\n%s\nwant %q in it", answers, part)
				}
			}
			if x.effect != nil && x.args[0] != "raw" { // which writes a file
				x.effect(t)
			}
			if x.effect == nil && len(x.shows) == 0 {
				t.Error("nothing is checked")
			}
		})
	}
	r.t = t
}

// foundID is the id of the first mail that FindMails has found.
var foundID = regexp.MustCompile(`"mails":\s*\[\s*\{\s*"id":\s*"([^"]+)"`)

// tasks hands over some mail and says what is wanted of it.
func (r *rig) tasks() []task {
	t := r.t
	r.bulk("news", 2)
	if _, err := r.c.RunBatch(context.Background(), &maildispatchv1.RunBatchRequest{MailServer: "later", Wait: true}); err != nil {
		t.Fatal(err)
	}
	refused := r.mail("main", "INV-1", maildispatchv1.Kind_KIND_INVOICE, "nobody@shop.example")
	fine := r.mail("main", "INV-2", maildispatchv1.Kind_KIND_INVOICE, "ann@shop.example")
	unknown := r.mail("main", "INV-3", maildispatchv1.Kind_KIND_INVOICE, "silent@shop.example")
	waiting := r.mail("later", "WO-4", maildispatchv1.Kind_KIND_WORK_ORDER, "bob@other.example")
	toCancel := r.mail("later", "WO-5", maildispatchv1.Kind_KIND_WORK_ORDER, "bob@other.example")
	r.bulk("news", 3)
	eml := r.write("invoice.eml", "From: shop@x.example\nTo: ann@shop.example\nDate: Mon, 30 Nov 2026 10:00:00 +0000\nMessage-ID: <given-1@x.example>\nSubject: finished\n\nhello\n")
	saved := filepath.Join(r.dir, "saved.eml")
	status := func(id string, want maildispatchv1.MailStatus) func(*testing.T) {
		return func(t *testing.T) {
			if got := r.get(id).Status; got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	}
	server := func(is func(*maildispatchv1.MailServer) bool) func(*testing.T) {
		return func(t *testing.T) {
			res, err := r.c.GetMailServer(context.Background(), &maildispatchv1.GetMailServerRequest{Name: "later"})
			if err != nil || !is(res.MailServer) {
				t.Errorf("got %v, %v", res, err)
			}
		}
	}
	stopped := func(t *testing.T) {
		res, err := r.c.GetBatch(context.Background(), &maildispatchv1.GetBatchRequest{BatchId: "news"})
		if c := res.GetBatch().GetCounts(); err != nil || c.GetHeld() != 3 || c.GetSent() != 2 {
			t.Errorf("got %v, %v", c, err)
		}
	}
	finished := func(t *testing.T) {
		ms, err := r.c.FindMails(context.Background(), &maildispatchv1.FindMailsRequest{Text: "INV-9"})
		if err != nil || len(ms.Mails) != 1 || ms.Mails[0].Status != maildispatchv1.MailStatus_MAIL_STATUS_SENT {
			t.Errorf("got %v, %v", ms, err)
		}
	}
	none := func(t *testing.T) {
		if ms, err := r.c.FindMails(context.Background(), &maildispatchv1.FindMailsRequest{Text: "INV-77"}); err != nil || len(ms.Mails) > 0 {
			t.Errorf("got %v, %v", ms, err)
		}
	}
	return []task{
		{"why no INV-1", []string{"why", "INV-1"}, 0, []string{"INV-1: NOT DELIVERED", "nobody@shop.example: rejected", `Invoice INV-1\u{202e}gnp`, "no such mailbox", "maildispatch resend " + refused}, nil, []string{refused, "no such"}},
		{"send it to the right address", []string{"resend", "INV-1", "--to", "somebody@shop.example", "--reason", "wrong address", "--yes"}, 0, []string{"goes to somebody@shop.example"}, func(t *testing.T) {
			ms, err := r.c.FindMails(context.Background(), &maildispatchv1.FindMailsRequest{Text: "somebody@shop.example"})
			if err != nil || len(ms.Mails) != 1 || ms.Mails[0].ResentFrom != refused {
				t.Errorf("got %v, %v", ms, err)
			}
		}, nil},
		{"did INV-2 arrive", []string{"why", "INV-2"}, 0, []string{"HANDED OVER", "ann@shop.example: accepted"}, nil, []string{fine, "MAIL_STATUS_SENT"}},
		{"what did Ann get", []string{"find", "ann@shop.example"}, 0, []string{fine}, nil, []string{fine}},
		{"what failed since yesterday", []string{"find", "--status", "failed", "--since", "1d"}, 0, []string{refused}, nil, []string{refused}},
		{"unknown invoices of the week", []string{"find", "--status", "unknown", "--kind", "invoice", "--since", "7d"}, 0, []string{unknown}, nil, []string{unknown}},
		{"whose mailboxes do not exist", []string{"find", "--failure", "no-such-mailbox"}, 0, []string{refused}, nil, []string{refused}},
		{"mails to a customer's domain", []string{"find", "--domain", "other.example"}, 0, []string{waiting}, nil, []string{waiting}},
		{"a mail by its subject", []string{"find", "invoice", "inv-2"}, 0, []string{fine}, nil, []string{fine}},
		{"it did arrive, the customer says", []string{"resolve", unknown, "delivered", "--reason", "phone", "--yes"}, 0, []string{"is sent now"}, status(unknown, maildispatchv1.MailStatus_MAIL_STATUS_SENT), nil},
		{"who decided that", []string{"audit", unknown}, 0, []string{"ResolveMail", "phone"}, nil, []string{"phone"}},
		{"keep a work order back", []string{"hold", waiting, "--reason", "price", "--yes"}, 0, []string{"1 mail held"}, status(waiting, maildispatchv1.MailStatus_MAIL_STATUS_HELD), nil},
		{"let it go", []string{"release", waiting, "--yes"}, 0, []string{"1 mail released"}, status(waiting, maildispatchv1.MailStatus_MAIL_STATUS_QUEUED), nil},
		{"end another", []string{"cancel", toCancel, "--reason", "storno", "--yes"}, 0, []string{"1 mail cancelled"}, status(toCancel, maildispatchv1.MailStatus_MAIL_STATUS_CANCELLED), nil},
		{"try INV-1 again", []string{"retry", refused, "--yes"}, 0, []string{"1 mail tried again"}, func(t *testing.T) {
			if r.get(refused).DueTime == nil {
				t.Error("it is not due")
			}
		}, nil},
		{"stop a batch half way", []string{"batch", "stop", "news", "--reason", "typo", "--yes"}, 0, []string{"3 mails held"}, stopped, nil},
		{"how is the batch", []string{"batch", "show", "news"}, 0, []string{"5 mails", "2  sent", "3  held", "It is over"}, nil, []string{`"held"`, `"sent"`}},
		{"correct a password", []string{"server", "edit", "later", "--user", "shop", "--encryption", "starttls", "--password-file", r.write("password", "secret\n")}, 0, []string{"changed"}, server(func(m *maildispatchv1.MailServer) bool { return m.Smtp.HasPassword && m.Smtp.Host == "127.0.0.1" }), nil},
		{"pause an hour", []string{"server", "pause", "later", "--for", "1h"}, 0, []string{"paused until"}, server(func(m *maildispatchv1.MailServer) bool { return time.Until(m.PauseUntil.AsTime()) > 59*time.Minute }), nil},
		{"go on", []string{"server", "resume", "later"}, 0, []string{"sending again"}, server(func(m *maildispatchv1.MailServer) bool { return m.PauseUntil == nil }), nil},
		{"who changed this server", []string{"audit", "later"}, 0, []string{"UpdateMailServer", "CreateMailServer"}, nil, []string{"UpdateMailServer"}},
		{"does the mail server work", []string{"server", "test", "main"}, 0, []string{"connect success!", "greeting"}, nil, []string{"connect success!"}},
		{"save the message", []string{"raw", "INV-2", "-o", saved}, 0, nil, func(t *testing.T) {
			if b, err := os.ReadFile(saved); err != nil || !strings.Contains(string(b), "Subject: Invoice INV-2") {
				t.Errorf("got %q, %v", b, err)
			}
		}, nil},
		{"send a finished invoice", []string{"send", eml, "--reference", "INV-9"}, 0, []string{"is sent", "ann@shop.example: accepted"}, finished, nil},
		{"what waits", []string{"queue"}, 0, []string{"waiting", "main", "later"}, nil, []string{"lanes"}},
		{"nothing is called so", []string{"why", "INV-77"}, 1, []string{"No mail is called INV-77"}, none, nil},
	}
}

// bulk hands over n mails of a batch.
func (r *rig) bulk(batch string, n int) {
	r.t.Helper()
	b := r.c.Bulk(context.Background(), &maildispatchv1.BatchOptions{BatchId: batch, Options: &maildispatchv1.SendOptions{MailServer: "later"}, Message: &maildispatchv1.MailMessage{Subject: "News", Text: "x"}}, client.BulkOptions{})
	for i := range n {
		if err := b.Add(&maildispatchv1.BatchItem{Message: &maildispatchv1.MailMessage{To: []string{fmt.Sprintf("n%d@many.example", i)}}}); err != nil {
			r.t.Fatal(err)
		}
	}
	if _, err := b.Close(); err != nil {
		r.t.Fatal(err)
	}
}

var grpcurlLine = regexp.MustCompile(`^grpcurl -plaintext -d '(.*)' (\S+) (maildispatch\.v1\.\w+)/(\w+)$`)

// grpcurl makes a printed call, and returns its first answer as JSON.
func (r *rig) grpcurl(text string) string {
	t := r.t
	t.Helper()
	m := grpcurlLine.FindStringSubmatch(text)
	if m == nil || m[2] != r.addr {
		t.Fatalf("is no call of grpcurl: %s", text)
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(m[3] + "." + m[4]))
	if err != nil {
		t.Fatal(err)
	}
	method := d.(protoreflect.MethodDescriptor)
	var fields map[string]any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(m[1], `'\''`, "'")), &fields); err != nil {
		t.Fatalf("%v: %s", err, m[1])
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
		t.Fatal(err)
	}
	message := func(d protoreflect.MessageDescriptor) proto.Message {
		typ, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			t.Fatal(err)
		}
		return typ.New().Interface()
	}
	in, out := message(method.Input()), message(method.Output())
	if err := protojson.Unmarshal(b, in); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := r.c.Conn().NewStream(ctx, &grpc.StreamDesc{ServerStreams: method.IsStreamingServer()}, "/"+m[3]+"/"+m[4])
	if err != nil {
		t.Fatal(err)
	}
	if err = s.SendMsg(in); err == nil {
		err = s.CloseSend()
	}
	if err == nil {
		err = s.RecvMsg(out)
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return protojson.Format(out)
}

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// refused wants INVALID_ARGUMENT with exactly these fields, in order.
func refused(t *testing.T, err error, fields ...string) {
	t.Helper()
	if status.Code(err) != codes.InvalidArgument || client.ReasonOf(err) != pb.ReasonValidationFailed {
		t.Errorf("got %v, want violations of %v", err, fields)
		return
	}
	var got []string
	for _, v := range client.Violations(err) {
		got = append(got, v.Field)
		if v.Description == "" || strings.ContainsAny(v.Description, "\r\n\x00") {
			t.Errorf("%s: description %q", v.Field, v.Description)
		}
	}
	slices.Sort(fields)
	if !slices.Equal(got, fields) {
		t.Errorf("violations of\n%v, want\n%v", got, fields)
	}
}

// TestValidation: every request says everything that is wrong with it at once, by field path,
// and stores nothing.
func TestValidation(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	relay := (&smtpxtest.Server{}).Start(t)
	s.addServer("good", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.IsDefault = new(true) })
	ctx := timeout(t)
	long := strings.Repeat("x", 300)
	pairs := map[string]string{"Bad Key": "v", "ok": "line\nbreak"}
	many := map[string]string{}
	for i := range 33 {
		many[fmt.Sprintf("k%d", i)] = "v"
	}
	zero, past, now, later := &timestamppb.Timestamp{}, timestamppb.New(time.Now().Add(-time.Minute)), timestamppb.Now(), timestamppb.New(time.Now().Add(time.Hour))
	badFilter := &pb.MailFilter{Team: new("A B"), MailServer: "X", Statuses: []pb.MailStatus{99}, Kind: 99, Reference: long, Recipient: "nobody", MessageId: "a\nb",
		Labels: pairs, RequestId: long, Since: now, Until: past}
	filterFields := func(prefix string) []string {
		return []string{prefix + "team", prefix + "mail_server", prefix + "statuses", prefix + "kind", prefix + "reference", prefix + "recipient", prefix + "message_id",
			prefix + "labels", prefix + "labels[ok]", prefix + "request_id", prefix + "until"}
	}
	smtp := func(change func(*pb.Smtp)) *pb.MailServer {
		m := &pb.MailServer{Name: "new", Type: pb.MailServer_TYPE_SMTP, Mode: pb.Mode_MODE_PHP, From: "a@x.example",
			Smtp: &pb.Smtp{Host: "mail.x.example", Port: 587, Encryption: pb.Smtp_ENCRYPTION_STARTTLS}}
		change(m.Smtp)
		return m
	}
	badServer := &pb.MailServer{Name: "Bad Name", Team: "A B", DisplayName: "a\x1bb", Type: 9, Mode: 9, Status: 9, From: "a@x.example\r\nBcc: b@x.example", Annotations: pairs,
		Limits: &pb.Limits{MaxConnections: -1, MailsPerConnection: 1 << 20, MaxAttempts: -1, MaxMailBytes: 1 << 40, MailsPerMinute: -1, MailsPerDay: 1 << 30, MaxRecipientsPerMail: 101},
		Smtp:   &pb.Smtp{Host: "no host", Port: 70000, Encryption: 9, Auth: 99, Username: "a\nb", Password: "x\r\ny", HeloName: "_", CaPem: "no pem", Timeout: durationpb.New(time.Hour)}}
	serverFields := func(but ...string) []string {
		all := []string{"mail_server.name", "mail_server.team", "mail_server.display_name", "mail_server.type", "mail_server.mode", "mail_server.status", "mail_server.from",
			"mail_server.annotations", "mail_server.annotations[ok]", "mail_server.limits.max_connections", "mail_server.limits.mails_per_connection",
			"mail_server.limits.max_attempts", "mail_server.limits.max_mail_bytes", "mail_server.limits.mails_per_minute", "mail_server.limits.mails_per_day", "mail_server.limits.max_recipients_per_mail", "mail_server.smtp.host", "mail_server.smtp.port", "mail_server.smtp.encryption",
			"mail_server.smtp.auth", "mail_server.smtp.username", "mail_server.smtp.password", "mail_server.smtp.helo_name", "mail_server.smtp.ca_pem", "mail_server.smtp.timeout"}
		return slices.DeleteFunc(all, func(f string) bool { return slices.Contains(but, f) })
	}

	create := func(m *pb.MailServer) error {
		_, err := s.admin.CreateMailServer(ctx, &pb.CreateMailServerRequest{MailServer: m})
		return err
	}
	update := func(m *pb.MailServer, paths ...string) error {
		r := &pb.UpdateMailServerRequest{MailServer: m}
		if len(paths) > 0 {
			r.UpdateMask = &fieldmaskpb.FieldMask{Paths: paths}
		}
		_, err := s.admin.UpdateMailServer(ctx, r)
		return err
	}
	send := func(o *pb.SendOptions, m *pb.MailMessage) error {
		_, err := s.send(ctx, &pb.SendRequest{Options: o, Message: m})
		return err
	}
	for name, c := range map[string]struct {
		err    error
		fields []string
	}{
		"ListMailServers": {second(s.admin.ListMailServers(ctx, &pb.ListMailServersRequest{Team: new("A B"), Mode: 9, Status: 9, PageSize: -1})), []string{"team", "mode", "status", "page_size"}},
		"GetMailServer":   {second(s.admin.GetMailServer(ctx, &pb.GetMailServerRequest{Name: "No Name"})), []string{"name"}},

		"CreateMailServer empty": {second(s.admin.CreateMailServer(ctx, &pb.CreateMailServerRequest{RequestId: long})), []string{"request_id", "mail_server"}},
		"CreateMailServer bare":  {create(&pb.MailServer{}), []string{"mail_server.name", "mail_server.type", "mail_server.mode", "mail_server.from"}},
		"CreateMailServer whole": {create(badServer), serverFields()},
		"CreateMailServer smtp missing": {create(&pb.MailServer{Name: "new", Type: pb.MailServer_TYPE_SMTP, Mode: pb.Mode_MODE_PHP, From: "a@x.example"}),
			[]string{"mail_server.smtp"}},
		"CreateMailServer smtp empty": {create(smtp(func(x *pb.Smtp) { x.Reset() })), []string{"mail_server.smtp.host", "mail_server.smtp.port", "mail_server.smtp.encryption"}},
		"CreateMailServer login for the local host": {create(&pb.MailServer{Name: "new", Type: pb.MailServer_TYPE_LOCALHOST, Mode: pb.Mode_MODE_PHP, From: "a@x.example",
			Smtp: &pb.Smtp{Username: "u", Password: "p"}}), []string{"mail_server.smtp"}},
		"CreateMailServer password alone": {create(smtp(func(x *pb.Smtp) { x.Password = "p" })), []string{"mail_server.smtp.username"}},
		"CreateMailServer none and login": {create(smtp(func(x *pb.Smtp) { x.Username, x.Auth = "u", pb.Smtp_AUTH_NONE })), []string{"mail_server.smtp.auth"}},
		"CreateMailServer plaintext login": {create(smtp(func(x *pb.Smtp) { x.Username, x.Password, x.Encryption = "u", "p", pb.Smtp_ENCRYPTION_NONE })),
			[]string{"mail_server.smtp.allow_plaintext_auth"}},
		"CreateMailServer decimal host": {create(smtp(func(x *pb.Smtp) { x.Host = "2130706433" })), []string{"mail_server.smtp.host"}},
		"CreateMailServer short host":   {create(smtp(func(x *pb.Smtp) { x.Host = "127.1" })), []string{"mail_server.smtp.host"}},

		"UpdateMailServer empty": {second(s.admin.UpdateMailServer(ctx, &pb.UpdateMailServerRequest{})), []string{"mail_server"}},
		"UpdateMailServer name":  {update(badServer), []string{"mail_server.name"}},
		"UpdateMailServer whole": {update(&pb.MailServer{Name: "good", Team: "other", DisplayName: badServer.DisplayName, Type: pb.MailServer_TYPE_LOCALHOST, Mode: 9, Status: 9, From: badServer.From,
			Annotations: pairs, Limits: badServer.Limits, Smtp: badServer.Smtp}), serverFields("mail_server.name")},
		"UpdateMailServer mask": {update(&pb.MailServer{Name: "good"}, "name", "team", "type", "etag", "create_time", "update_time", "delete_time", "health", "health.state", "health_", "smtp.has_password", "smtp.nothing",
			"smtp.timeout.seconds", "limits.", "*"), slices.Repeat([]string{"update_mask"}, 15)},
		"UpdateMailServer required cleared": {update(&pb.MailServer{Name: "good"}, "from", "mode", "smtp"), []string{"mail_server.from", "mail_server.mode", "mail_server.smtp"}},
		"UpdateMailServer star":             {update(&pb.MailServer{Name: "good"}, "*"), []string{"mail_server.from", "mail_server.mode", "mail_server.smtp"}},

		"DeleteMailServer":     {second(s.admin.DeleteMailServer(ctx, &pb.DeleteMailServerRequest{Name: ""})), []string{"name"}},
		"UndeleteMailServer":   {second(s.admin.UndeleteMailServer(ctx, &pb.UndeleteMailServerRequest{Name: "É"})), []string{"name"}},
		"SetDefaultMailServer": {second(s.admin.SetDefaultMailServer(ctx, &pb.SetDefaultMailServerRequest{Name: "a"})), []string{"name"}},
		"RunBatch":             {second(s.admin.RunBatch(ctx, &pb.RunBatchRequest{MailServer: "../etc"})), []string{"mail_server"}},
		"TestMailServer empty": {second(s.admin.TestMailServer(ctx, &pb.TestMailServerRequest{ProbeRecipient: "x", Timeout: durationpb.New(time.Hour)})),
			[]string{"name", "probe_recipient", "timeout"}},
		"TestMailServer unsaved": {second(s.admin.TestMailServer(ctx, &pb.TestMailServerRequest{MailServer: &pb.MailServer{Type: pb.MailServer_TYPE_SMTP, Smtp: &pb.Smtp{Port: -1}}})),
			[]string{"mail_server.from", "mail_server.smtp.host", "mail_server.smtp.port", "mail_server.smtp.encryption"}},
		"TestMailServer overlaid": {second(s.admin.TestMailServer(ctx, &pb.TestMailServerRequest{Name: "good", MailServer: &pb.MailServer{Smtp: &pb.Smtp{Port: 1 << 20}}})),
			[]string{"mail_server.smtp.port"}},

		"Send empty": {second(s.send(ctx, &pb.SendRequest{RequestId: "a\nb"})), []string{"request_id", "message"}},
		"Send options": {send(&pb.SendOptions{Team: "A B", MailServer: "X", Kind: 99, Priority: 99, Reference: long, Labels: pairs, SendAfter: zero, ExpireTime: past}, message("a@y.example")),
			[]string{"options.team", "options.mail_server", "options.kind", "options.priority", "options.reference", "options.labels", "options.labels[ok]", "options.send_after", "options.expire_time"}},
		"Send labels":    {send(&pb.SendOptions{Labels: many}, message("a@y.example")), []string{"options.labels"}},
		"Send too late":  {send(&pb.SendOptions{SendAfter: later, ExpireTime: timestamppb.New(time.Now().Add(time.Minute))}, message("a@y.example")), []string{"options.expire_time"}},
		"Send far ahead": {send(&pb.SendOptions{SendAfter: timestamppb.New(time.Now().AddDate(2, 0, 0))}, message("a@y.example")), []string{"options.send_after"}},
		"Send nobody":    {send(nil, &pb.MailMessage{Subject: "s", Text: "t"}), []string{"message.to"}},
		"Send message": {send(nil, &pb.MailMessage{To: []string{"a@y.example", "b"}, Cc: []string{"c@"}, Bcc: []string{"", "@d"}, ReplyTo: "e e@x.example", Subject: "a\nb", Text: "\x00", Html: "\x00",
			Headers:     map[string]string{"Bcc": "x@y.example", "X-A": "b\r\nTo: c@d.example", "X B": "c"},
			Attachments: []*pb.Attachment{{}, {Filename: "../a", ContentType: "text"}, {ContentId: "<a>", ContentType: "message/rfc822"}}}),
			[]string{"message.to[1]", "message.cc[0]", "message.bcc[0]", "message.bcc[1]", "message.reply_to", "message.subject", "message.text", "message.html",
				"message.headers[Bcc]", "message.headers[X-A]", "message.headers[X B]", "message.attachments[0].filename", "message.attachments[1].filename",
				"message.attachments[1].content_type", "message.attachments[2].content_id", "message.attachments[2].content_type"}},

		"GetMail":           {second(s.dispatch.GetMail(ctx, &pb.GetMailRequest{Id: "1"})), []string{"id"}},
		"DownloadMail":      {download(s, "x"), []string{"id"}},
		"ListDueOutMails":   {second(s.dispatch.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{Filter: badFilter, PageSize: -1})), append(filterFields("filter."), "page_size")},
		"ListArchived":      {second(s.dispatch.ListArchivedMails(ctx, &pb.ListArchivedMailsRequest{Filter: badFilter, PageSize: -1})), append(filterFields("filter."), "page_size")},
		"RetryMails":        {second(s.dispatch.RetryMails(ctx, &pb.RetryMailsRequest{Filter: badFilter, Reason: "a\nb"})), append(filterFields("filter."), "reason")},
		"RetryMails ids":    {second(s.dispatch.RetryMails(ctx, &pb.RetryMailsRequest{Ids: []string{"1", "2"}})), []string{"ids[0]", "ids[1]"}},
		"RetryMails both":   {second(s.dispatch.RetryMails(ctx, &pb.RetryMailsRequest{Ids: []string{"1"}, Filter: &pb.MailFilter{}})), []string{"filter"}},
		"RetryMails none":   {second(s.dispatch.RetryMails(ctx, &pb.RetryMailsRequest{})), []string{"ids"}},
		"RetryMails all":    {second(s.dispatch.RetryMails(ctx, &pb.RetryMailsRequest{Filter: &pb.MailFilter{}})), []string{"filter"}},
		"RetryMails many":   {second(s.dispatch.RetryMails(ctx, &pb.RetryMailsRequest{Ids: make([]string, 1001)})), []string{"ids"}},
		"CancelMails":       {second(s.dispatch.CancelMails(ctx, &pb.CancelMailsRequest{Filter: badFilter, Reason: long + long})), append(filterFields("filter."), "reason")},
		"HoldMails":         {second(s.dispatch.HoldMails(ctx, &pb.HoldMailsRequest{Filter: badFilter, Reason: long + long})), append(filterFields("filter."), "reason")},
		"HoldMails ids":     {second(s.dispatch.HoldMails(ctx, &pb.HoldMailsRequest{Ids: []string{"1", ""}})), []string{"ids[0]", "ids[1]"}},
		"HoldMails none":    {second(s.dispatch.HoldMails(ctx, &pb.HoldMailsRequest{})), []string{"ids"}},
		"HoldMails all":     {second(s.dispatch.HoldMails(ctx, &pb.HoldMailsRequest{Filter: &pb.MailFilter{}})), []string{"filter"}},
		"ReleaseMails":      {second(s.dispatch.ReleaseMails(ctx, &pb.ReleaseMailsRequest{Filter: badFilter, Reason: "a\nb"})), append(filterFields("filter."), "reason")},
		"ReleaseMails ids":  {second(s.dispatch.ReleaseMails(ctx, &pb.ReleaseMailsRequest{Ids: make([]string, 1001)})), []string{"ids"}},
		"ReleaseMails all":  {second(s.dispatch.ReleaseMails(ctx, &pb.ReleaseMailsRequest{Filter: &pb.MailFilter{}})), []string{"filter"}},
		"ReleaseMails none": {second(s.dispatch.ReleaseMails(ctx, &pb.ReleaseMailsRequest{})), []string{"ids"}},
		"ResolveMail empty": {second(s.dispatch.ResolveMail(ctx, &pb.ResolveMailRequest{})), []string{"id", "resolution", "reason"}},
		"ResolveMail": {second(s.dispatch.ResolveMail(ctx, &pb.ResolveMailRequest{Id: "x", Recipients: []string{"a@y.example", "b"}, Resolution: 9, Reason: long + long})),
			[]string{"id", "recipients[1]", "resolution", "reason"}},
		"ResolveMail many":  {second(s.dispatch.ResolveMail(ctx, &pb.ResolveMailRequest{Id: uuidOfNobody, Recipients: make([]string, 501), Resolution: 1, Reason: " "})), []string{"recipients", "reason"}},
		"ResolveMail lines": {second(s.dispatch.ResolveMail(ctx, &pb.ResolveMailRequest{Id: uuidOfNobody, Resolution: 1, Reason: "a\r\nb"})), []string{"reason"}},
		"CancelMails none":  {second(s.dispatch.CancelMails(ctx, &pb.CancelMailsRequest{})), []string{"ids"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.err, c.fields...) })
	}

	// Nothing of all that has been stored.
	servers, err := s.admin.ListMailServers(ctx, &pb.ListMailServersRequest{ShowDeleted: true})
	if err != nil || len(servers.MailServers) != 1 || servers.MailServers[0].UpdateTime.AsTime() != servers.MailServers[0].CreateTime.AsTime() {
		t.Errorf("mail servers afterwards: %v %v", servers, err)
	}
	for _, list := range []func(context.Context) (int, error){
		func(ctx context.Context) (int, error) {
			r, err := s.dispatch.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{})
			return len(r.GetMails()), err
		},
		func(ctx context.Context) (int, error) {
			r, err := s.dispatch.ListArchivedMails(ctx, &pb.ListArchivedMailsRequest{})
			return len(r.GetMails()), err
		},
	} {
		if n, err := list(ctx); n != 0 || err != nil {
			t.Errorf("%d mails afterwards, %v", n, err)
		}
	}
	if len(relay.Mails()) != 0 {
		t.Error("the relay got mail")
	}
}

const uuidOfNobody = "00000000-0000-7000-8000-000000000000"

func second[T any](_ T, err error) error { return err }

func download(s *service, id string) error {
	stream, err := s.dispatch.DownloadMail(timeout(s.t), &pb.DownloadMailRequest{Id: id})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// TestRefusedAddressesAndHeaders: the ways into headers and commands that SMTP.md T6 lists are
// closed, each with its field named.
func TestRefusedAddressesAndHeaders(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	relay := (&smtpxtest.Server{}).Start(t)
	s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.IsDefault = new(true) })
	ctx := timeout(t)
	for _, bad := range []string{
		"a@y.example>\r\nRCPT TO:<b@y.example", "a@y.example\nDATA", "a\r@y.example", "a\x00@y.example", "a@y.example>", "<a@y.example", "a@y.example> SIZE=1",
		"a@y.example SIZE=1", "a b@y.example", `"a b"@y.example`, `"a\"b"@y.example`, "a@[127.0.0.1]", "a@[IPv6:::1]", "@relay.example:a@y.example", "a@b@y.example",
		"Group: a@y.example, b@y.example;", "a@y.example, b@y.example", "a@y.example (comment)", "a(comment)@y.example", "a@.example", "a@y..example", "a@-y.example",
		".a@y.example", "a.@y.example", "a..b@y.example", "@y.example", "a@", "a", strings.Repeat("l", 65) + "@y.example", "a@" + strings.Repeat("d", 64) + ".example",
		"a@" + strings.Repeat("ddd.", 63) + "example", "\u202ea@y.example", "Evil \u202egnp <a@y.example>", "A\r\nBcc: x@y.example <a@y.example>", "a@y.example\u2028", "a@y_z.example",
		"a\u200b@y.example", "a@y.example\x7f", "a@exa\u00admple\u0000.example",
	} {
		_, err := s.send(ctx, &pb.SendRequest{Message: &pb.MailMessage{To: []string{"ok@y.example", bad}, Cc: []string{bad}, Bcc: []string{bad}, ReplyTo: bad, Subject: "s", Text: "t"}})
		t.Run(fmt.Sprintf("%q", bad), func(t *testing.T) {
			fields := []string{"message.to[1]", "message.cc[0]", "message.bcc[0]", "message.reply_to"}
			if bad == "a@y.example, b@y.example" {
				fields = fields[:3] // reply_to takes a list
			}
			refused(t, err, fields...)
		})
	}
	for name, value := range map[string]string{
		"Bcc": "x@y.example", "bCC": "x@y.example", "To": "x@y.example", "From": "x@y.example", "Sender": "x@y.example", "Subject": "x", "Date": "x", "Message-ID": "x", "Received": "x",
		"Return-Path": "<>", "DKIM-Signature": "x", "ARC-Seal": "x", "MIME-Version": "2.0", "Content-Type": "text/html", "Content-Transfer-Encoding": "8bit", "Resent-To": "x@y.example",
		"Reply-To": "x@y.example", "Authentication-Results": "x", "X-A\r\nBcc": "x@y.example", "X-A:": "x", "X A": "x", "": "x", "X-Ä": "x", strings.Repeat("X", 65): "x",
	} {
		_, err := s.send(ctx, &pb.SendRequest{Message: &pb.MailMessage{To: []string{"ok@y.example"}, Subject: "s", Text: "t", Headers: map[string]string{name: value}}})
		if status.Code(err) != codes.InvalidArgument || len(client.Violations(err)) != 1 || !strings.HasPrefix(client.Violations(err)[0].Field, "message.headers[") {
			t.Errorf("header %q: %v", name, err)
		}
	}
	for _, value := range []string{"a\r\nBcc: x@y.example", "a\nb", "a\rb", "a\x00b", "a\u0085b", strings.Repeat("v", 901)} {
		for field, m := range map[string]*pb.MailMessage{
			"message.headers[X-A]":            {Headers: map[string]string{"X-A": value}},
			"message.subject":                 {Subject: value},
			"message.attachments[0].filename": {Attachments: []*pb.Attachment{{Filename: value}}},
		} {
			m.To, m.Text = []string{"ok@y.example"}, "t"
			_, err := s.send(ctx, &pb.SendRequest{Message: m})
			t.Run(fmt.Sprintf("%s=%.10q", field, value), func(t *testing.T) { refused(t, err, field) })
		}
	}
	if n := len(relay.Mails()); n != 0 {
		t.Errorf("%d mails left", n)
	}
}

// TestTooLarge: size has its own code, before anything is stored.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	relay := (&smtpxtest.Server{}).Start(t)
	s.addServer("small", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxMailBytes: 2000} })
	opts := &pb.SendOptions{MailServer: "small"}
	for _, n := range []int{1900, 5000} { // too large by its headers, and by its content alone
		_, err := s.send(timeout(t), &pb.SendRequest{Options: opts, Message: &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Text: strings.Repeat("x", n)}})
		if status.Code(err) != codes.ResourceExhausted || client.ReasonOf(err) != pb.ReasonMailTooLarge {
			t.Errorf("%d bytes of text: %v", n, err)
		}
	}
	s.mustSend(&pb.SendRequest{Options: opts, Message: &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Text: strings.Repeat("x", 500)}})
	var to []string
	for i := range 501 {
		to = append(to, fmt.Sprintf("r%d@y.example", i))
	}
	_, err := s.send(timeout(t), &pb.SendRequest{Options: opts, Message: message(to...)})
	refused(t, err, "message.to")
	if r, err := s.dispatch.ListDueOutMails(timeout(t), &pb.ListDueOutMailsRequest{}); err != nil || len(r.Mails) != 1 {
		t.Errorf("%v %v", r, err)
	}
}

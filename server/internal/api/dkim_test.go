package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	msgauth "github.com/emersion/go-msgauth/dkim"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/maildispatch/maildispatch/client/clienttest"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// keyText makes one key a test binary, in PEM, and the text of its DNS record.
var keyText = sync.OnceValues(func() (text, record string) {
	key, err := dkim.NewKey()
	if err != nil {
		panic(err)
	}
	der, _ := dkim.MarshalDER(key)
	public, _ := dkim.PublicKey(key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), dkim.Record(public)
})

// signs gives a mail server the test binary's key.
func signs(selector string) func(*pb.MailServer) {
	return func(m *pb.MailServer) {
		text, _ := keyText()
		m.Dkim = &pb.Dkim{Domain: "x.example", Selector: selector, PrivateKey: text}
	}
}

// signedBy checks a mail's one signature with go-msgauth, against the record of a mail server.
func signedBy(t *testing.T, data []byte, d *pb.Dkim) {
	t.Helper()
	if n := bytes.Count(data, []byte("DKIM-Signature:")); n != 1 {
		t.Fatalf("%d signatures in %.2000s", n, data)
	}
	vs, err := msgauth.VerifyWithOptions(bytes.NewReader(data), &msgauth.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if name != d.DnsName {
			return nil, fmt.Errorf("asked for %s, want %s", name, d.DnsName)
		}
		return []string{d.DnsValue}, nil
	}})
	if err != nil || len(vs) != 1 || vs[0].Err != nil || vs[0].Domain != d.Domain {
		t.Fatalf("%v, %+v in %.2000s", err, vs, data)
	}
}

// update changes a mail server; mask "" = what is given.
func (r *rig) update(mask string, m *pb.MailServer) *pb.MailServer {
	r.t.Helper()
	req := &pb.UpdateMailServerRequest{MailServer: m}
	if mask != "" {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: []string{mask}}
	}
	res, err := r.admin.UpdateMailServer(ctx(r.t), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.MailServer
}

// TestSignedMail: whatever way a mail is given, it leaves with a signature that verifies, and
// the journal has the bytes that left.
func TestSignedMail(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.relay.Extensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 10485760"}
		d := r.server("main", pb.Mode_MODE_PHP, signs("s1")).Dkim
		calendar := &pb.Alternative{ContentType: "text/calendar", Content: "BEGIN:VCALENDAR\nMETHOD:REQUEST\nEND:VCALENDAR"}
		file := &pb.Attachment{Filename: "a.pdf", Content: noise(1, 100<<10)}
		up := func(seed uint64) *pb.Attachment {
			return &pb.Attachment{UploadId: r.upload(t, "b.pdf", string(noise(seed, 1<<20)))}
		}
		for name, m := range map[string]*pb.MailMessage{
			"text":                   {Text: "hello  \n\n .\n..\nFrom me\n\n\n"},
			"nothing":                {},
			"text and html":          {Text: "héllo", Html: "<p>héllo</p>"},
			"a file":                 {Text: "x", Attachments: []*pb.Attachment{file}},
			"an upload":              {Text: "x", Attachments: []*pb.Attachment{up(2)}},
			"an invitation":          {Text: "x", Html: "<p>x</p>", Alternatives: []*pb.Alternative{calendar}},
			"headers":                {Text: "x", ReplyTo: "r@y.example", Headers: map[string]string{"List-Id": "<l.x.example>", "References": "<1@x.example>"}},
			"addresses beyond ASCII": {Text: "x", To: []string{"josé@y.example"}},
			"a finished message":     {Raw: signedMail("4711@billing.example", "Bcc: b@y.example\r\n")},
			"one without an id":      {Raw: bytes.Replace(signedMail("x", ""), []byte("Message-ID: <x>\r\n"), nil, 1)},
		} {
			if len(m.Raw) == 0 {
				m.Subject = "Invoice for you"
				if len(m.To) == 0 {
					m.To = []string{"a@y.example", "b@y.example"}
				}
			}
			before := len(r.relay.Mails())
			evs, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: m})
			if err != nil || len(r.relay.Mails()) != before+1 {
				t.Fatalf("%s: %v, %v", name, evs, err)
			}
			left := r.relay.Mails()[before].Data
			signedBy(t, left, d)
			got := evs[len(evs)-1].GetCompleted().GetMail()
			if raw := r.download(evs[0].MailId); !bytes.Equal(raw, left) || int64(len(raw)) != got.GetSizeBytes() {
				t.Errorf("%s: the journal has %d bytes and says %d, %d have left", name, len(raw), got.GetSizeBytes(), len(left))
			}
		}
		shared := up(3)
		for name, o := range map[string]*pb.MailMessage{
			"all alike":      {Subject: "s", Text: strings.Repeat("the same\n", 500), Attachments: []*pb.Attachment{file}},
			"with variables": {Subject: "s {{name}}", Text: "Dear {{name}} \n" + strings.Repeat("the same\n", 500), Attachments: []*pb.Attachment{shared}},
		} {
			before := len(r.relay.Mails())
			res, err := r.batch(ctx(t), &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "main"}, Message: o},
				&pb.BatchItem{Message: &pb.MailMessage{To: []string{"a@y.example"}}, Variables: map[string]string{"name": "Ann"}},
				&pb.BatchItem{Message: &pb.MailMessage{To: []string{"b@y.example"}}, Variables: map[string]string{"name": "  "}},
				&pb.BatchItem{Message: &pb.MailMessage{To: []string{"c@y.example"}, Text: "own {{name}}"}, Variables: map[string]string{"name": "Zoë"}})
			if err != nil || res.Accepted != 3 {
				t.Fatalf("%s: %v, %v", name, res, err)
			}
			if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main", Wait: true}); err != nil {
				t.Fatal(err)
			}
			left := r.relay.Mails()[before:]
			if len(left) != 3 {
				t.Fatalf("%s: %d mails have left", name, len(left))
			}
			for _, m := range left {
				signedBy(t, m.Data, d)
			}
		}
		r.update("dkim", &pb.MailServer{Name: "main"})
		if err := r.delivered("main"); err != nil {
			t.Fatal(err)
		}
		if ms := r.relay.Mails(); bytes.Contains(ms[len(ms)-1].Data, []byte("DKIM")) {
			t.Error("signed without a key")
		}
	})
}

// TestRetryKeepsItsSignature: every attempt sends the same bytes, also after the key was
// changed and the service was started anew.
func TestRetryKeepsItsSignature(t *testing.T) {
	t.Parallel()
	dsn := storetest.SQLiteDSN(t)
	var mu sync.Mutex
	var tried []string
	relay := &smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb != "DOT" {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if tried = append(tried, c.Arg); len(tried) < 3 {
			return &smtpxtest.Action{Reply: "451 4.2.0 try again later\r\n", Refuse: true}
		}
		return nil
	}}
	id := ""
	attempt := func(r *rig) {
		r.t.Helper()
		if _, err := r.dispatch.RetryMails(ctx(r.t), &pb.RetryMailsRequest{Ids: []string{id}}); err != nil {
			r.t.Fatal(err)
		}
		if _, err := r.admin.RunBatch(ctx(r.t), &pb.RunBatchRequest{MailServer: "main", Wait: true}); err != nil {
			r.t.Fatal(err)
		}
	}
	var first *pb.Dkim
	t.Run("first", func(t *testing.T) {
		r := newRig(t, dsn, relay)
		first = r.server("main", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) { m.Dkim = &pb.Dkim{Domain: "x.example", Selector: "s1"} }).Dkim
		id = r.queue("main", 1)[0]
		if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main", Wait: true}); err != nil {
			t.Fatal(err)
		}
		if now := r.update("", &pb.MailServer{Name: "main", Dkim: &pb.Dkim{Selector: "s2"}}).Dkim; now.DnsValue == first.DnsValue || now.DnsName == first.DnsName {
			t.Errorf("the key is still %v", now)
		}
		attempt(r)
	})
	t.Run("started anew", func(t *testing.T) {
		r := newRig(t, dsn, relay)
		second := r.update("", &pb.MailServer{Name: "main", Smtp: &pb.Smtp{Port: int32(relay.Port())}}).Dkim
		attempt(r)
		mu.Lock()
		all := slices.Clone(tried)
		mu.Unlock()
		if len(all) != 3 || all[1] != all[0] || all[2] != all[0] {
			t.Fatalf("%d attempts, not of the same bytes:\n%s", len(all), strings.Join(all, "\n\n"))
		}
		signedBy(t, relay.Mails()[0].Data, first)
		// what is sent once more is a mail of its own, signed with the key of now
		if _, err := r.dispatch.ResendMail(ctx(t), &pb.ResendMailRequest{Id: id, Reason: "lost"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main", Wait: true}); err != nil {
			t.Fatal(err)
		}
		signedBy(t, relay.Mails()[1].Data, second)
	})
}

// TestFallbackKeepsTheSignature: through another mail server, mail leaves with the signature of
// its own, whose domain its From is of.
func TestFallbackKeepsTheSignature(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("spare", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) {
		m.From, m.Dkim = "other@z.example", &pb.Dkim{Domain: "z.example", Selector: "s9"}
	})
	d := r.server("main", pb.Mode_MODE_DAEMON, signs("s1"), func(m *pb.MailServer) { m.Fallback = "spare" }).Dkim
	r.queue("main", 1)
	r.update("", &pb.MailServer{Name: "main", Status: pb.MailServer_STATUS_UNAVAILABLE})
	if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{Wait: true}); err != nil {
		t.Fatal(err)
	}
	left := r.relay.Mails()
	if len(left) != 1 {
		t.Fatalf("%d mails have left", len(left))
	}
	signedBy(t, left[0].Data, d)
}

// TestSigningKey: when a key is kept, when another is made, and that none ever comes out.
func TestSigningKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	text, record := keyText()
	m := r.server("main", pb.Mode_MODE_PHP, func(m *pb.MailServer) { m.Dkim = &pb.Dkim{Domain: "X.Example", Selector: "S1"} })
	made := m.Dkim
	if made.Domain != "x.example" || made.Selector != "s1" || made.DnsName != "s1._domainkey.x.example" || !strings.HasPrefix(made.DnsValue, "v=DKIM1; k=rsa; p=MII") || made.PrivateKey != "" {
		t.Errorf("made: %v", made)
	}
	same := func(what string, m *pb.MailServer, want string) {
		t.Helper()
		if m.Dkim.DnsValue != want || m.Dkim.PrivateKey != "" {
			t.Errorf("%s: got %v, want %s", what, m.Dkim, want)
		}
	}
	same("another change", r.update("", &pb.MailServer{Name: "main", DisplayName: "x"}), made.DnsValue)
	m.DisplayName = "y"
	same("all of it again", r.update("*", &pb.MailServer{Name: "main", From: m.From, Mode: m.Mode, Smtp: m.Smtp, Dkim: m.Dkim}), made.DnsValue)
	same("the same in capitals", r.update("dkim", &pb.MailServer{Name: "main", Dkim: &pb.Dkim{Domain: "x.EXAMPLE", Selector: "S1"}}), made.DnsValue)
	given := r.update("", &pb.MailServer{Name: "main", Dkim: &pb.Dkim{Selector: "s2", PrivateKey: text}})
	same("a key that is given", given, record)
	if given.Dkim.DnsName != "s2._domainkey.x.example" {
		t.Errorf("its name is %s", given.Dkim.DnsName)
	}
	anew := r.update("dkim.private_key", &pb.MailServer{Name: "main"})
	if anew.Dkim.DnsValue == record {
		t.Error("the key that was cleared is still there")
	}
	domain := r.update("", &pb.MailServer{Name: "main", Dkim: &pb.Dkim{Domain: "mail.x.example"}})
	if domain.Dkim.DnsValue == anew.Dkim.DnsValue {
		t.Error("the key goes on under another domain")
	}
	res, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", Dkim: &pb.Dkim{Selector: "s3"}}, ValidateOnly: true})
	if err != nil || res.MailServer.Dkim.DnsValue != "" || res.MailServer.Dkim.DnsName != "s3._domainkey.mail.x.example" {
		t.Errorf("validate_only: %v, %v", res, err)
	}
	r.update("", &pb.MailServer{Name: "main", Dkim: &pb.Dkim{Domain: "x.example", Selector: "s2", PrivateKey: text}})
	if err := r.delivered("main"); err != nil {
		t.Fatal(err)
	}
	s, err := r.store.Server(ctx(t), store.Everything, "main")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(text))
	r.nowhere(strings.Split(text, "\n")[3], string(block.Bytes[600:640]))
	sealed := base64.StdEncoding.EncodeToString(s.DKIM.SealedKey)
	for _, row := range r.audits() {
		if strings.Contains(row[3], "sealed_key") || strings.Contains(row[3], sealed[:40]) {
			t.Errorf("the audit log has the sealed key: %s", row[3])
		}
	}
	if last := r.audits()[len(r.audits())-1]; !strings.Contains(last[3], strings.TrimPrefix(record, "v=DKIM1; k=rsa; p=")) {
		t.Errorf("the audit log does not show which key is used now: %s", last[3])
	}
	for field, d := range map[string]*pb.Dkim{
		"mail_server.dkim.domain":      {Domain: "192.0.2.1", Selector: "s1"},
		"mail_server.dkim.selector":    {Domain: "x.example", Selector: "a\r\nb"},
		"mail_server.dkim.private_key": {Domain: "x.example", Selector: "s1", PrivateKey: text[:200]},
	} {
		_, err := r.admin.CreateMailServer(ctx(t), &pb.CreateMailServerRequest{MailServer: &pb.MailServer{Name: "other", Type: pb.MailServer_TYPE_LOCALHOST, From: "a@x.example", Mode: pb.Mode_MODE_PHP, Dkim: d}})
		refusedField(t, field, err, field)
	}
	_, err = r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"dkim.dns_value"}}})
	refusedField(t, "dns_value", err, "update_mask")
}

// TestSwappedKey: a sealed key that was moved to another mail server opens to nothing, and mail
// is refused rather than sent unsigned.
func TestSwappedKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("one", pb.Mode_MODE_PHP, signs("s1"))
	r.server("two", pb.Mode_MODE_PHP, signs("s1"))
	if err := r.delivered("two"); err != nil {
		t.Fatal(err)
	}
	one, err := r.store.Server(ctx(t), store.Everything, "one")
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.store.UpdateServer(ctx(t), store.Everything, "two", 0, store.Audit{}, func(m *store.MailServer) error {
		d := *m.DKIM
		d.SealedKey = one.DKIM.SealedKey
		m.DKIM = &d
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "two"}, Message: message("a@y.example")})
	refused(t, "a mail", err, codes.FailedPrecondition, pb.ReasonMailServerUnavailable)
	_, err = r.batch(ctx(t), &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "two"}}, &pb.BatchItem{Message: message("a@y.example")})
	refused(t, "a bulk", err, codes.FailedPrecondition, pb.ReasonMailServerUnavailable)
	if n := len(r.relay.Mails()); n != 1 {
		t.Errorf("%d mails have left, want the one before", n)
	}
}

// TestRecordStep: the test of a mail server says what DNS has for its key, and is not failed by
// it.
func TestRecordStep(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_PHP, signs("s1"))
	r.server("far", pb.Mode_MODE_PHP, signs("s1"), func(m *pb.MailServer) { m.From = "a@z.example" })
	r.server("below", pb.Mode_MODE_PHP, signs("s1"), func(m *pb.MailServer) { m.From = "a@Mail.X.example" })
	_, record := keyText()
	for _, x := range []struct {
		what, name string
		records    []string
		err        error
		outcome    pb.TestStep_Outcome
		detail     string
	}{
		{"found", "main", []string{"other", record}, nil, pb.TestStep_OUTCOME_OK, "found"},
		{"found, for a domain below", "below", []string{record}, nil, pb.TestStep_OUTCOME_OK, "found"},
		{"of another domain", "far", []string{record}, nil, pb.TestStep_OUTCOME_WARNING, "not that of from"},
		{"none", "main", nil, nil, pb.TestStep_OUTCOME_WARNING, "missing: "},
		{"no such name", "main", nil, &net.DNSError{Err: "no such host", IsNotFound: true}, pb.TestStep_OUTCOME_WARNING, "missing: "},
		{"another key", "main", []string{"v=DKIM1; p=QUJD\x00\x1b[2J"}, nil, pb.TestStep_OUTCOME_WARNING, "differs: "},
		{"no name server", "main", nil, &net.DNSError{Err: "server mis\x00behaving", IsTemporary: true}, pb.TestStep_OUTCOME_SKIPPED, "cannot be seen from here: "},
		{"too slow", "main", nil, context.DeadlineExceeded, pb.TestStep_OUTCOME_SKIPPED, "cannot be seen from here: "},
	} {
		var asked string
		r.txt.Store(func(name string) ([]string, error) { asked = name; return x.records, x.err })
		res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: x.name})
		if err != nil || !res.Success || asked != "s1._domainkey.x.example." {
			t.Fatalf("%s: %v, %v, asked for %s", x.what, res, err, asked)
		}
		step := res.Steps[len(res.Steps)-1]
		if step.Kind != pb.TestStep_KIND_DKIM || step.Outcome != x.outcome || !strings.Contains(step.Detail, x.detail) || (step.Hint == "") != (x.outcome == pb.TestStep_OUTCOME_OK) {
			t.Errorf("%s: %v", x.what, step)
		}
		if all := fmt.Sprint(step.Detail, step.Hint, step.Facts); strings.ContainsAny(all, "\x00\x1b") || step.Facts["dns_value"] != record {
			t.Errorf("%s: %q", x.what, all)
		}
	}
	r.txt.Store(func(string) ([]string, error) { return nil, errors.New("not asked") })
	res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{MailServer: &pb.MailServer{Type: pb.MailServer_TYPE_SMTP, From: "a@x.example",
		Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(r.relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE}, Dkim: &pb.Dkim{Domain: "x.example", Selector: "s1"}}})
	if err != nil || res.Steps[len(res.Steps)-1].Detail != "there is no key yet" {
		t.Errorf("without a key: %v, %v", res, err)
	}
}

// TestAgreesWithTheServiceOnKeys: the service in memory shows a key, and when it is another, as
// the service does. The text of its record is its own.
func TestAgreesWithTheServiceOnKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.txt.Store(func(string) ([]string, error) { return nil, nil })
	conn, err := grpc.NewClient(clienttest.Target, clienttest.New(t).DialOption(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	text, _ := keyText()
	story := func(c pb.MailServerAdminClient) (said []string) {
		last := ""
		note := func(what string, m *pb.MailServer, err error) {
			d, record := m.GetDkim(), "the same"
			if d.GetDnsValue() != last {
				record = "another"
			}
			last = d.GetDnsValue()
			said = append(said, fmt.Sprintf("%s: %v, %q %q %q %q, record %t, %s", what, status.Code(err), d.GetDomain(), d.GetSelector(), d.GetDnsName(), d.GetPrivateKey(), last != "", record))
		}
		create := func(what string, d *pb.Dkim) {
			res, err := c.CreateMailServer(ctx(t), &pb.CreateMailServerRequest{RequestId: "r1", MailServer: &pb.MailServer{Name: "main", Type: pb.MailServer_TYPE_SMTP, From: "shop@x.example", Mode: pb.Mode_MODE_PHP,
				Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(r.relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE}, Dkim: d}})
			note(what, res.GetMailServer(), err)
		}
		update := func(what string, d *pb.Dkim, mask ...string) {
			m := &pb.MailServer{Name: "main", DisplayName: what, Dkim: d}
			res, err := c.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
			note(what, res.GetMailServer(), err)
		}
		create("no selector", &pb.Dkim{Domain: "x.example"})
		create("made", &pb.Dkim{Domain: "X.example", Selector: "S1"})
		create("made twice", &pb.Dkim{Domain: "X.example", Selector: "S1", PrivateKey: text})
		update("a name", nil)
		update("a selector", &pb.Dkim{Selector: "s2"})
		update("a key", &pb.Dkim{PrivateKey: text})
		update("the same", &pb.Dkim{Domain: "x.example", Selector: "s2"})
		update("a domain", &pb.Dkim{Domain: "mail.x.example"}, "dkim.domain")
		res, err := c.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main"})
		if err != nil {
			t.Fatal(err)
		}
		// which steps are left out is each one's own
		said = append(said, fmt.Sprint(res.Success, res.Steps[len(res.Steps)-1].Kind))
		update("none", nil, "dkim")
		return said
	}
	want, got := story(r.admin), story(pb.NewMailServerAdminClient(conn))
	for i, line := range want {
		if got[i] != line {
			t.Errorf("the service says\n%s\nthe service in memory\n%s", line, got[i])
		}
	}
}

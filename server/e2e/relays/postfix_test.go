//go:build relays

package relays

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Every mailbox of customer.example and of the internationalised domain exists, but for two
// addresses. Mail is stored in one maildir per recipient domain, as it came: of itself Postfix
// would take a Bcc field out, and nobody would see that we sent one.
const postfixMain = `
compatibility_level = 3.6
config_directory = DIR/conf
queue_directory = DIR/queue
data_directory = DIR/data
maillog_file = DIR/log/mainlog
maillog_file_prefixes = DIR/log
myhostname = postfix.relay.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
biff = no
message_size_limit = 2000000
message_drop_headers =
virtual_mailbox_domains = customer.example, xn--mnchen-3ya.example
virtual_mailbox_base = DIR/mail
virtual_mailbox_maps = inline:{ @customer.example=customer/, @xn--mnchen-3ya.example=idn/ }
virtual_uid_maps = static:UID
virtual_gid_maps = static:GID
virtual_minimum_uid = 1
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions =
  check_recipient_access inline:{ {nobody@customer.example = 550 5.1.1 no such user}, {later@customer.example = 451 4.7.1 greylisted} }
smtpd_tls_security_level = may
smtpd_tls_chain_files = DIR/key.pem, DIR/cert.pem
smtpd_tls_loglevel = 1
`

// No service is chrooted: the folder has no libraries. The second smtpd has TLS from the first
// byte.
const postfixMaster = `
127.0.0.1:PORT inet n - n - - smtpd
127.0.0.1:TLS inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
`

type postfix struct {
	*relay
	port, tlsPort int
}

func startPostfix(t *testing.T) *postfix {
	t.Helper()
	const programs = "/usr/lib/postfix/sbin"
	p := &postfix{relay: newRelay(t), port: freePort(t), tlsPort: freePort(t)}
	nobody, root := lookup(t, "nobody"), account{}
	p.folder("conf", root)
	p.folder("queue", root)
	p.folder("log", root)
	p.folder("data", lookup(t, "postfix"))
	p.folder("mail", nobody)
	p.write("conf/main.cf", strings.NewReplacer("UID", fmt.Sprint(nobody.uid), "GID", fmt.Sprint(nobody.gid)).Replace(postfixMain))
	p.write("conf/master.cf", strings.NewReplacer("PORT", fmt.Sprint(p.port), "TLS", fmt.Sprint(p.tlsPort)).Replace(postfixMaster))
	conf := filepath.Join(p.dir, "conf")
	if out, err := exec.Command("/usr/sbin/postfix", "-c", conf, "check").CombinedOutput(); err != nil {
		// makes the queue's folders
		t.Fatalf("postfix check: %v: %s", err, out)
	}
	// master itself instead of "postfix start-fg", whose shell would leave it behind when it is
	// ended.
	p.run(p.port, exec.Command(filepath.Join(programs, "master"), "-c", conf))
	return p
}

func (p *postfix) smtp(enc pb.Smtp_Encryption) *pb.Smtp {
	s := &pb.Smtp{Host: "localhost", Port: int32(p.port), Encryption: enc}
	if enc == pb.Smtp_ENCRYPTION_TLS {
		s.Port = int32(p.tlsPort)
	}
	if enc != pb.Smtp_ENCRYPTION_NONE {
		s.CaPem = string(p.pem)
	}
	return s
}

var queueID = regexp.MustCompile(`^[0-9A-F]{6,}$`)

// TestPostfix holds the service against Postfix as it comes with Debian.
func TestPostfix(t *testing.T) {
	p, s := startPostfix(t), start(t) // the service ends first
	s.addServer("plain", pb.Mode_MODE_PHP, p.smtp(pb.Smtp_ENCRYPTION_NONE))
	s.addServer("starttls", pb.Mode_MODE_PHP, p.smtp(pb.Smtp_ENCRYPTION_STARTTLS))
	s.addServer("tls", pb.Mode_MODE_PHP, p.smtp(pb.Smtp_ENCRYPTION_TLS))
	s.addServer("bulk", pb.Mode_MODE_DAEMON, p.smtp(pb.Smtp_ENCRYPTION_STARTTLS))
	servers := []string{"plain", "starttls", "tls"}

	t.Run("test", func(t *testing.T) {
		s := s.in(t)
		for _, name := range servers {
			steps := s.connects(name, "kim@customer.example")
			if ext := steps[pb.TestStep_KIND_EHLO].Facts["extensions"]; !strings.Contains(ext, "PIPELINING") || !strings.Contains(ext, "ENHANCEDSTATUSCODES") {
				t.Errorf("%s: extensions %q", name, ext)
			}
			s.fails(name, nil, "nobody@customer.example", pb.TestStep_KIND_RCPT_TO, 550)
			s.fails(name, nil, "later@customer.example", pb.TestStep_KIND_RCPT_TO, 451)
		}
		s.fails("starttls", &pb.Smtp{CaPem: otherCA(t)}, "", pb.TestStep_KIND_STARTTLS, 0)
		s.fails("tls", &pb.Smtp{CaPem: otherCA(t)}, "", pb.TestStep_KIND_TLS, 0)
		s.fails("tls", &pb.Smtp{Port: int32(p.port)}, "", pb.TestStep_KIND_TLS, 0)
		// this one offers no login
		s.fails("starttls", &pb.Smtp{Username: "shop", Password: "secret"}, "", pb.TestStep_KIND_AUTH, 0)
	})

	stored := 0
	for _, name := range servers {
		t.Run("mail/"+name, func(t *testing.T) {
			s, p := s.in(t), p.in(t)
			m := rich([]string{"金 <kim@customer.example>", `"Lee, Ann" <ann@customer.example>`}, []string{"Åsa Öberg <asa@customer.example>"}, []string{"hidden@customer.example"})
			results, sent := s.send(name, m)
			if sent.Status != pb.MailStatus_MAIL_STATUS_SENT || len(results) != 4 {
				t.Fatalf("%v", sent)
			}
			id := results[0].RemoteId
			for _, r := range results {
				if r.Status != pb.RecipientResult_STATUS_ACCEPTED || r.SmtpCode != 250 || r.EnhancedCode != "2.0.0" || r.RemoteId != id || !queueID.MatchString(id) {
					t.Errorf("%v", r)
				}
			}
			if sent.Attempts[0].RemoteId != id {
				t.Errorf("attempt %v", sent.Attempts[0])
			}
			// Postfix's own word on its queue id: the log and the trace field it put in front.
			p.waitLog(1, " "+id+": message-id="+sent.MessageId)
			p.waitLog(4, " "+id+": to=<", "status=sent (delivered to maildir)")
			stored += 4
			copies := 0
			for _, raw := range p.stored(stored, "customer", "") {
				r := parse(t, raw)
				if r.header.Get("Message-ID") != sent.MessageId {
					continue
				}
				copies++
				compare(t, raw, m, sent)
				// RFC 3848
				with := map[string]string{"plain": " with ESMTP id ", "starttls": " with ESMTPS id ", "tls": " with ESMTPS id "}[name]
				if trace := r.header.Get("Received"); !strings.Contains(trace, "by postfix.relay.example (Postfix)"+with+id) {
					t.Errorf("Received %q: no%s%s", trace, with, id)
				}
				if to := r.header.Get("Delivered-To"); to == "hidden@customer.example" {
					hides(t, raw, "Delivered-To: ", "nothing of this")
				} else {
					hides(t, raw, "Delivered-To: ", "hidden")
				}
				if r.header.Get("Return-Path") != "<shop@shop.example>" {
					t.Errorf("Return-Path %q", r.header.Get("Return-Path"))
				}
			}
			if copies != 4 {
				t.Errorf("%d copies", copies)
			}
		})
	}

	t.Run("refused", func(t *testing.T) {
		s, p := s.in(t), p.in(t)
		results, sent := s.send("starttls", &pb.MailMessage{To: []string{"one@customer.example", "nobody@customer.example", "later@customer.example"},
			Cc: []string{"elsewhere@foreign.example"}, Bcc: []string{"two@customer.example"}, Subject: "parts", Text: "t"})
		want := map[string]string{
			"one@customer.example":      "STATUS_ACCEPTED 250 2.0.0",
			"two@customer.example":      "STATUS_ACCEPTED 250 2.0.0",
			"nobody@customer.example":   "STATUS_REJECTED 550 5.1.1",
			"later@customer.example":    "STATUS_DEFERRED 451 4.7.1",
			"elsewhere@foreign.example": "STATUS_REJECTED 554 5.7.1",
		}
		if len(results) != len(want) || sent.Status != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT {
			t.Errorf("%d results, %v", len(results), sent)
		}
		for _, r := range results {
			if got := fmt.Sprintf("%v %d %s", r.Status, r.SmtpCode, r.EnhancedCode); got != want[r.Address] {
				t.Errorf("%s: %s, want %s", r.Address, got, want[r.Address])
			}
			if accepted := r.Status == pb.RecipientResult_STATUS_ACCEPTED; accepted != (r.RemoteId != "") || r.Detail == "" {
				t.Errorf("%v", r)
			}
			if r.Address == "nobody@customer.example" && !strings.Contains(r.Detail, "no such user") {
				t.Errorf("the relay's words are lost: %q", r.Detail)
			}
		}
		stored += 2
		p.stored(stored, "customer", "")
		p.waitLog(1, "to=<one@customer.example>", "status=sent")
		p.waitLog(1, "to=<two@customer.example>", "status=sent")
	})

	// Postfix answers the pipelined DATA behind refused recipients with 554; the next mail
	// shows that the two sides still agree where they are.
	t.Run("all refused", func(t *testing.T) {
		s, p := s.in(t), p.in(t)
		for range 3 {
			results, sent := s.send("plain", &pb.MailMessage{To: []string{"nobody@customer.example"}, Subject: "none", Text: "t"})
			if sent.Status != pb.MailStatus_MAIL_STATUS_FAILED || len(results) != 1 || results[0].SmtpCode != 550 || results[0].EnhancedCode != "5.1.1" || results[0].RemoteId != "" {
				t.Fatalf("%v", sent)
			}
			if _, sent = s.send("plain", &pb.MailMessage{To: []string{"one@customer.example"}, Subject: "one", Text: "t"}); sent.Status != pb.MailStatus_MAIL_STATUS_SENT {
				t.Fatalf("%v", sent)
			}
		}
		stored += 3
		p.stored(stored, "customer", "")
	})

	t.Run("too large", func(t *testing.T) {
		s := s.in(t)
		results, sent := s.send("starttls", &pb.MailMessage{To: []string{"one@customer.example"}, Subject: "large", Text: "t",
			Attachments: []*pb.Attachment{{Filename: "large.bin", Content: make([]byte, 1_900_000)}}})
		if sent.Status != pb.MailStatus_MAIL_STATUS_FAILED || len(results) != 1 || results[0].Status != pb.RecipientResult_STATUS_REJECTED || !strings.Contains(sent.LastError, "2000000") {
			t.Errorf("%v", sent)
		}
	})

	// An internationalised domain goes as its A-label; a mailbox with Unicode needs SMTPUTF8,
	// which this Postfix offers.
	t.Run("unicode", func(t *testing.T) {
		s, p := s.in(t), p.in(t)
		_, sent := s.send("starttls", &pb.MailMessage{To: []string{"info@münchen.example"}, Subject: "idn", Text: "t"})
		if sent.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Fatalf("%v", sent)
		}
		r := parse(t, p.stored(1, "idn", "")[0])
		if to := r.addresses(t, "To"); len(to) != 1 || to[0] != " <info@xn--mnchen-3ya.example>" || strings.Contains(r.header.Get("Received"), "UTF8SMTP") {
			t.Errorf("To %q, Received %q", to, r.header.Get("Received"))
		}
		_, sent = s.send("starttls", &pb.MailMessage{To: []string{"Jörg <jörg@münchen.example>"}, Subject: "utf8", Text: "t"})
		if sent.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Fatalf("%v", sent)
		}
		for _, raw := range p.stored(2, "idn", "") {
			r := parse(t, raw)
			if r.text(t, "Subject") != "utf8" {
				continue
			}
			if to := r.addresses(t, "To"); len(to) != 1 || to[0] != "Jörg <jörg@xn--mnchen-3ya.example>" || !strings.Contains(r.header.Get("Received"), "UTF8SMTPS") {
				t.Errorf("To %q, Received %q", to, r.header.Get("Received"))
			}
		}
	})

	t.Run("batch", func(t *testing.T) {
		s, p := s.in(t), p.in(t)
		const n = 100
		const complaint = "improper command pipelining"
		before, complaints := strings.Count(p.logText(), ": connect from"), strings.Count(p.logText(), complaint)
		ids := map[string]string{} // Message-ID to recipient
		for i := range n {
			to := fmt.Sprintf("u%d@customer.example", i)
			_, sent := s.send("bulk", &pb.MailMessage{To: []string{to}, Subject: fmt.Sprintf("Angebot %d 报价", i), Text: "Guten Tag", Html: "<p>Guten Tag</p>"})
			if sent.Status != pb.MailStatus_MAIL_STATUS_QUEUED {
				t.Fatalf("%v", sent)
			}
			ids[sent.MessageId] = to
		}
		b, err := s.admin.RunBatch(timeout(t), &pb.RunBatchRequest{Wait: true})
		if err != nil || b.Claimed != n || b.Sent != n {
			t.Fatalf("%v %v", b, err)
		}
		stored += n
		got := map[string]int{}
		for _, raw := range p.stored(stored, "customer", "") {
			r := parse(t, raw)
			id := r.header.Get("Message-ID")
			if to := ids[id]; to != "" {
				got[id]++
				if r.header.Get("Delivered-To") != to {
					t.Errorf("%s came to %s", to, r.header.Get("Delivered-To"))
				}
			}
		}
		for id, to := range ids {
			if got[id] != 1 {
				t.Errorf("%s got %d mails", to, got[id])
			}
			p.waitLog(1, ": message-id="+id) // taken once, whatever was stored
		}
		conns := strings.Count(p.logText(), ": connect from") - before
		if conns < 1 || conns > 10 {
			t.Errorf("%d connections for %d mails", conns, n)
		}
		if strings.Count(p.logText(), complaint) != complaints {
			t.Error("Postfix says that we spoke out of turn")
		}
		t.Logf("%d mails over %d connections", n, conns)
		list, err := s.dispatch.ListArchivedMails(timeout(t), &pb.ListArchivedMailsRequest{Filter: &pb.MailFilter{MailServer: "bulk"}, PageSize: 500})
		if err != nil || len(list.Mails) != n {
			t.Fatalf("%d mails in the archive: %v", len(list.GetMails()), err)
		}
		for _, m := range list.Mails {
			id := m.Recipients[0].RemoteId
			if !queueID.MatchString(id) {
				t.Fatalf("remote id %q", id)
			}
			p.waitLog(1, " "+id+": message-id="+m.MessageId)
		}
	})
}

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// smuggledHelo is a name for EHLO that brings commands and a mail of its own.
const smuggledHelo = "fe80::1%x\r\nMAIL FROM:<ceo@bank.example>\r\nRCPT TO:<victim@y.example>\r\nDATA\r\nFrom: ceo@bank.example\r\n\r\nsmuggled\r\n.\r\nNOOP"

// TestHeloNameIsNoWayIn: a name for EHLO with commands in it is refused by Create, Update and
// Test. One that an earlier version has saved makes nothing leave either, in php mode or in
// daemon mode, and Test and the health of the mail server say what to do.
func TestHeloNameIsNoWayIn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		conf := func(name string, mode pb.Mode) *pb.MailServer {
			return &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, Mode: mode, From: "a@x.example",
				Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE, HeloName: smuggledHelo}}
		}
		s.addServer("php", pb.Mode_MODE_PHP, relay.Port())
		s.addServer("daemon", pb.Mode_MODE_DAEMON, relay.Port())
		_, created := s.admin.CreateMailServer(timeout(t), &pb.CreateMailServerRequest{MailServer: conf("new", pb.Mode_MODE_PHP)})
		_, tested := s.admin.TestMailServer(timeout(t), &pb.TestMailServerRequest{MailServer: conf("", pb.Mode_MODE_UNSPECIFIED)})
		_, updated := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "php", Smtp: &pb.Smtp{HeloName: smuggledHelo}}})
		for what, err := range map[string]error{"Create": created, "Test": tested, "Update": updated} {
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(fmt.Sprint(status.Convert(err).Details()), "smtp.helo_name") {
				t.Errorf("%s: %v", what, err)
			}
		}

		s.stop()
		db := s.database()
		for _, name := range []string{"php", "daemon"} {
			saved := fmt.Sprintf(`{"host":"127.0.0.1","port":%d,"encryption":"none","helo_name":%q}`, relay.Port(), smuggledHelo)
			if _, err := db.Exec("update mail_server set smtp = $1 where name = $2", saved, name); err != nil {
				t.Fatal(err)
			}
		}
		_ = db.Close()
		s.run()
		r := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "php"}, Message: message("b@y.example")})
		if r.mail.Status != pb.MailStatus_MAIL_STATUS_FAILED {
			t.Errorf("php mode: %v", r.mail)
		}
		queued := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "daemon"}, Message: message("b@y.example")})
		s.batch()
		if m := s.mail(queued.id); m.Status != pb.MailStatus_MAIL_STATUS_QUEUED {
			t.Errorf("daemon mode: %v", m)
		}
		for _, name := range []string{"php", "daemon"} {
			res, err := s.admin.TestMailServer(timeout(t), &pb.TestMailServerRequest{Name: name})
			if err != nil || res.Success || !strings.Contains(res.Message, "helo_name") {
				t.Errorf("%s: %v %v", name, res, err)
			}
		}
		if h := s.health("daemon"); !strings.Contains(h.GetSuspendedReason(), "helo_name") || strings.ContainsFunc(h.SuspendedReason, unicode.IsControl) {
			t.Errorf("health: %v", h)
		}
		for _, l := range relay.Lines() {
			if l != "QUIT" {
				t.Errorf("the relay heard %q", l)
			}
		}
		if n := len(relay.Mails()); n != 0 {
			t.Errorf("%d mails left", n)
		}
	})
}

// TestLongFaultIsKeptShort: a relay that offers 60 KB of login mechanisms costs each recipient
// of a mail a short text.
func TestLongFaultIsKeptShort(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		offer := "250-x\r\n" + strings.Repeat("250-AUTH "+strings.Repeat("XOAUTHX ", 500)+"\r\n", 15) + "250 8BITMIME\r\n"
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "EHLO" {
				return &smtpxtest.Action{Reply: offer}
			}
			return nil
		}}).Start(t)
		yes := true
		s.addServer("main", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) {
			m.Smtp.Username, m.Smtp.Password, m.Smtp.AllowPlaintextAuth = "u", "p", &yes
		})
		var to []string
		for i := range 500 {
			to = append(to, fmt.Sprintf("r%d@y.example", i))
		}
		r := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: message(to...)})
		if r.mail.Status != pb.MailStatus_MAIL_STATUS_FAILED || len(r.mail.LastError) > 2<<10 {
			t.Errorf("%v, last error of %d octets", r.mail.Status, len(r.mail.LastError))
		}
		if n := s.count("select max(length(cast(progress as text))) from due"); n > 1<<20 {
			t.Errorf("the journal row has %d octets", n)
		}
		if _, err := s.dispatch.ListDueOutMails(timeout(t), &pb.ListDueOutMailsRequest{PageSize: 1}); err != nil {
			t.Error(err)
		}
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) {
			m.Smtp.Username, m.Smtp.Password, m.Smtp.AllowPlaintextAuth = "u", "p", &yes
		})
		queued := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk"}, Message: message(to...)})
		s.batch()
		if m, h := s.mail(queued.id), s.health("bulk"); m.Status != pb.MailStatus_MAIL_STATUS_QUEUED || len(m.LastError) > 2<<10 || h.GetSuspendedReason() == "" || len(h.GetSuspendedReason()) > 2<<10 {
			t.Errorf("daemon mode: %v, last error of %d octets, suspended for %d octets", m.Status, len(m.LastError), len(h.GetSuspendedReason()))
		}
	})
}

// TestEveryFileCanBeComposed: a file is taken or refused when its mail is handed in, whatever
// it is called. One item of a batch or a stream never ends the others.
func TestEveryFileCanBeComposed(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	s := start(t, storetest.SQLiteDSN(t))
	s.addServer("main", pb.Mode_MODE_DAEMON, relay.Port())
	options := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "main"}}
	want := 0
	for _, name := range []string{"forward.eml", "page.mht", "x.mime", "x.mbox", "x.unheard-of", "x"} {
		msg := message("a@y.example")
		msg.Attachments = []*pb.Attachment{{Filename: name, Content: []byte("x")}}
		s.mustSend(&pb.SendRequest{Options: options.Options, Message: msg})
		if res := s.mustSendAll(options, &pb.BatchItem{Message: message("b@y.example")}, &pb.BatchItem{Message: msg}, &pb.BatchItem{Message: message("c@y.example")}); res.Accepted != 3 {
			t.Errorf("SendBatch, %s: %v", name, res)
		}
		if _, err := s.stream(timeout(t), options, &pb.BatchItem{Message: message("b@y.example")}, &pb.BatchItem{Message: msg}, &pb.BatchItem{Message: message("c@y.example")}); err != nil {
			t.Errorf("SendStream, %s: %v", name, err)
		}
		up := s.mustUpload(&header{Filename: name}, []byte("x"))
		stored := message("d@y.example")
		stored.Attachments = []*pb.Attachment{{UploadId: up.UploadId}}
		s.mustSend(&pb.SendRequest{Options: options.Options, Message: stored})
		want += 8
	}
	if n := s.count("select count(*) from mail"); n != want {
		t.Errorf("%d mails were taken, want %d", n, want)
	}
	if s.batch(); len(relay.Mails()) != want {
		t.Errorf("%d mails left, want %d", len(relay.Mails()), want)
	}
}

// cuttingRelay resets every connection some way into the body, as often as cuts says; then it
// takes mails. It returns its port and how many it took.
func cuttingRelay(t *testing.T, cuts int64) (port int, taken *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	taken = &atomic.Int64{}
	var left atomic.Int64
	left.Store(cuts)
	serve := func(c *net.TCPConn) {
		defer c.Close()
		_ = c.SetReadBuffer(64 << 10)
		// the mail's result tells of every failure here
		_, _ = io.WriteString(c, "220 relay\r\n")
		br := bufio.NewReader(c)
		for {
			line, err := br.ReadString('\n')
			switch {
			case err != nil:
				return
			case !strings.HasPrefix(line, "DATA"):
				_, _ = io.WriteString(c, "250 ok\r\n")
				continue
			}
			_, _ = io.WriteString(c, "354 go on\r\n")
			if left.Add(-1) >= 0 {
				_, _ = io.CopyN(io.Discard, br, 100<<10)
				_ = c.SetLinger(0)
				return
			}
			for line != ".\r\n" {
				if line, err = br.ReadString('\n'); err != nil {
					return
				}
			}
			taken.Add(1)
			_, _ = io.WriteString(c, "250 ok\r\n")
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*net.TCPConn))
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, taken
}

// TestCutInTheBody: a connection that breaks in the body of a mail has delivered nothing, so
// nobody is in doubt: not even of an invoice, in either mode. The mail is tried again on a
// fresh connection, and where that breaks as well the caller hears a failure and the queue
// keeps the mail.
func TestCutInTheBody(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		large := message("a@y.example")
		large.Attachments = []*pb.Attachment{{Filename: "a.pdf", Content: bytes.Repeat([]byte("x"), 7<<20)}}
		for _, c := range []struct {
			mode pb.Mode
			cuts int64
			want pb.MailStatus
		}{
			{pb.Mode_MODE_PHP, 1, pb.MailStatus_MAIL_STATUS_SENT},
			{pb.Mode_MODE_PHP, 100, pb.MailStatus_MAIL_STATUS_FAILED},
			{pb.Mode_MODE_DAEMON, 1, pb.MailStatus_MAIL_STATUS_SENT},
			{pb.Mode_MODE_DAEMON, 100, pb.MailStatus_MAIL_STATUS_QUEUED},
		} {
			port, taken := cuttingRelay(t, c.cuts)
			name := strings.ToLower(fmt.Sprintf("%s-%d", strings.TrimPrefix(c.mode.String(), "MODE_"), c.cuts))
			s.addServer(name, c.mode, port)
			r := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: name, Kind: pb.Kind_KIND_INVOICE}, Message: large})
			if c.mode == pb.Mode_MODE_DAEMON {
				s.batch()
			}
			m := s.mail(r.id)
			if m.Status != c.want || m.PossibleDuplicate || (taken.Load() == 1) != (c.want == pb.MailStatus_MAIL_STATUS_SENT) {
				t.Errorf("%s: %v, possible duplicate %v, %s; arrived %d times", name, m.Status, m.PossibleDuplicate, m.LastError, taken.Load())
			}
		}
		if n := s.count("select count(*) from due where data_at is not null"); n != 0 {
			t.Errorf("%d marks are left", n)
		}
	})
}

// TestOneRecipientsNeed: a recipient that needs SMTPUTF8, where the relay has none, is refused
// alone.
func TestOneRecipientsNeed(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	s := start(t, storetest.SQLiteDSN(t))
	for name, mode := range map[string]pb.Mode{"now": pb.Mode_MODE_PHP, "bulk": pb.Mode_MODE_DAEMON} {
		s.addServer(name, mode, relay.Port())
		msg := message("good@y.example", "good2@y.example")
		msg.Bcc = []string{"jörg@y.example"}
		r := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: name}, Message: msg})
		if mode == pb.Mode_MODE_DAEMON {
			s.batch()
		}
		m := s.mail(r.id)
		got := map[string]pb.RecipientResult_Status{}
		for _, x := range m.Recipients {
			got[x.Address] = x.Status
		}
		if m.Status != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT || got["good@y.example"] != pb.RecipientResult_STATUS_ACCEPTED ||
			got["good2@y.example"] != pb.RecipientResult_STATUS_ACCEPTED || got["jörg@y.example"] != pb.RecipientResult_STATUS_REJECTED {
			t.Errorf("%s: %v %v", name, m.Status, got)
		}
	}
}

// TestLastWordsAreKept: what a relay says before it closes stands in the mail's last error and
// with every recipient, in either mode.
func TestLastWordsAreKept(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	for _, ext := range [][]string{{"PIPELINING", "ENHANCEDSTATUSCODES"}, {"ENHANCEDSTATUSCODES"}} {
		for _, verb := range []string{"MAIL", "RCPT", "DATA", "DOT"} {
			for _, mode := range []pb.Mode{pb.Mode_MODE_PHP, pb.Mode_MODE_DAEMON} {
				relay := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
					if c.Verb == verb {
						return &smtpxtest.Action{Reply: "421 4.4.2 rate exceeded\r\n", Close: true}
					}
					return nil
				}}).Start(t)
				name := strings.ToLower(fmt.Sprintf("%s-%d-%s", verb, len(ext), strings.TrimPrefix(mode.String(), "MODE_")))
				s.addServer(name, mode, relay.Port())
				r := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: name}, Message: message("a@y.example", "b@y.example")})
				if mode == pb.Mode_MODE_DAEMON {
					s.batch()
				}
				m := s.mail(r.id)
				if !strings.Contains(m.LastError, "421 4.4.2 rate exceeded") {
					t.Errorf("%s: %v, last error %q", name, m.Status, m.LastError)
				}
				for _, x := range m.Recipients {
					if x.SmtpCode != 421 || x.EnhancedCode != "4.4.2" || x.Detail != "rate exceeded" || x.Failure != pb.RecipientResult_FAILURE_RATE || x.Hint == "" {
						t.Errorf("%s: %v", name, x)
					}
				}
			}
		}
	}
}

// TestReplyAboutTheServer: a relay that refuses our login or our sender refuses every mail
// alike. No queued mail fails of it or loses an attempt; the mail server is suspended with the
// relay's words, a php-mode caller is told at once, and what was queued leaves when the relay
// is well again.
func TestReplyAboutTheServer(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	for i, c := range []struct{ verb, words string }{
		{"MAIL", "530 5.7.0 authentication required"}, {"MAIL", "550 5.7.1 sender not allowed"}, {"RCPT", "530 5.7.0 authentication required"}, {"DATA", "554 too many connections"},
	} {
		var well atomic.Bool
		relay := (&smtpxtest.Server{On: func(cmd smtpxtest.Command) *smtpxtest.Action {
			if cmd.Verb == c.verb && !well.Load() {
				return &smtpxtest.Action{Reply: c.words + "\r\n", Refuse: true}
			}
			return nil
		}}).Start(t)
		php, bulk := fmt.Sprintf("php-%d", i), fmt.Sprintf("bulk-%d", i)
		s.addServer(php, pb.Mode_MODE_PHP, relay.Port())
		s.addServer(bulk, pb.Mode_MODE_DAEMON, relay.Port())
		told := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: php}, Message: message("a@y.example")})
		if f := told.mail.Recipients[0].Failure; f == pb.RecipientResult_FAILURE_UNSPECIFIED {
			t.Errorf("%s %s: php mode: no failure class: %v", c.verb, c.words, told.mail.Recipients[0])
		}
		if told.mail.Status != pb.MailStatus_MAIL_STATUS_FAILED || !strings.Contains(told.mail.LastError, c.words[:3]) {
			t.Errorf("%s %s: php mode: %v %s", c.verb, c.words, told.mail.Status, told.mail.LastError)
		}
		var ids []string
		for range 5 {
			ids = append(ids, s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: bulk}, Message: message("a@y.example", "b@y.example")}).id)
		}
		s.batch()
		for _, id := range ids {
			if m := s.mail(id); m.Status != pb.MailStatus_MAIL_STATUS_QUEUED {
				t.Errorf("%s %s: %v %s", c.verb, c.words, m.Status, m.LastError)
			}
		}
		_, text, _ := strings.Cut(c.words, " ")
		if h := s.health(bulk); h.GetState() != pb.Health_STATE_SUSPENDED || !strings.Contains(h.SuspendedReason, text) {
			t.Errorf("%s %s: %v", c.verb, c.words, h)
		}
		well.Store(true)
		eventually(t, time.Minute, "all left", func() bool {
			s.batch()
			return s.count("select count(*) from due where mail_server = $1", bulk) == 0
		})
		for _, id := range ids {
			if m := s.mail(id); m.Status != pb.MailStatus_MAIL_STATUS_SENT {
				t.Errorf("%s %s: %v", c.verb, c.words, m)
			}
		}
	}
}

// TestTooManyRecipients: a relay that takes ten recipients a transaction gets the rest in the
// next one, at once and at no cost.
func TestTooManyRecipients(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	for i, words := range []string{"452 4.5.3 too many recipients", "552 5.5.3 too many recipients"} {
		relay := tenAtATime(t, words)
		for _, mode := range []pb.Mode{pb.Mode_MODE_PHP, pb.Mode_MODE_DAEMON} {
			name := strings.ToLower(fmt.Sprintf("%s-%d", strings.TrimPrefix(mode.String(), "MODE_"), i))
			s.addServer(name, mode, relay.Port())
			var to []string
			for k := range 45 {
				to = append(to, fmt.Sprintf("r%d@y.example", k))
			}
			r := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: name}, Message: message(to...)})
			if mode == pb.Mode_MODE_DAEMON {
				s.batch()
			}
			if m := s.mail(r.id); m.Status != pb.MailStatus_MAIL_STATUS_SENT || len(m.Attempts) != 1 {
				t.Errorf("%s, %s: %v, %d attempts, %s", name, words, m.Status, len(m.Attempts), m.LastError)
			}
		}
		if n := len(relay.Mails()); n != 10 {
			t.Errorf("%s: %d transactions, want 5 for each of two mails", words, n)
		}
	}
}

func tenAtATime(t *testing.T, words string) *smtpxtest.Server {
	t.Helper()
	var mu sync.Mutex
	taken := map[int]int{} // of the transaction, by connection
	return (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		mu.Lock()
		defer mu.Unlock()
		switch c.Verb {
		case "MAIL":
			taken[c.Conn] = 0
		case "RCPT":
			if taken[c.Conn]++; taken[c.Conn] > 10 {
				return &smtpxtest.Action{Reply: words + "\r\n", Refuse: true}
			}
		}
		return nil
	}}).Start(t)
}

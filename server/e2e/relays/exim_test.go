//go:build relays

package relays

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// A submission server: a login is required, and offered only over TLS but on the third port,
// which offers it in the clear. Everything runs as one user without rights
// (deliver_drop_privilege). The delays Exim puts before an answer to strangers are off, and so
// is leaving the later mails of a connection to the queue.
const eximConf = `
exim_path = EXIM
spool_directory = DIR/spool
log_file_path = DIR/log/%slog
primary_hostname = exim.relay.example
domainlist local_domains = customer.example
local_interfaces = 127.0.0.1
daemon_smtp_ports = STARTTLS : TLS : CLEAR
tls_on_connect_ports = TLS
tls_advertise_hosts = *
tls_certificate = DIR/cert.pem
tls_privatekey = DIR/key.pem
auth_advertise_hosts = ${if or{ {def:tls_in_cipher} {eq{$received_port}{CLEAR}} } {*}}
deliver_drop_privilege
smtputf8_advertise_hosts =
host_lookup =
rfc1413_query_timeout = 0s
smtp_accept_queue_per_connection = 0
keep_environment =
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny !authenticated = *
    message = 5.7.1 log in first
  deny local_parts = nobody
    message = 5.1.1 no such user
  defer local_parts = later
    message = 4.7.1 greylisted
  accept domains = +local_domains
  deny message = 5.7.1 not for us
begin routers
all:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  directory = DIR/mail/all
  maildir_format
  envelope_to_add
  return_path_add
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{ {eq{$auth2}{USER}} {eq{$auth3}{PASSWORD}} }}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{ {eq{$auth1}{USER}} {eq{$auth2}{PASSWORD}} }}
  server_set_id = $auth1
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${if eq{$auth1}{USER}{PASSWORD}fail}
  server_set_id = $auth1
xoauth2:
  driver = plaintext
  public_name = XOAUTH2
  server_prompts = :
  server_condition = ${if eq{$auth1}{user=shop@shop.example\x01auth=Bearer TOKEN\x01\x01}}
  server_set_id = shop@shop.example
`

const (
	eximUser = "dispatch@shop.example"
	// In base64 its first letters read "eHlO", which must not be taken for a command; the rest
	// shows which encoding is used.
	eximPassword = "xyNabc Straße 北京"
)

// eximToken is as long as real ones are: it does not go with the AUTH command.
var eximToken = strings.Repeat("eyJ0eXAi.", 200)

type exim struct {
	*relay
	starttlsPort, tlsPort, clearPort int
}

func startExim(t *testing.T) *exim {
	t.Helper()
	program := os.Getenv("MAILDISPATCH_TEST_EXIM")
	if program == "" {
		t.Fatal("no Exim: run server/e2e/relays/install.sh FOLDER and set MAILDISPATCH_TEST_EXIM=FOLDER/exim4")
	}
	x := &exim{relay: newRelay(t), starttlsPort: freePort(t), tlsPort: freePort(t), clearPort: freePort(t)}
	u := lookup(t, "Debian-exim")
	for _, f := range []string{"spool", "log", "mail"} {
		x.folder(f, u)
	}
	x.write("exim.conf", strings.NewReplacer("EXIM", program, "STARTTLS", fmt.Sprint(x.starttlsPort), "TLS", fmt.Sprint(x.tlsPort), "CLEAR", fmt.Sprint(x.clearPort),
		"USER", eximUser, "PASSWORD", eximPassword, "TOKEN", eximToken).Replace(eximConf))
	cmd := exec.Command(program, "-C", filepath.Join(x.dir, "exim.conf"), "-bdf", "-q1h")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid)}}
	x.run(x.starttlsPort, cmd)
	return x
}

func (x *exim) smtp(enc pb.Smtp_Encryption, auth pb.Smtp_Auth) *pb.Smtp {
	s := &pb.Smtp{Host: "127.0.0.1", Encryption: enc, Auth: auth, Username: eximUser, Password: eximPassword}
	switch enc {
	case pb.Smtp_ENCRYPTION_TLS:
		s.Port, s.CaPem = int32(x.tlsPort), string(x.pem)
	case pb.Smtp_ENCRYPTION_STARTTLS:
		s.Port, s.CaPem = int32(x.starttlsPort), string(x.pem)
	default:
		s.Port, s.AllowPlaintextAuth = int32(x.clearPort), new(true)
	}
	return s
}

var eximID = regexp.MustCompile(`^[0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4}$`)

// TestExim holds the service against Exim as it comes with Debian: each way to log in over each
// way to encrypt.
func TestExim(t *testing.T) {
	x, s := startExim(t), start(t) // the service ends first
	wrong := "not " + eximPassword
	for _, enc := range []pb.Smtp_Encryption{pb.Smtp_ENCRYPTION_TLS, pb.Smtp_ENCRYPTION_STARTTLS, pb.Smtp_ENCRYPTION_NONE} {
		for _, auth := range []pb.Smtp_Auth{pb.Smtp_AUTH_PLAIN, pb.Smtp_AUTH_LOGIN, pb.Smtp_AUTH_CRAM_MD5, pb.Smtp_AUTH_UNSPECIFIED} {
			name := strings.ToLower(strings.ReplaceAll(fmt.Sprintf("%s-%s", strings.TrimPrefix(enc.String(), "ENCRYPTION_"), strings.TrimPrefix(auth.String(), "AUTH_")), "_", "-"))
			t.Run(name, func(t *testing.T) {
				s, r := s.in(t), x.in(t)
				s.addServer(name, pb.Mode_MODE_PHP, x.smtp(enc, auth))
				steps := s.connects(name, "kim@customer.example")
				outcome := pb.TestStep_OUTCOME_OK
				if enc == pb.Smtp_ENCRYPTION_NONE {
					outcome = pb.TestStep_OUTCOME_WARNING // the password can be read on the way
				}
				if steps[pb.TestStep_KIND_AUTH].Outcome != outcome || steps[pb.TestStep_KIND_AUTH].SmtpCode != 235 {
					t.Errorf("%v", steps[pb.TestStep_KIND_AUTH])
				}
				s.fails(name, &pb.Smtp{Password: wrong}, "kim@customer.example", pb.TestStep_KIND_AUTH, 535)
				s.fails(name, &pb.Smtp{Username: "stranger", Password: eximPassword}, "", pb.TestStep_KIND_AUTH, 535)

				box := "box-" + name
				m := rich([]string{"金 <" + box + "@customer.example>"}, []string{"Cc, Åsa <cc-" + name + "@customer.example>"}, []string{"hidden-" + name + "@customer.example"})
				m.Cc[0] = `"Cc, Åsa" <cc-` + name + `@customer.example>`
				results, sent := s.send(name, m)
				if sent.Status != pb.MailStatus_MAIL_STATUS_SENT || len(results) != 3 {
					t.Fatalf("%v", sent)
				}
				id := results[0].RemoteId
				for _, r := range results {
					if r.Status != pb.RecipientResult_STATUS_ACCEPTED || r.SmtpCode != 250 || r.EnhancedCode != "" || r.RemoteId != id || !eximID.MatchString(id) {
						t.Errorf("%v", r)
					}
				}
				// Exim's own word: the arrival with its id, how it was encrypted and who logged
				// in by which authenticator.
				driver := map[pb.Smtp_Auth]string{pb.Smtp_AUTH_PLAIN: "plain", pb.Smtp_AUTH_LOGIN: "login", pb.Smtp_AUTH_CRAM_MD5: "cram"}[auth]
				line := r.waitLog(1, " "+id+" <= shop@shop.example", "id="+strings.Trim(sent.MessageId, "<>"))[0]
				if encrypted := enc != pb.Smtp_ENCRYPTION_NONE; strings.Contains(line, " X=TLS1.3:") != encrypted || !strings.Contains(line, " A="+driver) || !strings.Contains(line, ":"+eximUser+" ") {
					t.Errorf("%s", line)
				}
				r.waitLog(1, " "+id+" Completed")
				for _, to := range []string{box, "cc-" + name, "hidden-" + name} {
					raw := r.stored(1, "all", "Envelope-to: "+to+"@customer.example")[0]
					compare(t, raw, m, sent)
					trace := parse(t, raw).header.Get("Received")
					if !strings.Contains(trace, "by exim.relay.example") || !strings.Contains(trace, " id "+id) {
						t.Errorf("Received %q: no id %s", trace, id)
					}
					if !strings.HasPrefix(to, "hidden") {
						hides(t, raw, "Envelope-to: ", "hidden")
					}
				}
			})
		}
	}

	t.Run("xoauth2", func(t *testing.T) {
		s, r := s.in(t), x.in(t)
		issued := eximToken
		provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, issued)
		}))
		defer provider.Close()
		smtp := x.smtp(pb.Smtp_ENCRYPTION_STARTTLS, pb.Smtp_AUTH_XOAUTH2)
		smtp.Username, smtp.Password = "", ""
		smtp.Oauth2 = &pb.OAuth2{Grant: pb.OAuth2_GRANT_CLIENT_CREDENTIALS, ClientId: "app", ClientSecret: "s", TokenUrl: provider.URL}
		s.addServer("xoauth2", pb.Mode_MODE_PHP, smtp)
		steps := s.connects("xoauth2", "kim@customer.example")
		if steps[pb.TestStep_KIND_TOKEN].Outcome != pb.TestStep_OUTCOME_OK || steps[pb.TestStep_KIND_AUTH].SmtpCode != 235 {
			t.Errorf("%v", steps)
		}
		_, sent := s.send("xoauth2", &pb.MailMessage{To: []string{"token@customer.example"}, Subject: "token", Text: "t"})
		if sent.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Fatalf("%v", sent)
		}
		if line := r.waitLog(1, " <= shop@shop.example", "id="+strings.Trim(sent.MessageId, "<>"))[0]; !strings.Contains(line, " A=xoauth2:shop@shop.example ") {
			t.Errorf("%s", line)
		}
		issued = "expired." + eximToken
		s.fails("xoauth2", nil, "", pb.TestStep_KIND_AUTH, 535)
	})

	t.Run("no login without tls", func(t *testing.T) {
		s := s.in(t)
		clear := x.smtp(pb.Smtp_ENCRYPTION_NONE, pb.Smtp_AUTH_UNSPECIFIED)
		clear.Port = int32(x.starttlsPort) // offers a login only behind STARTTLS
		s.addServer("hidden-login", pb.Mode_MODE_PHP, clear)
		s.fails("hidden-login", nil, "", pb.TestStep_KIND_AUTH, 0)
		_, sent := s.send("hidden-login", &pb.MailMessage{To: []string{"never@customer.example"}, Subject: "never", Text: "t"})
		if sent.Status == pb.MailStatus_MAIL_STATUS_SENT || sent.Recipients[0].RemoteId != "" {
			t.Errorf("%v", sent)
		}
	})

	t.Run("wrong line", func(t *testing.T) {
		s := s.in(t)
		s.fails("tls-plain", &pb.Smtp{CaPem: otherCA(t), Password: eximPassword}, "", pb.TestStep_KIND_TLS, 0)
		s.fails("starttls-plain", &pb.Smtp{CaPem: otherCA(t), Password: eximPassword}, "", pb.TestStep_KIND_STARTTLS, 0)
		s.fails("starttls-plain", &pb.Smtp{Encryption: pb.Smtp_ENCRYPTION_TLS, Password: eximPassword}, "", pb.TestStep_KIND_TLS, 0)
	})

	t.Run("refused", func(t *testing.T) {
		s, r := s.in(t), x.in(t)
		for _, name := range []string{"tls-plain", "starttls-login", "none-cram-md5"} {
			box := "some-" + name
			results, sent := s.send(name, &pb.MailMessage{To: []string{box + "@customer.example", "nobody@customer.example"}, Cc: []string{"later@customer.example"},
				Bcc: []string{"elsewhere@foreign.example"}, Subject: "parts", Text: "t"})
			want := map[string]string{
				box + "@customer.example":   "STATUS_ACCEPTED 250 ",
				"nobody@customer.example":   "STATUS_REJECTED 550 5.1.1",
				"later@customer.example":    "STATUS_DEFERRED 451 4.7.1",
				"elsewhere@foreign.example": "STATUS_REJECTED 550 5.7.1",
			}
			if len(results) != len(want) || sent.Status != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT {
				t.Errorf("%d results, %v", len(results), sent)
			}
			for _, r := range results {
				if got := fmt.Sprintf("%v %d %s", r.Status, r.SmtpCode, r.EnhancedCode); got != want[r.Address] {
					t.Errorf("%s: %s, want %s", r.Address, got, want[r.Address])
				}
			}
			r.stored(1, "all", "Envelope-to: "+box+"@customer.example")
		}
	})

	// This Exim offers no SMTPUTF8: one recipient that needs it is nobody else's refusal.
	t.Run("without smtputf8", func(t *testing.T) {
		s, r := s.in(t), x.in(t)
		results, sent := s.send("tls-plain", &pb.MailMessage{To: []string{"plain@customer.example"}, Bcc: []string{"jörg@customer.example"}, Subject: "utf8", Text: "t"})
		if len(results) != 2 || sent.Status != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT {
			t.Errorf("%d results, %v", len(results), sent)
		}
		for _, r := range results {
			if plain := r.Address == "plain@customer.example"; (r.Status == pb.RecipientResult_STATUS_ACCEPTED) != plain || !plain && !strings.Contains(r.Detail, "SMTPUTF8") {
				t.Errorf("%v", r)
			}
		}
		r.stored(1, "all", "Envelope-to: plain@customer.example")
	})

	// Exim answers DATA behind refused recipients with 503; the mail after it shows that both
	// sides still agree where they are.
	t.Run("all refused", func(t *testing.T) {
		s, r := s.in(t), x.in(t)
		for range 3 {
			results, sent := s.send("starttls-cram-md5", &pb.MailMessage{To: []string{"nobody@customer.example"}, Subject: "none", Text: "t"})
			if sent.Status != pb.MailStatus_MAIL_STATUS_FAILED || len(results) != 1 || results[0].SmtpCode != 550 || results[0].EnhancedCode != "5.1.1" {
				t.Fatalf("%v", sent)
			}
			if _, sent = s.send("starttls-cram-md5", &pb.MailMessage{To: []string{"after@customer.example"}, Subject: "one", Text: "t"}); sent.Status != pb.MailStatus_MAIL_STATUS_SENT {
				t.Fatalf("%v", sent)
			}
		}
		r.stored(3, "all", "Envelope-to: after@customer.example")
	})

	// Exim cuts a client off that speaks out of turn ("synchronization error"): body, dot and
	// the next mail's commands in one write must be its turn.
	t.Run("batch", func(t *testing.T) {
		s, r := s.in(t), x.in(t)
		const n, complaint = 50, "synchronization error"
		before := strings.Count(r.logText(), complaint)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, x.smtp(pb.Smtp_ENCRYPTION_STARTTLS, pb.Smtp_AUTH_UNSPECIFIED))
		ids := map[string]string{} // Message-ID to recipient
		for i := range n {
			to := fmt.Sprintf("u%d@customer.example", i)
			m := &pb.MailMessage{To: []string{to}, Subject: fmt.Sprintf("Angebot %d 报价", i), Text: "Guten Tag"}
			if i%10 == 7 {
				m.Cc = []string{"nobody@customer.example"}
			}
			_, sent := s.send("bulk", m)
			ids[sent.MessageId] = to
		}
		b, err := s.admin.RunBatch(timeout(t), &pb.RunBatchRequest{Wait: true})
		if err != nil || b.Claimed != n || b.Sent != n-n/10 || b.PartiallySent != n/10 {
			t.Fatalf("%v %v", b, err)
		}
		for id, to := range ids {
			r.waitLog(1, " <= shop@shop.example", " id="+strings.Trim(id, "<>"))
			raw := r.stored(1, "all", "Envelope-to: "+to)[0]
			if got := parse(t, raw).header.Get("Message-ID"); got != id {
				t.Errorf("%s got %s, not %s", to, got, id)
			}
		}
		if strings.Count(r.logText(), complaint) != before {
			t.Error("Exim says that we spoke out of turn")
		}
	})
}

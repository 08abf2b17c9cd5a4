package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// tokenEndpoint is a scripted provider: it gives tok1, tok2 and so on, and takes each refresh
// token (r1, r2) once.
type tokenEndpoint struct {
	*httptest.Server
	mu      sync.Mutex
	down    bool
	given   int
	refresh int
	during  func() // called by each request; nil = nothing
}

func newTokenEndpoint(t *testing.T) *tokenEndpoint {
	e := &tokenEndpoint{refresh: 1}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		if e.during != nil {
			e.during()
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		more := ""
		switch {
		case e.down:
			w.WriteHeader(503)
			return
		case r.Form.Get("grant_type") == "refresh_token":
			if r.Form.Get("refresh_token") != fmt.Sprint("r", e.refresh) {
				w.WriteHeader(400)
				fmt.Fprint(w, `{"error":"invalid_grant","error_description":"used up"}`)
				return
			}
			e.refresh++
			more = fmt.Sprintf(`,"refresh_token":"r%d"`, e.refresh)
		case r.Form.Get("client_secret") != "cl1ent-s3cret":
			w.WriteHeader(401)
			fmt.Fprint(w, `{"error":"invalid_client"}`)
			return
		}
		e.given++
		fmt.Fprintf(w, `{"access_token":"tok%d","token_type":"Bearer","expires_in":3600%s}`, e.given, more)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *tokenEndpoint) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// takes is a relay that takes only these tokens at a login.
func takes(ok func(conn int, token string) bool, more func(smtpxtest.Command) *smtpxtest.Action) *smtpxtest.Server {
	return &smtpxtest.Server{Username: "shop@x.example", Password: "-", Mechanisms: []string{"PLAIN", "XOAUTH2"}, On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb != "AUTH" {
			if more != nil {
				return more(c)
			}
			return nil
		}
		b, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(c.Arg, "XOAUTH2 "))
		user, token, found := strings.Cut(string(b), "\x01auth=Bearer ")
		if found && user == "user=shop@x.example" && ok(c.Conn, strings.TrimSuffix(token, "\x01\x01")) {
			return &smtpxtest.Action{Reply: "235 2.7.0 welcome\r\n"}
		}
		return &smtpxtest.Action{Reply: "535 5.7.3 Authentication unsuccessful\r\n", Refuse: true}
	}}
}

func withOAuth(e *tokenEndpoint, o *pb.OAuth2) func(*pb.MailServer) {
	return func(m *pb.MailServer) {
		yes := true
		m.Smtp.Auth, m.Smtp.AllowPlaintextAuth, m.Smtp.Oauth2 = pb.Smtp_AUTH_XOAUTH2, &yes, o
		o.TokenUrl, o.ClientId = e.URL, "app"
	}
}

func clientSecret(s string) *pb.OAuth2 {
	return &pb.OAuth2{Grant: pb.OAuth2_GRANT_CLIENT_CREDENTIALS, ClientSecret: s, Scopes: []string{"https://outlook.office365.com/.default"}}
}

// delivered sends a mail in php mode.
func (r *rig) delivered(server string) error {
	evs, err := r.send(ctx(r.t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: message("a@y.example")})
	if err != nil {
		return err
	}
	last := evs[len(evs)-1]
	if got := last.GetCompleted().GetMail().GetStatus(); got != pb.MailStatus_MAIL_STATUS_SENT {
		return fmt.Errorf("%v: %v", got, last)
	}
	return nil
}

func (r *rig) oauthOf(name string) *pb.OAuth2 {
	r.t.Helper()
	res, err := r.admin.GetMailServer(ctx(r.t), &pb.GetMailServerRequest{Name: name})
	if err != nil {
		r.t.Fatal(err)
	}
	return res.MailServer.Smtp.Oauth2
}

// TestOAuth2: a mail leaves after a login with a token, whose secrets never come out again, and
// which go with the place that they were given for.
func TestOAuth2(t *testing.T) {
	t.Parallel()
	e := newTokenEndpoint(t)
	r := newRig(t, storetest.SQLiteDSN(t), takes(func(int, string) bool { return true }, nil))
	m := r.server("main", pb.Mode_MODE_PHP, withOAuth(e, clientSecret("cl1ent-s3cret")))
	if o := m.Smtp.Oauth2; !o.HasClientSecret || o.ClientSecret != "" || o.Grant != pb.OAuth2_GRANT_CLIENT_CREDENTIALS || len(o.Scopes) != 1 {
		t.Errorf("%v", o)
	}
	for range 2 {
		if err := r.delivered("main"); err != nil {
			t.Fatal(err)
		}
	}
	if e.given != 1 {
		t.Errorf("two mails took %d tokens, want one", e.given)
	}
	update := func(mask string, m *pb.MailServer) {
		t.Helper()
		m.Name = "main"
		req := &pb.UpdateMailServerRequest{MailServer: m}
		if mask != "" {
			req.UpdateMask = &fieldmaskpb.FieldMask{Paths: []string{mask}}
		}
		if _, err := r.admin.UpdateMailServer(ctx(t), req); err != nil {
			t.Fatal(err)
		}
	}
	update("", &pb.MailServer{DisplayName: "Shop", Smtp: &pb.Smtp{Oauth2: &pb.OAuth2{Scopes: []string{"a", "b"}}}})
	if o := r.oauthOf("main"); !o.HasClientSecret || len(o.Scopes) != 2 {
		t.Errorf("after a change of the scopes: %v, want the secret kept", o)
	}
	update("", &pb.MailServer{From: "Books <shop@x.example>"})
	if o := r.oauthOf("main"); !o.HasClientSecret {
		t.Error("a sender's other name drops the secret, want it kept: the mailbox is the same")
	}
	for _, x := range []struct {
		what   string
		change *pb.MailServer
	}{{"token_url", &pb.MailServer{Smtp: &pb.Smtp{Oauth2: &pb.OAuth2{TokenUrl: "http://127.0.0.1:9/"}}}},
		{"client_id", &pb.MailServer{Smtp: &pb.Smtp{Oauth2: &pb.OAuth2{ClientId: "other"}}}},
		{"host", &pb.MailServer{Smtp: &pb.Smtp{Host: "localhost"}}},
		{"the sender's mailbox, which is the login", &pb.MailServer{From: "boss@x.example"}},
		{"username", &pb.MailServer{Smtp: &pb.Smtp{Username: "b@x.example"}}}} {
		what := x.what
		update("", x.change)
		if o := r.oauthOf("main"); o.HasClientSecret {
			t.Errorf("after a change of %s the secret is still there", what)
		}
		update("", &pb.MailServer{Smtp: &pb.Smtp{Oauth2: &pb.OAuth2{ClientSecret: "cl1ent-s3cret"}}})
	}
	update("smtp.oauth2.client_secret", &pb.MailServer{})
	if o := r.oauthOf("main"); o.HasClientSecret {
		t.Error("a secret that the mask clears is still there")
	}
	res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main"})
	if err != nil || res.Success || !strings.Contains(res.Message, "there is no client_secret") {
		t.Errorf("a test without it: %v %v", res, err)
	}
	changed := 0
	for _, a := range r.audits() {
		var d struct {
			Changed *bool `json:"client_secret_changed"`
		}
		if err := json.Unmarshal([]byte(a[3]), &d); err != nil {
			t.Fatal(err)
		}
		if d.Changed != nil && *d.Changed {
			changed++
		}
		if strings.Contains(a[3], "sealed") {
			t.Errorf("the audit holds a sealed secret: %s", a[3])
		}
	}
	if changed != 11 {
		t.Errorf("%d audit rows say that the secret changed, want 11: five dropped and given again, one cleared", changed)
	}
	r.nowhere("cl1ent-s3cret", "tok1")
}

// nowhere looks for secrets in the files of the database and in the log.
func (r *rig) nowhere(secrets ...string) {
	r.t.Helper()
	path := strings.TrimPrefix(r.dsn, "sqlite:")
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) == 0 {
		r.t.Fatal(files, err)
	}
	for _, s := range secrets {
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				r.t.Fatal(err)
			}
			if strings.Contains(string(b), s) {
				r.t.Errorf("%s holds %q", filepath.Base(f), s)
			}
		}
		if strings.Contains(r.log.String(), s) {
			r.t.Errorf("the log holds %q", s)
		}
	}
}

// TestTokenSteps: a test asks for a token of its own and reports it and the login as steps.
func TestTokenSteps(t *testing.T) {
	t.Parallel()
	e := newTokenEndpoint(t)
	right := true
	r := newRig(t, storetest.SQLiteDSN(t), takes(func(int, string) bool { return right }, nil))
	r.server("main", pb.Mode_MODE_PHP, withOAuth(e, clientSecret("cl1ent-s3cret")))
	test := func(want pb.TestStep_Kind, hint string) *pb.TestMailServerResponse {
		t.Helper()
		res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range res.Steps {
			if failed := s.Outcome == pb.TestStep_OUTCOME_FAILED; failed != (s.Kind == want) || failed && !strings.Contains(s.Hint, hint) {
				t.Errorf("%v", s)
			}
		}
		if res.Steps[0].Kind != pb.TestStep_KIND_CONFIG || res.Steps[1].Kind != pb.TestStep_KIND_TOKEN {
			t.Errorf("%v", res.Steps)
		}
		return res
	}
	if res := test(-1, ""); !res.Success || res.Steps[1].Facts["expires"] == "" {
		t.Errorf("%v", res)
	}
	right = false
	test(pb.TestStep_KIND_AUTH, "SMTP.SendAsApp")
	right = true
	e.set(func() { e.down = true })
	test(pb.TestStep_KIND_TOKEN, "try again later")
	e.set(func() { e.down = false })
	// What is tried and not saved: another secret, and another mailbox.
	res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main", MailServer: &pb.MailServer{Smtp: &pb.Smtp{Oauth2: &pb.OAuth2{ClientSecret: "wrong"}}}})
	if err != nil || res.Success || !strings.Contains(res.Message, "token: ") || !strings.Contains(res.Message, "client_secret is wrong") {
		t.Errorf("another secret: %v %v", res, err)
	}
	whole := &pb.MailServer{Type: pb.MailServer_TYPE_SMTP, From: "shop@x.example", Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(r.relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE,
		Username: "b@x.example"}}
	withOAuth(e, clientSecret("cl1ent-s3cret"))(whole)
	res, err = r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{MailServer: whole})
	if err != nil || res.Success || res.Steps[0].Outcome != pb.TestStep_OUTCOME_WARNING || res.Steps[1].Outcome != pb.TestStep_OUTCOME_OK {
		t.Errorf("another mailbox: %v %v", res, err)
	}
}

// TestNoTokenCostsNoAttempt: while the provider is down mail waits, loses no attempt and leaves
// by no other login; then it is sent. Who waits for one hears why it was not.
func TestNoTokenCostsNoAttempt(t *testing.T) {
	t.Parallel()
	e := newTokenEndpoint(t)
	e.down = true
	r := newRig(t, storetest.SQLiteDSN(t), takes(func(int, string) bool { return true }, nil))
	r.server("main", pb.Mode_MODE_DAEMON, withOAuth(e, clientSecret("cl1ent-s3cret")))
	ids := r.queue("main", 2)
	run := func() *pb.RunBatchResponse {
		t.Helper()
		res, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main", Wait: true})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	for range 2 {
		if res := run(); res.Sent+res.Failed+res.Deferred != 0 {
			t.Errorf("%v", res)
		}
	}
	got, err := r.admin.GetMailServer(ctx(t), &pb.GetMailServerRequest{Name: "main"})
	if err != nil || got.MailServer.Health.GetState() != pb.Health_STATE_SUSPENDED || !strings.Contains(got.MailServer.Health.SuspendedReason, "access token") {
		t.Errorf("%v %v", got, err)
	}
	m, err := r.dispatch.GetMail(ctx(t), &pb.GetMailRequest{Id: ids[0]})
	if err != nil || m.Mail.AttemptCount != 0 || m.Mail.Status != pb.MailStatus_MAIL_STATUS_QUEUED {
		t.Errorf("%v %v", m, err)
	}
	// A caller who waits is told at once, and what to do.
	r.server("now", pb.Mode_MODE_PHP, withOAuth(e, clientSecret("cl1ent-s3cret")))
	if err := r.delivered("now"); err == nil || !strings.Contains(err.Error(), "access token") {
		t.Errorf("mode php: %v", err)
	}
	e.set(func() { e.down = false })
	if res := run(); res.Sent != 2 {
		t.Errorf("after it is back: %v", res)
	}
	for _, l := range r.relay.Lines() {
		if strings.HasPrefix(l, "AUTH PLAIN") {
			t.Errorf("fell back to %s", l)
		}
	}
}

// TestTokenEndsBeforeMail: a token that ends between the login and the mail costs nothing but a
// fresh login with a new one.
func TestTokenEndsBeforeMail(t *testing.T) {
	t.Parallel()
	for _, mode := range []pb.Mode{pb.Mode_MODE_PHP, pb.Mode_MODE_DAEMON} {
		e := newTokenEndpoint(t)
		r := newRig(t, storetest.SQLiteDSN(t), takes(func(conn int, token string) bool { return conn == 1 || token == "tok2" }, func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "MAIL" && c.Conn == 1 {
				return &smtpxtest.Action{Reply: "530 5.7.0 the token has expired\r\n", Refuse: true}
			}
			return nil
		}))
		r.server("main", mode, withOAuth(e, clientSecret("cl1ent-s3cret")))
		var err error
		if mode == pb.Mode_MODE_PHP {
			err = r.delivered("main")
		} else {
			r.queue("main", 1)
			var res *pb.RunBatchResponse
			if res, err = r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main", Wait: true}); err == nil && res.Sent != 1 {
				err = fmt.Errorf("%v", res)
			}
		}
		if err != nil || len(r.relay.Mails()) != 1 || e.given != 2 {
			t.Errorf("%v: %v, %d mails, %d tokens", mode, err, len(r.relay.Mails()), e.given)
		}
	}
}

// TestRotatedRefreshToken: each refresh token that the provider gives is stored in the place of
// the one before, by sends and by tests, and is no change of the mail server.
func TestRotatedRefreshToken(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		e := newTokenEndpoint(t)
		relay := takes(func(int, string) bool { return true }, nil).Start(t)
		m := r.server("main", pb.Mode_MODE_PHP, withOAuth(e, &pb.OAuth2{Grant: pb.OAuth2_GRANT_REFRESH_TOKEN, RefreshToken: "r1"}), func(m *pb.MailServer) { m.Smtp.Port = int32(relay.Port()) })
		if !m.Smtp.Oauth2.HasRefreshToken || m.Smtp.Oauth2.RefreshToken != "" {
			t.Fatal(m)
		}
		if err := r.delivered("main"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main"})
			if err != nil || !res.Success || res.Steps[1].Facts["refresh_token"] != "replaced and stored" {
				t.Fatalf("%v %v", res, err)
			}
		}
		got, err := r.admin.GetMailServer(ctx(t), &pb.GetMailServerRequest{Name: "main"})
		if err != nil || got.MailServer.Etag != m.Etag || e.refresh != 4 {
			t.Errorf("%v %v after %d refresh tokens, want the etag %s", got, err, e.refresh, m.Etag)
		}
		// A change makes the next mail ask anew: with what was stored.
		if _, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", DisplayName: "Shop"}}); err != nil {
			t.Fatal(err)
		}
		if err := r.delivered("main"); err != nil || e.refresh != 5 {
			t.Errorf("%v after %d refresh tokens", err, e.refresh)
		}
	})
}

// TestSealedAnewWhileItRotates: secrets are sealed by another key between the request for a
// token and its answer. The refresh token that the answer brings is stored all the same: the
// one that it replaces is used up, and a person would have to consent again.
func TestSealedAnewWhileItRotates(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		admin := pb.NewAccessAdminClient(r.serve(access.As(access.Local()), func(g *grpc.Server) {
			pb.RegisterAccessAdminServer(g, r.api.AccessAdmin(r.store, nil, func() bool { return true }))
		}))
		e := newTokenEndpoint(t)
		r.server("main", pb.Mode_MODE_PHP, withOAuth(e, &pb.OAuth2{Grant: pb.OAuth2_GRANT_REFRESH_TOKEN, RefreshToken: "r1"}), func(m *pb.MailServer) {
			m.Smtp.Port = int32(takes(func(int, string) bool { return true }, nil).Start(t).Port())
		})
		e.during = func() {
			if _, err := seal.Rotate(r.keyFile); err != nil {
				t.Error(err)
			}
			if got, err := admin.ResealSecrets(ctx(t), &pb.ResealSecretsRequest{}); err != nil || got.Resealed != 1 {
				t.Errorf("%v %v", got, err)
			}
		}
		for range 3 {
			res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main"})
			if err != nil || !res.Success {
				t.Fatalf("%v %v", res, err)
			}
		}
	})
}

// TestOAuth2IsChecked: what contradicts itself, or would show a token to the network, is
// refused with its field.
func TestOAuth2IsChecked(t *testing.T) {
	t.Parallel()
	e := newTokenEndpoint(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	for field, change := range map[string]func(m *pb.MailServer){
		"smtp.oauth2":                     func(m *pb.MailServer) { m.Smtp.Oauth2 = nil },
		"smtp.auth":                       func(m *pb.MailServer) { m.Smtp.Auth = pb.Smtp_AUTH_UNSPECIFIED },
		"smtp.password":                   func(m *pb.MailServer) { m.Smtp.Username, m.Smtp.Password = "shop@x.example", "p" },
		"smtp.allow_plaintext_auth":       func(m *pb.MailServer) { m.Smtp.AllowPlaintextAuth = nil },
		"smtp.oauth2.token_url":           func(m *pb.MailServer) { m.Smtp.Oauth2.TokenUrl = "http://login.example/token" },
		"smtp.oauth2.client_id":           func(m *pb.MailServer) { m.Smtp.Oauth2.ClientId = "" },
		"smtp.oauth2.scopes":              func(m *pb.MailServer) { m.Smtp.Oauth2.Scopes = []string{"a b"} },
		"smtp.oauth2.grant":               func(m *pb.MailServer) { m.Smtp.Oauth2.Grant = 0 },
		"smtp.oauth2.client_secret":       func(m *pb.MailServer) { m.Smtp.Oauth2.ClientSecret = strings.Repeat("x", 1025) },
		"smtp.oauth2.refresh_token":       func(m *pb.MailServer) { m.Smtp.Oauth2.RefreshToken = "r" },
		"smtp.oauth2.service_account_key": func(m *pb.MailServer) { m.Smtp.Oauth2.ServiceAccountKey = "{}" },
	} {
		m := &pb.MailServer{Name: "main", Type: pb.MailServer_TYPE_SMTP, From: "shop@x.example", Mode: pb.Mode_MODE_PHP,
			Smtp: &pb.Smtp{Host: "127.0.0.1", Port: 25, Encryption: pb.Smtp_ENCRYPTION_NONE}}
		withOAuth(e, clientSecret("x"))(m)
		change(m)
		_, err := r.admin.CreateMailServer(ctx(t), &pb.CreateMailServerRequest{MailServer: m})
		refused(t, field, err, codes.InvalidArgument, "VALIDATION_FAILED")
		if err != nil && !strings.Contains(err.Error(), "mail_server."+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if e.given != 0 {
		t.Error("a token was asked for")
	}
}

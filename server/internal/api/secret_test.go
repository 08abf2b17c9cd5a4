package api_test

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	_ "github.com/lib/pq" // the driver
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	_ "modernc.org/sqlite" // the driver

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// database opens the rig's database a second time, to look at what lies in it.
func (r *rig) database() *sql.DB {
	r.t.Helper()
	driver, dsn := "postgres", r.dsn
	if path, is := strings.CutPrefix(r.dsn, "sqlite:"); is {
		driver, dsn = "sqlite", path
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = db.Close() }) // it was only read
	return db
}

func login(password string) *pb.MailServer {
	return &pb.MailServer{Name: "main", Type: pb.MailServer_TYPE_SMTP, Mode: pb.Mode_MODE_PHP, From: "Shop <shop@x.example>",
		Smtp: &pb.Smtp{Host: "smtp.x.example", Port: 587, Encryption: pb.Smtp_ENCRYPTION_STARTTLS, Username: "shop", Password: password}}
}

// TestPasswordCannotBeGuessed: neither what lies in the database nor what a repeated call
// answers says whether a guess is the password.
func TestPasswordCannotBeGuessed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		const right = "Summer2024!"
		create := func(m *pb.MailServer) (*pb.CreateMailServerResponse, error) {
			return r.admin.CreateMailServer(ctx(t), &pb.CreateMailServerRequest{MailServer: m, RequestId: "r1"})
		}
		if _, err := create(login(right)); err != nil {
			t.Fatal(err)
		}
		fingerprint := func() (b []byte) {
			if err := r.database().QueryRow("select fingerprint from mail_server").Scan(&b); err != nil {
				t.Fatal(err)
			}
			return b
		}
		stored := fingerprint()
		for _, guess := range []string{"123456", right} {
			// What the first versions stored, made again by somebody who has only the database.
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(login(guess))
			if err != nil {
				t.Fatal(err)
			}
			inner := sha256.Sum256(b)
			if outer := sha256.Sum256(inner[:]); bytes.Equal(outer[:], stored) {
				t.Errorf("the database tells that %q is the password", guess)
			}
			res, err := create(login(guess))
			if err != nil || !res.Duplicate {
				t.Errorf("guess %q: got %v, %v, want the same answer for each: a duplicate", guess, res.GetDuplicate(), err)
			}
		}
		other := login(right)
		other.Smtp.Port = 465
		_, err := create(other)
		refused(t, "another port", err, codes.AlreadyExists, "REQUEST_ID_REUSED")
	})
}

// TestPasswordStaysWithItsAuthorities: with a CA of their own, callers do not get the stored
// password.
func TestPasswordStaysWithItsAuthorities(t *testing.T) {
	t.Parallel()
	conf, ca := smtpxtest.Certificate(t, time.Now().Add(24*time.Hour), "127.0.0.1")
	relay := &smtpxtest.Server{TLS: conf, Implicit: true, Username: "u", Password: "other", Mechanisms: []string{"PLAIN"}}
	r := newRig(t, storetest.SQLiteDSN(t), relay)
	r.server("main", pb.Mode_MODE_PHP, func(m *pb.MailServer) {
		m.Smtp.Encryption, m.Smtp.Username, m.Smtp.Password = pb.Smtp_ENCRYPTION_TLS, "u", "Top-Secret-9"
	})
	for what, change := range map[string]*pb.Smtp{"another CA": {CaPem: string(ca)}, "another mechanism": {Auth: pb.Smtp_AUTH_LOGIN}} {
		res, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main", MailServer: &pb.MailServer{Smtp: change}})
		if err != nil || res.Success || !strings.Contains(res.Message, "no password") {
			t.Errorf("a test with %s: got %q, %v, want that the password is missing", what, res.GetMessage(), err)
		}
		if _, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", Smtp: change}}); err != nil {
			t.Fatal(err)
		}
		got, err := r.admin.GetMailServer(ctx(t), &pb.GetMailServerRequest{Name: "main"})
		if err != nil || got.MailServer.Smtp.HasPassword {
			t.Errorf("after a change to %s: %v, %v, want the password dropped", what, got, err)
		}
		set := &pb.MailServer{Name: "main", Smtp: &pb.Smtp{Password: "Top-Secret-9"}}
		if _, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: set}); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range r.relay.Lines() {
		if x, ok := strings.CutPrefix(l, "AUTH PLAIN "); ok {
			b, _ := base64.StdEncoding.DecodeString(x)
			t.Errorf("the peer was told %q", b)
		}
	}
}

// TestOnlyCertificatesAreKept: a private key that stands beside its certificate is not stored,
// and the same certificates written otherwise are no change of the login.
func TestOnlyCertificatesAreKept(t *testing.T) {
	t.Parallel()
	_, ca := smtpxtest.Certificate(t, time.Now().Add(24*time.Hour), "a.example")
	key := "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	m := r.server("main", pb.Mode_MODE_PHP, func(m *pb.MailServer) {
		m.Smtp.Encryption, m.Smtp.Username, m.Smtp.Password = pb.Smtp_ENCRYPTION_TLS, "u", "p"
		m.Smtp.CaPem = "of our house:\n" + key + string(ca)
	})
	if m.Smtp.CaPem != string(ca) {
		t.Errorf("got %q, want the certificate alone", m.Smtp.CaPem)
	}
	res, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", Smtp: &pb.Smtp{CaPem: "\n# the same\n" + string(ca)}}})
	if err != nil || !res.MailServer.Smtp.HasPassword {
		t.Errorf("the same certificate: got %v, %v, want the password kept", res, err)
	}
	_, err = r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", Smtp: &pb.Smtp{CaPem: key}}})
	refused(t, "a key and no certificate", err, codes.InvalidArgument, "VALIDATION_FAILED")
}

// audits are the audit's rows: action, team, target and detail.
func (r *rig) audits() (rows [][4]string) {
	r.t.Helper()
	q, err := r.database().Query("select action, team, target, coalesce(cast(detail as text), '{}') from audit order by id")
	if err != nil {
		r.t.Fatal(err)
	}
	defer q.Close()
	for q.Next() {
		var a [4]string
		if err := q.Scan(&a[0], &a[1], &a[2], &a[3]); err != nil {
			r.t.Fatal(err)
		}
		rows = append(rows, a)
	}
	return rows
}

// TestAuditShowsWhatChanged: a changed password and a changed CA can be told from the rows,
// which hold neither; calls that change nothing in the database leave a row too; and a control
// call leaves one for each team that it touched.
func TestAuditShowsWhatChanged(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		_, one := smtpxtest.Certificate(t, time.Now().Add(24*time.Hour), "a.example")
		_, two := smtpxtest.Certificate(t, time.Now().Add(24*time.Hour), "b.example")
		r.server("main", pb.Mode_MODE_DAEMON, func(m *pb.MailServer) {
			m.Smtp.Encryption, m.Smtp.Username, m.Smtp.Password, m.Smtp.CaPem = pb.Smtp_ENCRYPTION_TLS, "u", "first-secret", string(one)
		})
		for _, x := range []*pb.MailServer{{DisplayName: "n"}, {Smtp: &pb.Smtp{Password: "second-secret"}}, {Smtp: &pb.Smtp{CaPem: string(two), Password: "third-secret"}}} {
			x.Name = "main"
			if _, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: x}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.admin.TestMailServer(ctx(t), &pb.TestMailServerRequest{Name: "main"}); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, team := range []string{"", "sales", "support", "sales"} {
			evs, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main", Team: team}, Message: message("a@y.example")})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, evs[0].MailId)
		}
		if res, err := r.dispatch.HoldMails(ctx(t), &pb.HoldMailsRequest{Ids: ids}); err != nil || res.Changed != 4 {
			t.Fatal(res, err)
		}
		if _, err := r.admin.RunBatch(ctx(t), &pb.RunBatchRequest{MailServer: "main"}); err != nil {
			t.Fatal(err)
		}
		type detail struct {
			Changed       *bool `json:"password_changed"`
			Before, After struct {
				CA string `json:"ca_sha256"`
			}
		}
		var changed []bool
		teams := map[string]string{}
		rows := r.audits()
		for _, a := range rows {
			for _, secret := range []string{"first-secret", "second-secret", "third-secret", "BEGIN CERT"} {
				if strings.Contains(a[3], secret) {
					t.Errorf("a row holds %q: %v", secret, a)
				}
			}
			switch a[0] {
			case "UpdateMailServer":
				var d detail
				if err := json.Unmarshal([]byte(a[3]), &d); err != nil || d.Changed == nil {
					t.Fatalf("%v: %v", a, err)
				}
				changed = append(changed, *d.Changed)
				if last := len(changed) == 3; (d.Before.CA != d.After.CA) != last || d.After.CA == "" {
					t.Errorf("update %d: the CA was %s and is %s", len(changed), d.Before.CA, d.After.CA)
				}
			case "HoldMails":
				teams[a[1]] = a[2]
			}
		}
		if fmt.Sprint(changed) != "[false true true]" {
			t.Errorf("got password_changed %v, want false true true", changed)
		}
		has := func(action, target string) bool {
			for _, a := range rows {
				if a[0] == action && a[2] == target {
					return true
				}
			}
			return false
		}
		if !has("TestMailServer", "main") || !has("RunBatch", "main") {
			t.Errorf("no row of TestMailServer or RunBatch: %v", rows)
		}
		if len(teams) != 3 || !strings.HasPrefix(teams["sales"], "2 mails") || !strings.HasPrefix(teams[""], "1 mails") {
			t.Errorf("rows of HoldMails by team: %v, want one for each of three", teams)
		}
	})
}

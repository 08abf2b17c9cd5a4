package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// TestSafe: what a terminal would act on is shown as its number.
func TestSafe(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Grüße 发票 🙂":              "Grüße 发票 🙂",
		"a\x1b[31mred":            `a\u{1b}[31mred`,
		"two\r\nlines\tend":       `two\u{d} lines end`,
		"\u202egnp.exe":           `\u{202e}gnp.exe`,
		"\u2066x\u2069":           `\u{2066}x\u{2069}`,
		"zero\u200bwidth":         `zero\u{200b}width`,
		"c1 \u009b31m":            `c1 \u{9b}31m`,
		"bad \xff utf8":           `bad \u{fffd} utf8`,
		"sep\u2028arate":          `sep\u{2028}arate`,
		strings.Repeat("x", 9999): strings.Repeat("x", maxShown) + "…",
	} {
		if got := safe(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	m := &maildispatchv1.Mail{Subject: "\x1b[2J\u202e\U000e0041ü"}
	if got := jsonText(m); got != `{"subject":"\u001b[2J\u202e\udb40\udc41ü"}` {
		t.Errorf("JSON: got %s", got)
	}
}

// TestWhy: the story of a mail in each state, as a person reads it.
func TestWhy(t *testing.T) {
	was := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = was })
	at := func(minute int) *timestamppb.Timestamp {
		return timestamppb.New(time.Date(2026, 11, 30, 16, minute, 0, 0, time.UTC))
	}
	mail := func(change func(m *maildispatchv1.Mail)) *maildispatchv1.Mail {
		m := &maildispatchv1.Mail{Id: "01980000-0000-7000-8000-000000000001", Reference: "INV-1", Kind: maildispatchv1.Kind_KIND_INVOICE, Subject: "Invoice 1", From: "shop@x.example", MailServer: "main",
			MessageId: "<1@x.example>", CreateTime: at(0), Recipients: []*maildispatchv1.RecipientResult{{Address: "ann@y.example", Status: maildispatchv1.RecipientResult_STATUS_PENDING}}}
		change(m)
		return m
	}
	for name, tc := range map[string]struct {
		mail *maildispatchv1.Mail
		acts []*maildispatchv1.AuditRow
		want string
	}{
		"refused": {mail(func(m *maildispatchv1.Mail) {
			m.Status = maildispatchv1.MailStatus_MAIL_STATUS_FAILED
			m.Attempts = []*maildispatchv1.Attempt{{Number: 1, MailServer: "main", StartTime: at(1), Outcome: "failed", Detail: "ann@y.example: 550 5.1.1 no such user"}}
			m.Recipients[0] = &maildispatchv1.RecipientResult{Address: "ann@y.example", Status: maildispatchv1.RecipientResult_STATUS_REJECTED, SmtpCode: 550, EnhancedCode: "5.1.1", Detail: "no such user",
				Failure: maildispatchv1.RecipientResult_FAILURE_NO_SUCH_MAILBOX, Hint: "check the address"}
		}), []*maildispatchv1.AuditRow{{Time: at(5), Actor: "t1 (ops)", Action: "RetryMails", Reason: "customer called"}}, `INV-1: NOT DELIVERED. No recipient has it, and nobody tries again by itself.

  invoice "Invoice 1"
  from shop@x.example through main, id 01980000-0000-7000-8000-000000000001

What happened
  2026-11-30 16:00:00  the service took it
  2026-11-30 16:01:00  attempt 1 through main: refused
                       ann@y.example: 550 5.1.1 no such user
  2026-11-30 16:05:00  t1 (ops): RetryMails (customer called)

Recipients
  ann@y.example: rejected, "550 5.1.1 no such user"
    no such mailbox: check the address

What to do
  Right address:       maildispatch resend 01980000-0000-7000-8000-000000000001 --to ADDRESS --reason "..."
  Mended? Try again:   maildispatch retry 01980000-0000-7000-8000-000000000001
  Done with it:        maildispatch cancel 01980000-0000-7000-8000-000000000001 --reason "..."
`},
		"unknown": {mail(func(m *maildispatchv1.Mail) {
			m.Status = maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN
			m.Attempts = []*maildispatchv1.Attempt{{Number: 1, MailServer: "main", StartTime: at(1), Outcome: "unknown", Detail: "connection lost"}}
			m.Recipients[0].Status, m.Recipients[0].Detail = maildispatchv1.RecipientResult_STATUS_UNKNOWN, "no reply after the final dot"
		}), nil, `INV-1: NOBODY KNOWS. The mail server did not answer after the message was handed over; it may have arrived.

  invoice "Invoice 1"
  from shop@x.example through main, id 01980000-0000-7000-8000-000000000001

What happened
  2026-11-30 16:00:00  the service took it
  2026-11-30 16:01:00  attempt 1 through main: no answer after the message was handed over
                       connection lost

Recipients
  ann@y.example: unknown, "no reply after the final dot"

What to do
  Ask the recipient, or look into the mail server's log for Message-ID <1@x.example>. Then say:
  It arrived:          maildispatch resolve 01980000-0000-7000-8000-000000000001 delivered --reason "..."
  It did not:          maildispatch resolve 01980000-0000-7000-8000-000000000001 not-delivered --reason "..."
  Send it again:       maildispatch resolve 01980000-0000-7000-8000-000000000001 resend --reason "..."
`},
		"deferred": {mail(func(m *maildispatchv1.Mail) {
			m.Status, m.DueTime = maildispatchv1.MailStatus_MAIL_STATUS_DEFERRED, at(30)
			m.Attempts = []*maildispatchv1.Attempt{{Number: 1, MailServer: "main", StartTime: at(1), Outcome: "deferred"}, {Number: 9, MailServer: "main", StartTime: at(9), Outcome: "server", Detail: "connection refused"}}
			m.PossibleDuplicate, m.BatchId = true, "b1"
		}), nil, `INV-1: NOT DELIVERED YET. The service tries again by itself.

  invoice "Invoice 1"
  from shop@x.example through main, id 01980000-0000-7000-8000-000000000001
  of batch b1
  A copy may have been delivered before: an earlier attempt had no answer.

What happened
  2026-11-30 16:00:00  the service took it
  2026-11-30 16:01:00  attempt 1 through main: put off
  ...                  7 attempts left out
  2026-11-30 16:09:00  attempt 9 through main: the mail server could not be used; that costs the mail no attempt
                       connection refused
  2026-11-30 16:30:00  is when it is tried next

Recipients
  ann@y.example: pending

What to do
  Wait, or try now:    maildispatch retry 01980000-0000-7000-8000-000000000001
  Stop it:             maildispatch cancel 01980000-0000-7000-8000-000000000001
`},
	} {
		if got := story(tc.mail, tc.acts); got != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, tc.want)
		}
	}
	for n, word := range maildispatchv1.MailStatus_name { // every state has its words
		m := mail(func(m *maildispatchv1.Mail) { m.Status = maildispatchv1.MailStatus(n) })
		if n > 0 && (plain.Headlines[m.Status] == "" || n != int32(maildispatchv1.MailStatus_MAIL_STATUS_CANCELLED) && n != int32(maildispatchv1.MailStatus_MAIL_STATUS_SENDING) && len(nextSteps(m)) == 0) {
			t.Errorf("%s has no words", word)
		}
	}
}

// TestExitCodes: what scripts go by.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	s := clienttest.New(t)
	s.Answer("no@x.example", clienttest.Refused)
	fake := func(string, client.Options) (*client.Client, error) { return s.Connect(client.Options{}) }
	config := t.TempDir() + "/config.toml"
	if err := os.WriteFile(config, []byte("default = \"here\"\n[profile.here]\naddress = \"127.0.0.1:1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		dial func(string, client.Options) (*client.Client, error)
		in   string
		want int
	}{
		"sent":               {[]string{"send", "--to", "a@x.example"}, fake, "", exitDone},
		"not delivered":      {[]string{"send", "--to", "no@x.example"}, fake, "", exitNotAll},
		"nothing found":      {[]string{"find", "INV-1"}, fake, "", exitNotAll},
		"no command":         {[]string{"fnid"}, fake, "", exitUsage},
		"no flag":            {[]string{"find", "--frobnicate"}, fake, "", exitUsage},
		"too many arguments": {[]string{"why", "a", "b"}, fake, "", exitUsage},
		"no status":          {[]string{"find", "--status", "lost"}, fake, "", exitUsage},
		"no profile":         {[]string{"find", "-p", "nowhere"}, fake, "", exitUsage},
		"all mails":          {[]string{"cancel", "--yes"}, fake, "", exitUsage},
		"refused":            {[]string{"show", "01980000-0000-7000-8000-000000000001"}, fake, "", exitRefused},
		"not sure":           {[]string{"server", "delete", "extra"}, fake, "n\n", exitNotAll},
		"sure":               {[]string{"server", "delete", "extra"}, fake, "y\n", exitDone},
		"nobody to ask":      {[]string{"server", "delete", "extra"}, fake, "", exitNotAll},
		"not to be reached":  {[]string{"show", "01980000-0000-7000-8000-000000000001"}, client.New, "", exitUnreachable},
	} {
		if name == "sure" || name == "not sure" || name == "nobody to ask" {
			s.AddMailServer(&maildispatchv1.MailServer{Name: "extra"})
		}
		var errs strings.Builder
		if got := run(context.Background(), append(tc.args, "--config", config), &app{in: strings.NewReader(tc.in), out: io.Discard, errs: &errs, dial: tc.dial}); got != tc.want {
			t.Errorf("%s: got %d, want %d: %s", name, got, tc.want, errs.String())
		}
	}
}

// TestBulkGoesOn: a bulk that is stopped three times and called again hands over each line
// once; a list that was changed in between is refused, and what is wrong stands in the rejects.
func TestBulkGoesOn(t *testing.T) {
	r := newRig(t)
	n := 800
	if os.Getenv("MAILDISPATCH_TEST_FULL") == "1" {
		n = 20_000
	}
	var list strings.Builder
	w := csv.NewWriter(&list)
	_ = w.Write([]string{"to", "name"}) // to memory
	for i := range n {
		to := fmt.Sprintf("c%d@many.example", i)
		if i == 77 {
			to = "nobody at home"
		}
		_ = w.Write([]string{to, fmt.Sprintf("Customer %d", i)}) // to memory
	}
	w.Flush()
	file, text := r.write("customers.csv", list.String()), r.write("news.txt", "Subject: News for {{name}}\n\nDear {{name}},\n")
	args := []string{"bulk", file, "--template", text, "--server", "later", "--batch", "news"}
	if code, out, errs := r.run(context.Background(), "", append(args, "--dry-run")...); code != exitNotAll || !strings.Contains(out, fmt.Sprintf("%d mails could be sent, 1 would be refused", n-1)) {
		t.Fatalf("dry run: got %d\n%s%s", code, out, errs)
	}
	taken := func() int64 {
		res, err := r.c.GetBatch(context.Background(), &maildispatchv1.GetBatchRequest{BatchId: "news"})
		if err != nil {
			return 0
		}
		return res.Batch.Mails
	}
	if taken() != 0 {
		t.Fatal("the dry run has sent")
	}
	for stop := range int64(3) {
		ctx, cancel := context.WithCancel(context.Background())
		go func() { // until some more were taken
			for end := time.Now().Add(time.Minute); taken() <= stop*int64(n)/4 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		r.run(ctx, "", args...)
		cancel()
	}
	code, out, errs := r.run(context.Background(), "", args...)
	if code != exitNotAll || !strings.Contains(out, fmt.Sprintf("%d of %d handed over", n-1, n)) || !strings.Contains(out, "1 refused") {
		t.Fatalf("the last run: got %d\n%s%s", code, out, errs)
	}
	if got := taken(); got != int64(n-1) {
		t.Errorf("got %d mails, want %d", got, n-1)
	}
	seen := map[string]int{}
	for m, err := range r.c.Find(context.Background(), &maildispatchv1.FindMailsRequest{Filter: &maildispatchv1.MailFilter{BatchId: "news"}, PageSize: 500}) {
		if err != nil {
			t.Fatal(err)
		}
		seen[m.Recipients[0].Address]++
	}
	for to, times := range seen {
		if times != 1 {
			t.Errorf("%s: %d mails", to, times)
		}
	}
	if b, err := os.ReadFile(file + ".rejects"); err != nil || !strings.Contains(string(b), `"entry":78`) || !strings.Contains(string(b), "nobody at home") {
		t.Errorf("rejects: got %q, %v", b, err)
	}
	r.write("customers.csv", strings.Replace(list.String(), "Customer 5", "Customer V", 1))
	if code, _, errs := r.run(context.Background(), "", args...); code != exitUsage || !strings.Contains(errs, "was changed") {
		t.Errorf("a changed list: got %d, %s", code, errs)
	}
}

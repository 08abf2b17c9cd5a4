package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server"
	"github.com/maildispatch/maildispatch/server/internal/catchall"
	"github.com/maildispatch/maildispatch/smtpx"
)

const demoBulk = 200

// demo runs the whole main job: the real service on SQLite in a temporary folder, a catch-all
// SMTP server, and a client. Every step checks that it did what it says.
func demo(ctx context.Context, args []string) error {
	return runDemo(ctx, os.Stdout, args)
}

func runDemo(ctx context.Context, out io.Writer, args []string) error {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is one line, printed by main
	listen := fs.String("listen", "127.0.0.1:0", "where the service listens; port 0 picks one")
	keep := fs.Bool("keep", false, "stay up until Ctrl-C, and print lines to go on with")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(out, "maildispatchd demo [flags]: the whole main job on this machine, self-contained")
		fs.SetOutput(out)
		fs.PrintDefaults()
		return err
	case err != nil:
		return err
	case fs.NArg() > 0:
		return fmt.Errorf("demo: %q is not a flag", fs.Arg(0))
	}
	dir, err := os.MkdirTemp("", "maildispatch-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &demonstration{out: out}
	d.sink = &catchall.Server{Username: "billing", Password: "correct horse", Took: d.took}
	if err := d.sink.Start(); err != nil {
		return err
	}
	defer d.sink.Close()
	interval, page := "1h", "" // the steps say when
	if *keep {
		interval, page = "1m", "127.0.0.1:0"
	}
	cfg, err := configOf("demo", []string{"-listen=" + *listen, "-database=sqlite:" + filepath.Join(dir, "demo.db"),
		"-batch-interval=" + interval, "-web-listen=" + page, "-log-level=error", "-smtp-destinations=loopback:*"})
	if err != nil {
		return err
	}
	s, err := server.New(ctx, cfg)
	if err != nil {
		return err
	}
	rctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(rctx) }()
	err = d.run(ctx, s.Addr().String())
	if err == nil && *keep {
		d.goOn(s.Addr().String(), s.WebAddr().String())
		select {
		case <-ctx.Done():
		case err = <-done:
			done <- err
		}
	}
	stop()
	if rerr := <-done; err == nil {
		err = rerr
	}
	if err != nil {
		return failed{err}
	}
	d.say("\nDone: every step did what it said. Everything ran in %s, which is gone now.", dir)
	return nil
}

// goOn says how to go on by hand. From then on the catch-all shows what it takes.
func (d *demonstration) goOn(addr, page string) {
	d.say(`
The service stays up until Ctrl-C, and shows here what the SMTP server takes. In another terminal:

  maildispatch --address %[1]s why INV-4711
  maildispatch --address %[1]s resend INV-4711 --only nobody@customer.example --to ann@customer.example --reason "a wrong address"
  maildispatch --address %[1]s send --team finance --to you@example.com --subject Hello --text "The first mail"
  maildispatch --address %[1]s server test newsletter
  grpcurl -plaintext %[1]s maildispatch.v1.Dispatch/GetQueueStats
  grpcurl -plaintext -d '{"message": {"to": ["you@example.com"], "subject": "Hello", "text": "Queued, and sent within a minute"}}' %[1]s maildispatch.v1.Dispatch/SendMail

The same in a browser: http://%[2]s
`, addr, page)
	d.mu.Lock()
	d.shows = true
	d.mu.Unlock()
}

type demonstration struct {
	sink     *catchall.Server
	admin    pb.MailServerAdminClient
	dispatch pb.DispatchClient
	step     int

	mu    sync.Mutex // guards the rest, which sessions of the catch-all use as well
	out   io.Writer
	mails []catchall.Mail // what it took during the steps
	shows bool            // the steps are over: what it takes is shown, and not kept
}

func (d *demonstration) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, format+"\n", args...)
}

// took keeps a mail that the catch-all took, or shows it.
func (d *demonstration) took(m catchall.Mail) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.shows {
		d.mails = append(d.mails, m)
		return nil
	}
	fmt.Fprintf(d.out, "\nthe SMTP server took a mail for %s:\n", smtpx.Clean(strings.Join(m.To, ", "), 2000))
	printLetter(d.out, m.Raw)
	return nil
}

// received are the mails that the catch-all took so far.
func (d *demonstration) received() []catchall.Mail {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.mails)
}

func (d *demonstration) title(format string, args ...any) {
	d.step++
	d.say("\n%d. "+format, append([]any{d.step}, args...)...)
}

func (d *demonstration) run(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	d.admin, d.dispatch = pb.NewMailServerAdminClient(conn), pb.NewDispatchClient(conn)
	d.say("maildispatch demo: the service listens on %s, a catch-all SMTP server on 127.0.0.1:%d", addr, d.sink.Port())
	for _, f := range []func(context.Context) error{d.addServers, d.testServers, d.wrongPassword, d.invoice, d.queueBulk, d.runBatch, d.journals} {
		if err := f(ctx); err != nil {
			return fmt.Errorf("step %d: %w", d.step, err)
		}
	}
	return nil
}

func (d *demonstration) smtp(password string) *pb.Smtp {
	plain := true
	return &pb.Smtp{Host: "127.0.0.1", Port: int32(d.sink.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE, Username: "billing", Password: password, AllowPlaintextAuth: &plain}
}

func (d *demonstration) addServers(ctx context.Context) error {
	d.title("Two mail servers: one sends while the caller waits (php), one by the batch (daemon)")
	def := true
	for _, m := range []*pb.MailServer{
		{Name: "invoices", Team: "finance", DisplayName: "Invoices, sent at once", Type: pb.MailServer_TYPE_SMTP, Mode: pb.Mode_MODE_PHP, From: "Finance 财务部 <billing@shop.example>", IsDefault: &def, Smtp: d.smtp("correct horse")},
		{Name: "newsletter", DisplayName: "Bulk mail, sent every minute", Type: pb.MailServer_TYPE_SMTP, Mode: pb.Mode_MODE_DAEMON, From: "Shop <news@shop.example>", IsDefault: &def, Smtp: d.smtp("correct horse")},
	} {
		r, err := d.admin.CreateMailServer(ctx, &pb.CreateMailServerRequest{MailServer: m})
		if err != nil {
			return err
		}
		if r.MailServer.Smtp.Password != "" || !r.MailServer.Smtp.HasPassword {
			return errors.New("the password came out, or was not stored")
		}
		owner := "the system"
		if m.Team != "" {
			owner = "team " + m.Team
		}
		d.say("   + %-11s %-7s for %-13s from %s", m.Name, short(m.Mode), owner, m.From)
	}
	return nil
}

func (d *demonstration) testServers(ctx context.Context) error {
	d.title("Test them")
	for _, name := range []string{"invoices", "newsletter"} {
		r, err := d.admin.TestMailServer(ctx, &pb.TestMailServerRequest{Name: name, ProbeRecipient: "customer@example.com"})
		if err != nil {
			return err
		}
		d.say("   %s: %s", name, r.Message)
		d.steps(r)
		if !r.Success || r.Message != "connect success!" {
			return fmt.Errorf("the test of %s failed", name)
		}
	}
	return nil
}

func (d *demonstration) steps(r *pb.TestMailServerResponse) {
	for _, s := range r.Steps {
		if s.Outcome == pb.TestStep_OUTCOME_SKIPPED {
			continue
		}
		mark := map[pb.TestStep_Outcome]string{pb.TestStep_OUTCOME_OK: "ok", pb.TestStep_OUTCOME_WARNING: "warn", pb.TestStep_OUTCOME_FAILED: "FAIL"}[s.Outcome]
		d.say("     %-4s %-10s %7.2f ms  %s", mark, short(s.Kind), float64(s.Elapsed.AsDuration().Microseconds())/1000, s.Detail)
		if s.Hint != "" {
			d.say("     %-4s %-10s             -> %s", "", "", s.Hint)
		}
	}
}

func (d *demonstration) wrongPassword(ctx context.Context) error {
	d.title("The same with a wrong password, without saving it")
	r, err := d.admin.TestMailServer(ctx, &pb.TestMailServerRequest{Name: "invoices", MailServer: &pb.MailServer{Smtp: &pb.Smtp{Password: "battery staple"}}})
	if err != nil {
		return err
	}
	d.say("   invoices: %s", r.Message)
	d.steps(r)
	for _, s := range r.Steps {
		if s.Kind == pb.TestStep_KIND_AUTH && s.Outcome == pb.TestStep_OUTCOME_FAILED && s.SmtpCode == 535 && !r.Success {
			return nil
		}
	}
	return errors.New("a wrong password was not found out")
}

// pdf is the smallest thing that readers open.
const pdf = "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n3 0 obj<</Type/Page/MediaBox[0 0 200 200]/Parent 2 0 R>>endobj\nxref\n0 4\n0000000000 65535 f \ntrailer<</Size 4/Root 1 0 R>>\nstartxref\n0\n%%EOF\n"

func (d *demonstration) invoice(ctx context.Context) error {
	d.title("An invoice with a PDF, sent while we wait, to three recipients of whom one does not exist")
	stream, err := d.dispatch.Send(ctx, &pb.SendRequest{
		RequestId: "demo-invoice-4711",
		Options:   &pb.SendOptions{Team: "finance", Kind: pb.Kind_KIND_INVOICE, Reference: "INV-4711"},
		Message: &pb.MailMessage{To: []string{"王小明 <wang@customer.example>", "nobody@customer.example"}, Bcc: []string{"archive@shop.example"},
			Subject: "Invoice 4711 / 发票 4711", Text: "Dear customer, your invoice is attached.", Html: "<p>Dear customer, your invoice is attached.</p>",
			Attachments: []*pb.Attachment{{Filename: "发票-4711.pdf", ContentType: "application/pdf", Content: []byte(pdf)}}},
	})
	if err != nil {
		return err
	}
	accepted, refused := 0, 0
	var mail *pb.Mail
	for {
		ev, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		d.event(ev)
		switch e := ev.Event.(type) {
		case *pb.SendResponse_Recipient:
			switch e.Recipient.Status {
			case pb.RecipientResult_STATUS_ACCEPTED:
				accepted++
			case pb.RecipientResult_STATUS_REJECTED:
				refused++
			}
		case *pb.SendResponse_Completed_:
			mail = e.Completed.Mail
		}
	}
	if accepted != 2 || refused != 1 || mail.GetStatus() != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT {
		return fmt.Errorf("%d accepted, %d refused, %s", accepted, refused, mail.GetStatus())
	}
	got := d.received()
	if len(got) != 1 || len(got[0].To) != 2 || strings.Contains(string(got[0].Raw), "archive@shop.example") {
		return errors.New("the SMTP server received something else")
	}
	d.say("   What 王小明 reads:")
	d.mu.Lock()
	defer d.mu.Unlock()
	printLetter(d.out, got[0].Raw)
	return nil
}

func (d *demonstration) event(ev *pb.SendResponse) {
	at := ev.Time.AsTime().Format("15:04:05.000")
	switch e := ev.Event.(type) {
	case *pb.SendResponse_Accepted_:
		d.say("   %s accepted   %s, %d bytes: durable now", at, e.Accepted.RouteDetail, e.Accepted.SizeBytes)
	case *pb.SendResponse_Attempt:
		d.say("   %s attempt    %d through %s", at, e.Attempt.Number, e.Attempt.MailServer)
	case *pb.SendResponse_Recipient:
		r := e.Recipient
		d.say("   %s recipient  %-24s %-9s %d %s %s", at, r.Address, short(r.Status), r.SmtpCode, r.EnhancedCode, r.Detail)
		if r.Failure != pb.RecipientResult_FAILURE_UNSPECIFIED {
			d.say("                %s: %s", strings.ToLower(strings.TrimPrefix(r.Failure.String(), "FAILURE_")), r.Hint)
		}
	case *pb.SendResponse_Completed_:
		d.say("   %s completed  %s", at, short(e.Completed.Mail.Status))
	}
}

func (d *demonstration) queueBulk(ctx context.Context) error {
	d.title("%d bulk mails for the batch", demoBulk)
	start := time.Now()
	for i := range demoBulk {
		stream, err := d.dispatch.Send(ctx, &pb.SendRequest{RequestId: fmt.Sprintf("demo-bulk-%d", i), Options: &pb.SendOptions{Kind: pb.Kind_KIND_BULK, Labels: map[string]string{"campaign": "autumn"}},
			Message: &pb.MailMessage{To: []string{fmt.Sprintf("reader%d@example.com", i)}, Subject: "Our autumn news", Text: "Hello!"}})
		if err != nil {
			return err
		}
		var last *pb.SendResponse
		for {
			ev, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			last = ev
		}
		if st := last.GetCompleted().GetMail().GetStatus(); st != pb.MailStatus_MAIL_STATUS_QUEUED {
			return fmt.Errorf("mail %d is %s", i, st)
		}
	}
	d.say("   queued, each durable before its answer, in %v", time.Since(start).Round(time.Millisecond))
	return nil
}

func (d *demonstration) runBatch(ctx context.Context) error {
	d.title("The batch, now instead of in a minute")
	r, err := d.admin.RunBatch(ctx, &pb.RunBatchRequest{Wait: true})
	if err != nil {
		return err
	}
	d.say("   claimed %d: sent %d, deferred %d, failed %d, unknown %d", r.Claimed, r.Sent, r.Deferred, r.Failed, r.Unknown)
	if r.Sent != demoBulk || len(d.received()) != demoBulk+1 {
		return fmt.Errorf("sent %d, and the SMTP server received %d mails in all", r.Sent, len(d.received()))
	}
	return nil
}

func (d *demonstration) journals(ctx context.Context) error {
	d.title("The journals")
	due, err := d.dispatch.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{})
	if err != nil {
		return err
	}
	d.say("   Due-out journal (unfinished, or somebody should look):")
	d.table(due.Mails)
	arch, err := d.dispatch.ListArchivedMails(ctx, &pb.ListArchivedMailsRequest{PageSize: 500})
	if err != nil {
		return err
	}
	d.say("   Archive journal (finished): %d mails, the last 3:", len(arch.Mails))
	d.table(arch.Mails[:min(3, len(arch.Mails))])
	if len(due.Mails) != 1 || len(arch.Mails) != demoBulk {
		return fmt.Errorf("%d mails in the due-out journal, %d in the archive", len(due.Mails), len(arch.Mails))
	}
	return nil
}

func (d *demonstration) table(ms []*pb.Mail) {
	d.say("     %-14s %-11s %-13s %-26s %s", "status", "through", "kind", "first recipient", "why")
	for _, m := range ms {
		d.say("     %-14s %-11s %-13s %-26s %s", short(m.Status), m.MailServer, short(m.Kind), m.Recipients[0].Address, m.LastError)
	}
}

// short is an enum's value without its prefix.
func short(e fmt.Stringer) string {
	s := e.String()
	for _, p := range []string{"MAIL_STATUS_", "STATUS_", "KIND_", "MODE_", "OUTCOME_"} {
		if r, ok := strings.CutPrefix(s, p); ok {
			return strings.ToLower(strings.ReplaceAll(r, "_", " "))
		}
	}
	return strings.ToLower(s)
}

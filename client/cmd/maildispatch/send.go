package main

import (
	"bytes"
	"io"
	"mime"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// optionFlags are the flags that say for whom, through what and when.
type optionFlags struct {
	team, server, kind, reference string
	labels                        []string
	hold, retry                   bool
}

func (x *optionFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&x.team, "team", "", "owner; empty = the system")
	f.StringVar(&x.server, "server", "", "mail server; empty = the default")
	f.StringVar(&x.kind, "kind", "", "what it is for: invoice, work-order, bulk, ...")
	f.StringSliceVar(&x.labels, "label", nil, "label: key=value")
	f.BoolVar(&x.retry, "retry-in-batch", false, "in php mode: what fails for now goes on in the batch")
	f.BoolVar(&x.hold, "hold", false, "take it, and send it only after release")
	_ = c.RegisterFlagCompletionFunc("kind", words(maildispatchv1.Kind(0))) // the flag is there
}

func (x *optionFlags) options() (*maildispatchv1.SendOptions, error) {
	o := &maildispatchv1.SendOptions{Team: x.team, MailServer: x.server, Reference: x.reference, Hold: x.hold, RetryInBatch: x.retry}
	if x.kind != "" {
		n, err := fromWord("--kind", maildispatchv1.Kind(0), x.kind)
		if err != nil {
			return nil, err
		}
		o.Kind = maildispatchv1.Kind(n)
	}
	var err error
	o.Labels, err = pairs("--label", x.labels)
	return o, err
}

// read reads a file, or with "-" what is piped in.
func (a *app) read(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(a.in)
	}
	return os.ReadFile(file)
}

// send is the command of that name.
func (a *app) send() *cobra.Command {
	var (
		x                                        optionFlags
		to, cc, bcc, attach                      []string
		subject, text, textFile, html, eml, name string
		request                                  string
		dry, preview                             bool
	)
	c := &cobra.Command{Use: "send [FILE.eml|-]", Short: "Send a mail, also a finished one from a file", Args: cobra.MaximumNArgs(1),
		Example: "  maildispatch send --to ann@shop.example --subject Hello --text \"How are you?\" --attach invoice.pdf\n  maildispatch send invoice.eml --kind invoice\n  cat invoice.eml | maildispatch send -",
		RunE: func(c *cobra.Command, args []string) error {
			o, err := x.options()
			if err != nil {
				return err
			}
			m := &maildispatchv1.MailMessage{To: to, Cc: cc, Bcc: bcc, Subject: subject, Text: text, FromName: name}
			if len(args) == 1 {
				eml = args[0]
			}
			if eml != "" {
				b, err := a.read(eml)
				if err != nil {
					return usageError{err}
				}
				m.Raw = crlf(b)
			}
			for _, f := range []struct {
				file string
				into *string
			}{{textFile, &m.Text}, {html, &m.Html}} {
				if f.file == "" {
					continue
				}
				b, err := a.read(f.file)
				if err != nil {
					return usageError{err}
				}
				*f.into = string(b)
			}
			for _, file := range attach {
				b, err := os.ReadFile(file)
				if err != nil {
					return usageError{err}
				}
				m.Attachments = append(m.Attachments, &maildispatchv1.Attachment{Filename: filepath.Base(file), ContentType: mime.TypeByExtension(filepath.Ext(file)), Content: b})
			}
			s, err := a.service()
			if err != nil {
				return err
			}
			if preview {
				p, err := s.PreviewMail(c.Context(), &maildispatchv1.PreviewMailRequest{Options: o, Message: m})
				if err == nil {
					a.print(p, func() { a.previewed(p) })
				}
				return err
			}
			res, err := s.SendMail(c.Context(), &maildispatchv1.SendMailRequest{Options: o, Message: m, RequestId: request, ValidateOnly: dry})
			if err != nil || a.grpcurl {
				return err
			}
			a.print(res, func() { a.sent(res) })
			switch res.GetMail().GetStatus() {
			case maildispatchv1.MailStatus_MAIL_STATUS_FAILED, maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN, maildispatchv1.MailStatus_MAIL_STATUS_PARTIALLY_SENT:
				return errNotAll
			}
			return nil
		}}
	x.add(c)
	f := c.Flags()
	f.StringSliceVar(&to, "to", nil, "recipients")
	f.StringSliceVar(&cc, "cc", nil, "recipients of a copy")
	f.StringSliceVar(&bcc, "bcc", nil, "recipients that nobody sees")
	f.StringVar(&subject, "subject", "", "subject")
	f.StringVar(&text, "text", "", "text")
	f.StringVar(&textFile, "text-file", "", "file with the text; - = piped in")
	f.StringVar(&html, "html-file", "", "file with the HTML; - = piped in")
	f.StringVar(&name, "from-name", "", "name that the recipient sees as sender")
	f.StringSliceVar(&attach, "attach", nil, "files to attach")
	f.StringVar(&x.reference, "reference", "", "your own reference, such as an invoice number")
	f.StringVar(&request, "request-id", "", "makes the command safe to repeat")
	f.BoolVar(&preview, "preview", false, "show what would be sent, by which mail server and why; send nothing")
	f.BoolVar(&dry, "dry-run", false, "check everything, send nothing")
	return c
}

// previewed shows a mail that would be sent.
func (a *app) previewed(p *maildispatchv1.PreviewMailResponse) {
	for _, h := range p.GetHeaders() {
		a.printf("%s: %s\n", safe(h.Name), safe(h.Value))
	}
	for _, x := range p.GetParts() {
		a.printf("\n[%s %s, %s]\n", safe(x.ContentType), safe(x.Filename), plural(x.SizeBytes, "byte"))
		for _, l := range strings.Split(strings.TrimRight(x.Text, "\r\n"), "\n") {
			if x.Text != "" {
				a.printf("  %s\n", safe(strings.TrimRight(l, "\r")))
			}
		}
	}
	a.printf("\nFor %s; %s in all.\n", safe(strings.Join(p.GetRecipients(), ", ")), plural(p.GetAccepted().GetSizeBytes(), "byte"))
	a.printf("Through %s: %s. It would be %s.\n", safe(p.GetAccepted().GetMailServer()), safe(p.GetAccepted().GetRouteDetail()), safe(p.GetHandling()))
	for _, w := range p.GetWarnings() {
		a.printf("Look: %s.\n", safe(w))
	}
}

// sent says what became of a mail that was handed over.
func (a *app) sent(res *maildispatchv1.SendMailResponse) {
	m := res.GetMail()
	if m == nil {
		a.printf("It could be sent: %s.\n", safe(res.GetAccepted().GetRouteDetail()))
		return
	}
	before := ""
	if res.GetAccepted().GetDuplicate() {
		before = " (as told before: this request_id was known)"
	}
	a.printf("Mail %s is %s%s; %s.\n", safe(m.Id), word(m.Status), before, safe(res.GetAccepted().GetRouteDetail()))
	for _, r := range m.Recipients {
		a.printf("  %s: %s %s\n", safe(r.Address), word(r.Status), safe(plain.Reply(r)))
	}
	if res.GetGoesOnInBatch() {
		a.printf("It goes on in the batch, at %s.\n", clock(m.GetDueTime()))
	}
	if m.Status != maildispatchv1.MailStatus_MAIL_STATUS_SENT {
		a.printf("Look with: maildispatch why %s\n", safe(m.Id))
	}
}

// crlf gives a message the line ends that a finished one has to have. One that has them already
// stays byte for byte as it is, so that a signature in it does.
func crlf(b []byte) []byte {
	if bytes.Contains(b, []byte("\r\n")) {
		return b
	}
	return []byte(strings.ReplaceAll(string(b), "\n", "\r\n"))
}

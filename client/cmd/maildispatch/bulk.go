package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// sending is what a file beside the list keeps of a bulk: the same list under the same name is
// the same sending, whatever ends it in between. Each line has a request_id made of the batch
// and its number, so a line that was taken is never taken again.
type sending struct {
	Batch string `json:"batch"`
	List  string `json:"list_sha256"`
	Text  string `json:"template_sha256"`
}

// bulk is the command of that name.
func (a *app) bulk() *cobra.Command {
	var (
		x                              optionFlags
		template, html, batch, rejects string
		dry                            bool
	)
	c := &cobra.Command{Use: "bulk FILE.csv|FILE.jsonl --template FILE", Short: "Send one text to many, each with values of its own", Args: cobra.ExactArgs(1),
		Long: `Send one text to many, each with values of its own.

FILE.csv has a line of names first; the column "to" holds the addresses, every other one is a
variable. FILE.jsonl has an object a line, in the same way. The template begins with "Subject: ...",
then an empty line, then the text; {{name}} stands for the variable. --html gives the HTML beside it.

Ctrl-C ends it, at most 512 lines further on. The same command again goes on there: a line that was taken is never taken
twice. FILE.sending beside the list remembers under which batch; a list that was changed in between is
refused. Lines that are refused stand in FILE.rejects, with the reason.`,
		Example: "  maildispatch bulk customers.csv --template news.txt --html news.html --server news --dry-run\n  maildispatch bulk customers.csv --template news.txt --html news.html --server news",
		RunE: func(c *cobra.Command, args []string) error {
			o, err := x.options()
			if err != nil {
				return err
			}
			list, err := os.ReadFile(args[0])
			if err != nil {
				return usageError{err}
			}
			m, sum, err := readTemplate(template, html)
			if err != nil {
				return usageError{err}
			}
			name, err := begin(args[0], list, sum, batch, dry || a.grpcurl)
			if err != nil {
				return err
			}
			items, total, bad := readList(args[0], list, name)
			if bad != nil {
				return usageError{bad}
			}
			b := &bulkRun{app: a, total: total, rejects: rejects}
			if b.rejects == "" {
				b.rejects = args[0] + ".rejects"
			}
			options := &maildispatchv1.BatchOptions{Options: o, Message: m, BatchId: name, ValidateOnly: dry}
			s, err := a.service()
			if err != nil {
				return err
			}
			if dry || a.grpcurl {
				return b.check(c, s, options, items)
			}
			return b.send(c, s, options, items)
		}}
	x.add(c)
	f := c.Flags()
	f.StringVar(&template, "template", "", "file with the subject and the text")
	f.StringVar(&html, "html", "", "file with the HTML")
	f.StringVar(&batch, "batch", "", "name of the batch (default: made of the file's name)")
	f.StringVar(&rejects, "rejects", "", "file for lines that are refused (default FILE.rejects)")
	f.BoolVar(&dry, "dry-run", false, "check every line, send nothing")
	_ = c.MarkFlagRequired("template") // the flag is there
	return c
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// begin is the name of the batch: of the sending that has begun with this list, or a new one.
func begin(file string, list []byte, text, batch string, dry bool) (string, error) {
	path := file + ".sending"
	now := sending{Batch: batch, List: sum(list), Text: text}
	var had sending
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &had); err != nil {
			return "", usage("%s cannot be read: %v", path, err)
		}
		switch {
		case batch != "" && batch != had.Batch: // a new sending
		case had.List != now.List || had.Text != now.Text:
			return "", usage("%s or its template was changed after its sending as batch %s began: undo that to go on with it, or give --batch a new name, which sends to everybody again", file, had.Batch)
		default:
			return had.Batch, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return "", usageError{err}
	}
	if now.Batch == "" {
		name := strings.Map(func(r rune) rune {
			if r > ' ' && r < 0x7f {
				return r
			}
			return '-'
		}, strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)))
		now.Batch = fmt.Sprintf("%.40s-%s", name, time.Now().UTC().Format("20060102-150405"))
	}
	if dry {
		return now.Batch, nil
	}
	if b, err = json.Marshal(now); err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return "", usageError{err}
	}
	return now.Batch, nil
}

// readTemplate reads the text that all share, and its sum.
func readTemplate(text, html string) (*maildispatchv1.MailMessage, string, error) {
	b, err := os.ReadFile(text)
	if err != nil {
		return nil, "", err
	}
	m := &maildispatchv1.MailMessage{}
	head, body, ok := strings.Cut(strings.ReplaceAll(string(b), "\r\n", "\n"), "\n\n")
	subject, is := strings.CutPrefix(head, "Subject: ")
	if !ok || !is || strings.Contains(subject, "\n") {
		return nil, "", fmt.Errorf("%s does not begin with \"Subject: ...\" and an empty line", text)
	}
	m.Subject, m.Text = subject, body
	if html != "" {
		h, err := os.ReadFile(html)
		if err != nil {
			return nil, "", err
		}
		m.Html = string(h)
		b = append(append(b, 0), h...)
	}
	return m, sum(b), nil
}

// line is one line of a list: its item, or why it is none.
type line struct {
	number int
	text   string
	item   *maildispatchv1.BatchItem
}

// readList reads the whole list before anything is sent, so that one that breaks off half way
// sends nothing.
func readList(file string, list []byte, batch string) (items []line, total int, err error) {
	var rows iter.Seq2[map[string]string, error]
	if strings.HasSuffix(file, ".jsonl") {
		rows = jsonRows(list)
	} else {
		rows = csvRows(list)
	}
	n := 0
	for values, err := range rows {
		n++
		if err != nil {
			return nil, 0, fmt.Errorf("%s, entry %d: %w", file, n, err)
		}
		to := values["to"]
		delete(values, "to")
		if strings.TrimSpace(to) == "" {
			return nil, 0, fmt.Errorf("%s, entry %d: nothing in \"to\"", file, n)
		}
		id := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", batch, n))
		// strings always can be
		text, _ := json.Marshal(map[string]any{"to": to, "values": values})
		items = append(items, line{n, string(text), &maildispatchv1.BatchItem{RequestId: hex.EncodeToString(id[:16]), Message: &maildispatchv1.MailMessage{To: []string{to}}, Variables: values}})
	}
	if n == 0 {
		return nil, 0, fmt.Errorf("%s has no entries", file)
	}
	return items, n, nil
}

func csvRows(list []byte) iter.Seq2[map[string]string, error] {
	return func(yield func(map[string]string, error) bool) {
		r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(list, []byte("\xef\xbb\xbf"))))
		names, err := r.Read()
		for err == nil {
			var row []string
			if row, err = r.Read(); err == nil {
				values := map[string]string{}
				for i, v := range row {
					values[strings.TrimSpace(names[i])] = v
				}
				if !yield(values, nil) {
					return
				}
			}
		}
		if err != io.EOF {
			yield(nil, err)
		}
	}
}

func jsonRows(list []byte) iter.Seq2[map[string]string, error] {
	return func(yield func(map[string]string, error) bool) {
		for d := json.NewDecoder(bytes.NewReader(list)); ; {
			var values map[string]string
			err := d.Decode(&values)
			if err == io.EOF || !yield(values, err) || err != nil {
				return
			}
		}
	}
}

const (
	bulkWindow  = 512             // lines under way; Ctrl-C does not stop these
	lastAnswers = 5 * time.Second // for them, after Ctrl-C
)

// bulkRun is one run of a bulk. The answers come on a goroutine of the client's, which writes
// the counts; the bar reads them.
type bulkRun struct {
	app     *app
	total   int
	rejects string
	bar     *bar

	taken, before, refused atomic.Int64
}

// check has every line checked and sends nothing.
func (b *bulkRun) check(c *cobra.Command, s *client.Client, o *maildispatchv1.BatchOptions, items []line) error {
	res, err := s.SendAll(c.Context(), o, func(yield func(*maildispatchv1.BatchItem) bool) {
		for _, l := range items {
			if !yield(l.item) {
				return
			}
		}
	})
	if b.app.grpcurl {
		return nil
	}
	if err != nil {
		return err
	}
	b.app.print(res, func() {
		b.app.printf("%s could be sent, %d would be refused. Nothing was sent.\n", plural(res.GetAccepted(), "mail"), res.GetRejected())
		for i, r := range res.GetRejections() {
			if i == 20 {
				b.app.printf("  ...\n")
				break
			}
			b.app.printf("  entry %d: %s\n", r.Position+1, rejection(r))
		}
	})
	if res.GetRejected() > 0 {
		return errNotAll
	}
	return nil
}

func rejection(r *maildispatchv1.BatchRejection) string {
	words := []string{safe(r.GetMessage())}
	for _, v := range r.GetViolations() {
		words = append(words, safe(v.Field)+" "+safe(v.Description))
	}
	return strings.Join(words, "; ")
}

// send sends every line.
func (b *bulkRun) send(c *cobra.Command, s *client.Client, o *maildispatchv1.BatchOptions, items []line) (err error) {
	a := b.app
	byID := make(map[string]line, len(items))
	for _, l := range items {
		byID[l.item.RequestId] = l
	}
	f, err := os.Create(b.rejects)
	if err != nil {
		return usageError{err}
	}
	out := bufio.NewWriter(f)
	var failed error // of the file; written by the answers, read after Close
	b.bar = a.bar(int64(b.total), func() string {
		return fmt.Sprintf(", %d handed over, %d refused", b.taken.Load()+b.before.Load(), b.refused.Load())
	})
	// Ctrl-C adds nothing more, and what is under way has some seconds for its answers
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context()))
	defer cancel()
	defer context.AfterFunc(c.Context(), func() {
		defer cancel()
		select {
		case <-ctx.Done():
		case <-time.After(lastAnswers):
		}
	})()
	run := s.Bulk(ctx, o, client.BulkOptions{Window: bulkWindow, Answer: func(item *maildispatchv1.BatchItem, answer *maildispatchv1.SendStreamResponse) {
		switch {
		case answer.GetRejection() != nil:
			b.refused.Add(1)
			l := byID[item.GetRequestId()]
			why, _ := json.Marshal(rejection(answer.GetRejection())) // a string always can be
			if _, err := fmt.Fprintf(out, "{\"entry\":%d,\"line\":%s,\"reason\":%q,\"why\":%s}\n", l.number, l.text, answer.GetRejection().GetReason(), why); err != nil && failed == nil {
				failed = err
			}
		case answer.GetDuplicate():
			b.before.Add(1)
		default:
			b.taken.Add(1)
		}
		b.bar.at(b.taken.Load() + b.before.Load() + b.refused.Load())
	}})
	for _, l := range items {
		if c.Context().Err() != nil {
			break
		}
		if err = run.Add(l.item); err != nil {
			break
		}
	}
	_, closed := run.Close()
	b.bar.end()
	err = errors.Join(err, closed)
	fileErr := errors.Join(failed, out.Flush(), f.Close())
	if b.refused.Load() == 0 {
		fileErr = errors.Join(fileErr, os.Remove(b.rejects))
	}
	done := b.taken.Load() + b.before.Load()
	if !a.json {
		a.printf("Batch %s: %d of %d handed over (%d of them by an earlier run), %d refused.\n", safe(o.BatchId), done, b.total, b.before.Load(), b.refused.Load())
		if b.refused.Load() > 0 {
			a.printf("The refused ones stand in %s.\n", b.rejects)
		}
	} else {
		a.printf("{\"batch_id\":%q,\"total\":%d,\"taken\":%d,\"before\":%d,\"refused\":%d}\n", o.BatchId, b.total, b.taken.Load(), b.before.Load(), b.refused.Load())
	}
	switch {
	case c.Context().Err() != nil:
		a.printf("Stopped. The same command again goes on from here.\n")
		return errNotAll
	case err != nil:
		return err
	case fileErr != nil:
		return usageError{fileErr}
	case b.refused.Load() > 0 || done < int64(b.total):
		return errNotAll
	}
	if !a.json {
		a.printf("Look with: maildispatch batch show %s\n", safe(o.BatchId))
	}
	return nil
}

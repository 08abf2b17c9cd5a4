package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// journals gives a client of a server with due and archived mails, whose references are d0, d1,
// ... and a0, a1, ...
func journals(t *testing.T, due, archived int) (*clienttest.Server, *client.Client) {
	t.Helper()
	srv := clienttest.New(t)
	srv.Answer("nobody@example.com", clienttest.Refused)
	c := srv.Client(t, client.Options{})
	send := func(to, reference string) {
		req := mailTo(to)
		req.Options = &maildispatchv1.SendOptions{Reference: reference}
		if _, err := c.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for i := range due {
		send("nobody@example.com", fmt.Sprint("d", i))
	}
	for i := range archived {
		send("somebody@example.com", fmt.Sprint("a", i))
	}
	return srv, c
}

func collect(t *testing.T, mails iter.Seq2[*maildispatchv1.Mail, error]) (references []string) {
	t.Helper()
	for m, err := range mails {
		if err != nil {
			t.Fatal(err)
		}
		references = append(references, m.GetReference())
	}
	return references
}

func TestJournalsAreIterated(t *testing.T) {
	t.Parallel()
	srv, c := journals(t, 7, 5)
	for size := range int32(9) { // 0 is the service's own, the others cut pages in every way
		req := &maildispatchv1.ListDueOutMailsRequest{PageSize: size}
		if got, want := collect(t, c.DueOutMails(t.Context(), req)), []string{"d0", "d1", "d2", "d3", "d4", "d5", "d6"}; !slices.Equal(got, want) {
			t.Errorf("due, %d a page: %v", size, got)
		}
		if req.GetPageToken() != "" {
			t.Error("the caller's request was written to")
		}
		if got := collect(t, c.ArchivedMails(t.Context(), &maildispatchv1.ListArchivedMailsRequest{PageSize: size})); len(got) != 5 {
			t.Errorf("archived, %d a page: %v", size, got)
		}
	}
	if got := collect(t, c.DueOutMails(t.Context(), nil)); len(got) != 7 {
		t.Errorf("nil request: %v", got)
	}
	filter := &maildispatchv1.MailFilter{Reference: "d3"}
	if got := collect(t, c.DueOutMails(t.Context(), &maildispatchv1.ListDueOutMailsRequest{Filter: filter, PageSize: 2})); !slices.Equal(got, []string{"d3"}) {
		t.Errorf("filtered: %v", got)
	}
	if got := collect(t, c.DueOutMails(t.Context(), &maildispatchv1.ListDueOutMailsRequest{PageToken: "5", PageSize: 1})); !slices.Equal(got, []string{"d5", "d6"}) {
		t.Errorf("from a token on: %v", got)
	}

	before := len(srv.Requests("ListDueOutMails"))
	again := c.DueOutMails(t.Context(), &maildispatchv1.ListDueOutMailsRequest{PageSize: 2})
	for range 2 { // an iterator begins anew, and asks for no page it does not need
		for m, err := range again {
			if err != nil || m.GetReference() != "d0" {
				t.Errorf("%v, %v", m, err)
			}
			break
		}
	}
	if n := len(srv.Requests("ListDueOutMails")) - before; n != 2 {
		t.Errorf("%d pages were fetched", n)
	}
}

func TestMailServersAreIterated(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	for _, name := range []string{"c", "a", "b"} {
		srv.AddMailServer(&maildispatchv1.MailServer{Name: name, Team: "billing"})
	}
	c := srv.Client(t, client.Options{})
	var names []string
	for m, err := range c.MailServers(t.Context(), &maildispatchv1.ListMailServersRequest{Team: proto.String("billing"), PageSize: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, m.GetName())
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("%v", names)
	}
}

func TestIteratorsEndWithTheError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv, c := journals(t, 5, 0)
		read := func(req *maildispatchv1.ListDueOutMailsRequest) (n int, last error) {
			for m, err := range c.DueOutMails(t.Context(), req) {
				if last != nil {
					t.Error("something came behind the error")
				}
				if last = err; err == nil {
					n++
				} else if m != nil {
					t.Error("a mail came with the error")
				}
			}
			return n, last
		}
		if n, err := read(&maildispatchv1.ListDueOutMailsRequest{PageToken: "made up"}); n != 0 || client.ReasonOf(err) != maildispatchv1.ReasonPageTokenInvalid {
			t.Errorf("%d, %v", n, err)
		}
		// The second page breaks, once: reads are repeated.
		none := clienttest.Fault{Err: status.Error(codes.Internal, "oops")}
		srv.Fault("ListDueOutMails", clienttest.Fault{})
		if n, err := read(&maildispatchv1.ListDueOutMailsRequest{PageSize: 2}); n != 5 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		srv.Fault("ListDueOutMails", clienttest.Fault{}, clienttest.Fault{}, none)
		if n, err := read(&maildispatchv1.ListDueOutMailsRequest{PageSize: 2}); n != 0 || status.Code(err) != codes.Internal {
			t.Errorf("%d, %v", n, err)
		}
	})
}

func TestDownload(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	req := mailTo("a@example.com")
	req.Message.Text = strings.Repeat("0123456789abcde\n", 20_000) // 5 chunks
	res, err := c.Deliver(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	n, err := c.Download(t.Context(), res.MailID, &b)
	if err != nil || n != int64(b.Len()) || n != res.Mail.GetSizeBytes() || !strings.Contains(b.String(), "Subject: Invoice 4711\r\n") {
		t.Errorf("%d of %d bytes, %v", n, res.Mail.GetSizeBytes(), err)
	}
	if n, err := c.Download(t.Context(), "nothing", io.Discard); n != 0 || client.ReasonOf(err) != maildispatchv1.ReasonMailNotFound {
		t.Errorf("unknown id: %d, %v", n, err)
	}

	srv.Fault("DownloadMail", clienttest.Fault{After: 2, Quiet: true})
	if n, err := c.Download(t.Context(), res.MailID, io.Discard); n != 2*64<<10 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ended early: %d, %v", n, err)
	}
	srv.Fault("DownloadMail", clienttest.Fault{Done: true, Quiet: true})
	if n, err := c.Download(t.Context(), res.MailID, io.Discard); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ended at once: %d, %v", n, err)
	}
	srv.Fault("DownloadMail", clienttest.Fault{After: 2})
	if n, err := c.Download(t.Context(), res.MailID, io.Discard); n != 2*64<<10 || status.Code(err) != codes.Unavailable {
		t.Errorf("broke: %d, %v", n, err)
	}
	full := errors.New("disk is full")
	if n, err := c.Download(t.Context(), res.MailID, &limited{room: 100, full: full}); n != 100 || !errors.Is(err, full) {
		t.Errorf("full: %d, %v", n, err)
	}
}

// limited takes so many bytes.
type limited struct {
	room int
	full error
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.room)
	l.room -= n
	if n < len(b) {
		return n, l.full
	}
	return n, nil
}

// slow takes its time for every write; fake time in a synctest bubble.
type slow struct{ d time.Duration }

func (s slow) Write(b []byte) (int, error) {
	<-time.After(s.d)
	return len(b), nil
}

func TestDownloadTimes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault   []clienttest.Fault
		ctx     time.Duration
		timeout time.Duration
		w       io.Writer
		code    codes.Code
		took    time.Duration
	}{
		"silence":                {[]clienttest.Fault{{After: 2, Hang: true}}, 0, 0, io.Discard, codes.DeadlineExceeded, 30 * time.Second},
		"silence from the start": {[]clienttest.Fault{{Hang: true}}, 0, 10 * time.Second, io.Discard, codes.DeadlineExceeded, 10 * time.Second},
		"slow reader":            {nil, 0, 10 * time.Second, slow{time.Minute}, codes.OK, 5 * time.Minute},
		"the caller's deadline":  {nil, 90 * time.Second, 10 * time.Second, slow{time.Minute}, codes.DeadlineExceeded, 2 * time.Minute},
		"no limit":               {[]clienttest.Fault{{After: 2, Hang: true}}, time.Hour, -1, io.Discard, codes.DeadlineExceeded, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				c := srv.Client(t, client.Options{Timeout: test.timeout})
				req := mailTo("a@example.com")
				req.Message.Text = strings.Repeat("x", 5*64<<10-1000) // 5 chunks
				res, err := c.Deliver(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				srv.Fault("DownloadMail", test.fault...)
				ctx := t.Context()
				if test.ctx > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.ctx)
					defer cancel()
				}
				begun := time.Now()
				_, err = c.Download(ctx, res.MailID, test.w)
				if took := time.Since(begun); status.Code(err) != test.code || took < test.took || took > test.took+time.Second {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

// Watch tells every change once and in order for each mail, however often the connection
// breaks, and its cursor goes on after a restart of the caller.
func TestWatch(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]clienttest.Fault{
		"whole": nil, "broken at once": {{}, {}, {}}, "broken after every answer": slices.Repeat([]clienttest.Fault{{After: 2}}, 40), "closed politely": {{After: 3, Quiet: true}, {After: 1, Quiet: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.AddMailServer(&maildispatchv1.MailServer{Name: "bulk", Mode: maildispatchv1.Mode_MODE_DAEMON})
				srv.Answer("left@example.com", clienttest.Refused)
				srv.Fault("WatchMails", faults...)
				c := srv.Client(t, client.Options{})
				filter := &maildispatchv1.MailFilter{Labels: map[string]string{"run": "1"}}
				stories, over, cursor := map[string]string{}, 0, ""
				watch := func(until int) {
					for r, err := range c.Watch(t.Context(), &maildispatchv1.WatchMailsRequest{Filter: filter, Cursor: cursor}) {
						if err != nil {
							t.Error(err)
							return
						}
						cursor = r.GetCursor()
						if r.GetMail() != nil {
							stories[r.GetMail().GetRecipients()[0].GetAddress()] += strings.TrimPrefix(r.GetStatus().String(), "MAIL_STATUS_") + " "
							if st := r.GetStatus(); st == maildispatchv1.MailStatus_MAIL_STATUS_SENT || st == maildispatchv1.MailStatus_MAIL_STATUS_FAILED {
								over++
							}
						}
						if over == until {
							return
						}
					}
				}
				send := func(server, to string) {
					req := mailTo(to)
					req.Options = &maildispatchv1.SendOptions{MailServer: server, Labels: filter.Labels}
					if _, err := c.Deliver(t.Context(), req); err != nil {
						t.Error(err)
					}
					req.Options.Labels = nil
					if _, err := c.Deliver(t.Context(), req); err != nil {
						t.Error(err)
					}
				}
				done := make(chan bool)
				go func() { defer close(done); watch(2) }()
				synctest.Wait()
				time.Sleep(time.Minute) // in the bubble: nothing happens
				send("bulk", "anna@example.com")
				send("test", "ben@example.com")
				srv.RunBatch()
				<-done
				send("bulk", "left@example.com")
				srv.RunBatch()
				watch(3)
				for to, want := range map[string]string{"anna@example.com": "QUEUED SENT ", "ben@example.com": "QUEUED SENT ", "left@example.com": "QUEUED FAILED "} {
					if stories[to] != want {
						t.Errorf("%s: %q, want %q", to, stories[to], want)
					}
				}
			})
		})
	}
}

func TestWatchFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		// grpc repeats each of four calls
		srv.Fault("WatchMails", slices.Repeat([]clienttest.Fault{{}}, 16)...)
		c := srv.Client(t, client.Options{})
		n := 0
		for r, err := range c.Watch(t.Context(), nil) {
			if n++; status.Code(err) != codes.Unavailable || r != nil {
				t.Errorf("%v, %v", r, err)
			}
		}
		if n != 1 {
			t.Errorf("%d answers", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var last error
		for _, err := range clienttest.New(t).Client(t, client.Options{}).Watch(ctx, nil) {
			last = err
			cancel()
		}
		if status.Code(last) != codes.Canceled {
			t.Errorf("%v", last)
		}
	})
}

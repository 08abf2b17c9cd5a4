package e2e

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestWatch: a watcher hears every change of its mails once and in order, also when it breaks
// off after every few and begins again at another replica.
func TestWatch(t *testing.T) {
	run := func(t *testing.T, s, other *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		filter := &pb.MailFilter{Reference: "W"}
		began := make(chan bool)
		seen := map[string][]pb.MailStatus{}
		over := make(chan error, 1)
		const mails = 60
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		go func() {
			cursor, first, breaks := "", true, 0
			finished := 0
			for finished < mails {
				who := s
				if breaks%2 == 1 {
					who = other
				}
				stream, err := who.dispatch.WatchMails(ctx, &pb.WatchMailsRequest{Filter: filter, Cursor: cursor})
				if err != nil {
					over <- err
					return
				}
				for range 7 {
					r, err := stream.Recv()
					if err != nil {
						over <- err
						return
					}
					cursor = r.Cursor
					if first {
						close(began)
						first = false
					}
					if r.Mail != nil {
						seen[r.Mail.Id] = append(seen[r.Mail.Id], r.Status)
						if r.Status == pb.MailStatus_MAIL_STATUS_SENT || r.Status == pb.MailStatus_MAIL_STATUS_FAILED {
							finished++
						}
					}
					if finished == mails {
						break
					}
				}
				breaks++
			}
			over <- nil
		}()
		<-began
		want := map[string]string{}
		for i := range mails {
			o := &pb.SendOptions{MailServer: "bulk", Reference: "W"}
			to, story := fmt.Sprintf("u%d@y.example", i), "[MAIL_STATUS_QUEUED MAIL_STATUS_SENT]"
			switch i % 5 {
			case 1:
				o.MailServer, story = "now", "[MAIL_STATUS_QUEUED MAIL_STATUS_SENT]"
			case 2:
				to, story = "nobody@y.example", "[MAIL_STATUS_QUEUED MAIL_STATUS_FAILED]"
			case 3:
				o.Hold, story = true, "[MAIL_STATUS_HELD MAIL_STATUS_QUEUED MAIL_STATUS_SENT]"
			}
			id := s.mustSend(&pb.SendRequest{Options: o, Message: message(to)}).id
			want[id] = story
			s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk", Reference: "not watched"}, Message: message(to)})
			if o.Hold {
				if _, err := s.dispatch.ReleaseMails(ctx, &pb.ReleaseMailsRequest{Ids: []string{id}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.batch()
		if err := <-over; err != nil {
			t.Fatal(err)
		}
		for id, story := range want {
			if got := fmt.Sprint(seen[id]); got != story {
				t.Errorf("%s: %s, want %s", id, got, story)
			}
		}
		if len(seen) != mails {
			t.Errorf("%d mails", len(seen))
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		s := start(t, storetest.SQLiteDSN(t))
		run(t, s, s)
	})
	t.Run("two replicas", func(t *testing.T) {
		dsn := storetest.PostgresDSN(t)
		s := start(t, dsn)
		run(t, s, start(t, dsn, s.keyFile()))
	})
}

// TestWatchCursor: a cursor is good for its filter only, and a stop of the service ends the
// stream with a word.
func TestWatchCursor(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	stream, err := s.dispatch.WatchMails(timeout(t), &pb.WatchMailsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || first.Cursor == "" || first.Mail != nil {
		t.Fatalf("%v %v", first, err)
	}
	for name, r := range map[string]*pb.WatchMailsRequest{
		"other filter": {Filter: &pb.MailFilter{Reference: "x"}, Cursor: first.Cursor}, "forged": {Cursor: "AQ"}, "not base64": {Cursor: "!"},
	} {
		w, err := s.dispatch.WatchMails(timeout(t), r)
		if err == nil {
			_, err = w.Recv()
		}
		if status.Code(err) != codes.InvalidArgument || client.ReasonOf(err) != pb.ReasonPageTokenInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("at the end: %v", err)
	}
}

// TestWatchBatch: who watches a batch hears every change of its mails and of no others, also
// those that another replica makes, once and in order, with a break after every few answers;
// the client's Watch mends the same over a restart of the service.
func TestWatchBatch(t *testing.T) {
	dsn := storetest.PostgresDSN(t)
	a := start(t, dsn)
	b := start(t, dsn, a.keyFile())
	relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
	a.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	const mails = 400
	filter := &pb.MailFilter{BatchId: "watched"}
	began := make(chan bool)
	stories := make(chan map[string]string, 1)
	over := func(st pb.MailStatus) bool {
		return st == pb.MailStatus_MAIL_STATUS_SENT || st == pb.MailStatus_MAIL_STATUS_FAILED
	}
	go func() {
		seen, finished, cursor := map[string]string{}, 0, ""
		for turn := 0; finished < mails; turn++ {
			stream, err := []*service{a, b}[turn%2].dispatch.WatchMails(ctx, &pb.WatchMailsRequest{Filter: filter, Cursor: cursor})
			for n := 0; n <= turn%50 && finished < mails && err == nil; n++ {
				var r *pb.WatchMailsResponse
				if r, err = stream.Recv(); err != nil {
					break
				}
				cursor = r.Cursor
				if turn == 0 {
					close(began)
				}
				if r.Mail != nil {
					seen[r.Mail.Id] += r.Status.String()[len("MAIL_STATUS_"):] + " "
					if over(r.Status) {
						finished++
					}
				}
			}
			if err != nil {
				t.Error(err)
				break
			}
		}
		stories <- seen
	}()
	<-began
	c, moved := b.reach()
	helped := make(chan map[string]string, 1)
	restarted := make(chan bool)
	heard := make(chan bool)
	go func() {
		seen, finished, first := map[string]string{}, 0, true
		for r, err := range c.Watch(ctx, &pb.WatchMailsRequest{Filter: filter}, grpc.WaitForReady(true)) {
			if err != nil {
				t.Error(err)
				break
			}
			if first {
				first = false
				close(heard)
				<-restarted
			}
			if r.Mail != nil {
				seen[r.Mail.Id] += r.Status.String()[len("MAIL_STATUS_"):] + " "
				if over(r.Status) {
					finished++
				}
			}
			if finished == mails {
				break
			}
		}
		helped <- seen
	}()
	<-heard
	want := map[string]string{}
	for i, s := range []*service{a, b} {
		for _, batch := range []string{"watched", "not watched"} {
			var items []*pb.BatchItem
			for k := range mails / 2 {
				to := fmt.Sprintf("u%d-%d@y.example", i, k)
				if k%10 == 0 {
					to = "nobody" + to
				}
				items = append(items, itemTo(to))
			}
			for k, x := range s.mustStream(&pb.BatchOptions{BatchId: batch, Options: &pb.SendOptions{MailServer: "bulk"}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}, items...) {
				if batch == "watched" {
					want[x.MailId] = "QUEUED SENT "
					if k%10 == 0 {
						want[x.MailId] = "QUEUED FAILED "
					}
				}
			}
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { a.batch() })
	wg.Go(func() { b.batch() })
	wg.Wait()
	eventually(t, 50*time.Second, "both batches are over", func() bool {
		a.batch()
		return a.getBatch("", "watched").Waiting+a.getBatch("", "not watched").Waiting == 0
	})
	for name, seen := range map[string]map[string]string{"over two replicas": <-stories, "by the client": func() map[string]string {
		b.restart()
		moved()
		close(restarted)
		return <-helped
	}()} {
		if len(seen) != mails {
			t.Errorf("%s: %d mails", name, len(seen))
		}
		for id, story := range want {
			if seen[id] != story {
				t.Errorf("%s: %s was %q, want %q", name, id, seen[id], story)
			}
		}
	}
}

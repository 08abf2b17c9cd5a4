package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestWatch: a watcher hears every change of its mails once and in order, also when it breaks off after every few and begins again at another replica.
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
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
			to, story := fmt.Sprintf("u%d@y.example", i), "[MAIL_STATUS_QUEUED MAIL_STATUS_SENDING MAIL_STATUS_SENT]"
			switch i % 5 {
			case 1:
				o.MailServer, story = "now", "[MAIL_STATUS_SENDING MAIL_STATUS_SENT]"
			case 2:
				to, story = "nobody@y.example", "[MAIL_STATUS_QUEUED MAIL_STATUS_SENDING MAIL_STATUS_FAILED]"
			case 3:
				o.Hold, story = true, "[MAIL_STATUS_HELD MAIL_STATUS_QUEUED MAIL_STATUS_SENDING MAIL_STATUS_SENT]"
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
		var key string // replicas share it: cursors are signed with it
		for _, a := range s.args {
			if strings.HasPrefix(a, "--key-file=") {
				key = a
			}
		}
		run(t, s, start(t, dsn, key))
	})
}

// TestWatchCursor: a cursor is good for its filter only, and a stop of the service ends the stream with a word.
func TestWatchCursor(t *testing.T) {
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

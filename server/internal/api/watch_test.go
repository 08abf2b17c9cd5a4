package api_test

import (
	"database/sql"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestWatchersThatHearNothing: a transaction that does not end keeps changes from watchers.
// They are told how long, so is who asks for the queue's figures, and the log says it.
func TestWatchersThatHearNothing(t *testing.T) {
	// Not parallel: an open transaction holds up the watchers of every database of the cluster.
	each(t, func(t *testing.T, r *rig) {
		postgres := r.store.Dialect() == "postgres"
		r.server("ss", pb.Mode_MODE_DAEMON)
		var stranger *sql.Tx
		if postgres {
			db, err := sql.Open("postgres", r.dsn)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() }) // the test is over
			if stranger, err = db.BeginTx(ctx(t), nil); err == nil {
				_, err = stranger.Exec("select pg_current_xact_id()")
			}
			if err != nil {
				t.Fatal(err)
			}
			r.queue("ss", 1)
			if _, err := db.Exec("update change set time = now() - interval '2 minutes'"); err != nil {
				t.Fatal(err)
			}
		}
		const late = 2 * time.Minute
		first := func() *pb.WatchMailsResponse {
			t.Helper()
			st, err := r.dispatch.WatchMails(ctx(t), &pb.WatchMailsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			res, err := st.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return res
		}
		if lag := first().Lag.AsDuration(); postgres != (lag >= late) {
			t.Errorf("watch: got a lag of %v", lag)
		}
		first()
		q, err := r.dispatch.GetQueueStats(ctx(t), &pb.GetQueueStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if lag := q.WatchLag.AsDuration(); postgres != (lag >= late) {
			t.Errorf("queue: got a lag of %v", lag)
		}
		want := 0
		if postgres {
			want = 1
			if err := stranger.Rollback(); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Count(r.log.String(), "watchers hear nothing"); got != want {
			t.Errorf("got %d lines of the log, want %d: two watchers within a minute", got, want)
		}
	})
}

// TestManyWatchers: watchers whom nothing concerns look for nothing, however many they are and
// whatever happens to others, and the one whom it concerns hears every change in its order.
func TestManyWatchers(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		const idle, mails = 150, 40
		watch := func(batch, cursor string) (grpc.ServerStreamingClient[pb.WatchMailsResponse], string) {
			t.Helper()
			st, err := r.dispatch.WatchMails(ctx(t), &pb.WatchMailsRequest{Filter: &pb.MailFilter{BatchId: batch}, Cursor: cursor})
			if err != nil {
				t.Fatal(err)
			}
			if cursor != "" {
				return st, ""
			}
			res, err := st.Recv() // a word that it has begun
			if err != nil {
				t.Fatal(err)
			}
			return st, res.Cursor
		}
		for range idle {
			watch("never", "")
		}
		hears, first := watch("spring", "")
		before := r.lookups.looks.Load()
		began := time.Now()
		for range mails / 8 {
			if _, err := r.batch(ctx(t), &pb.BatchOptions{BatchId: "winter", Options: &pb.SendOptions{MailServer: "main"}}, &pb.BatchItem{Message: message("b@y.example")}); err != nil {
				t.Fatal(err)
			}
			var items []*pb.BatchItem
			for range 8 {
				items = append(items, &pb.BatchItem{Message: message("a@y.example")})
			}
			if _, err := r.batch(ctx(t), &pb.BatchOptions{BatchId: "spring", Options: &pb.SendOptions{MailServer: "main"}}, items...); err != nil {
				t.Fatal(err)
			}
		}
		all := func(st grpc.ServerStreamingClient[pb.WatchMailsResponse]) (ids []string) {
			t.Helper()
			for len(ids) < mails {
				res, err := st.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if res.Mail != nil {
					ids = append(ids, res.Mail.Id)
				}
			}
			return ids
		}
		heard := all(hears)
		took := time.Since(began)
		looks := r.lookups.looks.Load() - before
		// The process looks four times a second, and once more where it found something; the
		// one who is woken looks as often. A hundred and fifty would have looked 600 times a
		// second.
		if most := 4*int64(took/(250*time.Millisecond)) + 50; looks > most {
			t.Errorf("%d looks in %v, want at most %d", looks, took, most)
		}
		t.Logf("%d looks in %v for %d watchers", looks, took.Round(time.Millisecond), idle+1)
		later, _ := watch("spring", first)
		if again := all(later); !slices.Equal(heard, again) {
			t.Errorf("heard %v at once, and %v from the cursor on", heard, again)
		}
		if slices.Sort(heard); len(slices.Compact(heard)) != mails {
			t.Errorf("heard of %d mails, want %d, each once", len(heard), mails)
		}
	})
}

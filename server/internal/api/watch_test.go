package api_test

import (
	"database/sql"
	"strings"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestWatchersThatHearNothing: a transaction that does not end keeps changes from watchers.
// They are told how long, so is who asks for the queue's figures, and the log says it.
func TestWatchersThatHearNothing(t *testing.T) {
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

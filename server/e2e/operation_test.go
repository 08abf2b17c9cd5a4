package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// operation asks how far one is.
func (s *service) operation(id string) *pb.Operation {
	s.t.Helper()
	r, err := pb.NewOperationsClient(s.conn).GetOperation(timeout(s.t), &pb.GetOperationRequest{Id: id})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Operation
}

// watched follows an operation until it says enough, or to its end.
func (s *service) watched(id string, enough func(o *pb.Operation) bool) (o *pb.Operation) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(scaled(1, 20))*time.Minute)
	defer cancel()
	stream, err := pb.NewOperationsClient(s.conn).WatchOperation(ctx, &pb.WatchOperationRequest{Id: id})
	for err == nil {
		var r *pb.WatchOperationResponse
		if r, err = stream.Recv(); err == nil {
			if o = r.Operation; enough(o) {
				return o
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		s.t.Fatalf("operation %v: %v", o, err)
	}
	return o
}

// TestOperationSurvivesAKill: a batch is cancelled while it is sent. The service is killed in
// the middle, somebody stops what goes on after the restart, and the same call again does the
// rest: each mail is cancelled, or sent, once, and the counts say how many.
func TestOperationSurvivesAKill(t *testing.T) {
	t.Parallel()
	on := each
	if scaled(0, 1) == 0 {
		// what PostgreSQL adds, store.TestOperation and TestOperationPassesBy show
		on = func(t *testing.T, f func(t *testing.T, s *service)) { f(t, start(t, storetest.SQLiteDSN(t))) }
	}
	on(t, func(t *testing.T, s *service) {
		const batch, locked = "spring", 1100
		mails := scaled(1600, 500000)
		w := newWitness(t, 50*time.Millisecond, nil)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
		s.args = append(s.args, "--batch-interval=0")
		s.stop()
		s.run()
		db := openDB(t, s.dsn())
		some := w.after(100)
		for from := 0; from < mails; from += 1000 {
			items := make([]*pb.BatchItem, min(1000, mails-from))
			for i := range items {
				items[i] = itemTo(fmt.Sprintf("u%d@y.example", from+i))
			}
			s.mustSendAll(&pb.BatchOptions{BatchId: batch, Options: &pb.SendOptions{MailServer: "bulk"}, Message: &pb.MailMessage{Subject: "s", Text: "Hello"}}, items...)
		}
		await(t, "the first mails", some)
		// PostgreSQL lets the operation pass by mails that somebody else writes to, and it has
		// not ended before it has come back to them.
		release := func() {}
		if !strings.HasPrefix(s.dsn(), "sqlite:") {
			tx, err := openDB(t, s.dsn()).Begin() // which has one connection
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("select id from due order by id desc limit $1 for update", locked); err != nil {
				t.Fatal(err)
			}
			release = func() { _ = tx.Rollback() }
		}
		defer func() { release() }()
		cancelAll := func() *pb.CancelMailsResponse {
			t.Helper()
			r, err := s.dispatch.CancelMails(timeout(t), &pb.CancelMailsRequest{Filter: &pb.MailFilter{BatchId: batch}, Reason: "wrong price"})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		begin := time.Now()
		first := cancelAll().Operation
		if first.GetTotal() == 0 || first.Total > int64(mails) || time.Since(begin) > time.Second && mails > 100000 {
			t.Fatalf("after %v: %v, want an operation with a count", time.Since(begin), first)
		}
		far := func(n int) func(*pb.Operation) bool {
			return func(o *pb.Operation) bool {
				return o.Matched >= int64(n) || o.State != pb.OperationState_OPERATION_STATE_RUNNING
			}
		}
		for !far(mails / 5)(s.operation(first.Id)) {
		}
		s.kill()
		var state string
		var matched int
		if err := db.QueryRow("select state, matched from operation where id = $1", first.Id).Scan(&state, &matched); err != nil {
			t.Fatal(err)
		}
		if state != "running" && !strings.HasPrefix(s.dsn(), "sqlite:") {
			t.Fatalf("killed when it was %s, with %d of %d mails", state, matched, mails)
		}
		leaseOver(t, db, s.dsn())
		s.run()
		s.watched(first.Id, far(mails/2))
		stopped, err := pb.NewOperationsClient(s.conn).StopOperation(timeout(t), &pb.StopOperationRequest{Id: first.Id})
		if err != nil {
			t.Fatal(err)
		}
		one := stopped.Operation
		release()
		release = func() {}
		began := time.Now()
		rest := cancelAll()
		two := rest.Operation
		if two != nil {
			two = s.watched(two.Id, func(*pb.Operation) bool { return false })
		} else {
			two = &pb.Operation{State: pb.OperationState_OPERATION_STATE_DONE, Matched: int64(rest.Matched), Changed: int64(rest.Changed)}
		}
		took := time.Since(began)
		if one.State == pb.OperationState_OPERATION_STATE_RUNNING || two.State != pb.OperationState_OPERATION_STATE_DONE {
			t.Errorf("stopped: %v; at the end: %v", one, two)
		}
		if now := s.operation(first.Id); now.Changed != one.Changed || now.State != one.State {
			t.Errorf("what was stopped went on: %v, then %v", one, now)
		}
		eventually(t, time.Duration(scaled(2, 20))*time.Minute, "the batch is over", func() bool { return s.getBatch("", batch).Waiting == 0 })
		b := s.getBatch("", batch)
		t.Logf("%d mails, killed at %d, stopped after %d, then %d of %d in %v: %v", mails, matched, one.Changed, two.Changed, two.Matched, took.Round(time.Millisecond), b.Counts)
		if b.Mails != int64(mails) || b.Counts.Sent+b.Counts.Cancelled != b.Mails || one.Changed+two.Changed != b.Counts.Cancelled {
			t.Errorf("%d and %d were cancelled of %d, and the batch has %v", one.Changed, two.Changed, mails, b)
		}
		arrived := map[string]int{}
		for _, l := range w.Mails() {
			arrived[strings.Join(l.To, ",")]++
		}
		if n := int64(len(arrived)); n < b.Counts.Sent || n > b.Counts.Sent+b.PossibleDuplicates {
			t.Errorf("%d mails are at the relay, %v", n, b)
		}
		var rows int
		if err := db.QueryRow("select count(*) from audit where target = $1 and action in ('CancelMails', 'StopOperation')", "operation "+first.Id).Scan(&rows); err != nil {
			t.Fatal(err)
		}
		if want := 1 + map[bool]int{true: 1}[one.State == pb.OperationState_OPERATION_STATE_STOPPED]; rows != want {
			t.Errorf("%d rows of the audit log, want %d", rows, want)
		}
		s.stop()
		intact(t, s.dsn())
		s.invariants(t)
	})
}

package api_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestOperations: a call that selects more than 1000 mails is answered by an operation, which
// can be watched to its end. What cannot be changed is told by reason.
func TestOperations(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		const mails = 1003
		r.server("main", pb.Mode_MODE_DAEMON)
		ms := make([]*store.NewMail, mails)
		for i := range ms {
			id, at := uuid.Must(uuid.NewV7()), time.Now().Add(-time.Minute)
			ms[i] = &store.NewMail{ID: id, MailServer: "main", Mode: store.ModeDaemon, Kind: store.KindBulk, From: "a@x.example", MessageID: id.String() + "@x.example", BatchID: "b",
				Recipients: []store.Recipient{{Mailbox: fmt.Sprintf("r%d@x.example", i)}}, Route: "named", CreateTime: at, RunAt: at.Add(time.Hour), Raw: []store.Piece{{Data: []byte("\r\n")}}, SizeBytes: 2}
			if i < 2 {
				ms[i].Held = "held"
			}
		}
		if _, err := r.store.EnqueueBatch(ctx(t), ms); err != nil {
			t.Fatal(err)
		}
		all := &pb.MailFilter{BatchId: "b", Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_QUEUED, pb.MailStatus_MAIL_STATUS_HELD}}
		few, err := r.dispatch.HoldMails(ctx(t), &pb.HoldMailsRequest{Filter: &pb.MailFilter{BatchId: "b", Statuses: all.Statuses[1:]}})
		if err != nil || few.Operation != nil || few.Matched != 2 || len(few.FailureGroups) != 1 || few.FailureGroups[0].Count != 2 {
			t.Fatalf("two mails: got %v, %v, want both at once, as one group of failures", few, err)
		}
		hold, err := r.dispatch.HoldMails(ctx(t), &pb.HoldMailsRequest{Filter: all, Reason: "wrong price"})
		if err != nil || hold.Operation.GetState() != pb.OperationState_OPERATION_STATE_RUNNING || hold.Changed != 0 {
			t.Fatalf("got %v, %v, want an operation", hold, err)
		}
		if o, err := r.store.Operation(ctx(t), uuid.MustParse(hold.Operation.Id)); err != nil || !strings.Contains(o.Request, `"wrong price"`) {
			t.Errorf("the call is stored as %q, %v: no erasure would find an address in it", o.Request, err)
		}
		run, stop := context.WithCancel(ctx(t))
		defer stop()
		me, err := r.store.Register(run, "test", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		go r.api.RunOperations(run, func() store.ReplicaID { return me })
		operations := pb.NewOperationsClient(r.conn)
		stream, err := operations.WatchOperation(ctx(t), &pb.WatchOperationRequest{Id: hold.Operation.Id})
		if err != nil {
			t.Fatal(err)
		}
		var last *pb.Operation
		for {
			o, err := stream.Recv()
			if err != nil {
				break
			}
			last = o.Operation
		}
		if last.GetState() != pb.OperationState_OPERATION_STATE_DONE || last.Matched != mails || last.Changed != mails-2 || last.Failed != 2 || len(last.Failures) != 1 || last.Failures[0].Count != 2 {
			t.Errorf("at the end: %v", last)
		}
		list, err := operations.ListOperations(ctx(t), &pb.ListOperationsRequest{})
		if err != nil || len(list.Operations) != 1 || list.Operations[0].Id != hold.Operation.Id {
			t.Errorf("the list: %v, %v", list, err)
		}
		stopped, err := operations.StopOperation(ctx(t), &pb.StopOperationRequest{Id: hold.Operation.Id})
		if err != nil || stopped.Operation.State != pb.OperationState_OPERATION_STATE_DONE {
			t.Errorf("stopped behind its end: %v, %v", stopped, err)
		}
		if _, err := operations.GetOperation(ctx(t), &pb.GetOperationRequest{Id: uuid.NewString()}); verdict(err) != "NOT_FOUND" {
			t.Errorf("no such operation: %v", err)
		}
	})
}

// later queues n mails of batch b for mail server main, which are due in an hour. There is a
// mail server other as well.
func (r *rig) later(n int) []*store.NewMail {
	r.t.Helper()
	r.server("main", pb.Mode_MODE_DAEMON)
	r.server("other", pb.Mode_MODE_DAEMON)
	ms := make([]*store.NewMail, n)
	for i := range ms {
		id, at := uuid.Must(uuid.NewV7()), time.Now().Add(-time.Minute)
		ms[i] = &store.NewMail{ID: id, MailServer: "main", Mode: store.ModeDaemon, Kind: store.KindBulk, From: "a@x.example", MessageID: id.String() + "@x.example", BatchID: "b",
			Recipients: []store.Recipient{{Mailbox: "r@x.example"}}, Route: "named", CreateTime: at, RunAt: at.Add(time.Hour), Raw: []store.Piece{{Data: []byte("\r\n")}}, SizeBytes: 2}
	}
	if _, err := r.store.EnqueueBatch(ctx(r.t), ms); err != nil {
		r.t.Fatal(err)
	}
	return ms
}

// TestOperationPastPanic: a mail that nobody foresaw, with more results than recipients, ends
// neither the process nor the operation.
func TestOperationPastPanic(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	const mails = 1001
	ms := r.later(mails)
	if _, err := r.database().Exec(`update due set progress = '{"r":[{"s":"rejected"},{"s":"unknown"}]}' where id = '` + ms[7].ID.String() + "'"); err != nil {
		t.Fatal(err)
	}
	moved, err := r.dispatch.MoveMails(ctx(t), &pb.MoveMailsRequest{Filter: &pb.MailFilter{BatchId: "b"}, MailServer: "other"})
	if err != nil || moved.Operation == nil {
		t.Fatalf("%v, %v, want an operation", moved, err)
	}
	run, stop := context.WithCancel(ctx(t))
	defer stop()
	me, err := r.store.Register(run, "test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	go r.api.RunOperations(run, func() store.ReplicaID { return me })
	stream, err := pb.NewOperationsClient(r.conn).WatchOperation(ctx(t), &pb.WatchOperationRequest{Id: moved.Operation.Id})
	if err != nil {
		t.Fatal(err)
	}
	var last *pb.Operation
	for o, err := stream.Recv(); err == nil; o, err = stream.Recv() {
		last = o.Operation
	}
	if last.GetState() != pb.OperationState_OPERATION_STATE_DONE || last.Changed != mails-1 || last.Failed != 1 || last.Failures[0].Reason != pb.ReasonDamaged {
		t.Errorf("at the end: %v; want one mail told as damaged", last)
	}
}

// TestOperationPassingFault: while the mail server that mails are to go on through cannot be
// looked at, none of them has failed. The operation says so, one behind it is carried out, and
// it goes on.
func TestOperationPassingFault(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	const mails = 1001
	r.later(mails)
	moved, err := r.dispatch.MoveMails(ctx(t), &pb.MoveMailsRequest{Filter: &pb.MailFilter{BatchId: "b"}, MailServer: "other"})
	if err != nil || moved.Operation == nil {
		t.Fatalf("%v, %v, want an operation", moved, err)
	}
	counted, err := r.dispatch.CancelMails(ctx(t), &pb.CancelMailsRequest{Filter: &pb.MailFilter{BatchId: "b"}, ValidateOnly: true})
	if err != nil || counted.Operation == nil {
		t.Fatalf("%v, %v, want an operation", counted, err)
	}
	r.lookups.mu.Lock()
	r.lookups.faults = []error{fmt.Errorf("%w: failover", store.ErrUnavailable), context.DeadlineExceeded, errors.New("a fault of its own")}
	r.lookups.mu.Unlock()
	run, stop := context.WithCancel(ctx(t))
	defer stop()
	me, err := r.store.Register(run, "test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	go r.api.RunOperations(run, func() store.ReplicaID { return me })
	stream, err := pb.NewOperationsClient(r.conn).WatchOperation(ctx(t), &pb.WatchOperationRequest{Id: moved.Operation.Id})
	if err != nil {
		t.Fatal(err)
	}
	var last *pb.Operation
	told := false
	for {
		o, err := stream.Recv()
		if err != nil {
			break
		}
		last = o.Operation
		if last.State == pb.OperationState_OPERATION_STATE_RUNNING && last.Error != "" {
			told = true
		}
	}
	if !told || last.GetState() != pb.OperationState_OPERATION_STATE_DONE || last.Changed != mails || last.Failed != 0 || last.Error != "" {
		t.Errorf("told while it ran: %v; at the end: %v", told, last)
	}
	behind, err := pb.NewOperationsClient(r.conn).GetOperation(ctx(t), &pb.GetOperationRequest{Id: counted.Operation.Id})
	if err != nil || behind.Operation.State != pb.OperationState_OPERATION_STATE_DONE || !behind.Operation.EndTime.AsTime().Before(last.EndTime.AsTime()) {
		t.Errorf("the one behind it: %v, %v; want it done before", behind, err)
	}
}

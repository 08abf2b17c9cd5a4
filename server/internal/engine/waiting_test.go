package engine_test

import (
	"slices"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestMemoryIsNoConnection: of a thousand mails that a replica sends over two connections to a
// slow relay, at most one a connection is counted as being sent. All others wait, in memory or
// in the database, and the oldest of them is as old as its due time says.
func TestMemoryIsNoConnection(t *testing.T) {
	const mails, connections = 1000, 2
	for database, dsn := range storetest.DSNs(t) {
		t.Run(database, func(t *testing.T) {
			relay := (&smtpxtest.Server{Delay: 5 * time.Millisecond}).Start(t)
			r := newRig(t, dsn, nil)
			s := r.server("slow", store.ModeDaemon, relay, store.Limits{MaxConnections: connections})
			due := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
			var ms []*store.NewMail
			for range mails {
				m := newMail(s, store.KindBulk, "u@y.example")
				m.RunAt, m.BatchID = due, "b"
				ms = append(ms, m)
			}
			r.queue(s, ms[:500]...)
			r.queue(s, ms[500:]...)
			if _, err := r.RunBatch(ctx(t), s.Name, false); err != nil {
				t.Fatal(err)
			}
			until(t, "hundreds wait in memory while both connections send", func() bool { return len(relay.Mails()) >= 20 && r.owned() > 300 })
			q, err := r.store.CountQueue(ctx(t), store.Everything, nil, s.Name)
			if err != nil {
				t.Fatal(err)
			}
			sending, waiting := q.ByStatus[store.MailSending], q.Lanes[0].Waiting
			if sending > connections {
				t.Errorf("%d are counted as being sent over %d connections", sending, connections)
			}
			// What is sent is counted a moment later than what is due.
			if due := sending + waiting; q.ByStatus[store.MailQueued] != waiting || due > mails || due+q.Sent < mails || waiting < mails/2 {
				t.Errorf("got %d sending, %d waiting, %d queued, %d sent, want all of %d", sending, waiting, q.ByStatus[store.MailQueued], q.Sent, mails)
			}
			if !q.Lanes[0].Oldest.Equal(due) {
				t.Errorf("the oldest was due %v, want %v", q.Lanes[0].Oldest, due)
			}
			// Lists and single mails say the same of each mail as the counts. Between a look
			// and the next a mail may have moved on.
			listed, err := r.store.ListDue(ctx(t), store.Everything, store.MailFilter{Statuses: []store.MailStatus{store.MailSending}}, store.Cursor{}, mails)
			if err != nil || len(listed) > connections {
				t.Errorf("%d are listed as being sent over %d connections, %v", len(listed), connections, err)
			}
			listed, err = r.store.ListDue(ctx(t), store.Everything, store.MailFilter{Statuses: []store.MailStatus{store.MailQueued}}, store.Cursor{}, mails)
			if err != nil || len(listed) < mails/2 {
				t.Errorf("%d are listed as queued, %v", len(listed), err)
			}
			for _, m := range listed {
				if m.Status != store.MailQueued || m.DueTime == nil || !m.DueTime.Equal(due) {
					t.Fatalf("waits in memory: got %s, due %v, want queued, due %v", m.Status, m.DueTime, due)
				}
			}
			listed = slices.DeleteFunc(listed, func(m *store.Mail) bool { return m.Owner == 0 })
			if len(listed) == 0 {
				t.Fatal("none of the queued ones is a replica's")
			}
			last := listed[len(listed)-1]
			if m := r.mail(last.ID); m.Status != store.MailQueued || m.DueTime == nil {
				t.Errorf("the last of the line, of replica %d: got %s, due %v", last.Owner, m.Status, m.DueTime)
			}
			b, err := r.store.CountBatch(ctx(t), store.Everything, "", "b")
			if err != nil {
				t.Fatal(err)
			}
			if n := b.ByStatus[store.MailSending]; n > connections || b.ByStatus[store.MailQueued]+n != b.Waiting {
				t.Errorf("the batch: got %v, %d waiting, want at most %d being sent and the others queued", b.ByStatus, b.Waiting, connections)
			}
		})
	}
}

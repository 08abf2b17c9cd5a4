package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// TestIdleWorkerGoes: a worker waits for its next mail for a while and not for ever. While a
// drain waits for the limit per minute, another replica may have what it waits for, and wait
// for the connection.
func TestIdleWorkerGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(10, false)
		began := time.Now()
		if j := q.await(lingers); j != nil || time.Since(began) != lingers {
			t.Errorf("got job %v after %v, want none after %v", j, time.Since(began), lingers)
		}
		next := newJob(&store.Claimed{}, 1, began)
		time.AfterFunc(lingers/2, func() { q.put(next) })
		began = time.Now()
		if j := q.await(lingers); j == nil || time.Since(began) != lingers/2 {
			t.Errorf("got job %v after %v, want one after %v", j, time.Since(began), lingers/2)
		}
	})
}

// TestOnlySharedConnectionsAreShort: reconnecting costs, so only where replicas share few.
func TestOnlySharedConnectionsAreShort(t *testing.T) {
	for connections, want := range map[int32]time.Duration{0: 20 * time.Second, 2: 2 * time.Second} {
		d := &drain{way: direct(&store.MailServer{Limits: store.Limits{MaxConnections: connections}})}
		if got := d.idleFor(); got != want {
			t.Errorf("max_connections %d: an idle worker stays %v, want %v", connections, got, want)
		}
	}
}

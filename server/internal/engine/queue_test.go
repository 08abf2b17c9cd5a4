package engine

import (
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/store"
)

// TestOnlySharedConnectionsAreShort: reconnecting costs, so only where replicas share few.
func TestOnlySharedConnectionsAreShort(t *testing.T) {
	for connections, want := range map[int32]time.Duration{0: 20 * time.Second, 2: 2 * time.Second} {
		d := &drain{Way: brake.Direct(&store.MailServer{Limits: store.Limits{MaxConnections: connections}})}
		if got := d.idleFor(); got != want {
			t.Errorf("max_connections %d: an idle worker stays %v, want %v", connections, got, want)
		}
	}
}

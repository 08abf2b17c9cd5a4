package engine

import (
	"sync"

	"github.com/google/uuid"
)

// flights holds what is under way in php mode.
type flights struct {
	mu      sync.Mutex
	byID    map[uuid.UUID]*flight
	stopped bool
}

func (fs *flights) add(f *flight) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.stopped {
		return false
	}
	fs.byID[f.sub.Mail.ID] = f
	return true
}

func (fs *flights) remove(f *flight) {
	fs.mu.Lock()
	delete(fs.byID, f.sub.Mail.ID)
	fs.mu.Unlock()
}

func (fs *flights) get(id uuid.UUID) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.byID[id]
}

func (fs *flights) stop() {
	fs.mu.Lock()
	fs.stopped = true
	fs.mu.Unlock()
}

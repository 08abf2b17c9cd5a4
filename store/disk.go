package store

import (
	"context"
	"sync"
)

// Disk finds the disk that the database lies on, for a function that says how many bytes are
// free there and how many there are. That is not known where PostgreSQL runs on another machine
// or does not say where its data is, nor on systems other than Linux.
func (s *Store) Disk(ctx context.Context) func() (free, size int64, ok bool) {
	folder := sync.OnceValue(func() string { return s.dialect.folder(ctx) })
	return func() (int64, int64, bool) {
		if folder() == "" {
			return 0, 0, false
		}
		return diskOf(folder())
	}
}

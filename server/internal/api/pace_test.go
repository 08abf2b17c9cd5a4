package api

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestPace: time is taken by waiting and earned by bytes, up to the patience of the beginning.
func TestPace(t *testing.T) {
	const most = 30 * time.Second
	p := newPace(most)
	for _, x := range []struct {
		bytes        int64
		waited, left time.Duration
	}{
		{0, 10 * time.Second, 20 * time.Second},                   // silence
		{uploadRate, time.Second, 20 * time.Second},               // exactly the rate
		{10 * uploadRate, time.Second, 29 * time.Second},          // faster
		{18 << 20, 0, most},                                       // all at once earns no more
		{uploadRate, 11 * time.Second, 20 * time.Second},          // slower
		{uploadRate / 2, 20500 * time.Millisecond, 0},             // and out of time
		{uploadRate / 16, time.Second / 8, -time.Second * 1 / 16}, // behind
	} {
		p.came(x.bytes, x.waited)
		if p.left != x.left {
			t.Fatalf("%d bytes after %v leave %v, want %v", x.bytes, x.waited, p.left, x.left)
		}
	}
}

// TestPaceOfLargePieces: a piece of 1 MiB that comes at twice the least rate is no silence. One
// that comes at half of it is cut.
func TestPaceOfLargePieces(t *testing.T) {
	for rate, whole := range map[int]bool{2 * uploadRate: true, uploadRate / 2: false} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			a, began := &API{Config: Config{UploadPatience: uploadPatience}}, time.Now()
			next := a.paced(ctx, func() (*pb.UploadAttachmentRequest, error) {
				select {
				case <-time.After(time.Second * (1 << 20) / time.Duration(rate)):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				return &pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: make([]byte, 1<<20)}}, nil
			}, func() int64 { return int64(time.Since(began).Seconds() * float64(rate)) })
			var err error
			for n := 0; n < 3 && err == nil; n++ {
				_, err = next()
			}
			if took := time.Since(began); (err == nil) != whole || !whole && (took < uploadPatience || took > 3*uploadPatience) {
				t.Errorf("at %d bytes a second: %v after %v", rate, err, took)
			}
		})
	}
}

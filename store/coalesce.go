package store

import "sync"

// coalescer turns single calls into batches without a timer: it takes one, drains what is
// queued, and flushes. The flush that runs is the window in which the next batch gathers.
type coalescer[T any] struct {
	in    chan T
	flush func([]T)
	size  func(T) int // bytes an item weighs
	wg    sync.WaitGroup
	quit  chan struct{}
}

const (
	batchItems = 500
	batchBytes = 4 << 20
)

// newCoalescer starts one flusher on in, which several may share.
func newCoalescer[T any](in chan T, size func(T) int, flush func([]T)) *coalescer[T] {
	c := &coalescer[T]{in: in, flush: flush, size: size, quit: make(chan struct{})}
	c.wg.Go(c.run)
	return c
}

func (c *coalescer[T]) run() {
	for {
		var first T
		select {
		case first = <-c.in:
		default:
			select {
			case first = <-c.in:
			case <-c.quit:
				return
			}
		}
		batch, bytes := []T{first}, c.size(first)
	more:
		for len(batch) < batchItems && bytes < batchBytes {
			select {
			case t := <-c.in:
				batch = append(batch, t)
				bytes += c.size(t)
			default:
				break more
			}
		}
		c.flush(batch)
	}
}

// stop flushes what is queued and ends the flusher.
func (c *coalescer[T]) stop() {
	close(c.quit)
	c.wg.Wait()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

const (
	// bulk mails that are kept waiting while php mode is measured, if the service lets so many
	// wait
	backlog  = 10000
	feed     = 1000   // of one SendBatch
	bulkMost = 400000 // in all
)

// latency measures php-mode sends one at a time at a steady pace: with nothing else to do, with
// bulk waiting at another mail server, and with bulk waiting at the same one.
func latency(ctx context.Context, b *bench) error {
	p, err := b.begin(ctx, "--batch-interval=0")
	if err != nil {
		return err
	}
	for name, mode := range map[string]pb.Mode{"php": pb.Mode_MODE_PHP, "bulk": pb.Mode_MODE_DAEMON} {
		if err := b.addServer(ctx, p, name, mode, b.tally.sink.Port(), b.conns); err != nil {
			return err
		}
	}
	if _, err := b.paced(ctx, p, min(100, b.mails)); err != nil { // warms up
		return err
	}
	ls, err := b.paced(ctx, p, b.mails)
	if err != nil {
		return err
	}
	_, alone := b.latencies("php alone", ls)
	for _, x := range []struct{ name, server string }{{"bulk at another mail server", "bulk"}, {"bulk at the same", "php"}} {
		stop := b.saturate(ctx, p, x.server)
		first, err := b.paced(ctx, p, min(100, b.mails))
		var ls []time.Duration
		if err == nil {
			ls, err = b.paced(ctx, p, b.mails)
		}
		s, stopErr := stop()
		if err := errors.Join(err, stopErr); err != nil {
			return err
		}
		b.add("php, "+x.name+": slowest of the first 100 ms", "%.0f", "", ms(slices.Max(first)))
		_, p99 := b.latencies("php, "+x.name, ls)
		b.add("php, "+x.name+" p99 / alone", "%.1f", "<= 3", p99/alone)
		b.add(x.name+": bulk mails/s meanwhile", "%.0f", "", s.rate)
		b.add(x.name+": bulk waiting at the end", "%.0f", "", float64(s.waiting))
		if s.sent >= bulkMost || s.waiting == 0 {
			return fmt.Errorf("%d bulk mails meanwhile, %d waited at the end: nothing was saturated", s.sent, s.waiting)
		}
	}
	return b.recorded(ctx, p, b.given())
}

// paced sends n php-mode mails, one every pace whatever became of those before; the time counts
// from when each was due.
func (b *bench) paced(ctx context.Context, p *process, n int) ([]time.Duration, error) {
	b.timing.Store(true)
	defer b.timing.Store(false)
	first := b.tally.give(n)
	all, errs := make([]time.Duration, n), make([]error, n)
	var wg sync.WaitGroup
	t := time.NewTicker(b.pace)
	defer t.Stop()
	for i := range n {
		var due time.Time
		select {
		case due = <-t.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		wg.Go(func() {
			_, errs[i] = b.sendOne(ctx, p.dispatch[0], "php", first+i, pb.MailStatus_MAIL_STATUS_SENT)
			all[i] = time.Since(due)
		})
	}
	wg.Wait()
	return all, errors.Join(errs...)
}

// saturate keeps bulk coming to a mail server over several streams, from before it returns
// until stop, which waits until all of it has arrived. As much as the service takes goes in,
// but no more than backlog waits.
func (b *bench) saturate(ctx context.Context, p *process, server string) (stop func() (saturation, error)) {
	quit, began := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var sent atomic.Int64
	var feeders sync.WaitGroup
	errs := make([]error, b.streams)
	arrived, begin := b.tally.arrived.Load(), time.Now()
	waiting := func() int { return b.given() - int(b.tally.arrived.Load()) }
	for i := range b.streams {
		feeders.Go(func() {
			defer once.Do(func() { close(began) })
			for errs[i] == nil && sent.Load() < bulkMost {
				select {
				case <-quit:
					return
				default:
				}
				if waiting() >= backlog {
					once.Do(func() { close(began) })
					select {
					case <-quit:
					case <-time.After(5 * time.Millisecond):
					}
					continue
				}
				first := b.tally.give(feed)
				errs[i] = b.stream(ctx, p.dispatch[0], first, first+feed, &pb.BatchOptions{Options: &pb.SendOptions{MailServer: server}}, b.own)
				if sent.Add(feed) >= backlog {
					once.Do(func() { close(began) })
				}
			}
		})
	}
	<-began
	return func() (saturation, error) {
		s := saturation{sent: int(sent.Load()), waiting: waiting(), rate: float64(b.tally.arrived.Load()-arrived) / time.Since(begin).Seconds()}
		close(quit)
		feeders.Wait()
		err := errors.Join(errs...)
		if err == nil {
			err = b.tally.wait(ctx, b.given())
		}
		return s, err
	}
}

// saturation is what went on beside the measured sends, when they were over.
type saturation struct {
	sent, waiting int
	rate          float64
}

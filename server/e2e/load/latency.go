package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// backlog is how many bulk mails are kept waiting while php mode is measured.
const backlog = 10000

// latency measures php-mode sends one at a time at a steady pace: with nothing else to do, with bulk waiting at another mail server, and with bulk
// waiting at the same one.
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
		bulk, stop := b.saturate(ctx, p, x.server)
		ls, err := b.paced(ctx, p, b.mails)
		sent, rate, stopErr := stop()
		if err := errors.Join(err, stopErr); err != nil {
			return err
		}
		_, p99 := b.latencies("php, "+x.name, ls)
		b.add("php, "+x.name+" p99 / alone", "%.1f", "<= 3", p99/alone)
		b.add(x.name+": bulk mails/s meanwhile", "%.0f", "", rate)
		if sent < backlog || bulk() == 0 {
			return fmt.Errorf("only %d bulk mails meanwhile: nothing was saturated", sent)
		}
	}
	return b.recorded(ctx, p, b.given())
}

// paced sends n php-mode mails, one every pace whatever became of those before; the time counts from when each was due.
func (b *bench) paced(ctx context.Context, p *process, n int) ([]time.Duration, error) {
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

// saturate keeps bulk waiting at a mail server from before it returns until stop, which waits until all of it has arrived. sent tells how many so far.
func (b *bench) saturate(ctx context.Context, p *process, server string) (sent func() int, stop func() (int, float64, error)) {
	var mu sync.Mutex
	total := 0
	sent = func() int { mu.Lock(); defer mu.Unlock(); return total }
	quit, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	arrived := b.tally.arrived.Load()
	begin := time.Now()
	go func() {
		o := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: server}}
		var once sync.Once
		for {
			select {
			case <-quit:
				done <- nil
				return
			default:
			}
			if b.given()-int(b.tally.arrived.Load()) >= backlog {
				once.Do(func() { close(ready) })
				select {
				case <-quit:
				case <-time.After(5 * time.Millisecond):
				}
				continue
			}
			if err := b.bulk(ctx, p, 1000, o, b.own); err != nil {
				once.Do(func() { close(ready) })
				done <- err
				return
			}
			mu.Lock()
			total += 1000
			mu.Unlock()
		}
	}()
	select {
	case <-ready:
	case <-ctx.Done():
	}
	return sent, func() (int, float64, error) {
		rate := float64(b.tally.arrived.Load()-arrived) / time.Since(begin).Seconds()
		close(quit)
		err := <-done
		if err == nil {
			err = b.tally.wait(ctx, b.given())
		}
		return sent(), rate, err
	}
}

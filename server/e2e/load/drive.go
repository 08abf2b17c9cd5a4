package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// addServer saves a mail server on a port of this machine.
func (b *bench) addServer(ctx context.Context, p *process, name string, mode pb.Mode, port, conns int) error {
	_, err := p.admin.CreateMailServer(ctx, &pb.CreateMailServerRequest{MailServer: &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, Mode: mode,
		From: "Load <load@load.example>", Limits: &pb.Limits{MaxConnections: int32(conns), MaxMailBytes: 25 << 20},
		Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(port), Encryption: pb.Smtp_ENCRYPTION_NONE}}})
	if err != nil {
		return fmt.Errorf("add mail server %s: %w", name, err)
	}
	return nil
}

// sendOne sends mail n and returns how long it took until its last event, which must say want.
func (b *bench) sendOne(ctx context.Context, d pb.DispatchClient, server string, n int, want pb.MailStatus) (time.Duration, error) {
	r := &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: b.body.message(n)}
	if b.ids {
		r.RequestId = fmt.Sprintf("load-%d", n)
	}
	begin := time.Now()
	stream, err := d.Send(ctx, r)
	if err != nil {
		return 0, err
	}
	var took time.Duration
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) && took > 0 {
			return took, nil
		}
		if err != nil {
			return 0, fmt.Errorf("mail %d: %w", n, err)
		}
		if c := ev.GetCompleted(); c != nil {
			took = time.Since(begin)
			if c.Mail.Status != want {
				return 0, fmt.Errorf("mail %d is %v: %s", n, c.Mail.Status, c.Mail.LastError)
			}
		}
	}
}

// sends sends n mails one by one by several callers and returns how long each took, and all of
// them together.
func (b *bench) sends(ctx context.Context, p *process, server string, n, callers int, want pb.MailStatus) ([]time.Duration, time.Duration, error) {
	return b.parallel(ctx, n, callers, func(ctx context.Context, caller, i int) (time.Duration, error) {
		return b.sendOne(ctx, p.dispatch[caller%len(p.dispatch)], server, i, want)
	})
}

// parallel calls do for n new numbers by several callers. The first error ends it.
func (b *bench) parallel(ctx context.Context, n, callers int, do func(ctx context.Context, caller, i int) (time.Duration, error)) ([]time.Duration, time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first := b.tally.give(n)
	all := make([]time.Duration, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for c := range min(callers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				var err error
				if all[i], err = do(ctx, c, first+i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	return all, took, context.Cause(ctx)
}

// bulk sends n mails by SendBatch over several streams. item makes what differs from mail to
// mail.
func (b *bench) bulk(ctx context.Context, p *process, n int, o *pb.BatchOptions, item func(n int) *pb.BatchItem) error {
	first := b.tally.give(n)
	var wg sync.WaitGroup
	errs := make([]error, b.streams)
	for s := range b.streams {
		from, to := first+n*s/b.streams, first+n*(s+1)/b.streams
		wg.Go(func() { errs[s] = b.stream(ctx, p.dispatch[s%len(p.dispatch)], from, to, o, item) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stream sends the mails from..to-1 by one SendBatch.
func (b *bench) stream(ctx context.Context, d pb.DispatchClient, from, to int, o *pb.BatchOptions, item func(n int) *pb.BatchItem) error {
	s, err := d.SendBatch(ctx)
	if err != nil {
		return err
	}
	r := &pb.SendBatchRequest{Options: o}
	for n := from; n < to; n++ {
		it := item(n)
		if b.ids {
			it.RequestId = fmt.Sprintf("load-%d", n)
		}
		if r.Items = append(r.Items, it); len(r.Items) == b.items || n == to-1 {
			if err := s.Send(r); err != nil {
				break // CloseAndRecv has the reason
			}
			r = &pb.SendBatchRequest{}
		}
	}
	sum, err := s.CloseAndRecv()
	if err != nil {
		return fmt.Errorf("SendBatch: %w", err)
	}
	if sum.Accepted != int64(to-from) {
		return fmt.Errorf("SendBatch took %d of %d mails, %d are duplicates, rejected: %v", sum.Accepted, to-from, sum.Duplicates, sum.Rejections)
	}
	return nil
}

// own is an item with a message of its own.
func (b *bench) own(n int) *pb.BatchItem { return &pb.BatchItem{Message: b.body.message(n)} }

// recorded waits until n mails have arrived since the start and the due-out journal is empty:
// all of them are in the archive.
func (b *bench) recorded(ctx context.Context, p *process, n int) error {
	if err := b.tally.wait(ctx, n); err != nil {
		return err
	}
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		r, err := p.journal.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{PageSize: 1})
		if err != nil {
			return fmt.Errorf("due-out journal: %w", err)
		}
		if len(r.Mails) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("mail %s is still %v (%s): %w", r.Mails[0].Id, r.Mails[0].Status, r.Mails[0].LastError, context.Cause(ctx))
		case <-t.C:
		}
	}
}

// given is how many mails were handed over since the start.
func (b *bench) given() int { return int(b.tally.given.Load()) }

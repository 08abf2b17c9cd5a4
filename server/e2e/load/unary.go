package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message"
)

// php measures php mode against the bare SMTP exchange: the same mails to the same sink over
// sessions without the service.
func php(ctx context.Context, b *bench) error {
	p, err := b.begin(ctx, "--batch-interval=1h")
	if err != nil {
		return err
	}
	if err := b.addServer(ctx, p, "php", pb.Mode_MODE_PHP, b.tally.sink.Port(), b.conns); err != nil {
		return err
	}
	one := max(1, b.mails/10)
	for _, x := range []struct {
		callers, mails int
		aim            string
	}{{1, one, ""}, {b.callers, b.mails, ">= 2000"}} {
		who := fmt.Sprintf("%d callers", x.callers)
		if x.callers == 1 {
			who = "1 caller"
		}
		if _, _, err := b.bare(ctx, min(100, one), x.callers); err != nil {
			// warms up sink and runtime
			return err
		}
		before := b.usage()
		ls, took, err := b.bare(ctx, x.mails, x.callers)
		if err != nil {
			return err
		}
		b.rate("bare, "+who, "", x.mails, took)
		bare50, bare99 := b.latencies("bare, "+who, ls)
		b.add("bare, "+who+" CPU load+sink", "%.3f", "", b.usage().since(before).load.Seconds()*1000/float64(x.mails))
		if _, _, err := b.sends(ctx, p, "php", min(100, one), x.callers, pb.MailStatus_MAIL_STATUS_SENT); err != nil {
			return err
		}
		before = b.usage()
		if ls, took, err = b.sends(ctx, p, "php", x.mails, x.callers, pb.MailStatus_MAIL_STATUS_SENT); err != nil {
			return err
		}
		b.rate("php, "+who, x.aim, x.mails, took)
		p50, p99 := b.latencies("php, "+who, ls)
		aim := ""
		if x.callers == 1 {
			aim = "< 3"
		}
		b.add("added, "+who+" p50 ms", "%.2f", aim, p50-bare50)
		b.add("added, "+who+" p99 ms", "%.2f", "", p99-bare99)
		b.cpu("php, "+who, "", before, x.mails)
	}
	return b.recorded(ctx, p, b.given())
}

// bare sends n mails over sessions, one a caller, without the service.
func (b *bench) bare(ctx context.Context, n, callers int) ([]time.Duration, time.Duration, error) {
	sessions := make([]*smtpx.Session, callers)
	defer func() {
		for _, s := range sessions {
			if s != nil {
				_ = s.Close() // all its outcomes are known
			}
		}
	}()
	for i := range sessions {
		var err error
		if sessions[i], err = new(smtpx.Dialer).Dial(ctx, smtpx.Relay{Host: "127.0.0.1", Port: b.tally.sink.Port(), Encryption: smtpx.EncryptionNone}); err != nil {
			return nil, 0, err
		}
	}
	from, err := message.ParseAddress("Load <load@load.example>")
	if err != nil {
		return nil, 0, err
	}
	return b.parallel(ctx, n, callers, func(ctx context.Context, caller, i int) (time.Duration, error) {
		m := b.body.message(i)
		to, err := message.ParseAddress(m.To[0])
		if err != nil {
			return 0, err
		}
		pieces, err := message.Compose(&message.Message{From: from, To: []message.Address{to}, Subject: m.Subject, Text: m.Text, HTML: m.Html,
			MessageID: message.NewMessageID(strconv.Itoa(i), from), Date: message.Stamp(time.Now())})
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		o := sessions[caller].Send(ctx, &smtpx.Transaction{From: from.Mailbox, To: []string{to.Mailbox}, Raw: message.Join(pieces)})
		if o.Recipients[0].Status != smtpx.StatusAccepted {
			return 0, fmt.Errorf("bare mail %d was not accepted: %v", i, o.Err)
		}
		return time.Since(begin), nil
	})
}

// daemon measures the two halves of daemon mode one after the other: into the queue, then one
// batch.
func daemon(ctx context.Context, b *bench) error {
	p, err := b.begin(ctx, "--batch-interval=1h")
	if err != nil {
		return err
	}
	if err := b.addServer(ctx, p, "daemon", pb.Mode_MODE_DAEMON, b.tally.sink.Port(), b.conns); err != nil {
		return err
	}
	queueAim, drainAim := ">= 5000", ">= 5000"
	if b.database == "sqlite" {
		queueAim, drainAim = ">= 4000", ">= 4000"
	}
	before := b.usage()
	ls, took, err := b.sends(ctx, p, "daemon", b.mails, b.callers, pb.MailStatus_MAIL_STATUS_QUEUED)
	if err != nil {
		return err
	}
	b.rate("queue", queueAim, b.mails, took)
	b.latencies("queue", ls)
	b.cpu("queue", "", before, b.mails)
	before = b.usage()
	begin := time.Now()
	counts, err := p.admin.RunBatch(ctx, &pb.RunBatchRequest{Wait: true})
	took = time.Since(begin)
	if err != nil {
		return err
	}
	if int(counts.Sent) != b.mails {
		return fmt.Errorf("the batch sent %d of %d mails: %v", counts.Sent, b.mails, counts)
	}
	b.rate("drain", drainAim, b.mails, took)
	b.cpu("drain", "", before, b.mails)
	return b.recorded(ctx, p, b.mails)
}

// unary measures Send in daemon mode: first while the batch rests, then while it never does.
func unary(ctx context.Context, b *bench) error {
	for _, x := range []struct{ name, interval string }{{"batch rests", "1h"}, {"batch never rests", "0"}} {
		p, err := b.begin(ctx, "--batch-interval="+x.interval)
		if err != nil {
			return err
		}
		// The mail of the first phase stays in its journal, at a mail server of its own.
		server := "rests"
		if x.interval == "0" {
			server = "never-rests"
		}
		if err := b.addServer(ctx, p, server, pb.Mode_MODE_DAEMON, b.tally.sink.Port(), b.conns); err != nil {
			return err
		}
		before := b.usage()
		begin := time.Now()
		ls, took, err := b.sends(ctx, p, server, b.mails, b.callers, pb.MailStatus_MAIL_STATUS_QUEUED)
		if err != nil {
			return err
		}
		b.rate(x.name+": accepted", ">= 5000", b.mails, took)
		b.latencies(x.name+": accepted", ls)
		if x.interval == "0" {
			if err := b.recorded(ctx, p, b.given()); err != nil {
				return err
			}
			b.rate(x.name+": archived", "", b.mails, time.Since(begin))
		}
		b.cpu(x.name, "", before, b.mails)
		if x.interval != "0" {
			// They go out before the second phase begins: it must not find a backlog.
			if _, err := p.admin.RunBatch(ctx, &pb.RunBatchRequest{Wait: true}); err != nil {
				return err
			}
			if err := b.recorded(ctx, p, b.given()); err != nil {
				return err
			}
		}
		if err := b.end(); err != nil {
			return err
		}
	}
	return nil
}

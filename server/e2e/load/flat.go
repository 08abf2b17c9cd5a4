package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// flat sends many mails through one database, a tenth at a time, and compares the last tenth
// with the first. Each tenth is measured end to end, so that no backlog carries over.
func flat(ctx context.Context, b *bench) error {
	p, err := b.begin(ctx, "--batch-interval=0")
	if err != nil {
		return err
	}
	if err := b.addServer(ctx, p, "bulk", pb.Mode_MODE_DAEMON, b.tally.sink.Port(), b.conns); err != nil {
		return err
	}
	release := func() error { return nil }
	const parts = 10
	part := max(1, b.mails/parts)
	var first, last time.Duration
	var firstUsed, lastUsed usage
	for i := range parts {
		if b.snapshot > 0 && b.database == "postgres" && (parts-i)*part <= b.snapshot && (parts-i+1)*part > b.snapshot {
			if release, err = b.hold(ctx); err != nil {
				return err
			}
		}
		begin, before := time.Now(), b.usage()
		if err := b.bulk(ctx, p, part, &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "bulk"}}, b.own); err != nil {
			return err
		}
		if err := b.recorded(ctx, p, b.given()); err != nil {
			return err
		}
		last, lastUsed = time.Since(begin), b.usage().since(before)
		if i == 0 {
			first, firstUsed = last, lastUsed
		}
		name := fmt.Sprintf("mails %d to %d", i*part+1, (i+1)*part)
		b.rate(name, "", part, last)
		if i == 0 || i == parts-1 {
			b.cpu(name, "", before, part)
		}
	}
	aim := ">= 80"
	if b.snapshot > 0 && b.database == "postgres" {
		aim = ">= 80; >= 60 with a snapshot"
	}
	b.add("last tenth in % of the first", "%.0f", aim, 100*first.Seconds()/last.Seconds())
	cpu := func(u usage) float64 { return (u.service + u.database).Seconds() }
	b.add("last tenth's CPU in % of the first's", "%.0f", "", 100*cpu(lastUsed)/cpu(firstUsed))
	return release()
}

// hold opens a transaction that has read something, so that the database has to keep every row
// version from now on.
func (b *bench) hold(ctx context.Context) (func() error, error) {
	db, err := sql.Open("postgres", b.dsn)
	if err != nil {
		return nil, err
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return nil, err
	}
	var n int
	if err := tx.QueryRowContext(ctx, "select count(*) from mail_server").Scan(&n); err != nil {
		return nil, err
	}
	return func() error {
		defer db.Close()
		// It must still see what it saw: else nothing was held.
		var mails int
		if err := tx.QueryRowContext(ctx, "select count(*) from mail").Scan(&mails); err != nil {
			return err
		}
		if mails > b.mails-b.snapshot {
			return fmt.Errorf("the snapshot saw %d mails, more than were there when it was taken", mails)
		}
		return tx.Rollback()
	}, nil
}

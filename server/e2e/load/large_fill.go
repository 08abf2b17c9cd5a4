package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"
)

// What is filled in by SQL looks as the service has written it, but for the bodies, which are
// empty. The service is not running meanwhile.

const (
	deadPort = 9 // of this machine: nobody listens
	// rows of one statement, so that its memory is bounded and its end near
	fillStep = 200000
	// every so many mails have a Message-ID of another program's
	foreignEvery = 100
	archiveSpan  = 2 * 365 * 24 * time.Hour // the archive goes back so far
)

// filler writes rows.
type filler struct {
	db       *sql.DB
	postgres bool
	begin    time.Time // create time of the first archived mail
	n        int       // archived mails
	indexes  []string  // that have to be built anew
}

// id is that of archived mail i.
func (f *filler) id(i int) string { return mailID(f.at(i), i) }

// at is its create time.
func (f *filler) at(i int) time.Time {
	return f.begin.Add(archiveSpan / time.Duration(f.n) * time.Duration(i))
}

// mailID is a UUID of version 7 whose random part is a number.
func mailID(at time.Time, n int) string {
	ms := fmt.Sprintf("%012x", at.UnixMilli())
	return fmt.Sprintf("%s-%s-7000-8000-%012x", ms[:8], ms[8:], n)
}

// customers is how many different recipients there are; each has four mails.
func (f *filler) customers() int { return max(1, f.n/4) }

func (f *filler) recipient(i int) string {
	return fmt.Sprintf("c%d@customers.example", i%f.customers())
}

func (f *filler) reference(i int) string { return fmt.Sprintf("order-%d", i) }

func (f *filler) messageID(i int) string {
	if i%foreignEvery == 0 {
		return fmt.Sprintf("%d@shop.example", i)
	}
	return f.id(i) + "@load.example"
}

// termHash is a term as the service makes it.
func termHash(kind, value string) int64 {
	h := sha256.Sum256([]byte(kind + "\x00" + value))
	return int64(binary.BigEndian.Uint64(h[:8]))
}

// stopped has the database to itself: the service is stopped meanwhile.
func (l *largeRun) stopped(ctx context.Context, f func(fl *filler) error) error {
	if err := l.end(); err != nil {
		return err
	}
	fl := &filler{n: max(1, l.archive), begin: l.since, postgres: l.database == "postgres"}
	driver, name := "postgres", l.dsn
	if !fl.postgres {
		driver, name = "sqlite", strings.TrimPrefix(l.dsn, "sqlite:")+"?"+url.Values{"_pragma": {"synchronous(OFF)", "cache_size(-262144)"}}.Encode()
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1) // settings are of a connection
	fl.db = db
	begin := time.Now()
	err = f(fl)
	if closed := db.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "filled in %v\n", time.Since(begin).Round(time.Second))
	return l.open(ctx)
}

func (f *filler) exec(ctx context.Context, statements ...string) error {
	for _, q := range statements {
		if _, err := f.db.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("%.200s: %w", q, err)
		}
	}
	return nil
}

// fillArchive writes finished mails and says how many bytes each takes.
func (l *largeRun) fillArchive(ctx context.Context) (perMail float64, err error) {
	l.since = time.Now().Add(-archiveSpan - time.Hour).Truncate(time.Millisecond)
	if l.archive == 0 {
		return 0, nil
	}
	err = l.stopped(ctx, func(f *filler) error {
		before, err := f.bytes(ctx)
		if err != nil {
			return err
		}
		steps := []func(context.Context) error{f.dropIndexes, f.archived, f.buildIndexes}
		if !f.postgres {
			steps = []func(context.Context) error{f.archivedSQLite}
		}
		for _, s := range steps {
			if err := s(ctx); err != nil {
				return err
			}
		}
		after, err := f.bytes(ctx)
		perMail = float64(after-before) / float64(f.n)
		return err
	})
	return perMail, err
}

// bytes is how large the database is.
func (f *filler) bytes(ctx context.Context) (n int64, err error) {
	q := "select page_count * page_size from pragma_page_count(), pragma_page_size()"
	if f.postgres {
		q = "select sum(pg_total_relation_size(t::regclass))::bigint from unnest(array['mail', 'archive', 'term']) t"
	}
	err = f.db.QueryRowContext(ctx, q).Scan(&n)
	return n, err
}

// dropIndexes takes away what is quicker built over all rows than row by row. Ids rise, so the
// primary keys of mail and archive stay.
func (f *filler) dropIndexes(ctx context.Context) error {
	rows, err := f.db.QueryContext(ctx, `select 'drop index ' || i.indexrelid::regclass, pg_get_indexdef(i.indexrelid) from pg_index i
where i.indrelid in ('mail'::regclass, 'archive'::regclass) and not i.indisprimary
union all select 'alter table term drop constraint ' || conname, 'alter table term add constraint ' || conname || ' ' || pg_get_constraintdef(oid)
from pg_constraint where conrelid = 'term'::regclass and contype = 'p'`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var drops []string
	for rows.Next() {
		var drop, build string
		if err := rows.Scan(&drop, &build); err != nil {
			return err
		}
		drops, f.indexes = append(drops, drop), append(f.indexes, build)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	// Counters have nothing to count in finished mail of long ago without a batch.
	return f.exec(ctx, append(drops, "alter table archive disable trigger user", "set synchronous_commit = off", "set maintenance_work_mem = '1GB'")...)
}

func (f *filler) buildIndexes(ctx context.Context) error {
	return f.exec(ctx, append(f.indexes, "alter table archive enable trigger user", "vacuum (analyze) mail", "vacuum (analyze) archive", "vacuum (analyze) term", "checkpoint")...)
}

const pgTerm = `('x' || encode(substr(sha256(convert_to('%s', 'UTF8') || '\x00'::bytea || convert_to(%s, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint`

func (f *filler) archived(ctx context.Context) error {
	step := (archiveSpan / time.Duration(f.n)).Microseconds()
	for from := 0; from < f.n; from += fillStep {
		to := min(from+fillStep, f.n)
		// x: one row a mail. m: what every mail has.
		q := fmt.Sprintf(`with x as materialized (
  select i, at, (substr(ms, 1, 8) || '-' || substr(ms, 9) || '-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid as id, 'c' || i %% %d || '@customers.example' as rcpt,
    case when i %% 10 = 0 then 'php' else 'bulk' end as server
  from (select i, at, lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0') as ms
    from (select i, timestamptz 'epoch' + (%d + i::bigint * %d) * interval '1 microsecond' as at from generate_series(%d, %d) i) a) b
), m as (
  insert into mail (id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, route, utf8, create_time, raw, listed)
  select id, '', server, 'daemon', case when i %% 10 = 0 then 'invoice' else 'bulk' end, 3, 'order-' || i, 'Load <load@load.example>', 'Your order ' || i || ' is on its way',
    case when i %% %d = 0 then i || '@shop.example' else id || '@load.example' end, 5400, json_build_array(json_build_object('a', rcpt)), 'named', false, at, '', true from x
), a as (
  insert into archive (id, team, mail_server, done_at, status, attempts, possible_duplicate, last_error, result, claim)
  select id, '', server, at + interval '1 second', case when i %% 1000 = 0 then 'cancelled' else 'sent' end, 1, false, '',
    ('{"r":[{"s":"accepted","c":250,"e":"2.0.0","d":"2.0.0 Ok: queued as ' || i || '","q":"' || i || '","n":1,"t":"' || to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '"}]}')::json, 1 from x
)
insert into term (term, mail_id)
select `+fmt.Sprintf(pgTerm, "recipient", "rcpt")+`, id from x
union all select `+fmt.Sprintf(pgTerm, "reference", "'order-' || i")+`, id from x
union all select `+fmt.Sprintf(pgTerm, "message_id", "i || '@shop.example'")+`, id from x where i %% %d = 0`,
			f.customers(), f.begin.UnixMicro(), step, from, to-1, foreignEvery, foreignEvery)
		if err := f.exec(ctx, q); err != nil {
			return err
		}
		if to%(10*fillStep) == 0 {
			fmt.Fprintf(os.Stderr, "%d of %d archived mails\n", to, f.n)
		}
	}
	return nil
}

func (f *filler) archivedSQLite(ctx context.Context) error {
	for from := 0; from < f.n; from += fillStep {
		if err := f.archivedStep(ctx, from, min(from+fillStep, f.n)); err != nil {
			return err
		}
	}
	return f.exec(ctx, "analyze", "pragma wal_checkpoint(truncate)")
}

func (f *filler) archivedStep(ctx context.Context, from, to int) error {
	tx, err := f.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after the commit there is nothing to undo
	var stmts []*sql.Stmt
	for _, q := range []string{
		`insert into mail (id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, route, utf8, create_time, raw, listed)
values (?, '', ?, 'daemon', ?, 3, ?, 'Load <load@load.example>', 'Your order is on its way', ?, 5400, ?, 'named', 0, ?, x'', 1)`,
		`insert into archive (id, team, mail_server, done_at, status, attempts, possible_duplicate, last_error, result, claim) values (?, '', ?, ?, ?, 1, 0, '', ?, 1)`,
		`insert into term (term, mail_id) values (?, ?)`} {
		s, err := tx.PrepareContext(ctx, q)
		if err != nil {
			return err
		}
		defer s.Close()
		stmts = append(stmts, s)
	}
	for i := from; i < to; i++ {
		id, at, server, kind, status := f.id(i), f.at(i), "bulk", "bulk", "sent"
		if i%10 == 0 {
			server, kind = "php", "invoice"
		}
		if i%1000 == 0 {
			status = "cancelled"
		}
		result := fmt.Sprintf(`{"r":[{"s":"accepted","c":250,"e":"2.0.0","d":"2.0.0 Ok: queued as %d","q":"%d","n":1,"t":%q}]}`, i, i, at.UTC().Format(time.RFC3339Nano))
		if _, err := stmts[0].ExecContext(ctx, id, server, kind, f.reference(i), f.messageID(i), fmt.Sprintf(`[{"a":%q}]`, f.recipient(i)), at.UnixMicro()); err != nil {
			return err
		}
		if _, err := stmts[1].ExecContext(ctx, id, server, at.Add(time.Second).UnixMicro(), status, result); err != nil {
			return err
		}
		terms := []int64{termHash("recipient", f.recipient(i)), termHash("reference", f.reference(i))}
		if i%foreignEvery == 0 {
			terms = append(terms, termHash("message_id", f.messageID(i)))
		}
		for _, t := range terms {
			if _, err := stmts[2].ExecContext(ctx, t, id); err != nil {
				return err
			}
		}
	}
	return tx.Commit()
}

// fillDue writes the mails of one batch that are due at the dead mail server. The last but one
// has failed, the last is an invoice: whoever looks for them one by one comes to them last.
func (l *largeRun) fillDue(ctx context.Context) error {
	return l.stopped(ctx, func(f *filler) error {
		now := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
		for from := 0; from < l.mails; from += fillStep {
			if err := f.due(ctx, now, from, min(from+fillStep, l.mails), l.mails); err != nil {
				return err
			}
		}
		if f.postgres {
			return f.exec(ctx, "vacuum (analyze) mail", "vacuum (analyze) due", "vacuum (analyze) term", "checkpoint")
		}
		return f.exec(ctx, "analyze", "pragma wal_checkpoint(truncate)")
	})
}

func (f *filler) due(ctx context.Context, now time.Time, from, to, all int) error {
	ms := fmt.Sprintf("%012x", now.UnixMilli())
	prefix := ms[:8] + "-" + ms[8:] + "-7000-9000-"
	source := fmt.Sprintf("with recursive g(i) as (select %d union all select i + 1 from g where i < %d), x as (select i, '%s' || printf('%%012x', i) as id from g) ", from, to-1, prefix)
	at, raw, no := fmt.Sprint(now.UnixMicro()), "x''", "0"
	if f.postgres {
		source = fmt.Sprintf("with x as (select i, ('%s' || lpad(to_hex(i), 12, '0'))::uuid as id from generate_series(%d, %d) i) ", prefix, from, to-1)
		at, raw, no = fmt.Sprintf("timestamptz 'epoch' + %d * interval '1 microsecond'", now.UnixMicro()), `'\x2e0d0a'`, "false"
	}
	yes := map[string]string{"0": "1", "false": "true"}[no]
	mail := fmt.Sprintf(`insert into mail (id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, route, utf8, create_time, raw, batch_id, listed)
%sselect id, '', 'dead', 'daemon', case when i = %d then 'invoice' else 'bulk' end, 3, '', 'Load <load@load.example>', 'To all', id || '@load.example', 3,
  '[{"a":"d' || i || '@load.example"}]', 'named', %s, %s, %s, '%s', %s from x`, source, all-1, no, at, raw, largeBatch, yes)
	if f.postgres {
		mail = strings.Replace(mail, `@load.example"}]'`, `@load.example"}]')::json`, 1)
		mail = strings.Replace(mail, `'[{"a":"d'`, `('[{"a":"d'`, 1)
	}
	due := fmt.Sprintf(`insert into due (id, team, mail_server, priority, status, run_at)
%sselect id, '', 'dead', 3, case when i = %d then 'failed' else 'queued' end, case when i <> %d then %s end from x`, source, all-2, all-2, at)
	return f.exec(ctx, mail, due)
}

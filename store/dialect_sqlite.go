package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

// onSQLite is a store on SQLite, which one process uses: its one writing connection is the lock
// of everything, and its own clock decides.
type onSQLite struct{ *Store }

func (onSQLite) name() string { return "sqlite" }

func (s onSQLite) folder(ctx context.Context) string {
	var file string
	if err := s.read.GetContext(ctx, &file, "select file from pragma_database_list where name = 'main'"); err != nil || file == "" {
		return ""
	}
	return filepath.Dir(file)
}

func (onSQLite) mark() string { return "?" }

func (onSQLite) check(context.Context, bool) error { return nil }

// Behind the migrations, whose indexes are sorted on the disk, temporary data stays in memory.
// SQLite keeps there what it needs to undo one statement: with triggers that is each page that
// a statement writes, and in a file it cost a fifth of a mail's time.
func (s onSQLite) migrations() (*sql.DB, goose.Dialect, []goose.ProviderOption, func() error, error) {
	inMemory := func() error { _, err := s.write.Exec("pragma temp_store = memory"); return err }
	return s.write.DB, goose.DialectSQLite3, nil, inMemory, nil
}

// Every transaction sees one moment.
func (onSQLite) inspection() *sql.TxOptions { return &sql.TxOptions{ReadOnly: true} }

func (s onSQLite) clock(context.Context, *sqlx.Tx) (time.Time, error) { return micro(s.now()), nil }

func (onSQLite) time(t time.Time) any { return t.UnixMicro() }

// date is days since 1970.
func (onSQLite) date(t time.Time) any { return t.Unix() / 86400 }

func (onSQLite) lockRow() string { return "" }

// SQLite takes its order of tables from a cross join; left to itself it would read all mail
// where only that can tell what is wanted.
func (onSQLite) lookUp(table, alias string, left bool) string {
	join := " cross join "
	if left {
		join = " left join "
	}
	return join + table + " " + alias + " on " + alias + ".id = c.id"
}

// fence: a cross join keeps the order.
func (onSQLite) fence(string) string { return "" }

// textOf: LIKE compares the letters of ASCII without case.
func (onSQLite) textOf(column string) string { return "(" + column + ")" }

func (onSQLite) joinMail(narrow bool) string {
	if narrow {
		return "join"
	}
	return "cross join"
}

func (s onSQLite) dueServers(ctx context.Context) (names []string, err error) {
	err = s.q.get("due_servers").SelectContext(ctx, &names, s.nowArg())
	return names, err
}

// A malformed file has no pages of a table that statements could leave out.
func (onSQLite) duePages(context.Context) (int64, error) { return 0, nil }

func (onSQLite) dueServersOn(context.Context, duePages) ([]string, error) { return nil, errNoPages }

func (onSQLite) claimableOn(context.Context, duePages, claimPage) ([]dueRow, error) {
	return nil, errNoPages
}

func (onSQLite) ownedOn(context.Context, duePages, ReplicaID) ([]Ownership, error) {
	return nil, errNoPages
}

func (onSQLite) ownerlessOn(context.Context, duePages) ([]ownerlessRow, error) {
	return nil, errNoPages
}

func (onSQLite) dueRoom(context.Context, bool) error { return nil }

var errNoPages = errors.New("SQLite has no pages to go round") // nobody asks: duePages is 0

func (s onSQLite) claimPage(ctx context.Context, r ReplicaID, p claimPage) ([]claimedRow, error) {
	except, err := idsJSON(p.except)
	if err != nil {
		return nil, err
	}
	return s.claim(ctx, "claim", p.server, p.max, s.nowArg(), p.above, int64(r), except)
}

// claim runs a statement that returns the ids of what it has claimed.
func (s onSQLite) claim(ctx context.Context, statement string, args ...any) (rows []claimedRow, err error) {
	err = s.tx(ctx, func(tx *sqlx.Tx) (err error) {
		var ids []uuid.UUID
		if err := s.q.in(ctx, tx, statement).SelectContext(ctx, &ids, args...); err != nil {
			return err
		}
		rows, err = s.claimedByID(ctx, tx, ids)
		return err
	})
	return rows, err
}

func (s onSQLite) claimable(ctx context.Context, r ReplicaID, p claimPage) (ids []uuid.UUID, err error) {
	except, err := idsJSON(p.except)
	if err != nil {
		return nil, err
	}
	err = s.q.get("claimable").SelectContext(ctx, &ids, p.server, p.max, s.nowArg(), p.above, int64(r), except)
	return ids, err
}

func (s onSQLite) claimThese(ctx context.Context, r ReplicaID, server string, ids []uuid.UUID) ([]claimedRow, error) {
	list, err := idsJSON(ids)
	if err != nil {
		return nil, err
	}
	return s.claim(ctx, "claim_these", list, server, s.nowArg(), int64(r))
}

func (s onSQLite) claimedByID(ctx context.Context, tx *sqlx.Tx, ids []uuid.UUID) (rows []claimedRow, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	err = s.q.in(ctx, tx, "claimed").SelectContext(ctx, &rows, string(b))
	return rows, err
}

func (onSQLite) written(*Settlement) {}

// Everybody else is dead by definition.
func (s onSQLite) register(ctx context.Context, name string, ttl time.Duration) (ReplicaID, error) {
	var id int64
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := s.q.in(ctx, tx, "replica_bury_all").ExecContext(ctx); err != nil {
			return err
		}
		return s.q.in(ctx, tx, "replica_register").GetContext(ctx, &id, name, s.leaseEnd(ttl))
	})
	return ReplicaID(id), err
}

func (s onSQLite) leaseEnd(ttl time.Duration) any { return s.time(s.now().Add(ttl)) }

// Nobody is buried by time: this machine's clock may jump, and there is nobody else.
func (onSQLite) bury(context.Context, *sqlx.Tx, ReplicaID) error { return nil }

func (s onSQLite) adoptMarked(ctx context.Context, tx *sqlx.Tx, ids, gone string, me ReplicaID, max int) ([]claimedRow, error) {
	var adopted []uuid.UUID
	if err := s.q.in(ctx, tx, "recover_marked").SelectContext(ctx, &adopted, int64(me), ids, gone, max); err != nil {
		return nil, err
	}
	return s.claimedByID(ctx, tx, adopted)
}

func (s onSQLite) takeBackMarked(ctx context.Context, tx *sqlx.Tx, lost string, r ReplicaID) ([]claimedRow, error) {
	var ids []uuid.UUID
	if err := s.q.in(ctx, tx, "take_back_marked").SelectContext(ctx, &ids, lost, int64(r)); err != nil {
		return nil, err
	}
	return s.claimedByID(ctx, tx, ids)
}

func (onSQLite) position(generation, horizon int64) Position {
	return Position{Generation: generation, Seq: horizon}
}

// There is one writer, so nothing can come before what is there.
func (onSQLite) lag(context.Context) (time.Duration, error) { return 0, nil }

// Two statements, in this order: a reader that sees the gap also sees the note of it.
func (s onSQLite) forgetChanges(ctx context.Context, age time.Duration) (int, error) {
	if _, err := s.q.get("change_note").ExecContext(ctx, forgetPage, s.time(s.now().Add(-age))); err != nil {
		return 0, s.fault(err)
	}
	res, err := s.q.get("change_forget").ExecContext(ctx)
	if err != nil {
		return 0, s.fault(err)
	}
	n, err := res.RowsAffected()
	return int(n), s.fault(err)
}

// One process uses the database: its own count is enough.
func (onSQLite) takeSlot(context.Context, ReplicaID, SlotTake) (int, bool, error) {
	return 0, true, nil
}

func (onSQLite) giveSlot(context.Context, ReplicaID, Slot) error { return nil }

func (onSQLite) holdSlots(context.Context, ReplicaID, []Slot, int64) ([]Slot, error) { return nil, nil }

// A file may lie anywhere, and has no timeline.
func (onSQLite) place(context.Context, *lineage) (system, timeline string, err error) {
	return "", "", nil
}

func (onSQLite) countsStarts() bool { return true }

func (s onSQLite) hold(ctx context.Context, tx *sqlx.Tx, l *lineage) (int, error) {
	res, err := tx.ExecContext(ctx, l.sql["hold"], WentBackReason)
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, l.sql["hold_parked"], WentBackReason)
	return int(n), err
}

// lockAudit has nothing to do: there is one writing connection.
func (onSQLite) lockAudit(context.Context, *sqlx.Tx, statementIn, bool) (bool, error) {
	return true, nil
}

package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// onPostgres is a store on PostgreSQL, whose clock decides for all replicas.
type onPostgres struct{ *Store }

func (onPostgres) name() string { return "postgres" }

func (onPostgres) mark() string { return "$" }

// An advisory lock lets any number of replicas start at once.
func (s onPostgres) migrations() (*sql.DB, goose.Dialect, []goose.ProviderOption, func() error, error) {
	l, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, "", nil, nil, err
	}
	db := s.migrating()
	return db, goose.DialectPostgres, []goose.ProviderOption{goose.WithSessionLocker(l)}, db.Close, nil
}

func (onPostgres) inspection() *sql.TxOptions {
	return &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}
}

// folder is known to roles that may read the settings (pg_read_all_settings), of a server on
// this machine.
func (s onPostgres) folder(ctx context.Context) string {
	var folder string
	const q = "select current_setting('data_directory') where coalesce(inet_server_addr() <<= '127.0.0.0/8' or inet_server_addr() <<= '::1', true)"
	if err := s.read.GetContext(ctx, &folder, q); err != nil {
		return ""
	}
	return folder
}

func (s onPostgres) clock(ctx context.Context, tx *sqlx.Tx) (time.Time, error) {
	var t time.Time
	err := s.stmt(ctx, tx, "clock").GetContext(ctx, &t)
	return t.UTC(), err
}

func (onPostgres) time(t time.Time) any { return micro(t) }

func (onPostgres) date(t time.Time) any { return t.UTC().Format(time.DateOnly) }

func (onPostgres) lockRow() string { return " for update" }

func (onPostgres) joinMail(bool) string { return "join" }

func (onPostgres) lookUp(table, alias string, left bool) string {
	join := " join"
	if left {
		join = " left join"
	}
	return join + " lateral (select * from " + table + " x where x.id = c.id offset 0) " + alias + " on true"
}

func (onPostgres) fence(end string) string { return end }

func (onPostgres) textOf(column string) string { return "lower((" + column + ")::text)" }

func (s onPostgres) dueServers(ctx context.Context) (names []string, err error) {
	err = s.q.get("due_servers").SelectContext(ctx, &names)
	return names, err
}

func (s onPostgres) claimPage(ctx context.Context, r ReplicaID, p claimPage) (rows []claimedRow, err error) {
	err = s.repeated(func() error {
		rows = nil
		return s.q.get("claim").SelectContext(ctx, &rows, p.server, p.above, int64(r), p.max, idArray(p.except))
	})
	return rows, err
}

func (s onPostgres) claimable(ctx context.Context, r ReplicaID, p claimPage) (ids []uuid.UUID, err error) {
	err = s.q.get("claimable").SelectContext(ctx, &ids, p.server, p.above, int64(r), p.max, idArray(p.except))
	return ids, err
}

func (s onPostgres) duePages(ctx context.Context) (n int64, err error) {
	err = s.q.get("due_pages").GetContext(ctx, &n)
	return n, err
}

func (s onPostgres) dueServersOn(ctx context.Context, pages duePages) (names []string, err error) {
	first, last := pages.tids()
	err = s.q.get("due_servers_on").SelectContext(ctx, &names, first, last)
	return names, err
}

func (s onPostgres) claimableOn(ctx context.Context, pages duePages, p claimPage) (rows []dueRow, err error) {
	first, last := pages.tids()
	err = s.q.get("claimable_on").SelectContext(ctx, &rows, first, last, p.server, p.above, p.max, idArray(p.except))
	return rows, err
}

func (s onPostgres) ownedOn(ctx context.Context, pages duePages, r ReplicaID) (out []Ownership, err error) {
	first, last := pages.tids()
	err = s.q.get("owned_on").SelectContext(ctx, &out, first, last, int64(r))
	return out, err
}

func (s onPostgres) ownerlessOn(ctx context.Context, pages duePages) (rows []ownerlessRow, err error) {
	first, last := pages.tids()
	err = s.q.get("ownerless_on").SelectContext(ctx, &rows, first, last)
	return rows, err
}

// dueRoom: PostgreSQL looks for room in a map that goes on naming a damaged page, and a row
// that is to go there is refused. With this fill factor no page has room that is not nearly
// empty. A migration made it 40.
func (s onPostgres) dueRoom(ctx context.Context, away bool) error {
	q := "alter table due set (fillfactor = 40)"
	if away {
		q = "alter table due set (fillfactor = 10)"
	}
	_, err := s.write.ExecContext(ctx, q)
	return err
}

func (s onPostgres) claimThese(ctx context.Context, r ReplicaID, server string, ids []uuid.UUID) (rows []claimedRow, err error) {
	list, err := idsJSON(ids)
	if err != nil {
		return nil, err
	}
	err = s.repeated(func() error {
		rows = nil
		return s.q.get("claim_these").SelectContext(ctx, &rows, list, server, int64(r))
	})
	return rows, err
}

// idArray is ids as PostgreSQL writes an array.
func idArray(ids []uuid.UUID) string {
	b := append(make([]byte, 0, 2+37*len(ids)), '{')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, id.String()...)
	}
	return string(append(b, '}'))
}

func (s onPostgres) written(st *Settlement) {
	if l := s.lineage.Load(); l != nil {
		l.witness.saw(st)
	}
}

func (s onPostgres) register(ctx context.Context, name string, ttl time.Duration) (ReplicaID, error) {
	var id int64
	err := s.q.get("replica_register").GetContext(ctx, &id, name, ttl.Microseconds())
	return ReplicaID(id), s.fault(err)
}

func (onPostgres) leaseEnd(ttl time.Duration) any { return ttl.Microseconds() }

func (s onPostgres) bury(ctx context.Context, tx *sqlx.Tx, me ReplicaID) error {
	_, err := s.q.in(ctx, tx, "replica_bury").ExecContext(ctx, int64(me))
	return err
}

func (s onPostgres) adoptMarked(ctx context.Context, tx *sqlx.Tx, ids, gone string, me ReplicaID, max int) (rows []claimedRow, err error) {
	err = s.q.in(ctx, tx, "recover_marked").SelectContext(ctx, &rows, ids, gone, int64(me), max)
	return rows, err
}

func (s onPostgres) takeBackMarked(ctx context.Context, tx *sqlx.Tx, lost string, r ReplicaID) (rows []claimedRow, err error) {
	err = s.q.in(ctx, tx, "take_back_marked").SelectContext(ctx, &rows, lost, int64(r))
	return rows, err
}

func (onPostgres) position(generation, horizon int64) Position {
	return Position{Generation: generation, XID: horizon}
}

func (s onPostgres) lag(ctx context.Context) (time.Duration, error) {
	var us int64
	err := s.q.get("change_lag").GetContext(ctx, &us)
	return time.Duration(max(0, us)) * time.Microsecond, s.fault(err)
}

func (s onPostgres) forgetChanges(ctx context.Context, age time.Duration) (n int, err error) {
	err = s.q.get("change_forget").GetContext(ctx, &n, forgetPage, age.Microseconds())
	return n, s.fault(err)
}

func (onPostgres) countsStarts() bool { return false }

func (onPostgres) lockAudit(ctx context.Context, tx *sqlx.Tx, in statementIn, wait bool) (locked bool, err error) {
	name := "audit_try_lock"
	if wait {
		name = "audit_lock"
	}
	lock, err := in(ctx, tx, name)
	if err == nil {
		err = lock.GetContext(ctx, &locked)
	}
	return locked, err
}

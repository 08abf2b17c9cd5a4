package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
)

// What a server has to be for the promise to hold is asked once, at the start.

func (s onPostgres) check(ctx context.Context, allowUnsafe bool) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	if err := checkPooler(ctx, s.write); err != nil {
		return err
	}
	if allowUnsafe {
		return nil
	}
	return checkDurable(ctx, s.write)
}

// checkTime bounds the checks of a server together.
const checkTime = 30 * time.Second

// errPooler: sessions do not stay with one server process.
var errPooler = errors.New("database: between the service and PostgreSQL stands a pooler that gives each transaction another session, " +
	"such as PgBouncer with pool_mode=transaction; prepared statements and locks do not survive that: " +
	"give the address of the server itself, or of a pooler with pool_mode=session")

// poolerWait is how long one session waits for the other one's transaction before that is an
// answer.
const poolerWait = 3 * time.Second

// checkPooler refuses a pooler that gives transactions to sessions that are free. Two
// connections take turns: while one has a transaction open, the other one is moved to another
// process, and later to the one that has become free, whichever the pooler prefers.
func checkPooler(ctx context.Context, db *sqlx.DB) error {
	a, err := db.Connx(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := db.Connx(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	pids := map[*sqlx.Conn]int{}
	same := func(c *sqlx.Conn, q sqlx.QueryerContext) error {
		wctx, cancel := context.WithTimeout(ctx, poolerWait)
		defer cancel()
		var pid int
		switch err := sqlx.GetContext(wctx, q, &pid, "select pg_backend_pid()"); {
		case err != nil && wctx.Err() != nil && ctx.Err() == nil:
			return errPooler // it waits for the other one's transaction to end
		case err != nil:
			return err
		}
		if was := pids[c]; was != 0 && was != pid {
			return errPooler
		}
		pids[c] = pid
		return nil
	}
	for _, turn := range [][2]*sqlx.Conn{{a, b}, {b, a}} {
		holds, other := turn[0], turn[1]
		tx, err := holds.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		err = same(holds, tx)
		for range 2 {
			if err == nil {
				err = same(other, other)
			}
		}
		if err = errors.Join(err, tx.Rollback()); err != nil {
			if errors.Is(err, errPooler) {
				return errPooler
			}
			return err
		}
		// Two after each other show a pooler that takes the session that was free for longest.
		for _, c := range []*sqlx.Conn{other, other, holds, holds, other} {
			if err := same(c, c); err != nil {
				return err
			}
		}
	}
	if pids[a] == pids[b] {
		return errPooler
	}
	return nil
}

// checkDurable refuses a server that loses what it has confirmed when its machine stops.
func checkDurable(ctx context.Context, db *sqlx.DB) error {
	for _, name := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var v string
		if err := db.GetContext(ctx, &v, "select current_setting($1)", name); err != nil {
			return err
		}
		switch {
		case v == "off", name == "synchronous_commit" && (v == "local" || v == "remote_write"):
			return fmt.Errorf("database: the server has %s=%s: after its machine stops, mail that was accepted may be lost; "+
				"change it, or say --allow-unsafe-database", name, v)
		}
	}
	return nil
}

package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"sync"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// What the server does not tell this user is "".
func (s onPostgres) place(ctx context.Context, l *lineage) (system, timeline string, err error) {
	for name, into := range map[string]*string{"system": &system, "timeline": &timeline} {
		err := s.write.GetContext(ctx, into, l.sql[name])
		var pe *pq.Error
		if errors.As(err, &pe) && !endsConnection(err) {
			s.log.Warn("the server does not tell what would show that the database was restored or copied", "what", name, "error", err)
			err = nil
		}
		if err != nil {
			return "", "", err
		}
	}
	return system, timeline, nil
}

// Every replica has to take a new lease.
func (s onPostgres) hold(ctx context.Context, tx *sqlx.Tx, l *lineage) (held int, err error) {
	for _, q := range []string{"set local enable_seqscan = on", l.sql["hold_lock"]} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return 0, err
		}
	}
	var ahead bool
	if err := tx.GetContext(ctx, &ahead, l.sql["change_ahead"]); err != nil {
		return 0, err
	}
	if ahead {
		if _, err := tx.ExecContext(ctx, l.sql["change_empty"]); err != nil {
			return 0, err
		}
	}
	if err := tx.GetContext(ctx, &held, l.sql["hold"], WentBackReason); err != nil {
		return 0, err
	}
	for _, name := range []string{"hold_replicas", "hold_replica_ids"} {
		if _, err := tx.ExecContext(ctx, l.sql[name]); err != nil {
			return 0, err
		}
	}
	return held, nil
}

// lent is a connection that a pool of one uses for a while without closing it.
type lent struct{ *pgConn }

// Close implements driver.Conn.
func (lent) Close() error { return nil }

// Connect implements driver.Connector.
func (c lent) Connect(context.Context) (driver.Conn, error) { return c, nil }

// Driver implements driver.Connector.
func (c lent) Driver() driver.Driver { return c.pool.Driver() }

// sameDatabase looks at a connection that nobody has used whether its database is what it was
// on the connections before, and holds what is due if it went back.
func (s *Store) sameDatabase(ctx context.Context, c *pgConn) error {
	l := s.lineage.Load()
	if l == nil {
		return nil
	}
	db := sqlx.NewDb(sql.OpenDB(lent{c}), "postgres")
	db.SetMaxOpenConns(1)
	defer db.Close()
	// Before the beat, which is raised before the witness forgets what it confirms.
	seen := l.witness.all()
	known := l.beat.Load() // before the question, so that the answer cannot be older
	var row installationRow
	err := db.GetContext(ctx, &row, l.sql["installation"])
	var pe *pq.Error
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && row.ID != l.id, errors.As(err, &pe) && pe.Code == undefinedTable:
		return errOtherDatabase
	case err != nil:
		return err
	case row.Beat < known:
		return s.goBack(ctx, db, l, known, "its state is older than what this process has seen of it")
	case !l.timelines:
		return nil
	}
	var timeline string
	if err := db.GetContext(ctx, &timeline, l.sql["timeline"]); err != nil || timeline == *l.timeline.Load() {
		return err
	}
	b, err := json.Marshal(seen)
	if err != nil {
		return err
	}
	var lost int
	if err := db.GetContext(ctx, &lost, l.sql["lost"], string(b)); err != nil {
		return err
	}
	if lost > 0 {
		if err := s.goBack(ctx, db, l, known, "a server was promoted that had not yet got the last commits"); err != nil {
			return err
		}
	} else {
		s.log.Info("another PostgreSQL server was promoted; nothing that this process wrote is lost", "timeline", timeline)
	}
	l.timeline.Store(&timeline)
	return nil
}

const undefinedTable = "42P01"

// witnesses is how many mails are remembered: more than can be written by the connections of a
// process at one moment, so that the last commit of all is among them.
const witnesses = 4096

// witness remembers the last write to each of the mails that were written last, since the last
// beat that was confirmed: a server that has the beat has what was written before it. So mail
// that was finished long ago, which retention removes, is no witness any more.
type witness struct {
	mu    sync.Mutex // guards all
	ring  []witnessed
	next  int
	place map[uuid.UUID]int
	n     int64 // of the last write that was seen
}

type witnessed struct {
	ID    uuid.UUID   `json:"id"`
	Claim int64       `json:"c"`
	Kind  witnessKind `json:"k"`
	n     int64
}

// witnessKind says what has to be there still.
type witnessKind string

const (
	witnessMark    witnessKind = "mark"    // the mark, or something later
	witnessArchive witnessKind = "archive" // the row of the archive
	witnessFree    witnessKind = "free"    // the mail without this owner
)

// saw notes a write that the database has confirmed.
func (w *witness) saw(st *Settlement) {
	if st.Kind == SettleBegin {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.place == nil {
		w.place, w.ring = make(map[uuid.UUID]int, witnesses), make([]witnessed, witnesses)
	}
	if i, ok := w.place[st.ID]; ok {
		w.ring[i] = witnessed{}
		delete(w.place, st.ID)
	}
	x := witnessed{ID: st.ID, Claim: st.Claim, Kind: witnessFree}
	switch st.Kind {
	case SettleProgress:
		return // it leaves nothing that a later write could not have undone
	case SettleMark:
		x.Kind = witnessMark
	case SettleArchive:
		x.Kind = witnessArchive
	}
	w.n++
	x.n = w.n
	delete(w.place, w.ring[w.next].ID)
	w.ring[w.next], w.place[x.ID] = x, w.next
	w.next = (w.next + 1) % witnesses
}

func (w *witness) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ring, w.place, w.next = nil, nil, 0
}

// last is the place of the last write that was seen.
func (w *witness) last() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// confirmed forgets the writes up to n: a beat came behind them and was confirmed.
func (w *witness) confirmed(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, i := range w.place {
		if w.ring[i].n <= n {
			w.ring[i] = witnessed{}
			delete(w.place, id)
		}
	}
}

// all is what is remembered.
func (w *witness) all() []witnessed {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]witnessed, 0, len(w.place))
	for _, i := range w.place {
		all = append(all, w.ring[i])
	}
	return all
}

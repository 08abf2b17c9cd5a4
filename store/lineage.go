package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// A database goes back in time when it is restored from a backup, when a copy of it is started,
// or when a standby is promoted that had not yet got the last commits. Mail that had left is
// due in it again, and nothing in its rows says so. A memory outside of the database does:
//
//   - The database has a number, its beat, which is one higher at each start and at each
//     renewal of a lease. Every process remembers the highest that it has seen, in memory and
//     in a state file. A lower one means that the database went back.
//   - PostgreSQL: cluster and database in which it lies are written into it. A dump that was
//     restored elsewhere, and a clone, names another place than its own.
//   - PostgreSQL: each new connection is compared before anybody uses it, because every
//     failover needs new connections. When the server was promoted, the last results of this
//     process have to be there still. That finds a loss which is younger than the last beat.
//   - SQLite: each start writes a nonce into the database and into the state file. A copy
//     beside another key file finds none there.
//
// Then all that is due is held, flagged as a possible duplicate, before anything else happens:
// in the transaction that finds it, or on the connection that nobody else has yet. Mail that is
// accepted later is sent as always. [Store.Adopted] ends it.
//
// Not found are: a backup of SQLite that is younger than the last beat when the process was
// killed; a copy of the disks of a PostgreSQL cluster, started by processes without a state
// file; and a loss younger than the last beat of a process that ended with the server.

// WentBackReason is the last_error of mail that was due when its database was found to have
// gone back in time.
const WentBackReason = "held: this database was restored or copied"

// beatLeap is added to the beat when the mail of a database that went back has been held. It is
// more than all replicas together add in the life of a database, so that each of them can see
// that it was done.
const beatLeap = 1 << 32

// holdStatement is how long the hold may take, by statement.
const holdStatement = 30 * time.Minute

var errOtherDatabase = errors.New("the database is another one than when the service was started: restart the service")

// WentBack says that a database went back in time, and has not been adopted since.
type WentBack struct {
	Since time.Time // when it was found; zero = nothing to adopt
	Why   string
	Held  int // mails that were held when it was found now; 0 when it was found before
}

// lineage is what a process knows of the past of its database.
type lineage struct {
	id    string // of the installation
	nonce string // of this start
	state *stateFile
	sql   map[string]string
	// timelines: the server tells its timeline.
	timelines bool

	// Written by the renewing goroutine and by new connections, read by all.
	beat     atomic.Int64 // the highest seen
	timeline atomic.Pointer[string]
	wentBack atomic.Pointer[WentBack]
	unsaved  atomic.Bool // the state file could not be written last time
	witness  witness
}

// installationRow is the one row of the table.
type installationRow struct {
	ID       string
	Beat     int64
	Nonce    string
	System   string
	Timeline string
	BackAt   dbTime `db:"back_at"`
	BackWhy  string `db:"back_why"`
}

func (r *installationRow) wentBack() *WentBack {
	return &WentBack{Since: r.BackAt.Time, Why: r.BackWhy}
}

// Remember compares the database with what the state file says of it, holds what is due if it
// went back in time, and goes on to do so until Close. Call it before Register: what a dead
// replica left would become claimable.
func (s *Store) Remember(ctx context.Context, stateFile string) (WentBack, error) {
	l, err := s.newLineage(stateFile)
	if err != nil {
		return WentBack{}, err
	}
	system, timeline, err := s.dialect.place(ctx, l)
	if err != nil {
		return WentBack{}, fmt.Errorf("database: %w", s.fault(err))
	}
	l.timelines = timeline != ""
	l.timeline.Store(&timeline)
	var row installationRow
	var found WentBack
	err = s.tx(patient(ctx, holdStatement), func(tx *sqlx.Tx) error {
		found = WentBack{}
		if err := tx.GetContext(ctx, &row, l.sql["installation_lock"]); err != nil {
			return err
		}
		if row.ID == "" {
			row.ID = uuid.NewString()
		}
		l.id = row.ID
		known, why, err := s.compare(ctx, tx, l, &row, system, timeline)
		if err != nil {
			return err
		}
		row.System, row.Nonce, row.Timeline, row.Beat = system, l.nonce, timeline, max(row.Beat, known)+1
		if why != "" {
			if found, err = s.holdAll(ctx, tx, l, why); err != nil {
				return err
			}
			row.Beat, row.BackAt.Time, row.BackWhy = row.Beat+beatLeap, found.Since, why
		}
		return s.writeInstallation(ctx, tx, l, &row)
	})
	if err != nil {
		return WentBack{}, fmt.Errorf("database: %w", err)
	}
	if found.Since.IsZero() {
		found = *row.wentBack()
	}
	l.beat.Store(row.Beat)
	l.wentBack.Store(row.wentBack())
	s.save(l, row.Beat)
	s.lineage.Store(l)
	return found, nil
}

func (s *Store) newLineage(file string) (*lineage, error) {
	l := &lineage{nonce: uuid.NewString(), state: &stateFile{path: file}, sql: map[string]string{}}
	sts, err := readStatements("lineage_", s.dialect)
	for _, st := range sts {
		l.sql[st.name] = st.text
	}
	return l, err
}

// compare says why the database went back in time, "" if it did not. known is the highest beat
// that was seen.
func (s *Store) compare(ctx context.Context, tx *sqlx.Tx, l *lineage, row *installationRow, system, timeline string) (known int64, why string, err error) {
	e, had, err := l.state.get(l.id)
	if err != nil {
		s.log.Warn("the state file cannot be read", "file", l.state.path, "error", err)
	}
	if s.dialect.countsStarts() {
		// The nonce is in the file before it is in the database, so that no crash makes them
		// differ.
		if err := l.state.put(l.id, func(e *stateEntry) { e.Next = l.nonce }); err != nil {
			s.unsaved(l, err)
			if !had || row.Beat >= e.Beat { // what the file lacks shows nothing
				return e.Beat, "", nil
			}
		}
	}
	switch {
	case had && row.Beat < e.Beat:
		return e.Beat, fmt.Sprintf("its state is older than what this machine has seen of it (%d, %d)", row.Beat, e.Beat), nil
	case row.Beat == 0:
		return e.Beat, "", nil // nobody has served it
	case s.dialect.countsStarts() && !had:
		return 0, "the state file beside the key file does not know it: it is a copy", nil
	case s.dialect.countsStarts() && row.Nonce != e.Nonce && row.Nonce != e.Next:
		return e.Beat, "a copy of it was started since", nil
	case system != "" && row.System != "" && row.System != system:
		return e.Beat, "it lies in another cluster or database than before: it is a copy, or was restored", nil
	case !had && timeline != "" && row.Timeline != "" && row.Timeline != timeline:
		var lives bool
		if err := tx.GetContext(ctx, &lives, l.sql["replica_lives"]); err != nil || lives {
			return 0, "", err // who lives knows more
		}
		return 0, "its server was promoted or restored to a point in time, and nobody is here who knew it before", nil
	}
	return e.Beat, "", nil
}

func (s *Store) writeInstallation(ctx context.Context, tx *sqlx.Tx, l *lineage, r *installationRow) error {
	_, err := tx.ExecContext(ctx, l.sql["installation_write"], r.ID, r.Beat, r.Nonce, r.System, r.Timeline, s.t(&r.BackAt.Time), r.BackWhy)
	return err
}

// holdAll takes all that is due out of everybody's reach, and begins a new generation of the
// change log: who watches has seen what did not happen any more. Operations that ran then are
// stopped: one that releases or retries would let go what this holds.
func (s *Store) holdAll(ctx context.Context, tx *sqlx.Tx, l *lineage, why string) (WentBack, error) {
	w := WentBack{Since: micro(s.now()), Why: why}
	// Drawn, so that two restores of one backup do not begin the same one.
	_, err := tx.ExecContext(ctx, l.sql["change_begin"], rand.Int64N(math.MaxInt64-1)+1)
	if err != nil {
		return w, err
	}
	now := s.nowArg()
	if _, err := tx.ExecContext(ctx, l.sql["operations_halt"], now, why); err != nil {
		return w, err
	}
	if _, err := tx.ExecContext(ctx, l.sql["brakes_off"]); err != nil {
		return w, err
	}
	w.Held, err = s.dialect.hold(ctx, tx, l)
	if err == nil {
		a := Audit{Actor: "maildispatchd", Action: "HoldRestored", Reason: why}
		if err = s.auditInsert(ctx, tx, s.unready, a, "", strconv.Itoa(w.Held)+" mails", nil); err == nil {
			_, err = s.linkAudit(ctx, tx, s.unready, false)
		}
	}
	return w, err
}

// goBack holds what is due in a database that went back while this process runs, unless another
// replica has. known is the beat that this process knew.
func (s *Store) goBack(ctx context.Context, db *sqlx.DB, l *lineage, known int64, why string) error {
	// Whoever waits for this may give up; the hold does not.
	ctx, cancel := context.WithTimeout(patient(context.WithoutCancel(ctx), holdStatement), holdStatement)
	defer cancel()
	var row installationRow
	var found WentBack
	err := errOvertaken
	for try := 0; try < 5 && retryable(err); try++ {
		err = txOn(ctx, db, func(tx *sqlx.Tx) error {
			found = WentBack{}
			if err := tx.GetContext(ctx, &row, l.sql["installation_lock"]); err != nil {
				return err
			}
			if row.Beat >= known+beatLeap/2 {
				return nil
			}
			var err error
			if found, err = s.holdAll(ctx, tx, l, why); err != nil {
				return err
			}
			row.Beat, row.BackAt.Time, row.BackWhy = max(row.Beat, known)+beatLeap, found.Since, why
			return s.writeInstallation(ctx, tx, l, &row)
		})
	}
	if err != nil {
		return err
	}
	s.saw(l, &row)
	if !found.Since.IsZero() {
		s.log.Error("this database went back in time: what was due is held", "why", why, "mails", found.Held)
	}
	return nil
}

// saw keeps what the row says.
func (s *Store) saw(l *lineage, row *installationRow) {
	before := l.beat.Load()
	for row.Beat > before && !l.beat.CompareAndSwap(before, row.Beat) {
		before = l.beat.Load()
	}
	if row.Beat > before+beatLeap/2 { // found to have gone back, by this replica or another one
		s.cache.forget()
		l.witness.forget()
	}
	l.wentBack.Store(row.wentBack())
}

// beat raises the beat, and holds what is due if it was lower than before. ErrStale: it was, so
// what this replica has claimed is not its own any more.
func (s *Store) beat(ctx context.Context) error {
	l := s.lineage.Load()
	if l == nil {
		return nil
	}
	known, written := l.beat.Load(), l.witness.last()
	var row installationRow
	err := s.lease.GetContext(ctx, &row, l.sql["beat"], *l.timeline.Load(), l.id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w: %w", ErrUnavailable, errOtherDatabase)
	case err != nil:
		return s.fault(err)
	case row.Beat <= known:
		if err := s.goBack(ctx, s.write, l, known, "its state is older than what this process has seen of it"); err != nil {
			return s.fault(err)
		}
		return ErrStale
	}
	// before the witness forgets: a new connection reads them the other way round
	s.saw(l, &row)
	l.witness.confirmed(written)
	s.save(l, row.Beat)
	return nil
}

// save writes the state file. Without it a restart notices less, so a failure is told, once.
func (s *Store) save(l *lineage, beat int64) {
	err := l.state.put(l.id, func(e *stateEntry) {
		e.Beat = max(e.Beat, beat)
		if s.dialect.countsStarts() {
			e.Nonce, e.Next = l.nonce, ""
		}
	})
	if err != nil {
		s.unsaved(l, err)
		return
	}
	l.unsaved.Store(false)
}

func (s *Store) unsaved(l *lineage, err error) {
	if !l.unsaved.Swap(true) {
		s.log.Warn("the state file cannot be written: a restart will not notice that the database was restored or copied",
			"file", l.state.path, "error", err)
	}
}

// WentBack says whether the database went back in time and waits to be adopted, as this process
// knows it.
func (s *Store) WentBack() WentBack {
	if l := s.lineage.Load(); l != nil {
		return *l.wentBack.Load()
	}
	return WentBack{}
}

// Adopted notes that somebody has said "go on".
func (s *Store) Adopted(ctx context.Context) error {
	l := s.lineage.Load()
	if l == nil {
		return errors.New("store: Adopted before Remember")
	}
	return s.tx(ctx, func(tx *sqlx.Tx) error {
		var row installationRow
		if err := tx.GetContext(ctx, &row, l.sql["installation_lock"]); err != nil {
			return err
		}
		row.BackAt.Time, row.BackWhy = time.Time{}, ""
		return s.writeInstallation(ctx, tx, l, &row)
	})
}

// txOn runs f in one transaction on db.
func txOn(ctx context.Context, db *sqlx.DB, f func(tx *sqlx.Tx) error) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		_ = tx.Rollback() // the first error says more
		return err
	}
	return tx.Commit()
}

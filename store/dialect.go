package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

// dialect is what differs between the databases beyond the text of statements. Each database
// has one implementation, in the files *_postgres.go and *_sqlite.go; nothing else asks which
// database it is. A method that takes a tx works inside it, and outside of any with nil.
type dialect interface {
	// name is postgres or sqlite, also in the paths of statements and migrations.
	name() string
	// mark stands before the number of a parameter.
	mark() string
	// check refuses a server on which the promise of this package does not hold.
	check(ctx context.Context, allowUnsafe bool) error
	// migrations is where they run, and done ends that.
	migrations() (db *sql.DB, d goose.Dialect, opts []goose.ProviderOption, done func() error, err error)
	// inspection is the transaction of an inspection, which has to see one moment.
	inspection() *sql.TxOptions

	// clock is the time that decides: of now, not of when a transaction began.
	clock(ctx context.Context, tx *sqlx.Tx) (time.Time, error)
	// clockIn is the same inside a transaction of any pool.
	clockIn(ctx context.Context, tx *sqlx.Tx) (time.Time, error)
	// unixSecond is the second of a column's time; null stays null.
	unixSecond(column string) string
	// foldCounts adds up one page of count_delta; n is how many rows that were. errCounting:
	// another replica is at it.
	foldCounts(ctx context.Context) (n int, err error)
	// recount hands write what the counters lack, and the transaction that is to add it.
	recount(ctx context.Context, write func(tx *sqlx.Tx, off *countsOff) error) error
	// time and date bind a time as the database stores it.
	time(t time.Time) any
	date(t time.Time) any
	// lockRow ends a select of one row that is to be changed.
	lockRow() string
	// joinMail joins mail to a journal; narrow: the filter names few mails of that table.
	joinMail(narrow bool) string
	// lookUp joins the row of a table that has the id of c, one by one; left: or none.
	lookUp(table, alias string, left bool) string
	// fence is the end of a subquery that is read by itself, in its order.
	fence(end string) string
	// textOf is a column as a text that LIKE compares without case, in the letters of ASCII.
	textOf(column string) string

	// flushers is how many batches of new mail are written at once.
	flushers() int
	// packMails does of an enqueue statement what needs no database.
	packMails(ops []*enqueueOp) (packedMails, error)
	// insertMails writes mails and returns which of them were new.
	insertMails(ctx context.Context, tx *sqlx.Tx, p packedMails) (map[uuid.UUID]bool, error)
	// dueServers names the mail servers that have claimable mail.
	dueServers(ctx context.Context) ([]string, error)
	// claimPage is one claim statement, claimable its first half: what it would take. except is
	// left out.
	claimPage(ctx context.Context, r ReplicaID, p claimPage) ([]claimedRow, error)
	claimable(ctx context.Context, r ReplicaID, p claimPage) ([]uuid.UUID, error)
	// duePages is how many pages the due-out journal has that statements can go round; 0 = this
	// database has none. What ends in On looks at the rows of some of them, and only at those.
	duePages(ctx context.Context) (int64, error)
	dueServersOn(ctx context.Context, pages duePages) ([]string, error)
	claimableOn(ctx context.Context, pages duePages, p claimPage) ([]dueRow, error)
	ownedOn(ctx context.Context, pages duePages, r ReplicaID) ([]Ownership, error)
	// ownerlessOn is what belongs to nobody who lives.
	ownerlessOn(ctx context.Context, pages duePages) ([]ownerlessRow, error)
	// dueRoom keeps new rows away from pages of the due-out journal that have others on them,
	// or lets them there again.
	dueRoom(ctx context.Context, away bool) error
	// claimThese makes those of the mails r's that are still due at the mail server.
	claimThese(ctx context.Context, r ReplicaID, server string, ids []uuid.UUID) ([]claimedRow, error)
	// writeResults is one transaction of settlements of one owner, each of another mail. mine
	// are those that counted.
	writeResults(ctx context.Context, ops []*settleOp) (mine map[uuid.UUID]bool, err error)
	// written hears of each settlement that counted.
	written(st *Settlement)
	// writeChanges writes what people made of locked mails.
	writeChanges(ctx context.Context, tx *sqlx.Tx, changes []change) error

	// register takes a new replica id.
	register(ctx context.Context, name string, ttl time.Duration) (ReplicaID, error)
	// leaseEnd binds when a lease that is renewed now ends.
	leaseEnd(ttl time.Duration) any
	// bury ends the leases that have run out but me's.
	bury(ctx context.Context, tx *sqlx.Tx, me ReplicaID) error
	// adoptMarked makes me's what may have left, or was suspect, of the mails with ids, where
	// the owner is one of those that are gone.
	adoptMarked(ctx context.Context, tx *sqlx.Tx, ids, gone string, me ReplicaID, max int) ([]claimedRow, error)
	// takeBackMarked makes r's anew what it has and cannot just be let go.
	takeBackMarked(ctx context.Context, tx *sqlx.Tx, lost string, r ReplicaID) ([]claimedRow, error)

	// lockAudit lets one transaction at a time link rows of the audit log. Without wait it says
	// whether this is the one.
	lockAudit(ctx context.Context, tx *sqlx.Tx, in statementIn, wait bool) (locked bool, err error)

	// position is the place in the log of changes that everything before lies behind.
	position(generation, horizon int64) Position
	// lag is how old the first change is that lies beyond the horizon.
	lag(ctx context.Context) (time.Duration, error)
	// forgetChanges forgets one page of changes that are older than age.
	forgetChanges(ctx context.Context, age time.Duration) (int, error)

	// takeSlot, giveSlot and holdSlots are [Store.TakeSlot] and so on.
	takeSlot(ctx context.Context, r ReplicaID, t SlotTake) (n int, ok bool, err error)
	giveSlot(ctx context.Context, r ReplicaID, sl Slot) error
	holdSlots(ctx context.Context, r ReplicaID, held []Slot, settled int64) (lost []Slot, err error)

	// folder is where the database lies on a disk of this machine; "" = not known.
	folder(ctx context.Context) string
	// place is where the database lies, and the timeline of its server; "" = not known.
	place(ctx context.Context, l *lineage) (system, timeline string, err error)
	// countsStarts: each start is known by its nonce, in the database and in the state file.
	countsStarts() bool
	// hold takes all that is due out of everybody's reach.
	hold(ctx context.Context, tx *sqlx.Tx, l *lineage) (held int, err error)
}

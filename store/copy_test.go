package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestBackup: a copy that is made beside a service is complete, is private, overwrites nothing,
// and when it is put in the place of the database nothing leaves it before somebody adopts it.
func TestBackup(t *testing.T) {
	w := newWorld(t)
	dsn, state := storetest.EmptySQLiteDSN(t), stateIn(t)
	x := w.serve(dsn, state)
	serveServer(t, x.s)
	x.queue(30)
	x.send(10, "sent")
	x.send(5, "marked")
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := store.Backup(ctx, dsn, backup); err != nil {
		t.Fatal(err)
	}
	if err := store.Backup(ctx, dsn, backup); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a backup that is there was overwritten: %v", err)
	}
	if err := store.Backup(ctx, "postgres://x", backup+"2"); err == nil {
		t.Error("a backup of PostgreSQL")
	}
	sound(t, "sqlite:"+backup)
	x.send(10, "sent") // behind the backup
	x.stop(false)
	file := strings.TrimPrefix(dsn, "sqlite:")
	without(t, file+"-wal", file+"-shm")
	copyFile(t, backup, file)
	y := w.serve(dsn, state)
	y.isHeld("restored")
	y.adopt("restored")
	if len(w.arrived) != 30 || w.silent > 0 {
		t.Errorf("%d of 30 mails have arrived, %d twice in silence", len(w.arrived), w.silent)
	}
}

// serveServer saves the mail server of a world.
func serveServer(t *testing.T, s *store.Store) {
	t.Helper()
	if _, _, err := s.CreateServer(ctx, &store.MailServer{Name: "ss", Team: "sales", Type: store.TypeLocalhost, Mode: store.ModeDaemon, Status: store.ServerAvailable, From: "a@x.example"}, store.Audit{Actor: "a"}); err != nil {
		t.Fatal(err)
	}
}

// TestCopy: what was sent is in the archive of the other database, what waited is sent by it
// and by nobody else, and what may have left is neither lost nor sent again in silence.
func TestCopy(t *testing.T) {
	w := newWorld(t)
	from, to := storetest.EmptySQLiteDSN(t), storetest.EmptyPostgresDSN(t)
	state := stateIn(t)
	x := w.serve(from, state)
	serveServer(t, x.s)
	old, err := x.s.LastChange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mails, sent := 60, 20
	if os.Getenv("MAILDISPATCH_TEST_FULL") == "1" {
		mails, sent = 100_000, 50_000
	}
	for range mails / 20 {
		x.queue(20)
	}
	for left := sent; left > 0; {
		left -= x.send(min(left, 500), "sent")
	}
	file := content([]byte(strings.Repeat("file", 200<<10)))
	with := newMail("s", func(m *store.NewMail) {
		m.RequestID, m.Fingerprint, m.Labels = "r1", []byte("f"), map[string]string{"k": "v"}
		m.Raw = append(m.Raw, store.Piece{Shared: file, Length: file.Size})
	})
	enqueue(t, x.s, with)
	x.send(5, "marked")
	x.send(5, "claimed")
	if err := x.s.CreateToken(ctx, &store.Token{ID: "t1", Name: "t", CreateTime: time.Now(), ExpireTime: time.Now().Add(time.Hour)}, store.Audit{Actor: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Copy(ctx, from, to, state, store.Options{}); err == nil {
		t.Fatal("copied beside a service")
	}
	x.stop(true)
	began := time.Now()
	tables, err := store.Copy(ctx, from, to, state, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d mails in %v", mails+1, time.Since(began))
	rows := map[string]int64{}
	for _, c := range tables {
		rows[c.Name] = c.Rows
	}
	if rows["mail"] != int64(mails+1) || rows["archive"] != int64(sent) || rows["due"] != int64(mails+1-sent) || rows["content_chunk"] != 2 || rows["audit"] == 0 || rows["token"] != 1 {
		t.Errorf("copied %v", rows)
	}
	sound(t, to)
	if _, err := store.Copy(ctx, from, to, state, store.Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("copied into a database that is in use: %v", err)
	}
	// The source sends nothing more.
	z := w.serve(from, state)
	z.isHeld("the source")
	z.stop(false)
	// The target goes on, without being adopted.
	y := w.serve(to, stateIn(t))
	y.goesOn("the target")
	if res, err := y.s.Enqueue(ctx, newMail("s", func(m *store.NewMail) { m.RequestID, m.Fingerprint = "r1", []byte("f") })); err != nil || !res.Duplicate || res.ID != with.ID {
		t.Errorf("a request_id of before: %+v %v", res, err)
	}
	var out strings.Builder
	if n, err := y.s.RawMail(ctx, store.Everything, with.ID, &out); err != nil || n != with.SizeBytes {
		t.Errorf("%d bytes of %d: %v", n, with.SizeBytes, err)
	}
	if _, _, _, err := y.s.Changes(ctx, store.Everything, store.MailFilter{}, old, 10); err == nil {
		t.Error("a watcher of the source was not told that it has missed something")
	}
	if ms, _, err := y.s.FindMails(ctx, store.Everything, store.FindFilter{MailFilter: store.MailFilter{Labels: map[string]string{"k": "v"}}}, uuid.Nil, 5); err != nil || len(ms) != 1 {
		t.Errorf("%d mails are found by a label: %v", len(ms), err)
	}
	// Marked mail of the dead process was adopted as unknown (Recover in serve): 5. The rest
	// has left.
	for y.send(1000, "sent") > 0 {
	}
	var unknown int
	if err := y.s.Get(&unknown, "select count(*) from due where data_at is not null"); err != nil || unknown != 5 {
		t.Errorf("%d mails may have left, 5 were marked: %v", unknown, err)
	}
	if len(w.arrived) != mails+2 || w.silent > 0 {
		t.Errorf("%d of %d mails have arrived, %d twice in silence", len(w.arrived), mails+2, w.silent)
	}
	head, err := y.s.AuditHead(ctx)
	if err != nil || head.Seq < 2 {
		t.Errorf("head %v %v", head, err)
	}
	if err := y.s.Record(ctx, store.Audit{Actor: "a"}, "sales", "x", nil); err != nil {
		t.Error(err)
	}
}

// TestCopyAndTheOldFile: the file of before a copy, which somebody has kept, sends nothing that
// PostgreSQL sends too. A copy that is not told the right state file does nothing.
func TestCopyAndTheOldFile(t *testing.T) {
	w := newWorld(t)
	from, to, state := storetest.EmptySQLiteDSN(t), storetest.EmptyPostgresDSN(t), stateIn(t)
	file, kept := strings.TrimPrefix(from, "sqlite:"), filepath.Join(t.TempDir(), "kept.db")
	x := w.serve(from, state)
	serveServer(t, x.s)
	x.queue(20)
	x.stop(true)
	if _, err := store.Copy(ctx, from, to, stateIn(t), store.Options{}); err == nil || !strings.Contains(err.Error(), "--key-file") {
		t.Fatalf("with another state file: %v", err)
	}
	if err := store.Backup(ctx, from, kept); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Copy(ctx, from, to, state, store.Options{}); err != nil {
		t.Fatal(err)
	}
	without(t, file+"-wal", file+"-shm")
	copyFile(t, kept, file)
	y := w.serve(from, state)
	y.isHeld("the file of before the copy")
	y.stop(false)
}

// TestCopyLosesAnswer: when the answer to the commit is lost, PostgreSQL is asked what became
// of it.
func TestCopyLosesAnswer(t *testing.T) {
	lost := errors.New("the answer is lost")
	for _, c := range []struct {
		name   string
		commit func(tx *sqlx.Tx) error
		want   string // of the error; "" = copied
	}{
		{"committed", func(tx *sqlx.Tx) error { return errors.Join(tx.Commit(), lost) }, ""},
		{"rolled back", func(tx *sqlx.Tx) error { return errors.Join(tx.Rollback(), lost) }, "nothing is in PostgreSQL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			from, to, state := storetest.EmptySQLiteDSN(t), storetest.EmptyPostgresDSN(t), stateIn(t)
			x := w.serve(from, state)
			serveServer(t, x.s)
			x.queue(3)
			x.stop(true)
			tables, err := store.CopyWith(ctx, from, to, state, c.commit)
			if c.want == "" && (err != nil || len(tables) == 0) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, %q was wanted", err, c.want)
			}
		})
	}
}

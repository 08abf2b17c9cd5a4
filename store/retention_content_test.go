package store_test

import (
	"bytes"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// openAt opens a database in a process whose clock is wrong by off.
func openAt(t *testing.T, dsn string, off *time.Duration) *store.Store {
	t.Helper()
	s, err := store.Open(ctx, dsn, store.Options{Now: func() time.Time { return time.Now().Add(*off) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// carrying is a mail with a file beside its text.
func carrying(file *store.Content) func(m *store.NewMail) {
	return func(m *store.NewMail) {
		m.Raw = []store.Piece{{Data: []byte("Subject: x\r\n\r\n")}, {Shared: file, Length: file.Size}}
	}
}

func aFile(b []byte) *store.Content {
	c := content(b)
	c.File = true
	return c
}

// collected walks and removes contents until there is nothing to do.
func collected(t *testing.T, s *store.Store) (n int) {
	t.Helper()
	for {
		through, err := s.WalkContents(ctx, "me")
		if err != nil {
			t.Fatal(err)
		}
		if through {
			break
		}
	}
	for {
		looked, k, _, err := s.CollectContents(ctx, "me", 10)
		if err != nil {
			t.Fatal(err)
		}
		if n += k; looked == 0 {
			return n
		}
	}
}

// rested makes all content old enough to be removed.
func rested(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Exec("update content set touched = " + map[string]string{"sqlite": "1", "postgres": "'2020-01-01'"}[s.Dialect()]); err != nil {
		t.Fatal(err)
	}
}

func readable(t *testing.T, s *store.Store, id uuid.UUID, what string) {
	t.Helper()
	var out bytes.Buffer
	if _, err := s.RawMail(ctx, store.Everything, id, &out); err != nil {
		t.Errorf("%s has lost its bytes: %v", what, err)
	}
}

var allOfBulk = store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata, Age: 10 * day}

// TestContentOfDueMailStays: what a mail needs stays, though a clock was a year ahead for one
// pass of retention, though the replica that accepted the mail is a month behind, and though
// the content seems to have rested for long.
func TestContentOfDueMailStays(t *testing.T) {
	t.Parallel()
	eachDSN(t, func(t *testing.T, s *store.Store, dsn string) {
		serve(t, s)
		file := aFile(bytes.Repeat([]byte("price list"), 10000))
		var off time.Duration
		other := s
		if s.Dialect() == "postgres" { // SQLite has one process
			other = openAt(t, dsn, &off)
		}
		off = 365 * day
		collected(t, other)
		enqueue(t, s, newMail("ss", aged(40*day), carrying(file)))
		finish(t, s)
		off = -30 * day
		waits := newMail("ss", carrying(file), func(m *store.NewMail) {
			m.ID, m.Kind, m.RunAt = idOf(time.Now().Add(-30*day)), store.KindInvoice, time.Now().Add(60*day)
		})
		enqueue(t, other, waits)
		if n, _ := purge(t, s, 10, allOfBulk); n != 1 {
			t.Fatalf("%d mails were removed", n)
		}
		rested(t, s)
		if n := collected(t, s); n != 0 {
			t.Errorf("%d contents were removed that a mail needs", n)
		}
		readable(t, s, waits.ID, "an invoice that waits")
	})
}

// TestContentOfEarlierMail: of mail that a program of before has written no content goes until
// each has its terms; then what no mail needs does.
func TestContentOfEarlierMail(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		serve(t, s)
		both, one := aFile([]byte("a file of two")), aFile([]byte("a file of one"))
		old, waits := newMail("ss", aged(40*day), carrying(both)), newMail("ss", carrying(both), func(m *store.NewMail) { m.RunAt = time.Now().Add(time.Hour) })
		enqueue(t, s, old, newMail("ss", aged(40*day), carrying(one)), waits)
		finish(t, s)
		for _, q := range []string{"update mail set listed = not listed", "delete from term"} {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		rested(t, s)
		if n, _ := purge(t, s, 10, allOfBulk); n != 2 {
			t.Fatalf("%d mails were removed", n)
		}
		if looked, n, _, err := s.CollectContents(ctx, "me", 10); looked != 0 || n != 0 || err != nil {
			t.Errorf("before the walk %d contents were looked at and %d removed: %v", looked, n, err)
		}
		if n := collected(t, s); n != 1 {
			t.Errorf("behind the walk %d contents were removed, one is needed by nobody", n)
		}
		readable(t, s, waits.ID, "a mail of before")
	})
}

// TestContentGoesBeforeTheMail: content that goes between its upload and the commit of the mail
// is stored once more, and a mail that brings no bytes of it is refused.
func TestContentGoesBeforeTheMail(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		file := aFile([]byte("a file"))
		goes := func(how string) {
			t.Helper()
			for _, q := range []string{"delete from content_chunk", how} {
				if err := s.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
		}
		enqueue(t, s, newMail("ss", carrying(file)))
		for name, put := range map[string]func(m *store.NewMail) (store.Enqueued, error){
			"one": func(m *store.NewMail) (store.Enqueued, error) { return s.Enqueue(ctx, m) },
			"a batch": func(m *store.NewMail) (store.Enqueued, error) {
				out, err := s.EnqueueBatch(ctx, []*store.NewMail{newMail("ss"), m})
				return out[1], err
			},
			"all": func(m *store.NewMail) (store.Enqueued, error) {
				out, err := s.EnqueueAll(ctx, []*store.NewMail{newMail("ss"), m})
				return out[1], err
			},
		} {
			goes("delete from content")
			m := newMail("ss", carrying(file))
			if res, err := put(m); err != nil || res.Err != nil {
				t.Errorf("%s: %+v %v", name, res, err)
				continue
			}
			readable(t, s, m.ID, name)
		}
		goes("update content set used = not used") // as clean-up of uploads takes it
		m := newMail("ss", carrying(&store.Content{Sum: file.Sum, Size: file.Size, File: true}))
		enqueue(t, s, m)
		var unused int
		if err := s.Get(&unused, "select count(*) from content where not used"); err != nil || unused != 0 {
			t.Errorf("%d contents of mail do not count as used: %v", unused, err)
		}
		goes("delete from content")
		m = newMail("ss", carrying(&store.Content{Sum: file.Sum, Size: file.Size, File: true}))
		if res, err := s.Enqueue(ctx, m); !errors.Is(errors.Join(err, res.Err), store.ErrContentGone) {
			t.Errorf("a mail without its content: %+v %v", res, err)
		}
	})
}

// TestContentLockedByIntake: a mail that is being written while its content is looked at keeps
// it, though its terms are not to be seen yet.
func TestContentLockedByIntake(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	s := storetest.Open(t, dsn)
	serve(t, s)
	file := aFile([]byte("a file"))
	enqueue(t, s, newMail("ss", aged(40*day), carrying(file)))
	finish(t, s)
	if n, _ := purge(t, s, 10, allOfBulk); n != 1 {
		t.Fatalf("%d mails were removed", n)
	}
	rested(t, s)
	waits := newMail("ss", carrying(file))
	// The statement of the mail stands still behind its locks.
	for _, q := range []string{
		`create function slow() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock(77); return new; end $$`,
		`create trigger slow before insert on due for each row execute function slow()`,
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	gate, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gate.ExecContext(ctx, "select pg_advisory_xact_lock(77)"); err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		res, err := s.Enqueue(ctx, waits)
		accepted <- errors.Join(err, res.Err)
	}()
	blocked(t, s, 1)
	// The touch of the mail does not count.
	if err := s.Exec("update content set touched = '2020-01-01'"); err != nil {
		t.Fatal(err)
	}
	removed := make(chan int, 1)
	go func() {
		_, n, _, _ := s.CollectContents(ctx, "me", 10)
		removed <- n
	}()
	blocked(t, s, 2)
	if err := gate.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	if n := <-removed; n != 0 {
		t.Errorf("%d contents were removed", n)
	}
	readable(t, s, waits.ID, "a mail that was accepted at that moment")
}

// blocked waits until so many connections wait for a lock.
func blocked(t *testing.T, s *store.Store, want int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var n int
		err := s.Get(&n, "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
		if err != nil {
			t.Fatal(err)
		}
		if n >= want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections wait for a lock, %d should", n, want)
		}
	}
}

// TestUploadLetsGo: a file that its mail lets go of while the upload lives goes with the
// upload, and no content is left when all mail and all uploads are gone.
func TestUploadLetsGo(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			var off time.Duration
			s := openAt(t, dsn, &off)
			serve(t, s)
			data := bytes.Repeat([]byte("file"), 30000)
			c := content(data)
			u := &store.Upload{ID: uuid.Must(uuid.NewV7()), Team: "sales", Filename: "f", ContentType: "text/plain", SHA256: c.Sum[:], SizeBytes: int64(len(data)),
				Content: store.Content{Sum: c.Sum, Size: c.Size}}
			if _, _, err := s.PutUpload(ctx, u, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			m := newMail("ss", aged(40*day), carrying(&store.Content{Sum: c.Sum, Size: c.Size, File: true}))
			enqueue(t, s, m)
			finish(t, s)
			purge(t, s, 10, store.KeepRule{Kind: store.KindBulk, Part: store.PartAttachments})
			purge(t, s, 10, allOfBulk)
			rested(t, s)
			if n := collected(t, s); n != 0 {
				t.Fatalf("%d contents were removed that an upload needs", n)
			}
			off = 8 * day
			if n, _, err := s.ForgetUploads(ctx); err != nil || n != 1 {
				t.Fatalf("%d uploads have ended: %v", n, err)
			}
			if n := collected(t, s); n != 1 {
				t.Errorf("%d contents were removed behind the upload, one was wanted", n)
			}
		})
	}
}

// TestContentWithoutMail: content that was stored for a mail that was never written goes.
func TestContentWithoutMail(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		enqueue(t, s, newMail("ss", func(m *store.NewMail) { m.RequestID, m.Fingerprint = "r", []byte("f") }))
		other := newMail("ss", carrying(aFile([]byte("a file"))), func(m *store.NewMail) { m.RequestID, m.Fingerprint = "r", []byte("other") })
		if res, err := s.Enqueue(ctx, other); err != nil || !errors.Is(res.Err, store.ErrRequestIDReused) {
			t.Fatalf("%+v %v", res, err)
		}
		rested(t, s)
		if n := collected(t, s); n != 1 {
			t.Errorf("%d contents were removed, one is needed by nobody", n)
		}
	})
}

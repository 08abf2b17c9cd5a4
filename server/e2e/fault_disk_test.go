//go:build root

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// Disks that are full, read-only or lose power have to be mounted, which takes root.

// mountPoint is a folder that PostgreSQL's user can reach, which folders of tests are not.
func mountPoint(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "maildispatch-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // whatever is mounted there is gone by then
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// smallDisk mounts a disk of so many MiB that anybody may write to.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := mountPoint(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0777", size)); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all the space there is; the function gives it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 64<<10); len(b) > 0; {
		if _, err := f.Write(b); errors.Is(err, syscall.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

// disks runs f with the service on a small disk, which is where SQLite's files are, and
// PostgreSQL's tables.
func disks(t *testing.T, f func(t *testing.T, s *service, disk string)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		disk := smallDisk(t, 24)
		f(t, start(t, "sqlite:"+filepath.Join(disk, "mail.db")), disk)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		c, err := storetest.StartCluster()
		if err != nil {
			t.Fatal(err)
		}
		disk := smallDisk(t, 48)
		owner, err := os.Stat(c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		st := owner.Sys().(*syscall.Stat_t)
		space := filepath.Join(disk, "space")
		if err := errors.Join(os.Mkdir(space, 0o700), os.Chown(space, int(st.Uid), int(st.Gid))); err != nil {
			t.Fatal(err)
		}
		db := openDB(t, c.DSN())
		mustExec(t, db, "create tablespace small location '"+space+"'")
		mustExec(t, db, "create database mail tablespace small")
		f(t, start(t, strings.Replace(c.DSN(), "/postgres?", "/mail?", 1)), disk)
	})
}

// TestDiskFull (F14): while the disk is full nothing is acknowledged that is not kept, callers
// hear RESOURCE_EXHAUSTED, no dot leaves without its mark, and all goes on without a restart
// when there is space again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	disks(t, func(t *testing.T, s *service, disk string) {
		w := newWitness(t, 0, nil)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
		ids := s.queue("bulk", 300)
		free := fill(t, disk)
		big := &pb.MailMessage{To: []string{"u@y.example"}, Subject: "big", Text: strings.Repeat("a line of text that takes some space\n", 1500)}
		// Space that the database had kept may still take some; the same request_id is asked
		// with again when there is space.
		refused, row := []string{}, 0
		for i := 0; row < 20; i++ {
			r := &pb.SendRequest{RequestId: fmt.Sprint("full ", i), Options: &pb.SendOptions{MailServer: "bulk"}, Message: big}
			out, err := s.send(timeout(t), r)
			switch {
			case err == nil:
				ids, row = append(ids, out.id), 0
			case status.Code(err) == codes.ResourceExhausted:
				refused, row = append(refused, r.RequestId), row+1
			default:
				t.Fatalf("while the disk is full: %v", err)
			}
			if i > 5000 {
				t.Fatal("the disk does not get full")
			}
		}
		for end := time.Now().Add(time.Duration(scaled(2, 120)) * time.Second); time.Now().Before(end); <-time.After(100 * time.Millisecond) {
			if _, err := s.admin.RunBatch(timeout(t), &pb.RunBatchRequest{}); err != nil && status.Code(err) != codes.ResourceExhausted {
				t.Fatal(err)
			}
		}
		// Every mail that the relay has is marked or recorded as sent.
		dots, db := w.Mails(), openDB(t, s.dsn())
		naked := 0
		for _, m := range dots {
			id := messageID(m.Data)
			var n int
			if err := db.QueryRow("select (select count(*) from due where id = '" + id + "' and data_at is not null) + (select count(*) from archive where id = '" + id + "')").Scan(&n); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				naked++
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		free()
		back := time.Now()
		for _, key := range refused {
			ids = append(ids, s.mustSend(&pb.SendRequest{RequestId: key, Options: &pb.SendOptions{MailServer: "bulk"}, Message: big}).id)
		}
		took := time.Since(back)
		s.drained("bulk", 2*time.Minute)
		a := w.account(s, ids)
		t.Logf("F14 %s refused=%d dots_while_full=%d dots_without_mark=%d recovered_after=%v", a, len(refused), len(dots), naked, took.Round(time.Millisecond))
		if naked > 0 || a.doubled > 0 || len(dots) == 320 {
			t.Errorf("%d dots without a mark, %d doubled", naked, a.doubled)
		}
		s.invariants(t)
		s.stop() // its disk goes next
	})
}

// TestSQLiteOnAReadOnlyDisk: serve ends with one line; doctor looks, or says in one line why it
// cannot.
func TestSQLiteOnAReadOnlyDisk(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, 8)
	dsn := "sqlite:" + filepath.Join(disk, "mail.db")
	s := start(t, dsn)
	s.stop()
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if r := run(t, nil, "key", "create", key); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	onlyLine(t, run(t, nil, "serve", "--listen=127.0.0.1:0", "--key-file="+key, "--database="+dsn), "database", "read-only")
	// SQLite can read it if the files of the log were left there by a reader that went last,
	// which is not for us to say.
	if r := run(t, nil, "doctor", "--database="+dsn); r.code != 0 || !strings.Contains(r.stdout, "every mail is in exactly one journal") {
		onlyLine(t, r, "database")
	}
}

// platter is a disk that can be cut from its power: a file system in a file, of which a copy
// has what had reached the disk, and nothing that was only written.
type platter struct {
	t          *testing.T
	image, dir string
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func newPlatter(t *testing.T, size string) *platter {
	t.Helper()
	p := &platter{t, filepath.Join(t.TempDir(), "image"), mountPoint(t)}
	command(t, "truncate", "-s", size, p.image)
	command(t, "mkfs.ext4", "-q", p.image)
	// nothing is written back by itself for so long
	command(t, "mount", "-o", "loop,commit=300", p.image, p.dir)
	if err := os.Chmod(p.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { command(t, "umount", "-l", p.dir) })
	return p
}

// cut leaves what a power cut would. A file that was written and not synced has to be gone.
func (p *platter) cut() {
	p.t.Helper()
	canary := filepath.Join(p.dir, fmt.Sprint("canary", time.Now().UnixNano()))
	if err := os.WriteFile(canary, []byte("never synced"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	command(p.t, "cp", "--sparse=always", p.image, p.image+".cut")
	command(p.t, "umount", "-l", p.dir)
	if err := os.Rename(p.image+".cut", p.image); err != nil {
		p.t.Fatal(err)
	}
	command(p.t, "mount", "-o", "loop,commit=300", p.image, p.dir)
	if b, err := os.ReadFile(canary); err == nil && len(b) > 0 {
		p.t.Error("the power cut kept what was never synced")
	}
}

// TestPowerCut (F15): the power goes while mail is taken and sent. Every acknowledged mail
// survives, and what may have arrived is known to.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	cuts := scaled(3, 20)
	f := func(t *testing.T, p *platter, s *service, stop, restart func()) {
		w := newWitness(t, 5*time.Millisecond, nil)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
		var ids []string
		for range cuts {
			var mu sync.Mutex
			enough := make(chan time.Time, 1)
			want, acked := about(150), []string{}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for {
						out, err := s.send(timeout(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_BULK}, Message: message("u@y.example")})
						if err != nil {
							return // the power is gone
						}
						mu.Lock()
						if acked = append(acked, out.id); len(acked) == want {
							enough <- time.Now()
						}
						mu.Unlock()
					}
				})
			}
			await(t, "mail is acknowledged", enough)
			_ = s.cmd.Process.Kill()
			<-s.exited
			stop()
			p.cut()
			wg.Wait()
			_ = s.conn.Close()
			ids = append(ids, acked...)
			restart()
			s.run()
			db := openDB(t, s.dsn())
			missing := missingIDs(t, db, acked)
			leaseOver(t, db, s.dsn())
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if missing > 0 {
				t.Errorf("%d of %d acknowledged mails did not survive", missing, len(acked))
			}
		}
		s.drained("bulk", 2*time.Minute)
		a := w.accountOf(s, ids, true)
		t.Logf("F15 %s acknowledged=%d cuts=%d", a, len(ids), cuts)
		s.invariants(t)
		s.stop()
		intact(t, s.dsn())
		stop()
	}
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		p := newPlatter(t, "64M")
		f(t, p, start(t, "sqlite:"+filepath.Join(p.dir, "mail.db"), "--batch-interval=0"), func() {}, func() {})
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		p := newPlatter(t, "1G")
		c, err := storetest.StartClusterIn(p.dir)
		if err != nil {
			t.Fatal(err)
		}
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		f(t, p, start(t, c.DSN(), "--batch-interval=0"), func() { check(c.Stop("immediate")) }, func() { check(c.Start()) })
	})
}

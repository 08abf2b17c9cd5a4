package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestAdopt: mail that left after a backup was made does not leave again from the backup until
// somebody adopts it, and is flagged then. A copy of the database says so by every way there is
// to ask.
func TestAdopt(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	first := start(t, storetest.SQLiteDSN(t))
	first.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
	for range 2 {
		if !first.trySend() {
			t.Fatal("nothing is accepted")
		}
	}
	backup := filepath.Join(t.TempDir(), "backup.db")
	db := openDB(t, first.dsn())
	mustExec(t, db, "vacuum into '"+backup+"'")
	if _, err := first.admin.RunBatch(timeout(t), &pb.RunBatchRequest{Wait: true}); err != nil {
		t.Fatal(err)
	}
	if n := len(relay.Mails()); n != 2 {
		t.Fatalf("%d of 2 mails have left", n)
	}
	first.stop()

	key, err := os.ReadFile(strings.TrimPrefix(first.keyFile(), "--key-file="))
	if err == nil {
		err = os.WriteFile(backup+".key", key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"--database=sqlite:" + backup, "--key-file=" + backup + ".key"}
	second := start(t, "sqlite:"+backup)
	if _, err := second.admin.RunBatch(timeout(t), &pb.RunBatchRequest{Wait: true}); err != nil {
		t.Fatal(err)
	}
	if n := len(relay.Mails()); n != 2 {
		t.Fatalf("%d mails left again before anybody said so", n-2)
	}
	stats, err := second.dispatch.GetQueueStats(timeout(t), &pb.GetQueueStatsRequest{})
	if err != nil || stats.Counts.Held != 2 {
		t.Errorf("GetQueueStats: got %v %v, want 2 held", stats, err)
	}
	if !second.isServing("") {
		t.Error("it serves nothing")
	}
	within(t, 5*time.Second, "health says that it is not adopted", func() bool { return !second.isServing("adopted") })
	if r := run(t, nil, "doctor", flags[0]); r.code != 0 || !strings.Contains(r.stdout, "RESTORED OR COPIED") || !strings.Contains(r.stdout, "2 mails that were due are held") {
		t.Errorf("doctor: %+v", r)
	}
	if !strings.Contains(second.log.String(), "this database was restored or copied") {
		t.Error("the log says nothing")
	}
	onlyLine(t, run(t, nil, append([]string{"adopt"}, flags...)...), "stop the service first")
	second.stop()
	if r := run(t, nil, append([]string{"adopt"}, flags...)...); r.code != 0 || !strings.Contains(r.stdout, "2 mails wait to be sent again, flagged possible_duplicate") {
		t.Errorf("adopt: %+v", r)
	}
	if r := run(t, nil, append([]string{"adopt"}, flags...)...); r.code != 0 || !strings.Contains(r.stdout, "nothing to adopt") {
		t.Errorf("adopt again: %+v", r)
	}

	third := start(t, "sqlite:"+backup)
	if _, err := third.admin.RunBatch(timeout(t), &pb.RunBatchRequest{Wait: true}); err != nil {
		t.Fatal(err)
	}
	if n := len(relay.Mails()); n != 4 {
		t.Errorf("%d of 2 adopted mails have left", n-2)
	}
	within(t, 5*time.Second, "health says that it is adopted", func() bool { return third.isServing("adopted") })
	var silent int
	if err := openDB(t, third.dsn()).QueryRow("select count(*) from archive where not possible_duplicate").Scan(&silent); err != nil || silent > 0 {
		t.Errorf("%d mails are not flagged: %v", silent, err)
	}
}

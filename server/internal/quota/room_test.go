package quota

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/store"
)

// TestRoom: a full queue stops its team, a full disk everybody, for mail that waits. What is
// sent at once goes on.
func TestRoom(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{Queue: 3, DiskMiB: 1024})
	free := int64(100 << 30)
	o.disk = func() (int64, int64, bool) { return free, 1 << 40, true }
	later := func(team string) *store.NewMail {
		m := mail("a@y.example")
		m.Team, m.Mode = team, store.ModeDaemon
		return m
	}
	refused := func(what string, err error, limit string) {
		t.Helper()
		if no, after := over(t, err); !no || after <= 0 || !strings.Contains(fmt.Sprint(err), limit) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	for range 3 {
		if err := o.send(later("t1")); err != nil {
			t.Fatal(err)
		}
	}
	refused("a fourth", o.send(later("t1")), "queue")
	if err := errors.Join(o.send(later("t2")), o.send(mail("a@y.example"))); err != nil {
		t.Errorf("another team, and php mode: %v", err)
	}
	if err := o.Sample(t.Context()); err != nil { // the journal is empty
		t.Fatal(err)
	}
	if err := o.send(later("t1")); err != nil {
		t.Errorf("after the queue was sent: %v", err)
	}
	free = 1<<30 - 1
	if err := o.Sample(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("with a full disk", o.send(later("t2")), "disk")
	refused("an upload", o.Disk(), "disk")
	if err := o.send(mail("a@y.example")); err != nil {
		t.Errorf("php mode with a full disk: %v", err)
	}
	free = 1 << 30
	if err := errors.Join(o.send(later("t2")), o.Disk()); err != nil {
		t.Errorf("as soon as there is room again: %v", err)
	}
	if err := o.Sample(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.send(later("t2")), o.Disk()); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if n := strings.Count(o.log.String(), "disk"); n != 2 {
		t.Errorf("got %d lines about the disk, want two:\n%s", n, o.log)
	}
}

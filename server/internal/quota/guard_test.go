package quota

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// TestGuard: what is beyond a budget is accepted and held, with the reason and one line of log;
// the address comes first, and takes nothing from the other budgets.
func TestGuard(t *testing.T) {
	t.Parallel()
	one := func(int) *store.NewMail { return mail("a@y.example") }
	for name, c := range map[string]struct {
		guard  Guard
		mail   func(i int) *store.NewMail
		passed int // of 100
	}{
		"address": {Guard{Address: 40, Team: 50}, one, 40},
		"address, whatever its case, among others": {Guard{Address: 40}, func(i int) *store.NewMail {
			return mail(fmt.Sprintf("u%d@y.example", i), []string{"a@y.example", "A@Y.example"}[i%2])
		}, 40},
		"archive": {Guard{Address: 40}, func(i int) *store.NewMail {
			m := mail(fmt.Sprintf("u%d@y.example", i), "archive@x.example")
			m.Recipients[1].Kind = "bcc"
			return m
		}, 100},
		"address, in bcc alone": {Guard{Address: 40}, func(int) *store.NewMail {
			m := mail("a@y.example")
			m.Recipients[0].Kind = "bcc"
			return m
		}, 40},
		"address, added by a resend": {Guard{Address: 40}, func(i int) *store.NewMail {
			m := mail(fmt.Sprintf("u%d@y.example", i), "archive@x.example", "a@y.example")
			m.Recipients[1].Kind, m.Recipients[2].Kind, m.Added = "bcc", "bcc", 1
			return m
		}, 40},
		"addresses": {Guard{Address: 40}, func(i int) *store.NewMail { return mail(fmt.Sprintf("u%d@y.example", i)) }, 100},
		"caller":    {Guard{Caller: 40}, one, 40},
		"team":      {Guard{Team: 40}, one, 40},
		"kind":      {Guard{Kinds: Kinds{store.KindInvoice: 40, store.KindBulk: 1}}, one, 40},
		"kinds":     {Guard{Kinds: Kinds{store.KindBulk: 1}}, one, 100},
		"batch": {Guard{Batch: 40}, func(int) *store.NewMail {
			m := mail("a@y.example")
			m.BatchID = "b1"
			return m
		}, 40},
		"no batch": {Guard{Batch: 40}, one, 100},
		"none":     {Guard{}, one, 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOffice(t, Limits{Guard: c.guard})
			for i := range 100 {
				if err := o.send(c.mail(i)); err != nil {
					t.Fatal(err)
				}
			}
			held := o.book.held()
			budget, _, _ := strings.Cut(name, ",")
			if held[""] != c.passed || held[""]+held[budget] != 100 {
				t.Errorf("got %v, want %d passed and the others held by their %s", held, c.passed, budget)
			}
			if lines := strings.Count(o.log.String(), "the guard holds mail"); lines != min(1, 100-c.passed) {
				t.Errorf("got %d lines of log, want one if any was held:\n%s", lines, o.log)
			}
			if strings.Contains(o.log.String(), "example") {
				t.Errorf("the log has an address: %s", o.log)
			}
			if held["address"] > 0 && c.guard.Team > 0 { // ten are left
				for i := range 20 {
					_ = o.send(mail(fmt.Sprintf("v%d@y.example", i)))
				}
				if held := o.book.held(); held["team"] != 10 {
					t.Errorf("got %v, want ten more passed for the team", held)
				}
			}
		})
	}
}

// TestAlarmIsRateLimited: the log hears once a minute of the same, with how many it was.
func TestAlarmIsRateLimited(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{Guard: Guard{Team: 1}})
	for range 120 {
		if err := o.send(mail("a@y.example")); err != nil {
			t.Fatal(err)
		}
		o.clock.pass(time.Second)
	}
	if n := strings.Count(o.log.String(), "the guard holds mail"); n != 2 || !strings.Contains(o.log.String(), "mails=60") {
		t.Errorf("got %d lines in two minutes:\n%s", n, o.log)
	}
}

// TestGuardOverReplicas: the guard's budgets are shared, too.
func TestGuardOverReplicas(t *testing.T) {
	t.Parallel()
	l := Limits{Guard: Guard{Address: 200}}
	a := newOffice(t, l)
	b := &book{}
	o := replica(t, l, a.clock, &counted{Store: a.store.Store, book: b}, b)
	for range 200 {
		if err := errors.Join(a.send(mail("a@y.example")), o.send(mail("a@y.example"))); err != nil {
			t.Fatal(err)
		}
		a.clock.pass(time.Second)
	}
	if sum := a.book.held()[""] + b.held()[""]; sum > 220 || sum < 180 {
		t.Errorf("got %d mails to one address, want 200 within a tenth", sum)
	}
}

// TestSketch: nothing is counted too low, and of a hundred thousand rare things hardly any too
// high.
func TestSketch(t *testing.T) {
	t.Parallel()
	clock := newHand()
	s := newSketch(clock.Now())
	at := func(i uint64) uint64 { return i * 0x9E3779B97F4A7C15 }
	high := 0
	for i := range uint64(100_000) {
		if n, _ := s.seen(clock.Now(), at(i), 250); n > 0 {
			high++
		}
	}
	if high > 20_000 {
		t.Errorf("got %d of 100,000 new things that were seen before", high)
	}
	for i := range 250 {
		if n, _ := s.seen(clock.Now(), at(7), 200); n < min(i+1, 200) || n > 200 {
			t.Fatalf("got %d after %d times", n, i+1)
		}
	}
	clock.pass(sketchHalf)
	if n, _ := s.seen(clock.Now(), at(7), 200); n < 200 {
		t.Errorf("got %d half an hour later", n)
	}
	clock.pass(3 * sketchHalf)
	if n, _ := s.seen(clock.Now(), at(7), 200); n != 0 {
		t.Errorf("got %d two hours later, want 0", n)
	}
}

// TestKinds: what the flag of the budgets by kind takes.
func TestKinds(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"": "", "bulk=5, invoice=7": "invoice=7,bulk=5", "bulk": "!", "bulk=x": "!", "junk=1": "!", "bulk=-1": "!", "other=0": ""} {
		var k Kinds
		err := k.Set(text)
		if got := k.String(); want == "!" && err == nil || want != "!" && (err != nil || got != want) {
			t.Errorf("%q: got %q, %v; want %q", text, got, err, want)
		}
	}
	if (Limits{Queue: -1}).Check() == nil || Defaults().Check() != nil {
		t.Error("a negative limit was taken, or the defaults were not")
	}
}

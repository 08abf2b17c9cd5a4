package simulation

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

// Run runs one seed in a bubble of its own.
func Run(t *testing.T, seed uint64, opt Options) (res Result) {
	defer func() {
		if p := recover(); p != nil {
			res.Faults = append(res.Faults, fmt.Sprintf("panic: %v", p))
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		luck := bless(seed)
		w := newWorld(seed, opt)
		w.luck = luck
		w.play()
		res = Result{Seed: seed, Faults: w.faults, Hash: w.hash, Steps: w.steps, Trace: w.trace, Counts: w.counts}
	})
	return res
}

func newWorld(seed uint64, opt Options) *world {
	w := &world{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6d61696c)), opt: opt, begin: time.Now(), wake: make(chan struct{}, 1)}
	w.log = slog.New(slog.DiscardHandler)
	if opt.Trace {
		w.log = slog.New(&logLines{w: w})
	}
	w.db = memory.New(func() time.Time { return time.Now().Add(w.ahead) })
	w.db.Faults = opt.Plant.Faults
	w.truth, w.people = newTruth(w), &people{w: w}
	w.operations = &operations{w: w, rng: rand.New(rand.NewPCG(seed, 0x6f706572))}
	w.prof = w.newProfile()
	w.interval = time.Duration(1+w.rng.IntN(10)) * time.Second
	w.replicas = make([]*replica, 2)
	for i := range 3 {
		w.relays = append(w.relays, &relay{w: w, name: fmt.Sprintf("r%d", i), pipe: w.chance(0.7), open: map[*dialogue]bool{}})
	}
	for i, mode := range []store.Mode{store.ModeDaemon, store.ModePHP, store.ModeDaemon} {
		name := fmt.Sprintf("s%d", i)
		var lim store.Limits
		if i == 2 || w.chance(0.3) {
			lim.MaxConnections = int32(1 + w.rng.IntN(3))
		}
		if i == 2 && w.chance(0.5) {
			lim.MailsPerMinute = int32(10 + 10*w.rng.IntN(2))
		}
		if i == 2 && w.chance(0.2) {
			lim.MailsPerDay = int32(5 + w.rng.IntN(10))
		}
		s, _, err := w.db.CreateServer(context.Background(), &store.MailServer{Name: name, Type: store.TypeSMTP, From: "a@x.example", Mode: mode, Status: store.ServerAvailable, Limits: lim,
			HoldUnknown: w.chance(0.1), SMTP: &store.SMTP{Host: "127.0.0.1", Port: firstPort + i, Encryption: "none"}}, store.Audit{})
		if err != nil {
			w.wrong("%v", err)
		}
		w.truth.configured(s)
		w.servers = append(w.servers, name)
	}
	if rand.New(rand.NewPCG(seed, 0x66616c6c)).Float64() < withFallback {
		w.addFallback()
	}
	return w
}

// withFallback is the share of seeds in which mail servers have a fallback. The others are runs
// without one, to the last operation.
const withFallback = 0.4

// addFallback adds a mail server that is the fallback of the first two.
func (w *world) addFallback() {
	w.fallback = "s3"
	w.relays = append(w.relays, &relay{w: w, name: "r3", pipe: w.chance(0.7), open: map[*dialogue]bool{}})
	s, _, err := w.db.CreateServer(context.Background(), &store.MailServer{Name: w.fallback, Type: store.TypeSMTP, From: "a@x.example", Mode: store.ModeDaemon, Status: store.ServerAvailable,
		SMTP: &store.SMTP{Host: "127.0.0.1", Port: firstPort + len(w.relays) - 1, Encryption: "none"}}, store.Audit{})
	if err != nil {
		w.wrong("%v", err)
		return
	}
	w.truth.configured(s)
	for _, name := range w.servers[:2] {
		s, err := w.db.UpdateServer(context.Background(), store.Everything, name, 0, store.Audit{}, func(s *store.MailServer) error { s.Fallback = w.fallback; return nil })
		if err != nil {
			w.wrong("%v", err)
			return
		}
		w.truth.configured(s)
	}
	w.servers = append(w.servers, w.fallback)
}

// diverts says whether the mail of a mail server goes through its fallback now.
func (w *world) diverts(name string) bool {
	s, err := w.db.Server(context.Background(), store.Everything, name)
	if err != nil || s.Fallback == "" || s.DeleteTime != nil {
		return false
	}
	bs, err := w.db.Breakers(context.Background())
	return s.Status != store.ServerAvailable || err == nil && bs[name] != nil && bs[name].Failures > 0
}

// play is the whole run: trouble, then peace, in which everything has to come to an end.
func (w *world) play() {
	for i := range w.replicas {
		w.after(time.Duration(w.rng.Int64N(int64(time.Second))), fmt.Sprintf("start %d", i), func() { w.start(i) })
	}
	length := w.prof.length
	every := func(perMinute float64, name string, do func()) {
		n := int(perMinute * length.Minutes())
		if w.chance(perMinute*length.Minutes() - float64(n)) {
			n++
		}
		for range n {
			w.after(time.Duration(w.rng.Int64N(int64(length))), name, do)
		}
	}
	calls := 8 + w.rng.IntN(10)
	for range calls {
		w.after(time.Second+time.Duration(w.rng.Int64N(int64(length*3/4))), "call", w.people.call)
	}
	every(w.prof.crash, "kill", w.crash)
	every(w.prof.freeze, "freeze", w.freeze)
	every(w.prof.stop, "stop", w.stopOne)
	every(w.prof.people, "operate", w.people.operate)
	every(w.prof.config, "configure", w.people.configure)
	every(w.prof.clock, "clock", w.step)
	if w.prof.relay > 0 {
		every(6, "mood", w.turn)
	}
	w.operations.plan(length)
	w.run(w.begin.Add(length), nil)
	w.truth.audit(false)
	w.peace()
}

func (w *world) crash() {
	r := w.replicas[w.rng.IntN(len(w.replicas))]
	if r == nil || r.dead.Load() || r.over() {
		return
	}
	w.tell("   kill %s", r.name)
	r.kill()
	w.after(time.Duration(w.rng.Int64N(int64(40*time.Second))), "restart", func() { w.start(r.place) })
}

// freeze holds back everything of a replica for a while: its database and its network are away.
func (w *world) freeze() {
	r := w.replicas[w.rng.IntN(len(w.replicas))]
	if r == nil || r.dead.Load() {
		return
	}
	r.frozen = time.Now().Add(time.Duration(1+w.rng.Int64N(60)) * time.Second)
}

func (w *world) stopOne() {
	r := w.replicas[w.rng.IntN(len(w.replicas))]
	if !r.up() {
		return
	}
	r.stopped = true
	r.cancel()
	var again func()
	again = func() {
		switch {
		case w.replicas[r.place] != r || r.dead.Load():
		case r.over():
			w.start(r.place)
		default:
			w.after(3*time.Second, "restart after stop", again)
		}
	}
	w.after(time.Duration(w.rng.Int64N(int64(20*time.Second))), "restart after stop", again)
}

// step sets a clock: a machine's, or the database's forward.
func (w *world) step() {
	if w.chance(0.4) {
		w.ahead += time.Duration(w.rng.Int64N(int64(time.Minute)))
		return
	}
	r := w.replicas[w.rng.IntN(len(w.replicas))]
	if r != nil {
		r.offset.Store(int64(time.Duration(w.rng.Int64N(int64(4*time.Minute))) - 2*time.Minute))
	}
}

func (w *world) turn() {
	r := w.relays[w.rng.IntN(len(w.relays))]
	r.mood, r.refuse = mood([]int{0, 1, 1, 1, 1, 2, 3, 4, 5}[w.rng.IntN(9)]), 0
	if r.mood == moodAway {
		r.refuse = 1
	}
	w.tell("   %s is in mood %d", r.name, r.mood)
}

// most of which no seed needs: a breaker may rest for 15 minutes
const patience = 50 * time.Minute

// peace ends all faults and waits for everything to be settled.
func (w *world) peace() {
	w.calm = true
	w.note("peace", 0)
	for _, r := range w.relays {
		r.mood, r.refuse = moodWell, 0
		for d := range r.open {
			_ = d // a silent connection stays silent: the client's timeouts end it
		}
	}
	w.plan = slices.DeleteFunc(w.plan, func(e event) bool {
		return e.name != "restart" && e.name != "restart after stop" && e.name != "supervise" && !late(e.name)
	})
	now := time.Now()
	for _, o := range w.ops {
		if o.due.After(now) {
			o.due = now
		}
	}
	for i, r := range w.replicas {
		if r != nil {
			r.frozen = time.Time{}
			r.offset.Store(0)
		}
		if r == nil {
			w.start(i)
		}
	}
	for _, name := range w.servers {
		s, err := w.db.Server(context.Background(), store.Everything, name)
		if err != nil {
			continue
		}
		if s.DeleteTime != nil {
			// it is deleted
			_, _ = w.db.UndeleteServer(context.Background(), store.Everything, name, store.Audit{})
		}
		if s.DeleteTime == nil && s.Status == store.ServerAvailable && s.Limits.MailsPerDay == 0 {
			continue // a change would make its breaker forget
		}
		s, err = w.db.UpdateServer(context.Background(), store.Everything, name, 0, store.Audit{}, func(s *store.MailServer) error {
			s.Status, s.Limits.MailsPerDay = store.ServerAvailable, 0
			return nil
		})
		if err != nil {
			w.wrong("%v", err)
		}
		w.truth.configured(s)
	}
	w.people.release(nil)
	end := time.Now().Add(patience)
	last := time.Time{}
	w.run(end, func() bool {
		now := time.Now()
		if now.Sub(last) < time.Second {
			return false
		}
		last = now
		w.people.release(nil)
		return len(w.db.Busy()) == 0 && len(w.plan) == 0 && !w.operations.run()
	})
	for i, id := range w.db.Busy() {
		row := w.db.Look(id)
		if i < 3 {
			w.wrong("%s is not settled %v after the last fault: %s, owner %d, due %v, %s", short(id), patience, row.Mail.Status, row.Mail.Owner, row.Mail.DueTime, row.Mail.LastError)
		}
	}
	for _, r := range w.replicas {
		r.stopped = true
		r.cancel()
	}
	// Whoever was told to stop, or is dead, ends.
	all := append(slices.Clone(w.old), w.replicas...)
	w.run(time.Now().Add(10*time.Minute), func() bool {
		return !slices.ContainsFunc(all, func(r *replica) bool { return !r.over() })
	})
	for _, r := range all {
		if !r.over() {
			w.wrong("%s does not end", r.name)
			r.kill()
			w.run(time.Now().Add(time.Minute), nil)
		}
	}
	for _, r := range w.replicas {
		if r.over() && !r.dead.Load() && r.err != nil {
			w.wrong("%s does not end well: %v", r.name, r.err)
		}
	}
	w.run(time.Now().Add(3*time.Minute), nil)
	w.people.wg.Wait()
	for id, alive := range w.db.Replicas() {
		if alive {
			w.wrong("replica %d is alive behind its end", id)
		}
	}
	w.truth.audit(true)
	w.operations.audit()
}

func late(name string) bool {
	n := len(name)
	return n > 5 && name[n-5:] == " late"
}

// logLines puts what an engine logs into the trace.
type logLines struct {
	w *world
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	l.w.tell("   log: %s", text)
	return nil
}
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *logLines) WithGroup(string) slog.Handler      { return l }

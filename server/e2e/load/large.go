package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// large fills a database by SQL and holds every call that has to stay quick against its bar,
// with php-mode sends beside it. The order is: what an empty database costs, the archive, the
// mails that are due, then the calls.
func large(ctx context.Context, b *bench) error {
	l := &largeRun{bench: b}
	err := l.all(ctx)
	if len(l.rows) > 0 {
		b.notes = append(b.notes, l.table())
	}
	for _, r := range l.rows {
		if !r.ok {
			b.broke = append(b.broke, fmt.Sprintf("%s: %s, the bar is %s", r.name, r.measured, r.bar))
		}
	}
	return err
}

// largeRun is one run of large.
type largeRun struct {
	*bench
	p     *process
	since time.Time // create time of the first archived mail
	alone float64   // p99 of php mode with nothing beside it, in ms
	rows  []largeRow
}

// largeRow is one line of the table. A row without a bar is only told.
type largeRow struct {
	name, measured, bar string
	ok                  bool
	php                 float64 // p99 beside it in ms; 0 = not measured
}

const (
	largeBatch = "large"
	// php-mode sends beside each call, so that there is a p99
	largeBeside = 300
	largeSend   = 10000 // mails by which SendBatch is measured
	// a call that takes longer has missed its bar, and is made no more
	largeSlow = 5 * time.Second
	// p99 of php mode beside a call, as a multiple of that alone
	largePHP = 2
)

func (l *largeRun) add(name, measured, bar string, ok bool, php float64) {
	l.rows = append(l.rows, largeRow{name, measured, bar, ok, php})
	fmt.Fprintf(os.Stderr, "%s: %s (bar: %s) php %.1f\n", name, measured, bar, php)
}

func (l *largeRun) table() string {
	var s strings.Builder
	w := tabwriter.NewWriter(&s, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "row\tmeasured\tbar\tok\tphp p99 beside (alone %.1f ms)\n", l.alone)
	for _, r := range l.rows {
		ok, php := "yes", ""
		switch {
		case !r.ok:
			ok = "NO"
		case r.bar == "":
			ok = ""
		}
		if r.php > 0 {
			php = fmt.Sprintf("%.1f ms, %.1f times", r.php, r.php/l.alone)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.name, r.measured, r.bar, ok, php)
	}
	_ = w.Flush() // into memory
	return s.String()
}

func (l *largeRun) all(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		mode pb.Mode
		port int
	}{{"php", pb.Mode_MODE_PHP, l.tally.sink.Port()}, {"bulk", pb.Mode_MODE_DAEMON, l.tally.sink.Port()}, {"dead", pb.Mode_MODE_DAEMON, deadPort}} {
		if err := l.addServer(ctx, l.p, s.name, s.mode, s.port, l.bench.conns); err != nil {
			return err
		}
	}
	before, err := l.sendBatch(ctx)
	if err != nil {
		return err
	}
	perMail, err := l.fillArchive(ctx)
	if err != nil {
		return err
	}
	after, err := l.sendBatch(ctx)
	if err != nil {
		return err
	}
	l.add(fmt.Sprintf("SendBatch, CPU of 1,000 mails at %d archived / at 0", l.archive), fmt.Sprintf("%.3f s / %.3f s = %.2f", after.cpu, before.cpu, after.cpu/before.cpu), "<= 1.10", after.cpu <= 1.10*before.cpu, 0)
	l.add("SendBatch, mails/s at that / at 0", fmt.Sprintf("%.0f / %.0f", after.rate, before.rate), "", true, 0)
	if l.archive > 0 {
		l.add("archive, bytes a mail without its body", fmt.Sprintf("%.0f", perMail), "", true, 0)
	}
	if err := l.fillDue(ctx); err != nil {
		return err
	}
	if l.alone, _, err = l.beside(ctx, func(ctx context.Context) error { return nil }); err != nil {
		return err
	}
	for _, f := range []func(context.Context) error{l.counts, l.nothing, l.finds, l.watch, l.operations, l.countsAfter} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	var worst largeRow
	for _, r := range l.rows {
		if r.php > worst.php {
			worst = r
		}
	}
	l.add("php mode's p99 beside all of this", fmt.Sprintf("at most %.1f ms, %s", worst.php, worst.name), fmt.Sprintf("<= %d times that alone", largePHP), worst.php <= largePHP*l.alone, worst.php)
	return nil
}

// open starts the service.
func (l *largeRun) open(ctx context.Context) (err error) {
	l.p, err = l.begin(ctx, "--batch-interval=0", "--watchers=2000")
	return err
}

// costs is what mails cost.
type costs struct{ cpu, rate float64 } // seconds for 1,000; mails a second

// sendBatch sends bulk until it is archived. The median of three, behind one that warms up.
func (l *largeRun) sendBatch(ctx context.Context) (costs, error) {
	var cpus, rates []float64
	n := min(largeSend, l.mails)
	for i := range 4 {
		before, begin := l.usage(), time.Now()
		if err := l.bulk(ctx, l.p, n, &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "bulk"}}, l.own); err != nil {
			return costs{}, err
		}
		if err := l.tally.wait(ctx, l.given()); err != nil {
			return costs{}, err
		}
		if err := l.empty(ctx, &pb.MailFilter{MailServer: "bulk"}); err != nil {
			return costs{}, err
		}
		u := l.usage().since(before)
		if i > 0 {
			cpus = append(cpus, (u.service+u.database).Seconds()*1000/float64(n))
			rates = append(rates, float64(n)/time.Since(begin).Seconds())
		}
	}
	slices.Sort(cpus)
	slices.Sort(rates)
	return costs{cpus[1], rates[1]}, nil
}

// empty waits until the due-out journal has nothing of a filter.
func (l *largeRun) empty(ctx context.Context, f *pb.MailFilter) error {
	for {
		r, err := l.p.journal.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{Filter: f, PageSize: 1})
		if err != nil || len(r.Mails) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// beside does f while a php-mode mail is sent every pace, and until there were enough of them
// for a p99. took is how long f took.
func (l *largeRun) beside(ctx context.Context, f func(ctx context.Context) error) (p99 float64, took time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.timing.Store(true)
	defer l.timing.Store(false)
	var over atomic.Bool
	var mu sync.Mutex // guards all
	var all []time.Duration
	var wg sync.WaitGroup
	begin := time.Now()
	wg.Go(func() {
		defer over.Store(true)
		if err := f(ctx); err != nil {
			cancel(err)
		}
		took = time.Since(begin)
	})
	t := time.NewTicker(l.pace)
	defer t.Stop()
	for n := 0; (n < largeBeside || !over.Load()) && ctx.Err() == nil; n++ {
		due := <-t.C
		wg.Go(func() {
			_, err := l.sendOne(ctx, l.p.dispatch[0], "php", l.tally.give(1), pb.MailStatus_MAIL_STATUS_SENT)
			if err != nil {
				cancel(err)
			}
			mu.Lock()
			all = append(all, time.Since(due))
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(all)
	return ms(percentile(all, 99)), took, context.Cause(ctx)
}

// quick makes a call again and again, php mode beside it, and holds its p99 against a bar; 0 =
// it is only told. A call that fails has missed it.
func (l *largeRun) quick(ctx context.Context, name string, bar time.Duration, times int, call func(ctx context.Context, i int) error) error {
	var all []time.Duration
	var failed error
	php, _, err := l.beside(ctx, func(ctx context.Context) error {
		failed = call(ctx, 0) // warms up
		for i := 0; i < times && failed == nil; i++ {
			begin := time.Now()
			if failed = call(ctx, i); failed == nil {
				all = append(all, time.Since(begin))
			}
			if time.Since(begin) > largeSlow { // so many more would take all day
				break
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("php mode beside %s: %w", name, err)
	}
	slices.Sort(all)
	p50, p99 := percentile(all, 50), percentile(all, 99)
	measured, aim := fmt.Sprintf("p50 %.1f ms, p99 %.1f ms", ms(p50), ms(p99)), ""
	if failed != nil {
		measured = failed.Error()
	}
	if bar > 0 {
		aim = fmt.Sprintf("p99 < %.0f ms", ms(bar))
	}
	l.add(name, measured, aim, failed == nil && (bar == 0 || p99 < bar), php)
	return ctx.Err()
}

// counts are GetBatch and GetQueueStats, which must be exact.
func (l *largeRun) counts(ctx context.Context) error {
	exact := func(what string, got, want int64) error {
		if got != want {
			return fmt.Errorf("%s tells %d mails, and %d are there", what, got, want)
		}
		return nil
	}
	err := l.quick(ctx, "GetBatch", 50*time.Millisecond, 200, func(ctx context.Context, _ int) error {
		r, err := l.p.journal.GetBatch(ctx, &pb.GetBatchRequest{BatchId: largeBatch})
		if err != nil {
			return err
		}
		return exact("GetBatch", r.Batch.Mails, int64(l.mails))
	})
	if err != nil {
		return err
	}
	return l.quick(ctx, "GetQueueStats", 50*time.Millisecond, 200, func(ctx context.Context, _ int) error {
		r, err := l.p.journal.GetQueueStats(ctx, &pb.GetQueueStatsRequest{MailServer: "dead"})
		if err != nil {
			return err
		}
		c := r.Counts
		return exact("GetQueueStats", c.Queued+c.Sending+c.Deferred+c.Failed, int64(l.mails))
	})
}

// nothing lists what is not there, or hardly.
func (l *largeRun) nothing(ctx context.Context) error {
	for _, x := range []struct {
		name string
		want int
		f    *pb.MailFilter
		bar  time.Duration
	}{
		{"status, none", 0, &pb.MailFilter{Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_UNKNOWN}}, 20 * time.Millisecond},
		{"kind, none", 0, &pb.MailFilter{Kind: pb.Kind_KIND_WORK_ORDER}, 20 * time.Millisecond},
		{"status of a batch, none", 0, &pb.MailFilter{BatchId: largeBatch, Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_UNKNOWN}}, 20 * time.Millisecond},
		{"status, one of all", 1, &pb.MailFilter{Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_FAILED}}, 20 * time.Millisecond},
		{"kind, one of all", 1, &pb.MailFilter{Kind: pb.Kind_KIND_INVOICE, MailServer: "dead"}, 20 * time.Millisecond},
	} {
		err := l.quick(ctx, "ListDueOutMails by "+x.name, x.bar, 100, func(ctx context.Context, _ int) error {
			r, err := l.p.journal.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{Filter: x.f})
			if err == nil && len(r.Mails) != x.want {
				err = fmt.Errorf("%d mails, not %d", len(r.Mails), x.want)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// watchers opens streams that nothing happens on, and asks what they cost.
func (l *largeRun) watch(ctx context.Context) error {
	const span = 20 * time.Second
	idle := func() (service, database float64, err error) {
		before, begin := l.usage(), time.Now()
		select {
		case <-time.After(span):
		case <-ctx.Done():
			return 0, 0, context.Cause(ctx)
		}
		u, took := l.usage().since(before), time.Since(begin).Seconds()
		return 100 * u.service.Seconds() / took, 100 * u.database.Seconds() / took, nil
	}
	s0, d0, err := idle()
	if err != nil {
		return err
	}
	wctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	errs := make(chan error, l.bench.watchers)
	for range l.bench.watchers {
		s, err := l.p.journal.WatchMails(wctx, &pb.WatchMailsRequest{Filter: &pb.MailFilter{BatchId: "nothing of it"}})
		if err != nil {
			return err
		}
		wg.Go(func() {
			_, err := s.Recv() // that it has begun
			errs <- err
			for err == nil {
				_, err = s.Recv()
			}
		})
	}
	for range l.bench.watchers {
		if err := <-errs; err != nil {
			return fmt.Errorf("WatchMails: %w", err)
		}
	}
	s1, d1, err := idle()
	if err != nil {
		return err
	}
	php, _, err := l.beside(ctx, func(context.Context) error { return nil })
	if err != nil {
		return err
	}
	more := s1 - s0 + d1 - d0
	l.add(fmt.Sprintf("%d idle watchers, in %% of a core", l.bench.watchers), fmt.Sprintf("%.1f (service %.1f - %.1f, database %.1f - %.1f)", more, s1, s0, d1, d0), "< 5", more < 5, php)
	return nil
}

// operations holds, releases and cancels all that is due.
func (l *largeRun) operations(ctx context.Context) error {
	f := &pb.MailFilter{BatchId: largeBatch}
	d := l.p.journal
	for _, x := range []struct {
		name string
		call func(ctx context.Context) (*pb.Operation, error)
	}{
		{"HoldMails, validate_only", func(ctx context.Context) (*pb.Operation, error) {
			r, err := d.HoldMails(ctx, &pb.HoldMailsRequest{Filter: f, ValidateOnly: true})
			return r.GetOperation(), err
		}},
		{"HoldMails", func(ctx context.Context) (*pb.Operation, error) {
			r, err := d.HoldMails(ctx, &pb.HoldMailsRequest{Filter: f})
			return r.GetOperation(), err
		}},
		{"ReleaseMails", func(ctx context.Context) (*pb.Operation, error) {
			r, err := d.ReleaseMails(ctx, &pb.ReleaseMailsRequest{Filter: f})
			return r.GetOperation(), err
		}},
		{"CancelMails", func(ctx context.Context) (*pb.Operation, error) {
			r, err := d.CancelMails(ctx, &pb.CancelMailsRequest{Filter: f})
			return r.GetOperation(), err
		}},
	} {
		var o *pb.Operation
		var accepted time.Duration
		php, took, err := l.beside(ctx, func(ctx context.Context) (err error) {
			begin := time.Now()
			o, err = x.call(ctx)
			accepted = time.Since(begin)
			if err == nil && o == nil {
				err = errors.New("no operation")
			}
			if err == nil && o.Total == 0 {
				err = errors.New("accepted without a count")
			}
			if err == nil {
				o, err = l.ended(ctx, o.Id)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		l.add(x.name+" of all, accepted", fmt.Sprintf("%.0f ms", ms(accepted)), "< 1 s", accepted < time.Second, 0)
		rate := float64(o.Changed) / (took - accepted).Seconds()
		l.add(x.name+" of all", fmt.Sprintf("%d of %d in %.1f s, %.0f/s", o.Changed, o.Matched, took.Seconds(), rate), ">= 50000/s", rate >= 50000, php)
		if o.State != pb.OperationState_OPERATION_STATE_DONE || o.Matched < int64(l.mails)-1 || o.Changed+o.Failed != o.Matched {
			l.broke = append(l.broke, fmt.Sprintf("%s ended as %v", x.name, o))
		}
	}
	return nil
}

// ended watches an operation to its end.
func (l *largeRun) ended(ctx context.Context, id string) (o *pb.Operation, err error) {
	s, err := pb.NewOperationsClient(l.p.conns[len(l.p.conns)-1]).WatchOperation(ctx, &pb.WatchOperationRequest{Id: id})
	if err != nil {
		return nil, err
	}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return o, nil
		}
		if err != nil {
			return nil, err
		}
		o = r.Operation
	}
}

// countsAfter is the batch when all of it is cancelled.
func (l *largeRun) countsAfter(ctx context.Context) error {
	return l.quick(ctx, "GetBatch, all cancelled", 50*time.Millisecond, 100, func(ctx context.Context, _ int) error {
		r, err := l.p.journal.GetBatch(ctx, &pb.GetBatchRequest{BatchId: largeBatch})
		if err == nil && r.Batch.Mails != int64(l.mails) {
			err = fmt.Errorf("GetBatch tells %d mails, and %d are there", r.Batch.Mails, l.mails)
		}
		return err
	})
}

// Command load measures the built service: it starts a private database, the service as a
// process and a sink that counts exactly, drives the service over gRPC, and prints rates,
// latencies, CPU and memory side by side for chosen settings. README.md has one command for
// each scenario.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

// config is one setting: every field is a flag.
type config struct {
	database string
	mails    int
	size     int
	html     bool
	ids      bool
	conns    int
	callers  int
	channels int
	streams  int
	items    int
	snapshot int
	rtt      time.Duration
	pace     time.Duration
	access   bool
	attack   string
	archive  int
	watchers int

	binary   string
	serve    string
	env      string
	postgres string
	kernel   string

	runs    int
	compare string
	profile string
	keep    bool
	timeout time.Duration
}

// flags declares them, with the scenario's own defaults in place of the general ones.
func (c *config) flags(name string, defaults map[string]string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.StringVar(&c.database, "database", "postgres", "postgres: a private cluster; sqlite: a file in a temporary folder")
	fs.IntVar(&c.mails, "mails", 20000, "mails of a run")
	fs.IntVar(&c.size, "size", 5120, "bytes of a mail's text")
	fs.BoolVar(&c.html, "html", false, "half of the size as text, half as html")
	fs.BoolVar(&c.ids, "request-ids", false, "give every mail a request_id")
	fs.IntVar(&c.conns, "conns", 16, "the mail server's max_connections")
	fs.IntVar(&c.callers, "callers", 64, "callers of Send at once")
	fs.IntVar(&c.channels, "channels", 1, "gRPC connections that callers and streams share")
	fs.IntVar(&c.streams, "streams", 1, "SendBatch streams at once")
	fs.IntVar(&c.items, "items", 100, "items in one message of SendBatch")
	fs.IntVar(&c.snapshot, "snapshot", 0, "flat on PostgreSQL: last mails of the run with a snapshot held open")
	fs.DurationVar(&c.rtt, "rtt", 20*time.Millisecond, "far: round trip to the relay")
	fs.DurationVar(&c.pace, "pace", 10*time.Millisecond, "latency: one php-mode mail is sent every so often")
	fs.BoolVar(&c.access, "access", false, "callers are asked who they are, and send tokens")
	fs.StringVar(&c.attack, "attack", "", "abuse: only what has this in its name")
	fs.IntVar(&c.archive, "archive", 1000000, "large: archived mails that are there before, made by SQL; 20,000,000 take 20 GB")
	fs.IntVar(&c.watchers, "watchers", 1000, "large: idle watchers")
	fs.StringVar(&c.binary, "binary", "", "a maildispatchd that is built already; default: build it")
	fs.StringVar(&c.serve, "serve", "", "further flags of serve, separated by blanks")
	fs.StringVar(&c.env, "env", "", "environment of the service, such as GOGC=200, separated by blanks")
	fs.StringVar(&c.postgres, "postgres", "", "settings of PostgreSQL, such as wal_compression=lz4, separated by blanks")
	fs.StringVar(&c.kernel, "kernel", "", "kernel settings during a run, such as vm.dirty_background_bytes=4194304, separated by blanks; needs root, set back behind it")
	fs.IntVar(&c.runs, "runs", 3, "runs of each setting, each in a fresh database")
	fs.StringVar(&c.compare, "compare", "", "settings side by side: flag=value,flag=value; several flags of one setting are joined by +")
	fs.StringVar(&c.profile, "profile", "", "folder for CPU profiles and the database's statements")
	fs.BoolVar(&c.keep, "keep", false, "keep the temporary folder: log of the service, SQLite file")
	fs.DurationVar(&c.timeout, "timeout", 10*time.Minute, "longest time of a run")
	for name, v := range defaults {
		if err := fs.Set(name, v); err != nil {
			panic(err) // a fault of the table of scenarios
		}
		fs.Lookup(name).DefValue = v
	}
	return fs
}

// setting is one column of the table.
type setting struct {
	name string
	config
}

// settings reads the command line: one setting, or one for each part of -compare.
func settings(sc *scenario, args []string) ([]setting, error) {
	var base config
	fs := base.flags(sc.name, sc.defaults)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%q is not a flag", fs.Arg(0))
	}
	compare := base.compare
	if compare == "" && sc.compare != "" {
		compare = sc.compare
	}
	if compare == "" {
		return []setting{{"", base}}, base.check()
	}
	var all []setting
	for part := range strings.SplitSeq(compare, ",") {
		s := setting{name: part}
		fs := s.flags(sc.name, sc.defaults)
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		for kv := range strings.SplitSeq(part, "+") {
			k, v, ok := strings.Cut(kv, "=")
			if !ok {
				return nil, fmt.Errorf("compare: %q is not flag=value", kv)
			}
			if err := fs.Set(strings.TrimSpace(k), v); err != nil {
				return nil, fmt.Errorf("compare: %s: %w", kv, err)
			}
		}
		if err := s.check(); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func (c *config) check() error {
	if c.database != "postgres" && c.database != "sqlite" {
		return fmt.Errorf("database: %q is neither postgres nor sqlite", c.database)
	}
	for name, n := range map[string]int{"mails": c.mails, "size": c.size, "conns": c.conns, "callers": c.callers, "channels": c.channels,
		"streams": c.streams, "items": c.items, "runs": c.runs} {
		if n < 1 {
			return fmt.Errorf("%s: at least 1", name)
		}
	}
	return nil
}

// Exit codes: 0 done, 1 a run failed or a mail did not arrive exactly once, 2 the command line
// is wrong.
func main() {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		help(os.Stderr)
		os.Exit(2)
	}
	sc := scenarios[os.Args[1]]
	if sc == nil {
		fmt.Fprintf(os.Stderr, "load: %q is not a scenario\n", os.Args[1])
		help(os.Stderr)
		os.Exit(2)
	}
	all, err := settings(sc, os.Args[2:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	debug.SetGCPercent(400) // this process is not what is measured
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err = measure(ctx, sc, all, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func help(w io.Writer) {
	fmt.Fprintln(w, "go run ./server/e2e/load SCENARIO [flags]; `go run ./server/e2e/load SCENARIO -h` lists the flags. Scenarios:")
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		fmt.Fprintf(w, "  %-8s %s\n", name, scenarios[name].short)
	}
}

// measure makes all runs and prints the table. The runs of the settings take turns, so that a
// change of the machine's mood meets all of them.
func measure(ctx context.Context, sc *scenario, all []setting, w io.Writer) error {
	l, err := openLab(all[0].keep)
	if err != nil {
		return err
	}
	defer l.close()
	t := &table{title: sc.name + ": " + sc.short, settings: all, runs: make([][]*figures, len(all))}
	for n := range all[0].runs {
		for i := range all {
			f, err := l.run(ctx, sc, &all[i], n)
			if err != nil {
				return fmt.Errorf("run %d %s: %w", n+1, all[i].name, err)
			}
			t.runs[i] = append(t.runs[i], f)
			fmt.Fprintf(os.Stderr, "run %d of %d %s: %s\n", n+1, all[i].runs, all[i].name, f.line())
		}
	}
	if err := t.print(w); err != nil {
		return err
	}
	if l.kept != "" {
		fmt.Fprintln(w, "kept:", l.kept)
	}
	return t.fault()
}

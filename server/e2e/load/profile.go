package main

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// profiling begins to collect profiles if they are asked for; the returned func ends it and
// notes the summaries.
func (b *bench) profiling(name string, n int) (func() error, error) {
	if b.profile == "" {
		return nil, nil
	}
	if b.binary != "" {
		return nil, errors.New("profile: needs a service that this program builds")
	}
	dir := filepath.Join(b.profile, strings.Trim(fmt.Sprintf("%s-%d", unsafeInName.ReplaceAllString(name, "_"), n+1), "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	own, err := startOwnProfile(filepath.Join(dir, "load.pprof"))
	if err != nil {
		return nil, err
	}
	return func() error {
		if err := own(); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(b.dir, "service-*.pprof"))
		if err != nil {
			return err
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), data, 0o644); err != nil {
				return err
			}
		}
		for _, f := range append(files, filepath.Join(dir, "load.pprof")) {
			s, err := byPackage(f)
			if err != nil {
				return err
			}
			b.notes = append(b.notes, "CPU by package, "+strings.TrimSuffix(filepath.Base(f), ".pprof")+"\n"+s)
		}
		if b.database != "postgres" {
			return nil
		}
		var procs strings.Builder
		for _, t := range slices.Sorted(maps.Keys(b.procs)) {
			fmt.Fprintf(&procs, "%8.2fs %s\n", b.procs[t].Seconds(), t)
		}
		s, err := b.statements()
		if err != nil {
			return err
		}
		b.notes = append(b.notes, "CPU of PostgreSQL's processes\n"+procs.String(), "Time in the database by statement\n"+s)
		return os.WriteFile(filepath.Join(dir, "statements.txt"), []byte(s), 0o644)
	}, nil
}

var unsafeInName = regexp.MustCompile(`[^A-Za-z0-9_.=+-]+`)

// topLine is a function in the output of `go tool pprof -top`: flat, its share, sum, cum, its
// share, name.
var topLine = regexp.MustCompile(`^\s*([0-9.]+)(ms|s|min)\s+[0-9.]+%\s+[0-9.]+%\s+\S+\s+[0-9.]+%\s+(.+)$`)

// packages shown.
const packagesShown = 25

// byPackage adds the time spent in each package's own functions up.
func byPackage(file string) (string, error) {
	out, err := exec.Command("go", "tool", "pprof", "-top", "-nodecount=100000", "-nodefraction=0", "-unit=ms", file).Output()
	if err != nil {
		return "", fmt.Errorf("pprof %s: %w", file, err)
	}
	sum := map[string]float64{}
	var total float64
	for l := range strings.SplitSeq(string(out), "\n") {
		m := topLine.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return "", err
		}
		sum[packageOf(m[3])] += v
		total += v
	}
	names := make([]string, 0, len(sum))
	for n := range sum {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int { return int(sum[b] - sum[a]) })
	var s strings.Builder
	for _, n := range names[:min(len(names), packagesShown)] {
		fmt.Fprintf(&s, "%8.2fs %5.1f%% %s\n", sum[n]/1000, 100*sum[n]/total, n)
	}
	return s.String(), nil
}

// packageOf cuts a function's name behind its package: up to the first dot after the last
// slash, but for slashes in type parameters.
func packageOf(function string) string {
	end := strings.IndexAny(function, "[(")
	if end < 0 {
		end = len(function)
	}
	slash := strings.LastIndexByte(function[:end], '/') + 1
	name, _, _ := strings.Cut(function[slash:], ".")
	return function[:slash] + name
}

// statements are those that the database spent most time in; the time is that of execution,
// without planning and commit.
func (b *bench) statements() (string, error) {
	db, err := sql.Open("postgres", b.lab.cluster.DSN()) // where the extension is
	if err != nil {
		return "", err
	}
	defer db.Close()
	rows, err := db.Query(`select s.calls, s.total_exec_time, s.rows, s.wal_bytes, s.shared_blks_hit, regexp_replace(left(s.query, 150), '\s+', ' ', 'g')
		from pg_stat_statements s join pg_database d on d.oid = s.dbid and d.datname like 'load%' order by s.total_exec_time desc limit 15`)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var out bytes.Buffer
	tw := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "seconds\tcalls\tms/call\trows\tWAL MB\tblocks\tstatement")
	for rows.Next() {
		var calls, n, wal, hit int64
		var took float64
		var query string
		if err := rows.Scan(&calls, &took, &n, &wal, &hit, &query); err != nil {
			return "", err
		}
		fmt.Fprintf(tw, "%.2f\t%d\t%.2f\t%d\t%.1f\t%d\t%.100s\n", took/1000, calls, took/float64(calls), n, float64(wal)/1e6, hit, query)
	}
	if err := errors.Join(rows.Err(), tw.Flush()); err != nil {
		return "", err
	}
	return out.String(), nil
}

// startOwnProfile profiles this process, callers and sink.
func startOwnProfile(path string) (func() error, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() error { pprof.StopCPUProfile(); return f.Close() }, nil
}

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// figures are what one run measured, in the order in which they are shown.
type figures struct {
	list  []figure
	wrong []string // mails that did not arrive exactly once
	broke []string // what else was not as it must be
	notes []string // shown below the table, of the last run
}

type figure struct {
	name, format, aim string
	value             float64
}

// add notes one figure; format is that of its value, aim what it should be, "" = nothing in
// particular.
func (f *figures) add(name, format, aim string, v float64) {
	f.list = append(f.list, figure{name, format, aim, v})
}

// rate notes mails per second.
func (f *figures) rate(name, aim string, mails int, took time.Duration) {
	f.add(name+" mails/s", "%.0f", aim, float64(mails)/took.Seconds())
}

// latencies notes the median and the 99th percentile in milliseconds, and returns them.
func (f *figures) latencies(name string, ls []time.Duration) (p50, p99 float64) {
	slices.Sort(ls)
	p50, p99 = ms(percentile(ls, 50)), ms(percentile(ls, 99))
	f.add(name+" p50 ms", "%.2f", "", p50)
	f.add(name+" p99 ms", "%.2f", "", p99)
	return p50, p99
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// percentile of a sorted list: the smallest value that p percent of all do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

// line is the run in short.
func (f *figures) line() string {
	var parts []string
	for _, x := range f.list {
		if strings.HasSuffix(x.name, "mails/s") || strings.Contains(x.name, "p99") {
			parts = append(parts, fmt.Sprintf("%s "+x.format, x.name, x.value))
		}
	}
	return strings.Join(slices.Concat(parts, f.wrong, f.broke), ", ")
}

// table shows settings side by side: the median of the runs, and the lowest and the highest.
type table struct {
	title    string
	settings []setting
	runs     [][]*figures // by setting
}

func (t *table) print(w io.Writer) error {
	c := t.settings[0].config
	fmt.Fprintf(w, "\n%s\n%s, %d mails of %d bytes unless said otherwise; median (lowest-highest) of %d runs; CPU in seconds per 1,000 mails\n\n", t.title, c.database, c.mails, c.size, c.runs)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\taim")
	for _, s := range t.settings {
		fmt.Fprintf(tw, "\t%s", s.name)
	}
	fmt.Fprintln(tw)
	for _, name := range t.names() {
		var cells []string
		aim := ""
		for _, runs := range t.runs {
			cell := "-"
			if vs, f := values(runs, name); len(vs) > 0 {
				cell, aim = spread(vs, f.format), f.aim
			}
			cells = append(cells, cell)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", name, aim, strings.Join(cells, "\t"))
	}
	fmt.Fprint(tw, "exactly once\t")
	for _, runs := range t.runs {
		word := "yes"
		for _, f := range runs {
			if len(f.wrong) > 0 {
				word = "NO"
			}
		}
		fmt.Fprintf(tw, "\t%s", word)
	}
	fmt.Fprintln(tw)
	if err := tw.Flush(); err != nil {
		return err
	}
	for i, runs := range t.runs {
		for _, n := range runs[len(runs)-1].notes {
			fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(t.settings[i].name+"\n"+n))
		}
	}
	return nil
}

// names are those of all figures, each where it first appears.
func (t *table) names() []string {
	var names []string
	for _, runs := range t.runs {
		for _, f := range runs {
			for _, x := range f.list {
				if !slices.Contains(names, x.name) {
					names = append(names, x.name)
				}
			}
		}
	}
	return names
}

func values(runs []*figures, name string) ([]float64, figure) {
	var vs []float64
	var last figure
	for _, f := range runs {
		for _, x := range f.list {
			if x.name == name {
				vs, last = append(vs, x.value), x
			}
		}
	}
	return vs, last
}

// spread is the median, and the ends where there is more than one.
func spread(vs []float64, format string) string {
	vs = slices.Sorted(slices.Values(vs))
	mid := vs[len(vs)/2]
	if len(vs)%2 == 0 {
		mid = (vs[len(vs)/2-1] + vs[len(vs)/2]) / 2
	}
	if len(vs) == 1 {
		return fmt.Sprintf(format, mid)
	}
	return fmt.Sprintf(format+" ("+format+"-"+format+")", mid, vs[0], vs[len(vs)-1])
}

// fault says what was not as it must be, in any run.
func (t *table) fault() error {
	var errs []error
	for i, runs := range t.runs {
		for n, f := range runs {
			for _, s := range slices.Concat(f.wrong, f.broke) {
				errs = append(errs, fmt.Errorf("run %d %s: %s", n+1, t.settings[i].name, s))
			}
		}
	}
	return errors.Join(errs...)
}

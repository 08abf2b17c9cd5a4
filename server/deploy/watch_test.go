// Package deploy_test holds the files of this folder against the service that they are for.
package deploy_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	_ "github.com/maildispatch/maildispatch/proto/maildispatch/v1" // registers the services
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// metric is a row of METRICS.md, which a test of package observe compares with the code.
type metric struct {
	kind   string
	labels []string
}

var (
	metricRow  = regexp.MustCompile("(?m)^\\| `(maildispatch_\\w+)` \\| (\\w+) \\| ([^|]+) \\|")
	quotedWord = regexp.MustCompile("`(\\w+)`")
	selector   = regexp.MustCompile(`(maildispatch_\w+)(?:\{([^}]*)\})?`)
	matcher    = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	grouping   = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([^)]*)\)`)
	labelValue = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}`)
	// aggregation begins a query, with what it groups by.
	aggregation = regexp.MustCompile(`^(?:sum|min|max|count)\s*(?:by\s*\(([^)]*)\)\s*)?\(`)
)

// givenByPrometheus are the labels that a scrape adds.
var givenByPrometheus = []string{"instance", "job"}

func metrics(t *testing.T) map[string]metric {
	t.Helper()
	all := map[string]metric{}
	for _, m := range metricRow.FindAllStringSubmatch(read(t, "../METRICS.md"), -1) {
		var labels []string
		for _, l := range quotedWord.FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		all[m[1]] = metric{m[2], labels}
	}
	if len(all) < 20 {
		t.Fatalf("got %d metrics from METRICS.md, want the table", len(all))
	}
	return all
}

// faults are the names in a query that no metric has.
func faults(known map[string]metric, query string) []string {
	var bad, labels []string
	found := false
	for _, m := range selector.FindAllStringSubmatch(query, -1) {
		found = true
		name := m[1]
		have, ok := known[name]
		if !ok {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				if base, cut := strings.CutSuffix(name, part); cut && known[base].kind == "histogram" {
					have, ok = known[base], true
					if part == "_bucket" {
						have.labels = append(slices.Clone(have.labels), "le")
					}
				}
			}
		}
		if !ok {
			bad = append(bad, "metric "+name)
		} else if have.kind == "histogram" && known[name].kind == "histogram" {
			bad = append(bad, "histogram "+name+" without _bucket, _sum or _count")
		}
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(have.labels, l[1]) && !slices.Contains(givenByPrometheus, l[1]) {
				bad = append(bad, "label "+l[1]+" of "+name)
			}
		}
		labels = append(labels, have.labels...)
	}
	if !found {
		bad = append(bad, "no metric of ours")
	}
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for l := range strings.SplitSeq(g[1], ",") {
			if l = strings.TrimSpace(l); l != "" && !slices.Contains(labels, l) && !slices.Contains(givenByPrometheus, l) {
				bad = append(bad, "label "+l)
			}
		}
	}
	return bad
}

// TestFaults: a query's wrong names are found, and right ones are not.
func TestFaults(t *testing.T) {
	known := map[string]metric{
		"maildispatch_a_total":   {"counter", []string{"x"}},
		"maildispatch_h_seconds": {"histogram", []string{"line"}},
	}
	for query, want := range map[string]int{
		`sum by (x, instance) (rate(maildispatch_a_total{x="1"}[5m]))`: 0,
		`sum by (le, line) (rate(maildispatch_h_seconds_bucket[5m]))`:  0,
		`maildispatch_b_total`:                     1,
		`maildispatch_a_total{y=~"1"}`:             1,
		`sum by (y) (maildispatch_a_total)`:        1,
		`sum by (le) (maildispatch_h_seconds_sum)`: 1,
		`maildispatch_a_total_bucket`:              1,
		`maildispatch_h_seconds`:                   1,
		`up == 0`:                                  1,
	} {
		if got := faults(known, query); len(got) != want {
			t.Errorf("%s: got %q, want %d", query, got, want)
		}
	}
}

// rule is an alert: its keys, those below labels and annotations too, by name.
type rule map[string]string

// rules reads alerts.yml. Every key of a rule has a line of its own.
func rules(t *testing.T) []rule {
	t.Helper()
	var all []rule
	for line := range strings.Lines(read(t, "prometheus/alerts.yml")) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if strings.HasPrefix(value, "'") {
			value = strings.ReplaceAll(strings.Trim(value, "'"), "''", "'")
		}
		if name, starts := strings.CutPrefix(key, "- "); starts && name == "alert" {
			all = append(all, rule{})
			key = name
		}
		if len(all) > 0 {
			all[len(all)-1][key] = value
		}
	}
	if len(all) < 10 {
		t.Fatalf("got %d alerts, want those of alerts.yml", len(all))
	}
	return all
}

// TestAlerts: each alert asks for what there is, says how bad it is, has a section that says
// what to do, and a test that makes its cause.
func TestAlerts(t *testing.T) {
	known := metrics(t)
	guide := read(t, "../OPERATING.md")
	causes := read(t, "prometheus/alerts_test.yml")
	sections := regexp.MustCompile(`(?m)^### (Maildispatch\w+)$`).FindAllStringSubmatch(guide, -1)
	var names []string
	for _, r := range rules(t) {
		name := r["alert"]
		names = append(names, name)
		for _, bad := range faults(known, r["expr"]) {
			t.Errorf("%s: %s asks for an unknown %s", name, r["expr"], bad)
		}
		for _, l := range labelValue.FindAllStringSubmatch(r["summary"], -1) {
			// An aggregation leaves what it groups by; else the metric's labels stay.
			have := slices.Concat(known[selector.FindStringSubmatch(r["expr"])[1]].labels, givenByPrometheus)
			if by := aggregation.FindStringSubmatch(r["expr"]); by != nil {
				have = strings.Split(by[1], ", ")
			}
			if !slices.Contains(have, l[1]) {
				t.Errorf("%s: the summary names the label %s, of which the query leaves %q", name, l[1], have)
			}
		}
		if !regexp.MustCompile(`^\d+[mh]$`).MatchString(r["for"]) || r["severity"] != "critical" && r["severity"] != "warning" || r["summary"] == "" {
			t.Errorf("%s: got for %q, severity %q, summary %q", name, r["for"], r["severity"], r["summary"])
		}
		if want := "server/OPERATING.md#" + strings.ToLower(name); r["runbook"] != want {
			t.Errorf("%s: got runbook %q, want %q", name, r["runbook"], want)
		}
		if !strings.Contains(causes, `{alertname="`+name+`"}`) {
			t.Errorf("%s: alerts_test.yml does not make its cause", name)
		}
	}
	for _, s := range sections {
		if !slices.Contains(names, s[1]) {
			t.Errorf("OPERATING.md has a section %s, and there is no such alert", s[1])
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == s[1] })
	}
	if len(names) > 0 {
		t.Errorf("OPERATING.md has no section for %q", names)
	}
}

// TestDashboard: each panel asks for what there is, and names its series by labels of it.
func TestDashboard(t *testing.T) {
	known := metrics(t)
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "grafana/maildispatch.json")), &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Panels) < 10 {
		t.Fatalf("got %d panels", len(d.Panels))
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("%s: its id %d is taken, or it asks for nothing", p.Title, p.ID)
		}
		ids[p.ID] = true
		for _, q := range p.Targets {
			for _, bad := range faults(known, q.Expr) {
				t.Errorf("%s: %s asks for an unknown %s", p.Title, q.Expr, bad)
			}
			for _, l := range labelValue.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !regexp.MustCompile(`\b` + l[1] + `\b`).MatchString(q.Expr) {
					t.Errorf("%s: the legend %s names what %s does not", p.Title, q.LegendFormat, q.Expr)
				}
			}
		}
	}
}

var grpcurlLine = regexp.MustCompile(`(?m)^grpcurl .*?(?:-d '([^']*)' )?\S+:50051 (\S+)/(\S+)$`)

// TestGuideCalls: every call of the guide exists and takes what is given.
func TestGuideCalls(t *testing.T) {
	guide := read(t, "../OPERATING.md")
	calls := grpcurlLine.FindAllStringSubmatch(guide, -1)
	if want := strings.Count(guide, "\ngrpcurl "); len(calls) != want || want == 0 {
		t.Fatalf("read %d of %d calls", len(calls), want)
	}
	for _, c := range calls {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(c[2]))
		if err != nil {
			t.Errorf("%s: %v", c[0], err)
			continue
		}
		m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(c[3]))
		if m == nil {
			t.Errorf("%s: no such rpc", c[0])
			continue
		}
		if c[1] != "" {
			if err := protojson.Unmarshal([]byte(c[1]), dynamicpb.NewMessage(m.Input())); err != nil {
				t.Errorf("%s: %v", c[0], err)
			}
		}
	}
}

package server

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/maildispatch/maildispatch/"

// importRule is one row of the table of who may import whom.
type importRule struct {
	pkg string // a package; "store/..." is the folder and everything below it
	// what it may import of ours; a package whose name ends in "test" has to be named in full
	may []string
	// what its tests may import as well; every test may import the package that it tests
	tests []string
	why   string
}

// importRules has a row for every package. The most specific row counts.
var importRules = []importRule{
	{pkg: "proto/...", may: []string{"proto/..."}, why: "the schema knows nobody"},
	{pkg: "proto/plain", may: []string{"proto/maildispatch/v1"}, why: "the schema as people read it; the command line and the web page share it"},
	{pkg: "store/...", may: []string{"store/..."}, tests: []string{"store/storetest", "store/storetest/memory"}, why: "a database knows neither SMTP nor gRPC"},
	{pkg: "smtpx", may: []string{"smtpx/internal/..."}, tests: []string{"smtpx/message", "smtpx/smtpxtest"}, why: "an SMTP client, of use without the rest; what it sends is bytes"},
	{pkg: "smtpx/message/dkim", why: "signs bytes; knows neither how they were composed nor where keys are kept"},
	{pkg: "smtpx/message", may: []string{"smtpx/internal/..."}, tests: []string{"smtpx/message/dkim"}, why: "makes bytes of a message; knows no connection"},
	{pkg: "smtpx/internal/idn", why: "names of hosts and domains; nothing of ours"},
	{pkg: "client/...", may: []string{"client/...", "proto/..."}, tests: []string{"client/clienttest"}, why: "what callers' programs link"},

	{pkg: "client/cmd/maildispatch", may: []string{"client", "proto/..."}, tests: []string{"client/clienttest", "server", "smtpx/smtpxtest"},
		why: "a caller like any other; its tests run the real service"},

	{pkg: "server/internal/apierr", may: []string{"proto/..."}, why: "errors as callers hear them"},
	{pkg: "server/internal/access", may: []string{"proto/...", "server/internal/apierr", "store"}, tests: []string{"store/storetest", "store/storetest/memory"},
		why: "who a caller is and what that one may do; knows no mail"},
	{pkg: "server/internal/workload", may: []string{"proto/...", "server/internal/apierr"}, why: "whose token it is; knows no role; nobody else knows OpenID Connect"},
	{pkg: "server/internal/budget", may: []string{"proto/...", "server/internal/apierr"}, why: "memory of calls"},
	{pkg: "server/internal/quota", may: []string{"proto/...", "server/internal/apierr", "server/internal/delivery", "store"}, tests: []string{"store/storetest"},
		why: "counts what is taken; callers are names to it"},
	{pkg: "server/internal/interceptor", may: []string{"proto/...", "server/internal/access", "server/internal/apierr", "server/internal/budget"}, why: "what every call passes, in its order"},
	{pkg: "server/internal/logwriter", why: "the log's lines in groups"},
	{pkg: "server/internal/observe", may: []string{"server/internal/lifecycle", "smtpx", "store"}, why: "metrics and traces; nobody else knows Prometheus and OpenTelemetry"},
	{pkg: "server/internal/retention", may: []string{"store"}, tests: []string{"store/storetest"}, why: "when what is removed; the store knows how"},
	{pkg: "server/internal/seal", why: "cryptography and nothing else"},
	{pkg: "server/internal/catchall", why: "a relay for the demo; it shares nothing with the client it receives from"},
	{pkg: "server/internal/delivery", may: []string{"store"}, why: "the words that api and engine share; no behaviour"},
	{pkg: "server/internal/oauth", may: []string{"smtpx"}, why: "asks a provider for tokens; knows no mail server and no store"},
	{pkg: "server/internal/outbound", may: []string{"server/internal/oauth", "server/internal/seal", "smtpx/...", "store"}, why: "a saved mail server as something to dial"},
	{pkg: "server/internal/lifecycle", may: []string{"smtpx/...", "store"}, why: "pure functions over what is stored and what a relay said"},
	{pkg: "server/internal/relay", may: []string{"smtpx/...", "store"},
		tests: []string{"smtpx/smtpxtest", "store/storetest"}, why: "connections of one mail server; no engine"},
	{pkg: "server/internal/fairmemory", why: "who gets how much; knows no mail"},
	{pkg: "server/internal/ledger", may: []string{"store"}, why: "what this process has until its result is durable"},
	{pkg: "server/internal/fairqueue", why: "who is next, and when to fetch more; knows no mail"},
	{pkg: "server/internal/lease", may: []string{"store"}, why: "one row of this process, renewed; knows no mail"},
	{pkg: "server/internal/brake", may: []string{"server/internal/lease", "store"}, why: "whether mail may leave by a way just now; knows no mail"},
	{pkg: "server/internal/live", may: []string{"server/internal/delivery", "server/internal/lifecycle", "store"},
		why: "what the callers of a send hear; knows neither who delivers nor how"},
	{pkg: "server/internal/engine",
		may: []string{"server/internal/brake", "server/internal/delivery", "server/internal/fairmemory", "server/internal/fairqueue", "server/internal/lease", "server/internal/ledger",
			"server/internal/lifecycle", "server/internal/live", "server/internal/relay", "smtpx/...", "store"},
		tests: []string{"smtpx/smtpxtest", "store/storetest", "store/storetest/memory"}, why: "knows neither gRPC nor SQL; the api reaches it through an interface of its own"},
	{pkg: "server/internal/api",
		may: []string{"proto/...", "server/internal/access", "server/internal/apierr", "server/internal/budget", "server/internal/delivery", "server/internal/lifecycle",
			"server/internal/oauth", "server/internal/outbound", "server/internal/quota", "smtpx/...", "store"},
		tests: []string{"client/clienttest", "server/internal/engine", "server/internal/interceptor", "server/internal/seal", "smtpx/smtpxtest", "store/storetest"},
		why:   "check, convert, answer; neither engine nor connections"},

	{pkg: "server/internal/web", may: []string{"proto/..."}, tests: []string{"server", "smtpx/smtpxtest"},
		why: "a caller like any other, by connections inside the process; its tests run the real service"},

	{pkg: "server", may: []string{"proto/...", "server/internal/...", "smtpx/...", "store"}, tests: []string{"smtpx/smtpxtest"}, why: "wires the parts together"},
	{pkg: "server/cmd/...", may: []string{"proto/...", "server", "server/internal/...", "smtpx/...", "store"}, why: "one file a command"},
	{pkg: "server/e2e/...",
		may: []string{"client", "client/clienttest", "proto/...", "smtpx/...", "smtpx/smtpxtest", "store", "store/storetest"},
		why: "looks at the built binary from outside"},
	{pkg: "server/e2e/simulation",
		may: []string{"server/internal/delivery", "server/internal/engine", "server/internal/lifecycle", "smtpx", "store", "store/storetest/memory"},
		why: "runs the engine itself, over a store and a network of its own"},
	{pkg: "server/deploy", tests: []string{"proto/...", "server"}, why: "files for those who run it; its tests compare them with the service"},
	// Helpers of tests are code of their own. They lie beside what they help to test.
	{pkg: "store/storetest", may: []string{"store", "store/storetest/memory"}, why: "gives any test a database"},
	{pkg: "store/storetest/memory", may: []string{"store"}, why: "a store for simulations; no service runs on it"},
	{pkg: "smtpx/smtpxtest", why: "a scripted relay has to disagree with smtpx when smtpx is wrong"},
	{pkg: "client/clienttest", may: []string{"client", "proto/..."}, why: "stands in for the service in callers' tests"},
}

// foreignRules are the modules of others that one package alone may import, tests apart.
var foreignRules = []struct{ prefix, only string }{
	{"github.com/prometheus/", "server/internal/observe"},
	{"go.opentelemetry.io/", "server/internal/observe"},
}

// covers says whether a pattern of the table names pkg, and how closely.
func covers(pattern, pkg string) (length int, ok bool) {
	if dir, found := strings.CutSuffix(pattern, "/..."); found {
		return len(dir), pkg == dir || strings.HasPrefix(pkg, dir+"/")
	}
	return len(pattern) + 1, pkg == pattern
}

// ruleFor is the most specific row, nil when there is none.
func ruleFor(pkg string) *importRule {
	var best *importRule
	longest := -1
	for i := range importRules {
		if n, ok := covers(importRules[i].pkg, pkg); ok && n > longest {
			best, longest = &importRules[i], n
		}
	}
	return best
}

// allowed says whether one of the patterns admits the import.
func allowed(patterns []string, imp string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		_, ok := covers(p, imp)
		return ok && (p == imp || !strings.HasSuffix(imp, "test"))
	})
}

// TestImports holds every import of ours against the table, those of tests too, under every
// build tag.
func TestImports(t *testing.T) {
	const format = `{{.ImportPath}}|{{join .Imports " "}}|{{join .TestImports " "}} {{join .XTestImports " "}}`
	out, err := exec.Command("go", "list", "-tags", "root relays profile browser", "-f", format, "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		pkg := strings.TrimPrefix(f[0], module)
		rule := ruleFor(pkg)
		if rule == nil {
			t.Errorf("%s has no row in importRules: say what it may import, and why", pkg)
			continue
		}
		for i, imports := range f[1:] {
			may, who := rule.may, pkg
			if i == 1 {
				may, who = slices.Concat(rule.may, rule.tests, []string{pkg}), "a test of "+pkg
			}
			for _, imp := range strings.Fields(imports) {
				for _, r := range foreignRules {
					if strings.HasPrefix(imp, r.prefix) && i == 0 && pkg != r.only {
						t.Errorf("%s must not import %s: only %s does", who, imp, r.only)
					}
				}
				imp, ours := strings.CutPrefix(imp, module)
				if !ours {
					continue
				}
				seen++
				if !allowed(may, imp) {
					t.Errorf("%s must not import %s (%s)", who, imp, rule.why)
				}
			}
		}
	}
	if seen < 50 {
		t.Fatalf("got %d imports of ours, want at least 50: the walk is broken", seen)
	}
}

// TestImportRules: the table forbids what it is there to forbid.
func TestImportRules(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"server/internal/api", "server/internal/engine", false},
		{"server/internal/api", "server/internal/relay", false},
		{"server/internal/engine", "server/internal/api", false},
		{"server/internal/engine", "server/internal/relay", true},
		{"server/internal/engine", "proto/maildispatch/v1", false},
		{"server/internal/relay", "server/internal/engine", false},
		{"server/internal/lifecycle", "server/internal/delivery", false},
		{"server/internal/lifecycle", "store", true},
		{"store", "smtpx", false},
		{"store", "store/storetest", false},
		{"store/storetest", "store", true},
		{"smtpx/message", "smtpx", false},
		{"client", "store", false},
		{"client", "proto/maildispatch/v1", true},
		{"proto", "store", false},
		{"server/cmd/maildispatchd", "server/internal/seal", true},
	} {
		if got := allowed(ruleFor(c.from).may, c.to); got != c.want {
			t.Errorf("%s imports %s: got allowed=%v, want %v", c.from, c.to, got, c.want)
		}
	}
}

// TestTopLevel: no folder at the top but the house's own.
func TestTopLevel(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "ls-files").Output()
	if err != nil {
		t.Fatal(err)
	}
	for f := range strings.Lines(string(out)) {
		dir, _, ok := strings.Cut(strings.TrimSpace(f), "/")
		if ok && !slices.Contains([]string{"proto", "server", "client", "store", "smtpx", ".ci"}, dir) {
			t.Errorf("%s: folder %s is not one of the top level", f, dir)
		}
	}
}

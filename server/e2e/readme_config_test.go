package e2e

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// option is a flag as somebody shows it.
type option struct {
	value string // its default; true and false for switches
	prose bool   // the default is told in words
}

// helpOptions reads what `serve --help` lists.
func helpOptions(t *testing.T) map[string]option {
	t.Helper()
	r := run(t, nil, "serve", "--help")
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("serve --help: %+v", r)
	}
	out := map[string]option{}
	for _, m := range regexp.MustCompile(`(?m)^  -([a-z-]+)( \w+)?\n    \t(.*)$`).FindAllStringSubmatch(r.stdout, -1) {
		name, kind, usage := m[1], m[2], m[3]
		o := option{prose: strings.Contains(usage, "default: ")}
		if d := regexp.MustCompile(`\(default "?([^")]*)"?\)$`).FindStringSubmatch(usage); d != nil {
			o.value = d[1]
		} else if kind == "" {
			o.value = "false"
		}
		out[name] = o
	}
	if n := strings.Count(r.stdout, "\n  -"); len(out) != n {
		t.Fatalf("%d of %d flags can be read:\n%s", len(out), n, r.stdout)
	}
	return out
}

// readmeOptions reads the table of CONFIGURATION.md. A row may hold several flags, with one
// default each or one for all.
func readmeOptions(t *testing.T) map[string]option {
	t.Helper()
	_, section, ok := strings.Cut(document(t, configuration), "\n## Flags\n")
	if !ok {
		t.Fatal("CONFIGURATION.md has no section Flags")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	out := map[string]option{}
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| `--") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		if len(cells) != 3 {
			t.Fatalf("not three cells: %s", line)
		}
		flags := strings.Fields(strings.Trim(cells[0], " `"))
		defaults := strings.Split(strings.TrimSpace(cells[1]), ", ")
		for i, f := range flags {
			d := defaults[0]
			if len(defaults) == len(flags) {
				d = defaults[i]
			}
			var o option
			switch {
			case d == "off":
				o.value = "false"
			case d == "on":
				o.value = "true"
			case strings.HasPrefix(d, "`"):
				o.value = strings.Trim(d, "`")
			case d == "none" || d == "":
			default:
				o.prose = true
			}
			name := strings.TrimPrefix(f, "--")
			if _, twice := out[name]; twice {
				t.Errorf("--%s is in the table twice", name)
			}
			out[name] = o
		}
	}
	return out
}

// TestREADMEConfiguration: the table has the flags that serve has, with the same defaults.
func TestREADMEConfiguration(t *testing.T) {
	help, table := helpOptions(t), readmeOptions(t)
	if h, r := slices.Sorted(maps.Keys(help)), slices.Sorted(maps.Keys(table)); !slices.Equal(h, r) {
		t.Fatalf("serve --help has %q,\nthe table           %q", h, r)
	}
	for name, h := range help {
		r := table[name]
		if d, err := time.ParseDuration(h.value); err == nil {
			if rd, err := time.ParseDuration(r.value); err != nil || rd != d {
				t.Errorf("--%s: the table says %q, the flag %q", name, r.value, h.value)
			}
			continue
		}
		if name == "print-config" && r.value == "" { // ends the process: its cell is empty
			r.value = "false"
		}
		if r != h {
			t.Errorf("--%s: the table says %+v, the flag %+v", name, r, h)
		}
	}
}

// TestEnvironmentTwins: each flag can be given by its environment variable, and a flag wins
// over it.
func TestEnvironmentTwins(t *testing.T) {
	cert, key := certificateFiles(t)
	// Two values a flag, neither of them its default.
	values := map[string][2]string{
		"admin-listen": {"127.0.0.2:1235", "127.0.0.3:1235"},
		"listen":       {"127.0.0.2:1234", "127.0.0.3:1234"}, "database": {"sqlite:a.db", "sqlite:b.db"}, "batch-interval": {"2m0s", "3m0s"}, "key-file": {"a.key", "b.key"},
		"localhost-smtp": {"127.0.0.1:26", "127.0.0.1:27"}, "smtp-destinations": {"public:25", "private:25"}, "token-destinations": {"public:443", "public:8443"}, "helo-name": {"a.example", "b.example"},
		"tls-cert": {cert, cert + ".2"}, "tls-key": {key, key + ".2"}, "client-ca": {cert, cert + ".2"}, "client-names": {"a.names", "b.names"}, "auth": {"required", "none"}, "admin-socket": {"a.sock", "b.sock"}, "insecure": {"true", "false"}, "reflection": {"false", "true"},
		"shutdown-grace": {"5s", "6s"}, "log-format": {"json", "text"}, "log-level": {"debug", "warn"}, "print-config": {"true", "true"}, "health-listen": {"127.0.0.2:8080", "127.0.0.3:8080"}, "drain-delay": {"1s", "2s"}, "keep": {"bulk:90d/7d/0", "all:5y"}, "metrics-listen": {"127.0.0.2:9090", "127.0.0.3:9090"}, "trace-endpoint": {"http://127.0.0.2:4317", "https://otel.example:4317"}, "trace-sample": {"0.5", "0"}, "web-listen": {"127.0.0.2:8081", "127.0.0.3:8081"},
		"lost-secrets": {"true", "false"}, "allow-unsafe-database": {"true", "false"}, "database-mail-connections": {"13", "14"}, "database-work-connections": {"5", "6"},
		"database-read-connections": {"9", "10"}, "caller-mails-per-minute": {"1", "2"}, "caller-recipients-per-minute": {"1", "2"},
		"team-mails-per-minute": {"1", "2"}, "team-recipients-per-minute": {"1", "2"}, "queue-depth": {"1", "2"}, "disk-floor-mib": {"1", "2"}, "guard-address-per-hour": {"1", "2"},
		"guard-caller-per-hour": {"1", "2"}, "guard-team-per-hour": {"1", "2"}, "guard-kind-per-hour": {"bulk=1", "invoice=2,bulk=3"}, "guard-batch": {"1", "2"}, "calls-per-second": {"1", "2"}, "oidc-issuer": {"https://a.example", "https://b.example"}, "oidc-audience": {"a", "b"}, "oidc-keys": {"https://a.example/jwks", "https://b.example/jwks"}, "oidc-keys-ca": {"a.pem", "b.pem"}, "oidc-keys-token": {"a.token", "b.token"}, "oidc-algorithms": {"RS256", "ES256,RS512"},
		"connections": {"1", "2"}, "connections-per-address": {"1", "2"}, "uploads": {"1", "2"}, "php-streams": {"1", "2"}, "watchers": {"1", "2"}, "tests-per-minute": {"1", "2"},
	}
	var env, args []string
	for name := range helpOptions(t) {
		v, ok := values[name]
		if !ok {
			t.Fatalf("this test has no value for --%s", name)
		}
		env = append(env, "MAILDISPATCH_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+v[0])
		args = append(args, "--"+name+"="+v[1])
	}
	for i, r := range []ended{run(t, env, "serve"), run(t, env, append([]string{"serve"}, args...)...)} {
		if r.code != 0 || r.stderr != "" {
			t.Fatalf("%+v", r)
		}
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
		if len(lines) != len(values)-1 { // print-config is not part of what it prints
			t.Errorf("%d lines for %d flags", len(lines), len(values))
		}
		for name, v := range values {
			if want := name + "=" + v[i]; name != "print-config" && !slices.Contains(lines, want) {
				t.Errorf("no line %q in\n%s", want, r.stdout)
			}
		}
	}
}

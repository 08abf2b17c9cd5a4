package observe

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// Document is METRICS.md.
func Document() string {
	var b strings.Builder
	b.WriteString(`# Metrics

This page is printed from the code; a test compares. With ` + "`--metrics-listen 127.0.0.1:9090`" + `
the service offers these metrics to Prometheus under ` + "`/metrics`" + `, beside those of the Go
runtime (` + "`go_*`" + `) and of the process (` + "`process_*`" + `). Without the flag nothing is offered.

The port has neither TLS nor a login: keep it on loopback, or in a network of its own. No metric
names an address, a mail, a caller or a team. The counts of one team come from GetQueueStats.

What is marked "sampled" is counted in the database every 5 s, and less often where that takes
long: it never takes more than a twentieth of the time. Every replica says the same of it, so
queries take ` + "`max by (mail_server)`" + ` over the replicas. All else is what one process has
seen since its start, and is summed.

`)
	b.WriteString("| metric | type | labels | what it says |\n| --- | --- | --- | --- |\n")
	for _, f := range families {
		labels := "none"
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s_%s` | %s | %s | %s |\n", namespace, f.name, f.kind, labels, f.help)
	}
	b.WriteString("\n## Values of labels\n\n| label | values |\n| --- | --- |\n")
	for _, l := range labelValues() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", l[0], l[1])
	}
	return b.String()
}

// labelValues says what the values of each label may be.
func labelValues() [][2]string {
	words := make([]string, 0, len(lanes))
	for _, p := range slices.Sorted(maps.Keys(lanes)) {
		words = append(words, lanes[p])
	}
	quoted := func(words ...string) string { return "`" + strings.Join(words, "`, `") + "`" }
	return [][2]string{
		{"mail_server", fmt.Sprintf("names of saved mail servers; those behind the first %d are `other`", maxServers)},
		{"lane", "the priority: " + quoted(words...)},
		{"outcome", quoted(string(lifecycle.Sent), string(lifecycle.Partial), string(lifecycle.Deferred), string(lifecycle.Failed), string(lifecycle.Unknown), string(lifecycle.ServerFault)) +
			"; the last is a fault of the relay, which costs the mail no attempt"},
		{"part", "`metadata`, `body` or `attachments`"},
		{"failure", "`none`, or a class as `Recipient.failure` in the schema says it"},
		{"kind", quoted(string(store.KindAgentMessage), string(store.KindInvoice), string(store.KindWorkOrder), string(store.KindBulk), string(store.KindOther))},
		{"status", "the status of the mail, as in the schema in small letters"},
		{"use", quoted("batch", "interactive", "idle")},
		{"line", "`accept` makes mails durable; `results`, and in php mode `results_interactive`, write marks and results"},
		{"pool", quoted("mail", "lease", "own", "look", "read") + "; those that a database does not have are absent"},
		{"state", quoted("in_use", "idle")},
		{"method", "the full name of the rpc"},
		{"code", "the gRPC code, such as `OK` or `Unavailable`"},
		{"version, revision, go_version", "of this program"},
	}
}

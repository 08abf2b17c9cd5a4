package observe

import "github.com/prometheus/client_golang/prometheus"

// namespace begins the name of every metric.
const namespace = "maildispatch"

// kind is the type of a metric.
type kind string

const (
	counter   kind = "counter"
	gauge     kind = "gauge"
	histogram kind = "histogram"
)

// family is one metric: all its series have this name and these labels.
type family struct {
	name    string // without namespace
	kind    kind
	labels  []string
	help    string
	buckets []float64 // of a histogram
}

// quick are buckets for what takes from half a millisecond to half a minute.
var quick = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// slow are buckets for a relay's answer to a mail: RFC 5321 4.5.3.2.6 gives it ten minutes.
var slow = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 600}

// families are all metrics, in the order of METRICS.md.
var families = []family{
	{name: "due_mails", kind: gauge, labels: []string{"mail_server", "lane"}, help: "Mails that are due and whose dot is not on its way. All replicas say the same; sampled."},
	{name: "due_oldest_age_seconds", kind: gauge, labels: []string{"mail_server", "lane"}, help: "For how long the oldest of them has been due. Sampled."},
	{name: "scheduled_mails", kind: gauge, help: "Mails that become due later. Sampled."},
	{name: "journal_mails", kind: gauge, labels: []string{"status"}, help: "Mails in the due-out journal by status. failed, unknown and held wait for a person. Sampled."},
	{name: "watch_lag_seconds", kind: gauge, help: "How far what WatchMails tells is behind what happened. Sampled."},
	{name: "sample_age_seconds", kind: gauge, help: "How old the sampled metrics are. It grows while the database does not answer."},

	{name: "attempts_total", kind: counter, labels: []string{"mail_server", "outcome", "failure"}, help: "Attempts that ended, by the mail server of the mail, what they made of it, and the class of the failure."},
	{name: "mails_ended_total", kind: counter, labels: []string{"mail_server", "kind", "status"}, help: "Mails that sending is done with: sent, failed, unknown, held or partially_sent. Counted when that is durable."},
	{name: "dot_reply_seconds", kind: histogram, labels: []string{"mail_server"}, help: "From the final dot of a mail to the relay's reply, by the mail server that it went through.", buckets: slow},

	{name: "mail_server_suspended", kind: gauge, labels: []string{"mail_server"}, help: "1 while the breaker of the mail server is open, over all replicas; else 0."},
	{name: "suspensions_total", kind: counter, labels: []string{"mail_server"}, help: "How often this process has suspended the mail server, or prolonged that."},
	{name: "sessions_total", kind: counter, labels: []string{"mail_server", "failure"}, help: "Sessions that were opened with the mail server, or could not be; failure is none or a class."},
	{name: "connections", kind: gauge, labels: []string{"mail_server", "use"}, help: "Connections of this process: batch, interactive, and idle among the latter."},
	{name: "connections_limit", kind: gauge, labels: []string{"mail_server"}, help: "How many connections this process may have now."},
	{name: "connections_waiters", kind: gauge, labels: []string{"mail_server"}, help: "Mails in php mode that wait for a connection."},
	{name: "connections_slots", kind: gauge, labels: []string{"mail_server"}, help: "Connections over all replicas that this process holds, where the mail server limits them."},

	{name: "batch_late_seconds", kind: gauge, help: "How much later than its interval the batch looks for due mail; 0 while it is in time."},
	{name: "serving", kind: gauge, help: "1 while health says SERVING: the database takes writes, and the batch is not late; else 0."},

	{name: "commit_mails", kind: histogram, labels: []string{"line"}, help: "Mails that one commit wrote together.", buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500}},
	{name: "commit_seconds", kind: histogram, labels: []string{"line"}, help: "How long such a commit took.", buckets: quick},
	{name: "writer_queue", kind: gauge, labels: []string{"line"}, help: "Writes that wait in memory for the database."},
	{name: "damaged_mails", kind: gauge, help: "Mails that this process leaves out because the database cannot read or write them."},
	{name: "damaged_pages", kind: gauge, help: "Pages of PostgreSQL's table due that this process goes round because the database cannot read them. The mails on them wait until somebody mends the table."},
	{name: "database_connections", kind: gauge, labels: []string{"pool", "state"}, help: "Connections to the database: in_use or idle."},
	{name: "database_connections_max", kind: gauge, labels: []string{"pool"}, help: "How many connections the pool may have; 0 = no limit."},
	{name: "database_waits_total", kind: counter, labels: []string{"pool"}, help: "How often a statement waited for a connection of the pool."},
	{name: "database_wait_seconds_total", kind: counter, labels: []string{"pool"}, help: "For how long statements have waited for one."},

	{name: "rpcs_total", kind: counter, labels: []string{"method", "code"}, help: "Calls that ended, by the gRPC code that the caller got."},
	{name: "rpc_seconds", kind: histogram, labels: []string{"method"}, help: "How long calls took; streams are as long as their caller wants.", buckets: quick},
	{name: "rpcs_in_flight", kind: gauge, labels: []string{"method"}, help: "Calls under way."},
	{name: "connections_refused_total", kind: counter, help: "Connections of callers that were refused because there were as many as may be."},
	{name: "tls_refused_total", kind: counter, help: "TLS handshakes of callers that failed."},

	{name: "retention_removed_total", kind: counter, labels: []string{"kind", "part"}, help: "Finished mails that this process has removed by --keep, or whose body or attachments it has."},
	{name: "retention_removed_files_total", kind: counter, help: "Files that this process has removed because no mail needed them any more."},
	{name: "retention_removed_file_bytes_total", kind: counter, help: "The bytes of these files."},
	{name: "retention_overdue_seconds", kind: gauge, labels: []string{"kind", "part"}, help: "For how long the first mail that --keep has to remove should have been removed; 0 = there is none. Looked at every five minutes."},
	{name: "retention_run_timestamp_seconds", kind: gauge, help: "When this process was last through with all that --keep has to remove. One process removes; of the others it is 0, or old."},

	{name: "oauth_token_age_seconds", kind: gauge, labels: []string{"mail_server"}, help: "Age of the access token that logs in to the mail server."},
	{name: "oauth_token_expiry_timestamp_seconds", kind: gauge, labels: []string{"mail_server"}, help: "When that access token ends. It is replaced after 80 % of its life."},
	{name: "certificate_expiry_timestamp_seconds", kind: gauge, help: "When the service's certificate ends."},
	{name: "token_expiry_timestamp_seconds", kind: gauge, help: "When the first of the callers' tokens ends that is valid now; absent where none ends."},

	{name: "build_info", kind: gauge, labels: []string{"version", "revision", "go_version"}, help: "1, with what this program was built from."},
}

// familyOf is a row of the table. A name that it has not is a fault of this package.
func familyOf(name string) family {
	for _, f := range families {
		if f.name == name {
			return f
		}
	}
	panic("no metric " + name)
}

func (f family) desc() *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+f.name, f.help, f.labels, nil)
}

// Package observe counts what the service does, and offers the counts to Prometheus and traces
// to OpenTelemetry. It is the only importer of their libraries. Its registry and its tracer are
// its own: nothing is global.
//
// A metric has one of three sources:
//
//   - An event. Engine, relay, store and interceptor each declare a small interface Observer
//     and call it once an event; [Metrics] has the methods. They allocate nothing once a series
//     exists, and take less than 200 ns.
//   - A state in memory, which [State] hands over. It is read when Prometheus asks.
//   - A sample of the database. [Metrics.Sample] takes it every few seconds on its own clock,
//     so no number of scrapes costs a statement.
//
// No label says an address, a peer's port, a mail, a caller or a team. The names of mail
// servers are the only label values that people choose. Those behind the first maxServers are
// counted together as "other".
//
// [Traces] makes spans for OpenTelemetry: of calls by otelgrpc, and of attempts at the mail of
// calls that are followed. An attempt's span is a root of its own which links to the call's,
// because mail in daemon mode is sent long after the call is over, often by another process.
// What leaves are ids, names of mail servers, counts and codes, see modest.
//
// The table families is every metric that there is. [Document] prints it as METRICS.md.
package observe

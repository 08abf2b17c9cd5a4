// Package web is the page to look at: mail servers and their test, both journals, the story of
// a mail, batches, queues, the audit log, and what a person may do about them. It is HTML made
// here, without JavaScript and without anything from elsewhere.
//
// # The only way to the service
//
// A [Page] has no store. It calls the service's own rpcs over [Config].Calls, with the token of
// the person who looks, so that access, quota, memory and the audit log are those of any other
// caller. Each view shows the calls that it made, as lines of grpcurl.
//
// # Who looks
//
// A person signs in with a token. The browser gets a random cookie; the token stays in this
// process, and every view asks the service again with it, so that a session ends with its
// token. Sessions are forgotten at a restart, and every replica has its own. While the service
// asks nobody, no session is needed.
//
// # Foreign text
//
// What comes from elsewhere, such as a reply or a subject, is shown through [plain.Text], which
// names what controls a terminal or turns text around. Templates do that to every value unless
// they say `exact`; html/template escapes both. The parts of a mail are shown in a frame with
// neither scripts nor loads nor an origin.
//
// # What it does not do
//
// It keeps nothing on disk, decides nothing about mail, and loads nothing from other hosts.
package web

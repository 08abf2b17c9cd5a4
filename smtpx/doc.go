// Package smtpx speaks SMTP to a relay. It dials, secures and logs in a connection, sends mails
// over it with a true result for every recipient, and probes a configuration step by step.
//
// It promises
//   - one path: a probe and a send go through the same [Dialer] and the same session, so a
//     probe never says success where sending would fail;
//   - a result per recipient, by position, for every mail: accepted, deferred, rejected or
//     unknown. The phase of a fault is known, and a fault after the final dot is unknown, never
//     a failure;
//   - the final dot leaves only after the transaction's gate has opened;
//   - no wait without a deadline, no reply read without a size limit, no goroutine or
//     descriptor left behind;
//   - no command leaves that is not one printable line, whoever made it;
//   - text from outside (replies, certificates, name servers) comes out printable and short.
//
// It does not compose a message (package smtpx/message does), retry, keep state on disk, or
// know what a team or a journal is: that is the engine's.
//
// The dialogue and AUTH are driven by github.com/xhit/go-simple-mail/v2 over a net.Conn of ours
// that owns dial, TLS, deadlines, pipelining and the bookkeeping of replies (see session.go for
// why). The body's bytes are written by us (see body.go).
//
// RFCs: 5321 (SMTP), 2920 (PIPELINING), 3207 (STARTTLS), 8314 (implicit TLS), 4954 (AUTH), 2195
// (CRAM-MD5), 1870 (SIZE), 3463 and 2034 (enhanced codes), 6531 (SMTPUTF8), 5890 (IDNA), 1047
// (duplicates).
package smtpx

// Package message makes the raw bytes of a mail from its parts: checked addresses, text and
// html, headers, attachments, and templates with variables.
//
// It promises
//   - every address is one that may stand in a command and in a header, and means what it
//     shows;
//   - [Message.Validate] lists everything that is wrong at once, also in what is filled in
//     here, and what it takes [Compose] can make;
//   - the same [Message] gives the same bytes, on every machine;
//   - only CRLF line ends, no line over 998 octets, ASCII unless an address needs SMTPUTF8;
//   - no text of a caller becomes a header, a part or a line of its own;
//   - what many mails share (a file, the body of a template) is encoded once and kept once.
//
// It does not send, store or sign a mail (see package dkim below it), and it knows no
// connection: see package smtpx.
//
// RFCs: 5322 and 2045-2047 (message, MIME), 2183 and 2231 (file names), 2387 (related parts),
// 5321 4.1.2 and 6531 (addresses), 5891 (IDNA).
package message

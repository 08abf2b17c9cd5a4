// Package store keeps mail servers, mails and their journals in PostgreSQL or SQLite, behind
// one type and one conformance suite.
//
// It promises
//   - what a method reported as written is durable: committed with fsync on both databases;
//   - a result that was handed over ([Store.Settle]) is repeated, in order, until it is
//     written, refused by its token, or the store is closed;
//   - rules live in constraints: one default mail server per team, one mail per (team,
//     request_id), finished time exactly in final states;
//   - every write to a mail that is being sent is conditional on its owner and on the token of
//     that ownership, which no two claims of a mail share: a replica that lost its lease is
//     told so ([ErrStale], or Mine == false) and changes nothing, and a write that comes late
//     or twice changes nothing;
//   - team scope is part of every statement that a caller's request reaches;
//   - content that several mails share is stored once and read once.
//
// It does not know SMTP, gRPC, or when a mail should be retried: the engine decides and the
// store records. It never seals or opens a password.
//
// Layout: mail is insert-only; due is the small hot row of every
// unfinished mail; archive is the narrow row of a finished one; content holds shared bytes in
// chunks; term is the narrow search table. A mail is in exactly one of due and archive.
//
// An [Inspector] reads a database beside the service and checks the invariants I1 to I10, which
// stand in inspect.go.
//
// SQL lives in store/queries as named statements, one file for both dialects and one per
// dialect for the hot ones, with named parameters, prepared at [Open]; those of an inspection
// stand apart. DESIGN.md says why all this is as it is.
package store

// Package quota bounds what one caller may take of the service.
//
// It promises:
//
//   - Calls of a caller are counted in the tap, before their body is read, in memory alone
//     ([Quota.Call]).
//   - What a caller holds open at once, such as watchers and uploads, has a bound in each
//     process ([Quota.Hold]).
//
// Callers are told apart by name: all tokens of one name, and a certificate of that name, are
// one caller. Where nobody is asked who calls, everybody together is one.
//
// It does not promise that several processes share what is counted in memory. It knows no mail
// server; its limits of speed are package relay's.
package quota

// Package lifecycle holds every transition of a mail as a pure function over the store's types.
// It decides what a mail becomes; it reads no clock, no database and no network.
// The batch, php mode, the recovery and the API use it. The store decides two things itself, in
// its statements: what is held as a whole (mail of a deleted mail server, of a restored
// database), and which ownerless mail goes back unasked, by the number of deaths that
// aloneCrashes has here.
//
// # States and who may change them
//
// A mail is in the due-out journal (queued, sending, deferred, held, failed, unknown, partially
// sent) or in the archive (sent, cancelled). A mail is "sending" exactly while a replica owns
// its row. Only the owner may change an owned mail, but for a person's stop (cancel, hold):
// until the mark it takes the mail from its owner, whose token ends with that, so that its mark
// is refused. Mails without an owner are changed by people (retry, cancel, hold, release,
// resolve, delete of the mail server with force) and by claims.
//
//	queued, deferred, partially sent --claim--> sending            batch, when due
//	(new, php mode) ------------------------> sending              born owned by the replica that took it
//	sending --> sent (archive)                                     every recipient accepted
//	sending --> deferred / partially sent, due later               some recipients may still succeed; not while a php-mode caller waits, unless that one asked for retry_in_batch
//	sending --> failed / partially sent, parked                    refused for good, out of attempts or expired; php-mode caller: any failure, with retry_in_batch as in the batch
//	sending --> unknown, parked                                    no reply after the dot: invoices, work orders, every kind through a mail server
//	                                                               that holds all, php-mode callers; every kind where a second try is refused for good
//	sending --> deferred with possible_duplicate                   no reply after the dot: other kinds in the batch
//	sending --> what it was                                        nothing was decided: relay down, replica stopping
//	(new, with hold) ---------------------> held                   its sender asked for it, whatever the mode
//	queued, deferred, partially sent --hold--> held                with a due time only; that is kept beside it
//	sending --hold--> held                                         before the mark only
//	held --release--> queued, deferred, partially sent             at the due time it had; its mail server must be usable
//	unknown --resolve--> sent (archive)                            a person's word: delivered, and every other recipient is accepted
//	unknown --resolve--> failed, partially sent, unknown, parked   delivered or not delivered, and something else is not
//	unknown --resolve--> deferred / partially sent, due now        send it again, with possible_duplicate
//	all but sending, sent, cancelled --retry--> queued, deferred, partially sent, due now; unknown ones by id only, with possible_duplicate
//	all but sent, cancelled --cancel--> cancelled (archive)        sending: before the mark only
//	queued, deferred, partially sent --delete of the mail server with force--> held
//
// A person's word is per recipient and is written with its reason into the result and the audit
// log. A recipient that is left unknown while another one is sent to again stays with the
// person (Held in its result), whatever the kind: the batch never tries it by itself.
package lifecycle

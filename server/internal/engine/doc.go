// Package engine sends mail: it claims what is due, delivers it through relays, records what
// became of every recipient, and rescues what a dead replica left behind. It knows neither gRPC
// nor SQL.
//
// What a mail may become is decided in package lifecycle; this package finds out how an attempt
// ended, and writes what that makes of the mail. Every such write is conditional on the
// ownership of the row, so a replica that was taken for dead changes nothing.
//
// # What a crash at each point does
//
//	before the enqueue commit     the caller never heard "accepted"; nothing is stored
//	after it, before the mark     the row has no mark: it is sent again, nothing can be doubled
//	after the mark                the dot may have left: the recipients of that transaction
//	                              are unknown; what is sent again is flagged, with the same
//	                              bytes and Message-ID
//	after the reply, before the   the same: it is unknown, because nobody can prove the reply
//	result is committed           was read. At most one mail a connection, because results and
//	                              marks are committed in the order they were handed over
//	after the result              finished
//
// # The dot gate
//
// The final dot of a transaction leaves only after the mark is committed by this replica under
// its current lease and the lease is fresh by the monotonic clock (renewed every 5 s, no dot
// once a renewal is 15 s late, taken for dead after 30 s by the database's clock).
//
// The gate is also the brake. A mail server that was switched off, deleted, or changed in any
// way is obeyed within a second by every replica: claims stop, what was claimed goes back, and
// the new configuration is used from the next mail on. A php-mode mail that was cut before its
// mark begins anew with it while its caller waits. A dot leaves only when the database was
// asked less than a second ago and knew of no change; while it does not answer, dots wait. Only
// what has left already may still arrive.
//
// # Failures of the relay and failures of the mail
//
// A relay that cannot be reached, secured, logged in to, or says 421 costs no mail an attempt:
// its mails go back untouched and its breaker opens, which all replicas share through the
// database (see package relay). A success is a mail that was accepted or refused for itself,
// never a greeting. A suspended relay is probed by one connection over all replicas after 1 s,
// 5 s, 30 s, then 1 minute doubling to 15. The probe has a deadline of its own, so a caller who
// cannot wait for it takes nothing away. php-mode callers hear of the suspension at once, but
// wait for a probe of this process. After a success connections ramp up 1, 2, 4... A change of
// the configuration starts afresh. A relay that refuses more connections than stand
// gets no more for a while. One that says we are too fast or too many (421, 432, words
// such as "slow down") loses half its connections at each such answer and gets them back one by
// one, until it says so again: then it keeps what it bore, and is asked seldom whether it bears
// more. Three such answers in a row open the breaker. The mails wait a little and lose no
// attempt, but not beyond their lifetime.
//
// A relay that refuses mail after mail for good for the same reason of the sender's is told
// from one that refuses mails after the fifth in a row: see relay.Judge. The fifth and those
// behind it wait. What the first four heard stands, because one refusal cannot be told from the
// other: they are in the due-out journal as failed, and RetryMails sends them again. Each
// process counts for itself.
//
// While a mail server is suspended or switched off, and not paused, its mail goes through its
// fallback if that can be used (way.go): at once for a php-mode caller, and in a drain of its
// own for the batch. What may have left already, or what the fallback does not take, waits. The
// mail stays that of its mail server, whose probe goes on with one mail at a time, and from a
// success on mail goes the direct way again. The journal knows through which mail server an
// attempt goes before its first dot. A fallback's own fallback is never used.
//
// Temporary refusals (4yz) cost an attempt and back off from 1 minute, doubling to 4 hours,
// with jitter, for 5 days. Permanent refusals (5yz) are final for that recipient and never stop
// the others. What a php-mode caller was told has failed is not retried by the service itself;
// a php-mode mail that the batch sends (scheduled, retried by a person, rescued) is retried
// like any other.
//
// A mail that five owners died of while they were at it, or that made the service panic, is
// quarantined (failed, with the reason) while the rest flow. The first death makes everything
// that the dead replica held suspect; from then on it is recorded which suspects are being
// sent, and only those count a further one; what two died of is sent alone and waits before, 1
// minute, then 10, then an hour, so that deaths that follow one another do not meet the same
// mail. A suspect that is sent and survived is none any more. A person's word (retry, release,
// resolve) gives it three more.
//
// # Lanes and limits
//
// One mail server never waits for another: each has its own drain, connections and breaker.
// Inside one, every team that waits gets an equal share of each claim, its mails by priority,
// and within a priority the teams take turns. A pass that meets a running drain has it claim
// what is more urgent than what is in its line, and that goes in front. Mail that is accepted
// while its mail server is being drained goes there in memory once it is durable, behind what
// waits in the database unless it is more urgent than something in the line; a group of bulk
// waits up to a second for a relay that takes what came before (see direct.go). Of a php-mode
// server's connections the batch gets at most half, and its only one it gives up when a
// php-mode mail waits. Bulk yields to callers by one rule, which is the store's: while it works
// for a php-mode mail, each step of bulk waits for that, 20 ms at most, and for two seconds
// after the last such work began the statements of bulk go one at a time and are small. A
// php-mode mail that waits for its relay holds up nobody. Of the memory for large mails a mail
// server gets at most half of what the others leave free, and a mail takes less of it once its
// dot has left. Limits per minute, per day and on connections hold over all replicas. They are
// state: each replica says again and again which connections it holds, and what it was granted,
// has used and still holds of the limits, so a lost answer costs nothing. A mail is charged
// when its dot leaves or when it is refused for itself; what did not leave comes back.
//
// # Clocks
//
// What is due, and whether a replica lives, is decided by the database's clock; this process
// corrects its own by it. Only the freshness of a lease is measured by the monotonic clock,
// which nobody can set.
//
// # Concurrency
//
// One drain per mail server and process: overlapping passes join it. A drain owns one feeder,
// which alone claims, one scale loop, which alone starts workers, and the workers, each owning
// one session. php-mode mails never queue behind a drain: each runs on a goroutine of its
// own with a session from the mail server's pool. Marks and results go to the store in one
// line, which keeps their order, those of php mode in another, so that no caller waits behind a
// batch's; the store repeats what the database did not take, and nothing overtakes it.
//
// # Lock order
//
// A lock is taken only while those above it are held, or none. Those in one line never meet.
//
//	Engine.looking            a channel, for as long as the database takes
//	drains.mu                 which drains run; drain.more and drain.stale
//	drain.mu                  a drain's counts, workers and fault
//	work.mu                   leaf of the drain. The locks of relay are taken here too, see there
//	fairqueue's, ledger's     leaves: what they call back is called with none held
//	passes.mu, then pass.mu   who waits for a batch
//	fairmemory's, brake's, live's
//
// The last line are leaves: nothing is called with one of them held that takes another lock. No
// lock is held during a statement or a command to a relay. What is called back when a result is
// durable runs with none held.
package engine

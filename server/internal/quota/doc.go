// Package quota bounds what one caller, one team and one recipient's address may take of the
// service, and stops what runs away before it has reached everybody.
//
// It promises:
//
//   - Calls of a caller are counted in the tap, before their body is read, in memory alone
//     ([Quota.Call]).
//   - What a caller holds open at once, such as watchers and uploads, has a bound in each
//     process ([Quota.Hold]).
//   - Mails and recipients of a caller and of a team keep to their limits over all replicas:
//     any minute sees at most 105 % of the limit, and a caller who asks for more gets at least
//     85 % of it. [Sender] charges a mail when it is accepted. A limit that is reached among
//     many mails refuses those after it one by one. A request_id that is known already costs
//     nothing, and is answered although nothing is left. A mail of which nobody knows whether
//     it was stored has cost what a stored one costs.
//   - A token may have a budget of its own, of mails and of recipients in any 24 hours. It is
//     kept as these limits are, and belongs to the token: another of the same name has another.
//   - The guard's budgets are kept in the same way. A mail beyond one of them is accepted and
//     held, with the reason, and only somebody else than its caller can release it. The address
//     comes first: a mail that is held because of its recipient counts in no other budget.
//     Each replica lets the first mails to an address through without asking: a twentieth of
//     its budget, at most 250, and the same again once it has forgotten them, which is after
//     half an hour at the earliest. So an hour sees at most the budget and for each replica a
//     tenth of it more.
//   - A team whose queue is full, and everybody while the disk is nearly full, hears
//     RESOURCE_EXHAUSTED for daemon mode and uploads. Mail in php mode goes on.
//
// Callers are told apart by name: all tokens of one name, and a certificate of that name, are
// one caller. Where nobody is asked who calls, everybody together is one, and the guard's
// release by another cannot be asked for.
//
// It does not promise that several processes share what is counted in memory (calls, and what
// is held open). It does not count mails that were accepted before it was there, nor mail that
// is moved, retried or released. It knows no mail server; its limits of speed are package
// relay's.
package quota

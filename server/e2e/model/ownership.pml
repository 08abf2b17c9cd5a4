/*
 * Who may send a mail, and what a crash leaves behind: lease, claim token, mark and recovery.
 *
 * Two replicas share two mails. README.md says what this model covers. check.sh runs it.
 * Every transition is one atomic statement of the database or one step of a process, so that
 * anything may come between two of them: a frozen replica is one that takes no step.
 */

/* Any mix of this many faults, at any points:
 *  - kill -9 of a replica, and its restart under a new id
 *  - a replica that lives and is taken for dead: frozen, then thawed
 *  - a statement that the database runs once more, or for the first time, at any later moment:
 *    an answer that was lost, and the write repeated; a connection given up with a statement on it
 *  - a claim whose answer never arrives
 *  - a claim taken for unheard while its answer is on its way
 *  - a mail given back untouched, as when a connection breaks before the dot
 *  - a temporary refusal after the dot
 *  - no reply after the dot
 */
#ifndef FAULTS
#define FAULTS 3
#endif
#ifndef BORN
#define BORN unborn /* the invoice; -DBORN=sent leaves it out */
#endif
#ifndef QUEUED
#define QUEUED waiting /* the bulk mail; -DQUEUED=sent leaves it out */
#endif

#define REPLICAS 2
#define MAILS 2
#define IDS (3 + FAULTS) /* replica ids: 1 and 2 at the start, one more a restart; 0 is nobody */

#define BULK 0    /* sent in two transactions; sent again, flagged, when its outcome is unknown */
#define INVOICE 1 /* born owned, in php mode; waits for a person when its outcome is unknown */
#define last(m) (m == BULK -> 2 : 1) /* its last transaction */

/* The database. */
mtype:status = { unborn, waiting, sent, unknown };
mtype:status status[MAILS];
byte owner[MAILS];  /* a replica's id */
byte claim[MAILS];  /* the token: one higher whenever the mail is taken, and after each transaction */
byte mark[MAILS];   /* the transaction whose dot may have left; 0 none */
byte done[MAILS];   /* transactions that are recorded as accepted */
bool flagged[MAILS];

mtype:row = { absent, alive, dead, gone };
mtype:row row[IDS];

/* The replicas. A job is what a replica believes about a mail. */
byte id[REPLICAS]; /* 0: the process is down */
byte ids = 2;
mtype:step = { idle, asked, held, marked, taken, refused, silent };
mtype:step step[4];
byte jid[4], jclaim[4], jpart[4];
#define job(s, m) (s * MAILS + m)

/* The relay. */
byte arrived[4]; /* how often a transaction's dot was taken: by job(mail, transaction - 1) */

/* Statements that still run somewhere though their sender does not wait for them. */
mtype:what = { Birth, Claim, Mark, Progress, Sent, Back, Unknown };
chan late = [FAULTS] of { mtype:what, byte, byte, byte, byte }; /* id, mail, token, transaction */

byte faults = FAULTS;

#ifdef OWNER_ONLY /* a planted fault: ownership without a number */
#define mine(i, m, c) (status[m] == waiting && owner[m] == i)
#else
#define mine(i, m, c) (status[m] == waiting && owner[m] == i && claim[m] == c)
#endif

#ifdef KNOWN_DEAD /* a planted fault: only owners that are known to be dead lose their mails, and the dead take mails */
#define orphaned(m) (owner[m] != 0 && row[owner[m]] == dead)
#define maytake(i) true
#else
#define orphaned(m) (owner[m] != 0 && row[owner[m]] != alive)
#define maytake(i) (row[i] == alive)
#endif

#define lives(s) (id[s] != 0 && row[id[s]] == alive)
#define final(m) (status[m] == sent || status[m] == unknown || status[m] == unborn)

inline release(m) { owner[m] = 0; mark[m] = 0 }

/* What a mail becomes whose dot may have left. */
inline doubt(m) {
	if
	:: m == BULK -> flagged[m] = true; release(m)
	:: else -> status[m] = unknown; release(m)
	fi
}

/* One statement, as the database runs it. */
inline execute(w, i, m, c, p) {
	if
	:: w == Birth && status[m] == unborn && maytake(i) ->
		status[m] = waiting; owner[m] = i; claim[m] = 1
	:: w == Claim && status[m] == waiting && owner[m] == 0 && maytake(i) ->
		owner[m] = i; claim[m]++
	:: w == Mark && mine(i, m, c) -> mark[m] = p
	:: w == Progress && mine(i, m, c) ->
		done[m] = p; mark[m] = 0
#ifndef SAME_TOKEN /* a planted fault: the next transaction goes under the token of the one before */
		; claim[m]++
#endif
	:: w == Sent && mine(i, m, c) ->
		assert(arrived[job(m, 0)] > 0 && (last(m) == 1 || arrived[job(m, 1)] > 0)); /* lost 0 */
		status[m] = sent; release(m)
	:: w == Back && mine(i, m, c) -> release(m)
	:: w == Unknown && mine(i, m, c) -> doubt(m)
	:: else
	fi
}

/* A statement whose sender hears the answer. heard: whether the mail was its sender's. */
inline write(w, s, m) {
	heard = mine(jid[job(s, m)], m, jclaim[job(s, m)]);
	execute(w, jid[job(s, m)], m, jclaim[job(s, m)], jpart[job(s, m)])
}

/* The same statement runs once more, or for the first time, at a moment that nobody knows. */
inline leave(w, i, m, c, p) { faults--; late!w, i, m, c, p }
inline leavejob(w, s, m) { leave(w, jid[job(s, m)], m, jclaim[job(s, m)], jpart[job(s, m)]) }

inline forget(s, m) { step[job(s, m)] = idle; jid[job(s, m)] = 0; jclaim[job(s, m)] = 0; jpart[job(s, m)] = 0 }

inline begin(s, m, how) {
	step[job(s, m)] = how; jid[job(s, m)] = owner[m]; jclaim[job(s, m)] = claim[m]; jpart[job(s, m)] = done[m] + 1
}

/* Whoever finds a mail without a living owner takes it out of its hands: unmarked it waits again,
   marked it is adopted, and then settled as one whose outcome is unknown. */
inline rescue(s, m) {
	if
	:: mark[m] == 0 -> owner[m] = 0
	:: else -> owner[m] = id[s]; claim[m]++; begin(s, m, silent)
	fi
}

#define at(s, m, x) (step[job(s, m)] == x)

/* What a replica does about one mail. */
proctype Worker(byte s; byte m)
{
	bool heard;
end:	do
	/* Birth: php mode stores the mail as its own. A birth whose answer is lost is nobody's job. */
	:: atomic { status[m] == unborn && at(s, m, idle) && s == 0 && lives(s) ->
		execute(Birth, id[s], m, 0, 0); begin(s, m, held) }
	:: atomic { status[m] == unborn && at(s, m, idle) && s == 0 && lives(s) && faults > 0 -> leave(Birth, id[s], m, 0, 0) }

	/* Claim. Its answer is on its way for a while, or for ever; without a fault to come that while
	   makes no difference. */
	:: atomic { status[m] == waiting && owner[m] == 0 && at(s, m, idle) && lives(s) ->
		execute(Claim, id[s], m, 0, 0);
		if
		:: faults > 0 -> begin(s, m, asked)
		:: else -> begin(s, m, held)
		fi }
	:: atomic { status[m] == waiting && at(s, m, idle) && lives(s) && faults > 0 -> leave(Claim, id[s], m, 0, 0) }
	:: atomic { at(s, m, asked) -> step[job(s, m)] = held }
	:: atomic { at(s, m, asked) && faults > 0 -> faults--; forget(s, m) }

	/* The mark, then the dot. */
	:: atomic { at(s, m, held) ->
#ifdef NO_MARK /* a planted fault: the dot leaves without a mark */
		heard = true;
#else
		write(Mark, s, m);
#endif
		if
		:: heard -> step[job(s, m)] = marked
		:: else -> forget(s, m)
		fi; heard = false }
	:: atomic { at(s, m, held) && faults > 0 -> leavejob(Mark, s, m) }
	:: atomic { at(s, m, marked) ->
		assert(arrived[job(m, jpart[job(s, m)] - 1)] == 0 || flagged[m]); /* unflagged duplicates 0 */
		arrived[job(m, jpart[job(s, m)] - 1)]++;
		if
		:: step[job(s, m)] = taken
		:: faults > 0 -> faults--; step[job(s, m)] = silent
		fi }
	:: atomic { at(s, m, marked) && faults > 0 -> faults--; step[job(s, m)] = refused }
	:: atomic { at(s, m, marked) && faults > 0 -> faults--; step[job(s, m)] = silent }

	/* What became of it. */
	:: atomic { at(s, m, taken) && jpart[job(s, m)] < last(m) ->
		write(Progress, s, m);
		if
		:: heard -> begin(s, m, held)
		:: else -> forget(s, m)
		fi; heard = false }
	:: atomic { at(s, m, taken) && jpart[job(s, m)] < last(m) && faults > 0 -> leavejob(Progress, s, m) }
	:: atomic { at(s, m, taken) && jpart[job(s, m)] == last(m) -> write(Sent, s, m); forget(s, m); heard = false }
	:: atomic { at(s, m, taken) && jpart[job(s, m)] == last(m) && faults > 0 -> leavejob(Sent, s, m) }
	:: atomic { at(s, m, held) && faults > 0 -> faults--; step[job(s, m)] = refused } /* untouched */
	:: atomic { at(s, m, refused) -> write(Back, s, m); forget(s, m); heard = false }
	:: atomic { at(s, m, refused) && faults > 0 -> leavejob(Back, s, m) }
	:: atomic { at(s, m, silent) -> write(Unknown, s, m); forget(s, m); heard = false }
	:: atomic { at(s, m, silent) && faults > 0 -> leavejob(Unknown, s, m) }

	/* Recovery: a mail of a dead owner, and one that this replica owns and does not hold. */
	:: atomic { status[m] == waiting && orphaned(m) && at(s, m, idle) && lives(s) -> rescue(s, m) }
	:: atomic { status[m] == waiting && owner[m] == id[s] && lives(s) && at(s, m, idle) -> rescue(s, m) }
	:: atomic { status[m] == waiting && owner[m] == id[s] && lives(s) && !at(s, m, idle) &&
		jclaim[job(s, m)] != claim[m] && mark[m] == 0 -> rescue(s, m) }
	/* The answer to the claim may still be on its way when that is found. */
	:: atomic { status[m] == waiting && owner[m] == id[s] && lives(s) && at(s, m, asked) && mark[m] == 0 && faults > 0 ->
		faults--; rescue(s, m) }
	od
}

/* A process lives, dies and comes back; others take it for dead. */
proctype Replica(byte s)
{
end:	do
	:: atomic { faults > 0 && id[s] != 0 -> faults--; id[s] = 0; forget(s, BULK); forget(s, INVOICE) }
	:: atomic { (id[s] == 0 || row[id[s]] != alive) && ids < IDS - 1 -> ids++; id[s] = ids; row[ids] = alive }
	/* It is frozen for so long that others take it for dead, and goes on. */
	:: atomic { lives(s) && faults > 0 -> faults--; row[id[s]] = dead }
	od
}

/* Housekeeping by any living replica: the lease of a process that is down runs out; the row of one
   that owns nothing goes. */
#define down(i) (row[i] == alive && id[0] != i && id[1] != i)
#define spent(i) (row[i] == dead && owner[BULK] != i && owner[INVOICE] != i)
#define anybody (lives(0) || lives(1))

proctype Keeper(byte i)
{
end:	do
	:: atomic { anybody && down(i) -> row[i] = dead }
#ifdef KNOWN_DEAD
	:: atomic { anybody && spent(i) -> row[i] = gone } /* dead or gone is one where only alive is asked for */
#endif
	od
}

/* The network delivers what it kept. */
proctype Network()
{
	mtype:what w;
	byte i, m, c, p;
end:	do
	:: atomic { late??w, i, m, c, p -> execute(w, i, m, c, p); w = Birth; i = 0; m = 0; c = 0; p = 0 }
	od
}

/* Whoever handed a mail over waits for its end. When nothing can happen any more and this still
   waits, the mail is lost: spin reports an invalid end state. */
proctype Caller(byte m)
{
	final(m)
}

init {
	byte i;
	atomic {
		for (i : 1 .. IDS - 1) { run Keeper(i) }
		i = 0;
		status[BULK] = QUEUED; status[INVOICE] = BORN;
		forget(0, BULK); forget(0, INVOICE); forget(1, BULK); forget(1, INVOICE);
		id[0] = 1; id[1] = 2; row[1] = alive; row[2] = alive;
		run Worker(0, BULK); run Worker(0, INVOICE); run Worker(1, BULK); run Worker(1, INVOICE);
		run Replica(0); run Replica(1);  run Network();
		run Caller(BULK)
	}
}

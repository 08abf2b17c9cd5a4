package lifecycle

import (
	"math/rand/v2"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// A mail whose owner died is a suspect. The first death cannot tell what the process died of:
// all that it held are suspects. From then on it is recorded which suspect is being sent
// (BeginSuspect), and only the death of an owner that was at the mail counts against it. What
// was held and not begun when the owner died once more is cleared of one death, because
// something else was the cause.
//
// A mail that two owners died of is sent alone, so that the next death names the one. It also
// waits before that, longer after each death: deaths that follow one another within seconds (a
// machine that runs out of memory, somebody who kills the service again and again) do not meet
// the same innocent mail twice, because it is not under way. A mail that really ends the
// service does so at each try, and is put aside at the fifth.
const poisonCrashes = 5

// aloneCrashes is how many owners died of a mail that is sent alone from then on.
const aloneCrashes = 2

var suspectWaits = [...]time.Duration{aloneCrashes: time.Minute, 3: 10 * time.Minute, 4: time.Hour}

// suspectWait is how long a mail waits that n owners died of, with up to a half more so that
// suspects do not come back together.
func suspectWait(n int) time.Duration {
	if n < aloneCrashes || n >= len(suspectWaits) {
		return 0
	}
	d := suspectWaits[n]
	return d + rand.N(d/2)
}

// suspicion is how many owners died of a mail whose owner has just died.
func suspicion(m *store.Claimed) int {
	switch {
	case m.Crashes < aloneCrashes:
		return 1
	case m.Begun:
		return m.Crashes // counted when it was recorded
	}
	return m.Crashes - 1
}

// Alone says whether a mail must be sent alone among its like, so that the next death names the
// one and not all that happened to be under way.
func (a *Attempt) Alone() bool { return a.Mail.Crashes >= aloneCrashes }

// Crash says what becomes of a mail whose owner died, for the replica me that has adopted it.
func Crash(m *store.Claimed, me store.ReplicaID, now time.Time) Verdict {
	a := Begin(m, me, now)
	a.marked = m.Marked
	end := Died
	switch {
	case suspicion(m) >= poisonCrashes:
		end = Poison
	case m.Marked:
		end = Crashed
	}
	return a.Finish(end, "", store.Limits{}, now)
}

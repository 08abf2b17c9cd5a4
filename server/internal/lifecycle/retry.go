package lifecycle

import (
	"math/rand/v2"
	"time"
)

const (
	firstRetry  = time.Minute
	longestWait = 4 * time.Hour
	lifetime    = 5 * 24 * time.Hour // from the first attempt on
	// attempts kept in a mail's history: the first and the newest
	keptTries = 20
)

// backoff is the wait after attempt n (1 = the first) failed: 1 minute doubling to 4 hours, of
// which a random half is taken away so that mails that failed together do not come back
// together.
func backoff(n int) time.Duration {
	d := longestWait
	if n < 9 { // 2^8 minutes is the first beyond 4 hours
		d = min(firstRetry<<max(n-1, 0), longestWait)
	}
	return d/2 + rand.N(d/2+1)
}

// ownAgain is how long a mail waits that may not go through the fallback, until it is looked
// whether its own mail server can be used.
const ownAgain = time.Minute

// aLittle is the wait of a mail whose relay, not itself, was in trouble while others went
// through.
func aLittle() time.Duration { return 5*time.Second + rand.N(10*time.Second) }

// behindProbe is how long after the next try of a mail server a mail stands back; see
// StandBack.
func behindProbe() time.Duration { return 3*time.Minute + rand.N(2*time.Minute) }

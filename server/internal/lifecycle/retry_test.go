package lifecycle

import (
	"testing"
	"time"
)

// TestBackoffSpreads (F22): mails that failed together do not come back together: of 10,000
// retries no second has more than a twentieth, and each wait lies between half of the schedule
// and the whole.
func TestBackoffSpreads(t *testing.T) {
	const mails = 10000
	for n := 1; n <= 12; n++ {
		longest := min(time.Minute<<(n-1), 4*time.Hour)
		seconds := map[time.Duration]int{}
		most := 0
		for range mails {
			d := backoff(n)
			if d < longest/2 || d > longest {
				t.Fatalf("attempt %d: %v", n, d)
			}
			s := d / time.Second
			seconds[s]++
			most = max(most, seconds[s])
		}
		if most > mails/20 {
			t.Errorf("attempt %d: %d of %d in one second", n, most, mails)
		}
		if n == 1 {
			t.Logf("F22 retries=%d most_in_one_second=%.1f%%", mails, 100*float64(most)/mails)
		}
	}
}

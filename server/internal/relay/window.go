package relay

import "time"

// forgetWindow is how long after its last complaint a relay is taken to be as it ever was.
const forgetWindow = time.Hour

// maxGrowthWait is how long a relay with a fixed limit is not asked whether it takes one more:
// a mail that it defers for that is little, once a minute.
const maxGrowthWait = time.Minute

// window is how many connections a relay bears that has complained of being too busy with us:
// 432, 421 "too many connections", "slow down". It is TCP's congestion window with connections
// for segments: a complaint halves it, and each time every connection has delivered a mail
// since, it grows by one (RFC 5681 3.1). Unlike TCP it remembers the size that was borne. A
// complaint behind a growth goes back there, and the next growth waits, longer each time, so
// that a relay with a fixed limit is left just below it and asked seldom whether the limit
// still holds.
//
// Guarded by Relay.mu; written by every transaction's end.
type window struct {
	size    int       // connections at most; 0 = it has not complained
	borne   int       // the size at which every connection delivered a mail, 0 = none yet
	mails   int       // delivered since the size changed, while all of it was in use
	refused int       // growths in a row that the relay did not bear
	wait    time.Time // no growth before
	cut     time.Time // the last complaint
}

// most is how many connections there may be of n.
func (w *window) most(n int) int {
	if w.size == 0 {
		return n
	}
	return min(n, w.size)
}

// shrink takes a complaint about a mail that was begun at a time, with n connections at most
// otherwise. It is false for a mail that was under way at the last complaint: many connections
// hear the same at once, and it says nothing of what there are now.
func (w *window) shrink(began, now time.Time, n int) bool {
	if began.Before(w.cut) {
		return false
	}
	size := w.most(n)
	w.cut, w.mails = now, 0
	if w.borne > 0 && w.borne < size {
		w.size = w.borne
		w.refused++
		w.wait = now.Add(min(maxGrowthWait, rest(w.refused)))
		return true
	}
	w.size, w.borne, w.refused, w.wait = max(1, size/2), 0, 0, time.Time{}
	return true
}

// grow takes a mail that was delivered, begun at a time, with n connections at most otherwise.
// full says that all connections there may be are in use: others show nothing of the size.
func (w *window) grow(began, now time.Time, n int, full bool) {
	switch {
	case w.size == 0:
		return
	case now.Sub(w.cut) >= forgetWindow:
		*w = window{}
		return
	case full && !began.Before(w.cut):
		w.mails++
	}
	if w.mails < w.size {
		return
	}
	if w.size > w.borne {
		w.borne, w.refused = w.size, 0
	}
	if now.Before(w.wait) {
		return
	}
	w.size, w.mails = w.size+1, 0
	if w.size >= n {
		*w = window{}
	}
}

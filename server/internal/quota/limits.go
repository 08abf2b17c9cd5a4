package quota

import (
	"errors"
	"slices"
)

// Limits are the bounds in force. 0 = none.
type Limits struct {
	// Of one caller in this process.
	CallsPerSecond int // a second's worth may come at once
	Streams        int // SendStream in php mode, open at once
	Tests          int // TestMailServer at once
	TestsPerMinute int
	Watchers       int   // WatchMails, open at once
	UploadBytes    int64 // of uploads that are not finished
	StrictBytes    int64 // of strict SendBatch calls that are not finished
}

// Defaults are what no honest caller meets.
func Defaults() Limits {
	return Limits{CallsPerSecond: 10_000, Streams: 16, Tests: 2, TestsPerMinute: 10, Watchers: 100, UploadBytes: 256 << 20, StrictBytes: 256 << 20}
}

// Check says what cannot be meant.
func (l Limits) Check() error {
	ns := []int64{int64(l.CallsPerSecond), int64(l.Streams), int64(l.Tests), int64(l.TestsPerMinute), int64(l.Watchers), l.UploadBytes, l.StrictBytes}
	if slices.Min(ns) < 0 {
		return errors.New("a limit is negative: 0 means none")
	}
	return nil
}

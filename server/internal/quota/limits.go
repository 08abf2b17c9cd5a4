package quota

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/maildispatch/maildispatch/store"
)

// Limits are the bounds in force. 0 = none.
type Limits struct {
	// Of one caller in this process.
	CallsPerSecond int // a second's worth may come at once
	Streams        int // SendStream in php mode, open at once
	Tests          int // TestMailServer at once
	TestsPerMinute int
	Watchers       int   // WatchMails, open at once
	Uploads        int   // UploadAttachment, open at once
	UploadBytes    int64 // of uploads that are not finished
	StrictBytes    int64 // of strict SendBatch calls that are not finished

	// Accepted mails, and their recipients, over all replicas.
	CallerMails, CallerRecipients int // in a minute
	TeamMails, TeamRecipients     int // in a minute

	Queue int // mails of a team in the due-out journal
	// MiB that stay free where the database lies; of a small disk a twentieth
	DiskMiB int

	Guard Guard
}

// Guard is what may leave without a second person's word. 0 = everything.
type Guard struct {
	// mails of a team to one address in an hour: in to or cc, in bcc where there is neither,
	// and as an additional recipient of a resend
	Address int
	Caller  int // mails of a caller, in an hour
	Team    int // mails of a team, in an hour
	Kinds   Kinds
	Batch   int // mails of one batch, in a day
}

// Kinds are mails of a team by kind, in an hour.
type Kinds map[store.Kind]int

// Defaults are what no honest caller meets. Large providers refuse more than 3,600 mails an
// hour to one mailbox, so that what the guard holds back there would not arrive either.
func Defaults() Limits {
	return Limits{CallsPerSecond: 10_000, Streams: 16, Tests: 2, TestsPerMinute: 10, Watchers: 100, Uploads: 16, UploadBytes: 256 << 20, StrictBytes: 256 << 20,
		Queue: 1_000_000, DiskMiB: 1024, Guard: Guard{Address: 3600}}
}

// Check says what cannot be meant.
func (l Limits) Check() error {
	ns := []int64{int64(l.CallsPerSecond), int64(l.Streams), int64(l.Tests), int64(l.TestsPerMinute), int64(l.Watchers), int64(l.Uploads), l.UploadBytes, l.StrictBytes,
		int64(l.CallerMails), int64(l.CallerRecipients), int64(l.TeamMails), int64(l.TeamRecipients), int64(l.Queue), int64(l.DiskMiB),
		int64(l.Guard.Address), int64(l.Guard.Caller), int64(l.Guard.Team), int64(l.Guard.Batch)}
	if slices.Min(ns) < 0 {
		return errors.New("a limit is negative: 0 means none")
	}
	return nil
}

var kinds = []store.Kind{store.KindAgentMessage, store.KindInvoice, store.KindWorkOrder, store.KindBulk, store.KindOther}

// String implements flag.Value.
func (k Kinds) String() string {
	var out []string
	for _, kind := range kinds {
		if n := k[kind]; n > 0 {
			out = append(out, fmt.Sprintf("%s=%d", kind, n))
		}
	}
	return strings.Join(out, ",")
}

// Set implements flag.Value: invoice=500,bulk=100000.
func (k *Kinds) Set(s string) error {
	next := Kinds{}
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, text, _ := strings.Cut(part, "=")
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || !slices.Contains(kinds, store.Kind(name)) {
			return fmt.Errorf("%q is not KIND=MAILS with one of the kinds %v", part, kinds)
		}
		next[store.Kind(name)] = n
	}
	*k = next
	return nil
}

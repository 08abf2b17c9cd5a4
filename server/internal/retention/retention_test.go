package retention

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"":              "",
		"bulk:90d/7d/0": "bulk/attachments after 0s, bulk/body after 168h0m0s, bulk/metadata after 2160h0m0s",
		// what ends with what it is within needs no rule
		"invoice:10y/2y/2y":          "invoice/body after 17520h0m0s, invoice/metadata after 87600h0m0s",
		"other:7d":                   "other/metadata after 168h0m0s",
		"other:7d/0":                 "other/body after 0s, other/metadata after 168h0m0s",
		"all:0":                      `"all:0" removes metadata after 0: it is kept for 7d at least, because a request_id lives as long, and a Send that is repeated later is a second mail; body and attachments may be 0`,
		"invoice:2y, bulk:167h/0":    `"bulk:167h/0" removes metadata after 167h: it is kept for 7d at least, because a request_id lives as long, and a Send that is repeated later is a second mail; body and attachments may be 0`,
		"work_order:forever/1d":      "work_order/body after 24h0m0s",
		"bulk:8d , all:forever/2d/0": "agent_message/attachments after 0s, invoice/attachments after 0s, work_order/attachments after 0s, other/attachments after 0s, agent_message/body after 48h0m0s, invoice/body after 48h0m0s, work_order/body after 48h0m0s, other/body after 48h0m0s, bulk/metadata after 192h0m0s",
		"letter:1d":                  `"letter" is no kind: agent_message, invoice, work_order, bulk, other or all`,
		"bulk":                       `"bulk" is not kind:metadata/body/attachments, such as bulk:90d/7d/0`,
		"bulk:8d,bulk:9d":            "there are two rules for bulk",
		"bulk:8d/9d":                 "bulk: body cannot be kept longer than metadata",
		"bulk:8d/1d/1d/1d":           `"bulk:8d/1d/1d/1d" has more than metadata, body and attachments`,
		"bulk:":                      "an age is missing: such as 90d, 2y, 0 or forever",
		"bulk:5w":                    `"5w" is no age: write hours, days or years as in 12h, 90d, 2y, or 0, or forever`,
		"bulk:-5d":                   `"-5d" is no age: write hours, days or years as in 12h, 90d, 2y, or 0, or forever`,
		"bulk:1000y":                 `"1000y" is no age: write hours, days or years as in 12h, 90d, 2y, or 0, or forever`,
	} {
		rules, err := Parse(text)
		var got []string
		for _, r := range rules {
			got = append(got, fmt.Sprintf("%s after %v", r.Name(), r.Age))
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if g := strings.Join(got, ", "); g != want {
			t.Errorf("%q:\n got %s\nwant %s", text, g, want)
		}
	}
}

// fake is a store with so many mails to remove, which takes a while for each.
type fake struct {
	left    int
	each    time.Duration
	pressed bool
	size    int64

	longest time.Duration
	most    int
	open    time.Duration // in all
}

func (f *fake) Purge(_ context.Context, _ string, _ store.KeepRule, most int) (p store.Purged, err error) {
	p.Mails = min(most, f.left)
	f.left -= p.Mails
	p.Took = time.Duration(p.Mails) * f.each
	time.Sleep(p.Took)
	f.longest, f.most, f.open = max(f.longest, p.Took), max(f.most, p.Mails), f.open+p.Took
	p.Looked, p.Through = p.Mails, f.left == 0
	return p, nil
}

func (f *fake) Overdue(context.Context, store.KeepRule) (time.Duration, error) { return 0, nil }
func (f *fake) WalkContents(context.Context, string) (bool, error)             { return true, nil }
func (f *fake) CollectContents(context.Context, string, int) (int, int, int64, error) {
	return 0, 0, 0, nil
}
func (f *fake) DatabaseBytes(context.Context) (int64, error) { return f.size, nil }
func (f *fake) Yield(context.Context)                        {}
func (f *fake) Pressed() bool                                { return f.pressed }
func (f *fake) Dialect() string                              { return "sqlite" }

// TestPace: transactions are as large as 10 ms allow, and while callers wait retention has a
// tenth of the time.
func TestPace(t *testing.T) {
	for _, pressed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{left: 20_000, each: 50 * time.Microsecond, pressed: pressed}
			r := New(Config{Store: f, Rules: Rules{{Kind: store.KindBulk, Part: store.PartMetadata}}, Logger: slog.New(slog.DiscardHandler)})
			began := time.Now()
			if err := r.Pass(t.Context()); err != nil || f.left > 0 {
				t.Fatalf("%d are left: %v", f.left, err)
			}
			share := float64(f.open) / float64(time.Since(began))
			if f.longest > 20*time.Millisecond || f.most < firstPage {
				t.Errorf("pressed %v: a transaction took %v, the largest had %d mails", pressed, f.longest, f.most)
			}
			if most := map[bool]float64{false: .55, true: .11}[pressed]; share > most {
				t.Errorf("pressed %v: its transactions take %.0f %% of the time, at most %.0f %% wanted", pressed, 100*share, 100*most)
			}
		})
	}
}

// TestTellsKept: without rules the log says so once a day, where there is much.
func TestTellsKept(t *testing.T) {
	for size, want := range map[int64]int{9 << 30: 0, 11 << 30: 3} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			c, cancel := context.WithTimeout(t.Context(), 2*24*time.Hour+time.Hour)
			defer cancel()
			New(Config{Store: &fake{size: size}, Logger: slog.New(slog.NewTextHandler(&log, nil))}).Run(c)
			if n := strings.Count(log.String(), "level=WARN"); n != want || n > 0 && !strings.Contains(log.String(), "--keep") {
				t.Errorf("%d bytes: %d warnings in 49 hours, want %d: %s", size, n, want, log.String())
			}
		})
	}
}

package main

import (
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// bar shows how far a long call is: one line on standard error, drawn again and again, and gone
// when it ends. Where standard error is no terminal there is none, and bar is nil.
type bar struct {
	all *mpb.Progress
	one *mpb.Bar
}

// bar begins one. total 0 = nobody knows; said is what stands behind the count, and is asked on
// a goroutine of the bar's.
func (a *app) bar(total int64, said func() string) *bar {
	if !a.drawn || a.json || a.grpcurl {
		return nil
	}
	b := &bar{all: mpb.New(mpb.WithOutput(a.errs), mpb.WithAutoRefresh(), mpb.ForceTTY(), mpb.WithRefreshRate(200*time.Millisecond))}
	count := decor.CountersNoUnit(" %d/%d")
	if total <= 0 {
		count = decor.CurrentNoUnit(" %d")
	}
	b.one = b.all.New(total, mpb.BarStyle().Lbound("[").Filler("#").Tip("#").Padding(".").Rbound("]"), mpb.BarWidth(26), mpb.BarFillerTrim(), mpb.BarRemoveOnComplete(),
		mpb.AppendDecorators(count, decor.Any(func(decor.Statistics) string { return said() }), decor.AverageSpeed(0, ", %.0f/s, "),
			decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "0s"), decor.Name(" left")))
	return b
}

// at says how far the call is.
func (b *bar) at(n int64) {
	if b != nil {
		b.one.SetCurrent(n)
	}
}

// end takes the line away.
func (b *bar) end() {
	if b != nil {
		b.one.Abort(true)
		b.all.Wait()
	}
}

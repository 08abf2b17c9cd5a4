package engine

import (
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// Gated tells the benchmark what it was built with.
const Gated = gated

// Passes is how many calls of RunBatch wait.
func (e *Engine) Passes() int { return int(e.passes.waiting.Load()) }

// MailLine writes the line of a mail again and again.
func MailLine(log *slog.Logger) func() {
	e := &Engine{log: log, cfg: Config{Observer: deaf{}, Now: time.Now}}
	m := &store.Claimed{ID: uuid.New(), MailServer: "relay", Kind: store.KindBulk, Reference: "R-1", Caller: "billing", CreateTime: time.Now()}
	v := lifecycle.Verdict{Settlement: &store.Settlement{Kind: store.SettleArchive, Status: store.MailSent,
		Progress: &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientAccepted}}}}}
	return func() { e.ended(m, v) }
}

// Paces tells whether a group of bulk waits for a drain.
var Paces = paces

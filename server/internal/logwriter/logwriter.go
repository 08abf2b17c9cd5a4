// Package logwriter writes the lines of a log in groups, because under load there is a line for
// every mail and one system call for each would cost more than the line.
//
// A line that comes after a pause is written at once. Lines that come close behind it are
// written together, a delay later at most, or when they fill a buffer. A warning and an error
// are written at once, and what came before them with them: lines keep their order.
//
// A process that is killed loses the lines of the last delay; a panic of the program is one
// such death. What has to survive it belongs into the database. A log that cannot be written
// has no place to say so: its lines are lost, and nobody waits for it longer than one write
// takes.
package logwriter

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// delay is how long a line may wait for the next ones.
	delay = 10 * time.Millisecond
	// full is how many bytes are written without waiting any longer.
	full = 64 << 10
)

// Writer is the end of a log. Any goroutine may call any method.
type Writer struct {
	to io.Writer

	mu      sync.Mutex // guards the rest, and keeps the lines in their order
	lines   []byte
	wrote   time.Time
	later   *time.Timer // will write what waits; nil = nothing does
	grouped bool
}

// New returns a Writer to w that writes every line at once, until Group is called. Each call of
// Write is taken for whole lines.
func New(w io.Writer) *Writer { return &Writer{to: w} }

// Group begins to write lines in groups.
func (w *Writer) Group() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.grouped = true
}

// Write takes lines and never fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, p...)
	switch {
	case !w.grouped, len(w.lines) >= full, w.later == nil && time.Since(w.wrote) >= delay:
		w.flush()
	case w.later == nil:
		w.later = time.AfterFunc(delay, w.Flush)
	}
	return len(p), nil
}

// Flush writes what waits.
func (w *Writer) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush()
}

// Close writes what waits; from then on every line is written at once, and none is lost when
// the process ends.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.grouped = false
	w.flush()
	return nil
}

// flush writes what waits. With mu held.
func (w *Writer) flush() {
	if w.later != nil {
		w.later.Stop() // one that begins already finds nothing
		w.later = nil
	}
	if len(w.lines) > 0 {
		_, _ = w.to.Write(w.lines)
		w.lines = w.lines[:0]
		w.wrote = time.Now()
	}
}

// Handler is next, which writes to w, but that a warning or an error waits for nothing.
func (w *Writer) Handler(next slog.Handler) slog.Handler { return handler{next, w} }

type handler struct {
	slog.Handler
	w *Writer
}

// Handle implements slog.Handler.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.w.Flush()
	}
	return err
}

// WithAttrs implements slog.Handler.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.w}
}

// WithGroup implements slog.Handler.
func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name), h.w} }

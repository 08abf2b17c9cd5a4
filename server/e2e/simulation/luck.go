package simulation

import (
	"math/rand/v2"
	"unsafe"
	_ "unsafe" // for linkname
)

// A simulation is only worth its seed when the runtime's own luck comes from it as well: which
// of two ready cases a select takes, in which order timers of the same instant fire, where the
// walk over a map begins, and what the global functions of math/rand/v2 say. With one processor
// all of these are drawn from two states in the thread that runs everything. Nothing sets them
// from outside, so this looks for them: the one that moves by a known step, and the one that
// holds the numbers which were just drawn.

// goroutine is the running goroutine's descriptor.
func goroutine() unsafe.Pointer

//go:linkname cheaprand runtime.cheaprand
func cheaprand() uint32

const (
	// of a goroutine: behind its stack's bounds and its panics and defers
	threadAt  = 48
	threadEnd = 2048               // as far as is looked
	wyStep    = 0xa0761d6478bd642f // of cheaprand's state
)

// chacha is internal/chacha8rand.State.
type chacha struct {
	buf     [32]uint64
	seed    [4]uint64
	i, n, c uint32
}

// luck is the state that selects and timers draw from. nil: it is not where it is looked for.
type luck struct {
	thread unsafe.Pointer
	cheap  *uint64
	deep   *chacha
}

// renew sets the state once more: the runtime itself draws from it now and then, at moments of
// its own.
func (l *luck) renew(n uint64) {
	if l != nil && l.thread == thread() {
		*l.cheap = n
		for i := range l.deep.buf {
			n = n*0x5851f42d4c957f2d + 0x14057b7ef767814f
			l.deep.buf[i] = n ^ n>>29
		}
		l.deep.i, l.deep.n, l.deep.c = 0, 28, 0
	}
}

func thread() unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Add(goroutine(), threadAt)) }

// bless makes the runtime's luck a function of seed.
func bless(seed uint64) *luck {
	thread := thread()
	word := func(at int) *uint64 { return (*uint64)(unsafe.Add(thread, at)) }
	var before [threadEnd / 8]uint64
	for i := range before {
		before[i] = *word(8 * i)
	}
	cheaprand()
	var cheap *uint64
	for i := range before {
		if *word(8 * i)-before[i] == wyStep {
			cheap = word(8 * i)
		}
	}
	drawn := rand.Uint64()
	var deep *chacha
	for at := 0; at < threadEnd; at += 8 {
		if *word(at) != drawn {
			continue
		}
		for i := range 32 {
			if s := (*chacha)(unsafe.Add(thread, at-8*i)); at >= 8*i && s.i == uint32(i+1) && s.n <= 32 {
				deep = s
			}
		}
	}
	if cheap == nil || deep == nil {
		return nil
	}
	l := &luck{thread, cheap, deep}
	l.renew(seed)
	return l
}

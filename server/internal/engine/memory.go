package engine

import "context"

const (
	// mails below cost no more than what their claim has brought in, and wait for nobody
	largeMail = 256 << 10
	// of a large mail until its dot has left: as read, as joined, as written to the relay, and
	// what waits to be collected
	copiesHeld = 4
)

// cost is what a job takes of memory until its dot has left.
func (e *Engine) cost(j *job) int64 { return min(copiesHeld*j.Mail.SizeBytes, e.cfg.MaxBytes/2) }

// tryReserve takes what a large mail needs of memory, false when that is not free now. A mail
// that its caller waits for takes none: it was counted when it came in, and must not wait
// behind the batch.
func (e *Engine) tryReserve(j *job) bool {
	if j.Mail.SizeBytes < largeMail || j.Interactive || j.weight > 0 {
		return true
	}
	if c := e.cost(j); e.bodies.TryReserve(j.Mail.MailServer, c) {
		j.weight = c
	}
	return j.weight > 0
}

// load brings a claimed mail's raw message into memory. A large one waits for room.
func (e *Engine) load(ctx context.Context, j *job) error {
	if !e.tryReserve(j) {
		c := e.cost(j)
		if err := e.bodies.Reserve(ctx, j.Mail.MailServer, c); err != nil {
			return err
		}
		j.weight = c
	}
	raw, err := e.journal.LoadRaw(ctx, j.Mail)
	if err != nil {
		e.releaseMemory(j)
		return err
	}
	j.raw = raw
	return nil
}

// dotLeaves gives back all but one copy: the body is written but for its last block, and what
// is left to wait for is the relay's reply, perhaps for minutes.
func (e *Engine) dotLeaves(j *job) {
	if one := j.Mail.SizeBytes; j.weight > one {
		e.bodies.Release(j.Mail.MailServer, j.weight-one)
		j.weight = one
	}
}

// releaseBody lets go of a message that will be loaded again: what only waits must not keep
// others from being sent.
func (e *Engine) releaseBody(j *job) {
	if j.weight > 0 {
		e.bodies.Release(j.Mail.MailServer, j.weight)
		j.weight, j.raw = 0, nil
	}
}

// releaseMemory gives back all that a job holds.
func (e *Engine) releaseMemory(j *job) {
	e.releaseBody(j)
	if j.direct > 0 {
		e.direct.Release(j.direct)
		j.direct = 0
	}
	j.raw, j.Mail.Raw = nil, nil
}

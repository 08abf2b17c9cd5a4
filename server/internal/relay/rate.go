package relay

import (
	"context"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// rate is this process's part of a mail server's limits per minute and per day. What it has
// used and what it holds is told with each taking, and within a second where nothing is taken.
type rate struct {
	// held while the database is asked: calls go there in the order of their numbers
	turn chan struct{}

	mu   sync.Mutex
	use  store.RateUse // Quiet is not kept: it is told from left
	told store.RateUse // what the database knows
	at   time.Time     // when it was told
	left time.Time     // when the last mail left
}

// Limited reports whether a mail server has a limit per minute or per day.
func Limited(s *store.MailServer) bool {
	return s.Limits.MailsPerMinute > 0 || s.Limits.MailsPerDay > 0
}

// TakeRate takes up to want mails out of the mail server's limits; each of them has to be spent
// or given back. next says when there may be more, if not all was granted.
func (r *Relay) TakeRate(ctx context.Context, s *store.MailServer, want int) (granted int, next time.Time, err error) {
	select {
	case r.rate.turn <- struct{}{}:
		defer func() { <-r.rate.turn }()
	case <-ctx.Done():
		return 0, next, ctx.Err()
	}
	r.rate.mu.Lock()
	r.rate.use.Call++
	use := r.rate.use
	tells := use
	tells.Quiet = time.Since(r.rate.left)
	r.rate.mu.Unlock()
	granted, next, err = r.rs.cfg.Journal.TakeRate(ctx, r.rs.cfg.Replica(), s.Name, tells, want, int(s.Limits.MailsPerMinute), int(s.Limits.MailsPerDay))
	r.rate.mu.Lock()
	defer r.rate.mu.Unlock()
	r.rate.at = time.Now()
	if err != nil {
		return 0, next, err
	}
	r.rate.use.Held += granted
	use.Held += granted
	r.rate.told = use
	return granted, next, nil
}

// Spend says that n of the mails that were taken have left, or were refused for themselves.
func (r *Relay) Spend(n int) {
	r.rate.mu.Lock()
	defer r.rate.mu.Unlock()
	r.rate.use.Held -= n
	r.rate.use.Used += int64(n)
	r.rate.left = time.Now()
}

// GiveBack says that n of the mails that were taken will not leave now.
func (r *Relay) GiveBack(n int) {
	r.rate.mu.Lock()
	defer r.rate.mu.Unlock()
	r.rate.use.Held -= n
}

// tellRate tells the database what was used and given back since the last taking, if anything
// was and that is older than age.
func (r *Relay) tellRate(ctx context.Context, age time.Duration) {
	r.rate.mu.Lock()
	same := r.rate.told == r.rate.use || time.Since(r.rate.at) < age
	r.rate.mu.Unlock()
	if same {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	if _, _, err := r.TakeRate(ctx, r.newest(), 0); err != nil {
		r.rs.cfg.Logger.Warn("use of the mail server's limits not written yet", "mail_server", r.name, "error", err)
	}
}

// takesFor is how long is remembered how many recipients a mail server takes at once.
const takesFor = time.Hour

// MaxRecipients is how many recipients one transaction of this mail server may have: what is
// configured, or fewer where the mail server was found to take fewer.
func (r *Relay) MaxRecipients() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := smtpx.MaxRecipients
	if l := int(r.server.Limits.MaxRecipientsPerMail); l > 0 {
		n = min(n, l)
	}
	if r.rs.cfg.Now().Before(r.takesUntil) {
		n = min(n, r.takes)
	}
	return n
}

// Took notes that the mail server took n recipients of a transaction and said that more are too
// many. For a while its transactions have no more. It is asked anew after that: some say so of
// a rate that is over by then.
func (r *Relay) Took(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.takes, r.takesUntil = max(1, n), r.rs.cfg.Now().Add(takesFor)
}

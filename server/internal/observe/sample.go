package observe

import (
	"context"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// Counter counts the due-out journal.
type Counter interface {
	CountQueue(ctx context.Context, sc store.Scope, team *string, server string) (*store.QueueCount, error)
}

const (
	// sampleEvery is the pause between two samples.
	sampleEvery = 5 * time.Second
	// sampleShare bounds what samples cost: the pause is at least so many times as long as the
	// last one took. A journal of a million mails is counted less often.
	sampleShare = 20
	sampleTime  = 30 * time.Second
)

// sampled is what the database said at a time.
type sampled struct {
	at    time.Time
	count *store.QueueCount
}

// Sample counts the due-out journal again and again until ctx ends. What failed leaves the last
// sample in place, whose age tells.
func (m *Metrics) Sample(ctx context.Context, c Counter) {
	for {
		began := time.Now()
		m.sampleOnce(ctx, c)
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(sampleEvery, sampleShare*time.Since(began))):
		}
	}
}

func (m *Metrics) sampleOnce(ctx context.Context, c Counter) {
	ctx, cancel := context.WithTimeout(ctx, sampleTime)
	defer cancel()
	if n, err := c.CountQueue(ctx, store.Everything, nil, ""); err == nil {
		m.sample.Store(&sampled{time.Now(), n})
	}
}

// due is what one series of due mail says.
type due struct {
	mails  int
	oldest time.Time
}

func (s *sampled) put(put putter) {
	put("sample_age_seconds", time.Since(s.at).Seconds())
	put("scheduled_mails", float64(s.count.Scheduled))
	put("watch_lag_seconds", s.count.WatchLag.Seconds())
	for _, status := range []store.MailStatus{store.MailQueued, store.MailSending, store.MailDeferred, store.MailHeld, store.MailFailed, store.MailUnknown, store.MailPartiallySent} {
		put("journal_mails", float64(s.count.ByStatus[status]), string(status))
	}
	// What is not a lane of its own, and mail servers beyond the bound, share a series.
	sums := map[[2]string]due{}
	servers := map[string]bool{}
	for l, lane := range s.count.DueByServer {
		server := l.MailServer
		if !servers[server] && len(servers) >= maxServers {
			server = "other"
		}
		servers[server] = true
		key := [2]string{server, laneLabel(l.Priority)}
		sum := sums[key]
		sum.mails += lane.Waiting
		if sum.oldest.IsZero() || lane.Oldest.Before(sum.oldest) {
			sum.oldest = lane.Oldest
		}
		sums[key] = sum
	}
	for key, d := range sums {
		put("due_mails", float64(d.mails), key[0], key[1])
		put("due_oldest_age_seconds", max(0, s.count.Time.Sub(d.oldest)+time.Since(s.at)).Seconds(), key[0], key[1])
	}
}

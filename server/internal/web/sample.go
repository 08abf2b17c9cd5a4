package web

import (
	"context"
	"sync"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

const (
	// A sample is taken every sampleEvery, and less often where counting takes long: it is
	// never more than a twentieth of the time.
	sampleEvery = 30 * time.Second
	sampleShare = 20
	// historyLife is how long samples are kept, and how long a team is sampled after somebody
	// has looked at its queue.
	historyLife = 6 * time.Hour
	// maxTeams bounds what is sampled for teams.
	maxTeams = 50
)

// sample is a queue at one moment.
type sample struct {
	at      time.Time
	waiting int64
	sent    int64 // in the minute before
}

// series are the samples of the whole service or of one team.
type series struct {
	looked  time.Time
	samples []sample // by time
}

// history is what the charts show. It is in memory and begins with the process; that of a team
// begins when somebody first looks.
type history struct {
	mu  sync.Mutex         // guards all
	all map[string]*series // by team; everything is ""
}

// run takes samples until ctx ends.
func (h *history) run(ctx context.Context, p *Page) {
	h.watch("", p.cfg.Now())
	client := pb.NewDispatchClient(p.cfg.Samples)
	t := time.NewTimer(0)
	defer t.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		began := time.Now()
		for _, team := range h.teams(p.cfg.Now()) {
			req := &pb.GetQueueStatsRequest{}
			if team != "" {
				req.Team = &team
			}
			res, err := client.GetQueueStats(ctx, req)
			if (err != nil) != failed && ctx.Err() == nil {
				if failed = err != nil; failed {
					p.cfg.Logger.Warn("the chart of the web page has a gap", "error", err)
				}
			}
			if err == nil {
				h.add(team, sample{p.cfg.Now(), res.Waiting, res.SentLastMinute})
			}
		}
		t.Reset(max(sampleEvery, sampleShare*time.Since(began)))
	}
}

// watch has a team sampled from now on; false when there are too many.
func (h *history) watch(team string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[string]*series{}
	}
	s := h.all[team]
	if s == nil {
		if len(h.all) > maxTeams {
			return false
		}
		s = &series{}
		h.all[team] = s
	}
	s.looked = now
	return true
}

// teams are those to sample now; the others are forgotten.
func (h *history) teams(now time.Time) (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for team, s := range h.all {
		if team != "" && now.Sub(s.looked) > historyLife {
			delete(h.all, team)
			continue
		}
		out = append(out, team)
	}
	return out
}

func (h *history) add(team string, x sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.all[team]
	if s == nil {
		return
	}
	old := 0
	for old < len(s.samples) && x.at.Sub(s.samples[old].at) > historyLife {
		old++
	}
	s.samples = append(s.samples[old:], x)
}

// of are the samples of a team.
func (h *history) of(team string) []sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.all[team]; s != nil {
		return append([]sample(nil), s.samples...)
	}
	return nil
}

package web

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// counter is a queue in which one mail more waits at each count, and ten times as many of a
// team.
type counter struct {
	grpc.ClientConnInterface
	who   *pb.WhoAmIResponse
	asked map[string]int64 // by team; only the sampler's goroutine uses it
}

func (c *counter) Invoke(_ context.Context, _ string, req, reply any, _ ...grpc.CallOption) error {
	switch r := reply.(type) {
	case *pb.WhoAmIResponse:
		r.Name, r.Roles, r.Teams, r.System = c.who.Name, c.who.Roles, c.who.Teams, c.who.System
	case *pb.GetQueueStatsResponse:
		if c.asked == nil {
			return nil // a view's own count
		}
		team := req.(*pb.GetQueueStatsRequest).GetTeam()
		c.asked[team]++
		if r.Waiting = c.asked[team]; team != "" {
			r.Waiting *= 10
		}
	}
	return nil
}

// TestCharts: the queue is sampled every 30 s and kept for six hours; a team is sampled from
// when somebody looks, and its people see its own samples only.
func TestCharts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		who := &pb.WhoAmIResponse{Name: "boss", Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true}
		p, err := New(Config{Calls: &counter{who: who}, Samples: &counter{asked: map[string]int64{}}, Asks: func() bool { return false }, Named: func(string) bool { return false },
			Target: func(string, string) plain.Target { return plain.Target{} }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go p.Run(ctx)
		defer synctest.Wait()
		defer cancel()
		look := func(address string) string {
			w := httptest.NewRecorder()
			p.ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1"+address, nil))
			return w.Body.String()
		}
		says := func(address, want string, yes bool) {
			t.Helper()
			if got := look(address); strings.Contains(got, want) != yes {
				t.Errorf("%s: got\n%s\nwant %q in it: %v", address, got, want, yes)
			}
		}
		synctest.Wait()
		says("/queue", "There are too few yet", true)
		time.Sleep(61 * time.Second)
		says("/queue", "<svg", true)
		says("/queue", "at most 3, now 3", true)
		says("/queue?server=main", "The charts are of all mail servers together", true)

		who.System, who.Teams = false, []string{"t1"}
		says("/queue", "There are too few yet", true) // of its own team
		time.Sleep(61 * time.Second)
		says("/queue", "at most 20, now 20", true)
		who.Teams = []string{"t1", "t2"}
		says("/queue", "Choose a team", true)
		says("/queue", "<svg", false)
		says("/queue?team=t3", "<svg", false)

		time.Sleep(7 * time.Hour)
		if n := len(p.history.of("")); n < 700 || n > 722 {
			t.Errorf("got %d samples after seven hours, want those of six", n)
		}
		if p.history.of("t1") != nil {
			t.Error("a team that nobody looks at is sampled without end")
		}
	})
}

// TestDraw: a chart keeps peaks, whatever the number of samples, and stays in its frame.
func TestDraw(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	var samples []sample
	for i := range 720 {
		samples = append(samples, sample{at: at.Add(time.Duration(i) * 30 * time.Second), waiting: 5})
	}
	samples[301].waiting = 1000
	c := draw("waiting", "Mails that wait", samples, func(s sample) int64 { return s.waiting })
	if c.Top != 1000 || !strings.Contains(c.Line, " 6L") || strings.Count(c.Line, "L") > chartColumns || !strings.HasPrefix(c.Line, "M0 100") {
		t.Errorf("got %+v", c)
	}
	if draw("waiting", "x", samples[:1], func(sample) int64 { return 1 }) != nil {
		t.Error("a chart of one sample")
	}
}

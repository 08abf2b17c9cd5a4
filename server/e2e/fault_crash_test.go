package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestKillDuringABatch (F1): kill -9 at random commands of a batch, restart each time. Nothing
// is lost, nothing is doubled in silence, at most one mail a connection is in doubt, and what
// was claimed goes on.
func TestKillDuringABatch(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		mails, kills := scaled(600, 5000), scaled(5, 50)
		w := newWitness(t, 20*time.Millisecond, nil)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
		ids := s.queue("bulk", mails)
		db := openDB(t, s.dsn())
		s.args = append(s.args, "--batch-interval=0")
		s.kill()
		var worst, takeover time.Duration
		for k := range kills {
			leaseOver(t, db, s.dsn()) // but for the last kill
			first := w.after(1)
			begin := time.Now()
			s.run()
			worst = max(worst, await(t, "the first command after a restart", first).Sub(begin))
			await(t, fmt.Sprintf("a moment for kill %d", k+1), w.after(20+rand.N(280)))
			s.kill()
		}
		begin := time.Now()
		s.run()
		eventually(t, time.Minute, "the dead replica's mail is taken over", func() bool {
			var n int
			if err := db.QueryRow("select count(*) from due join replica on replica.id = due.owner where replica.id < (select max(id) from replica)").Scan(&n); err != nil {
				t.Fatal(err)
			}
			takeover = time.Since(begin)
			return n == 0
		})
		// Those that two or three died of wait for 1.5 or 15 minutes, at full size truly.
		s.drained("bulk", time.Duration(scaled(3, 20))*time.Minute, func() {
			if scaled(1, 0) == 1 {
				suspicionOver(t, db, s.dsn())
			}
		})
		a := w.account(s, ids)
		t.Logf("F1 %s worst_restart=%v takeover=%v mails=%d kills=%d", a, worst.Round(time.Millisecond), takeover.Round(time.Millisecond), mails, kills)
		if a.flagged > flight*kills || a.doubled > flight*kills || a.mostPerConnection > 1 || a.quarantined > 0 {
			t.Errorf("more doubt than connections, or more suspicion than deaths: %+v", a)
		}
		s.stop()
		intact(t, s.dsn())
		s.invariants(t)
	})
}

// TestKillDuringSubmits (F2): kill -9 while callers submit and repeat what was not acknowledged
// with the same request_id. Every acknowledged id is there, one mail a key, none half-written.
func TestKillDuringSubmits(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		kills, callers := scaled(4, 50), 8
		w := newWitness(t, 0, nil)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
		s.args = append(s.args, "--listen="+s.addr) // where the callers find it again
		var mu sync.Mutex
		acked := map[string]string{} // id by request_id
		repeated := 0
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		tick := time.NewTicker(time.Second / 200)
		defer tick.Stop()
		heard := make(chan bool, 1)
		conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		caller := &service{t: t, dispatch: pb.NewDispatchClient(conn)}
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-tick.C:
					case <-ctx.Done():
						return
					}
					r := &pb.SendRequest{RequestId: fmt.Sprintf("r-%d-%d", c, i), Options: &pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_BULK}, Message: message("u@y.example")}
					for try := 0; ; try++ {
						one, cancel := context.WithTimeout(context.Background(), time.Minute)
						out, err := caller.send(one, r)
						cancel()
						if err == nil {
							mu.Lock()
							acked[r.RequestId] = out.id
							if try > 0 {
								repeated++
							}
							mu.Unlock()
							select {
							case heard <- true:
							default:
							}
							break
						}
						if status.Code(err) != codes.Unavailable {
							t.Errorf("%s: %v", r.RequestId, err)
							return
						}
						<-time.After(20 * time.Millisecond) // a poll
						if try > 2000 {
							t.Errorf("%s: never acknowledged", r.RequestId)
							return
						}
					}
				}
			})
		}
		for range kills {
			for range about(30) {
				select {
				case <-heard:
				case <-time.After(time.Minute):
					t.Fatal("no submit is acknowledged")
				}
			}
			s.kill()
			s.run()
		}
		stop()
		wg.Wait()
		db := openDB(t, s.dsn())
		var mails, keys int
		if err := db.QueryRow("select count(*), count(distinct request_id) from mail").Scan(&mails, &keys); err != nil {
			t.Fatal(err)
		}
		lost := 0
		var ids []string
		for key, id := range acked {
			if m := s.mail(id); m.RequestId != key {
				lost++
			}
			ids = append(ids, id)
		}
		if lost != 0 || mails != keys || mails != len(acked) {
			t.Errorf("%d acknowledged, %d mails of %d keys, %d not what was acknowledged", len(acked), mails, keys, lost)
		}
		leaseOver(t, db, s.dsn())
		s.drained("bulk", 2*time.Minute)
		a := w.account(s, ids)
		t.Logf("F2 %s acknowledged=%d repeated=%d rows_per_key=%d/%d kills=%d", a, len(acked), repeated, mails, keys, kills)
		if repeated == 0 {
			t.Error("no call was cut")
		}
		s.stop()
		intact(t, s.dsn())
		s.invariants(t)
	})
}

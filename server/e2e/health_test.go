package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// isServing asks health after a service name.
func (s *service) isServing(name string) bool {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := healthpb.NewHealthClient(s.conn).Check(ctx, &healthpb.HealthCheckRequest{Service: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Status == healthpb.HealthCheckResponse_SERVING
}

// trySend sends one daemon-mode mail and says whether it was accepted. Any error but that the
// database is unavailable ends the test.
func (s *service) trySend() bool {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := s.send(ctx, one("bulk", pb.Kind_KIND_INVOICE, "s", "u@y.example"))
	if err != nil && (status.Code(err) != codes.Unavailable || client.ReasonOf(err) != pb.ReasonDatabaseUnavailable) {
		s.t.Fatalf("got the error %v, want UNAVAILABLE with reason DATABASE_UNAVAILABLE", err)
	}
	return err == nil
}

// withoutWrites checks what a service says whose database takes no writes, and that it
// recovers.
func (s *service) withoutWrites(off, on func()) {
	s.t.Helper()
	eventually(s.t, 20*time.Second, "health is SERVING", func() bool { return s.isServing("") })
	if !s.trySend() {
		s.t.Fatal("refused while all is well")
	}
	off()
	within(s.t, 20*time.Second, "health is NOT_SERVING", func() bool { return !s.isServing("") })
	for range 6 {
		if s.trySend() {
			s.t.Error("accepted by a database that takes no writes")
		}
	}
	if !s.isServing("liveness") {
		s.t.Error("liveness is not SERVING although the process answers")
	}
	if !strings.Contains(s.log.String(), "the database does not take the renewal of the lease") {
		s.t.Error("the log does not say why health is NOT_SERVING")
	}
	on()
	within(s.t, 5*time.Second, "mail is accepted again", s.trySend)
	within(s.t, 5*time.Second, "health is SERVING again", func() bool { return s.isServing("") })
}

// TestHealthIsAWrite: health follows whether the database takes writes, not whether it answers.
func TestHealthIsAWrite(t *testing.T) {
	t.Parallel()
	t.Run("read-only", func(t *testing.T) {
		dsn := storetest.PostgresDSN(t)
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(u.Path, "/")
		u.Path = "/postgres"
		db, err := sql.Open("postgres", u.String())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		turn := func(to string) {
			for _, st := range []string{"alter database " + name + " set default_transaction_read_only = " + to,
				"select pg_terminate_backend(pid) from pg_stat_activity where datname = '" + name + "'"} {
				if _, err := db.Exec(st); err != nil {
					t.Fatal(err)
				}
			}
		}
		s := start(t, dsn)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, (&smtpxtest.Server{}).Start(t).Port())
		s.withoutWrites(func() { turn("on") }, func() { turn("off") })
	})
	t.Run("standby", func(t *testing.T) {
		first, err := storetest.StartCluster()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = first.Stop("immediate") }) // the test may have ended it
		second, err := first.StartStandby()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = second.Stop("immediate") })
		s := start(t, fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", second.Port, first.Port))
		s.addServer("bulk", pb.Mode_MODE_DAEMON, (&smtpxtest.Server{}).Start(t).Port())
		s.withoutWrites(func() {
			if err := first.Stop("fast"); err != nil {
				t.Fatal(err)
			}
		}, func() {
			if err := second.Promote(); err != nil {
				t.Fatal(err)
			}
		})
	})
}

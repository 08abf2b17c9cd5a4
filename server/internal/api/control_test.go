package api_test

import (
	"context"
	"sync"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestManyControlCallsAtOnce: forty people retry mails at the same moment. A call holds one
// connection of the database and waits for no second one, so that none of them fails and the
// lease is renewed meanwhile.
func TestManyControlCallsAtOnce(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		const calls = 40
		r.server("main", pb.Mode_MODE_DAEMON)
		ids := r.queue("main", calls)
		me, err := r.store.Register(ctx(t), "other", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for _, id := range ids {
			wg.Go(func() {
				<-begin
				res, err := r.dispatch.RetryMails(c, &pb.RetryMailsRequest{Ids: []string{id}})
				if err != nil || res.Changed != 1 {
					t.Errorf("retry: got %v, %v, want one mail changed", res, err)
				}
			})
		}
		close(begin)
		began := time.Now()
		for range 5 {
			if err := r.store.Renew(c, me, time.Minute); err != nil {
				t.Errorf("the lease is not renewed meanwhile: %v", err)
			}
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("five renewals of the lease took %v, want less than a lease's patience", took)
		}
		wg.Wait()
	})
}

// TestRetryLooksAtTheMailServer: a mail is not retried through a mail server that is switched
// off.
func TestRetryLooksAtTheMailServer(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		id := r.queue("main", 1)[0]
		off := &pb.MailServer{Name: "main", Status: pb.MailServer_STATUS_UNAVAILABLE}
		if _, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: off}); err != nil {
			t.Fatal(err)
		}
		for _, dryRun := range []bool{true, false} {
			res, err := r.dispatch.RetryMails(ctx(t), &pb.RetryMailsRequest{Ids: []string{id}, ValidateOnly: dryRun})
			if err != nil || res.Changed != 0 || len(res.Failures) != 1 || res.Failures[0].Message != "its mail server main is unavailable" {
				t.Errorf("validate_only %v: got %v, %v, want a failure that names the mail server", dryRun, res, err)
			}
		}
	})
}

package client_test

import (
	"context"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// items yields n, and counts how often it is ranged over.
func items(n int, ranged *int) iter.Seq[*maildispatchv1.BatchItem] {
	return func(yield func(*maildispatchv1.BatchItem) bool) {
		*ranged++
		for i := range n {
			if !yield(itemTo(i)) {
				return
			}
		}
	}
}

func TestSendAll(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]clienttest.Fault{
		"whole":           nil,
		"broken at once":  {{}, {}, {}},
		"the answer lost": {{Done: true}, {Done: true}, {Done: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault("SendBatch", faults...)
				c := srv.Client(t, client.Options{})
				const n = 700
				ranged := 0
				sum, err := c.SendAll(t.Context(), newsletter(), items(n, &ranged))
				if err != nil || sum.Received != n || sum.Accepted != n || sum.Duplicates+sum.Rejected != 0 || sum.BatchId == "" {
					t.Fatalf("%v, %v", sum, err)
				}
				if ranged != len(faults)+1 {
					t.Errorf("ranged over %d times", ranged)
				}
				once(t, srv, sum.BatchId, n)
				for _, m := range srv.Mails() {
					if m.Mail.Status != maildispatchv1.MailStatus_MAIL_STATUS_QUEUED {
						t.Fatalf("%v", m.Mail)
					}
				}
			})
		})
	}
}

// What the caller named is the caller's: a repeated call cannot tell whose first one it was.
func TestSendAllOwnRequestIDs(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Fault("SendBatch", clienttest.Fault{Done: true})
	c := srv.Client(t, client.Options{})
	mine := itemTo(0)
	mine.RequestId = "mine"
	sum, err := c.SendAll(t.Context(), newsletter(), slices.Values([]*maildispatchv1.BatchItem{mine, itemTo(1), nil}))
	if err != nil || sum.Received != 3 || sum.Accepted != 0 || sum.Duplicates != 2 || sum.Rejected != 1 || sum.Rejections[0].Position != 2 {
		t.Errorf("%v, %v", sum, err)
	}
	if mine.RequestId != "mine" || srv.Mails()[0].Mail.RequestId != "mine" {
		t.Error("the request_id was changed")
	}
}

// Items that are not the same when they are ranged over again are told, not doubled.
func TestSendAllOtherItems(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Fault("SendBatch", clienttest.Fault{Done: true})
	c := srv.Client(t, client.Options{})
	n := 0
	sum, err := c.SendAll(t.Context(), newsletter(), func(yield func(*maildispatchv1.BatchItem) bool) {
		n++
		yield(itemTo(n))
	})
	if err != nil || sum.Rejected != 1 || sum.Rejections[0].Reason != maildispatchv1.ReasonRequestIDReused || len(srv.Mails()) != 1 {
		t.Errorf("%v, %v", sum, err)
	}
}

func TestSendAllFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		faults []clienttest.Fault
		code   codes.Code
		ranged int
	}{
		"unavailable": {slices.Repeat([]clienttest.Fault{{}}, 9), codes.Unavailable, 4},
		"refused":     {[]clienttest.Fault{{Err: clienttest.Error(codes.InvalidArgument, maildispatchv1.ReasonValidationFailed, "no")}}, codes.InvalidArgument, 1},
		"silent":      {[]clienttest.Fault{{Hang: true}}, codes.DeadlineExceeded, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault("SendBatch", c.faults...)
				ranged, began := 0, time.Now()
				res, err := srv.Client(t, client.Options{SendTimeout: time.Minute}).SendAll(t.Context(), nil, items(3, &ranged))
				if status.Code(err) != c.code || res != nil || ranged != c.ranged || len(srv.Mails()) != 0 {
					t.Errorf("%v, %v, ranged over %d times", res, err, ranged)
				}
				if took := time.Since(began); c.code == codes.DeadlineExceeded && took != time.Minute {
					t.Errorf("after %v", took)
				}
			})
		})
	}
	srv := clienttest.New(t)
	cl := srv.Client(t, client.Options{})
	huge := itemTo(1)
	huge.Message.Text = strings.Repeat("x", 16<<20)
	if _, err := cl.SendAll(t.Context(), nil, slices.Values([]*maildispatchv1.BatchItem{itemTo(0), huge})); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "item 1") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cl.SendAll(ctx, nil, slices.Values([]*maildispatchv1.BatchItem{itemTo(0)})); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
}

// Items may come slowly: only the service must not be silent.
func TestSendAllSlowItems(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		sum, err := srv.Client(t, client.Options{SendTimeout: time.Minute}).SendAll(t.Context(), newsletter(), func(yield func(*maildispatchv1.BatchItem) bool) {
			for i := range 3 {
				time.Sleep(2 * time.Minute) // in the bubble
				yield(itemTo(i))
			}
		})
		if err != nil || sum.Accepted != 3 {
			t.Errorf("%v, %v", sum, err)
		}
	})
}

package client_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func TestReadingErrors(t *testing.T) {
	t.Parallel()
	wrong := []client.Violation{{Field: "message.to[2]", Description: "is not an address"}, {Field: "request_id", Description: "is too long"}}
	invalid := clienttest.Error(codes.InvalidArgument, maildispatchv1.ReasonValidationFailed, "the request is not valid", wrong...)
	foreign, err := status.New(codes.NotFound, "no").WithDetails(&errdetails.ErrorInfo{Reason: "MAIL_NOT_FOUND", Domain: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		err        error
		reason     string
		violations []client.Violation
		after      time.Duration
		says       bool
	}{
		"nil":               {nil, "", nil, 0, false},
		"not a status":      {errors.New("oops"), "", nil, 0, false},
		"without details":   {status.Error(codes.Unavailable, "connection refused"), "", nil, 0, false},
		"of another domain": {foreign.Err(), "", nil, 0, false},
		"bad request":       {invalid, "VALIDATION_FAILED", wrong, 0, false},
		"wrapped":           {fmt.Errorf("send the invoice: %w", invalid), "VALIDATION_FAILED", wrong, 0, false},
		"overloaded":        {clienttest.Overloaded(3 * time.Second), "OVERLOADED", nil, 3 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := client.ReasonOf(test.err); got != test.reason {
				t.Errorf("reason %q", got)
			}
			if got := client.Violations(test.err); !slices.Equal(got, test.violations) {
				t.Errorf("violations %v", got)
			}
			if after, says := client.RetryAfter(test.err); after != test.after || says != test.says {
				t.Errorf("retry after %v, %v", after, says)
			}
		})
	}
}

package api

import (
	"strings"
	"testing"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// TestFailureIsShown: each class of the schema is a class of smtpx under the same name, and
// comes with a hint. A result without one has neither.
func TestFailureIsShown(t *testing.T) {
	t.Parallel()
	for number, name := range pb.RecipientResult_Failure_name {
		f := pb.RecipientResult_Failure(number)
		word := strings.ToLower(strings.TrimPrefix(name, "FAILURE_"))
		if f == pb.RecipientResult_FAILURE_UNSPECIFIED {
			word = ""
		}
		if got := string(failureOf[f]); got != word {
			t.Errorf("%s is %q, want %q", name, got, word)
		}
		got := viewer{}.recipientResult(store.Recipient{Mailbox: "a@x.example"}, store.RecipientResult{Status: store.RecipientRejected, Failure: word, Detail: "no"})
		if got.Failure != f || (got.Hint != "") != (word != "") {
			t.Errorf("%q is shown as %v with the hint %q", word, got.Failure, got.Hint)
		}
	}
	got := viewer{}.recipientResult(store.Recipient{Mailbox: "a@x.example"}, store.RecipientResult{Failure: string(smtpx.FailRecipientPolicy), Detail: "Greylisted"})
	if !strings.Contains(got.Hint, "greylisting") {
		t.Errorf("greylisting has the hint %q", got.Hint)
	}
}

package api_test

import (
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/client/clienttest"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx"
)

// TestOutcomesOfTheServiceInMemory: the outcomes that callers test with have the class and the
// hint that the service gives to these replies, and lead to the same status.
func TestOutcomesOfTheServiceInMemory(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]clienttest.Outcome{"Refused": clienttest.Refused, "Deferred": clienttest.Deferred, "MailboxFull": clienttest.MailboxFull, "Greylisted": clienttest.Greylisted,
		"Spam": clienttest.Spam, "TooLarge": clienttest.TooLarge, "BlockListed": clienttest.BlockListed, "LoginRefused": clienttest.LoginRefused, "Throttled": clienttest.Throttled,
		"Unreachable": clienttest.Unreachable, "NoToken": clienttest.NoToken} {
		phase := smtpx.PhaseRcpt
		switch name {
		case "LoginRefused":
			phase = smtpx.PhaseAuth
		case "Unreachable":
			phase = smtpx.PhaseConnect
		case "NoToken":
			phase = smtpx.PhaseToken
		}
		said := smtpx.Said{Phase: phase, Reply: smtpx.Reply{Code: int(o.SmtpCode), Enhanced: o.EnhancedCode, Text: o.Detail}}
		f := smtpx.FailureOf(said)
		if want := pb.RecipientResult_Failure(pb.RecipientResult_Failure_value["FAILURE_"+strings.ToUpper(string(f))]); o.Failure != want || o.Hint != f.Hint(o.Detail) {
			t.Errorf("%s: %v with %q, the service says %v with %q", name, o.Failure, o.Hint, want, f.Hint(o.Detail))
		}
		if o.SmtpCode == 0 {
			continue
		}
		means := smtpx.Means(said)
		want := map[smtpx.Action]pb.RecipientResult_Status{smtpx.ActRefuse: pb.RecipientResult_STATUS_REJECTED, smtpx.ActDefer: pb.RecipientResult_STATUS_DEFERRED}[means.Action]
		if o.Status != want {
			t.Errorf("%s: %v, the service makes %v of it", name, o.Status, want)
		}
	}
}

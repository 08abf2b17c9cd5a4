package relay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// maxAlike is how many mails in a row a mail server may refuse for good for the same reason,
// where that reason is the sender and not the mail. The relay's answer stands for those before:
// nobody can tell the first refusal from one that is about its mail. From this one on the mails
// wait, and the mail server is suspended with the words.
const maxAlike = 5

// alike is the refusals in a row. Guarded by Relay.mu; written by every transaction's end.
type alike struct {
	key string // of the last refusal, "" = the last mail was accepted or refused for itself
	n   int
}

// Judge looks whether a mail server refuses everything for good in the same way: an account at
// its quota told as 550 5.4.5, a sender that is not its own, an address on a block list. Then
// the refusal is about the mail server, whatever its code says, and the outcome that comes back
// says so: it decides nothing about the mail. The second answer is not nil when the mail server
// is suspended by that.
func (r *Relay) Judge(ctx context.Context, s *store.MailServer, o smtpx.Outcome) (smtpx.Outcome, *SuspendedError) {
	key, words := refusal(o)
	if key == "" && !decides(o) {
		return o, nil
	}
	r.mu.Lock()
	if key != r.alike.key {
		r.alike = alike{key: key}
	}
	r.alike.n++
	n := r.alike.n
	r.mu.Unlock()
	if key == "" || n < maxAlike {
		return o, nil
	}
	o.Recipients = slices.Clone(o.Recipients)
	for i := range o.Recipients {
		if x := &o.Recipients[i]; x.Status == smtpx.StatusRejected {
			x.Means = smtpx.Meaning{About: smtpx.AboutServer, Action: smtpx.ActSuspend}
		}
	}
	reason := fmt.Sprintf("refuses every mail in the same way: %s", words)
	until := r.suspend(ctx, s, reason)
	r.rs.cfg.Logger.Error("mail server refuses every mail in the same way: suspended", "mail_server", s.Name, "answer", words, "next_try", until.UTC().Format(time.RFC3339))
	return o, &SuspendedError{Reason: reason, RetryAt: until}
}

// decides says whether an outcome is a mail's own: somebody has it, or was refused.
func decides(o smtpx.Outcome) bool {
	for _, x := range o.Recipients {
		if x.Status == smtpx.StatusAccepted || x.Status == smtpx.StatusRejected {
			return true
		}
	}
	return false
}

// refusal is how a mail was refused that nobody got, as a key that is the same for refusals of
// the same kind, and in words; "" where the refusal is about the mail or its recipients, or
// about the mail server by the table of meanings.
func refusal(o smtpx.Outcome) (key, words string) {
	for _, x := range o.Recipients {
		if x.Status != smtpx.StatusRejected || x.Reply.Code == 0 || x.Means.About == smtpx.AboutServer || x.Means.About == smtpx.AboutSession {
			return "", ""
		}
		// What is said to a recipient may be about that one's domain (a block list, DMARC or a
		// limit of its own, passed on): only the same words are the same reason.
		k, said := "", fmt.Sprintf("%d %s %s", x.Reply.Code, x.Reply.Enhanced, strings.Map(lettersOnly, x.Reply.Text))
		switch f := smtpx.FailureOf(smtpx.Said{Phase: x.Phase, Reply: x.Reply}); f {
		case smtpx.FailSenderRefused, smtpx.FailReputation, smtpx.FailRate, smtpx.FailAuth:
			k = string(f)
			if x.Phase == smtpx.PhaseRcpt {
				k += " " + said
			}
		case smtpx.FailUnclassified:
			// To the mail as a whole, in the same words but for numbers.
			if x.Phase != smtpx.PhaseRcpt {
				k = said
			}
		}
		if k == "" || key != "" && k != key {
			return "", ""
		}
		key, words = k, x.Reply.String()
	}
	return key, words
}

// lettersOnly drops what differs from mail to mail in the same words: queue ids, times.
func lettersOnly(r rune) rune {
	if r >= '0' && r <= '9' {
		return -1
	}
	return r
}

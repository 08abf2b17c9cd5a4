package plain

import (
	"fmt"
	"strings"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Headlines say in one sentence where a mail is.
var Headlines = map[pb.MailStatus]string{
	pb.MailStatus_MAIL_STATUS_QUEUED:         "WAITS for its first attempt.",
	pb.MailStatus_MAIL_STATUS_SENDING:        "IS BEING SENT just now.",
	pb.MailStatus_MAIL_STATUS_DEFERRED:       "NOT DELIVERED YET. The service tries again by itself.",
	pb.MailStatus_MAIL_STATUS_HELD:           "HELD. It is not sent until somebody releases it.",
	pb.MailStatus_MAIL_STATUS_FAILED:         "NOT DELIVERED. No recipient has it, and nobody tries again by itself.",
	pb.MailStatus_MAIL_STATUS_UNKNOWN:        "NOBODY KNOWS. The mail server did not answer after the message was handed over; it may have arrived.",
	pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT: "DELIVERED TO SOME of its recipients.",
	pb.MailStatus_MAIL_STATUS_SENT:           "HANDED OVER. The mail server has taken it for every recipient.",
	pb.MailStatus_MAIL_STATUS_CANCELLED:      "CANCELLED. It is not sent any more.",
}

// outcomes say how an attempt ended.
var outcomes = map[string]string{
	"sent": "every recipient was accepted", "partial": "some recipients were accepted", "deferred": "put off", "failed": "refused",
	"unknown": "no answer after the message was handed over", "server": "the mail server could not be used; that costs the mail no attempt", "": "under way",
}

// Outcome says how an attempt ended; one that is not known is foreign text.
func Outcome(o string) string {
	if words, known := outcomes[o]; known {
		return words
	}
	return o
}

// Reply is what the mail server said to a recipient, as foreign text.
func Reply(r *pb.RecipientResult) string {
	if r.Detail == "" && r.SmtpCode == 0 {
		return ""
	}
	var words []string
	if r.SmtpCode != 0 && !strings.HasPrefix(r.Detail, fmt.Sprint(r.SmtpCode)) {
		words = append(words, fmt.Sprint(r.SmtpCode))
		if r.EnhancedCode != "" && !strings.Contains(r.Detail, r.EnhancedCode) {
			words = append(words, r.EnhancedCode)
		}
	}
	return strings.Join(append(words, r.Detail), " ")
}

package api

import (
	"context"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

var (
	kindOf = map[pb.Kind]store.Kind{pb.Kind_KIND_AGENT_MESSAGE: store.KindAgentMessage, pb.Kind_KIND_INVOICE: store.KindInvoice, pb.Kind_KIND_WORK_ORDER: store.KindWorkOrder, pb.Kind_KIND_BULK: store.KindBulk, pb.Kind_KIND_OTHER: store.KindOther}

	mailStatusOf = map[pb.MailStatus]store.MailStatus{pb.MailStatus_MAIL_STATUS_QUEUED: store.MailQueued, pb.MailStatus_MAIL_STATUS_SENDING: store.MailSending,
		pb.MailStatus_MAIL_STATUS_DEFERRED: store.MailDeferred, pb.MailStatus_MAIL_STATUS_HELD: store.MailHeld, pb.MailStatus_MAIL_STATUS_FAILED: store.MailFailed,
		pb.MailStatus_MAIL_STATUS_UNKNOWN: store.MailUnknown, pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT: store.MailPartiallySent,
		pb.MailStatus_MAIL_STATUS_SENT: store.MailSent, pb.MailStatus_MAIL_STATUS_CANCELLED: store.MailCancelled}

	recipientStatusOf = map[pb.RecipientResult_Status]store.RecipientStatus{pb.RecipientResult_STATUS_PENDING: store.RecipientPending,
		pb.RecipientResult_STATUS_ACCEPTED: store.RecipientAccepted, pb.RecipientResult_STATUS_DEFERRED: store.RecipientDeferred,
		pb.RecipientResult_STATUS_REJECTED: store.RecipientRejected, pb.RecipientResult_STATUS_UNKNOWN: store.RecipientUnknown}

	routeOf = map[pb.Route]string{pb.Route_ROUTE_NAMED: "named", pb.Route_ROUTE_TEAM_DEFAULT: "team_default", pb.Route_ROUTE_SYSTEM_DEFAULT: "system_default"}

	priorityOf = map[pb.Priority]int16{pb.Priority_PRIORITY_LOW: store.PriorityLow, pb.Priority_PRIORITY_NORMAL: store.PriorityNormal,
		pb.Priority_PRIORITY_HIGH: store.PriorityHigh, pb.Priority_PRIORITY_URGENT: store.PriorityUrgent}

	failureOf = map[pb.RecipientResult_Failure]smtpx.Failure{pb.RecipientResult_FAILURE_NO_SUCH_MAILBOX: smtpx.FailNoSuchMailbox,
		pb.RecipientResult_FAILURE_MAILBOX_FULL: smtpx.FailMailboxFull, pb.RecipientResult_FAILURE_RECIPIENT_POLICY: smtpx.FailRecipientPolicy,
		pb.RecipientResult_FAILURE_SENDER_REFUSED: smtpx.FailSenderRefused, pb.RecipientResult_FAILURE_REPUTATION: smtpx.FailReputation,
		pb.RecipientResult_FAILURE_CONTENT: smtpx.FailContent, pb.RecipientResult_FAILURE_SIZE: smtpx.FailSize, pb.RecipientResult_FAILURE_RATE: smtpx.FailRate,
		pb.RecipientResult_FAILURE_AUTH: smtpx.FailAuth, pb.RecipientResult_FAILURE_TLS: smtpx.FailTLS, pb.RecipientResult_FAILURE_UNREACHABLE: smtpx.FailUnreachable,
		pb.RecipientResult_FAILURE_EXPIRED: smtpx.FailExpired, pb.RecipientResult_FAILURE_UNCLASSIFIED: smtpx.FailUnclassified}
	failureName         = flip(failureOf)
	kindName            = flip(kindOf)
	mailStatusName      = flip(mailStatusOf)
	recipientStatusName = flip(recipientStatusOf)
	routeName           = flip(routeOf)
)

func stampOf(t time.Time) *timestamppb.Timestamp { return stamp(&t) }

// viewer is who reads what became of mail.
type viewer struct {
	// Reads one text for every fault of connecting and greeting. A system administrator reads
	// what happened: a mail server's host and port are a team's to set, and would else tell
	// what listens in the service's network.
	hidesConnect bool
}

func viewerOf(ctx context.Context) viewer {
	return viewer{hidesConnect: !access.From(ctx).SeesNetwork()}
}

// fault is the text of a fault as the viewer reads it, and whether it says less than it did.
func (v viewer) fault(text string) (string, bool) {
	if !v.hidesConnect {
		return text, false
	}
	return smtpx.HideUnreached(text)
}

func (v viewer) recipientResult(r store.Recipient, res store.RecipientResult) *pb.RecipientResult {
	if res.Code == 0 {
		if text, hidden := v.fault(res.Detail); hidden {
			res.Detail, res.Failure = text, string(smtpx.FailUnreachable)
		}
	}
	out := &pb.RecipientResult{Address: r.Mailbox, Kind: pb.RecipientResult_KIND_TO, Status: recipientStatusName[res.Status], SmtpCode: int32(res.Code),
		EnhancedCode: res.Enhanced, Detail: res.Detail, RemoteId: res.RemoteID, Attempt: int32(res.Attempt), Time: stampOf(res.Time),
		NextAttemptTime: stampOf(res.NextAttempt), Failure: failureName[smtpx.Failure(res.Failure)], Hint: smtpx.Failure(res.Failure).Hint(res.Detail)}
	switch r.Kind {
	case "cc":
		out.Kind = pb.RecipientResult_KIND_CC
	case "bcc":
		out.Kind = pb.RecipientResult_KIND_BCC
	}
	if out.Status == pb.RecipientResult_STATUS_UNSPECIFIED {
		out.Status = pb.RecipientResult_STATUS_PENDING
	}
	return out
}

func (v viewer) attempt(a store.Attempt) *pb.Attempt {
	detail, _ := v.fault(a.Detail)
	return &pb.Attempt{Number: int32(a.Number), MailServer: a.Server, StartTime: stampOf(a.Start), EndTime: stampOf(a.End), Outcome: a.Outcome,
		Detail: detail, RemoteId: a.RemoteID}
}

func (v viewer) mail(m *store.Mail) *pb.Mail {
	lastError, _ := v.fault(m.LastError)
	out := &pb.Mail{Id: m.ID.String(), Team: m.Team, MailServer: m.MailServer, Mode: modeName[m.Mode], Kind: kindName[m.Kind], Reference: m.Reference,
		Status: mailStatusName[m.Status], From: m.From, Subject: m.Subject, MessageId: "<" + m.MessageID + ">", SizeBytes: m.SizeBytes, Labels: m.Labels,
		RequestId: m.RequestID, PossibleDuplicate: m.PossibleDuplicate, LastError: lastError, CreateTime: stampOf(m.CreateTime), DueTime: stamp(m.DueTime),
		FinishTime: stamp(m.FinishTime), ExpireTime: stamp(m.ExpireTime), AttemptCount: int32(m.Attempts), Route: routeName[m.Route], Priority: priority(m.Priority),
		BatchId: m.BatchID, ResendReason: m.ResendReason, StoredContent: storedName[m.Removed]}
	if m.ResentFrom != uuid.Nil {
		out.ResentFrom = m.ResentFrom.String()
	}
	for i, r := range m.Recipients {
		var res store.RecipientResult
		if i < len(m.Progress.Results) {
			res = m.Progress.Results[i]
		}
		if m.DueTime == nil { // held or parked since
			res.NextAttempt = time.Time{}
		}
		out.Recipients = append(out.Recipients, v.recipientResult(r, res))
	}
	for _, a := range m.Progress.Attempts {
		out.Attempts = append(out.Attempts, v.attempt(a))
	}
	return out
}

// priority names a stored priority; mail of before there were any has 0.
func priority(p int16) pb.Priority {
	switch {
	case p >= store.PriorityUrgent:
		return pb.Priority_PRIORITY_URGENT
	case p >= store.PriorityHigh:
		return pb.Priority_PRIORITY_HIGH
	case p >= store.PriorityNormal:
		return pb.Priority_PRIORITY_NORMAL
	}
	return pb.Priority_PRIORITY_LOW
}

// goesOnInBatch says whether a mail that was taken in php mode is left to the batch.
func goesOnInBatch(m *store.Mail) bool {
	return m.Mode == store.ModePHP && m.DueTime != nil
}

func (v viewer) event(ev delivery.Event, sizeBytes int64) *pb.SendResponse {
	out := &pb.SendResponse{MailId: ev.MailID.String(), Time: stampOf(ev.Time)}
	switch {
	case ev.Accepted != nil:
		x := ev.Accepted
		out.Event = &pb.SendResponse_Accepted_{Accepted: &pb.SendResponse_Accepted{MailServer: x.Server, Mode: modeName[x.Mode], Route: routeName[x.Route],
			RouteDetail: routeText(x.Route, x.Server) + pauseText(x.PausedUntil), Duplicate: x.Duplicate, SizeBytes: sizeBytes}}
	case ev.Attempt != nil:
		out.Event = &pb.SendResponse_Attempt{Attempt: v.attempt(*ev.Attempt)}
	case ev.Recipient != nil:
		out.Event = &pb.SendResponse_Recipient{Recipient: v.recipientResult(ev.Recipient.Recipient, ev.Recipient.Result)}
	case ev.Completed != nil:
		out.Event = &pb.SendResponse_Completed_{Completed: &pb.SendResponse_Completed{Mail: v.mail(ev.Completed), GoesOnInBatch: goesOnInBatch(ev.Completed)}}
	}
	return out
}

// pauseText says that a mail is queued although its mail server sends while the caller waits.
func pauseText(until time.Time) string {
	if until.IsZero() {
		return ""
	}
	return "; it sends nothing until " + until.UTC().Format(time.RFC3339) + ", so the mail is queued"
}

func routeText(route, server string) string {
	switch route {
	case "named":
		return "the request named " + server
	case "team_default":
		return server + " is the team's default"
	default:
		return server + " is the system's default"
	}
}

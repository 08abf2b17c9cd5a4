package lifecycle

import (
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// View is what a reader sees of a mail that has just been made durable and that nobody sends
// yet.
func View(m *store.NewMail) *store.Mail {
	due := m.RunAt
	v := &store.Mail{
		ID: m.ID, Team: m.Team, MailServer: m.MailServer, Mode: m.Mode, Kind: m.Kind, Reference: m.Reference, From: m.From, Subject: m.Subject,
		MessageID: m.MessageID, SizeBytes: m.SizeBytes, Recipients: m.Recipients, Labels: m.Labels, RequestID: m.RequestID, Route: m.Route,
		BatchID: m.BatchID, ResentFrom: m.ResentFrom, ResendReason: m.Reason,
		Priority: m.Priority, CreateTime: m.CreateTime, ExpireTime: m.ExpireTime,
		Status: store.MailQueued, DueTime: &due,
	}
	if m.Held != "" {
		v.Status, v.DueTime, v.ResumeTime, v.LastError = store.MailHeld, nil, &due, m.Held
	}
	return v
}

// Settled is what a reader sees of the mail once the settlement is durable.
func Settled(m *store.NewMail, s *store.Settlement, now time.Time) *store.Mail {
	v := View(m)
	v.Status, v.Attempts, v.Progress, v.LastError = s.Status, s.Attempts, *s.Progress, s.LastError
	v.PossibleDuplicate, v.DueTime, v.ResumeTime = s.PossibleDuplicate, nil, nil
	switch s.Kind {
	case store.SettleArchive:
		v.Archived, v.FinishTime = true, &now
	case store.SettleRetry:
		v.DueTime = &s.RunAt
	}
	return v
}

// Unanswered is what a caller hears who cannot wait any longer for the end of a mail that may
// have left. known is what the relay has said of its recipients so far, by position; of all
// others the outcome is unknown, which it is also for those whose turn has not come: they are
// sent to without the caller.
func Unanswered(m *store.NewMail, known []store.RecipientResult, why string, now time.Time) *store.Mail {
	v := View(m)
	v.Status, v.DueTime, v.ResumeTime, v.LastError = store.MailUnknown, nil, nil, why
	v.Progress.Results = make([]store.RecipientResult, len(m.Recipients))
	copy(v.Progress.Results, known)
	for i := range v.Progress.Results {
		if r := &v.Progress.Results[i]; r.Status == "" || r.Status == store.RecipientPending {
			*r = store.RecipientResult{Status: store.RecipientUnknown, Detail: why, Attempt: 1, Time: now}
		}
	}
	return v
}

package lifecycle

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// TestMove: which mails may go on through another mail server, and what they are then.
func TestMove(t *testing.T) {
	now := time.Now().UTC()
	later := now.Add(time.Hour)
	one := func(s store.RecipientStatus) []store.RecipientResult { return []store.RecipientResult{{Status: s}} }
	for name, x := range map[string]struct {
		mail store.Mail
		to   store.MailServer
		want string
	}{
		"new":                  {store.Mail{Status: store.MailQueued, DueTime: &now}, store.MailServer{}, "retry queued due=now"},
		"scheduled":            {store.Mail{Status: store.MailQueued, DueTime: &later}, store.MailServer{}, "retry queued due=later"},
		"deferred":             {store.Mail{Status: store.MailDeferred, Attempts: 2, DueTime: &later, Progress: store.Progress{Results: one(store.RecipientDeferred)}}, store.MailServer{}, "retry deferred due=now"},
		"held":                 {store.Mail{Status: store.MailHeld, ResumeTime: &later}, store.MailServer{}, "park held resume=later"},
		"failed":               {store.Mail{Status: store.MailFailed, Attempts: 1, Progress: store.Progress{Results: one(store.RecipientRejected)}}, store.MailServer{}, "park failed"},
		"unknown":              {store.Mail{Status: store.MailUnknown, Progress: store.Progress{Results: one(store.RecipientUnknown)}}, store.MailServer{}, "refused"},
		"one unknown":          {store.Mail{Status: store.MailDeferred, DueTime: &now, Progress: store.Progress{Results: one(store.RecipientUnknown)}}, store.MailServer{}, "refused"},
		"possible duplicate":   {store.Mail{Status: store.MailDeferred, DueTime: &now, PossibleDuplicate: true}, store.MailServer{}, "refused"},
		"of another team":      {store.Mail{Team: "a", Status: store.MailQueued, DueTime: &now}, store.MailServer{Team: "b"}, "refused"},
		"of its team":          {store.Mail{Team: "a", Status: store.MailQueued, DueTime: &now}, store.MailServer{Team: "a"}, "retry queued due=now"},
		"too large":            {store.Mail{SizeBytes: 11, Status: store.MailQueued, DueTime: &now}, store.MailServer{Limits: store.Limits{MaxMailBytes: 10}}, "refused"},
		"too large by default": {store.Mail{SizeBytes: 11 << 20, Status: store.MailQueued, DueTime: &now}, store.MailServer{}, "refused"},
		"there already":        {store.Mail{MailServer: "to", Status: store.MailUnknown}, store.MailServer{}, "left alone"},
	} {
		t.Run(name, func(t *testing.T) {
			m, to := x.mail, x.to
			m.ID, m.Recipients, to.Name = uuid.New(), []store.Recipient{{Mailbox: "a@y.example"}}, "to"
			at := func(what string, t time.Time) string {
				switch {
				case t.IsZero():
					return ""
				case t.Equal(now):
					return " " + what + "=now"
				}
				return " " + what + "=later"
			}
			got := "left alone"
			switch c, err := Move(&m, &to, now); {
			case err != nil:
				got = "refused"
			case c != nil:
				got = map[store.SettleKind]string{store.SettleRetry: "retry", store.SettlePark: "park"}[c.Kind] + " " + string(c.Status) + at("due", c.RunAt) + at("resume", c.ResumeAt)
				if c.MailServer != "to" || c.PossibleDuplicate || c.Attempts != m.Attempts {
					t.Errorf("got %+v", c)
				}
			}
			if got != x.want {
				t.Errorf("got %s, want %s", got, x.want)
			}
		})
	}
}

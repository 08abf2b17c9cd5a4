package lifecycle

import (
	"strings"
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

// TestMayGoThrough: only what has provably left for nobody who still waits may go on through a
// fallback, and only where that takes it.
func TestMayGoThrough(t *testing.T) {
	for name, x := range map[string]struct {
		mail, events string
		change       func(m *store.Claimed, to *store.MailServer)
		want         bool
	}{
		"new":                                  {"invoice p", "", nil, true},
		"refused for now":                      {"bulk n=1 d", "", nil, true},
		"some have it":                         {"bulk n=1 ad", "", nil, true},
		"flagged":                              {"bulk dup n=1 u", "", nil, false},
		"one unknown":                          {"invoice n=1 up", "", nil, false},
		"one unknown in this attempt":          {"invoice p*150", "u*100", nil, false},
		"broken before the dot":                {"invoice p", "broken", nil, true},
		"its dot may leave":                    {"invoice p", "marked", nil, false},
		"its dot did not leave":                {"invoice p", "marked broken", nil, true},
		"the first hundred have it":            {"invoice p*150", "a*100", nil, true},
		"a fallback of its team":               {"invoice p", "", func(m *store.Claimed, to *store.MailServer) { m.Team, to.Team = "a", "a" }, true},
		"a fallback of another team":           {"invoice p", "", func(m *store.Claimed, to *store.MailServer) { m.Team, to.Team = "a", "b" }, false},
		"too large":                            {"invoice p", "", func(m *store.Claimed, to *store.MailServer) { m.SizeBytes, to.Limits.MaxMailBytes = 11, 10 }, false},
		"as large as it may be":                {"invoice p", "", func(m *store.Claimed, to *store.MailServer) { m.SizeBytes, to.Limits.MaxMailBytes = 10, 10 }, true},
		"larger than a mail server takes else": {"invoice p", "", func(m *store.Claimed, to *store.MailServer) { m.SizeBytes = 11 << 20 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := parseAttempt(t, x.mail)
			for _, event := range strings.Fields(x.events) {
				a.happens(event)
			}
			to := &store.MailServer{Name: "spare"}
			if x.change != nil {
				x.change(a.mail, to)
			}
			if err := a.attempt.MayGoThrough(to); (err == nil) != x.want {
				t.Errorf("got %v, want that it may: %v", err, x.want)
			}
		})
	}
}

// TestHistorySaysTheWay: each attempt says through which mail server it went, also one whose
// owner died. Failures of mail servers that follow one another are one entry for each of them.
func TestHistorySaysTheWay(t *testing.T) {
	ways := func(as []store.Attempt) string {
		var w []string
		for _, a := range as {
			w = append(w, strings.TrimSpace(a.Server+" "+a.Outcome))
		}
		return strings.Join(w, ", ")
	}
	a := parseAttempt(t, "bulk p")
	a.happens("fallback")
	began := a.attempt.Progress().Progress
	if got := ways(began.Attempts); got != "ss server, spare" {
		t.Errorf("begun: got %s, want the fallback's attempt open", got)
	}
	dead := *a.mail
	dead.Progress, dead.Marked = *began, true
	if got := ways(Crash(&dead, 7, a.now).Progress.Attempts); got != "ss server, spare unknown" {
		t.Errorf("its owner died behind the mark: got %s, want it unknown through spare", got)
	}
	next := *a.mail
	next.Progress, next.Marked = *began, false
	again := Begin(&next, 7, a.now).Finish(NoSession, "no connection", store.Limits{}, a.now)
	if got := ways(again.Progress.Attempts); got != "ss server" {
		t.Errorf("begun by one that died before the mark: got %s, want it forgotten", got)
	}
	for range 3 {
		next.Progress = *again.Progress
		b := Begin(&next, 7, a.now)
		b.GoThrough("spare", "no connection", a.now)
		again = b.Finish(NoSession, "no connection", store.Limits{}, a.now)
	}
	if got := ways(again.Progress.Attempts); got != "ss server, spare server" {
		t.Errorf("both failed three times: got %s, want an entry for each", got)
	}
}

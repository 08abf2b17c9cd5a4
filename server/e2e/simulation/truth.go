package simulation

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// truth is what has really happened, and what was said about it. The relays and the callers
// write it down; nothing in the service can.
type truth struct {
	w     *world
	mu    sync.Mutex
	mails map[uuid.UUID]*story
	order []*story
	codes map[string]*manner

	open   map[string][]*conn // by mail server
	limits map[string][]limit
	left   map[string][]time.Time // dots, by mail server
}

type limit struct {
	from time.Time
	store.Limits
	stopped bool // deleted or unavailable
}

// story is one mail's.
type story struct {
	m        *store.NewMail
	accepted bool // its caller was told that it is durable
	person   bool // a person has said to send again what may have arrived
	hurried  bool // a person has said to send it now
	stop     string
	stopped  time.Time
	left     time.Time // the last dot
	claim    int64     // under which it left
	rcpts    map[string]*copies
	told     []told
}

// copies are those that one recipient got.
type copies struct {
	arrived []arrival
	refused map[int]bool
}

type arrival struct {
	left time.Time // when its dot was written
	q    string    // the queue id that was said, "" = nothing was
}

// told is what a php-mode caller heard.
type told struct {
	at      time.Time
	address string
	status  store.RecipientStatus
}

// manner is how a relay treats an address.
type manner struct {
	code  int
	times int // 450 so often, then well
}

func newTruth(w *world) *truth {
	return &truth{w: w, mails: map[uuid.UUID]*story{}, codes: map[string]*manner{}, open: map[string][]*conn{}, limits: map[string][]limit{}, left: map[string][]time.Time{}}
}

// story of a mail. With mu held.
func (t *truth) story(id uuid.UUID) *story { return t.mails[id] }

// made introduces a mail before anybody has it.
func (t *truth) made(m *store.NewMail) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &story{m: m, rcpts: map[string]*copies{}}
	for _, r := range m.Recipients {
		s.rcpts[r.Mailbox] = &copies{refused: map[int]bool{}}
	}
	t.mails[m.ID] = s
	t.order = append(t.order, s)
}

// took notes that a caller was told that a mail is durable.
func (t *truth) took(id uuid.UUID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.story(id); s != nil {
		s.accepted = true
	}
}

// address says how an address is answered at RCPT, 0 = well.
func (t *truth) address(a string) int {
	m := t.codes[a]
	if m == nil || t.w.calm && m.code == 450 {
		return 0
	}
	if m.code == 450 {
		if m.times--; m.times < 0 {
			return 0
		}
	}
	return m.code
}

func (t *truth) refused(a string, code int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, id, _ := strings.Cut(a, ".")
	id, _, _ = strings.Cut(id, "@")
	if s := t.byNumber(id); s != nil && s.rcpts[a] != nil {
		s.rcpts[a].refused[code] = true
	}
}

func (t *truth) byNumber(n string) *story {
	for _, s := range t.order {
		if short(s.m.ID) == n {
			return s
		}
	}
	return nil
}

func (t *truth) refusedAll(id uuid.UUID, to []string, code int) {
	for _, a := range to {
		t.refused(a, code)
	}
}

// leaving looks at what a process writes: a dot needs its mark, and nobody's stop before it.
func (t *truth) leaving(c *conn, b []byte) {
	text := string(b)
	for {
		_, rest, ok := strings.Cut(text, "Message-ID: <")
		if !ok {
			return
		}
		text = rest
		id := idOf("Message-ID: <" + rest)
		t.mu.Lock()
		s := t.story(id)
		row := t.w.db.Look(id)
		if s == nil || len(s.m.Recipients) <= smtpx.MaxRecipients || time.Since(s.left) > time.Minute {
			// else it may be the same attempt's next transaction
			t.left[c.server] = append(t.left[c.server], time.Now())
		}
		if s != nil && row != nil {
			s.left, s.claim = time.Now(), row.Claim
		}
		t.w.counts.Dots++
		t.w.tell("   %s dot of %s leaves", c.name, short(id))
		switch {
		case s == nil || row == nil:
			t.w.wrong("a dot of a mail that nobody has stored: %s", short(id))
		case row.Marked.IsZero() || row.Mail.Owner != store.ReplicaID(c.rep.id.Load()):
			t.w.wrong("%s: a dot of %s leaves without a mark of its owner: marked %v, owner %d, replica %d, status %s", short(id), c.rep.name, !row.Marked.IsZero(), row.Mail.Owner, c.rep.id.Load(), row.Mail.Status)
		}
		if s != nil && t.w.prof.clock == 0 && time.Now().Before(s.m.RunAt) && !s.hurried {
			t.w.wrong("%s: a dot leaves %v before it is due", short(id), time.Until(s.m.RunAt))
		}
		if s != nil && t.w.prof.clock == 0 && s.m.ExpireTime != nil && row != nil && row.Marked.After(s.m.ExpireTime.Add(expireSlack)) {
			t.w.wrong("%s: a dot leaves %v after it has expired", short(id), time.Since(*s.m.ExpireTime))
		}
		if s != nil && s.stop != "" {
			t.w.wrong("%s: a dot leaves after it was %s", short(id), s.stop)
		}
		if s != nil && c.server != s.m.MailServer {
			t.w.counts.Diverted++
			if c.server != t.w.fallback || s.m.MailServer == "s2" {
				t.w.wrong("%s: a dot leaves through %s, which is no fallback of its mail server %s", short(id), c.server, s.m.MailServer)
			}
		}
		t.brake(c)
		t.pace(c.server)
		t.mu.Unlock()
	}
}

// expireSlack: expire_time is looked at when a mail is claimed, and a claimed mail may wait for
// its turn.
const expireSlack = 2 * time.Minute

// asked: nobody is asked again who has the mail, or has refused it for good.
func (t *truth) asked(a string, c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, id, _ := strings.Cut(a, ".")
	id, _, _ = strings.Cut(id, "@")
	s := t.byNumber(id)
	if s == nil || t.w.prof.clock > 0 || c.rep.lives.Load() > 1 {
		// one that was taken for dead may ask, and gets no mark
		return
	}
	row := t.w.db.Look(s.m.ID)
	for i, r := range s.m.Recipients {
		if r.Mailbox != a || row == nil || i >= len(row.Mail.Progress.Results) {
			continue
		}
		if st := row.Mail.Progress.Results[i].Status; (st == store.RecipientAccepted || st == store.RecipientRejected) && row.Mail.Owner == store.ReplicaID(c.rep.id.Load()) {
			t.w.wrong("%s: %s is asked again, whom the journal calls %s", id, a, st)
		}
	}
}

// brakeTime is how long dots may still leave through a mail server that was switched off.
const brakeTime = time.Second

// brake: a mail server that was switched off stops, whenever the marks were made.
func (t *truth) brake(c *conn) {
	ls := t.limits[c.server]
	if n := len(ls); n > 0 && ls[n-1].stopped && time.Since(ls[n-1].from) > brakeTime {
		t.w.wrong("%s: a dot leaves %v after its mail server was switched off", c.server, time.Since(ls[n-1].from))
	}
}

// pace: limits per minute and day hold.
func (t *truth) pace(server string) {
	now := time.Now()
	perMinute, perDay := 0, 0
	ls := t.limits[server]
	for i, l := range ls {
		over := i+1 < len(ls)
		if !over || ls[i+1].from.After(now.Add(-2*time.Minute)) {
			perMinute = larger(perMinute, int(l.MailsPerMinute))
		}
		perDay = larger(perDay, int(l.MailsPerDay)) // a run is shorter than a day
	}
	inMinute := 0
	for _, at := range t.left[server] {
		if now.Sub(at) < time.Minute {
			inMinute++
		}
	}
	if most := perMinute + max(1, perMinute/10); perMinute > 0 && inMinute > most {
		t.w.wrong("%s: %d dots within a minute, %d allowed", server, inMinute, perMinute)
	}
	if perDay > 0 && len(t.left[server]) > perDay {
		t.w.wrong("%s: %d dots today, %d allowed", server, len(t.left[server]), perDay)
	}
}

// larger of two limits, of which 0 is none; -1 = none once and for all.
func larger(a, b int) int {
	if a < 0 || b == 0 {
		return -1
	}
	return max(a, b)
}

// slotSlack is how long a replica that was taken for dead may not know that others have its
// slots.
const slotSlack = 40 * time.Second

// opened counts a mail server's connections over all replicas that live.
func (t *truth) opened(r *relay, c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[c.server] = slices.DeleteFunc(t.open[c.server], func(x *conn) bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.gone || x.closed
	})
	t.open[c.server] = append(t.open[c.server], c)
	now, most := time.Now(), 0
	for i, l := range t.limits[c.server] {
		if i+1 < len(t.limits[c.server]) && t.limits[c.server][i+1].from.Before(now.Add(-time.Minute)) {
			continue
		}
		if l.MaxConnections == 0 {
			return
		}
		most = max(most, int(l.MaxConnections))
	}
	n := 0
	for _, x := range t.open[c.server] {
		if t.w.db.Alive(store.ReplicaID(x.rep.id.Load())) && (x.rep.lives.Load() == 1 || time.Since(t.w.begin)-time.Duration(x.rep.lapsed.Load()) > slotSlack) {
			n++
		}
	}
	if most > 0 && n > most {
		t.w.wrong("%s: %d connections, %d allowed", c.server, n, most)
	}
}

// configured notes a mail server's limits.
func (t *truth) configured(s *store.MailServer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits[s.Name] = append(t.limits[s.Name], limit{time.Now(), s.Limits, s.DeleteTime != nil || s.Status != store.ServerAvailable})
}

// delivered notes that a relay has taken a mail for these recipients.
func (t *truth) delivered(id uuid.UUID, to []string, r *relay, c *conn, q string, left time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.story(id)
	if s == nil {
		t.w.wrong("a mail arrives that nobody has sent: %s", id)
		return
	}
	t.w.tell("   %s delivered to %d as %q", short(id), len(to), q)
	if row := t.w.db.Look(id); row != nil && row.Mail.Owner == store.ReplicaID(c.rep.id.Load()) && row.Claim == s.claim && row.Marked.IsZero() {
		t.w.wrong("%s: its mark is gone while its dot is out", short(id))
	}
	for _, a := range to {
		if s.rcpts[a] == nil {
			t.w.wrong("%s arrives at %s, who is no recipient", short(id), a)
			continue
		}
		if c.server != s.m.MailServer && len(s.rcpts[a].arrived) > 0 {
			t.w.wrong("%s: %s gets a further copy through the fallback", short(id), a)
		}
		s.rcpts[a].arrived = append(s.rcpts[a].arrived, arrival{left, q})
		t.w.counts.Delivered++
		if len(s.rcpts[a].arrived) == 2 {
			t.w.counts.Twice++
		}
	}
}

// heard notes what a php-mode caller was told.
func (t *truth) heard(m *store.Mail) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.story(m.ID)
	if s == nil {
		return
	}
	for i, r := range m.Recipients {
		st := store.RecipientPending
		if i < len(m.Progress.Results) {
			st = m.Progress.Results[i].Status
		}
		s.told = append(s.told, told{time.Now(), r.Mailbox, st})
	}
}

// stop notes that a person's stop of a mail was confirmed.
func (t *truth) stop(id uuid.UUID, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.story(id); s != nil {
		s.stop, s.stopped = what, time.Now()
	}
}

// endStop ends a stop of one kind: nobody else has said anything of the mail since.
func (t *truth) endStop(id uuid.UUID, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.story(id); s != nil && s.stop == what {
		s.stop = ""
	}
}

// go on ends a stop; again: a person accepts that a copy may come twice.
func (t *truth) goOn(id uuid.UUID, again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.story(id); s != nil {
		s.stop = ""
		s.person, s.hurried = s.person || again, true
	}
}

// audit holds the journals against what has happened.
func (t *truth) audit(end bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.w
	requests := map[string]string{}
	for _, s := range t.order {
		id := short(s.m.ID)
		row := w.db.Look(s.m.ID)
		if row == nil {
			if s.accepted {
				w.wrong("%s is lost: its caller was told that it is durable", id)
			}
			for a, c := range s.rcpts {
				if len(c.arrived) > 0 {
					w.wrong("%s has arrived at %s and is not stored", id, a)
				}
			}
			continue
		}
		m := row.Mail
		if m.RequestID != "" {
			if had := requests[m.Team+"/"+m.RequestID]; had != "" {
				w.wrong("%s and %s have one request_id", had, id)
			}
			requests[m.Team+"/"+m.RequestID] = id
		}
		if end && !m.Archived && m.DueTime == nil && (m.Status == store.MailQueued || m.Status == store.MailDeferred) {
			w.wrong("%s is %s, and waits for nothing", id, m.Status)
		}
		if strings.HasPrefix(m.LastError, "quarantined") {
			w.counts.Quarantined++
		}
		if end && m.Archived && m.Status == store.MailSent {
			for _, r := range m.Recipients {
				if len(s.rcpts[r.Mailbox].arrived) == 0 && !byHand(m, r.Mailbox) {
					w.wrong("%s is sent, and %s never got it", id, r.Mailbox)
				}
			}
		}
		for i, r := range m.Recipients {
			c := s.rcpts[r.Mailbox]
			res := store.RecipientResult{Status: store.RecipientPending}
			if i < len(m.Progress.Results) {
				res = m.Progress.Results[i]
			}
			n := len(c.arrived)
			if n > 1 && !m.PossibleDuplicate {
				w.wrong("%s arrived %d times at %s, and is not flagged: %s, %s", id, n, r.Mailbox, m.Status, res.Status)
			}
			if n > 1 && holds(s.m.Kind) && !s.person {
				w.wrong("%s (%s) was sent %d times to %s by the service itself", id, s.m.Kind, n, r.Mailbox)
			}
			if !end {
				continue
			}
			if res.Status == store.RecipientUnknown {
				w.counts.Unknown++
			}
			switch {
			case res.Status == store.RecipientAccepted && n == 0 && !strings.HasPrefix(res.Detail, "a person said"):
				w.wrong("%s: %s is accepted in the journal, and no relay has taken it", id, r.Mailbox)
			case res.Status == store.RecipientAccepted && res.RemoteID != "" && !slices.ContainsFunc(c.arrived, func(a arrival) bool { return a.q == res.RemoteID }) && !strings.HasPrefix(res.Detail, "a person said"):
				w.wrong("%s: %s was taken as %q, and no relay has said so", id, r.Mailbox, res.RemoteID)
			case res.Status == store.RecipientRejected && res.Code != 0 && (res.Code < 500 || !c.refused[res.Code]):
				w.wrong("%s: %s is rejected with %d, and no relay has said so", id, r.Mailbox, res.Code)
			case n > 0 && res.Status != store.RecipientAccepted && res.Status != store.RecipientUnknown && !m.PossibleDuplicate && !strings.HasPrefix(res.Detail, "a person said"):
				w.wrong("%s has arrived at %s, and the journal says %s, unflagged", id, r.Mailbox, res.Status)
			}
		}
		for _, x := range s.told {
			c := s.rcpts[x.address]
			early := slices.ContainsFunc(c.arrived, func(a arrival) bool { return !a.left.After(x.at) })
			switch x.status {
			case store.RecipientAccepted:
				if !early {
					w.wrong("%s: its caller was told that %s has it", id, x.address)
				}
			case store.RecipientUnknown:
			default:
				if early && !m.PossibleDuplicate {
					w.wrong("%s: its caller was told %s for %s, who got it", id, x.status, x.address)
				}
			}
		}
	}
}

// wordOn is what a person who knows would say of a mail whose outcome is unknown. Nobody knows
// of one that is still on the wire.
func (t *truth) wordOn(m *store.Mail) lifecycle.Resolution {
	if t.w.flies(m.ID) {
		return lifecycle.Resend
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	got, not := 0, 0
	for i, r := range m.Progress.Results {
		switch {
		case r.Status != store.RecipientUnknown:
		case len(t.mails[m.ID].rcpts[m.Recipients[i].Mailbox].arrived) > 0:
			got++
		default:
			not++
		}
	}
	switch {
	case not == 0:
		return lifecycle.Delivered
	case got == 0:
		return lifecycle.NotDelivered
	}
	return lifecycle.Resend
}

func holds(k store.Kind) bool { return k == store.KindInvoice || k == store.KindWorkOrder }

func byHand(m *store.Mail, a string) bool {
	for i, r := range m.Recipients {
		if r.Mailbox == a && i < len(m.Progress.Results) {
			return strings.HasPrefix(m.Progress.Results[i].Detail, "a person said")
		}
	}
	return false
}

func idOf(data string) uuid.UUID {
	_, rest, _ := strings.Cut(data, "Message-ID: <")
	id, _, _ := strings.Cut(rest, "@")
	u, _ := uuid.Parse(id) // zero is nobody's
	return u
}

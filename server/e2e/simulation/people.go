package simulation

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// people are callers and operators.
type people struct {
	w    *world
	made int
	wg   sync.WaitGroup
}

func makeID(n int) uuid.UUID {
	var u uuid.UUID
	binary.BigEndian.PutUint32(u[2:6], uint32(n))
	u[6], u[8] = 0x70, 0x80
	binary.BigEndian.PutUint16(u[14:], uint16(n*7919))
	return u
}

func number(u uuid.UUID) int { return int(binary.BigEndian.Uint32(u[2:6])) }

var kinds = []store.Kind{store.KindBulk, store.KindBulk, store.KindInvoice, store.KindInvoice, store.KindOther, store.KindWorkOrder, store.KindAgentMessage}

// mail makes one for a mail server.
func (p *people) mail(s *store.MailServer) *store.NewMail {
	w := p.w
	p.made++
	id, now := makeID(p.made), time.Now()
	m := &store.NewMail{ID: id, Team: []string{"", "sales", "ops"}[w.rng.IntN(3)], MailServer: s.Name, Mode: s.Mode, Kind: kinds[w.rng.IntN(len(kinds))],
		Priority: []int16{store.PriorityLow, store.PriorityNormal, store.PriorityHigh}[w.rng.IntN(3)], From: "a@x.example", Subject: "s",
		MessageID: id.String() + "@x.example", Route: "named", CreateTime: now, RunAt: now}
	n := 1
	switch x := w.rng.IntN(40); {
	case x == 0:
		n = 101 + w.rng.IntN(20)
	case x < 10:
		n = 2 + w.rng.IntN(3)
	}
	for i := range n {
		a := fmt.Sprintf("u%d.%s@y.example", i, short(id))
		m.Recipients = append(m.Recipients, store.Recipient{Mailbox: a})
		switch x := w.rng.IntN(30); {
		case n > 100 && x > 0:
		case x == 0:
			w.truth.codes[a] = &manner{code: 550}
		case x < 3:
			w.truth.codes[a] = &manner{code: 450, times: 1 + w.rng.IntN(3)}
		}
	}
	if w.chance(0.1) {
		m.RunAt = now.Add(time.Duration(w.rng.Int64N(int64(30 * time.Second))))
	}
	if w.chance(0.05) {
		t := now.Add(20*time.Second + time.Duration(w.rng.Int64N(int64(2*time.Minute))))
		m.ExpireTime = &t
	}
	m.Raw = []store.Piece{{Data: []byte("Message-ID: <" + m.MessageID + ">\r\n\r\nbody\r\n")}}
	m.SizeBytes = int64(len(m.Raw[0].Data))
	w.truth.made(m)
	w.counts.Mails++
	return m
}

// anyUp is a replica that takes mail, nil when there is none.
func (p *people) anyUp() *replica {
	var up []*replica
	for _, r := range p.w.replicas {
		if r.up() {
			up = append(up, r)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[p.w.rng.IntN(len(up))]
}

// server is one that takes mail.
func (p *people) server() *store.MailServer {
	w := p.w
	s, err := w.db.Server(context.Background(), store.Everything, w.servers[w.rng.IntN(len(w.servers))])
	if err != nil || s.DeleteTime != nil || s.Status != store.ServerAvailable {
		return nil
	}
	return s
}

// call brings some mail.
func (p *people) call() {
	w := p.w
	r, s := p.anyUp(), p.server()
	if r == nil || s == nil {
		return
	}
	if s.Mode == store.ModeDaemon && w.chance(0.6) {
		var ms []*store.NewMail
		for range 2 + w.rng.IntN(8) {
			ms = append(ms, p.mail(s))
		}
		all := w.chance(0.2)
		p.wg.Go(func() {
			res, err := r.engine.Queue(context.Background(), ms, all)
			if r.dead.Load() || err != nil {
				return
			}
			for _, e := range res {
				if e.Err == nil {
					w.truth.took(e.ID)
				}
			}
		})
		return
	}
	m := p.mail(s)
	if w.chance(0.5) {
		m.RequestID, m.Fingerprint = fmt.Sprintf("q%d", p.made), []byte{1}
	}
	patience := time.Duration(500+w.rng.Int64N(20000)) * time.Millisecond
	if w.chance(0.3) {
		patience = 2 * time.Minute
	}
	p.wg.Go(func() { p.send(r, s, m, patience) })
}

func (p *people) send(r *replica, s *store.MailServer, m *store.NewMail, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var accepted bool
	var done *store.Mail
	duplicate, id := false, m.ID
	err := r.engine.Send(ctx, &delivery.Submission{Mail: m, Server: s}, func(ev delivery.Event) error {
		if r.dead.Load() {
			return errGone
		}
		if ev.Accepted != nil {
			accepted, id = true, ev.MailID
			duplicate = ev.Accepted.Duplicate
		}
		if ev.Completed != nil {
			done = ev.Completed
		}
		return nil
	})
	if r.dead.Load() {
		return
	}
	if accepted {
		p.w.truth.took(id)
	}
	if done != nil && !duplicate && m.Mode == store.ModePHP && done.Status != store.MailQueued && done.Status != store.MailHeld && done.Status != store.MailSending {
		p.w.truth.heard(done)
	}
	p.w.tell("   caller of %s heard %v", short(m.ID), err)
	if errors.Is(err, store.ErrUnavailable) && m.RequestID != "" && m.ResentFrom == uuid.Nil && !p.w.calm {
		// The same request once more, as another mail.
		p.w.after(time.Second, "call again "+short(m.ID), func() {
			r := p.anyUp()
			if r == nil {
				return
			}
			n := p.mail(s)
			n.RequestID, n.Fingerprint, n.ResentFrom = m.RequestID, m.Fingerprint, m.ID
			p.wg.Go(func() { p.send(r, s, n, 20*time.Second) })
		})
	}
}

// operate is one operator's doing.
func (p *people) operate() {
	w := p.w
	var due []*store.Mail
	for _, r := range w.db.Rows() {
		if !r.Mail.Archived {
			due = append(due, r.Mail)
		}
	}
	if len(due) == 0 {
		return
	}
	pick := func() []uuid.UUID {
		var ids []uuid.UUID
		for range 1 + w.rng.IntN(6) {
			ids = append(ids, due[w.rng.IntN(len(due))].ID)
		}
		return ids
	}
	w.counts.Stops++
	switch w.rng.IntN(6) {
	case 0:
		p.cancel(pick())
	case 1, 2:
		ids := pick()
		if p.hold(ids) {
			w.after(time.Duration(w.rng.Int64N(int64(40*time.Second))), "release", func() { p.release(nil) })
		}
	case 3:
		p.retry(pick(), w.chance(0.5))
	case 4:
		p.resolve(due)
	case 5:
		p.release(nil)
	}
}

// modify is a control call: the api's, without its reading of requests.
func (p *people) modify(ids []uuid.UUID, decide store.Decide) []store.ModifyFailure {
	matched, changed, failures, err := p.w.db.Modify(context.Background(), store.Everything, ids, nil, false, store.Audit{}, func(m *store.Mail, s *store.MailServer) (*store.Change, error) {
		c, err := decide(m, s)
		if f := p.w.opt.Plant.change; f != nil && c != nil {
			f(m, c)
		}
		return c, err
	})
	if err != nil {
		p.w.wrong("a control call fails: %v", err)
	}
	if matched != changed+len(failures) {
		p.w.wrong("a control call found %d mails, changed %d and names %d failures", matched, changed, len(failures))
	}
	return failures
}

// stop is a control call that reaches every mail until its mark.
func (p *people) stop(ids []uuid.UUID, decide store.Decide) {
	for _, f := range p.modify(ids, decide) {
		if row := p.w.db.Look(f.ID); errors.Is(f.Err, store.ErrSending) && row.Marked.IsZero() {
			p.w.wrong("%s: it was not stopped, and its dot had no mark", short(f.ID))
		}
	}
}

func (p *people) cancel(ids []uuid.UUID) {
	p.stop(ids, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		p.w.tell("   cancel %s", short(m.ID))
		p.w.truth.stop(m.ID, "cancelled")
		return lifecycle.Cancel(m, "test"), nil
	})
}

func (p *people) hold(ids []uuid.UUID) (held bool) {
	p.stop(ids, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		c, err := lifecycle.Hold(m, "test")
		if err == nil {
			held = true
			p.w.tell("   hold %s", short(m.ID))
			p.w.truth.stop(m.ID, "held")
		}
		return c, err
	})
	return held
}

var errUnusable = errors.New("its mail server takes no mail")

func usable(s *store.MailServer) bool {
	return s != nil && s.DeleteTime == nil && s.Status == store.ServerAvailable
}

// release lets held mail go on, all that there is with nil.
func (p *people) release(ids []uuid.UUID) {
	if ids == nil {
		for _, r := range p.w.db.Rows() {
			if r.Mail.Status == store.MailHeld {
				ids = append(ids, r.Mail.ID)
			}
		}
	}
	now := time.Now()
	p.modify(ids, func(m *store.Mail, s *store.MailServer) (*store.Change, error) {
		if !usable(s) {
			return nil, errUnusable
		}
		c, err := lifecycle.Release(m, now)
		if err == nil {
			p.w.truth.goOn(m.ID, false)
		}
		return c, err
	})
}

// retry sends failed mail again. Named by their ids, also those that may have arrived.
func (p *people) retry(ids []uuid.UUID, named bool) {
	now := time.Now()
	p.modify(ids, func(m *store.Mail, s *store.MailServer) (*store.Change, error) {
		if !usable(s) {
			return nil, errUnusable
		}
		c, err := lifecycle.Retry(m, named, now)
		if err == nil {
			p.w.tell("   retry %s", short(m.ID))
			p.w.truth.goOn(m.ID, named)
		}
		return c, err
	})
}

// resolve is a person's word on one mail whose outcome is unknown.
func (p *people) resolve(due []*store.Mail) {
	again := p.w.chance(0.5)
	for _, m := range due {
		word := lifecycle.Resend
		if !again { // a person who says more than that has looked
			word = p.w.truth.wordOn(m)
		}
		if m.Status != store.MailUnknown {
			continue
		}
		_, err := p.w.db.ModifyMail(context.Background(), store.Everything, m.ID, store.Audit{}, func(m *store.Mail, s *store.MailServer) (*store.Change, error) {
			var at []int
			for i, r := range m.Progress.Results {
				if r.Status == store.RecipientUnknown {
					at = append(at, i)
				}
			}
			if len(at) == 0 || word == lifecycle.Resend && !usable(s) {
				return nil, errUnusable
			}
			p.w.tell("   resolve %s: %s", short(m.ID), word)
			p.w.truth.goOn(m.ID, true)
			return lifecycle.Resolve(m, at, word, "test", time.Now())
		})
		if err != nil {
			p.w.tell("   not resolved: %v", err)
		}
		return
	}
}

// configure changes a mail server.
func (p *people) configure() {
	w := p.w
	name := w.servers[w.rng.IntN(len(w.servers))]
	change := func(f func(*store.MailServer)) {
		s, err := w.db.UpdateServer(context.Background(), store.Everything, name, 0, store.Audit{}, func(s *store.MailServer) error { f(s); return nil })
		if err != nil {
			w.wrong("a mail server is not changed: %v", err)
			return
		}
		w.truth.configured(s)
	}
	what := 6
	if w.fallback != "" {
		what = 8
	}
	switch w.rng.IntN(what) {
	case 0, 6:
		change(func(s *store.MailServer) { s.Status = store.ServerUnavailable })
		w.after(time.Duration(w.rng.Int64N(int64(40*time.Second))), "available "+name, func() {
			change(func(s *store.MailServer) { s.Status = store.ServerAvailable })
		})
	case 1:
		if s, _, err := w.db.DeleteServer(context.Background(), store.Everything, name, 0, true, store.Audit{}); err == nil {
			w.truth.configured(s)
			w.after(time.Duration(w.rng.Int64N(int64(40*time.Second))), "undelete "+name, func() {
				if s, err := w.db.UndeleteServer(context.Background(), store.Everything, name, store.Audit{}); err == nil {
					w.truth.configured(s)
					p.release(nil)
				}
			})
		}
	case 2:
		n := int32(1 + w.rng.IntN(3))
		change(func(s *store.MailServer) { s.Limits.MaxConnections = n })
	case 3:
		n := int32([]int{0, 10, 20}[w.rng.IntN(3)])
		change(func(s *store.MailServer) { s.Limits.MailsPerMinute = n })
	case 4:
		port := firstPort + w.rng.IntN(len(w.relays))
		change(func(s *store.MailServer) { s.SMTP.Port = port })
	case 5:
		change(func(s *store.MailServer) { s.HoldUnknown = !s.HoldUnknown })
	case 7:
		if name = "s0"; w.chance(0.5) {
			name = "s1"
		}
		if s, err := w.db.Server(context.Background(), store.Everything, w.fallback); err != nil || s.DeleteTime != nil {
			return // nobody may have it as a fallback now
		}
		change(func(s *store.MailServer) {
			if s.Fallback = w.fallback; w.chance(0.3) {
				s.Fallback = ""
			}
		})
	}
}

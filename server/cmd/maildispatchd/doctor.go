package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/server"
	"github.com/maildispatch/maildispatch/store"
)

const (
	// What is looked at without --full: enough to find a fault that goes on, in seconds.
	doctorMessages = 1000
	doctorContent  = 256 << 20
	// shownBreaches is how many breaches of one invariant are printed.
	shownBreaches = 10
	// rescueTime is longer than a living replica takes to rescue a dead one's mail, which an
	// inspection may meet at that very moment.
	rescueTime = 8 * time.Second
)

// doctor looks at a database, also one in use, and says whether the invariants of the promise
// hold and what a person should look at.
func doctor(ctx context.Context, args []string) error {
	opt := store.InspectOptions{Messages: doctorMessages, ContentBytes: doctorContent}
	var full, recount bool
	c, err := configOf("doctor", args, func(fs *flag.FlagSet) {
		fs.BoolVar(&full, "full", false, "read every message and all shared content, not only the newest")
		fs.BoolVar(&recount, "recount", false, "first count everything and put the counters of batches and of the queue right")
		fs.Func("audit-head", "a head of the audit log that the service's log remembers (`N:HASH`): that row has to be there still", func(text string) (err error) {
			opt.AuditHead, err = store.ParseAuditHead(text)
			return err
		})
		fs.DurationVar(&opt.Late, "late", 5*time.Minute, "how long mail may be due before it is called late; longer than --batch-interval")
	})
	if err != nil {
		return err
	}
	if full {
		opt.Messages, opt.ContentBytes = -1, -1
	}
	if opt.Keep, err = c.KeepRules(); err != nil {
		return err
	}
	if recount {
		if err := countAnew(ctx, c.Database); err != nil {
			return err
		}
	}
	in, err := store.OpenInspector(ctx, c.Database)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := in.Inspect(ctx, opt)
	if err == nil && r.Unrescued > 0 {
		select {
		case <-time.After(rescueTime):
			r, err = in.Inspect(ctx, opt)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	d := diagnosis{out: os.Stdout, c: &c, r: r}
	d.print()
	if r.Broken() {
		return failed{fmt.Errorf("doctor: an invariant is broken; no command mends that, but --recount what I10 finds: keep a copy of the database and tell the developers")}
	}
	return nil
}

// countAnew is the one thing that doctor writes.
func countAnew(ctx context.Context, dsn string) error {
	s, err := store.Open(ctx, dsn, store.Options{})
	if err != nil {
		return err
	}
	n, err := s.Recount(ctx)
	if err == nil {
		fmt.Printf("%d totals put right\n", n)
	}
	return errors.Join(err, s.Close())
}

// diagnosis prints an inspection for people.
type diagnosis struct {
	out   io.Writer
	c     *server.Config
	r     *store.Inspection
	found int
}

func (d *diagnosis) print() {
	for _, i := range d.r.Invariants {
		if len(i.Breaches) == 0 {
			fmt.Fprintf(d.out, "%s  ok      %s\n", i.Name, i.Says)
			continue
		}
		fmt.Fprintf(d.out, "%s  BROKEN  %s: %d breaches\n", i.Name, i.Says, len(i.Breaches))
		for _, b := range i.Breaches[:min(len(i.Breaches), shownBreaches)] {
			fmt.Fprintf(d.out, "    %s %s\n", b.Subject, b.Problem)
		}
		if n := len(i.Breaches) - shownBreaches; n > 0 {
			fmt.Fprintf(d.out, "    and %d more\n", n)
		}
	}
	fmt.Fprintf(d.out, "%d mails, %d of them read whole; %d of %d bytes of shared content hashed", d.r.Mails, d.r.Messages, d.r.BytesRead, d.r.Bytes)
	if d.r.Messages < d.r.Mails || d.r.BytesRead < d.r.Bytes {
		fmt.Fprint(d.out, " (--full: all)")
	}
	fmt.Fprintln(d.out)
	alive := 0
	for _, r := range d.r.Replicas {
		if r.AliveUntil.After(d.r.Now) {
			alive++
		}
	}
	if d.r.AuditHead.Seq > 0 {
		fmt.Fprintf(d.out, "audit log: %s\n", d.r.AuditHead)
	}
	fmt.Fprintf(d.out, "%d replicas alive\n\nWhat a person should look at:\n", alive)
	d.wentBack()
	d.dead()
	d.waiting()
	d.late(alive)
	for _, s := range d.r.Suspended {
		d.say(fmt.Sprintf("mail server %s is suspended after %d failures, next try %s: %s", s.MailServer, s.Failures, when(s.RetryAt.Time), s.Reason),
			d.call("MailServerAdmin/TestMailServer", object{"name": s.MailServer}), d.call("MailServerAdmin/RunBatch", object{"mail_server": s.MailServer, "wait": true}))
	}
	d.noDefault()
	d.defaultUnavailable()
	d.retention()
	if d.found == 0 {
		fmt.Fprintln(d.out, "- nothing")
	}
}

func (d *diagnosis) wentBack() {
	b := d.r.WentBack
	if b.Since.IsZero() {
		return
	}
	d.say(fmt.Sprintf("RESTORED OR COPIED (found %s): %s; %d mails that were due are held, because they may have left", when(b.Since), b.Why, b.Held),
		d.call("Dispatch/ListDueOutMails", object{"filter": object{"statuses": []string{"MAIL_STATUS_HELD"}}}),
		"maildispatchd adopt --database=... --key-file=...")
}

func (d *diagnosis) dead() {
	for _, r := range d.r.Replicas {
		if r.Owned > 0 && !r.AliveUntil.After(d.r.Now) {
			d.say(fmt.Sprintf("replica %d (%s) is dead and owns %d mails; the next replica that runs takes them over", r.ID, r.Name, r.Owned), d.serve())
		}
	}
}

func (d *diagnosis) waiting() {
	for _, w := range d.r.Waiting {
		status := "MAIL_STATUS_" + strings.ToUpper(string(w.Status))
		of := fmt.Sprintf("%d mails of mail server %s, the oldest %s,", w.N, w.MailServer, w.Oldest)
		if w.N == 1 {
			of = fmt.Sprintf("mail %s of mail server %s", w.Oldest, w.MailServer)
		}
		filter := object{"filter": object{"mail_server": w.MailServer, "statuses": []string{status}}}
		again := object{"filter": filter["filter"], "reason": "..."}
		list := d.call("Dispatch/ListDueOutMails", filter)
		switch {
		case w.Status == store.MailUnknown:
			d.say("UNKNOWN: "+of+" may have arrived or not; find out and say so, or RESOLUTION_NOT_DELIVERED, RESOLUTION_RESEND", list,
				d.call("Dispatch/ResolveMail", object{"id": w.Oldest.String(), "resolution": "RESOLUTION_DELIVERED", "reason": "..."}))
		case w.Quarantined:
			d.say("QUARANTINED: "+of+" may harm the service; look at the reason before it is tried again", list,
				d.call("Dispatch/RetryMails", object{"ids": []string{w.Oldest.String()}, "reason": "..."}))
		case w.Status == store.MailHeld:
			d.say("HELD: "+of+" waits until somebody lets it go", list, d.call("Dispatch/ReleaseMails", again))
		default:
			d.say(strings.ToUpper(string(w.Status))+": "+of+" is not tried again by itself", list, d.call("Dispatch/RetryMails", again))
		}
	}
}

func (d *diagnosis) late(alive int) {
	for _, l := range d.r.Late {
		mend, why := []string{d.call("MailServerAdmin/RunBatch", object{"mail_server": l.MailServer, "wait": true})}, ""
		switch {
		case alive == 0:
			why, mend = ": no replica runs", []string{d.serve()}
		case l.Status == "missing":
			why, mend = ": there is no such mail server", []string{d.call("Dispatch/CancelMails", object{"filter": object{"mail_server": l.MailServer}, "reason": "..."})}
		case l.Deleted:
			why, mend = ": it is deleted", []string{d.call("MailServerAdmin/UndeleteMailServer", object{"name": l.MailServer})}
		case l.Status != string(store.ServerAvailable):
			why, mend = ": it is unavailable", []string{d.call("MailServerAdmin/UpdateMailServer", object{"mail_server": object{"name": l.MailServer, "status": "STATUS_AVAILABLE"}})}
		case l.Suspended:
			why = ": it is suspended, see there"
		}
		d.say(fmt.Sprintf("LATE: %d mails of mail server %s are due, the oldest since %s%s", l.N, l.MailServer, when(l.Since.Time), why), mend...)
	}
}

// retentionLate is how far behind the rules of --keep may be: a first run over a large archive
// takes hours.
const retentionLate = 24 * time.Hour

func (d *diagnosis) retention() {
	for _, rule := range slices.Sorted(maps.Keys(d.r.Overdue)) {
		if by := d.r.Overdue[rule]; by > retentionLate {
			d.say(fmt.Sprintf("RETENTION: %s is behind: its first mail should have been removed %v ago", rule, by.Round(time.Hour)), d.call("Retention/GetRetention", object{}))
		}
	}
}

func (d *diagnosis) noDefault() {
	for _, n := range d.r.NoDefault {
		text := fmt.Sprintf("team %s has no default mail server: what its mail falls back to is the system's", n.Team)
		if n.Team == "" {
			text = "the system has no default mail server: mail that names none is refused unless its team has one"
		}
		if n.Candidate.Valid {
			d.say(text, d.call("MailServerAdmin/SetDefaultMailServer", object{"name": n.Candidate.String}))
			continue
		}
		d.say(text, d.call("MailServerAdmin/CreateMailServer", object{"mail_server": object{"name": "main", "type": "TYPE_LOCALHOST", "mode": "MODE_DAEMON", "is_default": true,
			"from": "Shop <shop@example.com>"}}))
	}
}

func (d *diagnosis) defaultUnavailable() {
	for _, u := range d.r.DefaultUnavailable {
		whose := "the system"
		if u.Team != "" {
			whose = "team " + u.Team
		}
		mend := []string{d.call("MailServerAdmin/UpdateMailServer", object{"mail_server": object{"name": u.MailServer, "status": "STATUS_AVAILABLE"}})}
		if u.Candidate.Valid {
			mend = append(mend, d.call("MailServerAdmin/SetDefaultMailServer", object{"name": u.Candidate.String}))
		}
		d.say(fmt.Sprintf("mail server %s, the default of %s, is unavailable: mail of %s that names no mail server is refused", u.MailServer, whose, whose), mend...)
	}
}

// say prints something to look at and what mends it.
func (d *diagnosis) say(text string, mend ...string) {
	d.found++
	fmt.Fprintln(d.out, "-", text)
	for _, m := range mend {
		fmt.Fprintln(d.out, "   ", m)
	}
}

type object = map[string]any

// call is a grpcurl command.
func (d *diagnosis) call(method string, request object) string {
	b, _ := json.Marshal(request) // strings and lists of them always can be
	plain := "-plaintext "
	if d.c.TLSCert != "" {
		plain = ""
	}
	return fmt.Sprintf("grpcurl %s-d '%s' %s maildispatch.v1.%s", plain, strings.ReplaceAll(string(b), "'", `'\''`), d.c.Listen, method)
}

func (d *diagnosis) serve() string { return "maildispatchd serve --database=..." }

func when(t time.Time) string {
	if t.IsZero() {
		return "now"
	}
	return t.UTC().Format(time.RFC3339)
}

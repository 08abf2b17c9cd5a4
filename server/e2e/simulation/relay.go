package simulation

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

const firstPort = 2500

// mood is how a relay behaves for a while.
type mood int

const (
	moodWell mood = iota
	moodUnruly
	moodBusy   // says 421 to whoever connects
	moodSilent // takes connections and says nothing
	moodAway   // takes no connections
	moodThrottle
)

// relay is one scripted relay. Its truth is what counts: a mail has arrived exactly when the
// relay says so here.
type relay struct {
	w      *world
	name   string
	mood   mood
	refuse float64
	pipe   bool
	open   map[*dialogue]bool
	queued int
}

// dialogue is the relay's side of a connection.
type dialogue struct {
	r      *relay
	c      *conn
	in     []byte
	body   bool
	mail   bool
	from   string
	to     []string
	ended  bool
	silent bool
	out    bytes.Buffer
	late   time.Duration
}

func (r *relay) accept(c *conn) *dialogue {
	d := &dialogue{r: r, c: c}
	r.open[d] = true
	r.w.truth.opened(r, c)
	switch {
	case r.mood == moodSilent:
		d.silent = true
	case r.mood == moodBusy:
		d.say("421 4.3.2 too busy")
		d.flush()
		d.end()
	default:
		d.say("220 %s ready", r.name)
		d.flush()
	}
	return d
}

func (d *dialogue) say(format string, args ...any) { fmt.Fprintf(&d.out, format+"\r\n", args...) }

// flush sends what was said.
func (d *dialogue) flush() {
	if d.out.Len() == 0 || d.silent {
		return
	}
	w := d.r.w
	late := d.late
	d.late = 0
	if !w.calm && w.chance(w.prof.late) {
		late += time.Duration(w.rng.Int64N(int64(5 * time.Second)))
	}
	d.c.answer(packet{data: bytes.Clone(d.out.Bytes())}, late)
	d.out.Reset()
}

// end closes the connection from here, politely.
func (d *dialogue) end() {
	if d.ended {
		return
	}
	d.ended = true
	delete(d.r.open, d)
	if !d.c.closed {
		d.c.answer(packet{end: io.EOF}, 0)
	}
}

// gone hears that the other side is no more.
func (d *dialogue) gone() {
	d.ended = true
	delete(d.r.open, d)
}

// receive takes bytes of the client. left is when they were written.
func (d *dialogue) receive(b []byte, left time.Time) {
	if d.ended || d.silent {
		return
	}
	d.in = append(d.in, b...)
	for !d.ended && !d.silent {
		if d.body {
			i := bytes.Index(d.in, []byte("\r\n.\r\n"))
			if i < 0 {
				break
			}
			data := d.in[:i+2]
			d.in = d.in[i+5:]
			d.body, d.mail = false, false
			d.dot(string(data), left)
			continue
		}
		i := bytes.IndexByte(d.in, '\n')
		if i < 0 {
			break
		}
		line := strings.TrimRight(string(d.in[:i]), "\r\n")
		d.in = d.in[i+1:]
		said := d.out.Len()
		d.command(line)
		w := d.r.w
		w.tell("   %s %q: %q", d.c.name, line, d.out.Bytes()[min(said, d.out.Len()):])
	}
	d.flush()
}

func (d *dialogue) unruly(p float64) bool {
	w := d.r.w
	return !w.calm && d.r.mood == moodUnruly && w.chance(p*w.prof.relay)
}

func (d *dialogue) command(line string) {
	w := d.r.w
	verb, arg, _ := strings.Cut(line, " ")
	if d.unruly(0.01) {
		switch w.rng.IntN(3) {
		case 0:
			d.c.reset()
		case 1:
			d.silent = true
		default:
			d.say("421 4.3.0 going down")
			d.flush()
			d.end()
		}
		return
	}
	switch strings.ToUpper(verb) {
	case "EHLO":
		d.say("250-%s", d.r.name)
		if d.r.pipe {
			d.say("250-PIPELINING")
		}
		d.say("250-ENHANCEDSTATUSCODES")
		d.say("250 SIZE 10485760")
	case "MAIL":
		switch {
		case d.mail:
			d.say("503 5.5.1 nested MAIL")
		case d.unruly(0.02):
			d.say("451 4.3.0 try later")
		case !w.calm && d.r.mood == moodThrottle && w.chance(0.4):
			d.say("450 4.7.1 too fast")
		default:
			d.mail, d.from, d.to = true, between(arg), nil
			d.say("250 2.1.0 ok")
		}
	case "RCPT":
		to := between(arg)
		code := w.truth.address(to)
		w.truth.asked(to, d.c)
		switch {
		case !d.mail:
			d.say("503 5.5.1 MAIL first")
		case code == 550 || d.unruly(0.02):
			w.truth.refused(to, 550)
			d.say("550 5.1.1 no such user")
		case code == 450 || d.unruly(0.03):
			w.truth.refused(to, 450)
			d.say("450 4.2.0 later")
		default:
			d.to = append(d.to, to)
			d.say("250 2.1.5 ok")
		}
	case "DATA":
		switch {
		case !d.mail || len(d.to) == 0:
			d.say("554 5.5.1 no valid recipients")
		case d.unruly(0.02):
			d.say("451 4.3.0 try later")
		default:
			d.body = true
			d.say("354 go on")
			if d.unruly(0.01) {
				d.flush()
				d.c.reset()
			}
		}
	case "RSET":
		d.mail = false
		d.say("250 2.0.0 ok")
	case "NOOP":
		d.say("250 2.0.0 ok")
	case "QUIT":
		d.say("221 2.0.0 bye")
		d.flush()
		d.end()
	case ".":
		d.say("500 5.5.2 what")
	default:
		d.say("500 5.5.2 unknown command")
	}
}

// dot decides about a whole mail.
func (d *dialogue) dot(data string, left time.Time) {
	w := d.r.w
	id := idOf(data)
	if !w.calm && d.r.mood == moodUnruly {
		x := w.rng.Float64() / max(w.prof.relay, 0.01)
		switch {
		case x < 0.02: // dropped before it counts
			d.c.reset()
			return
		case x < 0.06: // taken, and nothing is said
			w.truth.delivered(id, d.to, d.r, d.c, "", left)
			d.c.reset()
			return
		case x < 0.08:
			w.truth.delivered(id, d.to, d.r, d.c, "", left)
			d.silent = true
			return
		case x < 0.11:
			w.truth.refusedAll(id, d.to, 451)
			d.say("451 4.3.0 try later")
			return
		case x < 0.13:
			w.truth.refusedAll(id, d.to, 554)
			d.say("554 5.6.0 refused")
			return
		case x < 0.14:
			w.truth.refusedAll(id, d.to, 421)
			d.say("421 4.3.2 going down")
			d.flush()
			d.end()
			return
		case x < 0.19:
			d.late = time.Duration(w.rng.Int64N(int64(40 * time.Second)))
		}
	}
	d.r.queued++
	q := fmt.Sprintf("%s%04d", strings.ToUpper(d.r.name), d.r.queued)
	w.truth.delivered(id, d.to, d.r, d.c, q, left)
	d.say("250 2.0.0 Ok: queued as %s", q)
}

func between(arg string) string {
	_, r, _ := strings.Cut(arg, "<")
	r, _, _ = strings.Cut(r, ">")
	return r
}

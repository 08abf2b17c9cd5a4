package main

import (
	"crypto/sha256"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// relay counts what it took, by mail and recipient, and does something wrong with a share of
// the mails.
type relay struct {
	server *smtpxtest.Server
	share  float64
	ended  chan struct{}

	mu      sync.Mutex
	open    map[int]*transaction // by connection
	took    map[string]*taken    // by mail id
	other   int                  // attempts with other bytes than the first
	faults  map[string]int
	arrived int
}

// transaction is one mail on one connection.
type transaction struct {
	fault string
	to    []string
}

// taken is what is known of a mail that came.
type taken struct {
	sum   [8]byte        // of the bytes of the first attempt
	times map[string]int // by recipient
	last  time.Time
}

var faults = []string{"4yz", "5yz", "one refused", "silence", "reset", "taken and reset", "421", "slow"}

func startRelay(share float64) (*relay, error) {
	r := &relay{share: share, ended: make(chan struct{}), open: map[int]*transaction{}, took: map[string]*taken{}, faults: map[string]int{}}
	r.server = &smtpxtest.Server{On: r.on, Discard: true}
	return r, r.server.Listen()
}

func (r *relay) close() {
	close(r.ended)
	r.server.Close()
}

// on decides the fault of a mail at its MAIL, and does it where it belongs.
func (r *relay) on(c smtpxtest.Command) *smtpxtest.Action {
	r.mu.Lock()
	t := r.open[c.Conn]
	if t == nil || c.Verb == "MAIL" {
		t = &transaction{}
		r.open[c.Conn] = t
	}
	switch c.Verb {
	case "CONNECT":
		if rand.Float64() < r.share {
			t.fault = "421"
		}
	case "MAIL":
		if rand.Float64() < r.share {
			t.fault = faults[rand.IntN(len(faults))]
		}
	case "RCPT":
		_, to, _ := strings.Cut(c.Arg, "<")
		to, _, _ = strings.Cut(to, ">")
		if t.fault == "one refused" && len(t.to) > 0 {
			r.mu.Unlock()
			return r.refuse(t.fault, "450 4.2.1 mailbox busy\r\n")
		}
		t.to = append(t.to, to)
	case "DOT":
		r.came(c.Arg)
	case "QUIT":
		delete(r.open, c.Conn)
	}
	r.mu.Unlock()
	switch {
	case t.fault == "421" && (c.Verb == "CONNECT" || c.Verb == "MAIL"):
		a := r.refuse(t.fault, "421 4.3.2 try later\r\n")
		a.Close = true
		return a
	case c.Verb != "DOT":
		return nil
	case t.fault == "4yz":
		return r.refuse(t.fault, "451 4.3.0 try later\r\n")
	case t.fault == "5yz":
		return r.refuse(t.fault, "554 5.7.1 not wanted\r\n")
	case t.fault == "silence":
		// Half of those that get no answer have been taken.
		if rand.IntN(2) == 0 {
			r.take(c.Arg, t.to)
		}
		r.wait(time.Duration(5+rand.IntN(20)) * time.Second)
		a := r.refuse(t.fault, "")
		a.Close = true
		return a
	case t.fault == "reset", t.fault == "taken and reset":
		if t.fault != "reset" {
			r.take(c.Arg, t.to)
		}
		a := r.refuse(t.fault, "")
		a.Reset = true
		return a
	case t.fault == "slow":
		r.refuse(t.fault, "")
		r.wait(2 * time.Second)
	}
	r.take(c.Arg, t.to)
	return nil
}

func (r *relay) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.ended:
	}
}

// refuse counts a fault.
func (r *relay) refuse(fault, reply string) *smtpxtest.Action {
	r.mu.Lock()
	r.faults[fault]++
	r.mu.Unlock()
	return &smtpxtest.Action{Reply: reply, Refuse: true}
}

// came compares the bytes of an attempt with those of the first. With mu held.
func (r *relay) came(body string) *taken {
	_, id, _ := strings.Cut(body, "Message-ID: <")
	id, _, _ = strings.Cut(id, "@")
	sum := sha256.Sum256([]byte(body))
	m := r.took[id]
	if m == nil {
		m = &taken{sum: [8]byte(sum[:8]), times: map[string]int{}}
		r.took[id] = m
	}
	if m.sum != [8]byte(sum[:8]) {
		r.other++
	}
	return m
}

// take notes an arrival.
func (r *relay) take(body string, to []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrived++
	m := r.came(body)
	m.last = time.Now()
	for _, a := range to {
		m.times[a]++
	}
}

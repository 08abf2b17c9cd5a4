package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/quotedprintable"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// Every mail has a number: its recipient is m<number>@load.example and its text begins with "No
// <number>.", so that the sink can tell whether each arrived exactly once, with the text that
// was meant for that recipient.

// tally counts at the sink what arrived, by number.
type tally struct {
	seen    []atomic.Uint32
	arrived atomic.Int64
	stray   atomic.Int64 // of no number, or of one that was never given out
	swapped atomic.Int64 // text of another number
	given   atomic.Int64
	example atomic.Pointer[string] // the beginning of a mail with the text of another
	sink    smtpxtest.Sink
}

// newTally starts a sink for at most most mails.
func newTally(most int) (*tally, error) {
	t := &tally{seen: make([]atomic.Uint32, most)}
	t.sink.OnMail = t.mail
	return t, t.sink.Start()
}

// give hands out n numbers, of which the first is returned.
func (t *tally) give(n int) int { return int(t.given.Add(int64(n))) - n }

func (t *tally) mail(rcpt [][]byte, head []byte) {
	for _, r := range rcpt {
		n, ok := number(r, ":<m", '@')
		if !ok || n >= len(t.seen) {
			t.stray.Add(1)
			continue
		}
		t.seen[n].Add(1)
		if in, ok := opening(head); !ok || in != n {
			t.swapped.Add(1)
			s := fmt.Sprintf("mail %d: %.600q", n, head)
			t.example.CompareAndSwap(nil, &s)
		}
	}
	t.arrived.Add(1)
}

// opening is the number that a message's text begins with, as it is or in quoted-printable.
func opening(head []byte) (int, bool) {
	if n, ok := number(head, "\r\n\r\nNo ", '.'); ok {
		return n, true
	}
	_, text, _ := bytes.Cut(head, []byte("\r\n\r\n"))
	// dots are stuffed
	text = bytes.ReplaceAll(text[:min(len(text), 100)], []byte("\n.."), []byte("\n."))
	// cut anywhere: what can be read is enough
	plain, _ := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(text)))
	return number(plain, "No ", '.')
}

// number reads the decimal number between before and after.
func number(b []byte, before string, after byte) (int, bool) {
	i := bytes.Index(b, []byte(before))
	if i < 0 {
		return 0, false
	}
	n, digits := 0, 0
	for _, c := range b[i+len(before):] {
		if c < '0' || c > '9' || digits > 9 {
			return n, digits > 0 && c == after
		}
		n, digits = n*10+int(c-'0'), digits+1
	}
	return 0, false
}

// wait waits until n mails have arrived since the start.
func (t *tally) wait(ctx context.Context, n int) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for t.arrived.Load() < int64(n) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d mails arrived: %w", t.arrived.Load(), n, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// check says what did not arrive exactly once; every number that was given out was accepted.
func (t *tally) check() []string {
	var missing, doubled int
	given := int(t.given.Load())
	for i := range t.seen {
		n := t.seen[i].Load()
		switch {
		case i >= given && n > 0:
			t.stray.Add(int64(n))
		case i < given && n == 0:
			missing++
		case n > 1:
			doubled++
		}
	}
	var wrong []string
	if given > len(t.seen) {
		wrong = append(wrong, fmt.Sprintf("%d mails were sent, and only %d can be told apart", given, len(t.seen)))
	}
	for _, x := range []struct {
		n    int
		what string
	}{{missing, "never arrived"}, {doubled, "arrived more than once"}, {int(t.stray.Load()), "arrived that nobody sent"}, {int(t.swapped.Load()), "arrived with the text of another"}} {
		if x.n > 0 {
			wrong = append(wrong, fmt.Sprintf("%d of %d mails %s", x.n, given, x.what))
		}
	}
	if s := t.example.Load(); s != nil {
		wrong = append(wrong, *s)
	}
	return wrong
}

// bodies are texts of words in no order, about as compressible as prose, so that neither the
// database nor a cache meets the same one all the time.
type bodies struct {
	text []string
	html bool
}

const bodyKinds = 64

func newBodies(size int, html bool) *bodies {
	words := strings.Fields("the invoice of this month is enclosed please pay within thirty days to account number our agents will call on you order delivery " +
		"address changed since last week value total including tax customer reference contract period service hours report")
	if html {
		size /= 2
	}
	b := &bodies{html: html}
	x := uint64(1)
	for range bodyKinds {
		var s strings.Builder
		for line := 0; s.Len() < size; {
			x = x*6364136223846793005 + 1442695040888963407
			w := words[x>>33%uint64(len(words))]
			if x>>40%4 == 0 {
				w = strconv.FormatUint(x>>44, 36)
			}
			switch line += len(w) + 1; {
			case line > 72:
				s.WriteString("\n")
				line = len(w)
			case s.Len() > 0:
				s.WriteString(" ")
			}
			s.WriteString(w)
		}
		b.text = append(b.text, s.String()[:size])
	}
	return b
}

// message is mail n.
func (b *bodies) message(n int) *pb.MailMessage {
	no := strconv.Itoa(n)
	m := &pb.MailMessage{To: []string{"m" + no + "@load.example"}, Subject: "Load " + no, Text: "No " + no + ".\n" + b.text[n%bodyKinds]}
	if b.html {
		m.Html = "<p>" + b.text[(n+1)%bodyKinds] + "</p>"
	}
	return m
}

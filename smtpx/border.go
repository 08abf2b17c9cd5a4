package smtpx

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxText = 1 << 10 // octets of a foreign text that are kept: a reply, an error, a hint
	// octets of one in a probe's report: enough for a person, too little to read out a service
	// that is not SMTP
	maxShown = 200
)

// Clean makes text from outside fit to be stored, logged and answered: valid UTF-8, printable,
// and at most limit octets, cut at the border of a character. What cannot be printed becomes a
// blank: controls (NUL, line ends, ESC, the C1 set), line separators, and the formatting
// characters by which a text shows itself in another order than it has. What is not UTF-8
// becomes "?".
//
// Every text that this package hands out and that a relay, a certificate or a name server can
// choose has passed it: see [Error], [Outcome] and [ProbeResult].
func Clean(s string, limit int) string {
	clean := true
	for i := range min(len(s), limit) {
		if c := s[i]; c < ' ' || c >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return s[:min(len(s), limit)]
	}
	var b strings.Builder
	b.Grow(min(len(s), limit))
	for _, r := range strings.ToValidUTF8(s, "?") {
		if !unicode.IsPrint(r) {
			r = ' '
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// foreign is an error whose text came from outside, made printable. Its cause stays there for
// errors.Is and errors.As.
type foreign struct {
	text string
	err  error
}

func (e *foreign) Error() string { return e.text }
func (e *foreign) Unwrap() error { return e.err }

// clean makes everything of the fault that can be shown or stored printable and short. A
// reply's text was cleaned when it was read.
func (e *Error) clean() *Error {
	if e == nil {
		return nil
	}
	e.Reply = e.Reply.clean()
	e.Hint = Clean(e.Hint, maxText)
	if e.Err != nil {
		if text := e.Err.Error(); Clean(text, maxText) != text {
			e.Err = &foreign{Clean(text, maxText), e.Err}
		}
	}
	return e
}

func (r Reply) clean() Reply {
	r.Text = Clean(r.Text, maxText)
	return r
}

// clean is what leaves through Done.
func (o Outcome) clean() Outcome {
	o.Err = o.Err.clean()
	o.RemoteID = Clean(o.RemoteID, maxText)
	for i := range o.Recipients {
		o.Recipients[i].Reply = o.Recipients[i].Reply.clean()
	}
	return o
}

// clean is what a probe reports.
func (r ProbeResult) clean() ProbeResult {
	r.Err = r.Err.clean()
	for i := range r.Steps {
		st := &r.Steps[i]
		st.Detail, st.Hint = Clean(st.Detail, maxShown), Clean(st.Hint, maxText)
		for k, v := range st.Facts {
			st.Facts[k] = Clean(v, maxShown)
		}
	}
	return r
}

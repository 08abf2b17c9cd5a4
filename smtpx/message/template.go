package message

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"net/textproto"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of variables.
const (
	MaxVariables      = 100      // a mail may give
	MaxVariableBytes  = 64 << 10 // of one value
	MaxVariablePlaces = 500      // in a text or html
	maxVariableName   = 63
)

// ErrTooLarge says that the values of a mail make it larger than its mail server takes.
var ErrTooLarge = errors.New("its values make the mail larger than its mail server takes")

// Template is what the mails of a batch share, composed once. {{name}} in subject, text and
// html stands for the mail's variable of that name: [A-Za-z_][A-Za-z0-9_]{0,62}, blanks allowed
// inside the braces. Two opening braces that begin no variable are refused, since a typing
// error must not go out to everyone; closing ones are text. In html a value is escaped. What a
// value holds is never looked at again: {{other}} in it stays as it is.
//
// The whole body lies encoded in one Content, cut where the variables stand. A text with
// variables is quoted-printable, where every run between them is encoded by itself and ends in
// a soft line break, so that no shared byte depends on a value. The boundaries depend on the
// body alone.
//
// A Template may be used by many goroutines at once.
type Template struct {
	subject  []run
	headers  map[string]string
	replyTo  []Address
	links    []link // values that begin a URL in html
	ofSender bool   // it has headers that the mail server has a say in
	fromName string
	auto     bool // see Message.AutoSubmitted
	leave    unsubscribe
	// as it was given
	unsubscribe Unsubscribe
	kind        fields // what of the body's header stands in the top header
	// of the top header with the template's own headers, from MIME-Version on
	tail     []byte
	segments []segment
	own      *Content // the body but what has content of its own
	size     int      // of the body without values
	body     []string // names in text, html and ways to unsubscribe, sorted
}

// segment is a run of the body: a range of shared content, or the place of a variable.
type segment struct {
	Piece
	hole *hole
}

// Fill is what one mail of a batch adds.
type Fill struct {
	From    Address
	To, Cc  []Address // bcc never comes here
	ReplyTo []Address // not empty: in place of the template's
	Subject string    // not "": in place of the template's, variables and all
	// added to the template's; one with the same name stands in its place
	Headers   map[string]string
	FromName  string // not "": in place of the template's
	Allowed   []string
	MessageID string
	Date      time.Time
	Variables map[string]string // values; those that nothing uses are passed over
	// of the raw message; 0 or more than MaxMailBytesCap = MaxMailBytesCap
	MaxBytes int64
}

// NewTemplate prepares what the mails of a batch share. Recipients, From, MessageID and Date of
// the message stay empty; they come with every Fill.
func NewTemplate(m *Message) (*Template, []Violation) {
	vs := m.Validate()
	t := &Template{headers: m.Headers, replyTo: m.ReplyTo, fromName: m.FromName, auto: m.AutoSubmitted, unsubscribe: m.Unsubscribe}
	t.leave = m.Unsubscribe.cut(told)
	for k := range m.Headers {
		canon := textproto.CanonicalMIMEHeaderKey(k)
		t.ofSender = t.ofSender || canon == errorsTo || provider(canon)
	}
	names := map[string]bool{}
	for _, f := range []struct{ field, s string }{{"subject", m.Subject}, {"text", m.Text}, {"html", m.HTML}} {
		runs, places := t.check(&vs, f.field, f.s)
		if f.field == "subject" {
			t.subject = runs
			continue
		}
		if f.field == "html" {
			t.links = checkPlaces(&vs, runs)
		}
		if places > MaxVariablePlaces {
			vs = append(vs, Violation{f.field, fmt.Sprintf("has more than %d variables", MaxVariablePlaces)})
		}
		for _, r := range runs {
			if r.name != "" {
				names[r.name] = true
			}
		}
	}
	for _, n := range t.leave.names() {
		names[n] = true
	}
	t.body = slices.Sorted(maps.Keys(names))
	vs = append(vs, bracedHeaders(m.Headers)...)
	vs = append(vs, m.braced()...)
	if len(vs) > 0 {
		return nil, vs
	}
	if err := t.compose(m); err != nil {
		return nil, []Violation{{"", err.Error()}}
	}
	return t, nil
}

// bracedHeaders: a variable in a header of the caller's own is a mistake that would go out as
// it is.
func bracedHeaders(headers map[string]string) []Violation {
	var vs []Violation
	for _, k := range sortedKeys(headers) {
		if strings.Contains(headers[k], "{{") {
			vs = append(vs, Violation{"headers[" + fieldKey(k) + "]", noVariables})
		}
	}
	return vs
}

// braced: so is one in what else has none.
func (m *Message) braced() (vs []Violation) {
	if strings.Contains(m.FromName, "{{") {
		vs = append(vs, Violation{"from_name", noVariables})
	}
	for i, a := range m.Alternatives {
		if strings.Contains(a.Content, "{{") {
			vs = append(vs, Violation{fmt.Sprintf("alternatives[%d].content", i), noVariables})
		}
	}
	return vs
}

const noVariables = `has "{{": variables stand in subject, text and html only`

func (t *Template) check(vs *[]Violation, field, s string) ([]run, int) {
	runs, bad := cutVariables(s)
	if bad >= 0 {
		*vs = append(*vs, Violation{field, fmt.Sprintf(`has "{{" at octet %d that begins no variable: write {{name}}, with letters, digits and _`, bad)})
	}
	places := 0
	for _, r := range runs {
		if r.name != "" {
			places++
		}
	}
	return runs, places
}

// compose encodes the body.
func (t *Template) compose(m *Message) error {
	c := &composer{m: m, vary: true, seed: seed(m)}
	c.structure()(nil, func(f fields) { t.kind = f })
	if c.err != nil {
		return c.err
	}
	t.tail = t.tailWith(m.Headers)
	shared, from := NewContent(c.buf.Bytes()), 0
	t.own = shared
	upTo := func(at int) {
		if at > from {
			t.segments = append(t.segments, segment{Piece: Piece{Shared: shared, Offset: from, Length: at - from}})
		}
		from = at
	}
	for _, s := range c.stops {
		upTo(s.at)
		if s.hole != nil {
			t.segments = append(t.segments, segment{hole: s.hole})
			continue
		}
		t.segments = append(t.segments, segment{Piece: s.piece})
	}
	upTo(shared.Size)
	for _, s := range t.segments {
		t.size += s.Length
	}
	return nil
}

// Holds reports whether the template made this content, of which every mail has ranges.
func (t *Template) Holds(c *Content) bool { return t != nil && c == t.own }

// seed makes boundaries of what the body is made of.
func seed(m *Message) [sha256.Size]byte {
	type file struct {
		Name, Type, ID string
		Sum            [sha256.Size]byte
	}
	var files []file
	for _, a := range m.Attachments {
		f := file{a.Filename, a.ContentType, a.ContentID, sha256.Sum256(a.Content)}
		if a.Stored != nil {
			f.Sum = a.Stored.Sum
		}
		files = append(files, f)
	}
	// plain values always can be
	b, _ := json.Marshal([]any{m.Text, m.HTML, m.Alternatives, files})
	return sha256.Sum256(b)
}

// tailWith is the end of the top header.
func (t *Template) tailWith(headers map[string]string) []byte {
	var f fields
	f.add("MIME-Version", "1.0")
	f.ownHeaders(headers, t.auto)
	var b bytes.Buffer
	append(f, t.kind...).write(&b)
	b.WriteString("\r\n")
	return b.Bytes()
}

// Variables are the names that the template uses, sorted.
func (t *Template) Variables() []string {
	names := map[string]bool{}
	for _, n := range t.body {
		names[n] = true
	}
	for _, r := range t.subject {
		if r.name != "" {
			names[r.name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Subject is the mail's subject; variables that it lacks are empty in it.
func (t *Template) Subject(f *Fill) string {
	runs := t.subject
	if f.Subject != "" {
		runs, _ = cutVariables(f.Subject)
	}
	return fillRuns(runs, f.Variables)
}

// Compose makes one mail: its own top header and values, and ranges of what is shared, of which
// nothing is copied. Field paths of violations are those of the API's BatchItem without
// "message.". ErrTooLarge: see there.
func (t *Template) Compose(f *Fill) ([]Piece, []Violation, error) {
	if vs := t.violations(f); len(vs) > 0 {
		return nil, vs, nil
	}
	// Encoding makes no value shorter, so what is too large by its values alone is not begun.
	least, limit := t.size, MaxMailBytesCap
	if f.MaxBytes > 0 {
		limit = min(limit, int(f.MaxBytes))
	}
	for _, s := range t.segments {
		if s.hole != nil {
			least += len(f.Variables[s.hole.name])
		}
	}
	if least > limit {
		return nil, nil, ErrTooLarge
	}
	var b bytes.Buffer
	b.Grow(1024 + len(t.tail))
	t.header(&b, f)
	ps := make([]Piece, 1, len(t.segments)+1)
	ps[0].Length = b.Len() // own pieces keep their place in the buffer until it grows no more
	newline := false
	for _, s := range t.segments {
		last := &ps[len(ps)-1]
		if s.hole == nil {
			if last.Shared != nil && last.Shared == s.Shared && last.Offset+last.Length == s.Offset {
				last.Length += s.Length // the value between them was empty
			} else {
				ps = append(ps, s.Piece)
			}
			continue
		}
		from, v := b.Len(), f.Variables[s.hole.name]
		if t.size+from+len(v) > limit {
			return nil, nil, ErrTooLarge
		}
		if !s.hole.follows {
			newline = s.hole.newline
		}
		if v != "" {
			v = lfLines(v)
			if s.hole.html {
				v = html.EscapeString(v)
			}
			if err := writeQuoted(&b, v); err != nil {
				return nil, nil, err
			}
			newline = strings.HasSuffix(v, "\n")
		}
		if v != "" || s.hole.last {
			b.WriteString(lineEnd(newline, s.hole.last))
		}
		switch n := b.Len() - from; {
		case n == 0:
		case last.Shared == nil:
			last.Length += n
		default:
			ps = append(ps, Piece{Offset: from, Length: n})
		}
	}
	if t.size+b.Len() > limit {
		return nil, nil, ErrTooLarge
	}
	own := b.Bytes()
	for i, p := range ps {
		if p.Shared == nil {
			end := p.Offset + p.Length
			ps[i] = Piece{Data: own[p.Offset:end:end]}
		}
	}
	return ps, nil, nil
}

// header writes the top header as Compose would.
func (t *Template) header(b *bytes.Buffer, f *Fill) {
	m := &Message{From: f.From, FromName: cmp.Or(f.FromName, t.fromName), To: f.To, Cc: f.Cc, ReplyTo: f.ReplyTo, Subject: t.Subject(f), MessageID: f.MessageID, Date: f.Date}
	if len(m.ReplyTo) == 0 {
		m.ReplyTo = t.replyTo
	}
	tail := t.tail
	if len(f.Headers) > 0 {
		tail = t.tailWith(t.headersWith(f))
	}
	own := m.ownFields()
	t.leave.fields(&own, f.Variables)
	own.write(b)
	b.Write(tail)
}

// headersWith are the template's headers and the mail's.
func (t *Template) headersWith(f *Fill) map[string]string { return MergeHeaders(t.headers, f.Headers) }

// violations lists everything that is wrong with what a mail adds, at once.
func (t *Template) violations(f *Fill) []Violation {
	var vs []Violation
	bad := func(name, format string, args ...any) {
		vs = append(vs, Violation{"variables." + fieldKey(name), fmt.Sprintf(format, args...)})
	}
	for _, n := range t.body {
		if _, ok := f.Variables[n]; !ok {
			bad(n, "is missing")
		}
	}
	subject := t.subject
	if f.Subject != "" {
		subject, _ = t.check(&vs, "subject", f.Subject)
		vs = append(vs, (&Message{Subject: f.Subject}).Validate()...)
	}
	for _, l := range t.links {
		if n, wrong := l.wrong(f.Variables); wrong {
			bad(n, "begins a URL in html, and not with %s", l.schemes())
		}
	}
	vs = append(vs, t.leave.wrong(f.Variables)...)
	size, longest := 0, ""
	for i, r := range subject {
		size += len(r.literal) + len(f.Variables[r.name])
		if r.name == "" || slices.Contains(subject[:i], r) {
			continue
		}
		v, ok := f.Variables[r.name]
		if !ok && !slices.Contains(t.body, r.name) {
			bad(r.name, "is missing")
		}
		if c, is := control(v); is {
			bad(r.name, "stands in the subject and contains the control character %U", c)
		}
		if longest == "" || len(v) > len(f.Variables[longest]) {
			longest = r.name
		}
	}
	if size > MaxSubject && longest != "" {
		bad(longest, "makes the subject longer than %d octets", MaxSubject)
	}
	if len(f.Variables) > MaxVariables {
		vs = append(vs, Violation{"variables", fmt.Sprintf("has more than %d entries", MaxVariables)})
	}
	for k, v := range f.Variables {
		switch {
		case len(v) > MaxVariableBytes:
			bad(k, "has more than %d octets", MaxVariableBytes)
		case !utf8.ValidString(v):
			bad(k, "is not valid UTF-8")
		case strings.IndexByte(v, 0) >= 0:
			bad(k, "contains a NUL")
		}
	}
	if name := cmp.Or(f.FromName, t.fromName); t.ofSender || len(f.Headers) > 0 || name != "" {
		vs = append(vs, (&Message{From: f.From, FromName: name, Allowed: f.Allowed, Headers: t.headersWith(f)}).ValidateSender()...)
	}
	if f.FromName != "" {
		own := &Message{FromName: f.FromName}
		vs = append(vs, slices.Concat(own.Validate(), own.braced())...)
	}
	if len(f.Headers) > 0 {
		vs = append(vs, (&Message{Headers: f.Headers, Unsubscribe: t.unsubscribe}).Validate()...)
		vs = append(vs, bracedHeaders(f.Headers)...)
		if len(f.Headers) <= MaxHeaders && len(t.headersWith(f)) > MaxHeaders {
			vs = append(vs, Violation{"headers", fmt.Sprintf("has more than %d entries with the shared ones", MaxHeaders)})
		}
	}
	slices.SortStableFunc(vs, func(a, b Violation) int { return strings.Compare(a.Field, b.Field) })
	return vs
}

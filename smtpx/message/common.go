package message

// commonFrom is the size from which on a part that the mails of a batch have in common is kept
// once: a reference to it costs a mail about 150 octets.
const commonFrom = 2 << 10

// Common are the bodies that the mails of a batch have in common beside a part of their own,
// each encoded once, when the first mail needs it. One goroutine uses it.
type Common struct {
	text, html string
	bodies     map[commonKey]*commonBody
}

type commonKey struct {
	mediaType string
	vary      bool
}

// commonBody is what stands in a mail in the place of a body.
type commonBody struct {
	encoding string
	stops    []stop
}

// NewCommon is of the shared message of a batch. It encodes the message's attachments, which
// then refer to what they have become.
func NewCommon(m *Message) *Common {
	for i := range m.Attachments {
		a := &m.Attachments[i]
		switch {
		case a.Stored != nil:
			a.Stored.Common, a.Stored.File = true, true
		case EncodedSize(int64(len(a.Content))) >= commonFrom:
			if a.ContentType == "" {
				a.ContentType = guessType(a) // which looks at the bytes
			}
			c := &composer{m: m}
			c.buf.Grow(int(EncodedSize(int64(len(a.Content)))))
			c.base64(&c.buf, a.Content) // a buffer always takes it
			a.Stored, a.Content = NewContent(c.buf.Bytes()), nil
			a.Stored.Common, a.Stored.File = true, true
		}
	}
	return &Common{text: m.Text, html: m.HTML, bodies: map[commonKey]*commonBody{}}
}

// encoded is a body that is common; nil when it is not, or too small to be worth a reference.
func (m *Common) encoded(mediaType, s string, vary bool) *commonBody {
	if m == nil || len(s) < commonFrom || !(mediaType == "text/html" && s == m.html || mediaType == "text/plain" && s == m.text) {
		return nil
	}
	key := commonKey{mediaType, vary}
	if b := m.bodies[key]; b != nil {
		return b
	}
	c := &composer{vary: vary}
	write, encoding := c.encoding(mediaType, s)
	write()
	if c.err != nil {
		return nil // the mail's own encoding says it
	}
	content := NewContent(c.buf.Bytes())
	content.Common = true
	b := &commonBody{encoding: encoding}
	for _, s := range append(c.stops, stop{at: content.Size}) {
		from := 0
		if n := len(b.stops); n > 0 {
			from = b.stops[n-1].at
		}
		if s.at > from {
			b.stops = append(b.stops, stop{at: s.at, piece: Piece{Shared: content, Offset: from, Length: s.at - from}})
		}
		if s.hole != nil {
			b.stops = append(b.stops, s)
		}
	}
	m.bodies[key] = b
	return b
}

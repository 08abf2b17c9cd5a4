package smtpx

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/textproto"
	"strings"
	"testing"
)

// TestWriteBody compares the body on the wire with what net/textproto's dot writer makes of the
// same message, at every edge of a block.
func TestWriteBody(t *testing.T) {
	dots := func(n int) string { return strings.Repeat(".\r\n", n) }
	bodies := []string{"", "a", ".", "..", "\r\n", ".\r\n", "..\r\n", "a\r\n.", "a\r\n.\r\n", "a\r\n..b\r\n.c", "no end", dots(20000), "\r\n.\r\n.\r\n"}
	for n := bodyBlock - 8; n < bodyBlock+8; n++ {
		line := strings.Repeat("x", n)
		bodies = append(bodies, line, line+"\r\n", line+"\r\n.", line+"\r\n..\r\n", line+"\r\n.a\r\n"+line+"\r\n.b\r\n")
	}
	for range 200 {
		var b strings.Builder
		for range rand.N(5000) {
			b.WriteString([]string{".", "\r\n", "..", "text", "\r\n.", strings.Repeat("y", 60)}[rand.N(6)])
		}
		bodies = append(bodies, b.String())
	}
	var buf []byte
	for _, raw := range bodies {
		var want, got bytes.Buffer
		w := bufio.NewWriter(&want)
		d := textproto.NewWriter(w).DotWriter()
		_, err := io.WriteString(d, raw)
		if err = errors.Join(err, d.Close(), w.Flush()); err != nil {
			t.Fatal(err)
		}
		if raw == "" {
			want.Reset()
			want.WriteString("\r\n.\r\n")
		}
		want.WriteString("MAIL FROM:<a@x.example>\r\n")
		last := &lastWrite{w: &got}
		dots := 0
		buf, err = writeBody([]byte(raw), []byte("MAIL FROM:<a@x.example>\r\n"), buf, func(block []byte, dot int) error {
			if dot >= 0 && !bytes.HasPrefix(block[dot:], []byte(".\r\nMAIL")) {
				t.Errorf("%d octets %.40q: at the dot's place is %.10q", len(raw), raw, block[dot:])
			}
			dots += min(dot, 0) + 1
			_, err := last.Write(block)
			return err
		})
		if err != nil || dots != 1 {
			t.Fatalf("%v, %d blocks with a dot", err, dots)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%d octets %.40q: %d on the wire, not %d", len(raw), raw, got.Len(), want.Len())
		}
		if !bytes.HasSuffix(last.p, []byte(".\r\nMAIL FROM:<a@x.example>\r\n")) || cap(buf) > 2*bodyBlock {
			t.Errorf("%d octets %.40q: the last write is %.60q, the buffer %d", len(raw), raw, last.p, cap(buf))
		}
	}
}

type lastWrite struct {
	w io.Writer
	p []byte
}

func (l *lastWrite) Write(p []byte) (int, error) {
	l.p = append(l.p[:0], p...)
	return l.w.Write(p)
}

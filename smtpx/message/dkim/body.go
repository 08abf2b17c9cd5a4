package dkim

import (
	"bytes"
	"crypto/sha256"
	"hash"
)

// bodyHash hashes a body in the relaxed form (RFC 6376 3.4.4): blanks within a line are one,
// those at its end and empty lines at the end of the body are none. It takes the body in runs
// that may begin and end anywhere. Line ends are CRLF.
type bodyHash struct {
	sum  hash.Hash
	out  []byte // what sum has still to get
	any  bool   // something was written
	ends int    // line ends that are held back, because they may be the last
	cr   bool   // a CR that may begin another
	wsp  bool   // a blank that is held back, because its line may end
}

const (
	bodyBuffer = 4 << 10
	bodyBlock  = 16 << 10
)

func newBodyHash() *bodyHash { return &bodyHash{sum: sha256.New(), out: make([]byte, 0, bodyBuffer)} }

// Write implements io.Writer. It never fails.
func (h *bodyHash) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		block := p[:min(len(p), bodyBlock)]
		p = p[len(block):]
		if bytes.IndexByte(block, ' ') < 0 && bytes.IndexByte(block, '\t') < 0 {
			block = h.plain(block)
		}
		h.lines(block)
	}
	return n, nil
}

// plain takes a block without blanks, as those of a file are, and returns the line ends at its
// end. What stands before them is hashed as it is.
func (h *bodyHash) plain(block []byte) []byte {
	rest := bytes.TrimRight(block, "\r\n")
	begin := bytes.TrimLeft(rest, "\r\n")
	h.lines(rest[:len(rest)-len(begin)])
	if len(begin) > 0 {
		h.release()
		h.flush()
		h.sum.Write(begin)
	}
	return block[len(rest):]
}

// lines takes any octets.
func (h *bodyHash) lines(p []byte) {
	for len(p) > 0 {
		switch p[0] {
		case '\r':
			h.cr = true
		case '\n':
			h.ends, h.cr, h.wsp = h.ends+1, false, false
		case ' ', '\t':
			h.wsp = true
		default:
			n := 1
			for n < len(p) && p[n] != '\r' && p[n] != '\n' && p[n] != ' ' && p[n] != '\t' {
				n++
			}
			h.release()
			h.add(p[:n])
			p = p[n:]
			continue
		}
		p = p[1:]
	}
}

// release writes what was held back: something follows it.
func (h *bodyHash) release() {
	for ; h.ends > 0; h.ends-- {
		h.add([]byte("\r\n"))
	}
	if h.cr {
		h.add([]byte("\r"))
	}
	if h.wsp {
		h.add([]byte(" "))
	}
	h.cr, h.wsp, h.any = false, false, true
}

func (h *bodyHash) add(p []byte) {
	if len(h.out)+len(p) > bodyBuffer {
		h.flush()
	}
	if len(p) >= bodyBuffer {
		h.sum.Write(p)
		return
	}
	h.out = append(h.out, p...)
}

func (h *bodyHash) flush() {
	h.sum.Write(h.out)
	h.out = h.out[:0]
}

// Sum is the hash. A body that is not empty ends with one line end.
func (h *bodyHash) Sum() (sum BodySum) {
	if h.any {
		h.add([]byte("\r\n"))
	}
	h.flush()
	h.sum.Sum(sum[:0])
	return sum
}

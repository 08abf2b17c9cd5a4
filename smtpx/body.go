package smtpx

import (
	"bytes"
	"context"
	"time"
)

// The library hears of a stand-in for the message and never of its bytes: it would copy them
// twice and then write them octet by octet, which took half of all CPU for a mail with a large
// file, and a sixth for a small one. What goes to the relay is the submitted bytes, dot-stuffed
// here (RFC 5321 4.5.2).
const standIn = "stand-in\r\n"

// standInEnd is how the library ends it.
const standInEnd = standIn + ".\r\n"

// bodyBlock is how much of a body is written at once. A usual mail leaves whole, in one write
// with its dot and the commands of the next.
const bodyBlock = 64 << 10

var (
	crlf     = []byte("\r\n")
	lineDot  = []byte("\n.")
	finalDot = []byte(".\r\n")
)

// writeBody writes raw dot-stuffed, the final dot, and next, by put. dot is the place of the
// final dot in the block, -1 in a block without it: the dot and what comes behind it leave in
// one block, whatever the edges of the others. buf is used for the blocks and returned for the
// next body.
func writeBody(raw, next, buf []byte, put func(block []byte, dot int) error) ([]byte, error) {
	buf = buf[:0]
	add := func(p []byte) error {
		for len(p) > 0 {
			n := min(len(p), bodyBlock-len(buf))
			buf = append(buf, p[:n]...)
			if p = p[n:]; len(buf) < bodyBlock {
				break
			}
			if err := put(buf, -1); err != nil {
				return err
			}
			buf = buf[:0]
		}
		return nil
	}
	for rest, begins := raw, true; len(rest) > 0; begins = false {
		if begins && rest[0] == '.' {
			if err := add(finalDot[:1]); err != nil {
				return buf, err
			}
		}
		i := bytes.Index(rest, lineDot)
		if i < 0 {
			if err := add(rest); err != nil {
				return buf, err
			}
			break
		}
		if err := add(rest[:i+2]); err != nil {
			// the line end and the dot that was there, and one more
			return buf, err
		}
		if err := add(finalDot[:1]); err != nil {
			return buf, err
		}
		rest = rest[i+2:]
	}
	if !bytes.HasSuffix(raw, crlf) {
		if err := add(crlf); err != nil {
			return buf, err
		}
	}
	dot := len(buf)
	buf = append(append(buf, finalDot...), next...)
	return buf[:0], put(buf, dot)
}

// minBodyRate is the slowest a relay may take a body, in octets a second over the whole of it.
// Besides, no block may take longer than Timeouts.Block.
const minBodyRate = 8 << 10

// sendBody writes the held mail's body and dot, and next behind it. The gate is asked when
// nothing but the block with the dot is left to write. gone says whether the dot may have left:
// what the connection did not take of the block with the dot has not. gate is the gate's
// refusal, err the connection's fault.
func (s *Session) sendBody(ctx context.Context, t *Transaction, next []byte) (gone bool, gate, err error) {
	began, sent := time.Now(), 0
	s.block, err = writeBody(t.Raw, next, s.block, func(block []byte, dot int) error {
		if dot >= 0 {
			if t.Gate != nil {
				asked := time.Now()
				if gate = t.Gate(ctx); gate != nil {
					t.Trace.step(StepGate, StepFailed, 0)
					return gate
				}
				t.Trace.step(StepGate, StepOK, 0)
				began = began.Add(time.Since(asked)) // it is not the relay that was slow
			}
			s.setPastDot(true)
		}
		sent += len(block)
		pace := s.relay.Timeouts.Block + time.Duration(sent)*time.Second/minBodyRate - time.Since(began)
		s.setDeadline(min(s.relay.Timeouts.Block, pace))
		n, err := s.conn.Write(block)
		gone = dot >= 0 && n > dot
		return err
	})
	if gate != nil {
		err = nil
	}
	return gone, gate, err
}

// cutInBody is the outcome of a mail whose body the connection did not take to its end. No dot
// has left, so the mail is refused, where the relay said so before it closed, or not tried.
func (s *Session) cutInBody(tr *transfer, rep Reply, err, werr error) Outcome {
	s.kill(werr)
	if err != nil || rep.Code/100 < 4 {
		return notTried(tr, s.deadFault(PhaseData))
	}
	tr.decide(rep, PhaseData)
	return Outcome{Recipients: tr.rcpt, Err: &Error{Phase: PhaseData, Reply: rep, Temporary: rep.Code < 500}, ServerDown: rep.Code == 421}
}

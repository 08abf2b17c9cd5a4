package smtpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

var errEOF, errUnexpectedEOF = io.EOF, io.ErrUnexpectedEOF

// notTried: nothing of the mail left, it may be tried again free of charge.
func notTried(tr *transfer, fault *Error) Outcome {
	for i := range tr.rcpt {
		tr.rcpt[i] = RecipientOutcome{Status: StatusNotTried, Phase: fault.Phase}
	}
	return Outcome{Recipients: tr.rcpt, Err: fault, ServerDown: fault.Phase != PhaseGate}
}

// rejectedAll: a permanent refusal that needed no relay.
func rejectedAll(tr *transfer, fault *Error) Outcome {
	for i := range tr.rcpt {
		tr.rcpt[i] = RecipientOutcome{Status: StatusRejected, Phase: fault.Phase, Reply: Reply{Text: fault.Error()}}
	}
	return Outcome{Recipients: tr.rcpt, Err: fault}
}

// decide writes a reply into the recipients that are still open (accepted at RCPT or not asked
// yet).
func (tr *transfer) decide(rep Reply, p Phase) {
	st := StatusDeferred
	switch {
	case rep.Code == 0:
		st = StatusNotTried
	case rep.Code/100 == 2:
		st = StatusAccepted
	case rep.Code/100 == 5:
		st = StatusRejected
	}
	for i := range tr.rcpt {
		if r := &tr.rcpt[i]; r.Status == StatusNotTried {
			*r = RecipientOutcome{Status: st, Phase: p, Reply: rep}
		}
	}
}

// appendMail appends the MAIL command with the parameters the relay offers and the mail needs.
// The library's own line was checked against the transaction and is not used further.
func (s *Session) appendMail(b []byte, t *Transaction) []byte {
	b = append(b, "MAIL FROM:<"...)
	b = append(b, t.From...)
	b = append(b, '>')
	if s.sizeOffered {
		b = fmt.Appendf(b, " SIZE=%d", len(t.Raw))
	}
	// SMTPUTF8 only where it is needed: a relay behind this one may not have it and would
	// bounce plain mail (RFC 6531 3.4).
	utf8 := t.UTF8 || !ascii(t.From)
	for _, to := range t.To {
		utf8 = utf8 || !ascii(to)
	}
	if utf8 {
		if _, ok := s.ext["8BITMIME"]; ok {
			b = append(b, " BODY=8BITMIME"...)
		}
		b = append(b, " SMTPUTF8"...)
	}
	return append(b, "\r\n"...)
}

func appendRcpt(b []byte, to string) []byte {
	b = append(b, "RCPT TO:<"...)
	b = append(b, to...)
	return append(b, ">\r\n"...)
}

// envelope runs MAIL, RCPT and DATA of s.cur. True: the relay waits for its body. False: s.cur
// has had its Done.
func (s *Session) envelope(ctx context.Context) bool {
	tr := s.cur
	if s.pipelining {
		return s.envelopePipelined(ctx, tr)
	}
	return s.envelopeLockStep(tr)
}

// end finishes s.cur.
func (s *Session) end(o Outcome) bool {
	tr := s.cur
	s.cur = nil
	s.finish(tr, o)
	return false
}

// heard keeps a reply by which the relay ends the session, or the transaction as a whole. Its
// words then stand in the fault and with every recipient that got no answer of its own,
// whatever becomes of the connection behind it. The first one counts.
func (tr *transfer) heard(rep Reply, p Phase) {
	if tr.last.Code == 0 && (rep.Code == 421 || p == PhaseMail && rep.Code/100 > 3) {
		tr.last, tr.lastAt = rep, p
	}
}

// lastWords is the fault of s.cur when its session is over: what the relay said last, else what
// happened to the connection.
func (s *Session) lastWords(tr *transfer, p Phase) *Error {
	if tr.last.Code == 0 {
		return s.deadFault(p)
	}
	for i := range tr.rcpt {
		if r := &tr.rcpt[i]; r.Status == StatusNotTried {
			*r = RecipientOutcome{Status: StatusNotTried, Phase: tr.lastAt, Reply: tr.last}
		}
	}
	return &Error{Phase: tr.lastAt, Reply: tr.last, Temporary: tr.last.Code < 500}
}

// broken ends s.cur when the connection died before its body: nothing of it left.
func (s *Session) broken(tr *transfer, p Phase, err error) bool {
	if isEOF(err) { // a goodbye may lie unread before the end of the connection
		if rep, _, rerr := s.readReply(time.Second); rerr == nil && rep.Code == 421 {
			tr.heard(rep, p)
		}
	}
	s.kill(err)
	fault := s.lastWords(tr, p)
	return s.end(Outcome{Recipients: tr.rcpt, Err: fault, ServerDown: true})
}

// outOfStep ends s.cur when a reply may have been given to the wrong command: nothing of the
// mail left, and nothing that was said about it counts, but for a goodbye.
func (s *Session) outOfStep(tr *transfer, p Phase, err error) bool {
	s.cannotPipeline()
	s.kill(err)
	o := notTried(tr, s.deadFault(p))
	if tr.last.Code == 421 {
		o.Err = s.lastWords(tr, p)
	}
	return s.end(o)
}

// cut ends s.cur when the answers of a flight end early. A relay that closed has given those
// that came in their order. One that fell silent or garbled may have left one out before, and
// then each belongs to the recipient before.
func (s *Session) cut(tr *transfer, p Phase, err error) bool {
	if isEOF(err) {
		clearOpen(tr)
		return s.broken(tr, p, err)
	}
	return s.outOfStep(tr, p, err)
}

func (s *Session) envelopePipelined(ctx context.Context, tr *transfer) bool {
	t := tr.t
	b := s.flight[:0]
	reset := s.needReset
	if reset {
		b = append(b, "RSET\r\n"...)
	}
	from := len(b)
	b = s.appendMail(b, t)
	safe := s.oneLine(b[from:])
	for _, to := range t.To {
		from = len(b)
		b = appendRcpt(b, to)
		safe = safe && s.oneLine(b[from:])
	}
	b = append(b, "DATA\r\n"...)
	s.flight = b
	if !safe { // a held mail is not concerned
		return s.end(rejectedAll(tr, &Error{Phase: PhaseMail, Err: errUnsafe}))
	}
	if s.held != nil {
		if !s.flushHeld(ctx, b) {
			return s.end(notTried(tr, s.deadFault(PhaseMail)))
		}
	} else {
		s.setDeadline(s.relay.Timeouts.Command)
		if _, err := s.conn.Write(b); err != nil {
			return s.broken(tr, PhaseMail, err)
		}
	}
	s.needReset = false
	tm := s.relay.Timeouts
	if reset {
		rep, _, err := s.readReply(tm.Command)
		if err == nil && rep.Code/100 != 2 {
			err = errProtocol
		}
		if err != nil {
			return s.broken(tr, PhaseMail, err)
		}
	}
	mailRep, _, err := s.readReply(tm.Command)
	if err != nil {
		return s.broken(tr, PhaseMail, err)
	}
	if mailRep.Code/100 == 3 {
		return s.outOfStep(tr, PhaseMail, errProtocol)
	}
	t.Trace.replied(StepMailFrom, mailRep.Code)
	tr.heard(mailRep, PhaseMail)
	down := mailRep.Code == 421
	s.setDeadline(tm.Rcpt)
	for i := range t.To {
		rep, _, err := replyReader{s.br}.read()
		if err != nil {
			return s.cutFlight(tr, PhaseRcpt, mailRep, err)
		}
		if rep.Code/100 == 3 {
			return s.outOfStep(tr, PhaseRcpt, errProtocol) // DATA's, most likely
		}
		tr.noteRcpt(i, rep)
		tr.heard(rep, PhaseRcpt)
		down = down || rep.Code == 421
	}
	dataRep, _, err := s.readReply(tm.Data)
	if err != nil {
		return s.cutFlight(tr, PhaseData, mailRep, err)
	}
	return s.afterData(tr, mailRep, dataRep, down)
}

// cutFlight is cut behind the answer to MAIL. When that was a refusal, what was said to RCPT
// only follows from it (503, most often) and refuses nobody by itself.
func (s *Session) cutFlight(tr *transfer, p Phase, mailRep Reply, err error) bool {
	if mailRep.Code/100 != 2 && isEOF(err) {
		clearAll(tr)
		tr.decide(mailRep, PhaseMail)
	}
	return s.cut(tr, p, err)
}

// noteRcpt files the reply to the RCPT at position i. Replies are matched by position only.
func (tr *transfer) noteRcpt(i int, rep Reply) {
	tr.t.Trace.replied(StepRcptTo, rep.Code)
	means := Means(Said{Phase: PhaseRcpt, Reply: rep, Behind: tr.ok > 0})
	if means.Action == ActSplit && tr.took == 0 {
		tr.took = tr.ok
	}
	switch rep.Code / 100 {
	case 2:
		tr.rcpt[i] = RecipientOutcome{Status: StatusNotTried, Phase: PhaseRcpt, Reply: rep}
		tr.ok++
	case 5:
		tr.rcpt[i] = RecipientOutcome{Status: StatusRejected, Phase: PhaseRcpt, Reply: rep, Means: means}
	default:
		tr.rcpt[i] = RecipientOutcome{Status: StatusDeferred, Phase: PhaseRcpt, Reply: rep, Means: means}
	}
}

// clearOpen forgets the 2yz of recipients whose mail was not sent: acceptance at RCPT alone is
// nothing.
func clearOpen(tr *transfer) {
	for i := range tr.rcpt {
		if r := &tr.rcpt[i]; r.Status == StatusNotTried {
			*r = RecipientOutcome{Status: StatusNotTried, Phase: r.Phase}
		}
	}
}

func (s *Session) envelopeLockStep(tr *transfer) bool {
	t, tm := tr.t, s.relay.Timeouts
	if s.needReset {
		rep, _, err := s.command(tm.Command, "RSET")
		if err == nil && rep.Code/100 != 2 {
			err = errProtocol
		}
		if err != nil {
			return s.broken(tr, PhaseMail, err)
		}
		s.needReset = false
	}
	line := func(b []byte) string { return string(b[:len(b)-2]) }
	s.flight = s.appendMail(s.flight[:0], t)
	mailRep, _, err := s.command(tm.Command, line(s.flight))
	if err != nil {
		return s.broken(tr, PhaseMail, err)
	}
	t.Trace.replied(StepMailFrom, mailRep.Code)
	if mailRep.Code/100 != 2 {
		if mailRep.Code/100 == 3 {
			return s.outOfStep(tr, PhaseMail, errProtocol)
		}
		return s.afterData(tr, mailRep, Reply{}, mailRep.Code == 421)
	}
	down := false
	for i, to := range t.To {
		s.flight = appendRcpt(s.flight[:0], to)
		rep, _, err := s.command(tm.Rcpt, line(s.flight))
		if err != nil {
			clearOpen(tr)
			return s.broken(tr, PhaseRcpt, err)
		}
		if rep.Code/100 == 3 {
			return s.outOfStep(tr, PhaseRcpt, errProtocol)
		}
		tr.noteRcpt(i, rep)
		tr.heard(rep, PhaseRcpt)
		if down = rep.Code == 421; down {
			break
		}
	}
	if tr.ok == 0 || down {
		return s.afterData(tr, mailRep, Reply{}, down)
	}
	dataRep, _, err := s.command(tm.Data, "DATA")
	if err != nil {
		clearOpen(tr)
		return s.broken(tr, PhaseData, err)
	}
	return s.afterData(tr, mailRep, dataRep, false)
}

// afterData decides how the envelope came out. dataRep.Code 0 = DATA was not asked.
func (s *Session) afterData(tr *transfer, mailRep, dataRep Reply, down bool) bool {
	waiting := dataRep.Code == 354
	tr.t.Trace.replied(StepData, dataRep.Code)
	s.inData = waiting
	down = down || dataRep.Code == 421
	if dataRep.Code/100 == 2 || dataRep.Code/100 == 3 && !waiting { // another command's
		return s.outOfStep(tr, PhaseData, errProtocol)
	}
	if mailRep.Code/100 == 2 && tr.ok > 0 && waiting && !down {
		return true // an answer too many is looked for before the dot
	}
	if !down && !s.inStep(waiting) {
		return s.outOfStep(tr, PhaseData, errSurplus)
	}
	var fault *Error
	switch {
	case mailRep.Code/100 != 2: // wins over whatever was said to RCPT and DATA
		clearAll(tr)
		tr.decide(mailRep, PhaseMail)
		fault = &Error{Phase: PhaseMail, Reply: mailRep, Temporary: mailRep.Code < 500}
	case tr.ok > 0 && dataRep.Code != 0 && !waiting:
		tr.decide(dataRep, PhaseData) // those who had been accepted at RCPT
		fault = &Error{Phase: PhaseData, Reply: dataRep, Temporary: dataRep.Code < 500}
	default:
		clearOpen(tr)
	}
	switch {
	case down:
		tr.heard(mailRep, PhaseMail)
		tr.heard(dataRep, PhaseData)
		s.kill(fmt.Errorf("the server closes the connection: %s", tr.last))
		if words := s.lastWords(tr, PhaseRcpt); fault == nil {
			fault = words
		}
	case waiting && mailRep.Code/100 != 2:
		// The relay refused the sender and waits for a body all the same. A lone dot would be
		// taken as an empty mail.
		s.kill(errProtocol)
	case waiting:
		// Nobody was accepted, yet it waits: a lone dot, whose answer counts for nothing (RFC
		// 2920 3.1).
		if rep, _, err := s.command(s.relay.Timeouts.Data, "."); err != nil || rep.Code == 421 || s.br.Buffered() > 0 {
			s.kill(errClosed)
		} else if rep.Code/100 == 2 {
			s.needReset = false
		}
		s.inData = false
	}
	return s.end(Outcome{Recipients: tr.rcpt, Err: fault, ServerDown: down})
}

// inStep makes sure, before a refusal counts, that no answer is left over: in a flight one too
// many would have moved every refusal to the next recipient. The answer to RSET, which has to
// be said anyhow, shows it. In lock step, and where the last answer was the only 354, a look
// suffices.
func (s *Session) inStep(waiting bool) bool {
	s.needReset = true
	if s.surplus() {
		return false
	}
	if !s.pipelining || waiting {
		return true
	}
	rep, _, err := s.command(s.relay.Timeouts.Command, "RSET")
	switch {
	case isEOF(err) || errors.Is(err, os.ErrDeadlineExceeded):
		// it said no more than it was asked, and closed or fell silent
		s.kill(err)
	case err != nil:
		return false
	case rep.Code == 421:
		s.kill(errClosed)
	case rep.Code/100 != 2 || s.surplus():
		return false
	}
	s.needReset = false
	return true
}

func clearAll(tr *transfer) {
	for i := range tr.rcpt {
		tr.rcpt[i] = RecipientOutcome{}
	}
}

// flushHeld lets the held mail go: gate, body and dot, and with them next (the commands of the
// next mail, nil for none) in one write; then its reply is read and its outcome delivered.
// False: the session is dead, and nothing of next counts.
func (s *Session) flushHeld(ctx context.Context, next []byte) bool {
	tr := s.held
	s.held = nil
	// Between 354 and the dot the relay has nothing to say. If it did, the next reply read
	// would not be the dot's.
	switch said, closed := s.look(); {
	case said: // an answer too many: positions cannot be trusted any more
		s.kill(errSurplus)
		s.finish(tr, notTried(tr, s.deadFault(PhaseData)))
		return false
	case closed:
		clearOpen(tr)
		s.kill(errClosed)
		s.finish(tr, Outcome{Recipients: tr.rcpt, Err: s.deadFault(PhaseData), ServerDown: true})
		return false
	}
	defer s.setPastDot(false)
	gone, gate, werr := s.sendBody(ctx, tr.t, next)
	switch {
	case gate != nil:
		s.kill(gate)
		s.finish(tr, notTried(tr, &Error{Phase: PhaseGate, Temporary: true, Err: gate}))
		return false
	case werr == nil:
		s.setDeadline(s.relay.Timeouts.Dot)
	default:
		// a relay that refuses in the middle of the body says why before it closes
		s.setDeadline(quitWait)
	}
	s.inData = false
	rep, _, err := replyReader{s.br}.read()
	if !gone {
		s.finish(tr, s.cutInBody(tr, rep, err, werr))
		return false
	}
	o := Outcome{DotSent: true, DotTime: time.Now()}
	tr.t.Trace.replied(StepDot, rep.Code)
	if err != nil {
		if werr != nil {
			err = werr
		}
		s.kill(err)
		o.Err = &Error{Phase: PhaseDot, Temporary: true, Err: s.dead}
		for i := range tr.rcpt {
			if r := &tr.rcpt[i]; r.Status == StatusNotTried {
				*r = RecipientOutcome{Status: StatusUnknown, Phase: PhaseDot}
			}
		}
		o.Recipients = tr.rcpt
		s.finish(tr, o)
		return false
	}
	if rep.Code/100 == 3 {
		rep.Code, err = 0, errProtocol
	}
	switch {
	case err != nil: // a 3yz after the dot: nobody knows what it means
		for i := range tr.rcpt {
			if r := &tr.rcpt[i]; r.Status == StatusNotTried {
				*r = RecipientOutcome{Status: StatusUnknown, Phase: PhaseDot, Reply: Reply{Text: rep.Text}}
			}
		}
		o.Err = &Error{Phase: PhaseDot, Temporary: true, Err: err}
	default:
		tr.decide(rep, PhaseDot)
		if rep.Code/100 == 2 {
			o.RemoteID = remoteID(rep.Text)
		} else {
			o.Err = &Error{Phase: PhaseDot, Reply: rep, Temporary: rep.Code < 500}
			o.ServerDown = rep.Code == 421
		}
	}
	switch {
	case err != nil:
		s.kill(err)
	case rep.Code == 421:
		s.kill(errClosed)
	case werr != nil:
		s.kill(werr)
	case next == nil && s.br.Buffered() > 0:
		s.kill(errSurplus)
	}
	o.Recipients = tr.rcpt
	s.finish(tr, o)
	return s.dead == nil
}

package smtpxtest

import (
	"bufio"
	"bytes"
	"net"
	"sync"
	"sync/atomic"
)

// Sink takes every mail as fast as it can be read, counts them exactly, and can keep their
// Message-IDs. It searches bodies only for the dot, and answers a whole flight in one write.
// Set the fields before Start.
type Sink struct {
	KeepIDs bool
	// OnMail is told of every mail before its reply leaves: the argument of each RCPT, and the
	// beginning of the message, up to 16 KiB, as it came. Both are only lent. It is called by
	// many goroutines at once.
	OnMail func(rcpt [][]byte, head []byte)

	listener net.Listener
	mails    atomic.Int64
	bytes    atomic.Int64
	mu       sync.Mutex
	ids      map[string]int
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

// Start listens on a loopback port of the system's choice.
func (s *Sink) Start() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.listener, s.ids, s.conns = l, map[string]int{}, map[net.Conn]bool{}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
	return nil
}

// Port is where it listens.
func (s *Sink) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// Mails is how many were taken.
func (s *Sink) Mails() int { return int(s.mails.Load()) }

// IDs is how often each Message-ID came, with KeepIDs.
func (s *Sink) IDs() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string]int, len(s.ids))
	for k, v := range s.ids {
		m[k] = v
	}
	return m
}

// Close ends it.
func (s *Sink) Close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// headMost is how much of a message is kept.
const headMost = 16 << 10

var (
	crlfDotCRLF = []byte("\r\n.\r\n")
	idHeader    = []byte("\r\nMessage-ID: ")
)

func (s *Sink) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	br := bufio.NewReaderSize(c, 64<<10)
	out := append(make([]byte, 0, 4096), "220 sink\r\n"...)
	head := make([]byte, 0, headMost)
	var rcpt [][]byte
	var addrs []byte // what rcpt points into
	for {
		if br.Buffered() == 0 && len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
		line, err := br.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(line, []byte("MAIL")), bytes.HasPrefix(line, []byte("RSET")):
			rcpt, addrs = rcpt[:0], addrs[:0]
			out = append(out, "250 2.0.0 ok\r\n"...)
		case bytes.HasPrefix(line, []byte("RCPT")):
			if s.OnMail != nil {
				from := len(addrs)
				addrs = append(addrs, bytes.TrimSpace(line[4:])...)
				rcpt = append(rcpt, addrs[from:len(addrs):len(addrs)])
			}
			out = append(out, "250 2.0.0 ok\r\n"...)
		case bytes.HasPrefix(line, []byte("DATA")):
			out = append(out, "354 go\r\n"...)
			if br.Buffered() == 0 {
				if _, err := c.Write(out); err != nil {
					return
				}
				out = out[:0]
			}
			var n int
			if head, n, err = readBody(br, head[:0]); err != nil {
				return
			}
			s.mails.Add(1)
			s.bytes.Add(int64(n))
			if s.KeepIDs {
				s.keepID(head)
			}
			if s.OnMail != nil {
				s.OnMail(rcpt, head)
			}
			out = append(out, "250 2.0.0 Ok: queued as 1\r\n"...)
		case bytes.HasPrefix(line, []byte("EHLO")):
			out = append(out, "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 104857600\r\n"...)
		case bytes.HasPrefix(line, []byte("QUIT")):
			_, _ = c.Write(append(out, "221 bye\r\n"...)) // the client is going anyway
			return
		default:
			out = append(out, "500 what\r\n"...)
		}
	}
}

func (s *Sink) keepID(head []byte) {
	i := bytes.Index(head, idHeader)
	if i < 0 {
		return
	}
	id := head[i+len(idHeader):]
	if j := bytes.IndexByte(id, '\r'); j >= 0 {
		s.mu.Lock()
		s.ids[string(id[:j])]++
		s.mu.Unlock()
	}
}

// readBody reads up to and with the final dot; it appends the beginning of the message to head
// and returns that and the size of the whole.
func readBody(br *bufio.Reader, head []byte) ([]byte, int, error) {
	// the end of what came before, then the beginning of what comes next: the dot may be cut
	// anywhere
	var last [2 * len("\r\n.\r\n")]byte
	tail := append(last[:0], "\r\n"...) // a dot in the first line ends the body as well
	for n := 0; ; {
		if _, err := br.Peek(1); err != nil {
			return head, n, err
		}
		part, _ := br.Peek(br.Buffered()) // never more than is there
		end, known := -1, len(tail)
		tail = append(tail, part[:min(len(part), len(crlfDotCRLF)-1)]...)
		if i := bytes.Index(tail, crlfDotCRLF); i >= 0 {
			end = i + len(crlfDotCRLF) - known
		} else if i := bytes.Index(part, crlfDotCRLF); i >= 0 {
			end = i + len(crlfDotCRLF)
		}
		take := len(part)
		if end >= 0 {
			take = end
		}
		head = append(head, part[:min(take, headMost-len(head))]...)
		n += take
		if len(part) >= len(crlfDotCRLF)-1 {
			tail = append(last[:0], part[len(part)-(len(crlfDotCRLF)-1):]...)
		} else if len(tail) >= len(crlfDotCRLF) {
			tail = append(last[:0], tail[len(tail)-(len(crlfDotCRLF)-1):]...)
		}
		if _, err := br.Discard(take); err != nil || end >= 0 {
			return head, n, err
		}
	}
}

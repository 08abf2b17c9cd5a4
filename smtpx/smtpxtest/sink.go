package smtpxtest

import (
	"bufio"
	"bytes"
	"net"
	"sync"
	"sync/atomic"
)

// Sink takes every mail as fast as it can be read, counts them exactly, and can keep their Message-IDs. It reads bodies by line only to find the dot, and
// answers a whole flight in one write.
type Sink struct {
	KeepIDs bool

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
	body := make([]byte, 0, 16<<10)
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
		case bytes.HasPrefix(line, []byte("MAIL")), bytes.HasPrefix(line, []byte("RCPT")), bytes.HasPrefix(line, []byte("RSET")):
			out = append(out, "250 2.0.0 ok\r\n"...)
		case bytes.HasPrefix(line, []byte("DATA")):
			out = append(out, "354 go\r\n"...)
			if br.Buffered() == 0 {
				if _, err := c.Write(out); err != nil {
					return
				}
				out = out[:0]
			}
			body = body[:0]
			for {
				l, err := br.ReadSlice('\n')
				if err != nil && err != bufio.ErrBufferFull {
					return
				}
				body = append(body, l...)
				if len(l) == 3 && l[0] == '.' && bytes.HasSuffix(body, crlfDotCRLF) {
					break
				}
			}
			s.mails.Add(1)
			s.bytes.Add(int64(len(body)))
			if s.KeepIDs {
				if i := bytes.Index(body, idHeader); i >= 0 {
					id := body[i+len(idHeader):]
					if j := bytes.IndexByte(id, '\r'); j >= 0 {
						s.mu.Lock()
						s.ids[string(id[:j])]++
						s.mu.Unlock()
					}
				}
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

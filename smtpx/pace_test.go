package smtpx_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
)

// paced is a relay in memory that reads a body a block at a time and waits before each.
func paced(c net.Conn, ext string, wait func(block int) time.Duration) {
	defer c.Close()
	br := bufio.NewReader(c)
	say := func(s string) bool { _, err := io.WriteString(c, s); return err == nil }
	say("220 x\r\n")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.TrimSpace(line); {
		case strings.HasPrefix(verb, "EHLO"):
			say("250-x\r\n250 " + ext + "\r\n")
		case verb == "DATA":
			say("354 go on\r\n")
			for block, line := 0, ""; line != ".\r\n"; block++ {
				time.Sleep(wait(block))
				for n := 0; n < 64<<10 && line != ".\r\n"; n += len(line) {
					b, err := br.ReadSlice('\n')
					if err != nil {
						return
					}
					line = string(b)
				}
			}
			say("250 ok\r\n")
		default:
			say("250 ok\r\n")
		}
	}
}

// TestPaceOfTheBody: a body may take as long as it needs at 8 KiB/s, and each block of it three
// minutes. A relay that is slower has not got it: the mail is not tried.
func TestPaceOfTheBody(t *testing.T) {
	const blocks = 64 // 4 MiB
	each := func(d time.Duration) func(int) time.Duration {
		return func(int) time.Duration { return d }
	}
	for name, c := range map[string]struct {
		wait        func(block int) time.Duration
		want        string
		least, most time.Duration
	}{
		"at once":                      {each(0), "A", 0, time.Second},
		"16 KiB/s":                     {each(4 * time.Second), "A", 4 * time.Minute, 5 * time.Minute},
		"8.1 KiB/s":                    {each(7900 * time.Millisecond), "A", 8 * time.Minute, 9 * time.Minute},
		"4 KiB/s":                      {each(16 * time.Second), "n", 4 * time.Minute, 8 * time.Minute},
		"a pause of two minutes":       {func(b int) time.Duration { return map[int]time.Duration{32: 2 * time.Minute}[b] }, "A", 2 * time.Minute, 3 * time.Minute},
		"silence from the first block": {each(time.Hour), "n", 2 * time.Minute, 4 * time.Minute},
		"silence in the middle":        {func(b int) time.Duration { return map[int]time.Duration{32: time.Hour}[b] }, "n", 2 * time.Minute, 4 * time.Minute},
	} {
		for _, ext := range []string{"PIPELINING", "8BITMIME"} {
			t.Run(name+" "+ext, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					over := make(chan struct{})
					d := &smtpx.Dialer{Connect: func(context.Context, netip.AddrPort) (net.Conn, error) {
						ours, theirs := net.Pipe()
						go func() { defer close(over); paced(theirs, ext, c.wait) }()
						return ours, nil
					}}
					s, err := d.Dial(context.Background(), smtpx.Relay{Host: "127.0.0.1", Port: 25, Encryption: smtpx.EncryptionNone, HeloName: "x.example"})
					if err != nil {
						t.Fatal(err)
					}
					x := tx(1)
					x.Raw = bytes.Repeat(append(bytes.Repeat([]byte("z"), 62), '\r', '\n'), blocks<<10)
					began := time.Now()
					o := s.Send(context.Background(), x)
					took := time.Since(began)
					if statuses(o) != c.want || took < c.least || took > c.most || c.want == "n" && o.DotSent {
						t.Errorf("%s after %v, dot sent %v, want %s after %v to %v: %v", statuses(o), took, o.DotSent, c.want, c.least, c.most, o.Err)
					}
					_ = s.Close()
					<-over
				})
			})
		}
	}
}

package smtpxtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

// TestSinkFindsTheDot: however a body is cut into packets, it ends at its dot, not before and
// not behind.
func TestSinkFindsTheDot(t *testing.T) {
	const rest = "RSET\r\n"
	for _, body := range []string{".\r\n", "\r\n.\r\n", "a\r\n.\r\n", "a\r\n..\r\n.b\r\n\r\n.\r\n", "a.\r\nb\r\n. \r\n.\r\n", ".\n\r.\r\n\r\n.\r\n"} {
		for cut := 0; cut <= len(body); cut++ {
			for name, r := range map[string]io.Reader{
				"in two": io.MultiReader(strings.NewReader(body[:cut]), strings.NewReader(body[cut:]+rest)),
				"dotted": io.MultiReader(strings.NewReader(body[:cut]), iotest.OneByteReader(strings.NewReader(body[cut:]+rest))),
			} {
				br := bufio.NewReader(r)
				head, n, err := readBody(br, nil)
				if err != nil || string(head) != body || n != len(body) {
					t.Fatalf("%s at %d of %q: read %q (%d), %v", name, cut, body, head, n, err)
				}
				if left, _ := io.ReadAll(br); string(left) != rest {
					t.Fatalf("%s at %d of %q: left %q", name, cut, body, left)
				}
			}
		}
	}
	if _, _, err := readBody(bufio.NewReader(strings.NewReader("a\r\n.\r")), nil); err == nil {
		t.Error("a body without its dot was taken")
	}
}

// TestSinkTellsOfMails: recipients are those of the mail's own transaction, the head is its
// beginning, and the counts are exact.
func TestSinkTellsOfMails(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{}
	s := &Sink{KeepIDs: true, OnMail: func(rcpt [][]byte, head []byte) {
		mu.Lock()
		defer mu.Unlock()
		got[fmt.Sprintf("%s %d", rcpt, len(head))]++
	}}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	long := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 1000)
	_, err = io.WriteString(c, "EHLO a\r\nMAIL FROM:<a@x>\r\nRCPT TO:<gone@y>\r\nRSET\r\n"+
		"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y>\r\nDATA\r\nMessage-ID: <1@x>\r\n\r\nhello\r\n.\r\n"+
		"MAIL FROM:<a@x>\r\nRCPT TO:<d@y>\r\nDATA\r\nSubject: s\r\nMessage-ID: <2@x>\r\n\r\n"+long+".\r\nQUIT\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	if got["[TO:<b@y> TO:<c@y>] 31"] != 1 || got["[TO:<d@y>] 16384"] != 1 || len(got) != 2 || s.Mails() != 2 {
		t.Errorf("%d mails: %v", s.Mails(), got)
	}
	if ids := s.IDs(); ids["<2@x>"] != 1 {
		t.Errorf("ids: %v", ids)
	}
}

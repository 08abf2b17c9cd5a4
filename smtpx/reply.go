package smtpx

import (
	"bufio"
	"bytes"
	"strings"
)

const (
	maxLine  = 4 << 10  // RFC 5321 4.5.3.1.5 obliges servers to 512 octets; real ones exceed it
	maxReply = 64 << 10 // all lines of one reply
)

// replyReader reads replies with a limit on lines and on the whole: a hostile server must not
// be able to fill the memory. Deadlines are the connection's, set once per reply, so that
// dripping bytes do not extend them.
type replyReader struct {
	br *bufio.Reader
}

// read reads one reply (RFC 5321 4.2). Any doubt about its form is an error; the connection is
// then finished.
func (r replyReader) read() (Reply, []string, error) {
	var (
		rep   Reply
		lines []string
		total int
	)
	for {
		line, err := r.br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return rep, nil, errReplyTooLong
		}
		if err != nil {
			return rep, nil, err
		}
		if total += len(line); total > maxReply {
			return rep, nil, errReplyTooLong
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) < 3 || line[0] < '2' || line[0] > '5' || !digit(line[1]) || !digit(line[2]) {
			return rep, nil, errProtocol
		}
		code := int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
		if rep.Code != 0 && code != rep.Code {
			return rep, nil, errProtocol
		}
		rep.Code = code
		more := false
		text := ""
		if len(line) > 3 {
			switch line[3] {
			case ' ':
			case '-':
				more = true
			default:
				return rep, nil, errProtocol
			}
			text = Clean(string(line[4:]), maxLine)
		}
		lines = append(lines, text)
		if !more {
			break
		}
	}
	finishReply(&rep, lines)
	return rep, lines, nil
}

// finishReply fills in the enhanced code (RFC 2034: the first word of every line) and the text
// without it.
func finishReply(rep *Reply, lines []string) {
	first, _, _ := strings.Cut(lines[0], " ")
	if isEnhanced(first, rep.Code) {
		rep.Enhanced = first
	}
	n := 0
	for i, l := range lines {
		if rep.Enhanced != "" {
			l = strings.TrimPrefix(strings.TrimPrefix(l, rep.Enhanced), " ")
		}
		if n+len(l) > maxText {
			l = l[:maxText-n]
		}
		if i > 0 && l != "" && rep.Text != "" {
			rep.Text += " "
		}
		rep.Text += l
		if n += len(l); n >= maxText {
			break
		}
	}
	rep.Text = Clean(rep.Text, maxText)
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// isEnhanced: class "." subject "." detail with the class of the reply (RFC 3463).
func isEnhanced(s string, code int) bool {
	p := strings.Split(s, ".")
	if len(p) != 3 || len(p[0]) != 1 || p[0][0] != byte('0'+code/100) {
		return false
	}
	for _, q := range p[1:] {
		if len(q) < 1 || len(q) > 3 || strings.Trim(q, "0123456789") != "" {
			return false
		}
	}
	return true
}

// remoteID reads the relay's own id out of its answer to the dot: Postfix "queued as 4F2A1",
// Exim "id=1abc-...", Sendmail "x7AB Message accepted". A mark is a word of its own, and an id
// ends at a blank or a bracket.
func remoteID(text string) string {
	for _, mark := range []string{"queued as ", "id=", "queued mail ", "Queued mail as "} {
		for from := 0; ; {
			i := strings.Index(text[from:], mark)
			if i < 0 {
				break
			}
			at := from + i
			from = at + len(mark)
			if at > 0 && !strings.ContainsRune(" \n([<;,", rune(text[at-1])) {
				continue
			}
			id := strings.TrimLeft(text[from:], "<([")
			if j := strings.IndexAny(id, " \n;)>]"); j >= 0 {
				id = id[:j]
			}
			if id = strings.TrimRight(id, ",."); id != "" && len(id) <= 128 {
				return id
			}
		}
	}
	if id, rest, ok := strings.Cut(text, " "); ok && strings.HasPrefix(rest, "Message accepted") && len(id) <= 64 {
		return id
	}
	return ""
}

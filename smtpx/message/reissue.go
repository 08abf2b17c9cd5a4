package message

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Reissue is the beginning of a raw message that Compose made, at least its whole top header,
// with another Message-ID (without <>) and Date.
func Reissue(head []byte, messageID string, date time.Time) ([]byte, error) {
	if messageID == "" || !ascii(messageID) || strings.ContainsAny(messageID, "<> \r\n\t") {
		return nil, fmt.Errorf("reissue: %q is not a Message-ID", messageID)
	}
	end := bytes.Index(head, []byte("\r\n\r\n"))
	if end < 0 {
		return nil, errors.New("reissue: the header has no end")
	}
	header := head[:end+2]
	first, rest, _ := bytes.Cut(header, []byte("\r\n"))
	before, old, found := bytes.Cut(rest, []byte("\r\nMessage-ID: <"))
	old, after, whole := bytes.Cut(old, []byte("\r\n"))
	switch {
	case !bytes.HasPrefix(first, []byte("Date: ")):
		return nil, errors.New("reissue: the header does not begin with the Date")
	case !found || !whole || !bytes.HasSuffix(old, []byte(">")) || bytes.Contains(after, []byte("\r\nMessage-ID:")) || bytes.HasPrefix(after, []byte("Message-ID:")):
		return nil, errors.New("reissue: the header has no Message-ID of its own")
	}
	out := make([]byte, 0, len(head)+len(messageID))
	out = append(out, "Date: "+date.Format(dateLayout)+"\r\n"...)
	out = append(out, before...)
	out = append(out, "\r\nMessage-ID: <"+messageID+">\r\n"...)
	out = append(out, after...)
	return append(out, head[end+2:]...), nil
}

// Readdress is the beginning of a raw message that Compose made, with another address in place
// of one in To and Cc; a name beside it stays. Mailboxes are compared without case.
func Readdress(head []byte, wrong, right string) []byte {
	end := bytes.Index(head, []byte("\r\n\r\n"))
	if end < 0 {
		return head
	}
	var out []byte
	shown := false // in To or Cc, or a line that goes on with it
	for line := range bytes.SplitAfterSeq(head[:end+2], []byte("\r\n")) {
		if len(line) > 0 && line[0] != ' ' && line[0] != '\t' {
			name, _, _ := bytes.Cut(line, []byte(":"))
			shown = bytes.EqualFold(name, []byte("To")) || bytes.EqualFold(name, []byte("Cc"))
		}
		if shown {
			line = replaceMailbox(line, wrong, right)
		}
		out = append(out, line...)
	}
	return append(out, head[end+2:]...)
}

// replaceMailbox replaces a mailbox outside of quoted names. Compose never breaks one over two
// lines.
func replaceMailbox(line []byte, wrong, right string) []byte {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '\\' && quoted:
			i++
		case line[i] == '"':
			quoted = !quoted
		case quoted || i > 0 && !bytes.ContainsRune([]byte(" \t<,:"), rune(line[i-1])):
		case len(line)-i > len(wrong) && strings.EqualFold(string(line[i:i+len(wrong)]), wrong) && bytes.ContainsRune([]byte(" \t>,\r"), rune(line[i+len(wrong)])):
			return append(append(append([]byte{}, line[:i]...), right...), line[i+len(wrong):]...)
		}
	}
	return line
}

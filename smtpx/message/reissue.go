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

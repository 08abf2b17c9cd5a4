package catchall

import (
	"slices"
	"strings"
	"testing"
)

// TestLetter: encoded headers, text and names of files are shown decoded, other parts by their
// size, and what is no message is said to be none.
func TestLetter(t *testing.T) {
	message := strings.ReplaceAll(`From: =?utf-8?q?Finance_=E8=B4=A2?= <billing@shop.example>
To: ann@x.example
Subject: =?utf-8?b?UmVjaG51bmcgw7xi?=
Content-Type: multipart/mixed; boundary=a

--a
Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Gr=C3=BC=C3=9Fe,
Ann
--b
Content-Type: text/html

<p>hello</p>
--b--
--a
Content-Type: application/pdf
Content-Transfer-Encoding: base64
Content-Disposition: attachment; filename*=utf-8''%E5%8F%91.pdf

aGVsbG8=
--a--
`, "\n", "\r\n")
	want := []string{"From:    Finance 财 <billing@shop.example>", "To:      ann@x.example", "Subject: Rechnung üb", "",
		"Grüße,", "Ann", "", "also as text/html (12 bytes)", "attached: 发.pdf (application/pdf, 5 bytes)"}
	if got := Letter([]byte(message)); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for raw, want := range map[string]string{
		"no header":  "not a message: ",
		"Subject: a": "Subject: a",
		"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\nhalf": "not readable: ",
		"Content-Transfer-Encoding: base64\r\n\r\n%%%":                     "not readable: ",
	} {
		got := Letter([]byte(raw))
		if len(got) == 0 || !strings.HasPrefix(got[len(got)-1], want) {
			t.Errorf("%q: got %q, want a line that begins with %q", raw, got, want)
		}
	}
}

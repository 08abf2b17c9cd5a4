package message

import (
	"fmt"
	"mime"
	netmail "net/mail"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

var (
	local64 = strings.Repeat("l", 64)
	// the longest name DNS knows
	domain253 = strings.Repeat(strings.Repeat("d", 61)+".", 4) + "examp"
	label63   = strings.Repeat("b", 63)
)

// TestParseAddress: what is taken, and what is made of it.
func TestParseAddress(t *testing.T) {
	if len(domain253) != 253 {
		t.Fatal(len(domain253))
	}
	for in, want := range map[string]struct{ mailbox, name, header, text string }{
		"a@x.example":                 {"a@x.example", "", "a@x.example", "a@x.example"},
		"  a@x.example ":              {"a@x.example", "", "a@x.example", "a@x.example"},
		"<a@x.example>":               {"a@x.example", "", "a@x.example", "a@x.example"},
		"Ann <a@x.example>":           {"a@x.example", "Ann", "Ann <a@x.example>", "Ann <a@x.example>"},
		"Ann<a@x.example>":            {"a@x.example", "Ann", "Ann <a@x.example>", "Ann <a@x.example>"},
		"Ann Lee  <a@x.example>":      {"a@x.example", "Ann Lee", "Ann Lee <a@x.example>", "Ann Lee <a@x.example>"},
		`"Lee, Ann" <a@x.example>`:    {"a@x.example", "Lee, Ann", `"Lee, Ann" <a@x.example>`, `"Lee, Ann" <a@x.example>`},
		"Lee, Ann <a@x.example>":      {"a@x.example", "Lee, Ann", `"Lee, Ann" <a@x.example>`, `"Lee, Ann" <a@x.example>`},
		`"An \"A\" \\" <a@x.example>`: {"a@x.example", `An "A" \`, `"An \"A\" \\" <a@x.example>`, `"An \"A\" \\" <a@x.example>`},
		`"b@y.example" <a@x.example>`: {"a@x.example", "b@y.example", `"b@y.example" <a@x.example>`, `"b@y.example" <a@x.example>`},
		`"<b@y>" <a@x.example>`:       {"a@x.example", "<b@y>", `"<b@y>" <a@x.example>`, `"<b@y>" <a@x.example>`},
		`"Ann" <a@x.example>`:         {"a@x.example", "Ann", "Ann <a@x.example>", "Ann <a@x.example>"},
		`"" <a@x.example>`:            {"a@x.example", "", "a@x.example", "a@x.example"},
		"王小明 <w@x.example>":           {"w@x.example", "王小明", "=?utf-8?b?546L5bCP5piO?= <w@x.example>", "王小明 <w@x.example>"},
		"=?utf-8?q?A?= <a@x.example>": {"a@x.example", "=?utf-8?q?A?=", "=?utf-8?b?PT91dGYtOD9xP0E/PQ==?= <a@x.example>", "=?utf-8?q?A?= <a@x.example>"},
		// readers join the words of a phrase with one space
		`"A  B" <a@x.example>`: {"a@x.example", "A  B", `"A  B" <a@x.example>`, `"A  B" <a@x.example>`},
		`" A" <a@x.example>`:   {"a@x.example", " A", `" A" <a@x.example>`, `" A" <a@x.example>`},
		// only the local part may mean something by its case
		"A.B@X.EXAMPLE":                    {"A.B@x.example", "", "A.B@x.example", "A.B@x.example"},
		"a+b=c!#$%&'*/?^_`{|}~-@x.example": {"a+b=c!#$%&'*/?^_`{|}~-@x.example", "", "a+b=c!#$%&'*/?^_`{|}~-@x.example", "a+b=c!#$%&'*/?^_`{|}~-@x.example"},
		"a@x":                              {"a@x", "", "a@x", "a@x"}, // a host of this network
		"a@xn--mnchen-3ya.example":         {"a@xn--mnchen-3ya.example", "", "a@xn--mnchen-3ya.example", "a@xn--mnchen-3ya.example"},
		"a@münchen.example":                {"a@xn--mnchen-3ya.example", "", "a@xn--mnchen-3ya.example", "a@xn--mnchen-3ya.example"},
		"a@MÜNCHEN.example":                {"a@xn--mnchen-3ya.example", "", "a@xn--mnchen-3ya.example", "a@xn--mnchen-3ya.example"},
		"a@例え.テスト":                         {"a@xn--r8jz45g.xn--zckzah", "", "a@xn--r8jz45g.xn--zckzah", "a@xn--r8jz45g.xn--zckzah"},
		// not fass: IDNA 2008
		"a@faß.example": {"a@xn--fa-hia.example", "", "a@xn--fa-hia.example", "a@xn--fa-hia.example"},
		// cyrillic а: a homograph shows on the wire as what it is
		"a@аpple.example":           {"a@xn--pple-43d.example", "", "a@xn--pple-43d.example", "a@xn--pple-43d.example"},
		"jörg@x.example":            {"jörg@x.example", "", "jörg@x.example", "jörg@x.example"},
		"用户@例え.テスト":                 {"用户@xn--r8jz45g.xn--zckzah", "", "用户@xn--r8jz45g.xn--zckzah", "用户@xn--r8jz45g.xn--zckzah"},
		local64 + "@x.example":      {local64 + "@x.example", "", local64 + "@x.example", local64 + "@x.example"},
		"a@" + domain253:            {"a@" + domain253, "", "a@" + domain253, "a@" + domain253},
		"a@" + label63 + ".example": {"a@" + label63 + ".example", "", "a@" + label63 + ".example", "a@" + label63 + ".example"},
	} {
		a, err := ParseAddress(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if a.Mailbox != want.mailbox || a.Name != want.name || unfolded(a) != want.header || a.String() != want.text {
			t.Errorf("%q: mailbox %q, name %q, header %q, text %q", in, a.Mailbox, a.Name, unfolded(a), a.String())
		}
		if wantUTF8 := !ascii(want.mailbox); a.NeedsUTF8() != wantUTF8 {
			t.Errorf("%q: NeedsUTF8 is %v", in, !wantUTF8)
		}
		checkAddress(t, in, a)
	}
}

// TestRefusedAddresses: each of these reached the wire, a header or another mailbox somewhere
// (SMTP.md T6), or has no use.
func TestRefusedAddresses(t *testing.T) {
	for _, in := range []string{
		"", " ", "\t", "<>", "< >", "@", "a", "a@", "@x.example", "a b@x.example", "a@x example", "a@ x.example", "a @x.example",
		// Quoted local parts: redirects and ESMTP parameters.
		`"a"@x.example`, `"a b"@x.example`, `"v@evil.test> NOTIFY=NEVER"@x.test`, `"v@evil.test>\r\nDATA"@x.test`, `""@x.example`, `"\""@x.example`, `a."b"@x.example`,
		"a>b@x.example", "a<b@x.example", "<a@x.example", "a@x.example>", "<<a@x.example>>", "<a@x.example>>", "<a@x.example> b", "Ann <a@x.example> NOTIFY=NEVER", "<a@x.example> SIZE=1",
		// More than one.
		"a@x.example,b@x.example", "a@x.example;b@x.example", "a@x.example b@x.example", "<a@x.example>,<b@x.example>", "A <a@x.example> <b@x.example>", "a@b@x.example", "a@x.example <b@y.example> c",
		`A" <b@y.example>, "B <a@x.example>`, `"A <a@x.example>`, `A" <a@x.example>`, `"A"B" <a@x.example>`, `"A\" <a@x.example>`, `A <b> <a@x.example>`,
		// Comments, groups, routes, percent-free source routes, literals.
		"a(c)@x.example", "(c)a@x.example", "a@x.example(c)", "a@(c)x.example", "friends:a@x.example;", "undisclosed-recipients:;", "@r1,@r2:a@x.example", "<@r.example:a@x.example>",
		"a@[127.0.0.1]", "a@[IPv6:::1]", "a@[x.example]", "a@[", `a\@x.example`, `a\b@x.example`,
		// Control characters, line ends, other spaces.
		"a@x.example\r\nBcc: b@y.example", "a\r\n@x.example", "a@x.example\n", "\na@x.example", "a\x00@x.example", "a@x\x00.example", "a\t@x.example", "A\tB <a@x.example>", "A\r\nBcc: b <a@x.example>",
		"a\x7f@x.example", "A\x7f <a@x.example>", "a\u0085@x.example", "A\u0085B <a@x.example>", "a\u00a0@x.example", "\u00a0a@x.example", "a\u2003@x.example", "a\u3000@x.example", "a@x.\u3000example",
		"A\u2028B <a@x.example>", "A\u2029B <a@x.example>", "a@x.example\u2028",
		// Bidi marks and what cannot be seen.
		"a\u202e@x.example", "A \u202eelpmaxe.x <a@x.example>", "\u200ea@x.example", "A\u2066B <a@x.example>", "a\u200b@x.example", "a\ufeff@x.example",
		"a\u00ad@x.example", "a\u3164@x.example", "\u115fa@x.example", "a\u034f@x.example", "a\uffa0@x.example", "A\U000e0041 <a@x.example>",
		// Symbols that look like syntax.
		"a\uff20x.example", "a\uff1c@x.example", "a\uff1e@x.example", "a\ufe64@x.example", "a\u2024b@x.example", "a\uff0eb@x.example", "😀@x.example", "a@😀.\u202eexample",
		// Dots, labels, lengths.
		".a@x.example", "a.@x.example", "a..b@x.example", "a@.example", "a@x..example", "a@x.example.", "a@.", "a@-x.example", "a@x-.example", "a@x_y.example", "a@x!.example", "a@x/y.example", "a@x%.example",
		"a@xn--", "a@xn--a.example", "a@xn--\u00fc.example", "a@ex\u200dample.com",
		local64 + "l@x.example", "a@" + domain253 + "d", "a@b" + label63 + ".example", strings.Repeat("ö", 33) + "@x.example",
		strings.Repeat("n", MaxDisplayName+1) + " <a@x.example>",
		// Not UTF-8.
		"a\xff@x.example", "\xc0\xbca@x.example", "A\xff <a@x.example>", "a@\xffx.example", "a\xed\xa0\x80@x.example", "A\ufffd <a@x.example>",
	} {
		if a, err := ParseAddress(in); err == nil {
			t.Errorf("%q was taken: %+v", in, a)
		} else if e := err.Error(); e == "" || strings.ContainsFunc(e, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q: error %q", in, e)
		}
	}
}

// TestAddressShowsWhereItGoes: nothing is taken whose reader would expect another recipient.
func TestAddressShowsWhereItGoes(t *testing.T) {
	for in, says := range map[string]string{
		"a@x.test<v@evil.test>": "put the name in quotes", "a@x.test <v@evil.test>": "put the name in quotes", "a\uff20x.test <v@evil.test>": "put the name in quotes",
		"me @ work <a@x.test>": "put the name in quotes",
		"a@\u24d4vil.test":     "would become evil.test", "a@\uff58.test": "would become x.test", "a@x\u3002test": "would become x.test", "a@e\u00advil.test": "would become evil.test",
		"a@\u2113.test": "would become l.test", "a@127.0.0.1": "address literal", "a@1.2.3": "address literal", "a@1": "address literal",
		"A\u202eB <a@x.test>": "U+202E", "A\u2067B <a@x.test>": "U+2067", "A\U000E0041 <a@x.test>": "U+E0041",
		"\U0001F3F4" + strings.Repeat("\U000E0061", 9) + " <a@x.test>": "U+E0061",
	} {
		if a, err := ParseAddress(in); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %+v, %v, want %q", in, a, err, says)
		}
	}
	for in, name := range map[string]string{
		"A@X.test <a@x.test>": "A@X.test", `"b@y.test" <a@x.test>`: "b@y.test", "A\u200e\u200f\u00ad\u200b\ufeff\u200dB <a@x.test>": "A\u200e\u200f\u00ad\u200b\ufeff\u200dB",
		"\U0001F3F4\U000E0067\U000E0062\U000E0073\U000E0063\U000E0074\U000E007F <a@x.test>": "\U0001F3F4\U000E0067\U000E0062\U000E0073\U000E0063\U000E0074\U000E007F",
	} {
		a, err := ParseAddress(in)
		if err != nil || a.Name != name || a.Mailbox != "a@x.test" {
			t.Errorf("%q: got %+v, %v", in, a, err)
			continue
		}
		checkAddress(t, in, a)
	}
	for _, in := range []string{"a@bu\u0308cher.test", "a@B\u00dcCHER.test", "a@xn--bcher-kva.test"} {
		if a, err := ParseAddress(in); err != nil || a.Mailbox != "a@xn--bcher-kva.test" {
			t.Errorf("%q: got %+v, %v", in, a, err)
		}
	}
	composed, _ := ParseAddress("j\u00f6rg@x.test")
	if a, err := ParseAddress("jo\u0308rg@x.test"); err != nil || a != composed {
		t.Errorf("NFD is %+v (%v), NFC %+v", a, err, composed)
	}
}

// TestParseAddressList: reply_to and its kin.
func TestParseAddressList(t *testing.T) {
	for in, want := range map[string]string{
		"a@x.test": "a@x.test", "a@x.test, B <b@x.test>": "a@x.test|B <b@x.test>", `"B, C" <b@x.test>,a@x.test`: `"B, C" <b@x.test>|a@x.test`,
		"Lee, Ann <a@x.test>, b@x.test": `"Lee, Ann" <a@x.test>|b@x.test`, "a@x.test, A <A@x.test>": "a@x.test",
		"a@x.test,": "", ",a@x.test": "", "": "", "a@x.test; b@x.test": "", "a@x.test, b": "", "a@x.test, \"b": "",
		strings.TrimSuffix(strings.Repeat("a@x.test,", MaxAddressList), ","): "a@x.test",
	} {
		as, err := ParseAddressList(in)
		var got []string
		for _, a := range as {
			got = append(got, a.String())
		}
		if strings.Join(got, "|") != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	var many []string
	for i := range MaxAddressList + 1 {
		many = append(many, fmt.Sprintf("a%d@x.test", i))
	}
	if as, err := ParseAddressList(strings.Join(many[1:], ",")); err != nil || len(as) != MaxAddressList {
		t.Errorf("got %d, %v", len(as), err)
	}
	if _, err := ParseAddressList(strings.Join(many, ",")); err == nil {
		t.Error("one too many was taken")
	}
}

// TestAddressBomb: a long address costs no more to refuse than to read. The work on a domain
// grows with the square of its length.
func TestAddressBomb(t *testing.T) {
	var han strings.Builder
	for i := range 1 << 20 {
		han.WriteRune(rune(0x4e00 + i*7919%20000))
	}
	short := han.String()[:3*1000]
	for _, in := range []string{"a@" + han.String(), "a@" + short, strings.Repeat("<", 1<<20) + "a@x.example>", `"` + strings.Repeat(`\"`, 1<<20) + `" <a@x.example>`, strings.Repeat("a@", 1<<20), "a@" + strings.Repeat("x.", 1<<20)} {
		begin := time.Now()
		if a, err := ParseAddress(in); err == nil {
			t.Errorf("took %+v", a)
		}
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("%d octets that begin %.20q cost %v", len(in), in, took)
		}
	}
}

// TestAddressKey: what counts as the same mailbox.
func TestAddressKey(t *testing.T) {
	for _, same := range [][]string{
		{"a@x.example", "A <A@X.Example>", "a@X.EXAMPLE"},
		{"a@münchen.example", "A@MÜNCHEN.example", "a@xn--mnchen-3ya.example"},
		{"jörg@x.example", "JÖRG@x.example"},
	} {
		first, _ := ParseAddress(same[0])
		for _, s := range same[1:] {
			if a, err := ParseAddress(s); err != nil || a.Key() != first.Key() {
				t.Errorf("%q is %q (%v), %q is %q", s, a.Key(), err, same[0], first.Key())
			}
		}
	}
	a, _ := ParseAddress("Ann.Lee@X.example")
	b, _ := ParseAddress("AnnLee@X.example")
	if a.Key() == b.Key() || a.Local() != "Ann.Lee" || a.Domain() != "x.example" {
		t.Errorf("%q %q %q", a.Key(), a.Local(), a.Domain())
	}
}

// wire is what may stand between the brackets of MAIL and RCPT.
var wire = regexp.MustCompile("^[^\\x00-\\x20\\x7f<>()\\[\\],;:\\\\\"@]{1,64}@[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")

// unfolded is the address as a header holds it in one line.
func unfolded(a Address) string { return strings.ReplaceAll(a.header("To"), "\n", "") }

// checkAddress wants everything an accepted address promises.
func checkAddress(t *testing.T, in string, a Address) {
	t.Helper()
	line := "RCPT TO:<" + a.Mailbox + ">"
	if strings.Count(line, "<") != 1 || strings.Count(line, ">") != 1 || !wire.MatchString(a.Mailbox) || strings.Contains(a.Mailbox, "..") || len(a.Domain()) > MaxDomain || !utf8.ValidString(line) ||
		strings.ContainsFunc(line[len("RCPT TO:"):], func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }) {
		t.Errorf("%q gives the command %q", in, line)
	}
	if again, err := ParseAddress(a.String()); err != nil || again != a {
		t.Errorf("%q: %+v is written %q, which is %+v (%v)", in, a, a.String(), again, err)
	}
	h := unfolded(a)
	if strings.ContainsFunc(h, unicode.IsControl) || len(h) > 0 && ascii(a.Mailbox) && !ascii(h) {
		t.Errorf("%q gives the header %q", in, h)
	}
	if !ascii(h) {
		return // needs SMTPUTF8, which net/mail reads in its own way
	}
	m, err := (&netmail.AddressParser{WordDecoder: new(mime.WordDecoder)}).Parse(h)
	if err != nil || m.Address != a.Mailbox || m.Name != a.Name {
		t.Errorf("%q gives the header %q, which another parser reads as %+v (%v)", in, h, m, err)
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{
		"a@x.example", "Ann <a@x.example>", `"Lee, \"Ann\" \\" <a@x.example>`, "王小明 <用户@例え.テスト>", `"v@evil.test> NOTIFY=NEVER"@x.test`, "a@münchen.example", "A\u202e <a@x.example>", "=?utf-8?q?A?= <a@x.example>",
		"<@r.example:a@x.example>", "friends:a@x.example;", "a(c)@x.example", "a@[127.0.0.1]", "a@x.example\r\nRCPT TO:<b@x.example>", `"A  B" <a@x.example>`, `" " <a@x.example>`, "A\u200dB <a@x.example>", "a@xn--mnchen-3ya.example",
		strings.Repeat("n ", 80) + "<a@x.example>", "a@" + domain253, local64 + "@x", "a\u3164@x.example", "a@x。example", "ﬁ@ﬁ.example",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if a, err := ParseAddress(in); err == nil {
			checkAddress(t, in, a)
		}
	})
}

package message

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

const invitation = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//x//y//EN\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nUID:1@x.example\r\nSUMMARY:Prüfung\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"

// TestCalendarIsAnAlternative: an invitation is the last alternative, and its type says what
// its METHOD says.
func TestCalendarIsAnAlternative(t *testing.T) {
	for _, c := range []struct {
		name  string
		m     *Message
		parts []string // path and type of each
	}{
		{"text", &Message{Text: "Come"}, []string{"alternative/text/plain", "alternative/text/calendar"}},
		{"html", &Message{HTML: "<p>Come"}, []string{"alternative/text/html", "alternative/text/calendar"}},
		{"both", &Message{Text: "Come", HTML: "<p>Come"}, []string{"alternative/text/plain", "alternative/text/html", "alternative/text/calendar"}},
		{"neither", &Message{}, []string{"alternative/text/plain", "alternative/text/calendar"}},
		{"image and file", &Message{Text: "Come", HTML: `<img src="cid:logo">`, Attachments: []Attachment{{ContentID: "logo", ContentType: "image/png", Content: []byte("x")}, {Filename: "a.pdf", Content: []byte("y")}}},
			[]string{"mixed/alternative/text/plain", "mixed/alternative/related/text/html", "mixed/alternative/related/image/png", "mixed/alternative/text/calendar", "mixed/application/pdf"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.m.Subject, c.m.Alternatives = "s", []Alternative{{ContentType: "text/calendar; method=request", Content: invitation}}
			raw := composed(t, c.m)
			var got []string
			for _, p := range parseBack(t, raw).parts {
				got = append(got, p.path+p.mediaType)
				if p.mediaType == "text/calendar" && string(p.body) != invitation {
					t.Errorf("the calendar is %q", p.body)
				}
			}
			if !slices.Equal(got, c.parts) {
				t.Errorf("parts %q, want %q", got, c.parts)
			}
			if want := "Content-Type: text/calendar; method=REQUEST; charset=utf-8\r\n"; !strings.Contains(string(raw), want) {
				t.Errorf("no %q in\n%s", want, raw)
			}
			tp := mustTemplate(t, c.m)
			sameMail(t, Join(filled(t, tp, fillOf(t, nil))), Join(mustCompose(t, byHand(c.m, fillOf(t, nil)))))
		})
	}
}

func mustCompose(t testing.TB, m *Message) []Piece {
	t.Helper()
	ps, err := Compose(m)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

// TestAlternativesThatContradict themselves are refused, each for its field.
func TestAlternativesThatContradict(t *testing.T) {
	cal := func(lines ...string) string {
		return "BEGIN:VCALENDAR\r\n" + strings.Join(lines, "\r\n") + "\r\nEND:VCALENDAR\r\n"
	}
	for _, c := range []struct{ contentType, content, field, says string }{
		{"text/calendar", invitation, "", ""},
		{"text/calendar; method=REQUEST; charset=UTF-8", invitation, "", ""},
		{"text/calendar", cal("VERSION:2.0"), "", ""},
		{"text/calendar; method=CANCEL", cal("METHO", " D:CANCEL"), "", ""}, // folded
		{"text/calendar; method=REQUEST", cal("BEGIN:VEVENT", "DESCRIPTION:x", " METHOD:CANCEL", "END:VEVENT", "METHOD:REQUEST"), "", ""},
		{"text/markdown", "# x", "", ""},
		{"text/calendar; method=CANCEL", invitation, "content_type", "METHOD:REQUEST"},
		{"text/calendar; method=REQUEST", cal("VERSION:2.0"), "content_type", "METHOD:"},
		{"text/calendar", cal("METHOD:REQUEST", "METHOD:CANCEL"), "content_type", "more than one"},
		{"text/calendar", cal("BEGIN:VEVENT", "METHOD:REQUEST", "END:VEVENT"), "content_type", "no method"},
		{"text/calendar", cal("METHOD:REQUEST; x=\"\r\nX: 1"), "content_type", "no method"},
		{"text/calendar", "VERSION:2.0", "content_type", "BEGIN:VCALENDAR"},
		{"text/calendar; charset=iso-8859-1", invitation, "content_type", "charset"},
		{"text/calendar; x=\"a\r\nBcc: v@x.example\"", invitation, "content_type", "media type"},
		{"text/html", "<p>", "content_type", "of their own"},
		{"application/pdf", "x", "content_type", "text type"},
		{"text/calendar", "", "content", "required"},
		{"text/calendar", "a\x00", "content", "NUL"},
		{"text/calendar", "\xff", "content", "UTF-8"},
	} {
		vs := (&Message{Subject: "s", Text: "t", Alternatives: []Alternative{{c.contentType, c.content}}}).Validate()
		if c.field == "" {
			if len(vs) > 0 {
				t.Errorf("%s %q: %v", c.contentType, c.content, vs)
			}
			continue
		}
		if len(vs) != 1 || vs[0].Field != "alternatives[0]."+c.field || !strings.Contains(vs[0].Description, c.says) {
			t.Errorf("%s %q: %v, want %s: %s", c.contentType, c.content, vs, c.field, c.says)
		}
	}
	if vs := (&Message{Alternatives: []Alternative{{"text/calendar", invitation}, {"text/calendar", invitation}}}).Validate(); len(vs) != 1 || vs[0].Field != "alternatives[1].content_type" {
		t.Errorf("twice: %v", vs)
	}
	if _, vs := NewTemplate(&Message{Alternatives: []Alternative{{"text/markdown", "{{a}}"}}}); len(vs) != 1 || vs[0].Field != "alternatives[0].content" {
		t.Errorf("a variable: %v", vs)
	}
}

// TestFromName: a mail has a sender's name of its own and the mail server's address.
func TestFromName(t *testing.T) {
	for name, want := range map[string]string{
		"Jörg of Sales":            `=?utf-8?b?SsO2cmcgb2YgU2FsZXM=?= <billing@x.example>`,
		"Sales, North":             `"Sales, North" <billing@x.example>`,
		"a@b":                      "", // it shows an address, if one without a dot
		"":                         `Rechnung <billing@x.example>`,
		"via Billing@X.example":    `"via Billing@X.example" <billing@x.example>`,
		"ceo@bank.example":         "",
		"CEO <ceo@bank.example>":   "",
		"ceo＠bank.example":         "",
		"x\r\nBcc: v@evil.example": "",
		"\u202egro.x":              "",
		"  ":                       "",
		"\xff":                     "",
		strings.Repeat("x", 201):   "",
	} {
		m := &Message{From: mustAddress(t, "Rechnung <billing@x.example>"), FromName: name, Subject: "s", Text: "t"}
		vs := m.Validate()
		if want == "" {
			refused := func(vs []Violation) bool {
				return len(vs) > 0 && !slices.ContainsFunc(vs, func(v Violation) bool { return v.Field != "from_name" })
			}
			if !refused(vs) {
				t.Errorf("%q: %v, want it refused", name, vs)
			}
			tp := mustTemplate(t, &Message{Subject: "s", Text: "t"})
			f := fillOf(t, nil)
			f.FromName = name
			if _, vs, _ := tp.Compose(f); !refused(vs) {
				t.Errorf("%q in an item: %v, want it refused", name, vs)
			}
			continue
		}
		if got := parseBack(t, composed(t, m)).header.Get("From"); len(vs) > 0 || got != want {
			t.Errorf("%q: From is %q %v, want %q", name, got, vs, want)
		}
	}
}

// TestAutoSubmitted: programs are told that no person wrote the mail, unless the caller says
// something else.
func TestAutoSubmitted(t *testing.T) {
	for _, c := range []struct {
		auto    bool
		headers map[string]string
		want    []string
	}{
		{true, nil, []string{"auto-generated"}},
		{false, nil, nil},
		{true, map[string]string{"auto-SUBMITTED": "no"}, []string{"no"}},
		{true, map[string]string{"X-A": "1"}, []string{"auto-generated"}},
	} {
		m := &Message{Subject: "s", Text: "t", AutoSubmitted: c.auto, Headers: c.headers}
		if got := parseBack(t, composed(t, m)).header[autoSubmitted]; !slices.Equal(got, c.want) {
			t.Errorf("%v %v: %q, want %q", c.auto, c.headers, got, c.want)
		}
		shared := &Message{Subject: "s", Text: "t", AutoSubmitted: c.auto}
		f := fillOf(t, nil)
		f.Headers = c.headers
		if got := parseBack(t, Join(filled(t, mustTemplate(t, shared), f))).header[autoSubmitted]; !slices.Equal(got, c.want) {
			t.Errorf("%v %v in a bulk: %q, want %q", c.auto, c.headers, got, c.want)
		}
	}
}

// TestUnsubscribe: the two headers of one click, with values that stay values.
func TestUnsubscribe(t *testing.T) {
	for _, c := range []struct {
		url, mailto string
		values      map[string]string
		list, post  string
		wrong       string // field
	}{
		{url: "https://x.example/u", list: "<https://x.example/u>", post: "List-Unsubscribe=One-Click"},
		{mailto: "leave@x.example", list: "<mailto:leave@x.example>"},
		{url: "https://x.example/u?m={{m}}&l=1", mailto: "mailto:leave@x.example?subject={{m}}", values: map[string]string{"m": "ä b&c=>,\r\nBcc: v@x.example"},
			list: "<https://x.example/u?m=%C3%A4%20b%26c%3D%3E%2C%0D%0ABcc%3A%20v%40x.example&l=1>, <mailto:leave@x.example?subject=%C3%A4%20b%26c%3D%3E%2C%0D%0ABcc%3A%20v%40x.example>", post: "List-Unsubscribe=One-Click"},
		{url: "{{u}}", values: map[string]string{"u": "https://bücher.example/ü?a=1"}, list: "<https://xn--bcher-kva.example/%C3%BC?a=1>", post: "List-Unsubscribe=One-Click"},
		{url: "{{u}}", values: map[string]string{"u": "http://x.example/"}, wrong: "variables.u"},
		{url: "{{u}}", values: map[string]string{"u": "https://x.example/>\r\nBcc: v@x.example"}, wrong: "variables.u"},
		{url: "{{u}}", values: map[string]string{"u": ""}, wrong: "variables.u"},
		{url: "{{u}}", values: nil, wrong: "variables.u"},
		{url: "https://x.example/{{u}}", values: map[string]string{"u": strings.Repeat("ä", 200)}, wrong: "variables.u"},
		{url: "https://{{u}}/", wrong: "unsubscribe_url"},
		{url: "https://x.example{{u}}", wrong: "unsubscribe_url"},
		{url: "{{u}}{{v}}", wrong: "unsubscribe_url"},
		{url: "{{u", wrong: "unsubscribe_url"},
		{url: "http://x.example/u", wrong: "unsubscribe_url"},
		{url: "https://x.example/a,b", wrong: "unsubscribe_url"},
		{url: "https://x.example/u>\r\nBcc: v@x.example", wrong: "unsubscribe_url"},
		{url: "https://x.example/" + strings.Repeat("a", 900), wrong: "unsubscribe_url"},
		{mailto: "Leave <leave@x.example>", wrong: "unsubscribe_mailto"},
		{mailto: "{{u}}@x.example", wrong: "unsubscribe_mailto"},
		{mailto: "leave@x.example\r\nBcc: v@x.example", wrong: "unsubscribe_mailto"},
		{mailto: "leave@x.example?subject=a b", wrong: "unsubscribe_mailto"},
	} {
		u := Unsubscribe{c.url, c.mailto}
		m := &Message{From: mustAddress(t, "a@x.example"), Subject: "s", Text: "t", Unsubscribe: u}
		vs := u.Validate()
		var head map[string][]string
		if len(vs) == 0 {
			f := fillOf(t, c.values)
			var ps []Piece
			if ps, vs, _ = mustTemplate(t, m).Compose(f); len(vs) == 0 {
				head = parseBack(t, Join(ps)).header
			}
		}
		switch {
		case c.wrong != "":
			if len(vs) != 1 || vs[0].Field != c.wrong {
				t.Errorf("%+v %v: %v, want %s refused", u, c.values, vs, c.wrong)
			}
			continue
		case len(vs) > 0:
			t.Errorf("%+v: %v", u, vs)
			continue
		}
		want := map[string][]string{listUnsubscribe: {c.list}}
		if c.post != "" {
			want[listUnsubscribePost] = []string{c.post}
		}
		got := map[string][]string{}
		for _, k := range []string{listUnsubscribe, listUnsubscribePost} {
			if head[k] != nil {
				got[k] = head[k]
			}
		}
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%+v: %q, want %q", u, got, want)
		}
		if !u.HasVariables() {
			if now := parseBack(t, composed(t, m)).header[listUnsubscribe]; !slices.Equal(now, want[listUnsubscribe]) {
				t.Errorf("%+v in a mail of its own: %q", u, now)
			}
		}
	}
	for _, k := range []string{"List-Unsubscribe", "list-unsubscribe-post"} {
		v := map[bool]string{true: "<https://y.example/>", false: "List-Unsubscribe=One-Click"}[k == "List-Unsubscribe"]
		m := &Message{Text: "t", Headers: map[string]string{k: v}, Unsubscribe: Unsubscribe{URL: "https://x.example/"}}
		if vs := m.Validate(); len(vs) != 1 || vs[0].Field != "headers["+k+"]" {
			t.Errorf("%s given twice: %v", k, vs)
		}
	}
}

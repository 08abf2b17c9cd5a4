package message

import (
	"net/mail"
	"strings"
	"testing"
)

// TestStructuredHeaders: what programs read in a header stays what it is.
func TestStructuredHeaders(t *testing.T) {
	long := strings.Repeat("a", 200)
	for _, c := range []struct{ name, given, want string }{
		{"Disposition-Notification-To", "Jörg <j@x.example>", "=?utf-8?b?SsO2cmc=?= <j@x.example>"},
		{"Return-Receipt-To", "Jörg <j@bücher.example>, b@x.example", "=?utf-8?b?SsO2cmc=?= <j@xn--bcher-kva.example>, b@x.example"},
		{"Errors-To", "Jörg <shop@x.example>", "=?utf-8?b?SsO2cmc=?= <shop@x.example>"},
		{"errors-to", "SHOP@x.example", "SHOP@x.example"},
		{"In-Reply-To", "<a=?b@x.example>", "<a=?b@x.example>"},
		{"References", "<a=?b@x.example>  <c@x.example><no-domain>", "<a=?b@x.example> <c@x.example> <no-domain>"},
		{"References", strings.TrimSpace(strings.Repeat("<0190-some-long-id@mail.x.example> ", 20)), strings.TrimSpace(strings.Repeat("<0190-some-long-id@mail.x.example> ", 20))},
		{"List-Id", "Größe <größe.x.example>", ""},
		{"List-Id", "Größe <news.x.example>", "=?utf-8?b?R3LDtsOfZQ==?= <news.x.example>"},
		{"List-Id", "<news.x.example>", "<news.x.example>"},
		{"List-Id", `"News, all" <news.x.example>`, `"News, all" <news.x.example>`},
		{"List-Id", "news.x.example", ""},
		{"List-Unsubscribe", "<https://x.example/u?t=a=?n=1>", "<https://x.example/u?t=a=?n=1>"},
		{"List-Unsubscribe", "<https://bücher.example:8443/ä?ö=ü#ß>", "<https://xn--bcher-kva.example:8443/%C3%A4?%C3%B6=%C3%BC#%C3%9F>"},
		{"List-Unsubscribe", "<mailto:u@x.example?subject=ü>, <HTTPS://x.example/" + long + ">", "<mailto:u@x.example?subject=%C3%BC>, <HTTPS://x.example/" + long + ">"},
		{"List-Unsubscribe", "https://x.example/u", ""},
		{"List-Unsubscribe", "<https://x.example/u> and more", ""},
		{"List-Unsubscribe", "<https://x.example/u>,", ""},
		{"List-Unsubscribe", "<https://x.example/a b>", ""},
		{"List-Unsubscribe", "<javascript:alert(1)>", ""},
		{"List-Unsubscribe", "<https:///u>", ""},
		{"List-Unsubscribe", "", ""},
		{"List-Help", "<https://xn--\u00fc.example/>", ""},
		{"List-Post", "NO", "NO"},
		{"List-Archive", "NO", ""},
		{"List-Unsubscribe-Post", "List-Unsubscribe=One-Click", "List-Unsubscribe=One-Click"},
		{"List-Unsubscribe-Post", "yes", ""},
		{"In-Reply-To", "a@x.example", ""},
		{"In-Reply-To", "<ä@x.example>", ""},
		{"References", "", ""},
		{"Disposition-Notification-To", "jörg@x.example", ""},
		{"Disposition-Notification-To", "no address", ""},
		{"Errors-To", "shop@x.example, evil@y.example", ""},
	} {
		m := &Message{From: Address{Mailbox: "shop@x.example"}, Headers: map[string]string{c.name: c.given}}
		vs := m.Validate()
		if c.want == "" {
			if len(vs) != 1 || vs[0].Field != "headers["+c.name+"]" {
				t.Errorf("%s %q: got %v, want one violation", c.name, c.given, vs)
			}
			continue
		}
		if len(vs) > 0 {
			t.Errorf("%s %q: got %v", c.name, c.given, vs)
			continue
		}
		raw := compose(t, m)
		checkFolding(t, raw)
		got, err := mail.ReadMessage(strings.NewReader(string(raw)))
		if err != nil || got.Header.Get(c.name) != c.want {
			t.Errorf("%s %q: got %q, want %q (%v)", c.name, c.given, got.Header.Get(c.name), c.want, err)
		}
	}
}

// TestHeadersThatLie: a caller cannot say where a mail was, who signed it, or who else gets it.
func TestHeadersThatLie(t *testing.T) {
	for _, name := range []string{"Received", "Received-SPF", "Authentication-Results", "DomainKey-Signature", "DKIM-Signature", "ARC-Seal",
		"X-Original-To", "Envelope-To", "X-Envelope-To", "x-envelope-from", "Apparently-To", "Original-Recipient", "Delivered-To", "Return-Path", "Errors-To",
		"X-SMTPAPI", "x-smtpapi", "X-MC-BccAddress", "X-MSYS-API", "X-MS-Exchange-Organization-SCL", "Sender", "Resent-To"} {
		m := &Message{From: Address{Mailbox: "shop@x.example"}, Headers: map[string]string{name: "x@evil.example"}}
		if vs := m.Validate(); len(vs) != 1 || vs[0].Field != "headers["+name+"]" {
			t.Errorf("%s: got %v, want one violation", name, vs)
		}
	}
	for _, name := range []string{"X-Mailer", "X-Campaign", "Feedback-ID", "Auto-Submitted", "Precedence", "X-Received-Order"} {
		if vs := (&Message{Headers: map[string]string{name: "x"}}).Validate(); len(vs) > 0 {
			t.Errorf("%s: got %v, want none", name, vs)
		}
	}
}

// TestErrorsToOfATemplate is compared with the sender of every mail.
func TestErrorsToOfATemplate(t *testing.T) {
	for _, c := range []struct {
		shared, own string
		right       bool
	}{{"a@x.example", "", true}, {"evil@x.example", "", false}, {"evil@x.example", "a@x.example", true}, {"", "evil@x.example", false}, {"", "", true}} {
		m := &Message{Subject: "s", Text: "t", Headers: map[string]string{}}
		if c.shared != "" {
			m.Headers["Errors-To"] = c.shared
		}
		tp, vs := NewTemplate(m)
		if len(vs) > 0 {
			t.Fatal(vs)
		}
		f := &Fill{From: Address{Mailbox: "a@x.example"}, MessageID: "1@x.example"}
		if c.own != "" {
			f.Headers = map[string]string{"errors-to": c.own}
		}
		_, vs, err := tp.Compose(f)
		if err != nil || (len(vs) == 0) != c.right {
			t.Errorf("%+v: got %v, %v", c, vs, err)
		}
	}
}

package message

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
)

// signedInvoice is a finished message with a multipart/signed in it. The signature stands for
// one: it is the sum of the signed part, as S/MIME signs it (RFC 1847 2.1).
func signedInvoice(header ...string) string {
	part := "Content-Type: multipart/mixed; boundary=\"in\"\r\n\r\n--in\r\nContent-Type: text/plain;\r\n\tcharset=us-ascii\r\n\r\nInvoice  \r\nFrom here on.\r\n.\r\n\r\n" +
		"--in\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERi0=\r\n--in--\r\n"
	sum := sha256.Sum256([]byte(part))
	return strings.Join(header, "") + "MIME-Version: 1.0\r\nContent-Type: multipart/signed; protocol=\"application/pkcs7-signature\";\r\n micalg=sha-256;\r\n boundary=out\r\n\r\n" +
		"This is signed.\r\n--out\r\n" + part + "\r\n--out\r\nContent-Type: application/pkcs7-signature; name=smime.p7s\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
		base64.StdEncoding.EncodeToString(sum[:]) + "\r\n--out--\r\n"
}

// signatureHolds checks the digest as a mail program does: over the bytes of the first part
// between the boundaries, as they stand.
func signatureHolds(raw []byte) bool {
	_, rest, _ := bytes.Cut(raw, []byte("\r\n--out\r\n"))
	part, rest, _ := bytes.Cut(rest, []byte("\r\n--out\r\n"))
	_, rest, _ = bytes.Cut(rest, []byte("\r\n\r\n"))
	signature, _, found := bytes.Cut(rest, []byte("\r\n--out--"))
	want, err := base64.StdEncoding.DecodeString(string(signature))
	sum := sha256.Sum256(part)
	return found && err == nil && bytes.Equal(sum[:], want)
}

var rawTop = []string{"Received-By: x\r\n", "from: =?utf-8?q?Sh=C3=B6p?= <SHOP@x.example>\r\n", "To: A (comment) <a@y.example>,\r\n\t\"B, C\" <b@y.example>\r\n", "Cc: c@y.example\r\n",
	"Subject: =?utf-8?b?UmVjaG51bmc=?=\r\n 4711\r\n", "Date: Mon, 23 Nov 2026 10:00:00 +0000\r\n", "Message-ID: <4711@billing.example>\r\n"}

// TestRawStaysAsItIs: a finished message leaves byte for byte, without its Bcc, and its
// signature holds.
func TestRawStaysAsItIs(t *testing.T) {
	shop := mustAddress(t, "Shop <shop@x.example>")
	given := signedInvoice(rawTop...)
	for name, c := range map[string]struct{ in, want string }{
		"as it is":            {given, given},
		"with Bcc":            {strings.Replace(given, "Subject:", "bCC: d@y.example,\r\n\te@y.example\r\nSubject:", 1), given},
		"Bcc first":           {"Bcc: d@y.example, e@y.example\r\n" + given, given},
		"Bcc last":            {strings.Replace(given, " boundary=out\r\n", " boundary=out\r\nBcc: d@y.example, e@y.example\r\n", 1), given},
		"without Message-ID":  {strings.Replace(given, rawTop[6], "", 1), "Message-ID: <new@x.example>\r\n" + strings.Replace(given, rawTop[6], "", 1)},
		"Bcc without anybody": {strings.Replace(given, "Subject:", "Bcc: \r\nSubject:", 1), given},
	} {
		if strings.HasSuffix(name, "anybody") {
			c.in = strings.Replace(c.in, "Bcc: \r\n", "Bcc:\r\n", 1)
		}
		r, vs := ParseRaw([]byte(c.in))
		if len(vs) > 0 {
			t.Errorf("%s: %v", name, vs)
			continue
		}
		vs = r.ValidateSender(shop, nil)
		got := Join(r.Pieces("new@x.example"))
		if string(got) != c.want || len(vs) > 0 {
			t.Errorf("%s: %v, %q, want %q", name, vs, got, c.want)
		}
		if !signatureHolds(got) {
			t.Errorf("%s: the signature is broken", name)
		}
		bcc := strings.Contains(strings.ToLower(c.in), "bcc: d")
		if len(r.To) != 2 || r.To[1].Mailbox != "b@y.example" || len(r.Cc) != 1 || (len(r.Bcc) == 2) != bcc || r.Subject != "Rechnung 4711" {
			t.Errorf("%s: %+v", name, r)
		}
		if _, err := Reissue(got, "other@x.example", fillOf(t, nil).Date); err == nil {
			t.Errorf("%s: a finished message gets another Message-ID", name)
		}
	}
	if signatureHolds([]byte(strings.Replace(given, "Invoice  ", "Invoice ", 1))) {
		t.Error("the check of the signature sees nothing")
	}
}

// TestRawIsReadStrictly: what two readers could take differently, and what would break on its
// way, is refused with the field raw.
func TestRawIsReadStrictly(t *testing.T) {
	good := signedInvoice(rawTop...)
	put := func(header string) string { return header + "\r\n" + good }
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for says, in := range map[string]string{
		"does not end with CRLF":           strings.TrimSuffix(good, "\r\n"),
		"line end in line 2":               swap("Received-By: x\r\nfrom", "Received-By: x\r\nX: a\nfrom"),
		"line end in line 1":               swap("Received-By: x\r\n", "Received-By: x\r"),
		"NUL":                              swap("Invoice", "Inv\x00ice"),
		"beyond ASCII":                     swap("Invoice", "Invöice"),
		"more than 998":                    put("X-A: " + strings.Repeat("a", 994)),
		"no empty line":                    "From: shop@x.example\r\n",
		"name: value":                      "From shop@x.example Mon Nov 23\r\n" + good,
		"header line that is not":          " folded: first\r\n" + good,
		"line of blanks":                   swap("Subject: ", "Subject:\r\n \r\n "),
		"header From twice":                put("From: shop@x.example"),
		"header Date twice":                put("Date: Mon, 23 Nov 2026 10:00:00 +0000"),
		"header Subject twice":             put("subject: other"),
		"header Content-Type twice":        put("Content-Type: text/plain"),
		"header Received, which":           put("Received: from x"),
		"header Dkim-Signature, which":     put("DKIM-Signature: v=1"),
		"header Return-Path, which":        put("Return-Path: <x@y.example>"),
		"header Resent-To, which":          put("Resent-To: x@y.example"),
		"no Date":                          swap(rawTop[5], ""),
		"Message-ID that is not":           swap("<4711@billing.example>", "4711"),
		"no From":                          swap("from: ", "X-From: "),
		"has no From of one address":       swap("<SHOP@x.example>", "<SHOP@x.example>, b@x.example"),
		"To that is not a list":            swap("<a@y.example>", "<a@y.example"),
		"To that has an address":           swap("<a@y.example>", "<a@127.0.0.1>"),
		"not MIME-Version":                 swap("MIME-Version: 1.0\r\n", ""),
		"multipart/signed without":         swap("\r\n--out--", "\r\n--out"),
		"multipart/mixed without":          swap("--in--\r\n", "--in\r\n"),
		"content type \"x\", which is":     swap("Content-Type: application/pdf", "Content-Type: x"),
		"parts, or 20 in each other":       nested(25),
		"\"multipart/signed; a\", which":   swap("multipart/signed; protocol=\"application/pkcs7-signature\";\r\n micalg=sha-256;\r\n boundary=out", "multipart/signed; a"),
		"Bcc that is not":                  put("Bcc: <x>"),
		"multipart/x without its boundary": strings.Join(rawTop, "") + "MIME-Version: 1.0\r\nContent-Type: multipart/x\r\n\r\n\r\n",
	} {
		_, vs := ParseRaw([]byte(in))
		found := false
		for _, v := range vs {
			found = found || v.Field == "raw" && strings.Contains(v.Description, says)
		}
		if !found {
			t.Errorf("%q: %v", says, vs)
		}
	}
	shop := mustAddress(t, "shop@x.example")
	for says, in := range map[string]string{
		"From other@x.example":   swap("SHOP@x.example", "other@x.example"),
		"Sender other@x.example": put("Sender: other@x.example"),
		"headers[Errors-To]":     put("Errors-To: other@x.example"),
		"headers[X-SMTPAPI]":     put("X-SMTPAPI: {\"to\": [\"v@y.example\"]}"),
	} {
		r, vs := ParseRaw([]byte(in))
		if len(vs) > 0 {
			t.Errorf("%s: %v", says, vs)
			continue
		}
		if vs := r.ValidateSender(shop, nil); len(vs) != 1 || vs[0].Field != "raw" || !strings.Contains(vs[0].Description, says) {
			t.Errorf("%s: %v", says, vs)
		}
	}
	r, _ := ParseRaw([]byte(put("X-SMTPAPI: {}")))
	if vs := r.ValidateSender(shop, []string{"X-Smtpapi"}); len(vs) > 0 {
		t.Errorf("allowed: %v", vs)
	}
}

// nested is a message of so many multiparts in each other.
func nested(n int) string {
	var open, end strings.Builder
	for i := range n {
		b := "b" + strings.Repeat("x", i)
		open.WriteString("Content-Type: multipart/mixed; boundary=" + b + "\r\n\r\n--" + b + "\r\n")
	}
	for i := n - 1; i >= 0; i-- {
		end.WriteString("\r\n--b" + strings.Repeat("x", i) + "--\r\n")
	}
	return strings.Join(rawTop, "") + "MIME-Version: 1.0\r\n" + open.String() + "\r\n" + end.String()
}

// TestHeadersForTheProvider: what makes a provider add recipients is refused, for every mail of
// a bulk too, unless the mail server allows it.
func TestHeadersForTheProvider(t *testing.T) {
	from := mustAddress(t, "shop@x.example")
	for _, name := range []string{"X-SMTPAPI", "x-mc-BccAddress", "X-MC-AutoText", "X-MSYS-API", "X-Mailgun-Recipient-Variables", "X-Mailgun-Drop-Message", "X-MJ-TemplateErrorReporting"} {
		canon, is := ProviderHeader(name)
		if !is {
			t.Errorf("%s is none", name)
		}
		headers := map[string]string{name: "{}"}
		refused := func(vs []Violation) bool { return len(vs) == 1 && vs[0].Field == "headers["+name+"]" }
		if vs := (&Message{From: from, Text: "t", Headers: headers}).Validate(); !refused(vs) {
			t.Errorf("%s: %v", name, vs)
		}
		if vs := (&Message{From: from, Text: "t", Headers: headers, Allowed: []string{canon}}).Validate(); len(vs) > 0 {
			t.Errorf("%s allowed: %v", name, vs)
		}
		shared := mustTemplate(t, &Message{Text: "t", Headers: headers})
		own := mustTemplate(t, &Message{Text: "t"})
		for _, tp := range []*Template{shared, own} {
			f := fillOf(t, nil)
			if tp == own {
				f.Headers = headers
			}
			if _, vs, _ := tp.Compose(f); !refused(vs) {
				t.Errorf("%s in a bulk: %v", name, vs)
			}
			f.Allowed = []string{canon}
			if _, vs, _ := tp.Compose(f); len(vs) > 0 {
				t.Errorf("%s allowed in a bulk: %v", name, vs)
			}
		}
	}
	for _, name := range []string{"X-Tag", "Received", "X-MC", "X Y", "From"} {
		if _, is := ProviderHeader(name); is {
			t.Errorf("%s may be allowed", name)
		}
	}
}

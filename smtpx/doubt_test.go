package smtpx_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestNoDoubtIsAccepted: an answer that is not clearly one decides nobody. Before the dot the
// mail is not tried and no content leaves; after it the outcome is unknown. The connection is
// finished, because what stands behind such an answer belongs to nobody.
func TestNoDoubtIsAccepted(t *testing.T) {
	for name, a := range map[string]smtpxtest.Action{
		"letter in the code":       {Reply: "2x0 ok\r\n"},
		"no code":                  {Reply: "ok\r\n"},
		"empty line":               {Reply: "\r\n"},
		"no space":                 {Reply: "250ok\r\n"},
		"tab":                      {Reply: "250\tok\r\n"},
		"code 1yz":                 {Reply: "150 ok\r\n"},
		"code 6yz":                 {Reply: "650 ok\r\n"},
		"four digits":              {Reply: "2500 ok\r\n"},
		"other protocol":           {Reply: "HTTP/1.1 400 Bad Request\r\n\r\n"},
		"binary":                   {Reply: "\x16\x03\x01\x00\xff\n"},
		"continued by another":     {Reply: "250-a\r\n550 b\r\n"},
		"continued by another, 2":  {Reply: "550-a\r\n250 b\r\n"},
		"continued by 2yz":         {Reply: "250-a\r\n251 b\r\n"},
		"continued by no code":     {Reply: "250-a\r\nb\r\n250 c\r\n"},
		"continued for ever":       {Reply: "250-a\r\n", Hang: true},
		"continued and closed":     {Reply: "250-a\r\n", Close: true},
		"cut":                      {Reply: "250 o", Close: true},
		"cut before the line feed": {Reply: "250 ok\r", Close: true},
		"long line":                {Reply: "250 " + strings.Repeat("x", 5000) + "\r\n"},
		"long reply":               {Reply: strings.Repeat("250-"+strings.Repeat("x", 500)+"\r\n", 140) + "250 ok\r\n"},
		"dripping":                 {Reply: strings.Repeat("x", 100) + "\r\n", Drip: true},
	} {
		t.Run(name, func(t *testing.T) {
			modes(t, func(t *testing.T, ext []string) {
				for _, at := range []struct {
					verb string
					nth  int
					want string // "" = there is no session
				}{{"CONNECT", 1, ""}, {"EHLO", 1, ""}, {"MAIL", 1, "nnn"}, {"RCPT", 1, "nnn"}, {"RCPT", 3, "nnn"}, {"DATA", 1, "nnn"}, {"DOT", 1, "UUU"}} {
					t.Run(at.verb, func(t *testing.T) {
						t.Parallel()
						srv := (&smtpxtest.Server{On: on(at.verb, at.nth, a), Extensions: ext}).Start(t)
						begin := time.Now()
						s, err := new(smtpx.Dialer).Dial(context.Background(), relay(srv))
						if at.want == "" {
							if err == nil {
								t.Errorf("a session after such a %s", at.verb)
								_ = s.Close()
							}
							return
						}
						if err != nil {
							t.Fatal(err)
						}
						defer s.Close()
						o := s.Send(context.Background(), tx(3))
						if statuses(o) != at.want || s.Usable() || o.Err == nil || o.DotSent != (at.verb == "DOT") {
							t.Errorf("outcome %s, want %s; usable %v, %+v", statuses(o), at.want, s.Usable(), o)
						}
						if at.verb != "DOT" && len(srv.Mails()) != 0 {
							t.Errorf("content left: %v", srv.Mails())
						}
						if took := time.Since(begin); took > 5*time.Second {
							t.Errorf("took %v", took)
						}
					})
				}
			})
		})
	}
}

// TestAnswerOfAnotherClass: a good reply that is no answer to what was asked.
func TestAnswerOfAnotherClass(t *testing.T) {
	for _, c := range []struct{ verb, reply, allowed string }{
		{"CONNECT", "250 ok", ""}, {"CONNECT", "354 go", ""}, {"EHLO", "354 go", ""}, {"EHLO", "220 ok", ""},
		{"MAIL", "334 ?", "n"}, {"RCPT", "334 ?", "n"}, {"DATA", "250 ok", "n"}, {"DATA", "220 ok", "n"}, {"DOT", "354 go", "U"}, {"DOT", "334 ?", "U"},
	} {
		t.Run(c.verb+" "+c.reply, func(t *testing.T) {
			modes(t, func(t *testing.T, ext []string) {
				t.Parallel()
				srv := (&smtpxtest.Server{On: on(c.verb, 1, smtpxtest.Action{Reply: c.reply + "\r\n", Refuse: true}), Extensions: ext}).Start(t)
				s, err := new(smtpx.Dialer).Dial(context.Background(), relay(srv))
				if c.allowed == "" {
					if err == nil {
						t.Error("a session")
						_ = s.Close()
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				o := s.Send(context.Background(), tx(1))
				if strings.Trim(statuses(o), c.allowed) != "" {
					t.Errorf("outcome %s, want one of %s: %+v", statuses(o), c.allowed, o)
				}
			})
		})
	}
}

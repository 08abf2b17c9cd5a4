package engine_test

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// refusal is one case: how the relay answers MAIL, each RCPT, DATA and the dot ('2' takes, '4'
// and '5' refuse).
type refusal struct {
	mail, data, dot byte
	rcpt            string
}

// refusals is the matrix of FAULTS.md F8: phases, codes, 1 to 500 recipients of which the
// first, the last, every third, all, or a mixture is refused.
func refusals() []refusal {
	var all []refusal
	for _, n := range []int{1, 2, 100, 500} {
		ok := strings.Repeat("2", n)
		for _, code := range []byte{'4', '5'} {
			all = append(all, refusal{code, '2', '2', ok}, refusal{'2', code, '2', ok}, refusal{'2', '2', code, ok})
			patterns := map[string]func(i int) bool{
				"first": func(i int) bool { return i == 0 }, "last": func(i int) bool { return i == n-1 },
				"third": func(i int) bool { return i%3 == 0 }, "all": func(int) bool { return true }, "hundreds": func(i int) bool { return i/100%2 == 0 },
			}
			for _, refuses := range patterns {
				rcpt := []byte(ok)
				mixed := []byte(ok)
				for i := range rcpt {
					if refuses(i) {
						rcpt[i] = code
						mixed[i] = "45"[i%2]
					}
				}
				for _, dot := range []byte{'2', '4', '5'} {
					all = append(all, refusal{'2', '2', dot, string(rcpt)})
				}
				all = append(all, refusal{'2', '2', '2', string(mixed)}, refusal{'2', code, '2', string(mixed)})
			}
		}
	}
	return all
}

// want is what becomes of each recipient: RFC 5321 in 100 recipients a transaction.
func (c refusal) want() string {
	word := map[byte]byte{'2': 'a', '4': 'd', '5': 'r'}
	var b strings.Builder
	for chunk := range slices.Chunk([]byte(c.rcpt), 100) {
		rest := byte('2') // of those that RCPT takes
		for _, x := range []byte{c.mail, c.data, c.dot} {
			if x != '2' {
				rest = x
				break
			}
		}
		for _, r := range chunk {
			switch {
			case c.mail != '2':
				b.WriteByte(word[c.mail])
			case r != '2':
				b.WriteByte(word[r])
			default:
				b.WriteByte(word[rest])
			}
		}
	}
	return b.String()
}

var scriptOf = regexp.MustCompile(`<(\d)(\d)(\d)[.]`)

// scripted answers by what the addresses say.
func scripted() func(smtpxtest.Command) *smtpxtest.Action {
	var mu sync.Mutex
	by := map[int][]string{} // connection: script of the transaction
	reply := func(code byte) *smtpxtest.Action {
		if code == '2' {
			return nil
		}
		return &smtpxtest.Action{Reply: fmt.Sprintf("%c50 %c.6.0 refused by script\r\n", code, code)}
	}
	return func(c smtpxtest.Command) *smtpxtest.Action {
		mu.Lock()
		defer mu.Unlock()
		switch c.Verb {
		case "MAIL":
			by[c.Conn] = scriptOf.FindStringSubmatch(c.Arg)
			if code := by[c.Conn][1][0]; code != '5' {
				return reply(code)
			}
			// Other refusals of MAIL are about the mail server, which they suspend:
			// TestReplyAboutTheServer in server/e2e.
			return &smtpxtest.Action{Reply: "552 5.3.4 refused by script\r\n"}
		case "RCPT":
			_, code, _ := strings.Cut(c.Arg, "<")
			return reply(code[0])
		case "DATA":
			return reply(by[c.Conn][2][0])
		case "DOT":
			return reply(by[c.Conn][3][0])
		}
		return nil
	}
}

// TestRefusals: the outcome of every recipient is the relay's answer to it, with pipelining and
// without, whatever else is on the wire, and nobody gets a mail that the relay refused. One bad
// address never stops the others.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, ext := range map[string][]string{"pipelined": nil, "lockstep": {"8BITMIME", "ENHANCEDSTATUSCODES"}} {
		t.Run(name, func(t *testing.T) {
			relay := (&smtpxtest.Server{On: scripted(), Extensions: ext}).Start(t)
			r := newRig(t, storetest.SQLiteDSN(t), nil)
			s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 4})
			cases := refusals()
			ms := make([]*store.NewMail, len(cases))
			for i, c := range cases {
				var to []string
				for k := range len(c.rcpt) {
					to = append(to, fmt.Sprintf("%c-%d@y.example", c.rcpt[k], k))
				}
				ms[i] = newMail(s, store.KindBulk, to...)
				ms[i].From = fmt.Sprintf("%c%c%c.%d@x.example", c.mail, c.data, c.dot, i)
			}
			r.queue(s, ms...)
			// On a busy machine a pass may end early, and gives back what it has not tried.
			until(t, "every mail was tried", func() bool {
				r.batch("")
				return !slices.ContainsFunc(ms, func(m *store.NewMail) bool { return statuses(r.mail(m.ID)) == "" })
			})
			wrong := 0
			for i, c := range cases {
				if got := statuses(r.mail(ms[i].ID)); got != c.want() {
					if wrong++; wrong < 5 {
						t.Errorf("mail %c data %c dot %c rcpt %.40s: %.40s, want %.40s", c.mail, c.data, c.dot, c.rcpt, got, c.want())
					}
				}
			}
			got := map[string]int{}
			for _, m := range relay.Mails() {
				_, id, _ := bytes.Cut(m.Data, []byte("<"))
				id, _, _ = bytes.Cut(id, []byte("@"))
				for _, to := range m.To {
					got[string(id)+" "+to]++
				}
			}
			for i, c := range cases {
				for k, x := range []byte(c.want()) {
					key := ms[i].ID.String() + " " + ms[i].Recipients[k].Mailbox
					n := 0
					if x == 'a' {
						n = 1
					}
					if got[key] != n {
						t.Errorf("%s got the mail %d times, want %d", key, got[key], n)
					}
				}
			}
			t.Logf("%d cases, %d wrong", len(cases), wrong)
		})
	}
}

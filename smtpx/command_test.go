package smtpx_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/maildispatch/maildispatch/smtpx"
)

// ear is a relay in memory that takes everything and keeps each line that it is sent, with its
// end. It is used by the session's goroutine alone.
type ear struct {
	ext     []string
	refuses bool // logins

	in, out bytes.Buffer
	lines   []string // commands
	answers []string // to challenges
	asked   int      // challenges of this login
	mech    string   // of the login that is under way
	body    bool
	mails   int
}

func (e *ear) Read(p []byte) (int, error) {
	if e.out.Len() == 0 {
		return 0, net.ErrClosed
	}
	return e.out.Read(p)
}

func (e *ear) Write(p []byte) (int, error) {
	e.in.Write(p)
	for {
		if e.body {
			i := bytes.Index(e.in.Bytes(), []byte("\r\n.\r\n"))
			if i < 0 {
				return len(p), nil
			}
			e.in.Next(i + 5)
			e.body = false
			e.mails++
			e.out.WriteString("250 2.0.0 ok\r\n")
			continue
		}
		i := bytes.IndexByte(e.in.Bytes(), '\n')
		if i < 0 {
			return len(p), nil
		}
		e.line(string(e.in.Next(i + 1)))
	}
}

func (e *ear) line(line string) {
	if e.mech != "" {
		e.answers = append(e.answers, line)
		e.challenge()
		return
	}
	e.lines = append(e.lines, line)
	verb, arg, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	switch verb {
	case "EHLO":
		e.out.WriteString("250-ear\r\n")
		for _, x := range e.ext {
			e.out.WriteString("250-" + x + "\r\n")
		}
		e.out.WriteString("250 HELP\r\n")
	case "AUTH":
		mech, initial, has := strings.Cut(arg, " ")
		e.mech, e.asked = mech, 0
		if has {
			e.answers = append(e.answers, initial+"\r\n")
			e.asked++
		}
		e.challenge()
	case "DATA":
		e.body = true
		e.out.WriteString("354 go on\r\n")
	default:
		e.out.WriteString("250 2.0.0 ok\r\n")
	}
}

// challenge says what follows the answers so far.
func (e *ear) challenge() {
	want := map[string]int{"PLAIN": 1, "LOGIN": 2, "CRAM-MD5": 1, "XOAUTH2": 1}[e.mech]
	if e.mech == "XOAUTH2" && e.refuses {
		want = 2 // the answer to the JSON of a refusal
	}
	if e.asked < want {
		e.asked++
		e.out.WriteString("334 " + base64.StdEncoding.EncodeToString([]byte("<1@ear>")) + "\r\n")
		return
	}
	e.mech = ""
	if e.refuses {
		e.out.WriteString("535 5.7.8 no\r\n")
		return
	}
	e.out.WriteString("235 2.7.0 ok\r\n")
}

func (e *ear) Close() error                     { return nil }
func (e *ear) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (e *ear) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 25} }
func (e *ear) SetDeadline(time.Time) error      { return nil }
func (e *ear) SetReadDeadline(time.Time) error  { return nil }
func (e *ear) SetWriteDeadline(time.Time) error { return nil }

// oneToken is a provider that gives one token.
type oneToken string

func (o oneToken) Token(context.Context) (smtpx.Token, error) {
	return smtpx.Token{Access: string(o), Fresh: true}, nil
}
func (oneToken) Refused(smtpx.Token) {}

// fields are the texts of a caller, or of who configures a mail server, that go into commands.
type fields struct {
	helo, user, password, from, to, bcc string
	// bit 0 PIPELINING, 1 SMTPUTF8, 2 a probe in the place of a send, 3 and 4 the mechanism, 5
	// logins are refused
	how byte
}

// checkCommands sends with the fields and looks at every line that left: each is one that the
// session has to say, with a field in its place and nowhere else.
func checkCommands(t testing.TB, f fields) (mails int) {
	t.Helper()
	e := &ear{refuses: f.how&32 != 0}
	mech := []string{"PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"}[f.how>>3&3]
	e.ext = []string{"8BITMIME", "SIZE 1000000", "AUTH " + mech}
	if f.how&1 != 0 {
		e.ext = append(e.ext, "PIPELINING")
	}
	if f.how&2 != 0 {
		e.ext = append(e.ext, "SMTPUTF8")
	}
	e.out.WriteString("220 ear\r\n")
	d := &smtpx.Dialer{Connect: func(context.Context, netip.AddrPort) (net.Conn, error) { return e, nil }}
	r := smtpx.Relay{Host: "127.0.0.1", Port: 25, Encryption: smtpx.EncryptionNone, AllowPlaintextAuth: true, HeloName: f.helo, Username: f.user, Password: f.password}
	if mech == "XOAUTH2" {
		r.Auth, r.Tokens = smtpx.AuthXOAUTH2, oneToken(f.password)
	}
	if f.how&4 != 0 {
		smtpx.Probe(context.Background(), d, r, smtpx.ProbeOptions{From: f.from, Recipient: f.to})
	} else if s, err := d.Dial(context.Background(), r); err == nil {
		for range 2 {
			s.Send(context.Background(), &smtpx.Transaction{From: f.from, To: []string{f.to, f.bcc}, Raw: []byte(raw)})
		}
		_ = s.Close()
	}
	envelope := []string{f.from, f.to, f.bcc}
	wire, _ := smtpx.HeloName(f.helo)
	for _, l := range append(slices.Clone(e.lines), e.answers...) {
		text, ended := strings.CutSuffix(l, "\r\n")
		if !ended || strings.ContainsAny(text, "\r\n\x00") || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) || !utf8.ValidString(text) {
			t.Fatalf("%+v: %q left", f, l)
		}
	}
	for i, l := range e.lines {
		l = strings.TrimSuffix(l, "\r\n")
		verb, arg, _ := strings.Cut(l, " ")
		good := false
		switch verb {
		case "EHLO":
			good = i == 0 && arg != "" && !strings.Contains(arg, " ") && (f.helo == "" || arg == wire || strings.HasPrefix(arg, "["))
		case "MAIL", "RCPT":
			path, params, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "FROM:<"), "TO:<"), ">")
			for _, p := range strings.Fields(params) {
				if verb == "RCPT" || p != "SMTPUTF8" && p != "BODY=8BITMIME" && !strings.HasPrefix(p, "SIZE=") {
					t.Fatalf("%+v: the parameter %q in %q", f, p, l)
				}
			}
			good = slices.Contains(envelope, path) && (params == "" || params[0] == ' ') && (f.how&2 != 0 || utf8.RuneCountInString(l) == len(l))
		case "DATA", "RSET", "QUIT":
			good = arg == ""
		case "AUTH":
			good = i == 1 && strings.HasPrefix(arg, mech)
		}
		if !good {
			t.Fatalf("%+v: %q left", f, l)
		}
	}
	var said []string
	for _, a := range e.answers {
		b, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(a, "\r\n"))
		if err != nil {
			t.Fatalf("%+v: %q is no answer to a challenge", f, a)
		}
		said = append(said, string(b))
	}
	want := map[string][]string{"PLAIN": {"\x00" + f.user + "\x00" + f.password}, "LOGIN": {f.user, f.password}, "XOAUTH2": {"user=" + f.user + "\x01auth=Bearer " + f.password + "\x01\x01", ""}}[mech]
	if mech == "CRAM-MD5" && len(said) > 0 && !strings.HasPrefix(said[0], f.user+" ") || mech != "CRAM-MD5" && len(said) > 0 && !slices.Equal(said, want[:min(len(want), len(said))]) {
		t.Fatalf("%+v: the login says %q", f, said)
	}
	return e.mails
}

// hostileFields are texts that a command could end at, or begin behind.
var hostileFields = []string{"", "x", "x\r\nRSET", "x\nRSET", "x\rRSET", "x\x00", "x>\r\nRCPT TO:<v@bank.example>\r\nDATA\r\n", "fe80::1%x\r\nQUIT", "[IPv6:::1%\r\nQUIT]", "x y", "x\ty", "é", "é\u2028y", "\xff\r\n",
	"a@y.example", "a@y.example> NOTIFY=NEVER", "josé@y.example", "\"a b\"@y.example", "a@y.example\r\n", "\x01auth=Bearer x\x01\x01", strings.Repeat("x", 13000), "\x7f", "<a@y.example>", "a@[127.0.0.1]", "::1", "bücher.example"}

// TestCommandsOfHostileFields puts each hostile text into each field, alone and together with
// others, in many dialogues.
func TestCommandsOfHostileFields(t *testing.T) {
	good := fields{"client.example", "u", "p", "a@x.example", "b@y.example", "c@y.example", 0}
	for how := range byte(64) {
		good.how = how
		mails := checkCommands(t, good)
		if sends := how&4 == 0 && how&32 == 0; sends != (mails == 2) {
			t.Errorf("dialogue %06b: %d mails left", how, mails)
		}
		for i, bad := range hostileFields {
			if (i+int(how))%4 != 0 {
				continue // each meets sixteen dialogues
			}
			for field := range 7 {
				f := good
				for k, p := range []*string{&f.helo, &f.user, &f.password, &f.from, &f.to, &f.bcc} {
					if k == field || field == 6 {
						*p = bad
					}
				}
				if field == 6 {
					f.to = hostileFields[(i+1)%len(hostileFields)]
				}
				checkCommands(t, f)
			}
		}
	}
}

// FuzzCommands: no field of a caller, or of who configures a mail server, ends a command,
// begins one, or is anywhere but in its place.
func FuzzCommands(f *testing.F) {
	for i, bad := range hostileFields {
		f.Add(bad, "u", "p", "a@x.example", "b@y.example", "c@y.example", byte(i))
		f.Add("x.example", bad, bad, "a@x.example", "b@y.example", "c@y.example", byte(i<<3))
		f.Add("x.example", "u", "p", bad, "b@y.example", bad, byte(i))
	}
	f.Fuzz(func(t *testing.T, helo, user, password, from, to, bcc string, how byte) {
		checkCommands(t, fields{helo, user, password, from, to, bcc, how})
	})
}

package smtpxtest

import (
	"crypto/hmac"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
)

func between(arg string) string {
	_, r, _ := strings.Cut(arg, "<")
	r, _, _ = strings.Cut(r, ">")
	return r
}

func (x *conn) ehlo() string {
	ext := x.s.Extensions
	if ext == nil {
		ext = []string{"PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "SIZE 10485760"}
	}
	ext = slices.Clone(ext)
	if x.s.TLS != nil && !x.s.Implicit && !x.tls && !slices.ContainsFunc(ext, func(e string) bool { return strings.EqualFold(e, "STARTTLS") || e == "-STARTTLS" }) {
		ext = append(ext, "STARTTLS")
	}
	if x.s.Username != "" && !slices.ContainsFunc(ext, func(e string) bool { return strings.HasPrefix(strings.ToUpper(e), "AUTH") }) {
		m := x.s.Mechanisms
		if m == nil {
			m = []string{"PLAIN", "LOGIN", "CRAM-MD5"}
		}
		ext = append(ext, "AUTH "+strings.Join(m, " "))
	}
	out := "250-smtpxtest\r\n"
	for _, e := range ext {
		if !strings.HasPrefix(e, "-") {
			out += "250-" + e + "\r\n"
		}
	}
	return out + "250 HELP\r\n"
}

// auth runs PLAIN, LOGIN, CRAM-MD5 and XOAUTH2.
func (x *conn) auth(cmd Command) bool {
	if x.s.On != nil {
		if a := x.s.On(Command{Verb: "AUTH", Arg: cmd.Arg, Conn: x.n, Nth: x.nth["AUTH"] + 1}); a != nil {
			return x.answer(cmd, "")
		}
	}
	ask := func(prompt string) (string, bool) {
		x.out.WriteString("334 " + base64.StdEncoding.EncodeToString([]byte(prompt)) + "\r\n")
		if !x.flush() {
			return "", false
		}
		l, err := x.br.ReadString('\n')
		x.s.mu.Lock()
		x.s.lines = append(x.s.lines, strings.TrimRight(l, "\r\n"))
		x.s.mu.Unlock()
		b, derr := base64.StdEncoding.DecodeString(strings.TrimRight(l, "\r\n"))
		return string(b), err == nil && derr == nil
	}
	mech, initial, _ := strings.Cut(cmd.Arg, " ")
	good := false
	switch strings.ToUpper(mech) {
	case "PLAIN":
		b, _ := base64.StdEncoding.DecodeString(initial)
		response := string(b)
		if initial == "" {
			var ok bool
			if response, ok = ask(""); !ok {
				return false
			}
		}
		good = response == "\x00"+x.s.Username+"\x00"+x.s.Password
	case "LOGIN":
		if initial != "" && x.s.StrictLogin {
			x.out.WriteString("535 5.7.8 no initial response here\r\n")
			return true
		}
		up, pp := "Username:", "Password:"
		if x.s.LowerPrompts {
			up, pp = "username:", "password:"
		}
		user, ok := ask(up)
		if !ok {
			return false
		}
		pass, ok := ask(pp)
		if !ok {
			return false
		}
		good = user == x.s.Username && pass == x.s.Password
	case "CRAM-MD5":
		const challenge = "<1@smtpxtest>"
		got, ok := ask(challenge)
		if !ok {
			return false
		}
		d := hmac.New(md5.New, []byte(x.s.Password))
		d.Write([]byte(challenge))
		good = got == fmt.Sprintf("%s %x", x.s.Username, d.Sum(nil))
	}
	if strings.EqualFold(mech, "XOAUTH2") {
		if initial == "" {
			var ok bool
			if initial, ok = ask(""); !ok {
				return false
			}
		} else if b, err := base64.StdEncoding.DecodeString(initial); err == nil {
			initial = string(b)
		}
		good = initial == "user="+x.s.Username+"\x01auth=Bearer "+x.s.Password+"\x01\x01"
		if !good && x.s.Refusal != "" {
			if said, ok := ask(x.s.Refusal); !ok || said != "" {
				return false // the answer to it is an empty line
			}
		}
	}
	if good {
		x.out.WriteString("235 2.7.0 welcome\r\n")
	} else {
		x.out.WriteString("535 5.7.8 Username and password not accepted\r\n")
	}
	return true
}

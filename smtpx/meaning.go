package smtpx

import "strings"

// About says whom a reply speaks of.
type About string

const (
	AboutNobody  About = ""        // there was no reply, or it is a success
	AboutSession About = "session" // this connection, or how many and how fast they are
	// the mail server as it is configured: login, sender, account, limits
	AboutServer    About = "server"
	AboutMail      About = "mail"      // this mail
	AboutRecipient About = "recipient" // this recipient
)

// Action is what a reply asks for.
type Action string

const (
	ActNothing Action = ""
	// fewer connections; it costs no mail an attempt, and no mail is to blame
	ActSlower Action = "slower"
	// the mail server is in trouble for now: mails wait, it costs them no attempt
	ActWait Action = "wait"
	// one fresh login; if that hears the same, mails wait and the mail server is suspended with
	// the words
	ActSuspend Action = "suspend"
	// this way to log in does not work: try the next on offer
	ActNextMechanism Action = "next mechanism"
	// the recipient goes into the next transaction at once, at no cost
	ActSplit  Action = "split"
	ActDefer  Action = "defer"  // try again later; the attempt counts
	ActRefuse Action = "refuse" // never try again
)

// Meaning is what a reply means.
type Meaning struct {
	About  About
	Action Action
	Slower bool // fewer connections would help besides
}

// Said is a reply and where it was given.
type Said struct {
	Phase Phase
	Reply Reply
	// Behind says that an earlier recipient of the transaction was accepted.
	Behind bool
}

// meaning is a row of the table. The first row that fits holds.
type meaning struct {
	codes string // "421", "4" for every 4yz, several with blanks; "" = any
	// "5.7.57", "*.5.3" in class 4 and 5, a prefix with a final dot ("4.7."); "" = any
	enhanced string
	phases   string // "" = any
	words    string // one of these, set apart by "|", in the text in any case; "" = any
	behind   bool   // an earlier recipient was accepted
	is       Meaning
}

const (
	opening  = "greeting ehlo"
	envelope = "mail rcpt data"
	sending  = "mail rcpt data dot"
)

// meanings is who a reply is about and what to do, as one table. RFC 5321 4.2 gives the codes,
// RFC 3463 and 5248 the enhanced ones, RFC 4954 those of logins. Words stand only where the
// codes of real servers do not tell.
var meanings = []meaning{
	// The session.
	{codes: "421", phases: "starttls", is: Meaning{AboutServer, ActWait, false}},
	{codes: "421", phases: opening + " auth", is: Meaning{AboutServer, ActWait, true}},
	{codes: "421", is: Meaning{AboutSession, ActSlower, true}},
	{codes: "432", phases: sending, is: Meaning{AboutSession, ActSlower, true}},
	{codes: "4", phases: sending, words: "too many connections|too many concurrent|concurrent connection|too many sessions|connection limit", is: Meaning{AboutSession, ActSlower, true}},
	{codes: "4", phases: sending, words: "slow down|too fast|rate limit|rate exceeded|throttl", is: Meaning{AboutSession, ActSlower, true}},

	// Opening one.
	{codes: "500 502 503 504 534", phases: "auth", is: Meaning{AboutServer, ActNextMechanism, false}},
	{codes: "5", phases: "auth", is: Meaning{AboutServer, ActSuspend, false}},
	{codes: "5", phases: opening, is: Meaning{AboutServer, ActSuspend, false}},
	{phases: "starttls auth " + opening, is: Meaning{AboutServer, ActWait, false}},

	// The mail server: its login is gone, or its account is at its limit.
	{codes: "502 503 521 530", phases: envelope, is: Meaning{AboutServer, ActSuspend, false}},
	{codes: "5", enhanced: "5.7.57", phases: sending, is: Meaning{AboutServer, ActSuspend, false}},
	{codes: "554", phases: envelope, words: "too many connections|too many concurrent|concurrent connection|too many sessions|connection limit", is: Meaning{AboutServer, ActSuspend, true}},
	{codes: "4 5", phases: sending, words: "sending limit|sending quota|submission quota|submission limit|daily limit|hourly limit|message limit|messages per day|messages per hour|quota for sending",
		is: Meaning{AboutServer, ActSuspend, false}},

	// the login has no right on the sender's mailbox
	{codes: "4 5", phases: sending, words: "storedrv.submission|storedrv; mailbox logon|sendasdenied", is: Meaning{AboutServer, ActSuspend, false}},

	// The mail.
	{codes: "552", phases: "mail", is: Meaning{AboutMail, ActRefuse, false}},
	{codes: "5", enhanced: "5.3.4", phases: "mail", is: Meaning{AboutMail, ActRefuse, false}},
	{codes: "5", enhanced: "5.2.3", phases: "mail", is: Meaning{AboutMail, ActRefuse, false}},
	// needs SMTPUTF8
	{codes: "5", enhanced: "5.6.7", phases: "mail", is: Meaning{AboutMail, ActRefuse, false}},
	// the sender's address is the mail server's
	{codes: "5", phases: "mail", is: Meaning{AboutServer, ActSuspend, false}},
	{codes: "450 451 452", enhanced: "4.7.", phases: "mail data dot", is: Meaning{AboutMail, ActDefer, true}},
	{codes: "4", phases: "mail data dot", is: Meaning{AboutMail, ActDefer, false}},
	{codes: "5", phases: "data dot", is: Meaning{AboutMail, ActRefuse, false}},

	// A recipient.
	{codes: "450 451 452 552", enhanced: "*.5.3", phases: "rcpt", behind: true, is: Meaning{AboutSession, ActSplit, false}},
	{codes: "450 451 452 552", phases: "rcpt", words: "too many recipients", behind: true, is: Meaning{AboutSession, ActSplit, false}},
	// RFC 5321 4.5.3.1.10: as 452
	{codes: "552", enhanced: "*.5.3", phases: "rcpt", is: Meaning{AboutRecipient, ActDefer, false}},
	{codes: "552", phases: "rcpt", words: "too many recipients", is: Meaning{AboutRecipient, ActDefer, false}},
	{codes: "4", phases: "rcpt", is: Meaning{AboutRecipient, ActDefer, false}},
	{codes: "5", phases: "rcpt", is: Meaning{AboutRecipient, ActRefuse, false}},
}

// Means looks a reply up. It asks nobody and remembers nothing.
func Means(s Said) Meaning {
	if s.Reply.Code < 400 {
		return Meaning{}
	}
	for i := range meanings {
		if meanings[i].fits(s) {
			return meanings[i].is
		}
	}
	return Meaning{}
}

func (m *meaning) fits(s Said) bool {
	return (m.codes == "" || fitsCode(m.codes, s.Reply.Code)) && (m.phases == "" || hasWord(m.phases, string(s.Phase))) &&
		(!m.behind || s.Behind) && fitsEnhanced(m.enhanced, s.Reply.Enhanced) &&
		(m.words == "" || fitsWords(m.words, strings.ToLower(s.Reply.Text)))
}

// fitsCode reports whether a code is in a list such as "450 451 5", where 5 is every 5yz.
func fitsCode(codes string, code int) bool {
	for c := range strings.FieldsSeq(codes) {
		n := 0
		for i := range len(c) {
			n = n*10 + int(c[i]-'0')
		}
		if n == code || len(c) == 1 && n == code/100 {
			return true
		}
	}
	return false
}

// fitsEnhanced reports whether an enhanced code fits a pattern: itself, "*.5.3" for any class,
// "4.7." for any detail, "" for any.
func fitsEnhanced(pattern, enhanced string) bool {
	if class, rest, ok := strings.Cut(pattern, "."); ok && class == "*" {
		_, enhanced, _ = strings.Cut(enhanced, ".")
		pattern = rest
	}
	if strings.HasSuffix(pattern, ".") {
		return strings.HasPrefix(enhanced, pattern)
	}
	return pattern == "" || enhanced == pattern
}

// fitsWords reports whether one of the words, set apart by "|", is in a text in lower case. A
// "*" in them stands for up to maxGap octets of anything.
func fitsWords(words, text string) bool {
	for w := range strings.SplitSeq(words, "|") {
		if holds(text, w) {
			return true
		}
	}
	return false
}

// maxGap keeps the two halves of a pattern in one sentence.
const maxGap = 60

func holds(text, pattern string) bool {
	first, rest, more := strings.Cut(pattern, "*")
	for {
		i := strings.Index(text, first)
		if i < 0 {
			return false
		}
		text = text[i+len(first):]
		if !more || holds(text[:min(len(text), maxGap)], rest) {
			return true
		}
	}
}

func hasWord(list, word string) bool {
	for w := range strings.FieldsSeq(list) {
		if w == word {
			return true
		}
	}
	return false
}

// means fills in what the replies of an outcome mean. A reply to RCPT has its meaning already:
// that depends on who was accepted before it.
func (o Outcome) means() Outcome {
	for i := range o.Recipients {
		if r := &o.Recipients[i]; r.Means == (Meaning{}) {
			r.Means = Means(Said{Phase: r.Phase, Reply: r.Reply})
		}
	}
	return o
}

// aboutServer is the reply that nobody's mail gets through with on this session; none where
// somebody's did.
func (o Outcome) aboutServer() Reply {
	var why Reply
	for _, r := range o.Recipients {
		switch {
		case r.Status == StatusAccepted:
			return Reply{}
		case r.Means.Action == ActSuspend && why.Code == 0:
			why = r.Reply
		}
	}
	return why
}

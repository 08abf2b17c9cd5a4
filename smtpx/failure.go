package smtpx

import (
	"strconv"
	"strings"
)

// Failure is why a recipient does not have a mail, as a class that a person, or a program that
// keeps a list of addresses, can act on. It decides nothing: whether a mail is tried again
// follows from [Means].
type Failure string

const (
	FailNone Failure = "" // there is none
	// the address does not exist, is closed or suspended, or its domain takes no mail
	FailNoSuchMailbox Failure = "no_such_mailbox"
	FailMailboxFull   Failure = "mailbox_full"
	// the recipient, or their organisation, does not take this mail: a list of theirs,
	// greylisting, mail from outside not allowed
	FailRecipientPolicy Failure = "recipient_policy"
	// the sender's address or domain: not the account's, not verified, SPF, DKIM, DMARC
	FailSenderRefused Failure = "sender_refused"
	// the sending address or network: block lists, reverse DNS, complaints
	FailReputation Failure = "reputation"
	FailContent    Failure = "content" // spam, virus, attachment, form of the message
	FailSize       Failure = "size"
	// too many connections, mails or recipients; an account's quota
	FailRate Failure = "rate"
	FailAuth Failure = "auth" // the login: wrong, missing, or without the right to relay
	FailTLS  Failure = "tls"
	// the relay, or a server behind it, cannot be reached or is out of order
	FailUnreachable  Failure = "unreachable"
	FailExpired      Failure = "expired" // its time had passed before it could be delivered
	FailUnclassified Failure = "unclassified"
)

// failure is a row of the table of classes. The first row that fits holds.
type failure struct {
	codes, enhanced, phases, words string // as in meaning
	is                             Failure
}

// failures classifies replies. RFC 3463, 5248, 7372 and 7505 give the enhanced codes. Providers
// use them loosely, most of all *.7.1, so words that leave no doubt come before codes. A reply
// whose words and codes leave one is unclassified.
var failures = []failure{
	// The way to the relay, and what no relay said.
	{phases: "dns connect", is: FailUnreachable},
	{phases: "token", is: FailAuth},
	{phases: "tls", is: FailTLS},
	{codes: "538", is: FailTLS},
	{words: "starttls command first|starttls first|tls required|tls is required|requires tls|encryption required|over a tls connection|tls not available", is: FailTLS},
	{phases: "starttls", is: FailTLS},
	{phases: "auth", words: "sending rate|message quota|maximum credits", is: FailRate},
	{phases: "auth", is: FailAuth},

	// Time.
	{words: "message expired|queue.expired|in the queue too long|delivery expired|delivery time expired|retry timeout exceeded|retry time not reached", is: FailExpired},

	// Said of the recipient in the words of a login or of a list.
	{words: "resolver.rst.auth|greylist|graylist", is: FailRecipientPolicy},
	{words: "too many messages on the server|zuviele mails", is: FailMailboxFull},

	// Lists of senders. They come before what else the text says, since it often quotes an
	// address.
	{words: "spamhaus|spamcop|sorbs|dnsbl|barracudacentral|senderscore|invaluement|spamrl.com|hostkarma|junkemailfilter|cloudmark|csi.mimecast", is: FailReputation},
	{words: "blocklist|block list|blacklist|black list|black ip|blocked using|blocked by*bl|rbl reject|rbl deny|an rbl|the rbl|trend micro rbl|drbl|cdrbl|dt:rbl|dns black", is: FailReputation},
	{words: "listed at |listed by |address is listed|denyip|dnsbl-lookup|ip blocked|ip is rejected|bad ip|_is_blocked|(rtr:bl)|(bl)|sender blacklist", is: FailReputation},
	{words: "poor reputation|low reputation|bad reputation|ip reputation|sender reputation|reputation of the sending", is: FailReputation},
	{words: "banned sending ip|banned sender|adresse ip source bloquee|host blocked for|identified as spammer|you are sending spam|suspected spam sender|bloques par nos services", is: FailReputation},
	{words: "reverse dns|rdns|ptr record|pointer (ptr)|bad dns ptr|reverse hostname|cannot find your hostname|ip name lookup failed|regarding ptr|unverifyable sending ip", is: FailReputation},
	{words: "client host rejected|host network not allowed|may not be mail exchanger|use the smtp server of your isp|use the smtp relay at your service provider|open relay|insecure mail relay", is: FailReputation},
	{words: "user complaints|permanently deferred|tenant has exceeded|traffic not accepted from this ip|unusual rate of unsolicited|unusual amount of unsolicited|reject due to policy violations", is: FailReputation},
	{words: "ip has been*blocked|too many invalid recipients|not allowed to connect|access to submit messages*rejected|access to this mail system has been rejected|connections will not be accepted", is: FailReputation},

	// The login, where it is asked for in words.
	{words: "unauthenticated senders not allowed|smtp authentication in your mail client|client was not authenticated|client not authenticated|authentication required|authentication is required", is: FailAuth},
	{words: "not permitted to relay through this server without authentication|invalid credentials|sending for this account is disabled|too many login attempts|auth failed|authentication failed:*password", is: FailAuth},

	// The sender.
	{words: "dmarc| spf |spf check|spf record|bad spf|spf:|dkim|unauthenticated email|because the sender is unauthenticated|because it is unauthenticated|does not have authentication information|required authentication level|purported responsible", is: FailSenderRefused},
	{words: "sender address rejected|sender address blocked|domain of sender address|sender domain*not|not owned by user|unroutable sender|unresolvable rfc.5321|invalid sender|emetteur invalide|sender rejected|sender is rejected|sender refused", is: FailSenderRefused},
	{words: "anti-spoofing|mismatches client ip|mail from is mismatched|verify mailfrom|address is not verified|not allowed to send from|not authorized to send from|send as denied|sendasdenied|relaying disallowed as", is: FailSenderRefused},
	{words: "from: address|from: domain|blank from|provide a valid from|from domain not trusted|not in my domain|fake sender|sender is unvalidated|denies the sender|mail from*rejected for policy|mail sending denied|the sender address*is not a valid", is: FailSenderRefused},
	{enhanced: "*.1.7", is: FailSenderRefused},
	{enhanced: "*.1.8", is: FailSenderRefused},
	{enhanced: "*.7.20", is: FailSenderRefused},
	{enhanced: "*.7.23", is: FailSenderRefused},
	{enhanced: "*.7.26", is: FailSenderRefused},
	{enhanced: "*.7.509", is: FailSenderRefused},
	{enhanced: "*.7.25", is: FailReputation},

	// How much, and how fast.
	{codes: "432", is: FailRate},
	{words: "too many connections|too many concurrent|concurrent connection|too many sessions|too many active sessions|connection limit|connection rate|too frequent|thread limit|trop de connexions", is: FailRate},
	{words: "rate limit|rate exceeded|ratelimit|sending rate|submission rate|throttl|slow down|too fast|too quickly|at a rate that|frequency limited|unusual rate|excessive volume|sending activity", is: FailRate},
	{words: "too many recipients|too many messages|too many emails|too many mails|max number of messages|max message per connection|messages per session|out of allow rcpt|size per transaction exceeded", is: FailRate},
	{words: "sending limit|sending quota|submission quota|submission limit|daily limit|hourly limit|message limit|messages per day|messages per hour|message quota|quota for sending|relay limit exceeded|per hour|for the current period|maximum credits", is: FailRate},
	{enhanced: "*.5.3", is: FailRate},
	{enhanced: "*.4.5", codes: "550", is: FailRate},

	// The login, where only a right to relay is missing.
	{words: "relay access denied|relaying denied|relay not permitted|relaying not allowed|relay denied|denies relay|unable to relay|not configured to relay|unauthorized relay|allowed rcpthosts|not a gateway|local user only", is: FailAuth},
	{words: "authenticate|authentification|code d'authentification|password|credentials|auth failed|authentication failed", is: FailAuth},
	{codes: "530 535", is: FailAuth},
	{enhanced: "*.7.8", is: FailAuth},
	{enhanced: "5.7.57", is: FailAuth},

	// Too large. What is too large may be the mailbox.
	{words: "headers too large", is: FailContent},
	{words: "mailbox size limit", is: FailMailboxFull},
	{words: "databytes limit|too much mail data|exceeds administrative limit|message exceeds*bytes|maximum message size|max message size", is: FailSize},
	{words: "too large|size limit|recipsizelimit|message size|exceeds fixed maximum|length exceeds limit|message is too long|attachment is too long|too big|number of attachments|exceeded*message size", is: FailSize},
	{words: "larger than the current system limit or", is: FailMailboxFull},
	{words: "the server takes", phases: "mail data", is: FailSize},
	{enhanced: "*.3.4", is: FailSize},
	{enhanced: "*.2.3", is: FailSize},

	// The recipient's will.
	{words: "recipient preferences|user refused|rejected by recipients|rejected by this user|rejected by destination domain|resolver.rst|not in whitelist|is restricted|restricted by policy|has a policy that prohibited|:blocked)", is: FailRecipientPolicy},
	{words: "recipient address rejected: access denied|recipient address rejected: access", is: FailRecipientPolicy},

	// A full mailbox.
	{words: "mailbox full|mailbox is full|over quota|overquota|over storage|quota exceeded|exceeds quota|exceeded*quota|quota has been exceeded|disk quota|quota limit exceeded|out of storage space|storage limit", is: FailMailboxFull},
	{words: "exhausted allowed storage|speichervolumen|destinataire pleine|account is full|inbox is full|user is overquota", is: FailMailboxFull},
	{enhanced: "*.2.2", is: FailMailboxFull},

	// No such address.
	{words: "user*unknown|unknown user|unknown recipient|recipient*unknown|unknown address|addressee unknown|unknown or illegal|unknown local part|user*not found|mailbox*not found|recipient*not found|account*not found|nicht bekannt", is: FailNoSuchMailbox},
	{words: "no such user|no such mailbox|no such recipient|no such person|no mailbox|user*does not exist|user*not exist|account*does not exist|mailbox does not exist|address does not exist|doesn't have a*account|not have an account|recipient address no longer", is: FailNoSuchMailbox},
	{words: "invalid recipient|not a valid recipient|no valid recipients (|invalid mailbox|wrong recipient|not a member of|recipient*cannot be verified|address lookup|not our user|not our customer|not a registered|user path no exist|destinataire invalide", is: FailNoSuchMailbox},
	{words: "account*disabled|account*inactive|inactive user|user is inactive|is locked|temporary locked|user suspended|user disabled|account closed|account inactive|not activated|inactive email|mailbox is frozen|mailbox is disabled|now disabled with|disabled recipient|no longer valid|no longer on server|account is blocked|boite*archivee|compte*bloque", is: FailNoSuchMailbox},
	{words: "unrouteable address|unroutable address|host unknown|invalid host name|domain name not found|domain not found|host or domain name not found|host does not accept mail|mailbox unavailable (|action not taken: mailbox unavailable", codes: "5", is: FailNoSuchMailbox},
	{enhanced: "*.1.1", is: FailNoSuchMailbox},
	{enhanced: "*.1.2", is: FailNoSuchMailbox},
	{enhanced: "*.1.3", is: FailNoSuchMailbox},
	{enhanced: "*.1.6", is: FailNoSuchMailbox},
	{enhanced: "*.1.10", is: FailNoSuchMailbox},
	{enhanced: "5.1.351", is: FailNoSuchMailbox},
	{enhanced: "5.2.1", is: FailNoSuchMailbox},
	{enhanced: "5.4.4", is: FailNoSuchMailbox},
	{enhanced: "5.4.1", words: "recipient address rejected", is: FailNoSuchMailbox},

	// The message.
	{words: "spam|virus|junk mail|junk-mail|unsolicited|content rejected|content reject|mail content|because its content|content judged|security issue|illegal attachment|suspicious due to the nature|suspect content| ube|message filtered|matches a profile", is: FailContent},
	{words: "malformed|rfc 5322|message-id|invalid header|header error|in from: header|duplicate header|disallowed header|in message header|data in message header|mime error|mime/reject|invalid structure|invalid data in message", is: FailContent},
	{words: "not accepted for policy reasons|email policy violation|message rejected due to local policy|rejected due to security policies|mail data refused|dm email", is: FailContent},
	{enhanced: "*.6.", is: FailContent},

	// Out of order, or out of reach.
	{words: "timeout|timed out|connection refused|connection expired|unable to contact|not reachable|read error|i/o error|loop|too many hops|exceeded 50 hops|points back to|upstream error|name server", is: FailUnreachable},
	{words: "server busy|busy|server error|service failure|service not available|service unavailable|service currently unavailable|service temporarily unavailable|temporarily unavailable|temporarily not available|not accepting connections|too busy", is: FailUnreachable},
	{words: "insufficient|system storage|disk space|local problem|local error|system problem|system error|config error|configuration error|try again later, closing|unable to process connection", is: FailUnreachable},
	{codes: "421 451 452", enhanced: "4.3.", is: FailUnreachable},
	{enhanced: "*.4.", codes: "4", is: FailUnreachable},
	{codes: "5", phases: "greeting ehlo", is: FailReputation},
	{phases: "greeting ehlo", is: FailUnreachable},
	// a dialogue out of order says nothing about the sender
	{codes: "500 502 503 504", phases: "mail", is: FailUnclassified},
	{codes: "521", phases: "mail", is: FailUnreachable},
	{codes: "5", phases: "mail", is: FailSenderRefused},
}

// FailureOf classifies a reply. Without a code and words, the phase alone tells: whatever broke
// there was out of reach.
func FailureOf(s Said) Failure {
	if s.Reply.Code/100 == 2 {
		return FailNone
	}
	text := strings.ToLower(s.Reply.Text)
	for i := range failures {
		f := &failures[i]
		if (f.codes == "" || fitsCode(f.codes, s.Reply.Code)) && (f.phases == "" || hasWord(f.phases, string(s.Phase))) &&
			(f.enhanced == "" || fitsEnhanced(f.enhanced, s.Reply.Enhanced)) && (f.words == "" || fitsWords(f.words, text)) {
			return f.is
		}
	}
	if s.Reply.Code == 0 && text == "" {
		return FailUnreachable
	}
	return FailUnclassified
}

// FailureIn classifies a fault that is known by its text alone: what [Error.Error] says, which
// stands in the breaker that the replicas share.
func FailureIn(text string) Failure {
	s := Said{Reply: Reply{Text: text}}
	text = strings.TrimPrefix(text, "throttled: ")
	for phase, words := range phaseText {
		if rest, ok := strings.CutPrefix(text, words+": "); ok {
			s.Phase, text = phase, rest
			break
		}
	}
	code, rest, _ := strings.Cut(text, " ")
	if n, err := strconv.Atoi(code); err == nil && n >= 400 && n < 600 {
		s.Reply = Reply{Code: n, Text: rest}
		if first, rest, _ := strings.Cut(rest, " "); isEnhanced(first, n) {
			s.Reply.Enhanced, s.Reply.Text = first, rest
		}
	}
	if s.Phase == "" && s.Reply.Code == 0 {
		return FailUnclassified
	}
	return FailureOf(s)
}

// advice is what a person can do about each class.
var advice = map[Failure]string{
	FailNoSuchMailbox:   "check the address with the recipient, and take it off the list if it is gone",
	FailMailboxFull:     "the recipient's mailbox is full: tell them another way, or send again later",
	FailRecipientPolicy: "the recipient's side decides whom it takes mail from: ask them to let this sender in",
	FailSenderRefused:   "check that the account may send with this From, and SPF, DKIM and DMARC of its domain",
	FailReputation:      "the sending address is on a block list or has a poor name: ask the mail server's operator to see to it (listing, reverse DNS, complaints)",
	FailContent:         "the message itself was refused: look at its links, attachments and headers, and send it in another form",
	FailSize:            "the message is too large for this recipient: send a smaller one, or a link",
	FailRate:            "too much at once, or a quota is used up: set limits on the mail server, or ask the provider for more",
	FailAuth:            "check user name, password and rights of the mail server's account, and try it with Test",
	FailTLS:             "check encryption and port of the mail server, and try it with Test",
	FailUnreachable:     "a server on the way is down or out of order: nothing to do here but to wait, or to ask its operator",
	FailExpired:         "the time it had was over: send it again if it still matters",
	FailUnclassified:    "the words of the mail server do not tell the kind of failure: read them in detail",
}

// hints are more exact where the words tell more. The first that fits holds.
var hints = []struct {
	is          Failure
	words, hint string
}{
	{FailRecipientPolicy, "greylist|graylist", "the recipient's server lets unknown senders wait (greylisting): it is tried again automatically"},
	{FailSenderRefused, "dmarc", "the domain of From does not pass DMARC: sign with DKIM for that domain, or send through a server that its SPF record names"},
	{FailSenderRefused, "spf", "the domain's SPF record does not name this mail server: add it"},
	{FailSenderRefused, "dkim", "the mail is not signed for the domain of From: set up DKIM for it"},
	{FailSenderRefused, "not owned by|not verified|verified sender", "verify the address with the provider, or use one that belongs to the account"},
	{FailReputation, "reverse dns|rdns|ptr|reverse hostname|find your hostname", "the sending address has no fitting reverse DNS (PTR) record: ask whoever runs the mail server"},
	{FailReputation, "spamhaus|spamcop|sorbs|dnsbl|barracuda|block list|blocklist|blacklist|blocked using|listed at", "the sending address is on a block list: the reply names it; ask the mail server's operator to have it taken off"},
	{FailRate, "too many recipients|out of allow rcpt", "the mail server takes fewer recipients at once: set limits.max_recipients_per_mail"},
	{FailRate, "connection|sessions|thread", "the mail server takes fewer connections: lower limits.max_connections"},
	{FailAuth, "relay", "the mail server relays only for those it knows: give the mail server a login, or use its submission port (587 or 465)"},
	{FailContent, "virus", "the message was taken for a virus: look at its attachments"},
	{FailContent, "spam|unsolicited|junk", "the message was taken for spam: look at its words and links"},
}

// Hint is what a person can do about a recipient that was refused in these words; "" for no
// failure.
func (f Failure) Hint(words string) string {
	words = strings.ToLower(words)
	for _, h := range hints {
		if h.is == f && fitsWords(h.words, words) {
			return h.hint
		}
	}
	return advice[f]
}

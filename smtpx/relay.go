package smtpx

import "time"

// Encryption says how the connection to a relay is secured.
type Encryption string

const (
	EncryptionNone Encryption = "none" // no TLS
	// TLS by STARTTLS, required: never falls back to plaintext
	EncryptionSTARTTLS Encryption = "starttls"
	EncryptionTLS      Encryption = "tls" // TLS from the first byte (port 465)
)

// Auth names the login mechanism. AuthAuto picks the best one the relay offers.
type Auth string

const (
	AuthAuto    Auth = ""
	AuthNone    Auth = "none"
	AuthPlain   Auth = "plain"
	AuthLogin   Auth = "login"
	AuthCRAMMD5 Auth = "cram-md5"
	// by access tokens of Relay.Tokens; never chosen by AuthAuto
	AuthXOAUTH2 Auth = "xoauth2"
)

// Relay is everything needed to open a session with one mail server.
type Relay struct {
	Host               string // name or IP literal; also the name the certificate must carry
	Port               int
	Encryption         Encryption
	Auth               Auth
	Username, Password string // empty Username = no login
	// with AuthXOAUTH2, in the place of Password; Username is the mailbox then
	Tokens Tokens
	// name given in EHLO; empty = the host's own name, or its address literal
	HeloName           string
	CAPEM              []byte // extra trusted roots; empty = the system's
	AllowPlaintextAuth bool   // permits a login without TLS
	Timeouts           Timeouts
}

// Timeouts are per-phase limits; a zero field takes its default. Minimums recommended by RFC
// 5321 4.5.3.2 are kept where a shorter wait could double a mail.
type Timeouts struct {
	Connect time.Duration // dial + TLS + greeting + EHLO + AUTH together; default 30s
	Command time.Duration // MAIL, RSET, QUIT; default 60s
	Rcpt    time.Duration // each RCPT flight; default 2m
	Data    time.Duration // DATA to 354; default 2m
	// each block of 64 KiB of the body, and all of it at 8 KiB/s or more; default 3m
	Block time.Duration
	Dot   time.Duration // the reply after the final dot; default 10m
}

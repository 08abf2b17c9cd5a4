package store

import (
	"encoding/json"
	"time"
)

// Scope limits a statement to what a caller may see. The zero Scope sees nothing.
type Scope struct {
	All   bool
	Teams []string // "" is the system
	// Only mails of this caller; "" = of all. It narrows what All and Teams let through.
	Caller string
}

// args are the scope as a statement takes it: everything, or the teams as a JSON list.
func (sc Scope) args() (all bool, teams string) {
	if len(sc.Teams) == 0 {
		return sc.All, "[]"
	}
	b, _ := json.Marshal(sc.Teams) // strings always can be
	return sc.All, string(b)
}

// Everything is the scope of the service itself and of people without a team restriction.
var Everything = Scope{All: true}

// ServerType says how a mail server takes mail.
type ServerType string

const (
	TypeSMTP      ServerType = "smtp"
	TypeLocalhost ServerType = "localhost"
)

// Mode says when a mail server's mail is sent.
type Mode string

const (
	ModePHP    Mode = "php"
	ModeDaemon Mode = "daemon"
)

// ServerStatus says whether a mail server may be chosen.
type ServerStatus string

const (
	ServerAvailable   ServerStatus = "available"
	ServerUnavailable ServerStatus = "unavailable"
)

// MailServer is a saved way to send mail. Name, Team and Type never change.
type MailServer struct {
	Name        string
	Team        string // "" = the whole system
	DisplayName string
	Type        ServerType
	SMTP        *SMTP  // nil exactly for TypeLocalhost
	From        string // "a@x" or "Name <a@x>"
	Mode        Mode
	Status      ServerStatus
	IsDefault   bool
	Limits      Limits
	Annotations map[string]string
	// names of headers for its provider that mails may bring
	AllowedHeaders []string
	DKIM           *DKIM // nil = mail is not signed; replaced as a whole
	// mail of every kind waits for a person when its outcome is unknown
	HoldUnknown bool
	PauseUntil  *time.Time // until then it takes mail and sends none
	Fallback    string     // mail goes on through it while this one cannot be used
	Version     int64      // grows by one with every change; the etag
	CreateTime  time.Time
	UpdateTime  time.Time
	DeleteTime  *time.Time

	RequestID   string // of the call that created it; "" = none
	Fingerprint []byte // of that call's content
}

// Paused reports whether the mail server takes mail and keeps it until PauseUntil.
func (m *MailServer) Paused(now time.Time) bool {
	return m.PauseUntil != nil && now.Before(*m.PauseUntil)
}

// SMTP is the login and the line of a TypeSMTP server.
type SMTP struct {
	Host               string
	Port               int
	Encryption         string // smtpx.Encryption's values
	Auth               string // smtpx.Auth's values, "" = auto
	Username           string
	SealedPassword     []byte // nil = none; opaque here
	HeloName           string
	CAPEM              string
	AllowPlaintextAuth bool
	Timeout            time.Duration // whole connect budget; 0 = default
	OAuth              *OAuth        // nil = the login is not by OAuth 2; replaced as a whole
}

// OAuth is where and as whom access tokens for a login are asked for.
type OAuth struct {
	ClientID string   `json:"client_id,omitempty"`
	TokenURL string   `json:"token_url,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	// how: oauth.Grant's values
	Grant string `json:"grant,omitempty"`
	// nil = none; opaque here
	SealedClientSecret []byte `json:"sealed_client_secret,omitempty"`
	// of a refresh token or a key; nil = none; opaque here
	SealedGrant []byte `json:"sealed_grant,omitempty"`
}

// public is the configuration without its secrets.
func (o *OAuth) public() *OAuth {
	if o == nil {
		return nil
	}
	p := *o
	p.SealedClientSecret, p.SealedGrant = nil, nil
	return &p
}

// SealedGrant is the sealed refresh token or key, nil if there is none.
func (m *MailServer) SealedGrant() []byte {
	if m.SMTP == nil || m.SMTP.OAuth == nil {
		return nil
	}
	return m.SMTP.OAuth.SealedGrant
}

// DKIM is by what key a mail server's mail is signed when it is accepted.
type DKIM struct {
	Domain   string `json:"domain"` // A-labels
	Selector string `json:"selector"`
	// of the key: base64, as its DNS record holds it
	PublicKey string `json:"public_key"`
	SealedKey []byte `json:"sealed_key,omitempty"` // opaque here
}

// public is the configuration without its secret.
func (d *DKIM) public() *DKIM {
	if d == nil {
		return nil
	}
	p := *d
	p.SealedKey = nil
	return &p
}

// Limits of one mail server; zero fields mean the service's defaults.
type Limits struct {
	MaxConnections     int32 `json:"max_connections,omitempty"`
	MailsPerConnection int32 `json:"mails_per_connection,omitempty"`
	MailsPerMinute     int32 `json:"mails_per_minute,omitempty"`
	MailsPerDay        int32 `json:"mails_per_day,omitempty"`
	MaxAttempts        int32 `json:"max_attempts,omitempty"`
	MaxMailBytes       int64 `json:"max_mail_bytes,omitempty"`
	// of one transaction
	MaxRecipientsPerMail int32 `json:"max_recipients_per_mail,omitempty"`
}

// ServerFilter narrows a listing; zero fields do not narrow.
type ServerFilter struct {
	Team        *string
	Mode        Mode
	Status      ServerStatus
	ShowDeleted bool
}

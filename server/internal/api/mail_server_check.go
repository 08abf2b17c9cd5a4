package api

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message"
)

var (
	serverSlug = regexp.MustCompile(`^[a-z][a-z0-9-]{1,62}$`)
	teamSlug   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	pairKey    = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,62}$`)
)

// line checks a one-line text of at most most characters.
func line(c *apierr.Check, field, s string, most int) {
	switch {
	case !utf8.ValidString(s):
		c.Bad(field, "is not valid UTF-8")
	case utf8.RuneCountInString(s) > most:
		c.Bad(field, "has more than %d characters", most)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }):
		c.Bad(field, "contains a control character")
	}
}

func checkTeam(c *apierr.Check, field, team string) {
	if team != "" && !teamSlug.MatchString(team) {
		c.Bad(field, "is not a team: [a-z0-9][a-z0-9-]{0,62}, or empty for the system")
	}
}

func checkServerName(c *apierr.Check, field, name string) {
	if !serverSlug.MatchString(name) {
		c.Bad(field, "is not a mail server name: [a-z][a-z0-9-]{1,62}")
	}
}

func checkPairs(c *apierr.Check, field string, m map[string]string) {
	if len(m) > 32 {
		c.Bad(field, "has more than 32 entries")
	}
	for k, v := range m {
		if !pairKey.MatchString(k) {
			c.Bad(field, "has a key that is not [a-z][a-z0-9_.-]{0,62}")
			continue
		}
		line(c, field+"["+k+"]", v, 256)
	}
}

func checkRequestID(c *apierr.Check, field, id string) {
	if len(id) > 64 || strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' }) {
		c.Bad(field, "is not 1 to 64 printable ASCII characters")
	}
}

// checkDuration checks a span that may be absent.
func checkDuration(c *apierr.Check, field string, d *durationpb.Duration, least, most time.Duration) {
	if d == nil {
		return
	}
	if d.CheckValid() != nil || d.AsDuration() < least || d.AsDuration() > most {
		c.Bad(field, "is not from %v to %v", least, most)
	}
}

// checkMailServer checks a whole configuration. prefix is "mail_server.".
func checkMailServer(c *apierr.Check, prefix string, m *pb.MailServer) {
	f := func(s string) string { return prefix + s }
	checkServerName(c, f("name"), m.Name)
	checkTeam(c, f("team"), m.Team)
	line(c, f("display_name"), m.DisplayName, 200)
	if typeOf[m.Type] == "" {
		c.Bad(f("type"), "is required: TYPE_SMTP or TYPE_LOCALHOST")
	}
	if modeOf[m.Mode] == "" {
		c.Bad(f("mode"), "is required: MODE_PHP or MODE_DAEMON")
	}
	if m.Status != pb.MailServer_STATUS_UNSPECIFIED && statusOf[m.Status] == "" {
		c.Bad(f("status"), "is not a status")
	}
	if m.From == "" {
		c.Bad(f("from"), "is required")
	} else if _, err := message.ParseAddress(m.From); err != nil {
		c.Bad(f("from"), "%v", err)
	}
	if t := m.PauseUntil; t != nil && (t.CheckValid() != nil || t.AsTime().Unix() <= 0) {
		c.Bad(f("pause_until"), "is not a time")
	}
	if m.Fallback != "" {
		checkServerName(c, f("fallback"), m.Fallback)
	}
	checkPairs(c, f("annotations"), m.Annotations)
	if len(m.AllowedHeaders) > 20 {
		c.Bad(f("allowed_headers"), "has more than 20 entries")
	}
	for i, h := range m.AllowedHeaders {
		if _, is := message.ProviderHeader(h); !is && i < 20 {
			c.Bad(f(fmt.Sprintf("allowed_headers[%d]", i)), "is not a header by which a provider is told what to do; others need no permission")
		}
	}
	checkDKIM(c, f("dkim."), m.Dkim)
	if l := m.Limits; l != nil {
		limit := func(name string, v, most int64) {
			if v < 0 || v > most {
				c.Bad(f("limits."+name), "is not from 0 to %d", most)
			}
		}
		limit("max_connections", int64(l.MaxConnections), 500)
		limit("mails_per_connection", int64(l.MailsPerConnection), 100000)
		limit("max_attempts", int64(l.MaxAttempts), 1000)
		limit("mails_per_minute", int64(l.MailsPerMinute), 1000000)
		limit("mails_per_day", int64(l.MailsPerDay), 100000000)
		limit("max_recipients_per_mail", int64(l.MaxRecipientsPerMail), smtpx.MaxRecipients)
		limit("max_mail_bytes", l.MaxMailBytes, message.MaxMailBytesCap)
	}
	switch {
	case m.Type == pb.MailServer_TYPE_LOCALHOST && m.Smtp != nil:
		c.Bad(f("smtp"), "a local-host mail server has no login and no line of its own")
	case m.Type == pb.MailServer_TYPE_SMTP && m.Smtp == nil:
		c.Bad(f("smtp"), "is required for TYPE_SMTP")
	case m.Smtp != nil:
		checkSMTP(c, f("smtp."), m.Smtp)
	}
}

func checkSMTP(c *apierr.Check, prefix string, x *pb.Smtp) {
	f := func(s string) string { return prefix + s }
	checkHost(c, f("host"), x.Host)
	if x.Port < 1 || x.Port > 65535 {
		c.Bad(f("port"), "is not from 1 to 65535")
	}
	if encryptionOf[x.Encryption] == "" {
		c.Bad(f("encryption"), "is required: ENCRYPTION_NONE, ENCRYPTION_STARTTLS or ENCRYPTION_TLS")
	}
	if _, ok := authOf[x.Auth]; !ok {
		c.Bad(f("auth"), "is not a login mechanism")
	}
	line(c, f("username"), x.Username, 255)
	if len(x.Password) > 1024 || !utf8.ValidString(x.Password) || strings.ContainsAny(x.Password, "\x00\r\n") {
		c.Bad(f("password"), "has more than 1024 octets, a line break or a NUL, or is not UTF-8")
	}
	if x.Password != "" && x.Username == "" {
		c.Bad(f("username"), "is required with a password")
	}
	if x.Auth == pb.Smtp_AUTH_NONE && x.Username != "" {
		c.Bad(f("auth"), "AUTH_NONE and a username contradict each other")
	}
	checkOAuth2(c, prefix, x)
	if (x.Username != "" || x.Auth == pb.Smtp_AUTH_XOAUTH2) && x.Encryption == pb.Smtp_ENCRYPTION_NONE && !x.GetAllowPlaintextAuth() {
		c.Bad(f("allow_plaintext_auth"), "a login without TLS shows the password or token to the network: use TLS, or set this")
	}
	if x.HeloName != "" {
		if _, err := smtpx.HeloName(x.HeloName); err != nil {
			c.Bad(f("helo_name"), "%v", err)
		}
	}
	if x.CaPem != "" && (len(x.CaPem) > 64<<10 || certificates(x.CaPem) == "") {
		c.Bad(f("ca_pem"), "holds no PEM certificate, or more than 64 KiB")
	}
	checkDuration(c, f("timeout"), x.Timeout, time.Second, 2*time.Minute)
}

// checkHost: an IP address or a host name, so that nothing else reaches a resolver or a
// certificate check.
func checkHost(c *apierr.Check, field, h string) {
	if h == "" {
		c.Bad(field, "is required")
	} else if _, err := smtpx.Host(h); err != nil {
		c.Bad(field, "%v", err)
	}
}

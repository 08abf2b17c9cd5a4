package api

import (
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/oauth"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

var (
	grantOf = map[pb.OAuth2_Grant]oauth.Grant{pb.OAuth2_GRANT_CLIENT_CREDENTIALS: oauth.ClientCredentials, pb.OAuth2_GRANT_REFRESH_TOKEN: oauth.RefreshToken,
		pb.OAuth2_GRANT_SERVICE_ACCOUNT: oauth.ServiceAccount}
	grantName = flip(grantOf)
)

// oauth2 is what callers see: everything but the secrets.
func oauth2(x *store.OAuth) *pb.OAuth2 {
	if x == nil {
		return nil
	}
	grant := grantName[oauth.Grant(x.Grant)]
	return &pb.OAuth2{ClientId: x.ClientID, HasClientSecret: len(x.SealedClientSecret) > 0, TokenUrl: x.TokenURL, Scopes: x.Scopes, Grant: grant,
		HasRefreshToken:      grant == pb.OAuth2_GRANT_REFRESH_TOKEN && len(x.SealedGrant) > 0,
		HasServiceAccountKey: grant == pb.OAuth2_GRANT_SERVICE_ACCOUNT && len(x.SealedGrant) > 0}
}

// storedOAuth is a checked configuration with the sealed secrets that were there.
func storedOAuth(x *pb.OAuth2, was *store.SMTP) *store.OAuth {
	if x == nil {
		return nil
	}
	o := &store.OAuth{ClientID: x.ClientId, TokenURL: x.TokenUrl, Scopes: x.Scopes, Grant: string(grantOf[x.Grant])}
	if was != nil && was.OAuth != nil {
		o.SealedClientSecret, o.SealedGrant = was.OAuth.SealedClientSecret, was.OAuth.SealedGrant
	}
	return o
}

// given are the secrets that a request holds.
func given(m *pb.MailServer) outbound.Secrets {
	o := m.GetSmtp().GetOauth2()
	return outbound.Secrets{Password: m.GetSmtp().GetPassword(), ClientSecret: o.GetClientSecret(), Grant: o.GetRefreshToken() + o.GetServiceAccountKey(), SigningKey: m.GetDkim().GetPrivateKey()}
}

// withoutSecrets takes the secrets out of a request.
func withoutSecrets(m *pb.MailServer) {
	if d := m.Dkim; d != nil {
		d.PrivateKey, d.DnsName, d.DnsValue = "", "", ""
	}
	x := m.Smtp
	if x == nil {
		return
	}
	x.Password, x.HasPassword = "", false
	if o := x.Oauth2; o != nil {
		o.ClientSecret, o.RefreshToken, o.ServiceAccountKey = "", "", ""
		o.HasClientSecret, o.HasRefreshToken, o.HasServiceAccountKey = false, false, false
	}
}

// seal seals what was given into s.
func (a *API) seal(s *store.MailServer, g outbound.Secrets) error {
	if err := a.sealKey(s, g.SigningKey); err != nil {
		return err
	}
	if s.SMTP == nil {
		return nil
	}
	if g.Password != "" {
		s.SMTP.SealedPassword = a.Outbound.Seal(s, g.Password)
	}
	if s.SMTP.OAuth != nil {
		a.Outbound.SealOAuth(s, g)
	}
	return nil
}

// dropSecrets takes those stored secrets out of s that the mask names, and all of them where
// they would go to another place, or in another way, than they were given for.
func dropSecrets(s, before *store.MailServer, mask *fieldmaskpb.FieldMask) {
	if s.DKIM != nil && names(mask, "dkim.private_key") {
		s.DKIM = &store.DKIM{Domain: s.DKIM.Domain, Selector: s.DKIM.Selector}
	}
	if s.SMTP == nil {
		return
	}
	same := sameLogin(before, s)
	if !same || names(mask, "smtp.password") {
		s.SMTP.SealedPassword = nil
	}
	o := s.SMTP.OAuth
	if o == nil {
		return
	}
	if !same || names(mask, "smtp.oauth2.client_secret") {
		o.SealedClientSecret = nil
	}
	if !same || names(mask, "smtp.oauth2.refresh_token") || names(mask, "smtp.oauth2.service_account_key") {
		o.SealedGrant = nil
	}
}

// sameOAuth: the secrets would be shown to the same provider, for the same client.
func sameOAuth(a, b *store.OAuth) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.TokenURL == b.TokenURL && a.ClientID == b.ClientID && a.Grant == b.Grant
}

const (
	maxScopes       = 20
	maxRefreshToken = 8192
	maxKey          = 16 << 10
)

func checkOAuth2(c *apierr.Check, prefix string, x *pb.Smtp) {
	o := x.Oauth2
	switch {
	case x.Auth == pb.Smtp_AUTH_XOAUTH2 && o == nil:
		c.Bad(prefix+"oauth2", "is required for AUTH_XOAUTH2")
	case x.Auth != pb.Smtp_AUTH_XOAUTH2 && o != nil:
		c.Bad(prefix+"auth", "is AUTH_XOAUTH2 with oauth2, and nothing else")
	}
	if o == nil {
		return
	}
	if x.Password != "" {
		c.Bad(prefix+"password", "is not used with oauth2: a password is never sent in the place of a token")
	}
	f := func(s string) string { return prefix + "oauth2." + s }
	line(c, f("client_id"), o.ClientId, 255)
	if o.ClientId == "" && o.Grant != pb.OAuth2_GRANT_SERVICE_ACCOUNT {
		c.Bad(f("client_id"), "is required")
	}
	if err := oauth.CheckURL(o.TokenUrl); err != nil {
		c.Bad(f("token_url"), "%v", err)
	}
	if len(o.Scopes) > maxScopes {
		c.Bad(f("scopes"), "has more than %d entries", maxScopes)
	} else {
		for _, s := range o.Scopes {
			// RFC 6749 3.3
			if s == "" || len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
				c.Bad(f("scopes"), "has one that is not 1 to 255 ASCII characters without blanks and quotes")
				break
			}
		}
	}
	if grantOf[o.Grant] == "" {
		c.Bad(f("grant"), "is required: GRANT_CLIENT_CREDENTIALS, GRANT_REFRESH_TOKEN or GRANT_SERVICE_ACCOUNT")
	}
	secret := func(field, s string, most int) {
		if len(s) > most || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			c.Bad(f(field), "has more than %d octets or a NUL, or is not UTF-8", most)
		}
	}
	secret("client_secret", o.ClientSecret, 1024)
	secret("refresh_token", o.RefreshToken, maxRefreshToken)
	secret("service_account_key", o.ServiceAccountKey, maxKey)
	if o.RefreshToken != "" && o.Grant != pb.OAuth2_GRANT_REFRESH_TOKEN {
		c.Bad(f("refresh_token"), "is for GRANT_REFRESH_TOKEN")
	}
	if o.ServiceAccountKey != "" && o.Grant != pb.OAuth2_GRANT_SERVICE_ACCOUNT {
		c.Bad(f("service_account_key"), "is for GRANT_SERVICE_ACCOUNT")
	} else if o.ServiceAccountKey != "" && len(o.ServiceAccountKey) <= maxKey {
		if err := oauth.CheckKey(o.ServiceAccountKey); err != nil {
			c.Bad(f("service_account_key"), "%v", err)
		}
	}
}

// oddUser warns of a login whose mailbox is not the sender's, which most providers refuse.
func oddUser(s *store.MailServer, config *pb.TestStep) {
	from, err := message.ParseAddress(s.From)
	if x := s.SMTP; x == nil || x.OAuth == nil || x.Username == "" || err != nil || strings.EqualFold(x.Username, from.Mailbox) {
		return
	}
	config.Outcome, config.Detail = pb.TestStep_OUTCOME_WARNING, "username is not the sender's mailbox"
	config.Hint = "providers want the mailbox that the mail is from: leave username out, unless this account may send as it"
}

package api

import (
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// The tables between the schema's numbers and the store's words.
var (
	typeOf       = map[pb.MailServer_Type]store.ServerType{pb.MailServer_TYPE_SMTP: store.TypeSMTP, pb.MailServer_TYPE_LOCALHOST: store.TypeLocalhost}
	statusOf     = map[pb.MailServer_Status]store.ServerStatus{pb.MailServer_STATUS_AVAILABLE: store.ServerAvailable, pb.MailServer_STATUS_UNAVAILABLE: store.ServerUnavailable}
	modeOf       = map[pb.Mode]store.Mode{pb.Mode_MODE_PHP: store.ModePHP, pb.Mode_MODE_DAEMON: store.ModeDaemon}
	encryptionOf = map[pb.Smtp_Encryption]smtpx.Encryption{pb.Smtp_ENCRYPTION_NONE: smtpx.EncryptionNone, pb.Smtp_ENCRYPTION_STARTTLS: smtpx.EncryptionSTARTTLS, pb.Smtp_ENCRYPTION_TLS: smtpx.EncryptionTLS}
	authOf       = map[pb.Smtp_Auth]smtpx.Auth{pb.Smtp_AUTH_UNSPECIFIED: smtpx.AuthAuto, pb.Smtp_AUTH_NONE: smtpx.AuthNone, pb.Smtp_AUTH_PLAIN: smtpx.AuthPlain, pb.Smtp_AUTH_LOGIN: smtpx.AuthLogin, pb.Smtp_AUTH_CRAM_MD5: smtpx.AuthCRAMMD5,
		pb.Smtp_AUTH_XOAUTH2: smtpx.AuthXOAUTH2}

	typeName       = flip(typeOf)
	statusName     = flip(statusOf)
	modeName       = flip(modeOf)
	encryptionName = flip(encryptionOf)
	authName       = flip(authOf)
)

func flip[K, V comparable](m map[K]V) map[V]K {
	r := make(map[V]K, len(m))
	for k, v := range m {
		r[v] = k
	}
	return r
}

func stamp(t *time.Time) *timestamppb.Timestamp {
	if t == nil || t.IsZero() {
		return nil
	}
	return timestamppb.New(*t)
}

func etag(version int64) string { return strconv.FormatInt(version, 10) }

// version reads an etag; ok is false for one that never was ours, which matches nothing.
func version(etag string) (int64, bool) {
	if etag == "" {
		return 0, true
	}
	v, err := strconv.ParseInt(etag, 10, 64)
	return v, err == nil && v > 0
}

// mailServer is what callers see: everything but the password.
func mailServer(m *store.MailServer) *pb.MailServer {
	if m == nil {
		return nil
	}
	def, hold := m.IsDefault, m.HoldUnknown
	out := &pb.MailServer{Name: m.Name, Team: m.Team, DisplayName: m.DisplayName, Type: typeName[m.Type], From: m.From, Mode: modeName[m.Mode],
		Status: statusName[m.Status], IsDefault: &def, HoldUnknown: &hold, Annotations: m.Annotations, Etag: etag(m.Version), CreateTime: stamp(&m.CreateTime),
		UpdateTime: stamp(&m.UpdateTime), DeleteTime: stamp(m.DeleteTime), PauseUntil: stamp(m.PauseUntil), Fallback: m.Fallback, AllowedHeaders: m.AllowedHeaders, Dkim: signing(m.DKIM)}
	if l := m.Limits; l != (store.Limits{}) {
		out.Limits = &pb.Limits{MaxConnections: l.MaxConnections, MailsPerConnection: l.MailsPerConnection, MailsPerMinute: l.MailsPerMinute,
			MailsPerDay: l.MailsPerDay, MaxAttempts: l.MaxAttempts, MaxMailBytes: l.MaxMailBytes,
			MaxRecipientsPerMail: l.MaxRecipientsPerMail}
	}
	if x := m.SMTP; x != nil {
		out.Smtp = &pb.Smtp{Host: x.Host, Port: int32(x.Port), Encryption: encryptionName[smtpx.Encryption(x.Encryption)], Auth: authName[smtpx.Auth(x.Auth)],
			Username: x.Username, HasPassword: len(x.SealedPassword) > 0, HeloName: x.HeloName, CaPem: x.CAPEM, Oauth2: oauth2(x.OAuth)}
		if x.AllowPlaintextAuth {
			out.Smtp.AllowPlaintextAuth = &x.AllowPlaintextAuth
		}
		if x.Timeout > 0 {
			out.Smtp.Timeout = durationpb.New(x.Timeout)
		}
	}
	return out
}

// fill writes a checked configuration into s. Name, team, type and the password are the
// caller's business.
func fill(s *store.MailServer, m *pb.MailServer) {
	s.DisplayName, s.From, s.Mode = m.DisplayName, m.From, modeOf[m.Mode]
	s.Status, s.IsDefault, s.Annotations = store.ServerAvailable, m.GetIsDefault(), m.Annotations
	if m.Status != pb.MailServer_STATUS_UNSPECIFIED {
		s.Status = statusOf[m.Status]
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.AllowedHeaders = nil
	for _, h := range m.AllowedHeaders {
		if canon, is := message.ProviderHeader(h); is && !slices.Contains(s.AllowedHeaders, canon) {
			s.AllowedHeaders = append(s.AllowedHeaders, canon)
		}
	}
	s.DKIM = storedDKIM(m.Dkim, s.DKIM)
	s.HoldUnknown, s.PauseUntil, s.Fallback = m.GetHoldUnknown(), nil, m.Fallback
	if m.PauseUntil != nil {
		at := m.PauseUntil.AsTime().Truncate(time.Microsecond)
		s.PauseUntil = &at
	}
	l := m.GetLimits()
	s.Limits.MaxConnections, s.Limits.MailsPerConnection = l.GetMaxConnections(), l.GetMailsPerConnection()
	s.Limits.MaxAttempts, s.Limits.MaxMailBytes = l.GetMaxAttempts(), l.GetMaxMailBytes()
	s.Limits.MaxRecipientsPerMail = l.GetMaxRecipientsPerMail()
	s.Limits.MailsPerMinute, s.Limits.MailsPerDay = l.GetMailsPerMinute(), l.GetMailsPerDay()
	if s.Type != store.TypeSMTP {
		s.SMTP = nil
		return
	}
	x := m.GetSmtp()
	was := s.SMTP
	var sealed []byte
	if was != nil {
		sealed = was.SealedPassword
	}
	// as A-labels: the form that is looked up and that a certificate carries
	host, err := smtpx.Host(x.GetHost())
	if err != nil {
		host = x.GetHost()
	}
	helo, err := smtpx.HeloName(x.GetHeloName())
	if err != nil {
		helo = x.GetHeloName()
	}
	s.SMTP = &store.SMTP{Host: host, Port: int(x.GetPort()), Encryption: string(encryptionOf[x.GetEncryption()]), Auth: string(authOf[x.GetAuth()]),
		Username: x.GetUsername(), SealedPassword: sealed, HeloName: helo, CAPEM: certificates(x.GetCaPem()), AllowPlaintextAuth: x.GetAllowPlaintextAuth(),
		Timeout: x.GetTimeout().AsDuration(), OAuth: storedOAuth(x.GetOauth2(), was)}
}

// sameLogin: the stored password may still be used, because it would go to the same place in
// the same way. The authorities belong to it: with one of their own, callers could take the
// host's place and be told the password.
func sameLogin(x, y *store.MailServer) bool {
	a, b := x.SMTP, y.SMTP
	return a != nil && b != nil && a.Host == b.Host && a.Port == b.Port && a.Encryption == b.Encryption && outbound.Username(x) == outbound.Username(y) &&
		a.Auth == b.Auth && certificates(a.CAPEM) == certificates(b.CAPEM) && sameOAuth(a.OAuth, b.OAuth)
}

// certificates keeps the certificates of a PEM text. Whatever else stands in it, such as a
// private key beside its certificate, is not stored. "" when there is none.
func certificates(text string) string {
	var out []byte
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" && len(block.Headers) == 0 {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
		}
	}
	return string(out)
}

// health is what all replicas know of a mail server; nil where nothing was sent through it as
// it is configured now.
func (v viewer) health(m *store.MailServer, b *store.Breaker) *pb.Health {
	if b == nil || b.Version != m.Version && b.SuccessAt.IsZero() && b.FailureAt.IsZero() {
		return nil
	}
	h := &pb.Health{State: pb.Health_STATE_OK, LastSuccessTime: stamp(&b.SuccessAt), LastFailureTime: stamp(&b.FailureAt), LastFailure: b.LastFailure}
	h.LastFailure, _ = v.fault(h.LastFailure)
	if b.Failures > 0 && b.Version == m.Version {
		h.State, h.SuspendedReason, h.RetryTime = pb.Health_STATE_SUSPENDED, b.Reason, stamp(&b.RetryAt)
		h.SuspendedReason, _ = v.fault(h.SuspendedReason)
	}
	return h
}

package clienttest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

type admin struct {
	maildispatchv1.UnimplementedMailServerAdminServer
	s *Server
}

func (a admin) ListMailServers(_ context.Context, req *maildispatchv1.ListMailServersRequest) (*maildispatchv1.ListMailServersResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	var all []*maildispatchv1.MailServer
	for _, name := range slices.Sorted(maps.Keys(a.s.servers)) {
		m := a.s.servers[name]
		if (req.Team == nil || *req.Team == m.Team) && (req.Mode == 0 || req.Mode == m.Mode) && (req.Status == 0 || req.Status == m.Status) &&
			(req.ShowDeleted || m.DeleteTime == nil) {
			all = append(all, m)
		}
	}
	all, next, err := page(all, req.GetPageSize(), req.GetPageToken())
	return &maildispatchv1.ListMailServersResponse{MailServers: all, NextPageToken: next}, err
}

func (a admin) GetMailServer(_ context.Context, req *maildispatchv1.GetMailServerRequest) (*maildispatchv1.GetMailServerResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	m, err := a.s.server(req.GetName())
	return &maildispatchv1.GetMailServerResponse{MailServer: proto.CloneOf(m)}, err
}

func (a admin) CreateMailServer(_ context.Context, req *maildispatchv1.CreateMailServerRequest) (*maildispatchv1.CreateMailServerResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	m := proto.CloneOf(req.GetMailServer())
	var vs []client.Violation
	require := func(field string, given bool) {
		if !given {
			vs = append(vs, client.Violation{Field: "mail_server." + field, Description: "is required"})
		}
	}
	require("name", m.GetName() != "")
	require("type", m.GetType() != 0)
	require("from", m.GetFrom() != "")
	require("mode", m.GetMode() != 0)
	require("smtp", m.GetType() != maildispatchv1.MailServer_TYPE_SMTP || m.GetSmtp() != nil)
	if d := m.GetDkim(); d != nil {
		require("dkim.domain", d.Domain != "")
		require("dkim.selector", d.Selector != "")
	}
	if len(vs) > 0 {
		return nil, invalid(vs)
	}
	asked, id := asked(m), createID{m.Team, req.GetRequestId()}
	if first := a.s.created[id]; first != nil && id.request != "" && !req.GetValidateOnly() {
		if !proto.Equal(first, asked) {
			return nil, Error(codes.AlreadyExists, maildispatchv1.ReasonRequestIDReused, "this request_id was used for other content")
		}
		return &maildispatchv1.CreateMailServerResponse{MailServer: proto.CloneOf(a.s.servers[first.Name]), Duplicate: true}, nil
	}
	if a.s.servers[m.Name] != nil {
		return nil, Error(codes.AlreadyExists, maildispatchv1.ReasonMailServerExists, fmt.Sprintf("there is a mail server %q already", m.Name))
	}
	if err := a.s.canFallBack(m); err != nil {
		return nil, err
	}
	if err := a.s.onlyDefault(m); err != nil {
		return nil, err
	}
	if !req.GetValidateOnly() {
		a.s.save(m)
		if id.request != "" {
			a.s.created[id] = asked
		}
	}
	hide(m)
	return &maildispatchv1.CreateMailServerResponse{MailServer: proto.CloneOf(m)}, nil
}

func (a admin) UpdateMailServer(_ context.Context, req *maildispatchv1.UpdateMailServerRequest) (*maildispatchv1.UpdateMailServerResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	change := req.GetMailServer()
	m, err := a.s.living(change.GetName(), change.GetEtag())
	if err != nil {
		return nil, err
	}
	m = proto.CloneOf(m)
	if paths := req.GetUpdateMask().GetPaths(); len(paths) > 0 {
		for _, p := range paths {
			if !set(m.ProtoReflect(), change.ProtoReflect(), strings.Split(p, ".")) {
				return nil, invalid([]client.Violation{{Field: "update_mask", Description: fmt.Sprintf("has the unknown path %q", p)}})
			}
		}
	} else {
		proto.Merge(m, change)
	}
	if err := a.s.canFallBack(m); err != nil {
		return nil, err
	}
	if err := a.s.onlyDefault(m); err != nil {
		return nil, err
	}
	if !req.GetValidateOnly() {
		a.s.save(m)
	}
	return &maildispatchv1.UpdateMailServerResponse{MailServer: proto.CloneOf(m)}, nil
}

func (a admin) DeleteMailServer(_ context.Context, req *maildispatchv1.DeleteMailServerRequest) (*maildispatchv1.DeleteMailServerResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	m, err := a.s.living(req.GetName(), req.GetEtag())
	if err != nil {
		return nil, err
	}
	var pending []*entry
	for _, e := range a.s.mails {
		if e.mail.MailServer == m.Name && !archived(e.mail) {
			pending = append(pending, e)
		}
	}
	if len(pending) > 0 && !req.GetForce() {
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailsPending, fmt.Sprintf("mail server %q has %d unfinished mails", m.Name, len(pending)))
	}
	users := a.s.usersOf(m.Name)
	if len(users) > 0 && !req.GetForce() {
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerInUse, fmt.Sprintf("%q is the fallback of %d mail servers", m.Name, len(users)))
	}
	for _, u := range users {
		u = proto.CloneOf(u)
		u.Fallback = ""
		a.s.save(u)
	}
	for _, e := range pending {
		e.hold()
	}
	m = proto.CloneOf(m)
	m.DeleteTime, m.IsDefault = stamp(time.Now()), proto.Bool(false)
	a.s.save(m)
	return &maildispatchv1.DeleteMailServerResponse{MailServer: proto.CloneOf(m), HeldMails: int32(len(pending))}, nil
}

func (a admin) UndeleteMailServer(_ context.Context, req *maildispatchv1.UndeleteMailServerRequest) (*maildispatchv1.UndeleteMailServerResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	m, err := a.s.server(req.GetName())
	if err != nil {
		return nil, err
	}
	if m.DeleteTime == nil {
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerNotDeleted, fmt.Sprintf("mail server %q is not deleted", m.Name))
	}
	m = proto.CloneOf(m)
	m.DeleteTime = nil
	a.s.save(m)
	return &maildispatchv1.UndeleteMailServerResponse{MailServer: proto.CloneOf(m)}, nil
}

func (a admin) SetDefaultMailServer(_ context.Context, req *maildispatchv1.SetDefaultMailServerRequest) (*maildispatchv1.SetDefaultMailServerResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	m, err := a.s.living(req.GetName(), "")
	if err != nil {
		return nil, err
	}
	if m.Status != maildispatchv1.MailServer_STATUS_AVAILABLE {
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable, fmt.Sprintf("mail server %q is unavailable", m.Name))
	}
	res := &maildispatchv1.SetDefaultMailServerResponse{}
	for _, other := range a.s.servers {
		if other.Team == m.Team && other.Name != m.Name && other.GetIsDefault() {
			other = proto.CloneOf(other)
			other.IsDefault = proto.Bool(false)
			a.s.save(other)
			res.PreviousDefault = proto.CloneOf(other)
		}
	}
	m = proto.CloneOf(m)
	m.IsDefault = proto.Bool(true)
	a.s.save(m)
	res.MailServer = proto.CloneOf(m)
	return res, nil
}

func (a admin) TestMailServer(_ context.Context, req *maildispatchv1.TestMailServerRequest) (*maildispatchv1.TestMailServerResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	m := proto.CloneOf(req.GetMailServer())
	if req.GetName() != "" {
		saved, err := a.s.server(req.GetName())
		if err != nil {
			return nil, err
		}
		over := proto.CloneOf(saved)
		if m != nil {
			proto.Merge(over, m)
		}
		m = over
	}
	if m == nil {
		return nil, invalid([]client.Violation{{Field: "name", Description: "name or mail_server is required"}})
	}
	script, scripted := a.s.tests[req.GetName()]
	if !scripted {
		script = a.s.tests[m.GetSmtp().GetHost()]
	}
	res := &maildispatchv1.TestMailServerResponse{Success: true, Message: "connect success!"}
	kinds := []maildispatchv1.TestStep_Kind{maildispatchv1.TestStep_KIND_CONFIG}
	if m.GetSmtp().GetAuth() == maildispatchv1.Smtp_AUTH_XOAUTH2 {
		kinds = append(kinds, maildispatchv1.TestStep_KIND_TOKEN)
	}
	for kind := maildispatchv1.TestStep_KIND_DNS; kind <= maildispatchv1.TestStep_KIND_QUIT; kind++ {
		kinds = append(kinds, kind)
	}
	if m.Dkim != nil {
		kinds = append(kinds, maildispatchv1.TestStep_KIND_DKIM)
	}
	for _, kind := range kinds {
		step := &maildispatchv1.TestStep{Kind: kind, Outcome: maildispatchv1.TestStep_OUTCOME_OK, Elapsed: durationpb.New(time.Millisecond)}
		switch {
		case !res.Success && kind != maildispatchv1.TestStep_KIND_DKIM || skipped(kind, m, req.GetProbeRecipient()):
			step = &maildispatchv1.TestStep{Kind: kind, Outcome: maildispatchv1.TestStep_OUTCOME_SKIPPED}
		case script.GetKind() == kind:
			step = proto.CloneOf(script)
			if step.Outcome == maildispatchv1.TestStep_OUTCOME_FAILED && kind != maildispatchv1.TestStep_KIND_DKIM {
				words := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(kind.String(), "KIND_")), "_", " ")
				res.Success, res.Message = false, words+": "+step.Detail
			}
		}
		res.Steps = append(res.Steps, step)
	}
	return res, nil
}

// skipped reports whether a test has no reason to make a step.
func skipped(kind maildispatchv1.TestStep_Kind, m *maildispatchv1.MailServer, probe string) bool {
	switch kind {
	case maildispatchv1.TestStep_KIND_TLS:
		return m.GetSmtp().GetEncryption() != maildispatchv1.Smtp_ENCRYPTION_TLS
	case maildispatchv1.TestStep_KIND_STARTTLS:
		return m.GetSmtp().GetEncryption() != maildispatchv1.Smtp_ENCRYPTION_STARTTLS
	case maildispatchv1.TestStep_KIND_AUTH:
		return m.GetSmtp().GetUsername() == "" && m.GetSmtp().GetAuth() != maildispatchv1.Smtp_AUTH_XOAUTH2
	case maildispatchv1.TestStep_KIND_MAIL_FROM, maildispatchv1.TestStep_KIND_RCPT_TO:
		return probe == ""
	}
	return false
}

func (a admin) RunBatch(_ context.Context, req *maildispatchv1.RunBatchRequest) (*maildispatchv1.RunBatchResponse, error) {
	a.s.mu.Lock()
	defer a.s.unlock()
	if name := req.GetMailServer(); name != "" {
		if _, err := a.s.server(name); err != nil {
			return nil, err
		}
	}
	counts := a.s.batch(req.GetMailServer(), time.Now())
	if !req.GetWait() {
		counts = &maildispatchv1.RunBatchResponse{}
	}
	return counts, nil
}

// hide takes the secrets away, which are never returned.
func hide(m *maildispatchv1.MailServer) {
	if m.Smtp != nil && m.Smtp.Password != "" {
		m.Smtp.Password, m.Smtp.HasPassword = "", true
	}
	if d := m.Dkim; d != nil {
		d.Domain, d.Selector = strings.ToLower(d.Domain), strings.ToLower(d.Selector)
		name := d.Selector + "._domainkey." + d.Domain
		// a record that looks like one; it changes with the name and with a key that is given
		if d.PrivateKey != "" || d.DnsName != name || d.DnsValue == "" {
			sum := sha256.Sum256([]byte(name + d.PrivateKey))
			d.DnsName, d.DnsValue = name, "v=DKIM1; k=rsa; p="+base64.StdEncoding.EncodeToString(sum[:])
		}
		d.PrivateKey = ""
	}
	if o := m.GetSmtp().GetOauth2(); o != nil {
		o.HasClientSecret = o.HasClientSecret || o.ClientSecret != ""
		o.HasRefreshToken = o.HasRefreshToken || o.RefreshToken != ""
		o.HasServiceAccountKey = o.HasServiceAccountKey || o.ServiceAccountKey != ""
		o.ClientSecret, o.RefreshToken, o.ServiceAccountKey = "", "", ""
	}
}

// createID is what must not be used again with other content.
type createID struct{ team, request string }

// asked is a mail server as a caller asked for it: without the password, which is not compared,
// and without what only the service says.
func asked(m *maildispatchv1.MailServer) *maildispatchv1.MailServer {
	m = proto.CloneOf(m)
	m.Etag, m.CreateTime, m.UpdateTime, m.DeleteTime, m.Health = "", nil, nil, nil, nil
	if m.Smtp != nil {
		m.Smtp.Password, m.Smtp.HasPassword = "", false
	}
	if d := m.Dkim; d != nil {
		d.PrivateKey, d.DnsName, d.DnsValue = "", "", ""
	}
	if o := m.GetSmtp().GetOauth2(); o != nil {
		o.ClientSecret, o.RefreshToken, o.ServiceAccountKey = "", "", ""
		o.HasClientSecret, o.HasRefreshToken, o.HasServiceAccountKey = false, false, false
	}
	return m
}

// usersOf are the mail servers that have this one as their fallback.
func (s *Server) usersOf(name string) (users []*maildispatchv1.MailServer) {
	for _, n := range slices.Sorted(maps.Keys(s.servers)) {
		if s.servers[n].GetFallback() == name {
			users = append(users, s.servers[n])
		}
	}
	return users
}

// canFallBack refuses a fallback that is not there, of another team, deleted, or part of a
// chain.
func (s *Server) canFallBack(m *maildispatchv1.MailServer) error {
	f := s.servers[m.GetFallback()]
	if m.GetFallback() == "" || f != nil && f.Name != m.Name && (f.Team == "" || f.Team == m.Team) && f.DeleteTime == nil && f.Fallback == "" && len(s.usersOf(m.Name)) == 0 {
		return nil
	}
	return invalid([]client.Violation{{Field: "mail_server.fallback", Description: fmt.Sprintf("mail server %q cannot be the fallback of this one", m.GetFallback())}})
}

// server finds a mail server, also a deleted one; the lock is held, as in what follows.
func (s *Server) server(name string) (*maildispatchv1.MailServer, error) {
	if m := s.servers[name]; m != nil {
		return m, nil
	}
	return nil, noServer(name)
}

// living finds one that is not deleted and has this etag, if one is given.
func (s *Server) living(name, etag string) (*maildispatchv1.MailServer, error) {
	m, err := s.server(name)
	switch {
	case err != nil:
		return nil, err
	case m.DeleteTime != nil:
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerDeleted, fmt.Sprintf("mail server %q is deleted", name))
	case cmp.Or(etag, m.Etag) != m.Etag:
		return nil, Error(codes.Aborted, maildispatchv1.ReasonETagMismatch, fmt.Sprintf("mail server %q was changed meanwhile", name))
	}
	return m, nil
}

// defaultOf is the default of a team, available or not, nil if there is none.
func (s *Server) defaultOf(team string) *maildispatchv1.MailServer {
	for _, m := range s.servers {
		if m.Team == team && m.GetIsDefault() && m.DeleteTime == nil {
			return m
		}
	}
	return nil
}

// onlyDefault refuses a second default.
func (s *Server) onlyDefault(m *maildispatchv1.MailServer) error {
	if now := s.defaultOf(m.GetTeam()); m.GetIsDefault() && now != nil && now.Name != m.Name {
		return Error(codes.FailedPrecondition, maildispatchv1.ReasonDefaultExists, fmt.Sprintf("%q is the default already", now.Name))
	}
	return nil
}

// set copies what a mask's path names; false when there is no such path.
func set(to, from protoreflect.Message, path []string) bool {
	if len(path) == 1 && path[0] == "*" {
		from.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool { to.Set(f, v); return true })
		return true
	}
	f := to.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	switch {
	case f == nil:
		return false
	case len(path) > 1:
		return f.Message() != nil && !f.IsMap() && !f.IsList() && set(to.Mutable(f).Message(), from.Get(f).Message(), path[1:])
	case from.Has(f):
		to.Set(f, from.Get(f))
	default:
		to.Clear(f)
	}
	return true
}

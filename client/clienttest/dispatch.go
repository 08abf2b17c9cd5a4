package clienttest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/mail"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// entry is a mail in memory; Server.mu guards it.
type entry struct {
	request *maildispatchv1.SendRequest
	sum     [32]byte // of what request_id must not be used again with
	mail    *maildispatchv1.Mail
	raw     []byte
	resume  *timestamppb.Timestamp    // held: when it would be due
	told    maildispatchv1.MailStatus // the last that watchers were told
	// recipients whose outcome is unknown, and that only a person's word sends to again
	left map[*maildispatchv1.RecipientResult]bool
}

type dispatch struct {
	maildispatchv1.UnimplementedDispatchServer
	s *Server
}

func (d dispatch) Send(req *maildispatchv1.SendRequest, stream grpc.ServerStreamingServer[maildispatchv1.SendResponse]) error {
	events, err := d.s.send(req)
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	return nil
}

func (d dispatch) SendMail(_ context.Context, req *maildispatchv1.SendMailRequest) (*maildispatchv1.SendMailResponse, error) {
	events, err := d.s.send(&maildispatchv1.SendRequest{Options: req.GetOptions(), Message: req.GetMessage(), RequestId: req.GetRequestId(), ValidateOnly: req.GetValidateOnly()})
	if err != nil {
		return nil, err
	}
	return &maildispatchv1.SendMailResponse{MailId: events[0].GetMailId(), Accepted: events[0].GetAccepted(), Mail: events[len(events)-1].GetCompleted().GetMail(),
		GoesOnInBatch: events[len(events)-1].GetCompleted().GetGoesOnInBatch()}, nil
}

// PreviewMail shows what compose makes, without parts and warnings.
func (d dispatch) PreviewMail(_ context.Context, req *maildispatchv1.PreviewMailRequest) (*maildispatchv1.PreviewMailResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	same := &maildispatchv1.SendRequest{Options: req.GetOptions(), Message: req.GetMessage()}
	if vs := check(same); len(vs) > 0 {
		return nil, invalid(vs)
	}
	e, _, err := d.s.take(same, taking{dry: true})
	if err != nil {
		return nil, err
	}
	out := &maildispatchv1.PreviewMailResponse{Accepted: story(e.mail, false)[0].GetAccepted(), Handling: "as Send would do"}
	for _, r := range e.mail.Recipients {
		out.Recipients = append(out.Recipients, r.Address)
	}
	if m, err := mail.ReadMessage(bytes.NewReader(e.raw)); err == nil {
		for _, name := range slices.Sorted(maps.Keys(m.Header)) {
			out.Headers = append(out.Headers, &maildispatchv1.PreviewMailResponse_Header{Name: name, Value: m.Header.Get(name)})
		}
	}
	if req.GetIncludeRaw() {
		out.Raw = e.raw
	}
	return out, nil
}

// send takes a mail, in php mode sends it, and tells its story.
func (s *Server) send(req *maildispatchv1.SendRequest) ([]*maildispatchv1.SendResponse, error) {
	s.mu.Lock()
	defer s.unlock()
	if vs := check(req); len(vs) > 0 {
		return nil, invalid(vs)
	}
	e, duplicate, err := s.take(req, taking{dry: req.GetValidateOnly()})
	switch {
	case err != nil:
		return nil, err
	case req.GetValidateOnly():
		return story(e.mail, false)[:1], nil
	}
	return story(e.mail, duplicate), nil
}

// taking is how a checked request is taken.
type taking struct {
	batch string // it comes with
	queue bool   // leave it to the batch, whatever the mode
	dry   bool   // store and send nothing
}

// replayed finds the mail that was taken under a request_id; the lock is held.
func (s *Server) replayed(team, id string, sum [32]byte) (*entry, error) {
	for _, e := range s.mails {
		if id == "" || e.mail.RequestId != id || e.mail.Team != team {
			continue
		}
		if e.sum != sum {
			return nil, Error(codes.AlreadyExists, maildispatchv1.ReasonRequestIDReused, "request_id was used for other content")
		}
		return e, nil
	}
	return nil, nil
}

// take stores a mail and in php mode sends it; the lock is held.
func (s *Server) take(req *maildispatchv1.SendRequest, how taking) (e *entry, duplicate bool, err error) {
	o := req.GetOptions()
	sum := fingerprint(req)
	if !how.dry {
		if e, err := s.replayed(o.GetTeam(), req.GetRequestId(), sum); e != nil || err != nil {
			return e, true, err
		}
	}
	server, route, err := s.route(o.GetTeam(), o.GetMailServer())
	if err != nil {
		return nil, false, err
	}
	if err := s.use(o.GetTeam(), req.GetMessage()); err != nil {
		return nil, false, err
	}
	now := time.Now()
	e = &entry{request: proto.CloneOf(req), sum: sum}
	id := s.nextID()
	e.mail = &maildispatchv1.Mail{StoredContent: maildispatchv1.StoredContent_STORED_CONTENT_COMPLETE,
		Id: id, Team: o.GetTeam(), MailServer: server.Name, Mode: server.Mode, Kind: o.GetKind(), Reference: o.GetReference(), Labels: o.GetLabels(),
		Status: maildispatchv1.MailStatus_MAIL_STATUS_QUEUED, From: bare(server.From), Subject: req.GetMessage().GetSubject(),
		MessageId: "<" + id + "@example.com>", RequestId: req.GetRequestId(), Route: route, Priority: priority(o),
		CreateTime: stamp(now), DueTime: stamp(now), ExpireTime: o.GetExpireTime(), BatchId: how.batch,
	}
	if e.mail.Kind == maildispatchv1.Kind_KIND_UNSPECIFIED {
		e.mail.Kind = maildispatchv1.Kind_KIND_OTHER
	}
	later := o.GetSendAfter() != nil && o.GetSendAfter().AsTime().After(now)
	if later {
		e.mail.DueTime = o.GetSendAfter()
	}
	m := req.GetMessage()
	if len(m.GetRaw()) > 0 {
		e.readRaw()
		m = e.request.GetMessage()
	}
	for _, list := range []struct {
		kind      maildispatchv1.RecipientResult_Kind
		addresses []string
	}{{maildispatchv1.RecipientResult_KIND_TO, m.GetTo()}, {maildispatchv1.RecipientResult_KIND_CC, m.GetCc()}, {maildispatchv1.RecipientResult_KIND_BCC, m.GetBcc()}} {
		for _, a := range list.addresses {
			e.add(bare(a), list.kind)
		}
	}
	e.compose(now)
	if how.dry {
		e.mail.Id = ""
		return e, false, nil
	}
	s.mails = append(s.mails, e)
	switch {
	case o.GetHold():
		e.hold()
		e.mail.LastError = "held: its sender asked for it"
	case server.Mode == maildispatchv1.Mode_MODE_PHP && !later && !how.queue:
		s.attempt(e, now, true)
	}
	return e, false, nil
}

// nextID is the id of the mail that is taken next; the lock is held.
func (s *Server) nextID() string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", len(s.mails)+1) }

// add appends a recipient, once.
func (e *entry) add(address string, kind maildispatchv1.RecipientResult_Kind) {
	for _, r := range e.mail.Recipients {
		if strings.EqualFold(r.Address, address) {
			return
		}
	}
	e.mail.Recipients = append(e.mail.Recipients, &maildispatchv1.RecipientResult{
		Address: address, Kind: kind, Status: maildispatchv1.RecipientResult_STATUS_PENDING})
}

// compose makes something that can be downloaded: real headers, the text, the alternatives one
// behind the other, and no attachments.
func (e *entry) compose(now time.Time) {
	m := e.request.GetMessage()
	if len(m.GetRaw()) > 0 {
		e.raw, e.mail.SizeBytes = m.GetRaw(), int64(len(m.GetRaw()))
		return
	}
	var b bytes.Buffer
	header := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	header("From", e.mail.From)
	if name := m.GetFromName(); name != "" {
		b.Reset()
		header("From", (&mail.Address{Name: name, Address: e.mail.From}).String())
	}
	header("To", strings.Join(m.GetTo(), ", "))
	header("Cc", strings.Join(m.GetCc(), ", "))
	header("Reply-To", m.GetReplyTo())
	header("Subject", m.GetSubject())
	header("Date", now.UTC().Format(time.RFC1123Z))
	header("Message-ID", e.mail.MessageId)
	o := e.request.GetOptions()
	var ways []string
	for _, way := range []struct{ scheme, rest string }{{"", o.GetUnsubscribeUrl()}, {"mailto:", strings.TrimPrefix(o.GetUnsubscribeMailto(), "mailto:")}} {
		if way.rest != "" {
			ways = append(ways, "<"+way.scheme+way.rest+">")
		}
	}
	header("List-Unsubscribe", strings.Join(ways, ", "))
	if o.GetUnsubscribeUrl() != "" {
		header("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
	}
	if e.mail.Kind != maildispatchv1.Kind_KIND_AGENT_MESSAGE && m.GetHeaders()["Auto-Submitted"] == "" {
		header("Auto-Submitted", "auto-generated")
	}
	fmt.Fprintf(&b, "\r\n%s\r\n", m.GetText()+m.GetHtml())
	for _, a := range m.GetAlternatives() {
		fmt.Fprintf(&b, "%s\r\n", a.GetContent())
	}
	e.raw = b.Bytes()
	e.mail.SizeBytes = int64(b.Len())
}

// route chooses the mail server; the lock is held.
func (s *Server) route(team, named string) (*maildispatchv1.MailServer, maildispatchv1.Route, error) {
	if named != "" {
		server := s.servers[named]
		switch {
		case server == nil || server.Team != "" && server.Team != team:
			return nil, 0, noServer(named)
		case server.DeleteTime != nil:
			return nil, 0, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerDeleted, fmt.Sprintf("mail server %q is deleted", named))
		}
		return usable(server, maildispatchv1.Route_ROUTE_NAMED)
	}
	if server := s.defaultOf(team); team != "" && server != nil {
		return usable(server, maildispatchv1.Route_ROUTE_TEAM_DEFAULT)
	}
	if server := s.defaultOf(""); server != nil {
		return usable(server, maildispatchv1.Route_ROUTE_SYSTEM_DEFAULT)
	}
	return nil, 0, Error(codes.FailedPrecondition, maildispatchv1.ReasonNoDefaultMailServer, "there is no default mail server")
}

// usable refuses a mail server that is unavailable, also when it was chosen as a default.
func usable(m *maildispatchv1.MailServer, how maildispatchv1.Route) (*maildispatchv1.MailServer, maildispatchv1.Route, error) {
	if m.Status != maildispatchv1.MailServer_STATUS_AVAILABLE {
		return nil, 0, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable, fmt.Sprintf("mail server %q is unavailable", m.Name))
	}
	return m, how, nil
}

// attempt makes one try for every recipient that still needs it; the lock is held. told says
// that a caller waits and is told what becomes of the mail: what failed is then not retried.
func (s *Server) attempt(e *entry, now time.Time, told bool) {
	m := e.mail
	s.note(e)
	// its end is told whatever it leaves the mail as
	e.told = maildispatchv1.MailStatus_MAIL_STATUS_UNSPECIFIED
	m.AttemptCount++
	a := &maildispatchv1.Attempt{Number: m.AttemptCount, MailServer: m.MailServer, StartTime: stamp(now), EndTime: stamp(now)}
	m.Attempts = append(m.Attempts, a)
	m.DueTime, m.FinishTime, m.LastError = nil, nil, ""
	holds, repeat := s.holdsUnknown(m), false
	seen := map[maildispatchv1.RecipientResult_Status]int{}
	for _, r := range m.Recipients {
		if needsSending(m, r, holds || e.left[r]) {
			o, scripted := s.answers[strings.ToLower(r.Address)]
			if !scripted {
				o = Accepted
			}
			if why, is := s.suspended[m.MailServer]; is {
				o = why
			}
			r.Status, r.SmtpCode, r.EnhancedCode, r.Detail = o.Status, o.SmtpCode, o.EnhancedCode, o.Detail
			r.Failure, r.Hint = o.failure(), o.Hint
			r.Attempt, r.Time, r.NextAttemptTime = a.Number, stamp(now), nil
			if o.Status == maildispatchv1.RecipientResult_STATUS_ACCEPTED {
				r.RemoteId = "Q" + m.Id[len(m.Id)-6:]
				a.RemoteId = r.RemoteId
			} else if m.LastError == "" {
				m.LastError = fmt.Sprintf("%s: %s", r.Address, o.words())
			}
		}
		seen[r.Status]++
		repeat = repeat || r.Status == maildispatchv1.RecipientResult_STATUS_UNKNOWN && !holds && !e.left[r]
	}
	accepted, unknown := seen[maildispatchv1.RecipientResult_STATUS_ACCEPTED], seen[maildispatchv1.RecipientResult_STATUS_UNKNOWN]
	if e.request.GetOptions().GetRetryInBatch() && unknown == 0 {
		told = false // that it has failed
	}
	open := seen[maildispatchv1.RecipientResult_STATUS_DEFERRED] + seen[maildispatchv1.RecipientResult_STATUS_PENDING]
	switch {
	case accepted == len(m.Recipients):
		m.Status, a.Outcome, m.FinishTime = maildispatchv1.MailStatus_MAIL_STATUS_SENT, "sent", stamp(now)
	case !told && (open > 0 || repeat):
		m.Status, a.Outcome, m.DueTime = waiting(m), "deferred", stamp(now.Add(time.Minute<<min(m.AttemptCount-1, 8)))
		switch {
		case repeat:
			m.PossibleDuplicate, a.Outcome = true, "unknown"
		case accepted > 0:
			a.Outcome = "partial"
		}
		for _, r := range m.Recipients {
			if r.Status == maildispatchv1.RecipientResult_STATUS_DEFERRED {
				r.NextAttemptTime = m.DueTime
			}
		}
	case unknown > 0:
		m.Status, a.Outcome = maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN, "unknown"
	case accepted > 0:
		m.Status, a.Outcome = maildispatchv1.MailStatus_MAIL_STATUS_PARTIALLY_SENT, "partial"
	default:
		m.Status, a.Outcome = maildispatchv1.MailStatus_MAIL_STATUS_FAILED, "failed"
	}
	a.Detail = m.LastError
}

// holdsUnknown says whether an unknown outcome of the mail waits for a person.
func (s *Server) holdsUnknown(m *maildispatchv1.Mail) bool {
	via := s.servers[m.MailServer]
	return m.Kind == maildispatchv1.Kind_KIND_INVOICE || m.Kind == maildispatchv1.Kind_KIND_WORK_ORDER || via.GetHoldUnknown()
}

// needsSending says whether an attempt goes to a recipient: never to one that was refused for
// good, and to one whose outcome is unknown only where a flagged duplicate is allowed.
func needsSending(m *maildispatchv1.Mail, r *maildispatchv1.RecipientResult, holds bool) bool {
	switch r.Status {
	case maildispatchv1.RecipientResult_STATUS_PENDING, maildispatchv1.RecipientResult_STATUS_DEFERRED:
		return true
	case maildispatchv1.RecipientResult_STATUS_UNKNOWN:
		return m.PossibleDuplicate && !holds
	}
	return false
}

// batch sends what is due; the lock is held.
func (s *Server) batch(server string, now time.Time) *maildispatchv1.RunBatchResponse {
	c := &maildispatchv1.RunBatchResponse{}
	for _, e := range s.mails {
		m := e.mail
		via := s.servers[m.MailServer]
		if m.DueTime == nil || m.DueTime.AsTime().After(now) || server != "" && server != m.MailServer || via == nil || via.DeleteTime != nil ||
			via.Status != maildispatchv1.MailServer_STATUS_AVAILABLE || s.suspended[m.MailServer] != (Outcome{}) {
			continue
		}
		c.Claimed++
		if m.ExpireTime != nil && !now.Before(m.ExpireTime.AsTime()) {
			m.Status, m.DueTime, m.LastError = maildispatchv1.MailStatus_MAIL_STATUS_FAILED, nil, "expired"
			c.Expired++
			continue
		}
		s.attempt(e, now, false)
		switch m.Attempts[len(m.Attempts)-1].Outcome {
		case "sent":
			c.Sent++
		case "partial":
			c.PartiallySent++
		case "deferred":
			c.Deferred++
		case "unknown":
			c.Unknown++
		default:
			c.Failed++
		}
	}
	return c
}

// story is what Send tells of a mail as it is now.
func story(m *maildispatchv1.Mail, duplicate bool) []*maildispatchv1.SendResponse {
	m = proto.CloneOf(m)
	detail := map[maildispatchv1.Route]string{
		maildispatchv1.Route_ROUTE_NAMED:          fmt.Sprintf("mail server %q was named", m.MailServer),
		maildispatchv1.Route_ROUTE_TEAM_DEFAULT:   fmt.Sprintf("%q is the default of team %q", m.MailServer, m.Team),
		maildispatchv1.Route_ROUTE_SYSTEM_DEFAULT: fmt.Sprintf("%q is the default of the system", m.MailServer),
	}
	events := []*maildispatchv1.SendResponse{{MailId: m.Id, Time: m.CreateTime, Event: &maildispatchv1.SendResponse_Accepted_{
		Accepted: &maildispatchv1.SendResponse_Accepted{MailServer: m.MailServer, Mode: m.Mode, Route: m.Route, RouteDetail: detail[m.Route],
			Duplicate: duplicate, SizeBytes: m.SizeBytes}}}}
	last := m.CreateTime
	for _, a := range m.Attempts {
		begun := &maildispatchv1.Attempt{Number: a.Number, MailServer: a.MailServer, StartTime: a.StartTime}
		events = append(events, &maildispatchv1.SendResponse{MailId: m.Id, Time: a.StartTime, Event: &maildispatchv1.SendResponse_Attempt{Attempt: begun}})
		last = a.StartTime
	}
	for _, r := range m.Recipients {
		if r.Status != maildispatchv1.RecipientResult_STATUS_PENDING {
			events = append(events, &maildispatchv1.SendResponse{MailId: m.Id, Time: r.Time, Event: &maildispatchv1.SendResponse_Recipient{Recipient: r}})
			last = r.Time
		}
	}
	return append(events, &maildispatchv1.SendResponse{MailId: m.Id, Time: last, Event: &maildispatchv1.SendResponse_Completed_{
		Completed: &maildispatchv1.SendResponse_Completed{Mail: m, GoesOnInBatch: m.Mode == maildispatchv1.Mode_MODE_PHP && m.DueTime != nil}}})
}

func (d dispatch) GetMail(_ context.Context, req *maildispatchv1.GetMailRequest) (*maildispatchv1.GetMailResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	e := d.s.entry(req.GetId())
	if e == nil {
		return nil, noMail(req.GetId())
	}
	return &maildispatchv1.GetMailResponse{Mail: proto.CloneOf(e.mail)}, nil
}

func (d dispatch) DownloadMail(req *maildispatchv1.DownloadMailRequest, stream grpc.ServerStreamingServer[maildispatchv1.DownloadMailResponse]) error {
	d.s.mu.Lock()
	e := d.s.entry(req.GetId())
	d.s.mu.Unlock()
	if e == nil {
		return noMail(req.GetId())
	}
	// raw never changes
	part := &maildispatchv1.DownloadMailResponse{SizeBytes: int64(len(e.raw)), Filename: req.GetId() + ".eml"}
	for chunk := range slices.Chunk(e.raw, 64<<10) {
		part.Chunk = chunk
		if err := stream.Send(part); err != nil {
			return err
		}
		part = &maildispatchv1.DownloadMailResponse{}
	}
	return nil
}

// entry finds a mail; the lock is held.
func (s *Server) entry(id string) *entry {
	for _, e := range s.mails {
		if e.mail.Id == id {
			return e
		}
	}
	return nil
}

// stamp is a time as the service gives it: microseconds.
func stamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t.Truncate(time.Microsecond)) }

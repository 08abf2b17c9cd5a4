package clienttest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Outcome is what the mail server says for one recipient.
type Outcome struct {
	Status       maildispatchv1.RecipientResult_Status
	SmtpCode     int32
	EnhancedCode string
	Detail       string
	// The class of a refusal; FAILURE_UNCLASSIFIED where a refusal leaves it out.
	Failure maildispatchv1.RecipientResult_Failure
	Hint    string
}

// The outcomes one meets; any other may be made. Class and hint are what the service says of
// these replies.
var (
	Accepted = Outcome{maildispatchv1.RecipientResult_STATUS_ACCEPTED, 250, "2.0.0", "ok: queued", 0, ""}
	Refused  = Outcome{maildispatchv1.RecipientResult_STATUS_REJECTED, 550, "5.1.1", "no such user",
		maildispatchv1.RecipientResult_FAILURE_NO_SUCH_MAILBOX, "check the address with the recipient, and take it off the list if it is gone"}
	Deferred = Outcome{maildispatchv1.RecipientResult_STATUS_DEFERRED, 450, "4.2.1", "mailbox busy, try again later",
		maildispatchv1.RecipientResult_FAILURE_UNREACHABLE, "a server on the way is down or out of order: nothing to do here but to wait, or to ask its operator"}
	NoReply = Outcome{maildispatchv1.RecipientResult_STATUS_UNKNOWN, 0, "", "no reply after the final dot", 0, ""}

	MailboxFull = Outcome{maildispatchv1.RecipientResult_STATUS_REJECTED, 552, "5.2.2", "mailbox full",
		maildispatchv1.RecipientResult_FAILURE_MAILBOX_FULL, "the recipient's mailbox is full: tell them another way, or send again later"}
	Greylisted = Outcome{maildispatchv1.RecipientResult_STATUS_DEFERRED, 451, "4.7.1", "greylisted, try again later",
		maildispatchv1.RecipientResult_FAILURE_RECIPIENT_POLICY, "the recipient's server lets unknown senders wait (greylisting): it is tried again automatically"}
	Spam = Outcome{maildispatchv1.RecipientResult_STATUS_REJECTED, 554, "5.7.1", "this looks like spam",
		maildispatchv1.RecipientResult_FAILURE_CONTENT, "the message was taken for spam: look at its words and links"}
	TooLarge = Outcome{maildispatchv1.RecipientResult_STATUS_REJECTED, 552, "5.3.4", "message too large",
		maildispatchv1.RecipientResult_FAILURE_SIZE, "the message is too large for this recipient: send a smaller one, or a link"}
	BlockListed = Outcome{maildispatchv1.RecipientResult_STATUS_REJECTED, 554, "5.7.1", "blocked using zen.spamhaus.org",
		maildispatchv1.RecipientResult_FAILURE_REPUTATION, "the sending address is on a block list: the reply names it; ask the mail server's operator to have it taken off"}
)

// What the service finds wrong with a mail server as a whole, for Suspend: it cannot be
// reached, it refuses the login, the provider gives no access token, it takes no more for now.
var (
	Unreachable  = Outcome{0, 0, "", "connect: connection refused", maildispatchv1.RecipientResult_FAILURE_UNREACHABLE, Deferred.Hint}
	LoginRefused = Outcome{0, 535, "5.7.8", "Username and password not accepted", maildispatchv1.RecipientResult_FAILURE_AUTH,
		"check user name, password and rights of the mail server's account, and try it with Test"}
	NoToken   = Outcome{0, 0, "", "access token: the provider answers 401", maildispatchv1.RecipientResult_FAILURE_AUTH, LoginRefused.Hint}
	Throttled = Outcome{0, 421, "4.7.0", "too many connections, slow down", maildispatchv1.RecipientResult_FAILURE_RATE,
		"the mail server takes fewer connections: lower limits.max_connections"}
)

// Suspend leaves a mail server alone from now on, as the service does with one about which it
// has found such a thing: its mails in mode daemon wait and lose no attempt, those in mode php
// fail for now, and its health says why. Resume ends that.
func (s *Server) Suspend(mailServer string, why Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	why.Detail = why.words()
	why.Status, why.SmtpCode, why.EnhancedCode = maildispatchv1.RecipientResult_STATUS_DEFERRED, 0, ""
	s.setHealth(mailServer, &maildispatchv1.Health{State: maildispatchv1.Health_STATE_SUSPENDED, SuspendedReason: why.Detail, LastFailure: why.Detail,
		LastFailureTime: stamp(now), RetryTime: stamp(now.Add(time.Minute))})
	why.Detail = "the mail server is suspended: " + why.Detail
	s.suspended[mailServer] = why
}

// Resume ends what Suspend began.
func (s *Server) Resume(mailServer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.suspended, mailServer)
	s.setHealth(mailServer, &maildispatchv1.Health{State: maildispatchv1.Health_STATE_OK, LastSuccessTime: stamp(time.Now())})
}

// setHealth replaces what is said of a mail server's health; the lock is held.
func (s *Server) setHealth(name string, h *maildispatchv1.Health) {
	if m := s.servers[name]; m != nil {
		m = proto.CloneOf(m)
		m.Health = h
		s.servers[name] = m
	}
}

// words are code, enhanced code and detail in one.
func (o Outcome) words() string {
	if o.SmtpCode == 0 {
		return o.Detail
	}
	return strings.Join(strings.Fields(fmt.Sprintf("%d %s %s", o.SmtpCode, o.EnhancedCode, o.Detail)), " ")
}

// failure is the class of a refusal.
func (o Outcome) failure() maildispatchv1.RecipientResult_Failure {
	refused := o.Status == maildispatchv1.RecipientResult_STATUS_REJECTED || o.Status == maildispatchv1.RecipientResult_STATUS_DEFERRED
	if refused && o.Failure == maildispatchv1.RecipientResult_FAILURE_UNSPECIFIED {
		return maildispatchv1.RecipientResult_FAILURE_UNCLASSIFIED
	}
	return o.Failure
}

// Answer sets what the mail server says to an address from now on, compared without case.
// Without it: Accepted.
func (s *Server) Answer(address string, o Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[strings.ToLower(address)] = o
}

// AnswerTest makes TestMailServer find step for the mail server of this name, or for an unsaved
// configuration with this host: the step before which everything is well, and after which
// everything is skipped if it failed.
func (s *Server) AnswerTest(nameOrHost string, step *maildispatchv1.TestStep) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tests[nameOrHost] = proto.CloneOf(step)
}

// Fault is something that happens to one call, of a stream of requests after the first one. The
// zero value fails it with UNAVAILABLE before anything is done.
type Fault struct {
	// Err ends the call; default UNAVAILABLE. Error makes one as the service does.
	Err error
	// Done: the call takes effect first and only its answer is lost.
	Done bool
	// After this many messages of a stream the fault happens; more than 0 includes Done.
	After int
	// Hang waits until the caller has gone, instead of ending the call.
	Hang bool
	// Quiet ends a stream without an error, as some proxies do.
	Quiet bool
}

// Fault sets what happens to the next calls of a method such as "Send", one fault each, after
// those already set.
func (s *Server) Fault(method string, faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[method] = append(s.faults[method], faults...)
}

// Error makes an error as the service sends it: code, reason, one line, and for a bad request
// what is wrong with it.
func Error(code codes.Code, reason, message string, violations ...client.Violation) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: maildispatchv1.ErrorDomain}}
	if len(violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		}
		details = append(details, bad)
	}
	return with(code, message, details...)
}

// Overloaded makes the error of a service that asks to be left alone for a while.
func Overloaded(retryAfter time.Duration) error {
	return with(codes.ResourceExhausted, "too many calls",
		&errdetails.ErrorInfo{Reason: maildispatchv1.ReasonOverloaded, Domain: maildispatchv1.ErrorDomain},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
}

func with(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		panic("clienttest: " + err.Error()) // code OK: a mistake in the test
	}
	return st.Err()
}

// Request is a call as it arrived.
type Request struct {
	Method  string // such as "Send"
	Message proto.Message
	Header  metadata.MD
}

// Requests is every call that arrived for a method, those that failed by a Fault as well; "" =
// for all. Of a stream of requests each is there.
func (s *Server) Requests(method string) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rs []Request
	for _, r := range s.requests {
		if method == "" || r.Method == method {
			rs = append(rs, r)
		}
	}
	return rs
}

// arrived notes a request and takes the fault of its call, if any.
func (s *Server) arrived(ctx context.Context, method string, req any, first bool) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	header, _ := metadata.FromIncomingContext(ctx)
	s.requests = append(s.requests, Request{Method: method, Message: req.(proto.Message), Header: header})
	f := s.faults[method]
	if len(f) == 0 || !first {
		return Fault{}, false
	}
	s.faults[method] = f[1:]
	return f[0], true
}

// happen ends the call as the fault says.
func (f Fault) happen(ctx context.Context) error {
	switch {
	case f.Hang:
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	case f.Quiet:
		return nil
	case f.Err != nil:
		return f.Err
	}
	return Error(codes.Unavailable, maildispatchv1.ReasonDraining, "the service is stopping")
}

// ours splits "/maildispatch.v1.Dispatch/Send"; false for health and the like, which are never
// disturbed.
func ours(fullMethod string) (method string, is bool) {
	service, method, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	return method, strings.HasPrefix(service, "maildispatch.v1.")
}

func (s *Server) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	method, is := ours(info.FullMethod)
	if !is {
		return handle(ctx, req)
	}
	f, faulty := s.arrived(ctx, method, req, true)
	if !faulty {
		return handle(ctx, req)
	}
	if f.Done {
		if _, err := handle(ctx, req); err != nil {
			return nil, err
		}
	}
	return nil, f.happen(ctx)
}

func (s *Server) interceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	method, is := ours(info.FullMethod)
	if !is {
		return handle(srv, ss)
	}
	fs := &faultyStream{ServerStream: ss, server: s, method: method}
	err := handle(srv, fs)
	if fs.struck || fs.faulty && err == nil { // the latter: After was more than it had to say
		return fs.fault.happen(ss.Context())
	}
	return err
}

// faultyStream is a stream to which a fault may happen. Its handler's goroutine alone uses it.
type faultyStream struct {
	grpc.ServerStream
	server *Server
	method string
	begun  bool // its fault is known
	fault  Fault
	faulty bool
	sent   int
	struck bool
}

// errStruck unwinds a handler whose call is over.
var errStruck = status.Error(codes.Aborted, "clienttest: a fault happened")

func (fs *faultyStream) RecvMsg(m any) error {
	if err := fs.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	fault, faulty := fs.server.arrived(fs.Context(), fs.method, proto.Clone(m.(proto.Message)), !fs.begun)
	if fs.begun {
		return nil
	}
	fs.begun, fs.fault, fs.faulty = true, fault, faulty
	if fs.faulty && !fs.fault.Done && fs.fault.After == 0 {
		fs.struck = true
		return errStruck
	}
	return nil
}

func (fs *faultyStream) SendMsg(m any) error {
	if fs.faulty && fs.sent == fs.fault.After {
		fs.struck = true
		return errStruck
	}
	fs.sent++
	return fs.ServerStream.SendMsg(m)
}

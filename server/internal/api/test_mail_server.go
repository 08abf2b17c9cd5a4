package api

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

const (
	testTimeout    = 30 * time.Second
	testTimeoutMax = 60 * time.Second
	// testName stands in for the name that a configuration which is not saved does not need.
	testName = "not-saved"
)

var stepKind = map[smtpx.StepKind]pb.TestStep_Kind{
	smtpx.StepToken: pb.TestStep_KIND_TOKEN, smtpx.StepDNS: pb.TestStep_KIND_DNS, smtpx.StepTCP: pb.TestStep_KIND_TCP, smtpx.StepTLS: pb.TestStep_KIND_TLS, smtpx.StepGreeting: pb.TestStep_KIND_GREETING,
	smtpx.StepEHLO: pb.TestStep_KIND_EHLO, smtpx.StepSTARTTLS: pb.TestStep_KIND_STARTTLS, smtpx.StepAuth: pb.TestStep_KIND_AUTH,
	smtpx.StepMailFrom: pb.TestStep_KIND_MAIL_FROM, smtpx.StepRcptTo: pb.TestStep_KIND_RCPT_TO, smtpx.StepQuit: pb.TestStep_KIND_QUIT,
}

var stepOutcome = map[smtpx.StepOutcome]pb.TestStep_Outcome{
	smtpx.StepOK: pb.TestStep_OUTCOME_OK, smtpx.StepWarning: pb.TestStep_OUTCOME_WARNING, smtpx.StepFailed: pb.TestStep_OUTCOME_FAILED,
	smtpx.StepSkipped: pb.TestStep_OUTCOME_SKIPPED,
}

// TestMailServer implements the service. A configuration that would be refused by Create is
// INVALID_ARGUMENT here as well; the CONFIG step says what is odd about one that would be
// taken.
func (a *API) TestMailServer(ctx context.Context, r *pb.TestMailServerRequest) (*pb.TestMailServerResponse, error) {
	var c apierr.Check
	if r.Name == "" && r.MailServer == nil {
		c.Bad("name", "is required, or a mail_server to try")
	}
	if r.Name != "" {
		checkServerName(&c, "name", r.Name)
	}
	checkDuration(&c, "timeout", r.Timeout, time.Second, testTimeoutMax)
	var probe smtpx.ProbeOptions
	if r.ProbeRecipient != "" {
		to, err := message.ParseAddress(r.ProbeRecipient)
		if err != nil {
			c.Bad("probe_recipient", "%v", err)
		}
		probe.Recipient = to.Mailbox
	}
	if r.Name == "" && r.MailServer != nil {
		m := proto.Clone(r.MailServer).(*pb.MailServer)
		forTest(m)
		checkMailServer(&c, "mail_server.", m)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	s, secrets, err := a.toTest(ctx, r)
	if err != nil {
		return nil, err
	}
	held, err := a.Quota.Test(access.From(ctx).Name)
	if err != nil {
		return nil, err
	}
	defer held.Give()
	// Before it connects: a test gives a password to a host that may never have been saved.
	if err := a.Store.Record(ctx, a.audit(ctx, "TestMailServer", ""), s.Team, s.Name, s); err != nil {
		return nil, a.fault(err)
	}
	config := &pb.TestStep{Kind: pb.TestStep_KIND_CONFIG, Outcome: pb.TestStep_OUTCOME_OK, Detail: "the configuration makes sense"}
	relay, fault := a.relayToTest(s, secrets, config)
	if fault != nil {
		config.Outcome, config.Detail, config.Hint = pb.TestStep_OUTCOME_FAILED, fault.Error(), fault.Hint
		return &pb.TestMailServerResponse{Message: "config: " + fault.Error(), Steps: []*pb.TestStep{config}}, nil
	}
	if from, err := message.ParseAddress(s.From); err == nil {
		probe.From = from.Mailbox
	}
	timeout := testTimeout
	if r.Timeout != nil {
		timeout = r.Timeout.AsDuration()
	}
	tctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if relay.Timeouts.Connect == 0 || relay.Timeouts.Connect > timeout {
		relay.Timeouts.Connect = timeout
	}
	record := make(chan *pb.TestStep, 1)
	if s.DKIM != nil {
		go func() { record <- a.recordStep(tctx, s) }()
	}
	res := a.Probe(tctx, s, relay, probe)
	if !access.From(ctx).SeesNetwork() {
		res = res.HideUnreached()
	}
	out := testReport(config, res)
	if s.DKIM != nil {
		out.Steps = append(out.Steps, <-record)
	}
	return out, nil
}

// forTest fills in what a configuration that is only tried does not need.
func forTest(m *pb.MailServer) {
	if m.Name == "" {
		m.Name = testName
	}
	if m.Mode == pb.Mode_MODE_UNSPECIFIED {
		m.Mode = pb.Mode_MODE_PHP
	}
}

// toTest is the configuration to try, and the secrets given with the request.
func (a *API) toTest(ctx context.Context, r *pb.TestMailServerRequest) (*store.MailServer, outbound.Secrets, error) {
	if r.Name == "" {
		m := proto.Clone(r.MailServer).(*pb.MailServer)
		forTest(m)
		team, err := access.From(ctx).Team(m.Team)
		if err != nil {
			return nil, outbound.Secrets{}, err
		}
		s := &store.MailServer{Name: m.Name, Team: team, Type: typeOf[m.Type]}
		fill(s, m)
		return s, given(m), firstOf(a.mayConfigure(ctx, nil, s), a.sealKey(s, given(m).SigningKey))
	}
	s, err := a.server(ctx, "name", r.Name)
	if err != nil || r.MailServer == nil {
		return s, outbound.Secrets{}, err
	}
	before := *s
	if s.SMTP != nil {
		smtp := *s.SMTP
		before.SMTP = &smtp
	}
	secrets, err := a.change(s, r.MailServer, nil)
	return s, secrets, firstOf(err, a.mayConfigure(ctx, &before, s))
}

func (a *API) relayToTest(s *store.MailServer, secrets outbound.Secrets, config *pb.TestStep) (smtpx.Relay, *smtpx.Error) {
	if s.SMTP != nil && s.SMTP.OAuth == nil && s.SMTP.Username != "" && secrets.Password == "" && len(s.SMTP.SealedPassword) == 0 {
		return smtpx.Relay{}, &smtpx.Error{Phase: smtpx.PhaseAuth, Err: errors.New("there is a username but no password"),
			Hint: "give the password; a stored one is dropped when host, port, encryption, auth, username or ca_pem change"}
	}
	if x := s.SMTP; x != nil {
		enc := smtpx.Encryption(x.Encryption)
		if x.Port == 465 && enc != smtpx.EncryptionTLS || x.Port == 587 && enc == smtpx.EncryptionTLS {
			config.Outcome, config.Detail = pb.TestStep_OUTCOME_WARNING, "port and encryption do not usually go together"
			config.Hint = "usual are 465 with ENCRYPTION_TLS and 587 with ENCRYPTION_STARTTLS"
		}
	}
	oddUser(s, config)
	relay, err := a.Outbound.RelayToTest(s, secrets)
	if err != nil {
		var e *smtpx.Error
		if !errors.As(err, &e) {
			e = &smtpx.Error{Phase: smtpx.PhaseAuth, Err: err}
		}
		return relay, e
	}
	return relay, nil
}

func testReport(config *pb.TestStep, res smtpx.ProbeResult) *pb.TestMailServerResponse {
	out := &pb.TestMailServerResponse{Success: res.Success, Message: "connect success!", Steps: []*pb.TestStep{config}}
	for _, st := range res.Steps {
		out.Steps = append(out.Steps, &pb.TestStep{Kind: stepKind[st.Kind], Outcome: stepOutcome[st.Outcome], Detail: st.Detail, Hint: st.Hint,
			SmtpCode: int32(st.Code), Elapsed: durationpb.New(st.Elapsed), Facts: st.Facts})
		if st.Outcome == smtpx.StepFailed {
			out.Message = strings.ReplaceAll(string(st.Kind), "_", " ") + ": " + st.Detail
			if st.Hint != "" {
				out.Message += " (" + st.Hint + ")"
			}
		}
	}
	return out
}

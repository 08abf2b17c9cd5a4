package smtpx

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Dialer opens sessions: the one way to a relay, for sending and for probing. The zero Dialer
// dials anything.
type Dialer struct {
	// Allow is asked about every address right before it is dialled, so a name cannot resolve
	// to something else in between. nil = everything.
	Allow func(netip.AddrPort) error
	// Lookup resolves a host name; nil = the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Connect opens the connection; nil = TCP. A simulation puts a network of its own here.
	Connect func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

	lockStep lockStep
}

const (
	defaultConnect = 30 * time.Second
	defaultCommand = 60 * time.Second
	defaultRcpt    = 2 * time.Minute
	defaultData    = 2 * time.Minute
	defaultBlock   = 3 * time.Minute
	defaultDot     = 10 * time.Minute
	maxAddresses   = 4 // of a name; more only stretch the wait for a relay that is down
)

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Connect, defaultConnect)
	set(&t.Command, defaultCommand)
	set(&t.Rcpt, defaultRcpt)
	set(&t.Data, defaultData)
	set(&t.Block, defaultBlock)
	set(&t.Dot, defaultDot)
	return t
}

// Dial opens a session: name lookup, TCP, TLS, greeting, EHLO, STARTTLS and login, all within
// r.Timeouts.Connect. A failure is an *[Error]. See [WithTrace].
func (d *Dialer) Dial(ctx context.Context, r Relay) (*Session, error) {
	var tr *trace
	if t := TraceOf(ctx); t != nil {
		tr = &trace{hears: t}
	}
	s, fault := d.dial(ctx, r, tr)
	if fault != nil {
		return nil, fault.clean()
	}
	return s, nil
}

// dial is Dial with a trace of its steps for Probe.
func (d *Dialer) dial(ctx context.Context, r Relay, tr *trace) (*Session, *Error) {
	r.Timeouts = r.Timeouts.withDefaults()
	if !ascii(r.Host) {
		host, err := Host(r.Host)
		if err != nil {
			return nil, tr.begin(StepDNS).fail(&Error{Phase: PhaseDNS, Err: fmt.Errorf("host %w", err)}, r)
		}
		r.Host = host
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeouts.Connect)
	defer cancel()
	if r.Auth == AuthXOAUTH2 && r.Username != "" && r.Tokens != nil {
		return d.withToken(ctx, r, tr)
	}
	return d.session(ctx, r, tr)
}

// session connects and opens a session. ctx bounds it.
func (d *Dialer) session(ctx context.Context, r Relay, tr *trace) (*Session, *Error) {
	conn, fault := d.connect(ctx, r, tr)
	if fault != nil {
		return nil, withHint(fault, r)
	}
	s := newSession(conn, r)
	s.lockStep, s.address = &d.lockStep, net.JoinHostPort(r.Host, strconv.Itoa(r.Port))
	stop := s.watch(ctx)
	fault = s.open(ctx, tr)
	stop()
	if fault != nil {
		if ctx.Err() != nil && fault.Reply.Code == 0 {
			fault.Err, fault.Temporary, fault.Hint = timeoutError(ctx), true, ""
		}
		s.drop()
		return nil, withHint(fault, r)
	}
	return s, nil
}

func timeoutError(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return fmt.Errorf("no answer in time: %w", os.ErrDeadlineExceeded)
	}
	return context.Cause(ctx)
}

// connect resolves and dials. Every address of a name is checked before it is dialled.
func (d *Dialer) connect(ctx context.Context, r Relay, tr *trace) (net.Conn, *Error) {
	addrs, fault := d.resolve(ctx, r.Host, tr)
	if fault != nil {
		return nil, fault
	}
	done := tr.begin(StepTCP)
	var last error
	for i, a := range addrs {
		ap := netip.AddrPortFrom(a, uint16(r.Port))
		if d.Allow != nil {
			if err := d.Allow(ap); err != nil {
				last = err
				continue
			}
		}
		// Each address gets its share of what is left, so that one that swallows packets does
		// not cost the others their turn.
		actx, cancel := ctx, context.CancelFunc(func() {})
		if t, ok := ctx.Deadline(); ok && i < len(addrs)-1 {
			actx, cancel = context.WithTimeout(ctx, time.Until(t)/time.Duration(len(addrs)-i))
		}
		conn, err := d.open(actx, ap)
		cancel()
		if err == nil {
			done(StepOK, "connected to "+ap.String(), 0, map[string]string{"address": ap.String()})
			return conn, nil
		}
		last = trimDial(err)
	}
	fault = &Error{Phase: PhaseConnect, Temporary: true, Err: last}
	return nil, done.fail(fault, r)
}

func (d *Dialer) open(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if d.Connect != nil {
		return d.Connect(ctx, to)
	}
	var nd net.Dialer
	return nd.DialContext(ctx, "tcp", to.String())
}

// trimDial takes the addresses out of a dial error: the caller knows them, and an error that
// differs by address would tell about the network.
func trimDial(err error) error {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func (d *Dialer) resolve(ctx context.Context, host string, tr *trace) ([]netip.Addr, *Error) {
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		tr.skip(StepDNS, "host is an address")
		return []netip.Addr{a}, nil
	}
	done := tr.begin(StepDNS)
	lookup := d.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	addrs, err := lookup(ctx, host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		var dns *net.DNSError
		cause := err
		if errors.As(err, &dns) {
			cause = errors.New(dns.Err)
		}
		fault := &Error{Phase: PhaseDNS, Temporary: true, Err: cause}
		return nil, done.fail(fault, Relay{Host: host})
	}
	addrs = addrs[:min(len(addrs), maxAddresses)]
	done(StepOK, fmt.Sprintf("%d address(es)", len(addrs)), 0, nil)
	return addrs, nil
}

// open takes a connected session through TLS, greeting, EHLO, STARTTLS and login.
func (s *Session) open(ctx context.Context, tr *trace) *Error {
	r := &s.relay
	if r.Encryption == EncryptionTLS {
		if fault := s.startTLS(ctx, PhaseTLS, tr, StepTLS); fault != nil {
			return fault
		}
	}
	done := tr.begin(StepGreeting)
	rep, _, err := s.readReply(r.Timeouts.Command)
	if err != nil || rep.Code != 220 {
		if err == nil {
			s.sayQuit()
		}
		return done.fail(s.fault(PhaseGreeting, rep, err), *r)
	}
	done(StepOK, "220", 220, nil)
	if fault := s.ehlo(tr); fault != nil {
		return fault
	}
	if r.Encryption == EncryptionSTARTTLS {
		if fault := s.upgrade(ctx, tr); fault != nil {
			return fault
		}
		if fault := s.ehlo(tr); fault != nil {
			return fault
		}
	}
	return s.login(tr)
}

// ehlo greets and reads the extensions. A server without EHLO gets HELO and has none.
func (s *Session) ehlo(tr *trace) *Error {
	done := tr.begin(StepEHLO)
	t := s.relay.Timeouts.Command
	name, err := s.heloName()
	if err != nil {
		s.sayQuit()
		return done.fail(&Error{Phase: PhaseEHLO, Err: err}, s.relay)
	}
	rep, lines, err := s.command(t, "EHLO "+name)
	if err == nil && (rep.Code == 500 || rep.Code == 502) {
		rep, lines, err = s.command(t, "HELO "+name)
	}
	if err != nil || rep.Code != 250 {
		return done.fail(s.fault(PhaseEHLO, rep, err), s.relay)
	}
	s.ext = map[string]string{}
	var names []string
	for _, l := range lines[1:] {
		k, v, _ := strings.Cut(strings.TrimSpace(l), " ")
		k = strings.ToUpper(k)
		if m, ok := strings.CutPrefix(k, "AUTH="); ok {
			// an old form, beside or instead of AUTH
			k, v = "AUTH", strings.TrimSpace(m+" "+v)
			if had := s.ext["AUTH"]; had != "" {
				v = had + " " + v
			}
		} else if k == "AUTH" && s.ext["AUTH"] != "" {
			v = s.ext["AUTH"] + " " + v
		}
		s.ext[k] = v
		names = append(names, k)
	}
	_, s.pipelining = s.ext["PIPELINING"]
	s.pipelining = s.pipelining && (s.lockStep == nil || !s.lockStep.holds(s.address))
	_, s.smtputf8 = s.ext["SMTPUTF8"]
	s.sizeLimit = 0
	if v, ok := s.ext["SIZE"]; ok {
		// no number = no limit told
		s.sizeLimit, _ = strconv.ParseInt(strings.TrimSpace(v), 10, 64)
	}
	_, s.sizeOffered = s.ext["SIZE"]
	facts := map[string]string{"extensions": strings.Join(names, " ")}
	if s.sizeLimit > 0 {
		facts["size_limit"] = strconv.FormatInt(s.sizeLimit, 10)
	}
	if a := s.ext["AUTH"]; a != "" {
		facts["mechanisms"] = a
	}
	done(StepOK, fmt.Sprintf("%d extensions", len(names)), 250, facts)
	return nil
}

var (
	errInTheLine      = errors.New("text in clear behind the STARTTLS answer: somebody may be in the line")
	errNoCertificates = errors.New("ca_pem holds no certificate")
)

// upgrade does STARTTLS (RFC 3207), which is never optional here.
func (s *Session) upgrade(ctx context.Context, tr *trace) *Error {
	if _, ok := s.ext["STARTTLS"]; !ok {
		done := tr.begin(StepSTARTTLS)
		s.sayQuit()
		return done.fail(&Error{Phase: PhaseSTARTTLS, Err: errors.New("the server does not offer STARTTLS")}, s.relay)
	}
	done := tr.begin(StepSTARTTLS)
	rep, _, err := s.command(s.relay.Timeouts.Command, "STARTTLS")
	if err != nil || rep.Code != 220 {
		return done.fail(s.fault(PhaseSTARTTLS, rep, err), s.relay)
	}
	// Anything that came in clear behind the 220 was injected (the STARTTLS response injection
	// attack).
	if s.br.Buffered() > 0 {
		return done.fail(&Error{Phase: PhaseSTARTTLS, Err: errInTheLine}, s.relay)
	}
	if fault := s.handshake(ctx, PhaseSTARTTLS); fault != nil {
		return done.fail(fault, s.relay)
	}
	done(StepOK, "tls is up", 220, s.tlsFacts())
	tr.warnCertificate(s)
	return nil
}

func (s *Session) startTLS(ctx context.Context, phase Phase, tr *trace, step StepKind) *Error {
	done := tr.begin(step)
	if fault := s.handshake(ctx, phase); fault != nil {
		return done.fail(fault, s.relay)
	}
	done(StepOK, "tls is up", 0, s.tlsFacts())
	tr.warnCertificate(s)
	return nil
}

// handshake wraps the connection in TLS. The certificate must carry the configured host,
// whatever the address.
func (s *Session) handshake(ctx context.Context, phase Phase) *Error {
	cfg := &tls.Config{ServerName: strings.Trim(s.relay.Host, "[]"), MinVersion: tls.VersionTLS12}
	if len(s.relay.CAPEM) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(s.relay.CAPEM) {
			return &Error{Phase: phase, Err: errNoCertificates}
		}
		cfg.RootCAs = pool
	}
	tc := tls.Client(s.conn, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return &Error{Phase: phase, Temporary: true, Err: err}
	}
	s.setConn(tc)
	s.tls = true
	return nil
}

func (s *Session) tlsFacts() map[string]string {
	tc, ok := s.conn.(*tls.Conn)
	if !ok {
		return nil
	}
	st := tc.ConnectionState()
	f := map[string]string{"tls_version": tls.VersionName(st.Version), "cipher": tls.CipherSuiteName(st.CipherSuite)}
	if len(st.PeerCertificates) > 0 {
		c := st.PeerCertificates[0]
		f["certificate_subject"] = c.Subject.String()
		f["certificate_issuer"] = c.Issuer.String()
		f["certificate_expires"] = c.NotAfter.UTC().Format(time.RFC3339)
	}
	return f
}

// heloName is the configured name, the machine's if it is a full one, else the address literal
// (RFC 5321 4.1.1.1).
func (s *Session) heloName() (string, error) {
	if name := s.relay.HeloName; name != "" {
		if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" {
			// saved by a version that took an address without brackets
			return addressLiteral(a), nil
		}
		wire, err := HeloName(name)
		if err != nil {
			return "", fmt.Errorf("%w: %q %w", errHeloName, Clean(name, maxShown), err)
		}
		return wire, nil
	}
	if h, err := os.Hostname(); err == nil && strings.Contains(h, ".") {
		if wire, err := HeloName(h); err == nil {
			return wire, nil
		}
	}
	if a, err := netip.ParseAddrPort(s.conn.LocalAddr().String()); err == nil {
		return addressLiteral(a.Addr()), nil
	}
	return "localhost", nil
}

// setConn replaces the transport and what was read ahead of it.
func (s *Session) setConn(c net.Conn) {
	s.conn = c
	s.br = bufio.NewReaderSize(c, maxLine)
}

package web

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/maildispatch/maildispatch/proto/plain"
)

//go:embed templates/*.html style.css
var files embed.FS

// Config of a Page. All but Now and Logger is needed.
type Config struct {
	// Calls leads to the service, which asks every caller who it is.
	Calls grpc.ClientConnInterface
	// Samples leads to GetQueueStats of the whole service, for the charts.
	Samples grpc.ClientConnInterface
	// Asks reports whether callers are asked who they are.
	Asks func() bool
	// Target is where grpcurl finds a service, such as maildispatch.v1.Dispatch, for somebody
	// who has reached the page under the name of this host.
	Target func(host, service string) plain.Target
	// Named reports whether a host name is one of the page's. Others are refused, so that no
	// foreign page can have its own name lead here (DNS rebinding).
	Named func(host string) bool
	// Loopback: the page can be reached from this machine only.
	Loopback bool
	// TLS: the page is served over it.
	TLS bool
	// Port tells the cookies of services on one host apart.
	Port   string
	Logger *slog.Logger
	Now    func() time.Time
}

// Page is the web page. Make it with New; Run keeps the samples of its charts.
type Page struct {
	cfg      Config
	views    map[string]*template.Template // read only
	style    styleSheet
	mux      *http.ServeMux
	sessions sessions
	logins   limiter
	history  history
	made     onces
	reading  chan struct{} // has a place for each message that is read whole
	key      []byte        // of the CSRF tokens
	cross    *http.CrossOriginProtection
}

// New makes the page. It fails only with templates that do not parse.
func New(cfg Config) (*Page, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Page{cfg: cfg, key: make([]byte, 32), reading: make(chan struct{}, maxReading), cross: http.NewCrossOriginProtection()}
	_, _ = rand.Read(p.key) // never fails: crypto/rand ends the program first
	p.sessions.now, p.logins.now = cfg.Now, cfg.Now
	var err error
	if p.views, err = parseViews(); err != nil {
		return nil, err
	}
	if p.style, err = readStyle(); err != nil {
		return nil, err
	}
	p.mux = p.routes()
	return p, nil
}

// Run takes samples of the queue until ctx ends.
func (p *Page) Run(ctx context.Context) { p.history.run(ctx, p) }

// routes has a line for each view and act.
func (p *Page) routes() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("GET /style.css", p.style.serve)
	m.HandleFunc("GET /login", p.anybody(p.login))
	m.HandleFunc("POST /login", p.anybody(p.signIn))
	m.HandleFunc("POST /logout", p.anybody(p.signOut))
	m.HandleFunc("GET /{$}", p.known(home))
	m.HandleFunc("GET /queue", p.known(queue))
	m.HandleFunc("GET /servers", p.known(servers))
	m.HandleFunc("GET /servers/{name}", p.known(server))
	m.HandleFunc("GET /server/add", p.known(addForm))
	m.HandleFunc("GET /server/edit", p.known(editForm))
	m.HandleFunc("POST /server/save", p.known(save))
	m.HandleFunc("POST /server/test", p.known(test))
	m.HandleFunc("GET /act", p.known(confirm))
	m.HandleFunc("POST /act", p.known(perform))
	m.HandleFunc("GET /batches", p.known(batches))
	m.HandleFunc("GET /batch", p.known(batch))
	m.HandleFunc("GET /operations", p.known(operations))
	m.HandleFunc("GET /operations/{id}", p.known(operation))
	m.HandleFunc("GET /move", p.known(move))
	m.HandleFunc("GET /audit", p.known(audit))
	m.HandleFunc("GET /tokens", p.known(tokens))
	m.HandleFunc("GET /token", p.known(tokenForm))
	m.HandleFunc("POST /token", p.known(makeToken))
	m.HandleFunc("GET /holds", p.known(holds))
	m.HandleFunc("GET /service", p.known(service))
	m.HandleFunc("GET /mails", p.known(mails))
	m.HandleFunc("GET /mails/{id}", p.known(mail))
	m.HandleFunc("GET /mails/{id}/message", p.known(showMessage))
	m.HandleFunc("GET /mails/{id}/parts/{part}", p.known(showPart))
	m.HandleFunc("GET /mails/{id}/raw", p.knownWithin(downloadTime, raw))
	return m
}

// maxForm bounds what a form may send: a certificate is the largest of it.
const maxForm = 256 << 10

// maxQuery bounds an address: a view leads to others that repeat what it says.
const maxQuery = 2500

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("X-DNS-Prefetch-Control", "off")
	h.Set("Cache-Control", "no-store")
	if p.cfg.TLS {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	if !p.ours(r.Host) {
		http.Error(w, "This name is not one of the page's.", http.StatusMisdirectedRequest)
		return
	}
	if len(r.URL.RawQuery) > maxQuery {
		http.Error(w, "The address is too long.", http.StatusRequestURITooLong)
		return
	}
	if err := p.cross.Check(r); err != nil {
		http.Error(w, "The request comes from another site.", http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	p.mux.ServeHTTP(w, r)
}

// ours reports whether the page is meant by a Host header. An address cannot be made to lead
// elsewhere, a name can.
func (p *Page) ours(host string) bool {
	name := hostOnly(host)
	ip, err := netip.ParseAddr(name)
	switch {
	case name == "localhost", err == nil && ip.IsLoopback():
		return true
	case err == nil:
		return !p.cfg.Loopback
	}
	return name != "" && p.cfg.Named(name)
}

// hostOnly is a Host header without its port.
func hostOnly(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

// errDone says that a view has answered already.
var errDone = errors.New("answered")

package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// jsonAttr writes times with milliseconds, and durations as milliseconds under a name that says
// so: slog writes nanoseconds, which no reader expects.
func jsonAttr(groups []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindTime:
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.String(a.Key, a.Value.Time().Format("2006-01-02T15:04:05.000Z07:00"))
		}
	case slog.KindDuration:
		return slog.Float64(a.Key+"_ms", float64(a.Value.Duration().Microseconds())/1000)
	}
	return a
}

// refusedEvery is how often the log hears of refused handshakes: whoever knocks with the wrong
// certificate may do so many times a second.
const refusedEvery = 10 * time.Second

// refusals are the TLS handshakes that failed.
type refusals struct {
	log   *slog.Logger
	count func() // hears of each; nil = nobody does

	mu     sync.Mutex // guards the rest
	told   time.Time
	untold int
}

func (r *refusals) note(c net.Conn, err error) {
	if errors.Is(err, io.EOF) {
		return // somebody looked whether the port is open
	}
	if r.count != nil {
		r.count()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.untold++
	if time.Since(r.told) < refusedEvery {
		return
	}
	from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	r.log.Warn("a TLS handshake failed", "from", from, "error", err, "failed", r.untold)
	r.told, r.untold = time.Now(), 0
}

// ServerHandshake implements credentials.TransportCredentials.
func (t *transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(c)
	if err != nil && t.pair != nil {
		t.refusals.note(c, err)
	}
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// tellBuild is the first line of a service that runs.
func (s *Server) tellBuild(ctx context.Context) {
	b := buildOf()
	s.log.InfoContext(ctx, "maildispatchd", "version", b.Version, "revision", b.Revision, "go", b.Go)
	if len(s.cfg.unknown) > 0 {
		s.log.WarnContext(ctx, "the environment has variables that are no flag's: their values count for nothing", "variables", strings.Join(s.cfg.unknown, " "))
	}
}

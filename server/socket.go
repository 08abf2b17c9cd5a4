package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/api"
	"github.com/maildispatch/maildispatch/server/internal/interceptor"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/store"
)

// maxSocketPath is how many octets the address of a unix socket has room for.
const maxSocketPath = 100

// localSocket is where people on this machine make and revoke tokens. Without it there is no
// first token while the service has the database: SQLite lets one process in.
type localSocket struct {
	net.Listener
	grpc *grpc.Server
}

// openSocket offers AccessAdmin on a unix socket that only this user and root can use. Another
// process that has the same socket keeps it.
func openSocket(cfg *Config, log *slog.Logger, calls interceptor.Observer, admin pb.AccessAdminServer) (*localSocket, error) {
	path := cfg.Socket()
	if path == "" {
		return nil, nil
	}
	if len(path) > maxSocketPath {
		if cfg.AdminSocket != "" {
			return nil, fmt.Errorf("admin-socket: %s has more than %d octets", path, maxSocketPath)
		}
		log.Warn("there is no socket for `maildispatchd token`: its path is too long; give --admin-socket", "path", path)
		return nil, nil
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close() // nothing was said
		log.Info("another process has the socket for `maildispatchd token`", "path", path)
		return nil, nil
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		_ = os.Remove(path) // of a process that is gone; else Listen says so
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		if err = os.Chmod(path, 0o600); err != nil {
			err = errors.Join(err, l.Close())
		}
	}
	if err != nil && cfg.AdminSocket == "" {
		log.Warn("there is no socket for `maildispatchd token`", "error", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("admin-socket: %w", err)
	}
	s := &localSocket{Listener: sameUser{l, log}, grpc: grpc.NewServer(interceptor.Options(log, access.As(access.Local()), nil, calls)...)}
	pb.RegisterAccessAdminServer(s.grpc, admin)
	return s, nil
}

func (s *localSocket) serve() {
	if s != nil {
		_ = s.grpc.Serve(s.Listener) // ends with stop
	}
}

func (s *localSocket) stop() {
	if s != nil {
		s.grpc.Stop()
		_ = s.Listener.Close() // again, where it has never served
	}
}

// sameUser accepts connections of this process's user and of root.
type sameUser struct {
	net.Listener
	log *slog.Logger
}

func (s sameUser) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUser(c)
		if err == nil && (uid == 0 || uid == os.Getuid()) {
			return c, nil
		}
		s.log.Warn("another user was refused at the socket for `maildispatchd token`", "uid", uid, "error", err)
		_ = c.Close() // it was never heard
	}
}

// LocalAdmin is AccessAdmin over the database itself, for when no service runs. The context
// that it gives is that of a system administrator. secrets: with the key file, for
// ResealSecrets.
func LocalAdmin(ctx context.Context, cfg Config, secrets bool) (context.Context, pb.AccessAdminServer, func() error, error) {
	var out *outbound.Outbound
	if secrets {
		keys, err := readKeys(&cfg)
		if err != nil {
			return nil, nil, nil, err
		}
		if out, err = outbound.New(keys, cfg.LocalhostSMTP, cfg.HeloName); err != nil {
			return nil, nil, nil, err
		}
	}
	st, err := store.Open(ctx, cfg.Database, store.Options{AllowUnsafe: cfg.AllowUnsafe})
	if err != nil {
		return nil, nil, nil, err
	}
	a := api.New(api.Config{TokenKey: []byte("pages are read at once"), Outbound: out})
	return access.NewContext(ctx, access.Local()), a.AccessAdmin(st, func(context.Context) {}, func() bool { return true }), st.Close, nil
}

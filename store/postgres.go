package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Pools says how many connections to PostgreSQL a process opens at most; 0 = the default. The
// lease has one more, so that nothing can keep it from being renewed.
type Pools struct {
	// Mail is for mail under way: what is accepted, claimed, marked and settled. Default 12.
	Mail int
	// Work is for what people and cleaning ask for in longer transactions. Default 4.
	Work int
	// Read is for lists, counts, watchers and downloads. Default 8.
	Read int
}

// DefaultPools are those of a process that says nothing else.
var DefaultPools = Pools{Mail: 12, Work: 4, Read: 8}

func (p Pools) orDefault() Pools {
	if p.Mail <= 0 {
		p.Mail = DefaultPools.Mail
	}
	if p.Work <= 0 {
		p.Work = DefaultPools.Work
	}
	if p.Read <= 0 {
		p.Read = DefaultPools.Read
	}
	return p
}

// How long a statement may take at the server, by what it is for. A connection is closed when
// nothing moves for silenceAfter more: its answers have stopped then.
const (
	mailStatement  = 10 * time.Second
	leaseStatement = 3 * time.Second // a renewal every 5 s has to fit in, with a new connection
	readStatement  = 30 * time.Second
	workStatement  = time.Minute
	silenceAfter   = 2 * time.Second

	poolLifetime = 30 * time.Minute
	poolIdle     = 5 * time.Minute
)

// openPostgres connects with the settings that the hot statements were measured with. sslmode
// has to be said, because the driver's default is about to change and mail content goes over
// this line. session is what a server has to be for it.
func (s *Store) openPostgres(ctx context.Context, dsn string, pools Pools, session pq.TargetSessionAttrs) error {
	s.dialect = onPostgres{s}
	base, err := pgConfig(dsn, session)
	if err != nil {
		return err
	}
	pools = pools.orDefault()
	s.working = make(chan struct{}, pools.Work)
	group := &poolGroup{fresh: s.sameDatabase}
	open := func(name string, size int, limit time.Duration, set map[string]string) *sqlx.DB {
		cfg := base.Clone()
		cfg.ApplicationName += "/" + name // for who looks at pg_stat_activity
		cfg.Runtime["statement_timeout"] = strconv.FormatInt(limit.Milliseconds(), 10)
		for k, v := range set {
			setDefault(cfg.Runtime, k, v)
		}
		return sqlx.NewDb(openPool(group, cfg, size, limit+silenceAfter), "postgres")
	}
	// A prepared statement keeps the plan that it got when its tables were small or had just
	// been emptied, also when they have grown: until the next analyze every claim would then
	// read all of them. No named statement gains by reading a table as a whole.
	named := map[string]string{
		"enable_seqscan":   "off",
		"enable_mergejoin": "off", // it reads an index as a whole
		// for plans that seem dear to it, as those without an index do now: 50 ms for the few
		// rows of replica
		"jit": "off",
	}
	s.read = open("read", (pools.Read+1)/2, readStatement, nil)
	s.look = open("look", (pools.Read+1)/2, readStatement, named)
	s.write = open("mail", pools.Mail+pools.Work, mailStatement, named)
	s.own = s.write
	s.lease = open("lease", 1, leaseStatement, named)
	s.migrating = func() *sql.DB {
		cfg := base.Clone()
		cfg.Runtime["statement_timeout"] = "0"
		cfg.Runtime["lock_timeout"] = strconv.FormatInt(migrationLock.Milliseconds(), 10)
		return openPool(&poolGroup{}, cfg, 2, 0)
	}
	pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := s.write.Connx(pctx) // a ping would not say why
	if err != nil {
		return fmt.Errorf("database: cannot reach PostgreSQL at %s: %w", hostsOf(base), err)
	}
	return c.Close()
}

// pgConfig reads an address. session is what a server has to be, unless the address says.
// Several hosts are tried in their order, and the first that can write is used; each may have a
// port of its own, as libpq has it.
func pgConfig(dsn string, session pq.TargetSessionAttrs) (pq.Config, error) {
	// url's own error would show the password
	unreadable := errors.New("database: the PostgreSQL address cannot be read")
	dsn, hosts := splitHosts(dsn)
	u, err := url.Parse(dsn)
	if err != nil {
		return pq.Config{}, unreadable
	}
	q := u.Query()
	if q.Get("sslmode") == "" {
		return pq.Config{}, errors.New("database: say sslmode in the PostgreSQL address: sslmode=verify-full, or sslmode=disable on this machine")
	}
	if len(hosts) > 1 {
		var names, ports []string
		for _, h := range hosts {
			name, port, err := net.SplitHostPort(h)
			if err != nil {
				name, port = strings.Trim(h, "[]"), "5432"
			}
			names, ports = append(names, name), append(ports, port)
		}
		u.Host = ""
		q.Set("host", strings.Join(names, ","))
		if q.Get("port") == "" {
			q.Set("port", strings.Join(ports, ","))
		}
		u.RawQuery = q.Encode()
	}
	cfg, err := pq.NewConfig(u.String())
	if err != nil {
		return pq.Config{}, fmt.Errorf("database: %w", err)
	}
	cfg.BinaryParameters = true // one round trip, raw bytea
	if cfg.ApplicationName == "" {
		cfg.ApplicationName = "maildispatch"
	}
	if cfg.ConnectTimeout == 0 {
		// of one host; all of them have to fit into a renewal of the lease
		cfg.ConnectTimeout = max(time.Second, 4*time.Second/time.Duration(1+len(cfg.Multi)))
	}
	if cfg.TargetSessionAttrs == "" {
		cfg.TargetSessionAttrs = session
	}
	if cfg.Runtime == nil {
		cfg.Runtime = map[string]string{}
	}
	// whatever the server, the user or the database says
	setDefault(cfg.Runtime, "synchronous_commit", "on")
	// ms; guards the vacuum horizon
	setDefault(cfg.Runtime, "idle_in_transaction_session_timeout", "10000")
	// What a server process has to write out itself goes to the disk at once and in small
	// parts. Left to the kernel, hundreds of megabytes go there every half minute in one burst,
	// and every commit waits a quarter of a second for it.
	setDefault(cfg.Runtime, "backend_flush_after", "128kB")
	return cfg, nil
}

func setDefault(m map[string]string, k, v string) {
	if m[k] == "" {
		m[k] = v
	}
}

// splitHosts takes the list of hosts out of an address that names several, which net/url cannot
// read where they have ports. An address with one host or none comes back as it is.
func splitHosts(dsn string) (string, []string) {
	scheme, rest, ok := strings.Cut(dsn, "://")
	if !ok {
		return dsn, nil
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	user := ""
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, authority = authority[:i+1], authority[i+1:]
	}
	if !strings.Contains(authority, ",") {
		return dsn, nil
	}
	return scheme + "://" + user + tail, strings.Split(authority, ",")
}

func hostsOf(cfg pq.Config) string {
	out := []string{net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))}
	for _, m := range cfg.Multi {
		out = append(out, net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port))))
	}
	return strings.Join(out, ", ")
}

// RedactDSN is dsn without its password, which PostgreSQL's driver takes in the user part and
// as a parameter.
func RedactDSN(dsn string) string {
	if strings.HasPrefix(dsn, "sqlite:") {
		return dsn
	}
	rest, hosts := splitHosts(dsn)
	u, err := url.Parse(rest)
	if err != nil {
		return "(unreadable)"
	}
	q := u.Query()
	for k := range q {
		if strings.Contains(strings.ToLower(k), "password") {
			q.Set(k, "xxxxx")
			u.RawQuery = q.Encode()
		}
	}
	if len(hosts) > 0 {
		u.Host = strings.Join(hosts, ",")
	}
	return u.Redacted()
}

package server

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/logwriter"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/server/internal/retention"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Config of one service process. Each field has a flag and, as its fallback, an environment
// variable MAILDISPATCH_<FLAG> in capitals with _ for -.
type Config struct {
	Listen        string        // host:port; port 0 picks one
	AdminListen   string        // where administrators call; "" = where everybody does
	Database      string        // sqlite:PATH or postgres://...
	Connections   store.Pools   // to PostgreSQL
	AllowUnsafe   bool          // of store.Options
	BatchInterval time.Duration // 0 = the batch never rests
	KeyFile       string        // seals passwords
	LostSecrets   bool          // start although the key file opens none of the stored secrets
	Keep          string        // for how long finished mail is kept; "" = for ever
	LocalhostSMTP string        // where TYPE_LOCALHOST servers hand over
	// what may be dialled; "" = the default of smtpx.ParseDestinations
	Destinations string
	// what may be called for access tokens
	TokenDestinations string
	HeloName          string // "" = the machine's name
	TLSCert           string
	TLSKey            string
	ClientCA          string
	// file of the names in client certificates and of workloads; "" = they name nobody
	ClientNames   string
	oidc          oidcConfig
	Auth          string // auto, required or none
	AdminSocket   string // "" = beside the key file, "none" = none
	Insecure      bool
	Reflection    string // auto, true or false
	ShutdownGrace time.Duration
	LogFormat     string // text or json
	LogLevel      string // debug, info, warn, error
	PrintConfig   bool
	Limits        quota.Limits // of callers, teams and addresses; zero = none
	// connections of callers at one address that is listened on, in all and from one address
	// of theirs; 0 = no bound
	MaxConnections, MaxConnectionsEach int

	MetricsListen string        // "" = no metrics
	HealthListen  string        // "" = no port of its own for health
	WebListen     string        // "" = no page for people
	TraceEndpoint string        // "" = no traces
	TraceSample   float64       // share of the calls that are followed
	DrainDelay    time.Duration // between NOT_SERVING and the end of the ports

	LogOutput io.Writer // nil = standard error

	unknown []string // variables that look like a flag's twin and are none
}

// Flags declares the flags of serve on fs, with what the environment says as defaults. Values
// that do not parse are reported by Validate or by fs.Parse.
func (c *Config) Flags(fs *flag.FlagSet) error {
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:50051", "address to listen on; port 0 picks one")
	fs.StringVar(&c.AdminListen, "admin-listen", "", "address of its own for MailServerAdmin and AccessAdmin, which are not served at --listen then")
	fs.StringVar(&c.Database, "database", "sqlite:maildispatch.db", "sqlite:PATH, or postgres://user@host/db?sslmode=verify-full")
	fs.IntVar(&c.Connections.Mail, "database-mail-connections", store.DefaultPools.Mail, "PostgreSQL connections for mail under way, at most; the lease has one more")
	fs.IntVar(&c.Connections.Work, "database-work-connections", store.DefaultPools.Work, "PostgreSQL connections for longer changes, such as holding a batch, at most")
	fs.IntVar(&c.Connections.Read, "database-read-connections", store.DefaultPools.Read, "PostgreSQL connections for lists, counts, watchers and downloads, at most")
	fs.BoolVar(&c.AllowUnsafe, "allow-unsafe-database", false, "use a PostgreSQL server with fsync or full_page_writes off, or a database that a newer version has migrated")
	fs.DurationVar(&c.BatchInterval, "batch-interval", time.Minute, "how often daemon-mode mail is sent; 0 = the batch never rests")
	fs.StringVar(&c.KeyFile, "key-file", "maildispatch.key", "file with the keys that seal passwords; made by itself beside an SQLite database, required with PostgreSQL")
	fs.BoolVar(&c.LostSecrets, "lost-secrets", false, "start although the key file opens none of the stored secrets, which have to be given again")
	fs.StringVar(&c.Keep, "keep", "", "for how long finished mail is kept, by kind: metadata/body/attachments, such as invoice:10y/2y/2y,bulk:90d/7d/0,all:5y; metadata for 7d at least; empty: for ever")
	fs.StringVar(&c.LocalhostSMTP, "localhost-smtp", "127.0.0.1:25", "where TYPE_LOCALHOST mail servers hand over")
	fs.StringVar(&c.Destinations, "smtp-destinations", "", "what may be dialled, such as public:25+465+587+2525,10.0.0.0/8:25; default: public and private addresses and loopback, on ports 25 465 587 2525")
	fs.StringVar(&c.TokenDestinations, "token-destinations", defaultTokenDestinations, "what may be called for access tokens of AUTH_XOAUTH2, such as public:443,10.1.0.0/16:8443; loopback, and http, only where loopback:PORTS is named")
	fs.StringVar(&c.HeloName, "helo-name", "", "name given in EHLO: a full host name, or an address as [192.0.2.1] or [IPv6:2001:db8::1]; default: the machine's name")
	fs.StringVar(&c.TLSCert, "tls-cert", "", "PEM certificate of the service; read again when it changes")
	fs.StringVar(&c.TLSKey, "tls-key", "", "PEM key of the certificate")
	fs.StringVar(&c.ClientCA, "client-ca", "", "PEM authorities whose client certificates are required")
	fs.StringVar(&c.ClientNames, "client-names", "", "file that says what callers with a client certificate may do, by its DNS or URI name, and workloads by oidc:SUBJECT; read again when it changes")
	fs.StringVar(&c.Auth, "auth", "auto", "whether callers need a token or a known certificate: required, none (on loopback only), or auto: required, but on loopback only once a token was made")
	fs.StringVar(&c.AdminSocket, "admin-socket", "", "unix socket for maildispatchd token; default: the key file's path with .sock behind it; none: no socket")
	fs.BoolVar(&c.Insecure, "insecure", false, "listen beyond loopback without TLS, where something else encrypts; callers need tokens all the same")
	fs.StringVar(&c.Reflection, "reflection", "auto", "offer server reflection, which grpcurl uses: true, false, or auto: on loopback only")
	fs.DurationVar(&c.ShutdownGrace, "shutdown-grace", 20*time.Second, "how long mails and calls under way may take after SIGTERM")
	c.declareLimits(fs)
	c.declareWatch(fs)
	c.declareWorkloads(fs)
	fs.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	fs.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.BoolVar(&c.PrintConfig, "print-config", false, "print the configuration in force, secrets hidden, and end")
	var errs []error
	fs.VisitAll(func(f *flag.Flag) {
		env := variablePrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := os.LookupEnv(env); ok {
			if err := f.Value.Set(v); err != nil {
				errs = append(errs, fmt.Errorf("invalid value %q for %s: %w", v, env, err))
			}
		}
	})
	c.unknown = unknownVariables(os.Environ(), func(name string) bool { return fs.Lookup(name) != nil })
	return errors.Join(errs...)
}

// Validate finds what cannot work, first thing first.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen: %q is not host:port", c.Listen)
	}
	if _, _, err := net.SplitHostPort(c.AdminListen); err != nil && c.AdminListen != "" {
		return fmt.Errorf("admin-listen: %q is not host:port", c.AdminListen)
	}
	open := c.Listen // what can be reached from elsewhere, if anything can
	if onLoopback(open) && c.AdminListen != "" {
		open = c.AdminListen
	}
	if onLoopback(open) {
		open = c.WebListen
	}
	switch {
	case c.Auth != string(access.Auto) && c.Auth != string(access.Required) && c.Auth != string(access.None):
		return fmt.Errorf("auth: %q is none of auto, required, none", c.Auth)
	case !c.OnLoopback() && c.Auth == string(access.None):
		return fmt.Errorf("auth: none is for loopback only, and %q is not: anybody who reaches it could send mail and change mail servers", open)
	case c.WebListen != "" && !onLoopback(c.WebListen) && c.TLSCert == "":
		return fmt.Errorf("web-listen: %q is not loopback, and tokens would travel in plaintext: give --tls-cert and --tls-key", c.WebListen)
	case !c.OnLoopback() && c.TLSCert == "" && !c.Insecure:
		return fmt.Errorf("listen: %q is not loopback, and tokens would travel in plaintext: give --tls-cert and --tls-key, or --insecure where something else encrypts", open)
	case c.Reflection != "auto" && c.Reflection != "true" && c.Reflection != "false":
		return fmt.Errorf("reflection: %q is none of auto, true, false", c.Reflection)
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return errors.New("tls-cert and tls-key go together")
	case c.ClientCA != "" && c.TLSCert == "":
		return errors.New("client-ca needs tls-cert and tls-key")
	case c.Connections.Mail < 1 || c.Connections.Work < 1 || c.Connections.Read < 2:
		return errors.New("database-mail-connections and database-work-connections are at least 1, database-read-connections at least 2")
	case c.BatchInterval < 0:
		return errors.New("batch-interval: is negative")
	case c.ShutdownGrace < 0:
		return errors.New("shutdown-grace: is negative")
	case c.LogFormat != "text" && c.LogFormat != "json":
		return fmt.Errorf("log-format: %q is neither text nor json", c.LogFormat)
	}
	if c.MaxConnections < 0 || c.MaxConnectionsEach < 0 {
		return errors.New("connections: is negative: 0 means none")
	}
	if err := errors.Join(c.Limits.Check(), c.checkWatch(), c.checkWorkloads()); err != nil {
		return err
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return fmt.Errorf("log-level: %q is none of debug, info, warn, error", c.LogLevel)
	}
	if _, err := smtpx.ParseDestinations(c.Destinations); err != nil {
		return fmt.Errorf("smtp-destinations: %w", err)
	}
	if _, err := c.tokenDestinations(); err != nil {
		return err
	}
	if _, err := c.KeepRules(); err != nil {
		return err
	}
	if _, err := outbound.New(nil, c.LocalhostSMTP, c.HeloName); err != nil {
		return err
	}
	return store.CheckDSN(c.Database)
}

// Check is Validate and a look at the files that the configuration names. It changes nothing
// and asks nobody.
func (c *Config) Check() error {
	if err := c.Validate(); err != nil {
		return err
	}
	if _, err := newTransport(c, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	if c.ClientNames != "" {
		if err := access.CheckNames(c.ClientNames); err != nil {
			return fmt.Errorf("client-names: %w", err)
		}
	}
	_, err := readKeys(c)
	if errors.Is(err, fs.ErrNotExist) && c.sqlite() != "" {
		return nil // will be made
	}
	return err
}

// KeepRules are the rules of --keep.
func (c *Config) KeepRules() ([]store.KeepRule, error) {
	rules, err := retention.Parse(c.Keep)
	if err != nil {
		return nil, fmt.Errorf("keep: %w", err)
	}
	return rules, nil
}

// tokenDestinations is where access tokens may be asked for.
func (c *Config) tokenDestinations() (*smtpx.Destinations, error) {
	spec := c.TokenDestinations
	if spec == "" {
		spec = defaultTokenDestinations
	}
	d, err := smtpx.ParseDestinations(spec)
	if err != nil {
		return nil, fmt.Errorf("token-destinations: %w", err)
	}
	return d, nil
}

// defaultTokenDestinations leaves this machine and private networks out: what answers there was
// not made for strangers.
const defaultTokenDestinations = "public:443"

// OnLoopback reports whether the service can be reached from this machine only.
func (c *Config) OnLoopback() bool {
	return onLoopback(c.Listen) && (c.AdminListen == "" || onLoopback(c.AdminListen)) && (c.WebListen == "" || onLoopback(c.WebListen))
}

// reflect reports whether the schema is told at an address.
func (c *Config) reflect(address string) bool {
	return c.Reflection == "true" || c.Reflection == "auto" && onLoopback(address)
}

func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// sqlite is the path of the SQLite database, "" with PostgreSQL.
func (c *Config) sqlite() string {
	path, _ := strings.CutPrefix(c.Database, "sqlite:")
	if path == c.Database {
		return ""
	}
	return path
}

// keyFile is where the key is: beside an SQLite database unless a path was given.
func (c *Config) keyFile() string {
	if path := c.sqlite(); path != "" && c.KeyFile == "maildispatch.key" {
		return filepath.Join(filepath.Dir(path), c.KeyFile)
	}
	return c.KeyFile
}

// StateFile is where the machine of a service with this configuration remembers how far its
// database was.
func (c *Config) StateFile() string { return c.stateFile() }

// stateFile is where this machine remembers how far the database was.
func (c *Config) stateFile() string { return c.keyFile() + ".state" }

// Socket is where `maildispatchd token` finds the service; "" = nowhere.
func (c *Config) Socket() string {
	switch c.AdminSocket {
	case "":
		return c.keyFile() + ".sock"
	case "none":
		return ""
	}
	return c.AdminSocket
}

// String is the configuration in force, one line a flag, without secrets.
func (c *Config) String() string {
	var b strings.Builder
	for _, kv := range [][2]any{{"listen", c.Listen}, {"admin-listen", c.AdminListen}, {"database", store.RedactDSN(c.Database)}, {"database-mail-connections", c.Connections.Mail},
		{"database-work-connections", c.Connections.Work}, {"database-read-connections", c.Connections.Read},
		{"allow-unsafe-database", c.AllowUnsafe}, {"batch-interval", c.BatchInterval}, {"key-file", c.keyFile()}, {"lost-secrets", c.LostSecrets},
		{"keep", c.Keep}, {"localhost-smtp", c.LocalhostSMTP}, {"smtp-destinations", c.Destinations}, {"token-destinations", c.TokenDestinations}, {"helo-name", c.HeloName}, {"tls-cert", c.TLSCert}, {"tls-key", c.TLSKey},
		{"client-ca", c.ClientCA}, {"client-names", c.ClientNames}, {"auth", c.Auth}, {"admin-socket", c.Socket()}, {"insecure", c.Insecure}, {"reflection", c.Reflection}, {"shutdown-grace", c.ShutdownGrace}, {"log-format", c.LogFormat}, {"log-level", c.LogLevel}} {
		fmt.Fprintf(&b, "%v=%v\n", kv[0], kv[1])
	}
	return b.String() + c.limitLines() + c.watchLines() + c.workloadLines()
}

// logger returns the log and its end, which the service has write in groups while it runs.
func (c *Config) logger() (*slog.Logger, *logwriter.Writer) {
	w := logwriter.New(os.Stderr)
	if c.LogOutput != nil {
		w = logwriter.New(c.LogOutput)
	}
	var l slog.Level
	_ = l.UnmarshalText([]byte(c.LogLevel)) // checked by Validate
	opt := &slog.HandlerOptions{Level: l}
	if c.LogFormat == "json" {
		opt.ReplaceAttr = jsonAttr
		return slog.New(w.Handler(slog.NewJSONHandler(w, opt))), w
	}
	return slog.New(w.Handler(slog.NewTextHandler(w, opt))), w
}

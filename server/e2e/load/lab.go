package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// lab is what all runs share: a folder, the built service and the PostgreSQL cluster.
type lab struct {
	dir     string
	kept    string // the folder, when it stays
	binary  string // built on first use
	cluster *storetest.Cluster
	master  int // process id of the cluster
	names   int // databases made so far
}

func openLab(keep bool) (*lab, error) {
	dir, err := os.MkdirTemp("", "maildispatch-load-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir}
	if keep {
		l.kept = dir
	}
	return l, nil
}

// close removes the folder. The cluster ends with this process.
func (l *lab) close() {
	if l.kept == "" {
		_ = os.RemoveAll(l.dir) // what stays behind lies in the system's folder for such things
	}
}

const (
	module  = "github.com/maildispatch/maildispatch"
	profEnv = "MAILDISPATCH_PROFILE_DIR"
)

// service builds the service unless there is one.
func (l *lab) service(ctx context.Context, c *config) (string, error) {
	if c.binary != "" {
		return c.binary, nil
	}
	if l.binary != "" {
		return l.binary, nil
	}
	path := filepath.Join(l.dir, "maildispatchd")
	args := []string{"build", "-o", path}
	if c.profile != "" {
		args = append(args, "-tags", "profile")
	}
	if out, err := exec.CommandContext(ctx, "go", append(args, module+"/server/cmd/maildispatchd")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	l.binary = path
	return path, nil
}

// seasoned is how much log, in MiB, a fresh cluster writes and recycles before it is measured.
// A server that has run for a while writes its log into segments it already has; a new one
// makes every 16 MiB of it anew, and holds up all commits for 5 to 50 ms each time.
const seasoned = 3 << 10

// postgres makes a fresh database in the cluster, which is started on first use.
func (l *lab) postgres(c *config) (string, error) {
	season := l.cluster == nil
	if season {
		extra := []string{fmt.Sprintf("min_wal_size=%dMB", seasoned)}
		if c.profile != "" {
			extra = append(extra, "shared_preload_libraries=pg_stat_statements", "track_io_timing=on")
		}
		cl, err := storetest.StartCluster(extra...)
		if err != nil {
			return "", err
		}
		b, err := os.ReadFile(filepath.Join(cl.Dir, "postmaster.pid"))
		if err != nil {
			return "", err
		}
		first, _, _ := bytes.Cut(b, []byte("\n"))
		if l.master, err = strconv.Atoi(string(first)); err != nil {
			return "", fmt.Errorf("postmaster.pid: %w", err)
		}
		l.cluster = cl
	}
	db, err := sql.Open("postgres", l.cluster.DSN())
	if err != nil {
		return "", err
	}
	defer db.Close()
	do := func(statement string) {
		if err == nil {
			if _, err = db.Exec(statement); err != nil {
				err = fmt.Errorf("%s: %w", statement, err)
			}
		}
	}
	if l.names > 0 {
		do("drop database " + l.name() + " with (force)")
	}
	l.names++
	do("alter system reset all")
	for kv := range strings.FieldsSeq(c.postgres) {
		k, v, _ := strings.Cut(kv, "=")
		do(fmt.Sprintf("alter system set %s = '%s'", k, v))
	}
	do("select pg_reload_conf()")
	do("create database " + l.name())
	if c.profile != "" {
		do("create extension if not exists pg_stat_statements")
		do("select pg_stat_statements_reset()")
	}
	if season {
		do(fmt.Sprintf("select count(pg_logical_emit_message(false, '', repeat('x', 1 << 20))) from generate_series(1, %d)", seasoned))
	}
	do("checkpoint") // every run begins with an empty log
	if err != nil {
		return "", err
	}
	u, err := url.Parse(l.cluster.DSN())
	if err != nil {
		return "", err
	}
	u.Path = "/" + l.name()
	return u.String(), nil
}

func (l *lab) name() string { return fmt.Sprintf("load_%d", l.names) }

// bench is one run.
type bench struct {
	*figures
	config
	lab    *lab
	tally  *tally
	body   *bodies
	dsn    string
	dir    string   // of this run
	now    *process // the service that runs
	spare  usage    // of services that have ended
	peak   float64  // memory of the services that have ended, the largest, in MiB
	pss    atomic.Int64
	timing atomic.Bool // latencies are being measured
	// with access: of a system administrator, and of who sends
	admin, sender token

	base  map[string]time.Duration // CPU of PostgreSQL's processes when the service began
	procs map[string]time.Duration // and what they have used while services ran
}

// run makes one run of a scenario in a fresh database.
func (l *lab) run(ctx context.Context, sc *scenario, s *setting, n int) (_ *figures, err error) {
	restore, err := kernel(s.kernel)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("the run took longer than %v", s.timeout))
	defer cancel()
	b := &bench{figures: &figures{}, config: s.config, lab: l, body: newBodies(s.size, s.html), procs: map[string]time.Duration{}}
	if b.dir, err = os.MkdirTemp(l.dir, fmt.Sprintf("run%d-", n+1)); err != nil {
		return nil, err
	}
	b.dsn = "sqlite:" + filepath.Join(b.dir, "mail.db")
	if b.database == "postgres" {
		if b.dsn, err = l.postgres(&s.config); err != nil {
			return nil, err
		}
	}
	if b.tally, err = newTally(4*b.mails + 2*bulkMost + 100000); err != nil {
		return nil, err
	}
	defer b.tally.sink.Close()
	wctx, over := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { b.watchMemory(wctx) })
	stop, err := b.profiling(s.name, n)
	if err == nil {
		err = sc.run(ctx, b)
	}
	err = errors.Join(err, b.end())
	over()
	watch.Wait()
	if stop != nil {
		err = errors.Join(err, stop())
	}
	if err != nil {
		return nil, err
	}
	b.add("service peak MiB (VmHWM)", "%.0f", "< 256", b.peak)
	if b.database == "postgres" {
		b.add("database peak MiB (sum of PSS)", "%.0f", "", float64(b.pss.Load())/(1<<20))
	}
	b.wrong = append(b.wrong, b.tally.check()...)
	if l.kept == "" {
		err = os.RemoveAll(b.dir)
	}
	return b.figures, err
}

// watchMemory keeps the largest sum over PostgreSQL's processes, shared pages counted once,
// looked at twice a second; not while latencies are measured: counting the pages of twenty
// processes holds them up for tens of milliseconds.
func (b *bench) watchMemory(ctx context.Context) {
	if b.lab.master == 0 {
		return
	}
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for {
		if !b.timing.Load() {
			b.pss.Store(max(b.pss.Load(), pssOfTree(b.lab.master)))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// usage is the CPU used so far in this run's time, of the services that have ended too.
func (b *bench) usage() usage {
	u := b.spare
	if b.now != nil {
		u.service += cpuOf(b.now.cmd.Process.Pid)
	}
	if b.database == "postgres" {
		u.database = cpuOfTree(b.lab.master)
	}
	u.load = ownCPU()
	return u
}

// cpu notes what each part has used since before, in seconds per 1,000 mails. aim is for
// service and database together.
func (b *bench) cpu(name, aim string, before usage, mails int) {
	u := b.usage().since(before)
	per := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(mails) }
	b.add(name+" CPU service", "%.3f", "", per(u.service))
	if b.database == "postgres" {
		b.add(name+" CPU database", "%.3f", "", per(u.database))
		b.add(name+" CPU service+database", "%.3f", aim, per(u.service+u.database))
	}
	b.add(name+" CPU load+sink", "%.3f", "", per(u.load))
}

// process is the service.
type process struct {
	cmd      *exec.Cmd
	exited   chan error
	log      string
	conns    []*grpc.ClientConn
	admin    pb.MailServerAdminClient
	dispatch []pb.DispatchClient // one a channel
	journal  pb.DispatchClient   // of somebody who sees all mail
	addr     string
	tokens   pb.AccessAdminClient // of a system administrator; nil where nobody is asked
}

// begin starts the service and waits until it listens.
func (b *bench) begin(ctx context.Context, flags ...string) (*process, error) {
	path, err := b.lab.service(ctx, &b.config)
	if err != nil {
		return nil, err
	}
	key := filepath.Join(b.dir, "key")
	if _, err := os.Stat(key); err != nil {
		if out, err := exec.Command(path, "key", "create", key).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("key: %w: %s", err, out)
		}
	}
	p := &process{exited: make(chan error, 1), log: filepath.Join(b.dir, "service.log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(path, append(append([]string{"serve", "--listen=127.0.0.1:0", "--database=" + b.dsn, "--key-file=" + key, "--smtp-destinations=loopback:*"}, flags...), strings.Fields(b.serve)...)...)
	p.cmd.Env = append(append(os.Environ(), strings.Fields(b.env)...), profEnv+"="+b.dir)
	// a Ctrl-C is for this process, which stops it
	p.cmd.Stderr, p.cmd.SysProcAttr = log, &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.exited <- p.cmd.Wait() }()
	b.now = p
	if b.profile != "" {
		b.base = cpuByTitle(b.lab.master)
	}
	addr, err := p.address(ctx)
	if err != nil {
		return nil, err
	}
	p.addr = addr
	if b.access && b.admin == "" {
		if b.admin, b.sender, err = p.closeDoor(ctx); err != nil {
			return nil, err
		}
	}
	for range b.channels {
		conn, err := p.dial(b.sender)
		if err != nil {
			return nil, err
		}
		p.dispatch = append(p.dispatch, pb.NewDispatchClient(conn))
	}
	conn, err := p.dial(b.admin)
	if err != nil {
		return nil, err
	}
	p.admin, p.journal = pb.NewMailServerAdminClient(conn), pb.NewDispatchClient(conn)
	if b.access {
		p.tokens = pb.NewAccessAdminClient(conn)
	}
	return p, nil
}

// token is what a caller sends; "" = nothing.
type token string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: all is on this machine.
func (t token) RequireTransportSecurity() bool { return false }

// dial connects as the holder of a token. The connection ends with the service.
func (p *process) dial(t token, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if t != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(t))
	}
	conn, err := grpc.NewClient(p.addr, opts...)
	if err == nil {
		p.conns = append(p.conns, conn)
	}
	return conn, err
}

// team is whose mail is sent where callers are asked who they are.
const team = "load"

// closeDoor makes the first tokens: of a system administrator, and of one who sends for a team.
func (p *process) closeDoor(ctx context.Context) (admin, sender token, err error) {
	conn, err := p.dial("")
	if err != nil {
		return "", "", err
	}
	r, err := pb.NewAccessAdminClient(conn).CreateToken(ctx, &pb.CreateTokenRequest{Name: "ops", Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true})
	if err != nil {
		return "", "", err
	}
	admin = token(r.Secret)
	if conn, err = p.dial(admin); err != nil {
		return "", "", err
	}
	sender, err = newToken(ctx, pb.NewAccessAdminClient(conn), team, pb.Role_ROLE_SEND)
	return admin, sender, err
}

func newToken(ctx context.Context, a pb.AccessAdminClient, name string, role pb.Role) (token, error) {
	r, err := a.CreateToken(ctx, &pb.CreateTokenRequest{Name: name, Roles: []pb.Role{role}, Teams: []string{name}})
	if err != nil {
		return "", fmt.Errorf("token of %s: %w", name, err)
	}
	return token(r.Secret), nil
}

// address waits for the line that says where it listens.
func (p *process) address(ctx context.Context) (string, error) {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		b, _ := os.ReadFile(p.log) // it was made above
		if _, rest, ok := strings.Cut(string(b), "msg=listening address="); ok {
			if addr, _, ok := strings.Cut(rest, " "); ok {
				return addr, nil
			}
		}
		select {
		case err := <-p.exited:
			p.exited <- err
			return "", fmt.Errorf("the service ended (%v): %s", err, b)
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-t.C:
		}
	}
}

// end stops the service and notes its peak memory.
func (b *bench) end() error {
	p := b.now
	if p == nil {
		return nil
	}
	b.now = nil
	if b.profile != "" {
		for title, d := range cpuByTitle(b.lab.master) {
			b.procs[title] += d - b.base[title]
		}
	}
	for _, c := range p.conns {
		_ = c.Close() // its calls are over
	}
	pid := p.cmd.Process.Pid
	b.peak = max(b.peak, float64(peakOf(pid))/(1<<20))
	b.spare.service += cpuOf(pid)
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, which Wait tells
	select {
	case err := <-p.exited:
		if err != nil {
			out, _ := os.ReadFile(p.log)
			return fmt.Errorf("the service ended with %w: %s", err, out[max(0, len(out)-2000):])
		}
		return nil
	case <-time.After(40 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
		return errors.New("the service did not stop within 40 s of SIGTERM")
	}
}

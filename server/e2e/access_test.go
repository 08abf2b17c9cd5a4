package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// networkCommands are the commands of CONFIGURATION.md's page, but for the program's name.
func networkCommands(t *testing.T) [][]string {
	t.Helper()
	_, section, ok := strings.Cut(document(t, configuration), "\n## Open it to the network\n")
	if !ok {
		t.Fatal("CONFIGURATION.md has no section \"Open it to the network\"")
	}
	_, block, _ := strings.Cut(section, "```sh\n")
	block, _, _ = strings.Cut(block, "```")
	commands, err := shellWords(block)
	if err != nil || len(commands) != 4 || len(commands) > 10 {
		t.Fatalf("got %d commands, %v, want 4", len(commands), err)
	}
	for i, c := range commands {
		if c[0] != "maildispatchd" {
			t.Fatalf("%q is not a command of maildispatchd", c)
		}
		commands[i] = c[1:]
	}
	return commands
}

// TestOpenToTheNetwork does what CONFIGURATION.md's page says, word by word but for the
// address: a token before the service runs, one while it does, and nobody without one.
func TestOpenToTheNetwork(t *testing.T) {
	t.Parallel()
	commands := networkCommands(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: the address of a unix socket has little room.
	dir, err := os.MkdirTemp("", "md")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cert, key := certificateFiles(t)
	for to, from := range map[string]string{"cert.pem": cert, "key.pem": key} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	do := func(args []string) (stdout string) {
		t.Helper()
		cmd := exec.CommandContext(timeout(t), path, args...)
		var errs strings.Builder
		cmd.Dir, cmd.Env, cmd.Stderr = dir, cleanEnv(nil), &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, errs.String())
		}
		return strings.TrimSpace(string(out))
	}
	root := do(commands[0])
	args := slices.Clone(commands[1])
	if i := slices.Index(args, "0.0.0.0:50051"); i < 0 {
		t.Fatalf("%q listens somewhere else", args)
	} else {
		args[i] = "0.0.0.0:0"
	}
	s := &service{t: t, args: args, log: &logBuffer{}, dir: dir}
	s.run()
	t.Cleanup(s.stop)
	billing := do(commands[2])
	if list := do(commands[3]); !strings.Contains(list, "ops") || !strings.Contains(list, "billing") || strings.Contains(list, billing) {
		t.Errorf("got the list\n%s\nwant ops and billing, without a secret", list)
	}
	creds, err := credentials.NewClientTLSFromFile(cert, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("127.0.0.1:"+s.addr[strings.LastIndexByte(s.addr, ':')+1:], grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	who := pb.NewAccessAdminClient(conn)
	ask := func(token string) (*pb.WhoAmIResponse, error) {
		return who.WhoAmI(metadata.AppendToOutgoingContext(timeout(t), "authorization", "Bearer "+token), &pb.WhoAmIRequest{})
	}
	if me, err := ask(root); err != nil || !me.System || me.Name != "ops" {
		t.Errorf("ops: got %v, %v", me, err)
	}
	if me, err := ask(billing); err != nil || me.System || !slices.Equal(me.Teams, []string{"billing"}) {
		t.Errorf("billing: got %v, %v", me, err)
	}
	if _, err := who.WhoAmI(timeout(t), &pb.WhoAmIRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("nobody: got %v, want UNAUTHENTICATED", err)
	}
	if l := s.log.String(); strings.Contains(l, "nobody is asked") || strings.Contains(l, strings.Split(billing, "_")[2]) {
		t.Errorf("the log says that nobody is asked, or a secret:\n%s", l)
	}
}

// TestFirstTokenClosesAllReplicas: two replicas on loopback are open until one of them makes
// the first token. Three seconds later neither serves a caller without one, and none that was
// revoked on the other.
func TestFirstTokenClosesAllReplicas(t *testing.T) {
	t.Parallel()
	a := start(t, storetest.PostgresDSN(t))
	b := start(t, strings.TrimPrefix(a.args[slices.IndexFunc(a.args, func(s string) bool { return strings.HasPrefix(s, "--database=") })], "--database="), a.keyFile(), "--admin-socket=none")
	for _, s := range []*service{a, b} {
		if !strings.Contains(s.log.String(), "nobody is asked who calls") {
			t.Errorf("an open service does not say so:\n%s", s.log)
		}
	}
	admin := pb.NewAccessAdminClient(a.conn)
	made, err := admin.CreateToken(timeout(t), &pb.CreateTokenRequest{Name: "ops", Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true})
	if err != nil {
		t.Fatal(err)
	}
	with := func(c context.Context) context.Context {
		return metadata.AppendToOutgoingContext(c, "authorization", "Bearer "+made.Secret)
	}
	within := func(what string, ask func() codes.Code, want codes.Code) {
		t.Helper()
		began := time.Now()
		for ask() != want {
			if time.Since(began) > 3*time.Second {
				t.Fatalf("%s: got %v after 3 s, want %v", what, ask(), want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	for name, s := range map[string]*service{"the one": a, "the other": b} {
		within(name+" without a token", func() codes.Code {
			_, err := s.admin.ListMailServers(timeout(t), &pb.ListMailServersRequest{})
			return status.Code(err)
		}, codes.Unauthenticated)
		if _, err := s.admin.ListMailServers(with(timeout(t)), &pb.ListMailServersRequest{}); err != nil {
			t.Errorf("%s with the token: %v", name, err)
		}
	}
	if _, err := admin.RevokeToken(with(timeout(t)), &pb.RevokeTokenRequest{Id: made.Info.Id}); err != nil {
		t.Fatal(err)
	}
	within("the other with a revoked token", func() codes.Code {
		_, err := b.admin.ListMailServers(with(timeout(t)), &pb.ListMailServersRequest{})
		return status.Code(err)
	}, codes.Unauthenticated)
}

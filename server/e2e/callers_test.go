//go:build callers

package e2e

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// program is an example in another language.
type program struct {
	name string
	// prepare does what the README of the examples says, and gives the command with what it
	// needs from the environment.
	prepare func(t *testing.T) (command, env []string)
}

var programs = []program{{"python", preparePython}, {"node", prepareNode}}

const examples = "../../client/examples"

// preparePython generates the stubs with Debian's compiler.
func preparePython(t *testing.T) (command, env []string) {
	out := t.TempDir()
	files, err := filepath.Glob("../../proto/maildispatch/v1/*.proto")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	args := []string{"--descriptor_set_in=../../proto/maildispatch.binpb", "--python_out=" + out, "--grpc_out=" + out, "--plugin=protoc-gen-grpc=/usr/bin/grpc_python_plugin"}
	for _, f := range files {
		args = append(args, "maildispatch/v1/"+filepath.Base(f))
	}
	if said, err := exec.Command("protoc", args...).CombinedOutput(); err != nil {
		t.Fatalf("protoc: %v: %s", err, said)
	}
	return []string{"/usr/bin/python3", examples + "/python/send_invoice.py"}, []string{"PYTHONPATH=" + out, "PYTHONDONTWRITEBYTECODE=1"}
}

// prepareNode installs what the lock file names, in a copy, so that the tree stays as it is.
func prepareNode(t *testing.T) (command, env []string) {
	dir := t.TempDir()
	for _, f := range []string{"package.json", "package-lock.json", ".npmrc"} {
		b, err := os.ReadFile(filepath.Join(examples, "node", f))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if said, err := exec.Command("npm", "--prefix", dir, "ci", "--no-audit", "--no-fund", "--ignore-scripts").CombinedOutput(); err != nil {
		t.Fatalf("npm: %v: %s", err, said)
	}
	return []string{"node", examples + "/node/send_invoice.js"}, []string{"NODE_PATH=" + filepath.Join(dir, "node_modules")}
}

// ran is what an example said.
type ran struct {
	code        int
	said, fault string
}

// call runs an example against the service at addr.
func (p program) call(t *testing.T, command, env []string, addr string, args ...string) ran {
	t.Helper()
	cmd := exec.CommandContext(timeout(t), command[0], slices.Concat(command[1:], []string{"--address", addr}, args)...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ran{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// TestCallers: the examples in other languages tell accepted, refused and unknown apart, read
// the reason of a refused call, and after a broken connection attach to the same mail.
func TestCallers(t *testing.T) {
	dotHeard, cutDone, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		switch {
		case c.Verb == "RCPT" && strings.Contains(c.Arg, "gone@"):
			return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n", Refuse: true}
		case c.Verb == "DOT" && strings.Contains(c.Arg, "Invoice unknown-"):
			return &smtpxtest.Action{Close: true}
		case c.Verb == "DOT" && strings.Contains(c.Arg, "Invoice broken-"):
			select {
			case dotHeard <- struct{}{}:
				<-cutDone
			case <-over:
			}
		}
		return nil
	}}).Start(t)
	t.Cleanup(func() { close(over) })
	s := start(t, storetest.SQLiteDSN(t))
	s.addServer("mail", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.IsDefault = proto.Bool(true) })

	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			command, env := p.prepare(t)
			send := func(t *testing.T, what, to string, args ...string) ran {
				t.Helper()
				id := what + "-" + p.name
				return p.call(t, command, env, s.addr, append([]string{"--to", to, "--reference", id, "--request-id", id}, args...)...)
			}
			t.Run("accepted", func(t *testing.T) {
				if got := send(t, "accepted", "a@y.example"); got.code != 0 || !strings.Contains(got.said, "a@y.example: STATUS_ACCEPTED") {
					t.Errorf("%+v", got)
				}
			})
			t.Run("refused", func(t *testing.T) {
				got := send(t, "refused", "gone@y.example", "--to", "b@y.example")
				if got.code != 1 || !strings.Contains(got.said, "gone@y.example: STATUS_REJECTED FAILURE_NO_SUCH_MAILBOX 550") ||
					!strings.Contains(got.said, "b@y.example: STATUS_ACCEPTED") {
					t.Errorf("%+v", got)
				}
			})
			t.Run("unknown", func(t *testing.T) {
				if got := send(t, "unknown", "c@y.example"); got.code != 3 || !strings.Contains(got.said, "c@y.example: STATUS_UNKNOWN") {
					t.Errorf("%+v", got)
				}
			})
			t.Run("refused call", func(t *testing.T) {
				if got := send(t, "bad", "nobody"); got.code != 2 || !strings.Contains(got.fault, "INVALID_ARGUMENT VALIDATION_FAILED: ") {
					t.Errorf("%+v", got)
				}
				if got := send(t, "accepted", "other@y.example"); got.code != 2 || !strings.Contains(got.fault, "ALREADY_EXISTS REQUEST_ID_REUSED: ") {
					t.Errorf("%+v", got)
				}
			})
			t.Run("broken connection", func(t *testing.T) {
				addr := cutAt(t, s.addr, dotHeard, cutDone)
				got := p.call(t, command, env, addr, "--to", "d@y.example", "--reference", "broken-"+p.name, "--request-id", "broken-"+p.name)
				if got.code != 0 || !strings.Contains(got.said, "d@y.example: STATUS_ACCEPTED") || !strings.Contains(got.fault, "it was accepted before") {
					t.Errorf("%+v", got)
				}
				arrived := 0
				for _, m := range relay.Mails() {
					if strings.Contains(string(m.Data), "Invoice broken-"+p.name) {
						arrived++
					}
				}
				if arrived != 1 {
					t.Errorf("the invoice arrived %d times, want once", arrived)
				}
			})
		})
	}
}

// cutAt is the address of a way to the service whose first connection ends at cut; done hears
// of it. Later connections stay.
func cutAt(t *testing.T, to string, cut <-chan struct{}, done chan struct{}) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for first := true; ; first = false {
			from, err := l.Accept()
			if err != nil {
				return
			}
			service, err := net.Dial("tcp", to)
			if err != nil {
				_ = from.Close()
				continue
			}
			both := func() { _, _ = from.Close(), service.Close() }
			go func() { _, _ = io.Copy(service, from); both() }()
			go func() { _, _ = io.Copy(from, service); both() }()
			if first {
				go func() { <-cut; both(); done <- struct{}{} }()
			}
		}
	}()
	return l.Addr().String()
}

//go:build relays

package relays

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// relay is a mail server of a test: its folder, its certificate and what it stores.
type relay struct {
	t    *testing.T
	dir  string // configuration, queue, log and mail; readable by the server's users
	pem  []byte // its certificate, to be trusted
	log  string // its log file
	mail string // the folder under which it stores mail, each as a file in a folder "new"
}

// newRelay makes the folder and the certificate for "localhost" and 127.0.0.1. t.TempDir is
// closed to other users, so the folder is not one.
func newRelay(t *testing.T) *relay {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests start mail servers and need root")
	}
	dir, err := os.MkdirTemp("", "maildispatch-relay-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf, ca := smtpxtest.Certificate(t, time.Now().Add(90*24*time.Hour), "localhost", "127.0.0.1")
	r := &relay{t: t, dir: dir, pem: ca, log: filepath.Join(dir, "log", "mainlog"), mail: filepath.Join(dir, "mail")}
	r.write("cert.pem", string(ca))
	r.write("key.pem", keyPEM(t, conf.Certificates[0]))
	return r
}

// in is the relay as a subtest sees it.
func (r *relay) in(t *testing.T) *relay {
	c := *r
	c.t = t
	return &c
}

func keyPEM(t *testing.T, c tls.Certificate) string {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// write makes a file of the relay; DIR in it stands for its folder.
func (r *relay) write(name, content string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(strings.ReplaceAll(content, "DIR", r.dir)), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// folder makes a folder of the relay that belongs to a user.
func (r *relay) folder(name string, u account) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chown(path, u.uid, u.gid); err != nil {
		r.t.Fatal(err)
	}
}

// otherCA is a certificate that no relay here has.
func otherCA(t *testing.T) string {
	_, ca := smtpxtest.Certificate(t, time.Now().Add(90*24*time.Hour), "localhost")
	return string(ca)
}

type account struct{ uid, gid int }

func lookup(t *testing.T, name string) account {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("%v: run server/e2e/relays/install.sh", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return account{uid, gid}
}

// freePort finds a port below the range from which the system takes ports by itself, so that
// nobody is given it before the relay listens.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// run starts the relay's foreground process in a session of its own, waits until it greets on
// port, and ends the whole session with the test.
func (r *relay) run(port int, cmd *exec.Cmd) {
	r.t.Helper()
	var out bytes.Buffer // read after Wait
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	ended := false
	r.t.Cleanup(func() {
		if !ended {
			_ = cmd.Process.Signal(syscall.SIGTERM) // a failure shows as the timeout below
			select {
			case <-exited:
			case <-time.After(20 * time.Second):
				r.t.Error("the relay does not end")
			}
		}
		// children that were left; usually there are none
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if r.t.Failed() {
			l := r.logText()
			r.t.Logf("the relay said:\n%s\nend of its log:\n%s", out.String(), l[max(0, len(l)-4000):])
		}
	})
	deadline := time.After(30 * time.Second)
	for {
		if greets(port) {
			return
		}
		select {
		case err := <-exited:
			ended = true
			r.t.Fatalf("the relay ended: %v", err)
		case <-deadline:
			r.t.Fatal("the relay does not greet")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func greets(port int) bool {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	// then the read fails, which is the answer
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 4)
	n, _ := c.Read(b)
	_, _ = c.Write([]byte("QUIT\r\n")) // a courtesy
	return string(b[:n]) == "220 "
}

func (r *relay) logText() string {
	b, err := os.ReadFile(r.log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Error(err)
	}
	return string(b)
}

// waitLog waits until n lines of the log hold every one of the given words, and returns them.
func (r *relay) waitLog(n int, words ...string) []string {
	r.t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		var found []string
		for l := range strings.Lines(r.logText()) {
			if strings.HasSuffix(l, "\n") && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(l, w) }) {
				found = append(found, l)
			}
		}
		if len(found) == n {
			return found
		}
		select {
		case <-deadline:
			r.t.Fatalf("%d lines of the relay's log with %q, not %d", len(found), words, n)
		case <-time.After(50 * time.Millisecond):
		}
		if len(found) > n {
			r.t.Fatalf("%d lines of the relay's log with %q, more than %d", len(found), words, n)
		}
	}
}

// stored are the mails in a folder that hold a line (empty = any), once n of them are there.
func (r *relay) stored(n int, folder, line string) [][]byte {
	r.t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		files, err := filepath.Glob(filepath.Join(r.mail, folder, "new", "*"))
		if err != nil {
			r.t.Fatal(err)
		}
		var out [][]byte
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				r.t.Fatal(err)
			}
			if line == "" || bytes.Contains(b, []byte("\n"+line+"\n")) {
				out = append(out, b)
			}
		}
		if len(out) == n {
			return out
		}
		if len(out) > n {
			r.t.Fatalf("%d mails in %s with %q, more than %d", len(out), folder, line, n)
		}
		select {
		case <-deadline:
			r.t.Fatalf("%d mails in %s with %q, not %d", len(out), folder, line, n)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

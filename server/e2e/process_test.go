package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// ended is what a process left behind.
type ended struct {
	stdout, stderr string
	code           int
}

// run runs the binary to its end, in an empty folder and with nothing of this process's
// configuration.
func run(t *testing.T, env []string, args ...string) ended {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(timeout(t), path, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = t.TempDir(), cleanEnv(env), &out, &errs, time.Second
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q: %v", args, err)
	}
	return ended{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// cleanEnv is this process's environment without the service's variables, and env.
func cleanEnv(env []string) []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MAILDISPATCH_") {
			out = append(out, kv)
		}
	}
	return append(out, env...)
}

// certificateFiles makes a self-signed certificate for 127.0.0.1 and its key, each also as a
// second file that ends in ".2".
func certificateFiles(t *testing.T) (cert, key string) {
	t.Helper()
	cfg, certPEM := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	der, err := x509.MarshalPKCS8PrivateKey(cfg.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, b := range map[string][]byte{cert: certPEM, cert + ".2": certPEM, key: keyPEM, key + ".2": keyPEM} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

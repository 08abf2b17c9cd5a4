package server

import (
	"context"
	"os"
	"regexp"
	"strings"
	"time"
)

// ReadAgain reads certificates, authorities, the key file, client names and tokens again at
// once. All of them are also read again by themselves within seconds. What cannot be read
// changes nothing, and the log says so.
func (s *Server) ReadAgain(ctx context.Context) {
	s.transport.readAgain()
	s.keys.ReadAgain()
	s.learn(ctx)
	s.log.Info("certificates, key file, client names and tokens were read again")
}

// ReadAgainOn reads again at every signal until ctx ends.
func (s *Server) ReadAgainOn(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-signals:
			s.ReadAgain(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// readAgain reads the files of TLS again.
func (t *transport) readAgain() {
	if t.pair != nil {
		t.pair.again()
	}
	if t.clients != nil {
		t.clients.again()
	}
}

// again reads the files now.
func (d *onDisk[T]) again() {
	d.mu.Lock()
	d.looked = time.Time{}
	d.mu.Unlock()
	_, _ = d.get() // the log has its fault, and what was read before serves
}

const variablePrefix = "MAILDISPATCH_"

// othersVariable is a variable with our prefix that is not meant for serve: of profiles, of
// tests, and what Kubernetes makes of a Service with the name maildispatch.
var othersVariable = regexp.MustCompile(`^MAILDISPATCH_(PROFILE_DIR|TEST_\w+|SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)$`)

// unknownVariables are the variables of an environment that look like ours and are the twin of
// no flag: most often a flag's name that is misspelt, whose value would be missing in silence.
func unknownVariables(environ []string, known func(flag string) bool) []string {
	var unknown []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		word, ours := strings.CutPrefix(name, variablePrefix)
		if ours && !othersVariable.MatchString(name) && !known(strings.ToLower(strings.ReplaceAll(word, "_", "-"))) {
			unknown = append(unknown, name)
		}
	}
	return unknown
}

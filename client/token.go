package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// bearer is a token in every call's header.
type bearer struct {
	token     func() (string, error)
	plaintext bool // only to this machine: New sees to it
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	t, err := b.token()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + t}, nil
}

// RequireTransportSecurity makes grpc refuse the token on a connection without TLS, should a
// DialOption have put one there.
func (b bearer) RequireTransportSecurity() bool { return !b.plaintext }

// checkToken never says what the token is.
func checkToken(what, token string) error {
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("maildispatch: %s is empty or has characters other than printable ASCII", what)
	}
	return nil
}

// source is where the token comes from; nil = there is none.
func (o *Options) source() (func() (string, error), error) {
	switch {
	case o.Token != "" && o.TokenFile != "":
		return nil, errors.New("maildispatch: Options.Token and Options.TokenFile exclude each other")
	case o.Token != "":
		token := o.Token
		return func() (string, error) { return token, nil }, checkToken("Options.Token", token)
	case o.TokenFile != "":
		f := &tokenFile{path: o.TokenFile}
		_, err := f.get()
		return f.get, err
	}
	return nil, nil
}

// tokenEvery is how long a token that was read is used without another look at its file.
const tokenEvery = time.Second

// tokenFile is a token in a file. It is read again, so that whoever puts a new one there ends
// no call.
type tokenFile struct {
	path string

	mu    sync.Mutex // guards what follows
	token string
	read  time.Time
}

func (f *tokenFile) get() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.token != "" && time.Since(f.read) < tokenEvery {
		return f.token, nil
	}
	b, err := os.ReadFile(f.path)
	token := strings.TrimSpace(string(b))
	if err == nil {
		err = checkToken(f.path, token)
	}
	f.read = time.Now()
	switch {
	case err == nil:
		f.token = token
	case f.token == "":
		return "", err
	}
	// a file that is being replaced is looked at again in a second; the old token serves
	// meanwhile
	return f.token, nil
}

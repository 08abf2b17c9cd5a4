package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestTokenFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	if _, err := New("127.0.0.1:1", Options{TokenFile: path}); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("no file: got %v, want it named", err)
	}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("md_one\n")
	if _, err := New("127.0.0.1:1", Options{TokenFile: path, Token: "x"}); err == nil {
		t.Fatal("a token and a file of one were both taken")
	}
	if _, err := New("mail.example:1", Options{TokenFile: path, Insecure: true}); err == nil {
		t.Fatal("a token would travel in plaintext")
	}
	f := &tokenFile{path: path}
	want := func(token string) {
		t.Helper()
		f.read = time.Time{} // as if a second had passed
		got, err := f.get()
		if err != nil || got != token {
			t.Errorf("got %q, %v, want %q", got, err, token)
		}
	}
	want("md_one")
	write("md_two")
	if got, _ := f.get(); got != "md_one" {
		t.Errorf("within a second: got %q, want what was read", got)
	}
	want("md_two")
	write("two words") // half-written
	want("md_two")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("md_two")
	write("md_three")
	want("md_three")
}

func TestTemporary(t *testing.T) {
	t.Parallel()
	for code, want := range map[codes.Code]bool{codes.OK: false, codes.Unavailable: true, codes.ResourceExhausted: false, codes.Aborted: false, codes.DeadlineExceeded: true,
		codes.Unauthenticated: false, codes.PermissionDenied: false, codes.NotFound: false, codes.InvalidArgument: false, codes.Internal: false} {
		var err error
		if code != codes.OK {
			err = fmt.Errorf("wrapped: %w", status.Error(code, "x"))
		}
		if got := Temporary(err); got != want {
			t.Errorf("%v: got %v, want %v", code, got, want)
		}
	}
	if Temporary(errors.New("x")) {
		t.Error("an error that is not the service's is temporary")
	}
}

package client

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Whoever imports the client gets the schema, grpc and protobuf, and no mail server, database
// or telemetry.
func TestImports(t *testing.T) {
	t.Parallel()
	allowed := []string{"google.golang.org/grpc", "google.golang.org/protobuf/", "google.golang.org/genproto/googleapis/rpc/errdetails",
		"github.com/maildispatch/maildispatch/proto/", "github.com/maildispatch/maildispatch/client"}
	var files []string
	for _, pattern := range []string{"*.go", "clienttest/*.go"} {
		more, err := filepath.Glob(pattern)
		if err != nil || len(more) == 0 {
			t.Fatalf("no files %s: %v", pattern, err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
	imports:
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
				continue
			}
			for _, a := range allowed {
				if strings.HasPrefix(path, a) {
					continue imports
				}
			}
			t.Errorf("%s imports %s", file, path)
		}
	}
}

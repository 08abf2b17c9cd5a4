package main

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The command is a caller like any other: of ours it knows the client and the schema.
func TestImports(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			const ours = "github.com/maildispatch/maildispatch/"
			if strings.HasPrefix(path, ours) && path != ours+"client" && path != ours+"proto/maildispatch/v1" && path != ours+"proto/plain" {
				t.Errorf("%s imports %s", file, path)
			}
		}
	}
}

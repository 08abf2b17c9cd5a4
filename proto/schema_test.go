package proto_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

const pkg = "maildispatch.v1"

// schema is every element of the package as the generated Go knows it, by full name.
func schema(t *testing.T) (files []protoreflect.FileDescriptor, elements map[protoreflect.FullName]protoreflect.Descriptor) {
	t.Helper()
	elements = map[protoreflect.FullName]protoreflect.Descriptor{}
	add := func(d protoreflect.Descriptor) {
		name := d.FullName()
		if v, is := d.(protoreflect.EnumValueDescriptor); is {
			// its full name leaves out the enum
			name = v.Parent().FullName().Append(v.Name())
		}
		elements[name] = d
	}
	enums := func(es protoreflect.EnumDescriptors) {
		for i := range es.Len() {
			add(es.Get(i))
			for j := range es.Get(i).Values().Len() {
				add(es.Get(i).Values().Get(j))
			}
		}
	}
	var messages func(protoreflect.MessageDescriptors)
	messages = func(ms protoreflect.MessageDescriptors) {
		for i := range ms.Len() {
			m := ms.Get(i)
			if m.IsMapEntry() {
				continue
			}
			add(m)
			for j := range m.Fields().Len() {
				add(m.Fields().Get(j))
			}
			for j := range m.Oneofs().Len() {
				if o := m.Oneofs().Get(j); !o.IsSynthetic() {
					add(o)
				}
			}
			enums(m.Enums())
			messages(m.Messages())
		}
	}
	protoregistry.GlobalFiles.RangeFilesByPackage(pkg, func(f protoreflect.FileDescriptor) bool {
		files = append(files, f)
		enums(f.Enums())
		messages(f.Messages())
		for i := range f.Extensions().Len() {
			add(f.Extensions().Get(i))
		}
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			add(s)
			for j := range s.Methods().Len() {
				add(s.Methods().Get(j))
			}
		}
		return true
	})
	if len(files) == 0 {
		t.Fatal("no file of package " + pkg + " is registered")
	}
	return files, elements
}

var (
	block = regexp.MustCompile(`^(service|message|enum|oneof)\s+(\w+)\s*\{(\})?$`)
	ext   = regexp.MustCompile(`^extend\s+[\w.]+\s*\{$`)
	rpc   = regexp.MustCompile(`^rpc\s+(\w+)\(.*\)\s*(\{|;)$`)
	field = regexp.MustCompile(`^(?:(?:optional|repeated)\s+)?(?:map<[^>]+>|[\w.]+)\s+(\w+)\s*=\s*\d+\b`)
	value = regexp.MustCompile(`^(\w+)\s*=\s*\d+\b`)
)

// comments reads the leading comment of every element from the text of the .proto files, which
// is all there is: generated Go carries no source info. It understands what `buf format`
// writes, and the caller compares its findings with the descriptors, so that it cannot overlook
// anything.
func comments(t *testing.T) map[protoreflect.FullName]string {
	t.Helper()
	paths, err := filepath.Glob("maildispatch/v1/*.proto")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no .proto files: %v", err)
	}
	found := map[protoreflect.FullName]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		scopes := []protoreflect.FullName{pkg} // innermost last
		var comment []string
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if after, is := strings.CutPrefix(line, "//"); is {
				comment = append(comment, strings.TrimSpace(after))
				continue
			}
			scope := scopes[len(scopes)-1]
			said := strings.TrimSpace(strings.Join(comment, " "))
			switch m := block.FindStringSubmatch(line); {
			case m != nil:
				found[scope.Append(protoreflect.Name(m[2]))] = said
				inner := scope.Append(protoreflect.Name(m[2]))
				if m[1] == "oneof" { // members of a oneof belong to the message
					inner = scope
				}
				if m[3] == "" {
					scopes = append(scopes, inner)
				}
			case ext.MatchString(line): // its fields belong to the package
				scopes = append(scopes, scope)
			case line == "}":
				scopes = scopes[:len(scopes)-1]
			case rpc.MatchString(line):
				m := rpc.FindStringSubmatch(line)
				found[scope.Append(protoreflect.Name(m[1]))] = said
				if m[2] == "{" {
					scopes = append(scopes, scope)
				}
			case strings.HasPrefix(line, "option "), strings.HasPrefix(line, "reserved "):
			case field.MatchString(line):
				found[scope.Append(protoreflect.Name(field.FindStringSubmatch(line)[1]))] = said
			case value.MatchString(line):
				found[scope.Append(protoreflect.Name(value.FindStringSubmatch(line)[1]))] = said
			}
			comment = nil
		}
		if len(scopes) != 1 {
			t.Fatalf("%s: the scanner lost count of the braces", path)
		}
	}
	return found
}

func TestEverythingIsExplained(t *testing.T) {
	t.Parallel()
	_, elements := schema(t)
	said := comments(t)
	marker := regexp.MustCompile(`\b(REQUIRED|OUTPUT_ONLY|INPUT_ONLY|IMMUTABLE)\b`)
	word := regexp.MustCompile(`[A-Za-z]{2}`)
	for name, d := range elements {
		text, seen := said[name]
		switch rest := marker.ReplaceAllString(text, ""); {
		case !seen:
			t.Errorf("%s was not found in the .proto files", name)
		case text == "":
			t.Errorf("%s has no comment", name)
		case !word.MatchString(rest):
			t.Errorf("%s: %q says how it behaves, not what it is", name, text)
		case !strings.Contains(text, "."):
			t.Errorf("%s: %q is not a sentence", name, text)
		}
		switch d.(type) {
		case protoreflect.ServiceDescriptor, protoreflect.MethodDescriptor, protoreflect.MessageDescriptor, protoreflect.EnumDescriptor:
			first, _, _ := strings.Cut(text, " ")
			if strings.TrimRight(first, ":,") != string(d.Name()) {
				t.Errorf("%s: its comment begins with %q instead of its name", name, first)
			}
		}
	}
	for name := range said {
		if elements[name] == nil {
			t.Errorf("the scanner found %s, which the generated code does not have: it is stale, or the scanner is wrong", name)
		}
	}
}

func TestOnlyWellKnownImports(t *testing.T) {
	t.Parallel()
	foreign := func(path string) bool {
		return !strings.HasPrefix(path, "google/protobuf/") && !strings.HasPrefix(path, "maildispatch/v1/")
	}
	files, _ := schema(t)
	for _, f := range files {
		for i := range f.Imports().Len() {
			if path := f.Imports().Get(i).Path(); foreign(path) {
				t.Errorf("%s imports %s", f.Path(), path)
			}
		}
		text, err := os.ReadFile(f.Path())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*import\s+(?:\w+\s+)?"([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
			if foreign(m[1]) {
				t.Errorf("the text of %s imports %s", f.Path(), m[1])
			}
		}
	}
}

// Retries and proxies go by this mark: a read that lacks it is not retried, a write that has it
// is retried wrongly.
func TestReadsAreMarked(t *testing.T) {
	t.Parallel()
	_, elements := schema(t)
	read := regexp.MustCompile(`^(Get|List|Find|Download|Preview|Watch)`)
	for name, d := range elements {
		m, is := d.(protoreflect.MethodDescriptor)
		if !is {
			continue
		}
		level := m.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel()
		if marked := level == descriptorpb.MethodOptions_NO_SIDE_EFFECTS; marked != read.MatchString(string(m.Name())) {
			t.Errorf("%s: idempotency_level is %v", name, level)
		}
	}
}

func TestSecretsAreMarked(t *testing.T) {
	t.Parallel()
	_, elements := schema(t)
	secret := regexp.MustCompile(`password|secret|token$|account_key$|private_key$`)
	for name, d := range elements {
		f, is := d.(protoreflect.FieldDescriptor)
		if !is || f.Kind() == protoreflect.BoolKind || strings.HasSuffix(string(f.Name()), "page_token") {
			continue
		}
		redact := f.Options().(*descriptorpb.FieldOptions).GetDebugRedact()
		if want := secret.MatchString(string(f.Name())); redact != want {
			t.Errorf("%s: debug_redact is %v", name, redact)
		}
	}
}

// reasons reads the constants from reasons.go: name of the constant to its value.
func reasons(t *testing.T) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "maildispatch/v1/reasons.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, d := range f.Decls {
		g, is := d.(*ast.GenDecl)
		if !is || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if name := v.Names[0].Name; strings.HasPrefix(name, "Reason") {
				text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				all[name] = text
			}
		}
	}
	if all["ReasonInternal"] != maildispatchv1.ReasonInternal {
		t.Fatal("reasons.go was not understood")
	}
	return all
}

func TestReasonsAreTheTable(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var table []string
	for _, m := range regexp.MustCompile(`(?m)^\| ([A-Z_]+) \| [A-Z_]+ \| .+ \|$`).FindAllStringSubmatch(string(readme), -1) {
		table = append(table, m[1])
	}
	var constants []string
	for name, text := range reasons(t) {
		constants = append(constants, text)
		if camel := strings.ToLower(strings.ReplaceAll(text, "_", "")); strings.ToLower(strings.TrimPrefix(name, "Reason")) != camel {
			t.Errorf("%s is %q", name, text)
		}
	}
	slices.Sort(table)
	slices.Sort(constants)
	if !slices.Equal(table, constants) {
		t.Errorf("README.md lists\n%v\nreasons.go has\n%v", table, constants)
	}
}

// A reason that a comment promises and no constant has would be found by callers, in
// production.
func TestReasonsInCommentsExist(t *testing.T) {
	t.Parallel()
	_, elements := schema(t)
	var known []string
	for _, r := range reasons(t) {
		known = append(known, r)
	}
	known = append(known, "OUTPUT_ONLY", "INPUT_ONLY",
		"INVALID_ARGUMENT", "PERMISSION_DENIED", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "OUT_OF_RANGE")
	for name, d := range elements {
		if _, is := d.(protoreflect.EnumValueDescriptor); is {
			known = append(known, string(name.Name()))
		}
	}
	upper := regexp.MustCompile(`\b[A-Z]+(?:_[A-Z]+)+\b`)
	for name, text := range comments(t) {
		for _, word := range upper.FindAllString(text, -1) {
			if !slices.Contains(known, word) {
				t.Errorf("%s speaks of %s, which is neither a reason, a code nor an enum value", name, word)
			}
		}
	}
}

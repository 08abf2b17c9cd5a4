package server

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// licences are the ones under which a company may run and link what it gets here, each by
// sentences that only it has. A text that has none of them is refused: a person has to look.
var licences = []struct {
	name   string
	has    []string
	hasNot string
}{
	{name: "MIT", has: []string{"permission is hereby granted, free of charge", "without restriction, including without limitation the rights to use, copy, modify, merge, publish"}},
	{name: "BSD-3-Clause", has: []string{"redistribution and use in source and binary forms", "endorse or promote products derived from"}},
	{name: "BSD-2-Clause", has: []string{"redistribution and use in source and binary forms", "redistributions in binary form must reproduce"}, hasNot: "endorse or promote"},
	{name: "Apache-2.0", has: []string{"apache license", "version 2.0, january 2004", "grant of patent license"}},
	{name: "public domain (SQLite)", has: []string{"code and documentation in sqlite has been dedicated to the public domain"}},
	{name: "Unlicense", has: []string{"this is free and unencumbered software released into the public domain", "anyone is free to copy, modify, publish, use, compile, sell, or distribute this software"}},
	{name: "ISC", has: []string{"permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted"}},
}

// licencesOfNoCode are files about what is not linked.
var licencesOfNoCode = map[string]string{
	"modernc.org/memory/LICENSE-LOGO": "a picture",
}

var blanks = regexp.MustCompile(`\s+`)

// licenceOf names the licence of a text, "" when it is none of the table's.
func licenceOf(text string) string {
	text = blanks.ReplaceAllString(strings.ToLower(text), " ")
	if strings.Contains(text, "general public license") && !strings.Contains(text, "apache license") {
		return ""
	}
next:
	for _, l := range licences {
		for _, sentence := range l.has {
			if !strings.Contains(text, sentence) {
				continue next
			}
		}
		if l.hasNot == "" || !strings.Contains(text, l.hasNot) {
			return l.name
		}
	}
	return ""
}

// TestLicences looks at every module that the service and the client link. It fails when one
// comes without a licence file, or under terms that the table does not know.
func TestLicences(t *testing.T) {
	const format = `{{with .Module}}{{if not .Main}}{{.Path}}|{{.Version}}|{{.Dir}}{{end}}{{end}}`
	out, err := exec.Command("go", "list", "-deps", "-f", format, "./cmd/...", "../client/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line == "" || seen[line] {
			continue
		}
		seen[line] = true
		f := strings.Split(line, "|")
		files, _ := filepath.Glob(filepath.Join(f[2], "*LICEN[SC]E*"))
		if more, _ := filepath.Glob(filepath.Join(f[2], "COPYING*")); len(more) > 0 {
			files = append(files, more...)
		}
		if len(files) == 0 {
			t.Errorf("%s %s has no licence file", f[0], f[1])
		}
		for _, name := range files {
			if licencesOfNoCode[f[0]+"/"+filepath.Base(name)] != "" {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := licenceOf(string(text)); got == "" {
				t.Errorf("%s %s: %s is none of the licences that the table allows", f[0], f[1], filepath.Base(name))
			} else {
				t.Logf("%-14s %s %s", got, f[0], f[1])
			}
		}
	}
	if len(seen) < 10 {
		t.Fatalf("got %d modules, want at least 10: the walk is broken", len(seen))
	}
}

// TestLicenceOf: the table knows what it must not take.
func TestLicenceOf(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007", ""},
		{"GNU AFFERO GENERAL PUBLIC LICENSE Version 3", ""},
		{"Business Source License 1.1", ""},
		{"All rights reserved.", ""},
		{"This is free software released into the public domain, but ask before you sell it.", ""},
		{"Redistribution and use in source and binary forms, with or\nwithout modification\n Redistributions in binary form must reproduce", "BSD-2-Clause"},
	} {
		if got := licenceOf(c.text); got != c.want {
			t.Errorf("licenceOf(%.40q): got %q, want %q", c.text, got, c.want)
		}
	}
}

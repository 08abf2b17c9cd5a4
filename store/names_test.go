package store

import "testing"

// TestParameters: parameters are numbered in the order in which callers give them, however
// often and wherever the text names them. Texts, comments and casts are left alone.
func TestParameters(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		takes []string
		text  string
		want  string // "" = refused
	}{
		"twice":       {[]string{"a", "b"}, "select :b, :a, :b", "select $2, $1, $2"},
		"a cast":      {[]string{"a"}, "select :a::integer::text", "select $1::integer::text"},
		"a text":      {[]string{"a"}, "select ':b', :a", "select ':b', $1"},
		"a comment":   {[]string{"a"}, "-- it's :b\nselect :a", "-- it's :b\nselect $1"},
		"a longer":    {[]string{"id", "ids"}, "select :ids, :id", "select $2, $1"},
		"none":        {nil, "select 1", "select 1"},
		"not taken":   {[]string{"a"}, "select :a, :b", ""},
		"not used":    {[]string{"a", "b"}, "select :a", ""},
		"not counted": {nil, "select :a", ""},
	} {
		st := statement{name: name, takes: c.takes, text: c.text}
		if got, err := st.numbered("$"); got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
}

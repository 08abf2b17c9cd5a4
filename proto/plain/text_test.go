package plain_test

import (
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/proto/plain"
)

// TestText: what is not seen, or covers what is around it, is written as its number.
func TestText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Grüße, 发票, \u05d0\u05d1":         "Grüße, 发票, \u05d0\u05d1",
		"a\x1b[31m\u202eb\u200b":          `a\u{1b}[31m\u{202e}b\u{200b}`,
		"\xff":                            `\u{fffd}`,
		"Vie\u0323\u0302t":                "Vie\u0323\u0302t",
		"a" + strings.Repeat("\u0300", 6): "a" + strings.Repeat("\u0300", 4) + `\u{300}\u{300}`,
	} {
		if got := plain.Text(in, 100); got != want {
			t.Errorf("%+q: got %+q, want %+q", in, got, want)
		}
	}
}

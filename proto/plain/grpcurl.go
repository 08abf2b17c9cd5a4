package plain

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Target is where and how grpcurl calls.
type Target struct {
	Address   string // host:port
	Plaintext bool
	CA        string // files
	Cert      string
	Key       string
	TokenFile string
}

// maxWord is how long a word of a command line is at most. Linux takes 128 KiB.
const maxWord = 100_000

// Line is one call as a line for a shell, with as many requests as its stream has. method is
// "/package.Service/Method" or the same without the first slash. Where the requests are too
// large for a line, they stand below it.
func (t Target) Line(method string, reqs ...proto.Message) string {
	words := []string{"grpcurl"}
	if t.CA != "" {
		words = append(words, "-cacert", quote(t.CA))
	}
	if t.Cert != "" {
		words = append(words, "-cert", quote(t.Cert), "-key", quote(t.Key))
	}
	if t.Plaintext {
		words = append(words, "-plaintext")
	}
	if t.TokenFile != "" {
		words = append(words, "-H", `"authorization: Bearer $(cat `+quote(t.TokenFile)+`)"`)
	}
	texts := make([]string, len(reqs))
	for i, r := range reqs {
		texts[i] = requestJSON(r)
	}
	data, below := quote(strings.Join(texts, " ")), ""
	if len(data) > maxWord {
		data, below = "@", " <<'END'\n"+strings.Join(texts, "\n")+"\nEND"
	}
	words = append(words, "-d", data, t.Address, strings.TrimPrefix(method, "/"))
	return strings.Join(words, " ") + below
}

// quote makes one word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// requestJSON is a request as grpcurl reads it: a field mask is a message like any other there.
func requestJSON(m proto.Message) string {
	text := JSON(m)
	u, is := m.(*pb.UpdateMailServerRequest)
	if !is || u.GetUpdateMask() == nil {
		return text
	}
	rest := proto.CloneOf(u)
	rest.UpdateMask = nil
	text = JSON(rest)
	paths := make([]string, len(u.UpdateMask.Paths))
	for i, p := range u.UpdateMask.Paths {
		paths[i] = fmt.Sprintf("%q", p)
	}
	return strings.TrimSuffix(text, "}") + `,"update_mask":{"paths":[` + strings.Join(paths, ",") + "]}}"
}

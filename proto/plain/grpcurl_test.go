package plain

import (
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestLine: a shell makes of a line what grpcurl has to hear, also of a stream with more
// requests than a command line may hold.
func TestLine(t *testing.T) {
	t.Parallel()
	item := func(text string) proto.Message {
		return &pb.SendBatchRequest{Items: []*pb.BatchItem{{Message: &pb.MailMessage{Text: text}}}}
	}
	for name, tc := range map[string]struct {
		target Target
		reqs   []proto.Message
		want   string
	}{
		"one":     {Target{Address: "here:1", Plaintext: true}, []proto.Message{item("it's $HOME")}, "-plaintext\n-d\n" + `{"items":[{"message":{"text":"it's $HOME"}}]}` + "\nhere:1\na.B/C\n"},
		"secured": {Target{Address: "here:1", CA: "c a.pem", TokenFile: "/dev/null"}, []proto.Message{item("a")}, "-cacert\nc a.pem\n-H\nauthorization: Bearer \n-d\n" + `{"items":[{"message":{"text":"a"}}]}` + "\nhere:1\na.B/C\n"},
		"two":     {Target{Address: "here:1"}, []proto.Message{item("a"), item("b")}, "-d\n" + `{"items":[{"message":{"text":"a"}}]} {"items":[{"message":{"text":"b"}}]}` + "\nhere:1\na.B/C\n"},
		"large": {Target{Address: "here:1"}, []proto.Message{item(strings.Repeat("x", maxWord)), item("it's $HOME")}, "-d\n@\nhere:1\na.B/C\n" +
			`{"items":[{"message":{"text":"` + strings.Repeat("x", maxWord) + `"}}]}` + "\n" + `{"items":[{"message":{"text":"it's $HOME"}}]}` + "\n"},
	} {
		cmd := exec.Command("sh")
		cmd.Stdin = strings.NewReader("grpcurl() { printf '%s\\n' \"$@\"; case \"$*\" in *'-d @ '*) cat ;; esac; }\n" + tc.target.Line("/a.B/C", tc.reqs...) + "\n")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != tc.want {
			t.Errorf("%s: got %v\n%.500s\nwant\n%.500s", name, err, out, tc.want)
		}
	}
}

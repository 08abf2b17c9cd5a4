package client

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

var update = flag.Bool("update", false, "write service_config.json")

type methodName struct {
	Service string `json:"service"`
	Method  string `json:"method"`
}

// safe lists what may be repeated: reads, by their mark in the schema, and calls that begin
// with one request that carries a request_id.
func safe() []methodName {
	var names []methodName
	for _, f := range []protoreflect.FileDescriptor{maildispatchv1.File_maildispatch_v1_dispatch_proto, maildispatchv1.File_maildispatch_v1_mail_server_admin_proto} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				read := m.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
				named := requestIDField(m.Input()) != nil
				if (read || named) && !m.IsStreamingClient() {
					names = append(names, methodName{string(s.FullName()), string(m.Name())})
				}
			}
		}
	}
	slices.SortFunc(names, func(a, b methodName) int { return strings.Compare(a.Service+a.Method, b.Service+b.Method) })
	return names
}

// The file is made from the schema: a new rpc changes it, and a mistake in it would repeat what
// must not be.
func TestServiceConfigIsGenerated(t *testing.T) {
	type object = map[string]any
	want, err := json.MarshalIndent(object{
		"loadBalancingConfig": []object{{"round_robin": object{}}},
		"healthCheckConfig":   object{"serviceName": ""},
		"methodConfig": []object{{
			"name": safe(),
			"retryPolicy": object{
				"maxAttempts": followTries, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
				"retryableStatusCodes": []string{"UNAVAILABLE"},
			},
		}},
		"retryThrottling": object{"maxTokens": 10, "tokenRatio": 0.1},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("service_config.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if serviceConfig != string(want) {
		t.Errorf("service_config.json is stale (go test ./client -update writes it); want\n%s", want)
	}
}

func TestOnlySafeCallsAreRepeated(t *testing.T) {
	t.Parallel()
	var got []string
	for _, n := range safe() {
		got = append(got, n.Method)
	}
	want := []string{
		"DownloadMail", "FindMails", "GetBatch", "GetMail", "GetQueueStats", "ListArchivedMails", "ListDueOutMails", "PreviewMail", "ResendMail", "Send", "SendMail", "WatchMails",
		"CreateMailServer", "GetMailServer", "ListMailServers",
	}
	if !slices.Equal(got, want) {
		t.Errorf("repeated are %v; look twice before this list is changed", got)
	}
}

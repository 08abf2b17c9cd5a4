// Package proto holds the schema of maildispatch; the generated Go lies beside it in
// maildispatch/v1. It imports nothing of ours.
package proto

// The one place that pins buf. It needs no entry in go.mod and no plugin from anywhere but
// go.mod's tool lines.
//
// maildispatch.binpb is the same schema as one descriptor set, with all it imports. Callers in
// other languages generate from it with compilers that do not know every option used here, and
// grpcurl takes it where reflection is off.
//go:generate sh -c "cd .. && go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate && go run github.com/bufbuild/buf/cmd/buf@v1.75.0 build --exclude-source-info -o proto/maildispatch.binpb"

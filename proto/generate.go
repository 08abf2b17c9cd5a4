// Package proto holds the schema of maildispatch; the generated Go lies beside it in
// maildispatch/v1. It imports nothing of ours.
package proto

// The one place that pins buf. It needs no entry in go.mod and no plugin from anywhere but
// go.mod's tool lines.
//go:generate sh -c "cd .. && go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate"

package server

import (
	"runtime"
	"runtime/debug"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/observe"
)

// buildOf is what this program was built from. The revision is what Go has written into the
// binary.
func buildOf() observe.Build {
	b := observe.Build{Version: pb.Version, Revision: "unknown", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}

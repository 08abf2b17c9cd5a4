package server

import (
	"runtime"
	"runtime/debug"

	"github.com/maildispatch/maildispatch/server/internal/observe"
)

// buildOf is what this program was built from, as Go has written it into the binary.
func buildOf() observe.Build {
	b := observe.Build{Version: "unknown", Revision: "unknown", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}

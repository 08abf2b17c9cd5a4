//go:build relays && race

package relays

// The binary is built with the race detector when the tests are. The flags are
// those of .ci/race.
func init() {
	buildFlags = append(buildFlags, "-race", "-gcflags=modernc.org/sqlite/lib=-race=false",
		"-gcflags=modernc.org/libc/...=-race=false", "-gcflags=modernc.org/memory=-race=false")
}

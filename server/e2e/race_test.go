//go:build race

package e2e

// The binary is built with the race detector when the tests are. It keeps shadow memory, which
// its documentation puts at five to ten times the program's.
// The flags are those of .ci/race.
func init() {
	buildFlags = append(buildFlags, "-race", "-gcflags=modernc.org/sqlite/lib=-race=false",
		"-gcflags=modernc.org/libc/...=-race=false", "-gcflags=modernc.org/memory=-race=false")
	memoryFactor = 10
}

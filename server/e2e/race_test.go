//go:build race

package e2e

// The binary is built with the race detector when the tests are. It keeps shadow memory, which
// its documentation puts at five to ten times the program's.
func init() {
	buildFlags = append(buildFlags, "-race")
	memoryFactor = 10
}

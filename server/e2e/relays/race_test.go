//go:build relays && race

package relays

// The binary is built with the race detector when the tests are.
func init() { buildFlags = append(buildFlags, "-race") }

//go:build !race

package api_test

import (
	"fmt"
	"time"
)

const slowed = 1

// busy is how many times slower this machine is now than the one that the limits on CPU are
// for, at least 1. Whoever shares its caches and the other halves of its cores slows each
// second of CPU too.
func busy() float64 {
	const reference = 1200 * time.Microsecond
	c := within(reference, 1<<40, func() {
		seen := map[string]int{}
		for i := range 10_000 {
			seen[fmt.Sprintf("v%d", i)] = i
		}
	})
	return max(1, float64(c.cpu)/float64(reference))
}

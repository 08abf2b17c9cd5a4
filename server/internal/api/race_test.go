//go:build race

package api_test

// slowed is how many times slower the race detector makes the code.
const slowed = 20

// busy is 1: slowed has room enough for what else the machine does.
func busy() float64 { return 1 }

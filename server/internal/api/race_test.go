//go:build race

package api_test

// slowed is how many times slower the race detector makes the code.
const slowed = 20

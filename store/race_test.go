//go:build race

package store_test

// raceDetector: SQLite is Go code here, which the detector makes a hundred times slower.
const raceDetector = true

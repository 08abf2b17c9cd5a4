//go:build nogate

package engine

const gated = false

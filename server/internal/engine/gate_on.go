//go:build !nogate

package engine

// gated: every dot waits for its durable mark. Only the benchmark that measures what that costs
// is built without it.
const gated = true

package engine

// Gated tells the benchmark what it was built with.
const Gated = gated

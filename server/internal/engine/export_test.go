package engine

// Gated tells the benchmark what it was built with.
const Gated = gated

// Passes is how many calls of RunBatch wait.
func (e *Engine) Passes() int { return int(e.passes.waiting.Load()) }

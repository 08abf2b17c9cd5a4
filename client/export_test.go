package client

// SetStreamItems changes how many items a Bulk sends over one stream, until the function it
// returns is called.
func SetStreamItems(n int64) (back func()) {
	was := streamItems
	streamItems = n
	return func() { streamItems = was }
}

//go:build !race

package api_test

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

const slowed = 1

// busy is how many times slower this machine is now than the one that the limits on CPU are
// for, at least 1: by work of the kind that is measured, 4 MB that are copied and walked
// through field by field. Whoever shares the caches and the other halves of its cores slows
// each second of CPU too, and what reads much memory most.
func busy() float64 {
	const reference = 5 * time.Millisecond
	field := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("0123456789"))
	request := bytes.Repeat(field, (4<<20)/len(field))
	c := within(reference, 1<<40, func() {
		for rest := bytes.Clone(request); len(rest) > 0; {
			_, _, n := protowire.ConsumeField(rest)
			rest = rest[n:]
		}
	})
	return max(1, float64(c.cpu)/float64(reference))
}

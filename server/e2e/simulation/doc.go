// Package simulation runs the engine as it is shipped, its relay pools and its SMTP sessions
// over a store in memory and scripted relays, in a bubble of false time (testing/synctest).
//
// A seed decides everything: which statement or packet goes next and how long it takes, what is
// lost on the way, when a process dies or freezes, what a relay does, and what people ask for.
// Then all faults end, and everything has to come to its end.
//
// What is checked along the way and at the end stands in truth.go: nothing lost, no second copy
// without its flag, each result what the relay said, no dot without its mark nor after a
// person's stop, limits kept, everything settled once the faults end.
//
// The driver (world.go) is the only one who acts: it waits until every goroutine of the bubble
// waits, and then releases one parked operation. With one processor and the runtime's own luck
// set from the seed (luck.go) the same seed is the same run. README.md says how to use it.
package simulation

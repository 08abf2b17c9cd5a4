// Package fairqueue is a bounded queue between those who bring work and the workers who do it.
//
// The more urgent goes first, within one priority the teams take turns, and a team's items keep
// the order in which they came. So a long line delays nothing urgent, and one team's bulk does
// not delay another's.
//
// Items come in three ways. The feeder brings pages of what waits elsewhere, in a database, and
// is told when to look for more. Others bring single items directly: they reserve a place
// before the item exists for good, and fill it after. That is refused while older items may
// wait elsewhere. And workers give back what they took and did not begin.
//
// An item is open from the moment it was promised until it is settled. The queue ends when its
// feeder has nothing left to fetch and nothing is open. Barrier waits for what is open now.
package fairqueue

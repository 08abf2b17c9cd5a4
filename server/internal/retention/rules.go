package retention

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// Rules say what of finished mail is removed, and when. None = everything is kept.
type Rules []store.KeepRule

// forever is the age at which nothing is removed.
const forever = time.Duration(math.MaxInt64)

// leastMetadata is for how long metadata is kept at least. A request_id lives as long: a caller
// that repeats its Send behind that gets a second mail. Callers repeat for hours, and a batch
// that stood over a weekend is sent again days later.
const leastMetadata = 7 * 24 * time.Hour

// all stands in the place of a kind for every kind that is not named.
const all = "all"

var (
	kinds = []store.Kind{store.KindAgentMessage, store.KindInvoice, store.KindWorkOrder, store.KindBulk, store.KindOther}
	parts = []store.Part{store.PartMetadata, store.PartBody, store.PartAttachments}
)

// Parse reads rules as in "invoice:10y/2y/2y,bulk:90d/7d/0": for a kind, or for all that are
// not named, how long metadata, body and attachments are kept after a mail was finished. A part
// that is left out is kept as long as the one before it. A year has 365 days. Metadata is kept
// for seven days at least.
func Parse(text string) (Rules, error) {
	ages := map[string][]time.Duration{}
	for _, rule := range strings.Split(text, ",") {
		if rule = strings.TrimSpace(rule); rule == "" {
			continue
		}
		kind, list, ok := strings.Cut(rule, ":")
		if !ok {
			return nil, fmt.Errorf("%q is not kind:metadata/body/attachments, such as bulk:90d/7d/0", rule)
		}
		if !known(kind) {
			return nil, fmt.Errorf("%q is no kind: agent_message, invoice, work_order, bulk, other or all", kind)
		}
		if ages[kind] != nil {
			return nil, fmt.Errorf("there are two rules for %s", kind)
		}
		words := strings.Split(list, "/")
		if len(words) > len(parts) {
			return nil, fmt.Errorf("%q has more than metadata, body and attachments", rule)
		}
		for i := range parts {
			age := forever
			if i > 0 {
				age = ages[kind][i-1]
			}
			if i < len(words) {
				given, err := parseAge(words[i])
				if err != nil {
					return nil, err
				}
				if i == 0 && given < leastMetadata {
					return nil, fmt.Errorf("%q removes metadata after %s: it is kept for 7d at least, because a request_id lives as long, and a Send that is repeated later is a second mail; body and attachments may be 0", rule, words[i])
				}
				if i > 0 && given > age {
					return nil, fmt.Errorf("%s: %s cannot be kept longer than %s", kind, parts[i], parts[i-1])
				}
				age = given
			}
			ages[kind] = append(ages[kind], age)
		}
	}
	var rules Rules
	// What is within another part goes first, so that the other finds less.
	for i := len(parts) - 1; i >= 0; i-- {
		for _, kind := range kinds {
			of := ages[string(kind)]
			if of == nil {
				of = ages[all]
			}
			if of == nil || of[i] == forever || i > 0 && of[i] == of[i-1] {
				continue
			}
			rules = append(rules, store.KeepRule{Kind: kind, Part: parts[i], Age: of[i]})
		}
	}
	return rules, nil
}

func known(kind string) bool {
	for _, k := range kinds {
		if kind == string(k) {
			return true
		}
	}
	return kind == all
}

// units of an age, in hours.
var units = map[byte]int64{'h': 1, 'd': 24, 'y': 365 * 24}

func parseAge(word string) (time.Duration, error) {
	switch word = strings.TrimSpace(word); word {
	case "0":
		return 0, nil
	case "forever":
		return forever, nil
	case "":
		return 0, errors.New("an age is missing: such as 90d, 2y, 0 or forever")
	}
	unit := units[word[len(word)-1]]
	n, err := strconv.ParseInt(word[:len(word)-1], 10, 64)
	if unit == 0 || err != nil || n < 0 || n > int64(forever/time.Hour)/unit {
		return 0, fmt.Errorf("%q is no age: write hours, days or years as in 12h, 90d, 2y, or 0, or forever", word)
	}
	return time.Duration(n*unit) * time.Hour, nil
}

package store

import (
	"math"
	"strings"
	"unicode/utf8"
)

// storable returns text as both databases keep it and every reader can have it: valid UTF-8 and
// no NUL. PostgreSQL refuses a NUL, SQLite keeps one and gives back what stands before it.
func storable(text string) string {
	if utf8.ValidString(text) && strings.IndexByte(text, 0) < 0 {
		return text
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// storableProgress returns p with storable texts, p itself where they are that already.
func storableProgress(p *Progress) *Progress {
	if p == nil || eachText(p, func(t *string) bool { return storable(*t) == *t }) {
		return p
	}
	c := copyProgress(p)
	eachText(c, func(t *string) bool { *t = storable(*t); return true })
	return c
}

// eachText calls f with every text that a relay or the service wrote, until f is false.
func eachText(p *Progress, f func(*string) bool) bool {
	for i := range p.Results {
		r := &p.Results[i]
		if !f(&r.Enhanced) || !f(&r.Detail) || !f(&r.RemoteID) {
			return false
		}
	}
	for i := range p.Attempts {
		a := &p.Attempts[i]
		if !f(&a.Server) || !f(&a.Outcome) || !f(&a.Detail) || !f(&a.RemoteID) {
			return false
		}
	}
	return true
}

func copyProgress(p *Progress) *Progress {
	return &Progress{Results: append([]RecipientResult(nil), p.Results...), Attempts: append([]Attempt(nil), p.Attempts...)}
}

// unstorable stands in the journal for a text that the database refused.
const unstorable = "the database refused the text that stood here; the service's log has it"

// plain returns a settlement that says the same as st in words and numbers that no database
// refuses: statuses, codes and times stay, texts are replaced, counts are cut to what the
// columns hold.
func plain(st *Settlement) *Settlement {
	c := *st
	if c.LastError != "" {
		c.LastError = unstorable
	}
	c.Attempts = max(0, min(c.Attempts, math.MaxInt16))
	c.Crashes = max(0, min(c.Crashes, math.MaxInt16))
	if c.Progress != nil {
		c.Progress = copyProgress(c.Progress)
		for i := range c.Progress.Results {
			r := &c.Progress.Results[i]
			r.Enhanced, r.RemoteID = "", ""
			if r.Detail != "" {
				r.Detail = unstorable
			}
		}
		for i := range c.Progress.Attempts {
			a := &c.Progress.Attempts[i]
			a.RemoteID = ""
			if a.Detail != "" {
				a.Detail = unstorable
			}
		}
	}
	return &c
}

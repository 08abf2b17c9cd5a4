// Package idn maps host names to the form that goes on the wire (RFC 5890). It takes a name
// only where that is the name as written: UTS 46 also maps look-alikes, so that mail for
// ⓔvil.example would go to evil.example, and nobody would have read that name.
package idn

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"
)

// ErrName says that a name is no host name at all.
var ErrName = errors.New("is not a host name")

// Mapped says that a name would become another one.
type Mapped struct{ Name string }

func (e Mapped) Error() string {
	return fmt.Sprintf("would become %s: write that where it is meant", e.Name)
}

// profile is idna.Lookup with the lengths of labels and of the whole checked.
var profile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true),
	idna.VerifyDNSLength(true), idna.Transitional(false))

// ASCII is the name as A-labels in lower case. The work grows with the square of its length,
// which the caller bounds.
func ASCII(name string) (string, error) {
	a, err := profile.ToASCII(name)
	if err != nil || a == "" || strings.HasSuffix(a, ".") {
		return "", ErrName
	}
	a = strings.ToLower(a)
	given, made := strings.Split(name, "."), strings.Split(a, ".")
	if len(given) != len(made) {
		return "", Mapped{a}
	}
	for i, label := range given {
		want := norm.NFC.String(strings.ToLower(norm.NFC.String(label)))
		got := made[i]
		if got != want {
			if got, err = profile.ToUnicode(got); err != nil || got != want {
				return "", Mapped{a}
			}
		}
	}
	return a, nil
}

package smtpx_test

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/smtpx"
)

var showFailures = flag.Bool("failures", false, "list each reply of the set \"rules\" that is classified otherwise than by hand")

// published is a reply as a provider publishes it: a line of testdata/replies.tsv.
type published struct {
	set   string // rules, held or blind
	class smtpx.Failure
	said  smtpx.Said
	text  string
}

func publishedReplies(t *testing.T) []published {
	t.Helper()
	raw, err := os.ReadFile("testdata/replies.tsv")
	if err != nil {
		t.Fatal(err)
	}
	var rows []published
	for i, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 5 || f[4] == "" {
			t.Fatalf("line %d: %d columns, or no source", i+1, len(f))
		}
		phase := smtpx.PhaseRcpt
		if f[2] != "" {
			phase = smtpx.Phase(f[2])
		}
		rows = append(rows, published{set: f[0], class: smtpx.Failure(strings.ToLower(f[1])), said: smtpx.Said{Phase: phase, Reply: replyOf(f[3])}, text: f[3]})
	}
	return rows
}

var everyFailure = []smtpx.Failure{smtpx.FailNoSuchMailbox, smtpx.FailMailboxFull, smtpx.FailRecipientPolicy, smtpx.FailSenderRefused, smtpx.FailReputation,
	smtpx.FailContent, smtpx.FailSize, smtpx.FailRate, smtpx.FailAuth, smtpx.FailTLS, smtpx.FailUnreachable, smtpx.FailExpired, smtpx.FailUnclassified}

// TestFailurePrecision: how many of the replies that are said to be of a class are, over what
// providers publish. A class that was said more often than it is right is worse than none; a
// reply that is left unclassified is honest. The least of each class is what the table reached
// when it was written. The replies of the sets held and blind were not used to write it.
func TestFailurePrecision(t *testing.T) {
	least := map[string]struct {
		of      map[smtpx.Failure]int // percent; 90 where it is not named
		open    int                   // percent that may be unclassified at most
		replies int
	}{
		"rules": {replies: 376, open: 6},
		"held":  {replies: 188, open: 12},
		"blind": {replies: 183, open: 30, of: map[smtpx.Failure]int{smtpx.FailSize: 0, smtpx.FailRecipientPolicy: 75, smtpx.FailNoSuchMailbox: 85, smtpx.FailAuth: 85, smtpx.FailContent: 85,
			smtpx.FailUnreachable: 85, smtpx.FailMailboxFull: 85}},
	}
	rows := publishedReplies(t)
	for _, set := range []string{"rules", "held", "blind"} {
		said, right, all, open, right1 := map[smtpx.Failure]int{}, map[smtpx.Failure]int{}, 0, 0, 0
		for _, r := range rows {
			if r.set != set {
				continue
			}
			all++
			got := smtpx.FailureOf(r.said)
			said[got]++
			if got == smtpx.FailUnclassified {
				open++
			}
			if got == r.class {
				right[got]++
				if got != smtpx.FailUnclassified {
					right1++
				}
			} else if *showFailures && set == "rules" {
				t.Logf("by hand %s, by the table %s: %s", r.class, got, r.text)
			}
		}
		if all < least[set].replies {
			t.Errorf("%s: %d replies, want %d", set, all, least[set].replies)
		}
		for _, f := range everyFailure {
			if said[f] == 0 {
				continue
			}
			t.Logf("%s: %-16s %3d of %3d right", set, f, right[f], said[f])
			want, named := least[set].of[f]
			if !named {
				want = 90
			}
			if f != smtpx.FailUnclassified && 100*right[f] < want*said[f] {
				t.Errorf("%s: %s is right for %d of %d, want %d %%", set, f, right[f], said[f], want)
			}
		}
		t.Logf("%s: of %d replies %d are classified, %d of them right; %d %% are unclassified", set, all, all-open, right1, 100*open/all)
		if 100*open > least[set].open*all {
			t.Errorf("%s: %d of %d are unclassified, want at most %d %%", set, open, all, least[set].open)
		}
	}
}

// TestFailureOfPhase: what no relay said is classified by where it happened.
func TestFailureOfPhase(t *testing.T) {
	for _, c := range []struct {
		said smtpx.Said
		want smtpx.Failure
	}{
		{smtpx.Said{Phase: smtpx.PhaseDNS}, smtpx.FailUnreachable},
		{smtpx.Said{Phase: smtpx.PhaseConnect}, smtpx.FailUnreachable},
		{smtpx.Said{Phase: smtpx.PhaseTLS}, smtpx.FailTLS},
		{smtpx.Said{Phase: smtpx.PhaseSTARTTLS}, smtpx.FailTLS},
		{smtpx.Said{Phase: smtpx.PhaseRcpt}, smtpx.FailUnreachable},
		{smtpx.Said{Phase: smtpx.PhaseRcpt, Reply: smtpx.Reply{Code: 250}}, smtpx.FailNone},
		{smtpx.Said{Phase: smtpx.PhaseMail, Reply: smtpx.Reply{Text: "mail from: the message has 12 bytes; the server takes 10"}}, smtpx.FailSize},
		{smtpx.Said{Phase: smtpx.PhaseRcpt, Reply: smtpx.Reply{Code: 550}}, smtpx.FailUnclassified},
		{smtpx.Said{Phase: smtpx.PhaseGreeting, Reply: smtpx.Reply{Code: 554, Text: "go away"}}, smtpx.FailReputation},
		{smtpx.Said{Phase: smtpx.PhaseMail, Reply: smtpx.Reply{Code: 550, Text: "no"}}, smtpx.FailSenderRefused},
		{smtpx.Said{Phase: smtpx.PhaseMail, Reply: smtpx.Reply{Code: 502, Enhanced: "5.5.1", Text: "not implemented"}}, smtpx.FailUnclassified},
		{smtpx.Said{Phase: smtpx.PhaseMail, Reply: smtpx.Reply{Code: 503, Enhanced: "5.5.1", Text: "bad sequence"}}, smtpx.FailUnclassified},
		{smtpx.Said{Phase: smtpx.PhaseMail, Reply: smtpx.Reply{Code: 521, Enhanced: "5.3.2", Text: "takes no mail"}}, smtpx.FailUnreachable},
	} {
		if got := smtpx.FailureOf(c.said); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.said, got, c.want)
		}
	}
}

// TestFailureIn: the class of a fault comes out of its text as it comes out of the fault.
func TestFailureIn(t *testing.T) {
	for _, r := range publishedReplies(t) {
		for _, text := range []string{(&smtpx.Error{Phase: r.said.Phase, Reply: r.said.Reply}).Error(), "throttled: " + r.said.Reply.String()} {
			said := r.said
			if strings.HasPrefix(text, "throttled: ") {
				if said.Phase != smtpx.PhaseRcpt {
					continue
				}
				said.Phase = ""
			}
			if got, want := smtpx.FailureIn(text), smtpx.FailureOf(said); got != want {
				t.Errorf("%q: got %q, want %q", text, got, want)
			}
		}
	}
	for text, want := range map[string]smtpx.Failure{
		(&smtpx.Error{Phase: smtpx.PhaseConnect, Err: errors.New("connection refused")}).Error():     smtpx.FailUnreachable,
		(&smtpx.Error{Phase: smtpx.PhaseTLS, Err: errors.New("bad certificate")}).Error():            smtpx.FailTLS,
		(&smtpx.Error{Phase: smtpx.PhaseToken, Err: errors.New("the provider answers 503")}).Error(): smtpx.FailAuth,
		"somebody stumbled": smtpx.FailUnclassified,
	} {
		if got := smtpx.FailureIn(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// TestFailureHint: each class has advice for a person, and some replies a more exact one.
func TestFailureHint(t *testing.T) {
	for _, f := range everyFailure {
		if f.Hint("") == "" {
			t.Errorf("%s has no hint", f)
		}
	}
	if got := smtpx.FailNone.Hint("spam"); got != "" {
		t.Errorf("no failure: got the hint %q", got)
	}
	for text, want := range map[string]string{"rejected by DMARC policy": "DKIM", "domain has a bad SPF record": "SPF record", "not owned by user": "verify the address"} {
		if got := smtpx.FailSenderRefused.Hint(text); !strings.Contains(got, want) {
			t.Errorf("%q: got the hint %q, want %q", text, got, want)
		}
	}
}

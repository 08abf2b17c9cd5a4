package quota

import (
	"testing"

	"github.com/maildispatch/maildispatch/store"
)

// TestLeft: what is told is what can be had.
func TestLeft(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{CallerMails: 40, TeamRecipients: 100, Guard: Guard{Team: 50, Address: 3600, Kinds: Kinds{store.KindBulk: 7}}})
	for range 30 {
		if err := o.send(mail("a@y.example", "b@y.example")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := o.Left(t.Context(), "billing", nil, []string{"t1", "t2"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Left{{"caller_mails_per_minute", "", 40, 10}, {"team_recipients_per_minute", "t1", 100, 40}, {"guard_team_per_hour", "t1", 50, 20},
		{"team_recipients_per_minute", "t2", 100, 100}, {"guard_team_per_hour", "t2", 50, 50}}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
	own, err := o.Left(t.Context(), "billing", &store.Budget{Token: "a", Mails: 5, Recipients: 7}, nil)
	if err != nil || len(own) != 3 || own[0] != (Left{"token_mails_per_day", "", 5, 5}) || own[1] != (Left{"token_recipients_per_day", "", 7, 7}) {
		t.Errorf("of a token with a budget: got %v, %v", own, err)
	}
	names := o.Limits().ByName()
	if names["caller_mails_per_minute"] != 40 || names["guard_kind_per_hour.bulk"] != 7 || len(names) != 5 {
		t.Errorf("got %v, want the five limits in force", names)
	}
	if d := Defaults().ByName(); d["tests"] != 2 || d["watchers"] != 100 || d["upload_bytes"] != 256<<20 {
		t.Errorf("got %v of the defaults", d)
	}
	var none *Quota
	if left, err := none.Left(t.Context(), "x", nil, nil); left != nil || err != nil || len(none.Limits().ByName()) != 0 {
		t.Errorf("no quota: got %v, %v", left, err)
	}
}

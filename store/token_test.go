package store_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func someToken(id string, ttl time.Duration) *store.Token {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return &store.Token{ID: id, Name: "billing", Hash: [32]byte{1, 2, 3}, Roles: []store.Role{store.RoleSend, store.RoleRead}, Teams: []string{"t1", "t2"},
		Kinds: []store.Kind{store.KindInvoice}, MailServers: []string{"ss"}, MailsPerDay: 100, RecipientsPerDay: 1 << 40, CreatedBy: "me", CreateTime: now, ExpireTime: now.Add(ttl)}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		a, err := s.Access(ctx)
		if err != nil || a.On || len(a.Tokens) > 0 {
			t.Fatalf("an empty store: got %+v, %v", a, err)
		}
		if _, err := s.Register(ctx, "r", time.Minute); err != nil {
			t.Fatal(err)
		}
		made := map[string]*store.Token{"a": someToken("a", time.Hour), "b": someToken("b", time.Hour), "c": someToken("c", -time.Hour), "d": someToken("d", -48*time.Hour)}
		made["b"].System, made["b"].Teams, made["b"].Kinds, made["b"].MailServers = true, []string{}, []store.Kind{}, []string{}
		made["b"].MailsPerDay, made["b"].RecipientsPerDay = 0, 0
		for _, id := range []string{"b", "a", "d", "c"} {
			if err := s.CreateToken(ctx, made[id], store.Audit{Actor: "me", Action: "CreateToken"}); err != nil {
				t.Fatal(err)
			}
		}
		a, err = s.Access(ctx)
		if err != nil || !a.On {
			t.Fatalf("after the first token: got %+v, %v, want access on", a, err)
		}
		got := map[string]*store.Token{}
		for _, x := range a.Tokens {
			got[x.ID] = x
		}
		if len(got) != 3 || got["d"] != nil || !reflect.DeepEqual(got["a"], made["a"]) || !reflect.DeepEqual(got["b"], made["b"]) {
			t.Fatalf("got %+v\nwant a, b and the lately expired c of %+v", got, made)
		}
		at := time.Now().Add(time.Minute).UTC().Truncate(time.Microsecond)
		for _, when := range []time.Time{at, at.Add(-time.Second)} {
			// an older use takes nothing back
			if err := s.TouchToken(ctx, "a", when); err != nil {
				t.Fatal(err)
			}
		}
		first, err := s.RevokeToken(ctx, "a", store.Audit{Actor: "me", Action: "RevokeToken"})
		if err != nil || first.RevokeTime == nil || first.UseTime == nil || !first.UseTime.Equal(at) {
			t.Fatalf("got %+v, %v, want it revoked, and used at %v", first, err, at)
		}
		if again, err := s.RevokeToken(ctx, "a", store.Audit{Actor: "me"}); err != nil || !again.RevokeTime.Equal(*first.RevokeTime) {
			t.Fatalf("revoked again: got %+v, %v, want the first time kept", again, err)
		}
		if _, err := s.RevokeToken(ctx, "nobody", store.Audit{Actor: "me"}); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("got %v, want ErrNotFound", err)
		}
		ids := func(after string, ended bool, n int) (out string) {
			ts, err := s.Tokens(ctx, after, ended, n)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range ts {
				out += x.ID
			}
			return out
		}
		if got := ids("", false, 9) + " " + ids("", true, 9) + " " + ids("a", true, 2); got != "b abcd bc" {
			t.Errorf("got %q, want \"b abcd bc\"", got)
		}
	})
}

// TestNobodyMakesOneToken: who is not known makes the first token and no other, also when many
// try at once, and revokes none.
func TestNobodyMakesOneToken(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		const many = 8
		errs := make(chan error, many)
		for i := range many {
			go func() {
				errs <- s.CreateToken(ctx, someToken(string(rune('a'+i)), time.Hour), store.Audit{Action: "CreateToken"})
			}()
		}
		made := 0
		for range many {
			if err := <-errs; err == nil {
				made++
			} else if !errors.Is(err, store.ErrNobody) {
				t.Error(err)
			}
		}
		ts, err := s.Tokens(ctx, "", true, many)
		if err != nil || made != 1 || len(ts) != 1 {
			t.Fatalf("got %d made and %d stored, %v, want one", made, len(ts), err)
		}
		if _, err := s.RevokeToken(ctx, ts[0].ID, store.Audit{Action: "RevokeToken"}); !errors.Is(err, store.ErrNobody) {
			t.Errorf("revoked by nobody: got %v, want ErrNobody", err)
		}
		if err := s.CreateToken(ctx, someToken("z", time.Hour), store.Audit{Actor: "me"}); err != nil {
			t.Errorf("a second one of somebody: %v", err)
		}
		if x, err := s.RevokeToken(ctx, ts[0].ID, store.Audit{Actor: "me"}); err != nil || x.RevokeTime == nil {
			t.Errorf("revoked by somebody: got %+v, %v", x, err)
		}
	})
}

// TestFirstTokenWaitsForOldReplicas: an older program that still runs asks nobody who it is.
func TestFirstTokenWaitsForOldReplicas(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		if err := s.Exec("update replica set asks = 0, name = 'old-one'"); err != nil {
			t.Fatal(err)
		}
		err := s.CreateToken(ctx, someToken("a", time.Hour), store.Audit{})
		var old *store.OldReplicaError
		if !errors.As(err, &old) || old.Replica != "old-one" {
			t.Fatalf("got %v, want the older replica named", err)
		}
		if a, err := s.Access(ctx); err != nil || a.On || len(a.Tokens) > 0 {
			t.Fatalf("refused: got %+v, %v, want nothing changed", a, err)
		}
		if err := s.Unregister(ctx, r); err != nil {
			t.Fatal(err)
		}
		if err := s.CreateToken(ctx, someToken("a", time.Hour), store.Audit{}); err != nil {
			t.Fatalf("with the old one gone: %v", err)
		}
	})
}

// TestScopeOfACaller: what another caller of the same team has handed over is not there.
func TestScopeOfACaller(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		mine, other := newMail("ss"), newMail("ss")
		mine.Caller, other.Caller, mine.Team, other.Team, mine.BatchID, other.BatchID = "me", "other", "t1", "t1", "b", "b"
		if _, err := s.EnqueueBatch(ctx, []*store.NewMail{mine, other}); err != nil {
			t.Fatal(err)
		}
		sc := store.Scope{Teams: []string{"t1"}, Caller: "me"}
		if ms, err := s.ListDue(ctx, sc, store.MailFilter{}, store.Cursor{}, 9); err != nil || len(ms) != 1 || ms[0].ID != mine.ID {
			t.Errorf("ListDue: got %d mails, %v, want mine", len(ms), err)
		}
		if c, err := s.CountBatch(ctx, sc, "t1", "b"); err != nil || c.Mails != 1 {
			t.Errorf("CountBatch: got %+v, %v, want 1 mail", c, err)
		}
		if _, err := s.Mail(ctx, sc, mine.ID); err != nil {
			t.Error(err)
		}
		var raw bytes.Buffer
		if _, err := s.RawMail(ctx, sc, mine.ID, &raw); err != nil {
			t.Error(err)
		}
		second := func(_ any, err error) error { return err }
		for what, err := range map[string]error{
			"Mail":    second(s.Mail(ctx, sc, other.ID)),
			"RawMail": second(s.RawMail(ctx, sc, other.ID, io.Discard)),
			"ModifyMail": second(s.ModifyMail(ctx, sc, other.ID, store.Audit{}, func(*store.Mail, *store.MailServer) (*store.Change, error) {
				return nil, errors.New("was asked")
			})),
			"another team": second(s.Mail(ctx, store.Scope{Teams: []string{"t2"}, Caller: "me"}, mine.ID)),
		} {
			if !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: got %v, want ErrNotFound", what, err)
			}
		}
		hold := func(*store.Mail, *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, Progress: &store.Progress{}}, nil
		}
		matched, changed, fails, err := s.Modify(ctx, sc, []uuid.UUID{mine.ID, other.ID}, nil, false, store.Audit{}, hold)
		if err != nil || matched != 1 || changed != 1 || len(fails) != 1 || fails[0].ID != other.ID || !errors.Is(fails[0].Err, store.ErrNotFound) {
			t.Errorf("Modify by ids: got %d, %d, %v, %v, want mine changed and the other not found", matched, changed, fails, err)
		}
		if matched, _, _, err := s.Modify(ctx, sc, nil, &store.MailFilter{BatchID: "b"}, true, store.Audit{}, hold); err != nil || matched != 1 {
			t.Errorf("Modify by filter: got %d, %v, want 1", matched, err)
		}
		if db, is := s.(*store.Store); is {
			if _, err := db.CopyMail(ctx, sc, other.ID); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("CopyMail: got %v, want ErrNotFound", err)
			}
			if q, err := db.CountQueue(ctx, sc, nil, ""); err != nil || len(q.ByStatus) > 0 {
				t.Errorf("CountQueue: got %+v, %v, want nothing", q, err)
			}
		}
	})
}

// TestSenderDomains: what was set last counts, and nothing is left of what was taken back.
func TestSenderDomains(t *testing.T) {
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		by := store.Audit{Actor: "me", Action: "SetSenderDomains"}
		for _, x := range []struct {
			team    string
			domains []string
		}{{"t2", []string{"a.example"}}, {"t1", []string{"x.example", "*.x.example"}}, {"t2", []string{"b.example"}}, {"t3", []string{"c.example"}}, {"t3", nil}, {"t4", nil}} {
			if _, err := s.SetSenderDomains(ctx, x.team, x.domains, by); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string][]string{"t1": {"x.example", "*.x.example"}, "t2": {"b.example"}}
		if a, err := s.Access(ctx); err != nil || !reflect.DeepEqual(a.Senders, want) {
			t.Errorf("got %+v, %v, want %v", a, err, want)
		}
		first, err := s.SenderDomains(ctx, "", 1)
		if err != nil || len(first) != 1 || first[0].Team != "t1" || first[0].UpdateTime.IsZero() || !reflect.DeepEqual(first[0].Domains, want["t1"]) {
			t.Errorf("the first page: got %v, %v", first, err)
		}
		if next, err := s.SenderDomains(ctx, "t1", 5); err != nil || len(next) != 1 || next[0].Team != "t2" {
			t.Errorf("the next page: got %v, %v", next, err)
		}
	})
}

package store_test

import (
	"reflect"
	"testing"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestReplaceGrant: a new refresh token is stored in the place of the one that was used, and of
// no other; nothing else of the mail server changes by that, its version neither.
func TestReplaceGrant(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		oauth := &store.OAuth{ClientID: "app", TokenURL: "https://login.example/token", Scopes: []string{"a", "b"}, Grant: "refresh_token",
			SealedClientSecret: []byte{1, 2}, SealedGrant: []byte{3, 4}}
		m := &store.MailServer{Name: "oauth", Type: store.TypeSMTP, From: "a@x.example", Mode: store.ModeDaemon, Status: store.ServerAvailable, Annotations: map[string]string{},
			SMTP: &store.SMTP{Host: "mx.example", Port: 587, Encryption: "starttls", Auth: "xoauth2", OAuth: oauth}}
		if _, _, err := s.CreateServer(t.Context(), m, store.Audit{}); err != nil {
			t.Fatal(err)
		}
		get := func() *store.MailServer {
			got, err := s.Server(t.Context(), store.Everything, "oauth")
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		if got := get().SMTP.OAuth; !reflect.DeepEqual(got, oauth) {
			t.Fatalf("got %+v, want %+v", got, oauth)
		}
		// Somebody changes something else meanwhile.
		before, err := s.UpdateServer(t.Context(), store.Everything, "oauth", 0, store.Audit{}, func(m *store.MailServer) error { m.DisplayName = "Shop"; return nil })
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			was  []byte
			want bool
		}{{[]byte{9}, false}, {nil, false}, {[]byte{3, 4}, true}, {[]byte{3, 4}, false}} {
			if ok, err := s.ReplaceGrant(t.Context(), "oauth", c.was, []byte{5, 6}); ok != c.want || err != nil {
				t.Errorf("in the place of %v: got %v, %v, want %v", c.was, ok, err, c.want)
			}
		}
		before.SMTP.OAuth.SealedGrant = []byte{5, 6}
		if got := get(); !reflect.DeepEqual(got.SMTP, before.SMTP) || got.Version != before.Version || got.DisplayName != "Shop" {
			t.Errorf("got %+v with %+v, want %+v", got, got.SMTP.OAuth, before)
		}
		if ok, err := s.ReplaceGrant(t.Context(), "nobody", []byte{1}, []byte{2}); ok || err == nil {
			t.Errorf("of no mail server: %v, %v", ok, err)
		}
	})
}

package access

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

// desk is a book over a store that can be away, with a clock of its own.
type desk struct {
	*memory.Store
	t    testing.TB
	book *Book
	at   time.Time
	away bool
	asks atomic.Int64 // of the store
}

func (d *desk) Access(ctx context.Context) (*store.Access, error) {
	d.asks.Add(1)
	if d.away {
		return nil, store.ErrUnavailable
	}
	return d.Store.Access(ctx)
}

func newDesk(t testing.TB, mode Mode, loopback bool) *desk {
	t.Helper()
	d := &desk{t: t, at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	d.Store = memory.New(func() time.Time { return d.at })
	var err error
	d.book, err = NewBook(context.Background(), Config{Store: d, Mode: mode, Loopback: loopback, Now: func() time.Time { return d.at }})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// token makes a token for an hour, and gives what its holder sends.
func (d *desk) token(change ...func(*store.Token)) (secret, id string) {
	d.t.Helper()
	secret, id, hash := NewSecret()
	tok := &store.Token{ID: id, Name: "n", Hash: hash, Roles: []store.Role{store.RoleSend}, Teams: []string{"t1"}, CreateTime: d.at, ExpireTime: d.at.Add(time.Hour)}
	for _, c := range change {
		c(tok)
	}
	if err := d.CreateToken(context.Background(), tok, store.Audit{Actor: "test"}); err != nil {
		d.t.Fatal(err)
	}
	d.read()
	return secret, id
}

// TestClockThatWasAhead: a token that was ended while the clock was ahead is good again.
func TestClockThatWasAhead(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Required, true)
	secret, _ := d.token()
	d.at = d.at.Add(2 * time.Hour)
	d.book.sweep()
	d.at = d.at.Add(-2 * time.Hour)
	d.read()
	p, err := d.book.identify(context.Background(), metadata.Pairs("authorization", "Bearer "+secret))
	if err == nil {
		err = Caller{Principal: p}.Err()
	}
	if err != nil {
		t.Errorf("got %v, want it known", err)
	}
}

func (d *desk) read() {
	d.t.Helper()
	if err := d.book.Read(context.Background()); err != nil && !d.away {
		d.t.Fatal(err)
	}
}

func (d *desk) identify(headers ...string) (*Principal, error) {
	return d.book.identify(context.Background(), metadata.MD{"authorization": headers})
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	secret, id, hash := NewSecret()
	gotID, gotHash, ok := parse(secret)
	if !ok || gotID != id || gotHash != hash {
		t.Fatalf("parse(%d characters): got %q, %v, want it back", len(secret), gotID, ok)
	}
	for i := range len(secret) {
		b := []byte(secret)
		b[i] ^= 1
		if gotID, gotHash, ok := parse(string(b)); ok {
			t.Errorf("with character %d changed it is taken for %s %x", i, gotID, gotHash)
		}
	}
	if other, otherID, _ := NewSecret(); other == secret || otherID == id {
		t.Error("two tokens are the same")
	}
}

// FuzzToken: no header panics, and none but the token itself is taken for somebody.
func FuzzToken(f *testing.F) {
	d := newDesk(f, Required, true)
	secret, _ := d.token()
	for _, s := range []string{"", "Bearer ", "Bearer " + secret, "bearer " + secret, "Basic " + secret, secret, "Bearer " + secret + " ", "Bearer  " + secret,
		"Bearer md_" + strings.Repeat("_", tokenLen-3), "Bearer md_\x00\xff", "Bearer " + strings.ToUpper(secret)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		p, err := d.identify(header)
		right := len(header) == len("Bearer ")+len(secret) && strings.EqualFold(header[:7], "Bearer ") && header[7:] == secret
		if (err == nil) != right || (p != nil) != right {
			t.Errorf("%q: got %v, %v", header, p, err)
		}
		if err != nil && status.Code(err) != codes.Unauthenticated {
			t.Errorf("%q: got %v, want UNAUTHENTICATED", header, err)
		}
	})
}

// FuzzPath: a path that is not a method's whole name gets nobody in.
func FuzzPath(f *testing.F) {
	for name := range policies {
		f.Add(name)
		f.Add(strings.TrimPrefix(name, "/"))
		f.Add("/" + name)
		f.Add(name + "/")
		f.Add(strings.ToLower(name))
	}
	g := As(Everybody())
	ctx := context.WithValue(context.Background(), principalKey{}, Everybody())
	f.Fuzz(func(t *testing.T, path string) {
		_, _, err := g.admit(ctx, path)
		if _, known := policies[path]; (err == nil) != known {
			t.Errorf("%q: got %v, known %v", path, err, known)
		}
		if pol := policies[path]; pol != nil && pol.GetOpen() != strings.HasPrefix(path, "/grpc.health.v1.Health/") {
			t.Errorf("%q is open to who is not known", path)
		}
	})
}

func TestWhoIsKnown(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Required, true)
	secret, id := d.token()
	if p, err := d.identify("Bearer " + secret); err != nil || p.Name != "n" || !strings.Contains(p.Actor, id) {
		t.Fatalf("got %+v, %v", p, err)
	}
	foreign, _, _ := NewSecret()
	for what, headers := range map[string][]string{"no token": nil, "unknown": {"Bearer " + foreign}, "twice": {"Bearer " + secret, "Bearer " + secret}, "another scheme": {"Basic " + secret}} {
		if _, err := d.identify(headers...); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: got %v, want UNAUTHENTICATED", what, err)
		}
	}
	// The id of one token with the secret of another is nobody.
	other, _ := d.token()
	mixed := secret[:len(prefix)+idLen+1] + other[len(prefix)+idLen+1:tokenLen-sumLen-1]
	mixed += fmt.Sprintf("_%08x", crc32.ChecksumIEEE([]byte(mixed)))
	if _, err := d.identify("Bearer " + mixed); status.Code(err) != codes.Unauthenticated {
		t.Errorf("mixed: got %v, want UNAUTHENTICATED", err)
	}
	if _, err := d.RevokeToken(context.Background(), id, store.Audit{Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	d.read()
	if _, err := d.identify("Bearer " + secret); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: got %v", err)
	}
}

// TestSwitch: on loopback the first token closes the service, and calls of before end with it.
func TestSwitch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode     Mode
		loopback bool
		before   bool // asked before there is a token
		after    bool
	}{{Auto, true, false, true}, {Auto, false, true, true}, {Required, true, true, true}, {None, true, false, false}} {
		d := newDesk(t, c.mode, c.loopback)
		p, err := d.identify()
		if (err != nil) != c.before {
			t.Errorf("%+v, no token made: got %v", c, err)
		}
		d.token()
		if _, err := d.identify(); (err != nil) != c.after {
			t.Errorf("%+v, a token made: got %v", c, err)
		}
		if p != nil {
			if ended := (Caller{Principal: p}).Err() != nil; ended != c.after {
				t.Errorf("%+v: the calls of before have ended: %v", c, ended)
			}
		}
	}
}

// TestCallsEnd: who calls for long hears of the end of its token, also of one that only ran
// out.
func TestCallsEnd(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Required, true)
	secret, id := d.token()
	expiring, _ := d.token(func(x *store.Token) { x.ExpireTime = d.at.Add(time.Minute) })
	p, _ := d.identify("Bearer " + secret)
	q, _ := d.identify("Bearer " + expiring)
	d.read()
	if p.over() || q.over() {
		t.Fatal("a token that nobody revoked has ended")
	}
	d.at = d.at.Add(time.Minute)
	d.book.sweep()
	d.book.sweep() // once more does no harm
	if p.over() || !q.over() {
		t.Fatalf("after a minute: got ended %v and %v, want only the second", p.over(), q.over())
	}
	d.at = d.at.Add(48 * time.Hour) // by now it is not read any more
	if _, err := d.RevokeToken(context.Background(), id, store.Audit{Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	d.read()
	if !p.over() {
		t.Fatal("the revoked token goes on")
	}
}

// TestDatabaseAway: what was read holds, but expiry counts, and after five minutes
// administrators are refused.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Required, true)
	secret, _ := d.token(func(x *store.Token) { x.Roles = []store.Role{store.RoleSend, store.RoleAdmin} })
	d.away = true
	g := d.book.Guard()
	call := func(method string) error {
		p, err := d.identify("Bearer " + secret)
		if err == nil {
			_, _, err = g.admit(context.WithValue(context.Background(), principalKey{}, p), method)
		}
		return err
	}
	for _, c := range []struct {
		after       time.Duration
		send, admin codes.Code
	}{{0, codes.OK, codes.OK}, {unsureAfter, codes.OK, codes.OK}, {unsureAfter + time.Second, codes.OK, codes.Unavailable},
		{time.Hour, codes.Unauthenticated, codes.Unauthenticated}} {
		d.at = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(c.after)
		d.read()
		if got := status.Code(call("/maildispatch.v1.Dispatch/Send")); got != c.send {
			t.Errorf("Send %v after the last reading: got %v, want %v", c.after, got, c.send)
		}
		if got := status.Code(call("/maildispatch.v1.MailServerAdmin/DeleteMailServer")); got != c.admin {
			t.Errorf("DeleteMailServer %v after the last reading: got %v, want %v", c.after, got, c.admin)
		}
	}
	if err := d.book.Read(context.Background()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v, want the reading's error told", err)
	}
}

// TestCheckAsksNobody: a call that is let in asks no database.
func TestCheckAsksNobody(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Required, true)
	secret, _ := d.token()
	before := d.asks.Load()
	for range 100 {
		if _, err := d.identify("Bearer " + secret); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.asks.Load() - before; n != 0 {
		t.Errorf("100 calls asked %d times, want 0", n)
	}
}

// BenchmarkCheck is what access adds to a call: the token, and the decision by role.
func BenchmarkCheck(b *testing.B) {
	d := newDesk(b, Required, true)
	var secret string
	for range 1000 {
		secret, _ = d.token()
	}
	g := d.book.Guard()
	md := metadata.MD{"authorization": {"Bearer " + secret}}
	b.ReportAllocs()
	for b.Loop() {
		p, err := g.identify(context.Background(), md)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := g.admit(context.WithValue(context.Background(), principalKey{}, p), "/maildispatch.v1.Dispatch/Send"); err != nil {
			b.Fatal(err)
		}
	}
}

// TestTeams: what becomes of the team in a request.
func TestTeams(t *testing.T) {
	t.Parallel()
	one := Caller{Principal: &Principal{Teams: []string{"t1"}}}
	two := Caller{Principal: &Principal{Teams: []string{"t1", "t2"}}}
	system := Caller{Principal: &Principal{System: true}}
	send := policies["/maildispatch.v1.Dispatch/Send"]
	due := policies["/maildispatch.v1.Dispatch/ListDueOutMails"]
	for _, c := range []struct {
		who         Caller
		named, want string
		ok          bool
	}{{one, "", "t1", true}, {one, "t1", "t1", true}, {one, "t2", "", false}, {two, "", "", false}, {two, "t2", "t2", true}, {system, "", "", true}, {system, "t9", "t9", true}} {
		r := &pb.SendRequest{}
		if c.named != "" {
			r.Options = &pb.SendOptions{Team: c.named}
		}
		err := send.checkTeam(c.who, r.ProtoReflect())
		if (err == nil) != c.ok || err == nil && r.GetOptions().GetTeam() != c.want {
			t.Errorf("Send for %q by %v: got %q, %v, want %q", c.named, c.who.Teams, r.GetOptions().GetTeam(), err, c.want)
		}
	}
	empty, foreign := "", "t9"
	for _, c := range []struct {
		filter *pb.MailFilter
		ok     bool
	}{{nil, true}, {&pb.MailFilter{}, true}, {&pb.MailFilter{Team: &empty}, false}, {&pb.MailFilter{Team: &foreign}, false}} {
		r := &pb.ListDueOutMailsRequest{Filter: c.filter}
		err := due.checkTeam(one, r.ProtoReflect())
		if (err == nil) != c.ok || c.filter == nil && r.Filter != nil {
			t.Errorf("listing %v: got %v", c.filter, err)
		}
	}
	if sc := From(context.Background()).Scope(); sc.All || len(sc.Teams) > 0 {
		t.Errorf("no caller: got the scope %+v, want the one that sees nothing", sc)
	}
}

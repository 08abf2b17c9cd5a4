package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

const (
	heavyEntries = 4
	heavyEntry   = 850 << 10 // bytes: two go into a page
)

// heavyLists is how many entries fill has made for each call that answers in pages, and more
// that were there.
var heavyLists = map[string]int{
	"MailServerAdmin/ListMailServers": heavyEntries,
	"Dispatch/ListDueOutMails":        heavyEntries,
	"Dispatch/ListArchivedMails":      heavyEntries,
	"Dispatch/FindMails":              2 * heavyEntries,
	"Operations/ListOperations":       heavyEntries,
	"Retention/ListLegalHolds":        heavyEntries,
	"AccessAdmin/ListSenderDomains":   heavyEntries,
	"AccessAdmin/ListTokens":          heavyEntries + 1, // the caller's own
	// operations, holds, mail servers; a token, a call
	"AccessAdmin/ListAudit": 3*heavyEntries + 2,
}

// fillHeavy makes heavy entries of everything that is listed.
func (r *rig) fillHeavy() {
	t, text := r.t, strings.Repeat("x", heavyEntry)
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	light, heavy := store.Audit{Actor: "test", Action: "Test"}, store.Audit{Actor: "test", Action: "Test", Reason: text}
	var ms []*store.NewMail
	var cancel []string
	for i := range 2 * heavyEntries {
		m := &store.NewMail{ID: uuid.Must(uuid.NewV7()), MailServer: "s0", Mode: store.ModeDaemon, Kind: store.KindBulk, From: "a@x.example", MessageID: fmt.Sprint(i), Subject: text,
			Recipients: []store.Recipient{{Mailbox: "r@x.example"}}, Route: "named", CreateTime: time.Now(), Held: "held", RunAt: time.Now(), Raw: []store.Piece{{Data: []byte("\r\n")}}, SizeBytes: 2}
		if i%2 == 0 {
			cancel = append(cancel, m.ID.String())
		}
		ms = append(ms, m)
	}
	for i := range heavyEntries {
		_, _, err := r.store.CreateServer(ctx(t), &store.MailServer{Name: fmt.Sprintf("s%d", i), DisplayName: text, Type: store.TypeLocalhost, From: "a@x.example", Mode: store.ModeDaemon,
			Status: store.ServerAvailable}, heavy)
		ok(err)
		ok(r.store.BeginOperation(ctx(t), &store.Operation{Action: "HoldMails", Scope: store.Everything, Request: "{}", Audit: heavy}))
		ok(r.store.PlaceHold(ctx(t), &store.LegalHold{ID: uuid.Must(uuid.NewV7())}, heavy))
		_, err = r.store.SetSenderDomains(ctx(t), fmt.Sprintf("t%d", i), []string{text}, light)
		ok(err)
		ok(r.store.CreateToken(ctx(t), &store.Token{ID: fmt.Sprintf("t%02d", i), Name: text, Hash: [32]byte{byte(i + 1)}, System: true, CreateTime: time.Now(), ExpireTime: time.Now().Add(time.Hour)}, light))
	}
	_, err := r.store.EnqueueBatch(ctx(t), ms)
	ok(err)
	_, err = r.dispatch.CancelMails(ctx(t), &pb.CancelMailsRequest{Ids: cancel})
	ok(err)
}

// TestPagesByWeight: each call that answers in pages ends a heavy page early, so that no client
// has to be told to take more than it does without a word, and its token goes on with no entry
// lost and none twice. The calls are those whose answer has a next_page_token.
func TestPagesByWeight(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.fillHeavy()
	admin, _ := r.token("", store.RoleAdmin, system)
	seen := 0
	for _, f := range []protoreflect.FileDescriptor{pb.File_maildispatch_v1_dispatch_proto, pb.File_maildispatch_v1_mail_server_admin_proto, pb.File_maildispatch_v1_operation_proto,
		pb.File_maildispatch_v1_retention_proto, pb.File_maildispatch_v1_access_proto} {
		for i := range f.Services().Len() {
			ms := f.Services().Get(i).Methods()
			for j := range ms.Len() {
				if ms.Get(j).Output().Fields().ByName("next_page_token") != nil {
					r.pages(admin, ms.Get(j))
					seen++
				}
			}
		}
	}
	if seen != len(heavyLists) {
		t.Errorf("%d calls answer in pages, heavyLists has %d", seen, len(heavyLists))
	}
}

// pages reads all pages of one call.
func (r *guardedRig) pages(secret string, m protoreflect.MethodDescriptor) {
	t := r.t
	name := string(m.Parent().Name()) + "/" + string(m.Name())
	want, known := heavyLists[name]
	if !known {
		t.Errorf("%s answers in pages, and heavyLists does not have it", name)
		return
	}
	in, out := m.Input().Fields(), m.Output().Fields()
	var list protoreflect.FieldDescriptor
	for i := range out.Len() {
		if out.Get(i).IsList() {
			list = out.Get(i)
		}
	}
	got, pages, token := map[string]int{}, 0, ""
	for ; pages == 0 || token != ""; pages++ {
		req, res := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
		req.Set(in.ByName("page_size"), protoreflect.ValueOfInt32(500))
		req.Set(in.ByName("page_token"), protoreflect.ValueOfString(token))
		if err := r.conn.Invoke(with(ctx(t), secret), "/"+string(m.Parent().FullName())+"/"+string(m.Name()), req, res); err != nil {
			t.Errorf("%s, page %d: %v", name, pages+1, err)
			return
		}
		if n := proto.Size(res); n > 3<<20 {
			t.Errorf("%s: a page of %d bytes", name, n)
		}
		entries := res.Get(list).List()
		for i := range entries.Len() {
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(entries.Get(i).Message().Interface())
			if err != nil {
				t.Fatal(err)
			}
			got[string(b)]++
		}
		if token = res.Get(out.ByName("next_page_token")).String(); pages > 100 {
			t.Fatalf("%s: a page of %d entries and no end", name, entries.Len())
		}
	}
	for entry, n := range got {
		if n > 1 {
			t.Errorf("%s: %d times %.200q", name, n, entry)
		}
	}
	if pages < 2 || len(got) < want {
		t.Errorf("%s: %d entries in %d pages, want %d in more than one", name, len(got), pages, want)
	}
}

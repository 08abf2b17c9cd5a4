package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestOneConnection calls every method with one connection in each pool: one that holds a
// connection and asks for another would wait for itself for ever.
func TestOneConnection(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		s.OneConnection()
		c, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		var (
			audit = store.Audit{Actor: "me"}
			mails []*store.NewMail
			r     store.ReplicaID
			cs    []*store.Claimed
			hold  = uuid.Must(uuid.NewV7())
			keep  = store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata, Age: time.Hour}
			up    = &store.Upload{ID: uuid.Must(uuid.NewV7()), Team: "sales", Filename: "f", ContentType: "text/plain", SizeBytes: 4}
		)
		sum := sha256.Sum256([]byte("file"))
		up.SHA256, up.Content = sum[:], store.Content{Sum: sum, Size: 4}
		for range 6 {
			mails = append(mails, newMail("ss"))
		}
		op := &store.Operation{Action: "HoldMails", Scope: store.Everything, Request: "{}", Brakes: true}
		second := func(_ any, err error) error { return err }
		calls := []struct {
			name string
			call func() error
		}{
			{"CreateServer", func() error {
				_, _, err := s.CreateServer(c, &store.MailServer{Name: "ss", Team: "sales", Type: store.TypeLocalhost, Mode: store.ModeDaemon, Status: store.ServerAvailable}, audit)
				return err
			}},
			{"Server", func() error { return second(s.Server(c, store.Everything, "ss")) }},
			{"Servers", func() error { return second(s.Servers(c, store.Everything, store.ServerFilter{}, "", 5)) }},
			{"UpdateServer", func() error {
				return second(s.UpdateServer(c, store.Everything, "ss", 0, audit, func(m *store.MailServer) error { m.DisplayName = "x"; return nil }))
			}},
			{"SetDefault", func() error { _, _, err := s.SetDefault(c, store.Everything, "ss", audit); return err }},
			{"DefaultServer", func() error { return second(s.DefaultServer(c, "sales")) }},
			{"Register", func() (err error) { r, err = s.Register(c, "r", time.Minute); return err }},
			{"Renew", func() error { return s.Renew(c, r, time.Minute) }},
			{"PutUpload", func() error { _, _, err := s.PutUpload(c, up, bytes.NewReader([]byte("file"))); return err }},
			{"Upload", func() error { return second(s.Upload(c, "sales", up.ID)) }},
			{"Uploads", func() error { return second(s.Uploads(c, "sales", []uuid.UUID{up.ID})) }},
			{"Enqueue", func() error { return second(s.Enqueue(c, mails[0])) }},
			{"EnqueueBatch", func() error { return second(s.EnqueueBatch(c, mails[1:3])) }},
			{"EnqueueAll", func() error { return second(s.EnqueueAll(c, mails[3:])) }},
			{"DueServers", func() error { return second(s.DueServers(c)) }},
			{"Modify", func() error {
				_, _, _, err := s.Modify(c, store.Everything, nil, &store.MailFilter{}, false, audit, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
					return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: m.CreateTime}, nil
				})
				return err
			}},
			{"ModifyMail", func() error {
				return second(s.ModifyMail(c, store.Everything, mails[0].ID, audit, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
					return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: m.CreateTime}, nil
				}))
			}},
			{"Claim", func() (err error) { cs, err = s.Claim(c, r, "ss", 2, store.AnyPriority); return err }},
			{"LoadRaw", func() error { return second(s.LoadRaw(c, cs[0])) }},
			{"Settle", func() error {
				return (<-s.Settle(&store.Settlement{ID: cs[0].ID, Owner: r, Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: time.Now()})).Err
			}},
			{"RawMail", func() error { return second(s.RawMail(c, store.Everything, mails[0].ID, io.Discard)) }},
			{"RemainingRaw", func() error {
				return second(s.RemainingRaw(c, store.Everything, mails[0].ID, func(int64) {}, io.Discard))
			}},
			{"PlaceHold", func() error {
				return s.PlaceHold(c, &store.LegalHold{ID: hold, Team: "sales", MailID: mails[0].ID}, audit)
			}},
			{"LegalHolds", func() error { return second(s.LegalHolds(c, store.Everything, nil, true, uuid.Nil, 5)) }},
			{"LiftHold", func() error { return second(s.LiftHold(c, store.Everything, hold, audit)) }},
			{"Purge", func() error { return second(s.Purge(c, "me", keep, 10)) }},
			{"Overdue", func() error { return second(s.Overdue(c, keep)) }},
			{"RetentionProgress", func() error { return second(s.RetentionProgress(c)) }},
			{"WalkContents", func() error { return second(s.WalkContents(c, "me")) }},
			{"CollectContents", func() error { _, _, _, err := s.CollectContents(c, "me", 5); return err }},
			{"EraseRecipient", func() error {
				return second(s.EraseRecipient(c, &store.Erasure{Mailbox: "nobody@x.example", Pseudonym: "gone@erased.invalid", Hash: make([]byte, 32), Audit: audit}))
			}},
			{"DatabaseBytes", func() error { return second(s.DatabaseBytes(c)) }},
			{"CopyMail", func() error { return second(s.CopyMail(c, store.Everything, mails[0].ID)) }},
			{"Mail", func() error { return second(s.Mail(c, store.Everything, mails[0].ID)) }},
			{"ListDue", func() error { return second(s.ListDue(c, store.Everything, store.MailFilter{}, store.Cursor{}, 5)) }},
			{"ListArchive", func() error {
				return second(s.ListArchive(c, store.Everything, store.MailFilter{}, store.Cursor{}, 5))
			}},
			{"CountDue", func() error { return second(s.CountDue(c, "ss")) }},
			{"CountBatch", func() error { s.CountBatch(c, store.Everything, "sales", "b"); return nil }},
			{"CountQueue", func() error { return second(s.CountQueue(c, store.Everything, nil, "")) }},
			{"FindMails", func() error {
				_, _, err := s.FindMails(c, store.Everything, store.FindFilter{Text: "a@x.example"}, uuid.Nil, 5)
				return err
			}},
			{"KnownRequests", func() error { return second(s.KnownRequests(c, "sales", []string{"a", "b"})) }},
			{"QueueDepths", func() error { return second(s.QueueDepths(c)) }},
			{"TakeAllowances", func() error {
				return second(s.TakeAllowances(c, []store.AllowanceTake{{Key: make([]byte, 16), Limit: 10, Period: time.Minute, Want: 1}}))
			}},
			{"ForgetAllowances", func() error { return s.ForgetAllowances(c) }},
			{"Disk", func() error { s.Disk(c); return nil }},
			{"Content", func() error {
				if _, err := s.Content(c, [32]byte{1}); err == nil {
					return errors.New("content that nobody stored was found")
				}
				return nil
			}},
			{"Breakers", func() error { return second(s.Breakers(c)) }},
			{"ChangeBreaker", func() error {
				return second(s.ChangeBreaker(c, "ss", func(_ time.Time, b *store.Breaker) bool { b.Failures++; return true }))
			}},
			{"TakeSlot", func() error {
				_, _, err := s.TakeSlot(c, r, store.SlotTake{MailServer: "ss", Limit: 2, Token: 1})
				return err
			}},
			{"GiveSlot", func() error { return s.GiveSlot(c, r, store.Slot{MailServer: "ss", N: 1, Token: 1}) }},
			{"HoldSlots", func() error { return second(s.HoldSlots(c, r, nil, 2)) }},
			{"TakeRate", func() error { _, _, err := s.TakeRate(c, r, "ss", store.RateUse{}, 1, 10, 10); return err }},
			{"LastChange", func() error { return second(s.LastChange(c)) }},
			{"WatchLag", func() error { return second(s.WatchLag(c)) }},
			{"SetSenderDomains", func() error { return second(s.SetSenderDomains(c, "t1", []string{"x.example"}, audit)) }},
			{"SenderDomains", func() error { return second(s.SenderDomains(c, "", 5)) }},
			{"Access", func() error { return second(s.Access(c)) }},
			{"CreateToken", func() error {
				return s.CreateToken(c, &store.Token{ID: "t1", Name: "t", Hash: sum, CreateTime: time.Now(), ExpireTime: time.Now().Add(time.Hour)}, audit)
			}},
			{"TouchToken", func() error { return s.TouchToken(c, "t1", time.Now()) }},
			{"Tokens", func() error { return second(s.Tokens(c, "", true, 5)) }},
			{"RevokeToken", func() error { return second(s.RevokeToken(c, "t1", audit)) }},
			{"Changes", func() error {
				_, _, _, err := s.Changes(c, store.Everything, store.MailFilter{}, store.Position{}, 5)
				return err
			}},
			{"CountMatching", func() error { _, _, err := s.CountMatching(c, store.Everything, store.MailFilter{}); return err }},
			{"CountUpTo", func() error { return second(s.CountUpTo(c, store.Everything, store.MailFilter{}, 5)) }},
			{"BeginOperation", func() error { op.Filter = store.MailFilter{Kind: store.KindInvoice}; return s.BeginOperation(c, op) }},
			{"Operation", func() error { return second(s.Operation(c, op.ID)) }},
			{"Operations", func() error { return second(s.Operations(c, true, uuid.Max, 5)) }},
			{"TakeOperation", func() error { return second(s.TakeOperation(c, r)) }},
			{"DelayOperation", func() error { return s.DelayOperation(c, r, op.ID, "later") }},
			{"Operate", func() error { _, _, err := s.Operate(c, r, op.ID, 5, nil, nil); return err }},
			{"StopOperation", func() error { return s.StopOperation(c, op.ID, audit) }},
			{"KeepCounts", func() error { return s.KeepCounts(c) }},
			{"Recount", func() error { return second(s.Recount(c)) }},
			{"ForgetChanges", func() error { return second(s.ForgetChanges(c, time.Hour)) }},
			{"ForgetUploads", func() error { _, _, err := s.ForgetUploads(c); return err }},
			{"ServerVersions", func() error { return second(s.ServerVersions(c, []string{"ss"})) }},
			{"HoldDeleted", func() error { return second(s.HoldDeleted(c, "ss")) }},
			{"Owned", func() error { return second(s.Owned(c, r)) }},
			{"TakeBack", func() error {
				_, _, err := s.TakeBack(c, r, []store.Ownership{{ID: mails[1].ID, Claim: 9}})
				return err
			}},
			{"Recover", func() error { _, _, err := s.Recover(c, r, 5); return err }},
			{"AuditHead", func() error { return second(s.AuditHead(c)) }},
			{"AuditRows", func() error { return second(s.AuditRows(c, store.Everything, store.AuditFilter{}, 0, 5)) }},
			{"ServerExists", func() error { return second(s.ServerExists(c, "ss")) }},
			{"CheckFallback", func() error { return s.CheckFallback(c, &store.MailServer{Name: "other", Team: "sales"}) }},
			{"Reseal", func() error {
				return second(s.Reseal(c, "ss", store.Audit{Actor: "a", Action: "x"}, func(*store.MailServer) int { return 1 }))
			}},
			{"ReplaceGrant", func() error { return second(s.ReplaceGrant(c, "ss", []byte("was"), []byte("now"))) }},
			{"DeleteServer", func() error { _, _, err := s.DeleteServer(c, store.Everything, "ss", 0, true, audit); return err }},
			{"UndeleteServer", func() error { return second(s.UndeleteServer(c, store.Everything, "ss", audit)) }},
			{"Unregister", func() error { return s.Unregister(c, r) }},
			{"Record", func() error { return s.Record(c, audit, "sales", "ss", nil) }},
			{"Ping", func() error { return s.Ping(c) }},
			{"Now", func() error { return second(s.Now(c)) }},
			{"Remember", func() error { return second(s.Remember(c, filepath.Join(t.TempDir(), "state"))) }},
			{"Adopted", func() error { return s.Adopted(c) }},
		}
		called := map[string]bool{
			// ask nothing
			"Close": true, "Dialect": true, "Yield": true, "BulkItems": true, "RefusedResults": true, "DamagedMails": true, "DamagedPages": true, "WentBack": true, "PoolStats": true, "Pressed": true, "Waiting": true,
			// of tests
			"Exec": true, "Get": true, "Select": true, "JournalQuery": true, "Plan": true, "WriteTerms": true, "OneConnection": true, "Hold": true, "Locked": true, "Window": true, "WindowEnd": true, "AllTransaction": true, "Begin": true, "DamageWait": true, "InteractiveWork": true, "HoldAuditLock": true,
			"FindQueries": true, "LoggedChanges": true, "ForgetDamage": true, "ForgetDamageNotes": true, "RemoveBody": true, "Lost": true,
		}
		for _, x := range calls {
			called[x.name] = true
			if err := x.call(); err != nil {
				t.Errorf("%s: %v", x.name, err)
			}
		}
		for m := range reflect.TypeFor[*store.Store]().Methods() {
			if !called[m.Name] {
				t.Errorf("%s is not called: add it", m.Name)
			}
		}
	})
}

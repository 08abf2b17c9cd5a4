package api_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// stored reads a whole mail.
func (r *rig) stored(req *pb.DownloadMailRequest) (raw []byte, told int64, err error) {
	st, err := r.dispatch.DownloadMail(ctx(r.t), req)
	for err == nil {
		var m *pb.DownloadMailResponse
		if m, err = st.Recv(); err == nil {
			raw, told = append(raw, m.Chunk...), max(told, m.SizeBytes)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return raw, told, err
}

// TestContentRemoved: GetMail says what is left of a mail, and what is gone is refused with a
// reason of its own; the text of a mail without its files can be had.
func TestContentRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("now", pb.Mode_MODE_PHP)
	m := message("a@y.example")
	m.Attachments = []*pb.Attachment{{Filename: "f.bin", ContentType: "application/octet-stream", Content: bytes.Repeat([]byte{1, 2, 3}, 30<<10)}}
	res, err := r.dispatch.SendMail(ctx(t), &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_BULK}, Message: m})
	if err != nil || res.Mail.GetStoredContent() != pb.StoredContent_STORED_CONTENT_COMPLETE {
		t.Fatalf("%v %v", res, err)
	}
	id := res.Mail.Id
	whole, _, err := r.stored(&pb.DownloadMailRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	remove := func(part store.Part) {
		t.Helper()
		// mail of the hour to come too, so of all that is there
		p, err := r.store.Purge(ctx(t), "test", store.KeepRule{Kind: store.KindBulk, Part: part, Age: -time.Hour}, 10)
		if err != nil || p.Mails != 1 {
			t.Fatalf("%+v %v", p, err)
		}
	}
	left := func(want pb.StoredContent) {
		t.Helper()
		got, err := r.dispatch.GetMail(ctx(t), &pb.GetMailRequest{Id: id})
		if err != nil || got.Mail.StoredContent != want || got.Mail.SizeBytes != int64(len(whole)) {
			t.Errorf("%v %v, want %v", got, err, want)
		}
		_, _, err = r.stored(&pb.DownloadMailRequest{Id: id})
		refused(t, "removed", err, codes.FailedPrecondition, pb.ReasonContentRemoved)
		_, err = r.dispatch.ResendMail(ctx(t), &pb.ResendMailRequest{Id: id, Reason: "again"})
		refused(t, "removed", err, codes.FailedPrecondition, pb.ReasonContentRemoved)
	}
	remove(store.PartAttachments)
	left(pb.StoredContent_STORED_CONTENT_WITHOUT_ATTACHMENTS)
	rest, told, err := r.stored(&pb.DownloadMailRequest{Id: id, WithoutAttachments: true})
	if err != nil || told != int64(len(rest)) || len(rest) > 4096 || !bytes.Contains(rest, []byte("hello")) || !bytes.Contains(rest, []byte("f.bin")) {
		t.Errorf("%d bytes, %d told: %v", len(rest), told, err)
	}
	remove(store.PartBody)
	left(pb.StoredContent_STORED_CONTENT_NONE)
	_, _, err = r.stored(&pb.DownloadMailRequest{Id: id, WithoutAttachments: true})
	refused(t, "removed", err, codes.FailedPrecondition, pb.ReasonContentRemoved)
	remove(store.PartMetadata)
	_, err = r.dispatch.GetMail(ctx(t), &pb.GetMailRequest{Id: id})
	refused(t, "removed", err, codes.NotFound, pb.ReasonMailNotFound)
}

// TestLegalHolds: a hold names one of three things, is listed and lifted, and is a team's own.
func TestLegalHolds(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	one, _ := r.token("t1", store.RoleAdmin)
	two, _ := r.token("t2", store.RoleAdmin)
	c := pb.NewRetentionClient(r.conn)
	for what, req := range map[string]*pb.PlaceLegalHoldRequest{
		"nothing":       {Reason: "r"},
		"two things":    {Reference: "R", AllMail: true, Reason: "r"},
		"no reason":     {AllMail: true},
		"not an id":     {MailId: "x", Reason: "r"},
		"a long reason": {AllMail: true, Reason: string(slices.Repeat([]byte("r"), 501))},
	} {
		if _, err := c.PlaceLegalHold(with(ctx(t), one), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	placed, err := c.PlaceLegalHold(with(ctx(t), one), &pb.PlaceLegalHoldRequest{Reference: "R-1", Reason: "case 4"})
	if err != nil || placed.LegalHold.Team != "t1" || placed.LegalHold.AllMail || placed.LegalHold.PlacedBy == "" {
		t.Fatalf("%v %v", placed, err)
	}
	if _, err := c.PlaceLegalHold(with(ctx(t), one), &pb.PlaceLegalHoldRequest{AllMail: true, Reason: "case 5"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for token := ""; ; {
		page, err := c.ListLegalHolds(with(ctx(t), one), &pb.ListLegalHoldsRequest{PageSize: 1, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range page.LegalHolds {
			got = append(got, h.Reason)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if !slices.Equal(got, []string{"case 4", "case 5"}) {
		t.Errorf("listed %q", got)
	}
	if page, err := c.ListLegalHolds(with(ctx(t), two), &pb.ListLegalHoldsRequest{}); err != nil || len(page.LegalHolds) > 0 {
		t.Errorf("another team sees %v %v", page, err)
	}
	_, err = c.LiftLegalHold(with(ctx(t), two), &pb.LiftLegalHoldRequest{Id: placed.LegalHold.Id, Reason: "r"})
	refused(t, "removed", err, codes.NotFound, pb.ReasonLegalHoldNotFound)
	lifted, err := c.LiftLegalHold(with(ctx(t), one), &pb.LiftLegalHoldRequest{Id: placed.LegalHold.Id, Reason: "over"})
	if err != nil || lifted.LegalHold.LiftReason != "over" || lifted.LegalHold.LiftTime == nil {
		t.Errorf("%v %v", lifted, err)
	}
}

// TestEraseRecipient: counted first, then erased; the answer to a second call proves that mail
// was sent. The pseudonym is the same for the address in any case.
func TestEraseRecipient(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("now", pb.Mode_MODE_PHP)
	c := pb.NewRetentionClient(r.conn)
	if _, err := r.dispatch.SendMail(ctx(t), &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message("Anna@y.example")}); err != nil {
		t.Fatal(err)
	}
	for what, req := range map[string]*pb.EraseRecipientRequest{"no address": {Reason: "r"}, "a name": {Address: "Anna <anna@y.example>", Reason: "r"}, "no reason": {Address: "anna@y.example"}} {
		_, err := c.EraseRecipient(ctx(t), req)
		refused(t, what, err, codes.InvalidArgument, pb.ReasonValidationFailed)
	}
	var pseudonym string
	for i, req := range []*pb.EraseRecipientRequest{{Address: "anna@Y.example", ValidateOnly: true, Reason: "r"}, {Address: "Anna@y.example", Reason: "anna@y.example wrote"}, {Address: "anna@y.example", Reason: "r"}} {
		res, err := c.EraseRecipient(ctx(t), req)
		if err != nil {
			t.Fatal(err)
		}
		if pseudonym == "" {
			pseudonym = res.Pseudonym
		}
		if want := map[bool]int64{true: 1}[i < 2]; res.Mails != want || (res.FirstTime != nil) != (i < 2) || res.Pseudonym != pseudonym || (res.ErasedTime != nil) != (i == 2) || i == 2 && res.ErasedMails != 1 {
			t.Errorf("call %d: %v", i, res)
		}
	}
	rows, err := r.store.AuditRows(ctx(t), store.Everything, store.AuditFilter{Action: "EraseRecipient"}, 0, 10)
	if err != nil || len(rows) < 2 || rows[len(rows)-1].Reason != pseudonym+" wrote" {
		t.Errorf("%+v %v", rows, err)
	}
	r.server("waits", pb.Mode_MODE_DAEMON)
	id := r.queue("waits", 1)[0]
	_, err = c.EraseRecipient(ctx(t), &pb.EraseRecipientRequest{Address: "a@y.example", Reason: "r"})
	refused(t, "mail waits", err, codes.FailedPrecondition, pb.ReasonMailsPending)
	if !strings.Contains(status.Convert(err).Message(), "1 mails of the due-out journal") {
		t.Errorf("%v, of mail %s", err, id)
	}
}

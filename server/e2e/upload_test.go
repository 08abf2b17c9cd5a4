package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// noise is a file that nothing compresses, the same for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

type header = pb.UploadAttachmentRequest_Header

// upload makes one call of UploadAttachment as the caller wrote it: nothing is filled in.
func (s *service) upload(ctx context.Context, parts ...*pb.UploadAttachmentRequest) (*pb.UploadAttachmentResponse, error) {
	stream, err := s.dispatch.UploadAttachment(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		if stream.Send(p) != nil {
			break // what is wrong says CloseAndRecv
		}
	}
	return stream.CloseAndRecv()
}

func first(h *header) *pb.UploadAttachmentRequest {
	return &pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: h}}
}

func chunk(b []byte) *pb.UploadAttachmentRequest {
	return &pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: b}}
}

func (s *service) mustUpload(h *header, content []byte) *pb.UploadAttachmentResponse {
	s.t.Helper()
	parts := []*pb.UploadAttachmentRequest{first(h)}
	for c := range slices.Chunk(content, 100_000) {
		parts = append(parts, chunk(c))
	}
	r, err := s.upload(timeout(s.t), parts...)
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	if r.UploadId == "" || r.Sha256 != hex.EncodeToString(sum[:]) || r.SizeBytes != int64(len(content)) || r.ExpireTime == nil {
		s.t.Fatalf("%v", r)
	}
	return r
}

func with(upload string, to ...string) *pb.MailMessage {
	return &pb.MailMessage{To: to, Subject: "s", Text: "t", Attachments: []*pb.Attachment{{UploadId: upload}}}
}

// TestUpload: a file that is uploaded once is carried by many mails, and stored once whoever
// uploads it.
func TestUpload(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		file := noise(1, 300_000)
		up := s.mustUpload(&header{Filename: "价目表.pdf", ContentType: "application/pdf"}, file)
		if left := time.Until(up.ExpireTime.AsTime()); left < 6*24*time.Hour || left > 8*24*time.Hour {
			t.Errorf("it can be used for %v", left)
		}
		one := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: with(up.UploadId, "a@y.example")})
		if one.mail.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Fatalf("%v", one.mail)
		}
		renamed := with(up.UploadId, "b@y.example")
		renamed.Html = `<img src="cid:logo">`
		renamed.Attachments = append(renamed.Attachments, &pb.Attachment{UploadId: up.UploadId, Filename: "other.bin", ContentType: "application/x-other"}, &pb.Attachment{Filename: "own.txt", Content: []byte("own")})
		s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: renamed})
		var items []*pb.BatchItem
		for i := range 50 {
			items = append(items, itemTo(fmt.Sprintf("u%d@y.example", i)))
		}
		shared := with(up.UploadId)
		r := s.mustSendAll(&pb.BatchOptions{Options: &pb.SendOptions{MailServer: "bulk"}, Message: shared}, items...)
		if b := s.batch(); r.Accepted != 50 || b.Sent != 50 {
			t.Errorf("%v, %v", r, b)
		}
		got := letters(t, relay)
		if len(got) != 52 {
			t.Fatalf("%d mails", len(got))
		}
		for to, l := range got {
			want := map[string]string{"价目表.pdf": string(file)}
			if to == "b@y.example" {
				want["other.bin"], want["own.txt"] = string(file), "own"
			}
			if !maps.Equal(l.files, want) {
				t.Errorf("%s got the files %v", to, slices.Collect(maps.Keys(l.files)))
			}
		}
		again := s.mustUpload(&header{Team: "sales", Filename: "x"}, file)
		if again.UploadId == up.UploadId || again.Sha256 != up.Sha256 {
			t.Errorf("%v after %v", again, up)
		}
		if n := s.count("select count(*) from content where size > 300000"); n != 1 {
			t.Errorf("it is stored %d times", n)
		}
		if m := s.mail(one.id); m.SizeBytes < 400_000 {
			t.Errorf("%v", m)
		}
	})
}

// TestUploadOwner: an upload is its team's alone, until it expires; another id is as if it were
// not there.
func TestUploadOwner(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		sales, system := s.mustUpload(&header{Team: "sales", Filename: "a"}, []byte("sales")), s.mustUpload(&header{Filename: "a"}, []byte("system"))
		send := func(team, upload string) error {
			_, err := s.send(timeout(t), &pb.SendRequest{Options: &pb.SendOptions{Team: team, MailServer: "bulk"}, Message: with(upload, "a@y.example")})
			return err
		}
		for _, c := range []struct {
			team, upload string
			there        bool
		}{{"sales", sales.UploadId, true}, {"", system.UploadId, true}, {"", sales.UploadId, false}, {"other", sales.UploadId, false}, {"sales", system.UploadId, false},
			{"sales", uuidOfNobody, false}} {
			err := send(c.team, c.upload)
			if c.there && err != nil || !c.there && (status.Code(err) != codes.NotFound || client.ReasonOf(err) != pb.ReasonUploadNotFound) {
				t.Errorf("team %q, upload %q: %v", c.team, c.upload, err)
			}
			o := &pb.BatchOptions{Options: &pb.SendOptions{Team: c.team, MailServer: "bulk"}}
			r := s.mustSendAll(o, &pb.BatchItem{Message: with(c.upload, "a@y.example")}, itemTo("b@y.example"))
			if c.there && r.Rejected != 0 || !c.there && (r.Rejected != 1 || r.Accepted != 1 || r.Rejections[0].Reason != pb.ReasonUploadNotFound || r.Rejections[0].Position != 0) {
				t.Errorf("team %q, upload %q: %v", c.team, c.upload, r)
			}
			o.Message = with(c.upload)
			if _, err := s.sendAll(timeout(t), o, itemTo("b@y.example")); c.there && err != nil || !c.there && client.ReasonOf(err) != pb.ReasonUploadNotFound {
				t.Errorf("team %q, shared upload %q: %v", c.team, c.upload, err)
			}
		}
		// Every use makes it live longer, until nobody has used it for a week.
		s.expire(sales.UploadId, time.Hour)
		if err := send("sales", sales.UploadId); err != nil {
			t.Error(err)
		}
		if n := s.count("select count(*) from upload where id = $1 and expire_time > $2", sales.UploadId, s.instant(6*24*time.Hour)); n != 1 {
			t.Error("a use has not moved its expiry")
		}
		s.expire(sales.UploadId, -time.Minute)
		if err := send("sales", sales.UploadId); client.ReasonOf(err) != pb.ReasonUploadNotFound {
			t.Errorf("expired: %v", err)
		}
		s.batch()
		for _, m := range relay.Mails() { // those that used it before keep it
			if f := read(t, m.Data).files["a"]; f != "sales" && f != "system" && len(read(t, m.Data).files) > 0 {
				t.Errorf("%s", m.Data)
			}
		}
	})
}

// TestUploadRequestID: the same request_id with the same file is the same upload.
func TestUploadRequestID(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := &header{Team: "sales", Filename: "a.pdf", RequestId: "r"}
		one := s.mustUpload(h, []byte("content"))
		if again := s.mustUpload(h, []byte("content")); again.UploadId != one.UploadId {
			t.Errorf("%v after %v", again, one)
		}
		if theirs := s.mustUpload(&header{Team: "other", Filename: "a.pdf", RequestId: "r"}, []byte("another")); theirs.UploadId == one.UploadId {
			t.Errorf("%v after %v", theirs, one)
		}
		if _, err := s.upload(timeout(t), first(h), chunk([]byte("another"))); status.Code(err) != codes.AlreadyExists || client.ReasonOf(err) != pb.ReasonRequestIDReused {
			t.Errorf("%v", err)
		}
		a, b := s.mustUpload(&header{}, []byte("content")), s.mustUpload(&header{}, []byte("content"))
		if a.UploadId == b.UploadId {
			t.Error("without request_id they are two")
		}
	})
}

// TestUploadLimits: empty files, 18 MiB, and what is more; nothing of a broken or refused
// upload is left.
func TestUploadLimits(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{Extensions: []string{"PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "SIZE 30000000"}}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxMailBytes: 25 << 20} })
		send := func(upload string) *result {
			t.Helper()
			return s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: with(upload, "a@y.example")})
		}
		empty := s.mustUpload(&header{Filename: "empty.txt"}, nil)
		if m := send(empty.UploadId).mail; m.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Errorf("%v", m)
		}
		if f := read(t, relay.Mails()[0].Data).files; !maps.Equal(f, map[string]string{"empty.txt": ""}) {
			t.Errorf("%v", f)
		}
		biggest := noise(2, 18<<20)
		big := s.mustUpload(&header{Filename: "big.bin"}, biggest)
		if m := send(big.UploadId).mail; m.Status != pb.MailStatus_MAIL_STATUS_SENT {
			t.Errorf("%v", m)
		}
		if f := read(t, relay.Mails()[1].Data).files; f["big.bin"] != string(biggest) {
			t.Errorf("%d bytes arrived", len(f["big.bin"]))
		}
		before := s.count("select count(*) from upload")
		tooMuch := []*pb.UploadAttachmentRequest{first(&header{Filename: "more.bin"})}
		for c := range slices.Chunk(append(biggest, 0), 1<<20) {
			tooMuch = append(tooMuch, chunk(c))
		}
		if _, err := s.upload(timeout(t), tooMuch...); status.Code(err) != codes.ResourceExhausted || client.ReasonOf(err) != pb.ReasonMailTooLarge {
			t.Errorf("%v", err)
		}
		for name, parts := range map[string][]*pb.UploadAttachmentRequest{
			"nothing": nil, "no header": {chunk([]byte("x"))}, "empty": {{}, first(&header{})}, "header twice": {first(&header{}), first(&header{})},
		} {
			if _, err := s.upload(timeout(t), parts...); status.Code(err) != codes.InvalidArgument || client.ReasonOf(err) != pb.ReasonValidationFailed || len(client.Violations(err)) == 0 {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err := s.upload(timeout(t), first(&header{Team: "A B", Filename: "../a", ContentType: "text", RequestId: strings.Repeat("x", 65)}))
		refused(t, err, "header.team", "header.filename", "header.content_type", "header.request_id")
		ctx, cancel := context.WithCancel(timeout(t))
		stream, err := s.dispatch.UploadAttachment(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []*pb.UploadAttachmentRequest{first(&header{RequestId: "broken"}), chunk([]byte("the first half"))} {
			if err := stream.Send(p); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if n := s.count("select count(*) from upload"); n != before {
			t.Errorf("%d uploads are left of those that were refused", n-before)
		}
		if up := s.mustUpload(&header{RequestId: "broken"}, []byte("both halves")); up.SizeBytes != 11 {
			t.Errorf("%v", up)
		}
	})
}

// TestUploadInMail: how a mail may use an upload, and how not.
func TestUploadInMail(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	relay := (&smtpxtest.Server{}).Start(t)
	s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.IsDefault = new(true) })
	named, unnamed := s.mustUpload(&header{Filename: "logo.png"}, noise(3, 1000)).UploadId, s.mustUpload(&header{}, noise(4, 1000)).UploadId
	try := func(html string, as ...*pb.Attachment) error {
		_, err := s.send(timeout(t), &pb.SendRequest{Message: &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Html: html, Attachments: as}})
		return err
	}
	if err := try(`<img src="cid:logo">`, &pb.Attachment{UploadId: unnamed, ContentId: "logo", ContentType: "image/png"}); err != nil {
		t.Error(err)
	}
	raw := relay.Mails()[0].Data
	if !bytes.Contains(raw, []byte("Content-ID: <logo>")) || !bytes.Contains(raw, []byte("image/png")) {
		t.Errorf("%s", raw[:min(len(raw), 2000)])
	}
	refused(t, try("h", &pb.Attachment{UploadId: named, Content: []byte("x")}), "message.attachments[0].upload_id")
	refused(t, try("h", &pb.Attachment{UploadId: "x"}, &pb.Attachment{UploadId: named + "0", Filename: "a"}), "message.attachments[0].upload_id", "message.attachments[1].upload_id")
	refused(t, try("h", &pb.Attachment{UploadId: named}, &pb.Attachment{UploadId: unnamed}), "message.attachments[1].filename")
	if err := try("h", &pb.Attachment{UploadId: named}, &pb.Attachment{UploadId: unnamed, Filename: "a.bin"}); err != nil {
		t.Error(err)
	}
	// The mail is too large for the mail server by its upload alone.
	if _, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "now", Limits: &pb.Limits{MaxMailBytes: 100_000}}}); err != nil {
		t.Fatal(err)
	}
	large := s.mustUpload(&header{Filename: "large"}, noise(5, 100_000)).UploadId
	if err := try("h", &pb.Attachment{UploadId: large}); status.Code(err) != codes.ResourceExhausted || client.ReasonOf(err) != pb.ReasonMailTooLarge {
		t.Errorf("%v", err)
	}
	r := s.mustSendAll(&pb.BatchOptions{Message: &pb.MailMessage{Subject: "s"}}, itemTo("a@y.example"), &pb.BatchItem{Message: with(large, "b@y.example")})
	if r.Accepted != 1 || r.Rejected != 1 || r.Rejections[0].Reason != pb.ReasonMailTooLarge {
		t.Errorf("%v", r)
	}
	// The same mail with the file itself and with its upload is not the same request.
	one := &pb.SendRequest{RequestId: "r", Message: with(named, "a@y.example")}
	s.mustSend(one)
	if again := s.mustSend(proto.CloneOf(one)); !again.accepted.Duplicate {
		t.Errorf("%v", again.accepted)
	}
}

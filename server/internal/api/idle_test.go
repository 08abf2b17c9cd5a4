package api_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestHalfSaid: a strict batch whose caller has gone silent, and an upload that stands still or
// was never begun, end by themselves with a word about it, and what they held is free.
func TestHalfSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.api.StrictIdle, r.api.UploadPatience = 50*time.Millisecond, 50*time.Millisecond
	r.api.Quota = quota.New(quota.Config{Limits: quota.Limits{Uploads: 1, UploadBytes: 1 << 20, StrictBytes: 1 << 20}})
	r.server("later", pb.Mode_MODE_DAEMON)
	ended := func(what string, err error, word string) {
		t.Helper()
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(status.Convert(err).Message(), word) {
			t.Errorf("%s: got %v, want DEADLINE_EXCEEDED that says %q", what, err, word)
		}
	}
	batch, err := r.dispatch.SendBatch(ctx(t))
	if err := firstErr(err, batch.Send(&pb.SendBatchRequest{Options: &pb.BatchOptions{Strict: true, Options: &pb.SendOptions{MailServer: "later"}},
		Items: []*pb.BatchItem{{Message: message("a@y.example")}}})); err != nil {
		t.Fatal(err)
	}
	ended("a strict batch", batch.RecvMsg(new(pb.SendBatchResponse)), "without hearing of more")
	silent, err := r.dispatch.UploadAttachment(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	ended("an upload that was never begun", silent.RecvMsg(new(pb.UploadAttachmentResponse)), "bytes a second")
	stuck, err := r.dispatch.UploadAttachment(ctx(t))
	if err := firstErr(err, stuck.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{}}}),
		stuck.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: []byte("some")}})); err != nil {
		t.Fatal(err)
	}
	ended("an upload that stands still", stuck.RecvMsg(new(pb.UploadAttachmentResponse)), "bytes a second")
	for _, thing := range []quota.Thing{quota.StrictBytes, quota.Uploads, quota.UploadBytes} {
		until(t, "free: "+string(thing), func() bool { return r.api.Quota.Holds("", thing) == 0 })
	}
}

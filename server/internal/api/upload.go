package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/budget"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// mostUpload is what fits into the largest mail once it is base64.
const mostUpload = 18 << 20

const (
	// uploadRate is how many bytes a second an upload brings at least, over the time that the
	// service waits for them.
	uploadRate     = 16 << 10
	uploadPatience = 30 * time.Second // of Config.UploadPatience
	// leastPatience is what somebody who is too slow may have left: what is earned while it
	// passes is less each time.
	leastPatience = 10 * time.Millisecond
)

// pace is how long a caller may still take. What comes faster than the least rate earns time,
// up to the patience that there was at the beginning.
type pace struct{ left, most time.Duration }

func newPace(patience time.Duration) pace { return pace{patience, patience} }

// came notes n bytes after a wait.
func (p *pace) came(n int64, waited time.Duration) {
	earned := time.Duration(n) * time.Second / uploadRate
	p.left = min(p.most, p.left-waited+earned)
}

// paced gives the messages of an upload one by one. It ends one that is too slow: each holds a
// file and its place among the caller's uploads for as long as it lasts. came tells how many
// bytes have come so far: a large message takes its time to come and is no silence. Nil = only
// whole messages are counted.
func (a *API) paced(ctx context.Context, recv func() (*pb.UploadAttachmentRequest, error), came func() int64) func() (*pb.UploadAttachmentRequest, error) {
	var whole atomic.Int64
	if came == nil {
		came = whole.Load
	}
	in := make(chan received[*pb.UploadAttachmentRequest])
	go func() { // ends with the call
		for {
			m, err := recv()
			whole.Add(int64(len(m.GetChunk())))
			select {
			case in <- received[*pb.UploadAttachmentRequest]{msg: m, err: err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	p := newPace(a.UploadPatience)
	caller := access.From(ctx)
	var counted int64
	count := func(waited time.Duration) {
		n := came()
		p.came(n-counted, waited)
		counted = n
	}
	return func() (*pb.UploadAttachmentRequest, error) {
		for {
			began := time.Now()
			t := time.NewTimer(p.left)
			select {
			case r := <-in:
				t.Stop()
				count(time.Since(began))
				return r.msg, r.err
			case <-t.C:
				if count(time.Since(began)); p.left >= leastPatience {
					continue
				}
				return nil, apierr.New(codes.DeadlineExceeded, pb.ReasonDeadlineTooShort, "an upload brings at least %d bytes a second; this one is %v behind", uploadRate, p.most)
			case <-ctx.Done():
				t.Stop()
				return nil, ctx.Err()
			case <-a.Draining:
				t.Stop()
				return nil, a.fault(a.Stopping)
			case <-caller.Ended():
				t.Stop()
				return nil, caller.Err()
			}
		}
	}
}

// spool keeps an upload in a file of its own, encoded as it will stand in mails, and sums up
// both forms: what it is stored by is known only at its end.
type spool struct {
	file    *os.File
	encoder *message.AttachmentEncoder
	plain   hash.Hash
	encoded hash.Hash
	size    int64
	stored  int64
}

func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", "maildispatch-upload-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		// it lives as long as it is open, however this process ends
		_ = f.Close() // nothing is in it
		return nil, err
	}
	s := &spool{file: f, plain: sha256.New(), encoded: sha256.New()}
	s.encoder = message.NewAttachmentEncoder(writerFunc(func(b []byte) (int, error) {
		s.encoded.Write(b)
		s.stored += int64(len(b))
		return f.Write(b)
	}))
	return s, nil
}

func (s *spool) Write(b []byte) (int, error) {
	s.plain.Write(b)
	s.size += int64(len(b))
	return s.encoder.Write(b)
}

func (s *spool) close() { _ = s.file.Close() } // it was only read since

// UploadAttachment implements the service.
func (a *API) UploadAttachment(stream grpc.ClientStreamingServer[pb.UploadAttachmentRequest, pb.UploadAttachmentResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	next := a.paced(ctx, stream.Recv, budget.Came(ctx))
	first, err := next()
	if err != nil && !over(err) {
		return err
	}
	h := first.GetHeader()
	var c apierr.Check
	if h == nil {
		c.Bad("header", "is required, in the first request")
		return c.Err()
	}
	checkTeam(&c, "header.team", h.Team)
	checkRequestID(&c, "header.request_id", h.RequestId)
	if h.Filename != "" || h.ContentType != "" {
		probe := message.Message{Attachments: []message.Attachment{{Filename: h.Filename, ContentType: h.ContentType}}}
		if probe.Attachments[0].Filename == "" {
			probe.Attachments[0].Filename = "upload"
		}
		for _, v := range probe.Validate() {
			c.Bad("header."+v.Field[len("attachments[0]."):], "%s", v.Description)
		}
	}
	if err := c.Err(); err != nil {
		return err
	}
	if err := a.Quota.Disk(); err != nil {
		return err
	}
	open, err := a.Quota.Hold(access.From(ctx).Name, quota.Uploads, 1)
	if err != nil {
		return err
	}
	defer open.Give()
	held, err := a.Quota.Hold(access.From(ctx).Name, quota.UploadBytes, 0)
	if err != nil {
		return err
	}
	defer held.Give()
	sp, err := newSpool()
	if err != nil {
		return err
	}
	defer sp.close()
	for {
		r, err := next()
		if over(err) {
			break
		}
		if err != nil {
			return err
		}
		if r.GetHeader() != nil {
			c.Bad("header", "stands in the first request only")
			return c.Err()
		}
		if sp.size+int64(len(r.GetChunk())) > mostUpload {
			return apierr.New(codes.ResourceExhausted, pb.ReasonMailTooLarge, "the file has more than %d bytes", mostUpload)
		}
		if err := held.More(int64(len(r.GetChunk()))); err != nil {
			return err
		}
		if _, err := sp.Write(r.GetChunk()); err != nil {
			return err
		}
	}
	if err := sp.encoder.Close(); err != nil {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	u := &store.Upload{ID: id, Team: h.Team, Filename: h.Filename, ContentType: h.ContentType, SHA256: sp.plain.Sum(nil), SizeBytes: sp.size, RequestID: h.RequestId,
		Content: store.Content{Sum: [32]byte(sp.encoded.Sum(nil)), Size: int(sp.stored)}}
	got, _, err := a.Store.PutUpload(ctx, u, sp.file)
	if err != nil {
		return a.fault(err)
	}
	return stream.SendAndClose(&pb.UploadAttachmentResponse{UploadId: got.ID.String(), Sha256: hex.EncodeToString(got.SHA256), SizeBytes: got.SizeBytes, ExpireTime: stampOf(got.ExpireTime)})
}

package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func TestUpload(t *testing.T) {
	t.Parallel()
	file := bytes.Repeat([]byte("0123456789"), 40_000) // 4 chunks
	short := iotest.ErrReader(errors.New("the disk is gone"))
	for name, c := range map[string]struct {
		reader io.Reader
		want   []byte
		faults []clienttest.Fault
		code   codes.Code
	}{
		"whole":                    {bytes.NewReader(file), file, nil, codes.OK},
		"byte by byte":             {iotest.OneByteReader(bytes.NewReader(file)), file, nil, codes.OK},
		"exactly one chunk":        {bytes.NewReader(file[:128<<10]), file[:128<<10], nil, codes.OK},
		"empty":                    {strings.NewReader(""), nil, nil, codes.OK},
		"broken":                   {bytes.NewReader(file), file, []clienttest.Fault{{}, {}, {}}, codes.OK},
		"answer lost":              {bytes.NewReader(file), file, []clienttest.Fault{{Done: true}, {Done: true}}, codes.OK},
		"broken too often":         {bytes.NewReader(file), nil, slices.Repeat([]clienttest.Fault{{}}, 4), codes.Unavailable},
		"broken and not to rewind": {io.MultiReader(bytes.NewReader(file)), nil, []clienttest.Fault{{}}, codes.Unavailable},
		"unreadable":               {io.MultiReader(bytes.NewReader(file), short), nil, nil, codes.Unknown},
		"refused": {bytes.NewReader(file), nil, []clienttest.Fault{{Err: clienttest.Error(codes.ResourceExhausted, maildispatchv1.ReasonMailTooLarge, "no")}},
			codes.ResourceExhausted},
		"silent": {bytes.NewReader(file), nil, []clienttest.Fault{{Hang: true}}, codes.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault("UploadAttachment", c.faults...)
				header := &maildispatchv1.UploadAttachmentRequest_Header{Filename: "价目表.pdf"}
				res, err := srv.Client(t, client.Options{}).Upload(t.Context(), header, c.reader)
				if status.Code(err) != c.code {
					t.Fatalf("%v, %v", res, err)
				}
				if header.RequestId != "" {
					t.Error("the caller's header was changed")
				}
				ids := map[string]bool{}
				for _, r := range srv.Requests("UploadAttachment") {
					if h := r.Message.(*maildispatchv1.UploadAttachmentRequest).GetHeader(); h != nil {
						ids[h.RequestId] = true
					}
				}
				if len(ids) > 1 || ids[""] {
					t.Errorf("request_ids %v", ids)
				}
				if err == nil && (!bytes.Equal(srv.Uploaded(res.UploadId), c.want) || res.SizeBytes != int64(len(c.want)) || res.UploadId != "upload-1") {
					t.Errorf("%v", res)
				}
				if err != nil && res != nil {
					t.Errorf("%v beside %v", res, err)
				}
			})
		})
	}
}

// A reader in the middle of a file goes back to where it was, not to the beginning.
func TestUploadRewinds(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Fault("UploadAttachment", clienttest.Fault{Done: true})
	r := strings.NewReader("header\nbody")
	if _, err := io.CopyN(io.Discard, r, 7); err != nil {
		t.Fatal(err)
	}
	res, err := srv.Client(t, client.Options{}).Upload(t.Context(), nil, r)
	if err != nil || string(srv.Uploaded(res.UploadId)) != "body" {
		t.Errorf("%v, %v", res, err)
	}
}

// sluggish takes two minutes for every read.
type sluggish struct{ r io.Reader }

func (s sluggish) Read(b []byte) (int, error) {
	time.Sleep(2 * time.Minute) // in the bubble
	return s.r.Read(b)
}

func TestUploadSlowReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		if _, err := srv.Client(t, client.Options{}).Upload(t.Context(), nil, sluggish{strings.NewReader("abc")}); err != nil {
			t.Error(err)
		}
	})
}

// forger changes the answer of an upload.
type forger struct {
	grpc.ClientStream
}

func (f forger) RecvMsg(m any) error {
	err := f.ClientStream.RecvMsg(m)
	if r, is := m.(*maildispatchv1.UploadAttachmentResponse); is {
		r.Sha256 = strings.Repeat("0", 64)
	}
	return err
}

func TestUploadChecksWhatArrived(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{DialOptions: []grpc.DialOption{grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, cc, method, opts...)
			return forger{s}, err
		})}})
	if res, err := c.Upload(t.Context(), nil, strings.NewReader("abc")); status.Code(err) != codes.DataLoss || res != nil {
		t.Errorf("%v, %v", res, err)
	}
}

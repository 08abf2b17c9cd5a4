package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// chunkBytes is how much of a file travels in one message: more is not faster.
const chunkBytes = 128 << 10

// Upload takes a file over UploadAttachment, up to the end of r, and makes sure that what
// arrived is what was read. The answer's upload_id goes into the Attachment of any number of
// mails of the same team. A broken connection is mended by sending the file again from where it
// began, up to three times, if r is an io.Seeker that can; the header's request_id, filled in
// if it is empty, keeps that from being two uploads.
func (c *Client) Upload(ctx context.Context, header *maildispatchv1.UploadAttachmentRequest_Header, r io.Reader, opts ...grpc.CallOption) (*maildispatchv1.UploadAttachmentResponse, error) {
	if header == nil {
		header = &maildispatchv1.UploadAttachmentRequest_Header{}
	}
	header = withRequestID(header).(*maildispatchv1.UploadAttachmentRequest_Header)
	rewind := func() error { return errors.New("it cannot be read again") }
	if s, is := r.(io.Seeker); is {
		if start, err := s.Seek(0, io.SeekCurrent); err == nil {
			rewind = func() error { _, err := s.Seek(start, io.SeekStart); return err }
		}
	}
	for failed := 0; ; {
		res, err := c.upload(ctx, header, r, opts)
		failed++
		if err == nil || !repeatable(ctx, err) || failed == followTries {
			return res, err
		}
		if no := rewind(); no != nil {
			return nil, fmt.Errorf("%w; the file was not sent again: %w", err, no)
		}
		if !wait(ctx, failed, err) {
			return nil, fmt.Errorf("%w, while waiting to call again after: %w", status.FromContextError(ctx.Err()).Err(), err)
		}
	}
}

// upload makes one call of UploadAttachment.
func (c *Client) upload(ctx context.Context, header *maildispatchv1.UploadAttachmentRequest_Header, r io.Reader, opts []grpc.CallOption) (*maildispatchv1.UploadAttachmentResponse, error) {
	ctx, listen, heard, cancel := attentive(ctx, c.timeout)
	defer cancel()
	what := "upload " + header.GetFilename()
	stream, err := c.UploadAttachment(ctx, opts...)
	if err != nil {
		return nil, orSilent(ctx, what, c.timeout, err)
	}
	// An error of Send says only that there is one; the answer says which.
	err = stream.Send(&maildispatchv1.UploadAttachmentRequest{Part: &maildispatchv1.UploadAttachmentRequest_Header_{Header: header}})
	hash, size := sha256.New(), int64(0)
	for end := false; err == nil && !end; {
		// a new one for each: statistics handlers and interceptors may keep what is sent
		chunk := make([]byte, chunkBytes)
		heard() // a slow r is not silence
		n, failure := io.ReadFull(r, chunk)
		end = failure == io.EOF || failure == io.ErrUnexpectedEOF
		if failure != nil && !end {
			return nil, fmt.Errorf("%s: %w", what, failure)
		}
		listen()
		if n > 0 {
			hash.Write(chunk[:n])
			size += int64(n)
			err = stream.Send(&maildispatchv1.UploadAttachmentRequest{Part: &maildispatchv1.UploadAttachmentRequest_Chunk{Chunk: chunk[:n]}})
		}
	}
	res, err := stream.CloseAndRecv()
	switch sum := hex.EncodeToString(hash.Sum(nil)); {
	case err != nil:
		return nil, orSilent(ctx, what, c.timeout, err)
	case res.GetSha256() != sum || res.GetSizeBytes() != size:
		return nil, status.Errorf(codes.DataLoss, "%s: %d bytes with SHA-256 %s were sent, %d with %s arrived", what, size, sum, res.GetSizeBytes(), res.GetSha256())
	}
	return res, nil
}

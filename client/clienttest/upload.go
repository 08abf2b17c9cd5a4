package clienttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

const (
	maxUpload  = 18 << 20
	uploadLife = 7 * 24 * time.Hour
)

// upload is a file in memory; Server.mu guards it.
type upload struct {
	id      string
	header  *maildispatchv1.UploadAttachmentRequest_Header
	content []byte
	expires time.Time
}

// Uploaded is the content of a file that UploadAttachment took, nil if it took none under this
// id.
func (s *Server) Uploaded(uploadID string) []byte {
	s.mu.Lock()
	defer s.unlock()
	for _, u := range s.uploads {
		if u.id == uploadID {
			return bytes.Clone(u.content)
		}
	}
	return nil
}

func (d dispatch) UploadAttachment(stream grpc.ClientStreamingServer[maildispatchv1.UploadAttachmentRequest, maildispatchv1.UploadAttachmentResponse]) error {
	req, err := stream.Recv()
	if err != nil && err != io.EOF {
		return err
	}
	header := req.GetHeader()
	if header == nil {
		return invalid([]client.Violation{{Field: "header", Description: "comes first"}})
	}
	var content []byte
	for {
		req, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if req.GetHeader() != nil {
			return invalid([]client.Violation{{Field: "header", Description: "comes once"}})
		}
		if content = append(content, req.GetChunk()...); len(content) > maxUpload {
			return Error(codes.ResourceExhausted, maildispatchv1.ReasonMailTooLarge, "the file has more than 18 MiB")
		}
	}
	res, err := d.s.upload(header, content)
	if err != nil {
		return err
	}
	return stream.SendAndClose(res)
}

func (s *Server) upload(header *maildispatchv1.UploadAttachmentRequest_Header, content []byte) (*maildispatchv1.UploadAttachmentResponse, error) {
	s.mu.Lock()
	defer s.unlock()
	i := slices.IndexFunc(s.uploads, func(u *upload) bool {
		return header.RequestId != "" && u.header.RequestId == header.RequestId && u.header.Team == header.Team
	})
	if i < 0 {
		i = len(s.uploads)
		s.uploads = append(s.uploads, &upload{id: fmt.Sprintf("upload-%d", i+1), header: header, content: content, expires: time.Now().Add(uploadLife)})
	}
	u := s.uploads[i]
	if !bytes.Equal(u.content, content) || u.header.Filename != header.Filename || u.header.ContentType != header.ContentType {
		return nil, Error(codes.AlreadyExists, maildispatchv1.ReasonRequestIDReused, "request_id was used for another file")
	}
	sum := sha256.Sum256(content)
	return &maildispatchv1.UploadAttachmentResponse{UploadId: u.id, Sha256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content)), ExpireTime: stamp(u.expires)}, nil
}

// use finds the uploads that a mail carries and keeps them for longer; the lock is held.
func (s *Server) use(team string, m *maildispatchv1.MailMessage) error {
	now := time.Now()
	for _, a := range m.GetAttachments() {
		if a.GetUploadId() == "" {
			continue
		}
		i := slices.IndexFunc(s.uploads, func(u *upload) bool { return u.id == a.UploadId && u.header.Team == team && u.expires.After(now) })
		if i < 0 {
			return noUpload(a.UploadId)
		}
		s.uploads[i].expires = now.Add(uploadLife)
	}
	return nil
}

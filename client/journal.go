package client

import (
	"context"
	"fmt"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// DueOutMails yields the due-out journal page by page: what the filter takes, from page_token
// on, page_size at a time; a nil request is all of it. An error is yielded last. Mails that
// come or finish meanwhile may be met or not; none is met twice.
func (c *Client) DueOutMails(ctx context.Context, req *maildispatchv1.ListDueOutMailsRequest, opts ...grpc.CallOption) iter.Seq2[*maildispatchv1.Mail, error] {
	return pages(req, func(req *maildispatchv1.ListDueOutMailsRequest, token string) ([]*maildispatchv1.Mail, string, error) {
		req.PageToken = token
		res, err := c.ListDueOutMails(ctx, req, opts...)
		return res.GetMails(), res.GetNextPageToken(), err
	})
}

// ArchivedMails yields the archive journal in the same way.
func (c *Client) ArchivedMails(ctx context.Context, req *maildispatchv1.ListArchivedMailsRequest, opts ...grpc.CallOption) iter.Seq2[*maildispatchv1.Mail, error] {
	return pages(req, func(req *maildispatchv1.ListArchivedMailsRequest, token string) ([]*maildispatchv1.Mail, string, error) {
		req.PageToken = token
		res, err := c.ListArchivedMails(ctx, req, opts...)
		return res.GetMails(), res.GetNextPageToken(), err
	})
}

// Find yields what FindMails finds, in the same way: over both journals, the last taken first.
func (c *Client) Find(ctx context.Context, req *maildispatchv1.FindMailsRequest, opts ...grpc.CallOption) iter.Seq2[*maildispatchv1.Mail, error] {
	return pages(req, func(req *maildispatchv1.FindMailsRequest, token string) ([]*maildispatchv1.Mail, string, error) {
		req.PageToken = token
		res, err := c.FindMails(ctx, req, opts...)
		return res.GetMails(), res.GetNextPageToken(), err
	})
}

// MailServers yields the mail servers in the same way.
func (c *Client) MailServers(ctx context.Context, req *maildispatchv1.ListMailServersRequest, opts ...grpc.CallOption) iter.Seq2[*maildispatchv1.MailServer, error] {
	return pages(req, func(req *maildispatchv1.ListMailServersRequest, token string) ([]*maildispatchv1.MailServer, string, error) {
		req.PageToken = token
		res, err := c.ListMailServers(ctx, req, opts...)
		return res.GetMailServers(), res.GetNextPageToken(), err
	})
}

// lister is a request that pages.
type lister interface {
	proto.Message
	GetPageToken() string
}

// pages yields the items of all pages. The request is the caller's: fetch writes to a copy of
// its own for every range.
func pages[R lister, T any](req R, fetch func(req R, token string) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		req := shallow(req.ProtoReflect()).Interface().(R)
		for token := req.GetPageToken(); ; {
			items, next, err := fetch(req, token)
			if err != nil {
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			if next == token {
				yield(none, status.Error(codes.Internal, "the service gave the same page token twice"))
				return
			}
			token = next
		}
	}
}

// Download writes the raw message of a mail to w and says how many bytes that were. A nil error
// means all of them: a stream that ends early is io.ErrUnexpectedEOF. What was written before
// an error is not taken back. Without a deadline in the context it may take as long as it
// likes, but the service may not be silent for longer than Options.Timeout.
func (c *Client) Download(ctx context.Context, id string, w io.Writer, opts ...grpc.CallOption) (int64, error) {
	ctx, listen, heard, cancel := attentive(ctx, c.timeout)
	defer cancel()
	stream, err := c.DownloadMail(ctx, &maildispatchv1.DownloadMailRequest{Id: id}, opts...)
	var n int64
	for size := int64(-1); ; {
		var part *maildispatchv1.DownloadMailResponse
		if err == nil && ctx.Err() != nil {
			// grpc would go on giving what it has already received
			err = status.FromContextError(ctx.Err()).Err()
		}
		if err == nil {
			listen()
			part, err = stream.Recv()
			heard() // a slow w is not silence
		}
		switch {
		case err == io.EOF && n == size:
			return n, nil
		case err == io.EOF:
			return n, fmt.Errorf("download mail %s: %d of %d bytes: %w", id, n, max(size, 0), io.ErrUnexpectedEOF)
		case err != nil:
			return n, orSilent(ctx, "download mail "+id, c.timeout, err)
		}
		if size < 0 {
			size = part.GetSizeBytes()
		}
		wrote, err := w.Write(part.GetChunk())
		n += int64(wrote)
		if err != nil {
			return n, fmt.Errorf("download mail %s: %w", id, err)
		}
	}
}

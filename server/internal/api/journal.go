package api

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// mailID reads an id. A text that is no id belongs to no mail, but saying so helps more than
// "not found".
func mailID(c *apierr.Check, field, s string) uuid.UUID {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		c.Bad(field, "is not a mail id")
	}
	return id
}

func (a *API) mailFault(err error, id string) error {
	if errors.Is(err, store.ErrNotFound) {
		return apierr.NotFound(pb.ReasonMailNotFound, "mail", id)
	}
	if errors.Is(err, store.ErrContentRemoved) {
		return contentRemoved(id)
	}
	return a.fault(err)
}

// GetMail implements the service.
func (a *API) GetMail(ctx context.Context, r *pb.GetMailRequest) (*pb.GetMailResponse, error) {
	var c apierr.Check
	id := mailID(&c, "id", r.Id)
	if err := c.Err(); err != nil {
		return nil, err
	}
	m, err := a.Store.Mail(ctx, a.scope(ctx), id)
	if err != nil {
		return nil, a.mailFault(err, r.Id)
	}
	return &pb.GetMailResponse{Mail: viewerOf(ctx).mail(m)}, nil
}

const downloadChunk = 64 << 10

// DownloadMail implements the service.
func (a *API) DownloadMail(r *pb.DownloadMailRequest, stream grpc.ServerStreamingServer[pb.DownloadMailResponse]) error {
	var c apierr.Check
	id := mailID(&c, "id", r.Id)
	if err := c.Err(); err != nil {
		return err
	}
	ctx := stream.Context()
	m, err := a.Store.Mail(ctx, a.scope(ctx), id)
	if err != nil {
		return a.mailFault(err, r.Id)
	}
	// Shared content is hashed before the first piece leaves, which takes a processor for as
	// long as the content is large.
	checked, err := a.heavy(ctx)
	if err != nil {
		return err
	}
	checked = sync.OnceFunc(checked)
	defer checked()
	first, size := true, m.SizeBytes
	w := writerFunc(func(b []byte) (int, error) {
		checked()
		for n := 0; n < len(b); {
			msg := &pb.DownloadMailResponse{Chunk: b[n:min(n+downloadChunk, len(b))]}
			if first {
				msg.SizeBytes, msg.Filename = size, m.ID.String()+".eml"
				first = false
			}
			if err := stream.Send(msg); err != nil {
				return n, err
			}
			n += len(msg.Chunk)
		}
		return len(b), nil
	})
	read := a.Store.RawMail
	if r.WithoutAttachments {
		read = func(ctx context.Context, sc store.Scope, id uuid.UUID, w io.Writer) (int64, error) {
			return a.Store.RemainingRaw(ctx, sc, id, func(n int64) { size = n }, w)
		}
	}
	_, err = read(ctx, a.scope(ctx), id, w)
	return a.mailFault(err, r.Id)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

var _ io.Writer = writerFunc(nil)

// filter checks and converts a filter. empty reports that nothing is set.
func filter(c *apierr.Check, prefix string, f *pb.MailFilter) (out store.MailFilter, empty bool) {
	if f == nil {
		return out, true
	}
	if f.Team != nil {
		checkTeam(c, prefix+"team", *f.Team)
	}
	if f.MailServer != "" {
		checkServerName(c, prefix+"mail_server", f.MailServer)
	}
	out = store.MailFilter{Team: f.Team, MailServer: f.MailServer, Reference: f.Reference, MessageID: f.MessageId, Labels: f.Labels, RequestID: f.RequestId, BatchID: f.BatchId}
	for _, st := range f.Statuses {
		s := mailStatusOf[st]
		if s == "" {
			c.Bad(prefix+"statuses", "holds a number that is not a status")
			break
		}
		out.Statuses = append(out.Statuses, s)
	}
	if len(f.Statuses) > 16 {
		c.Bad(prefix+"statuses", "has more than 16 entries")
	}
	if f.Kind != pb.Kind_KIND_UNSPECIFIED {
		if out.Kind = kindOf[f.Kind]; out.Kind == "" {
			c.Bad(prefix+"kind", "is not a kind")
		}
	}
	line(c, prefix+"reference", f.Reference, maxReference)
	line(c, prefix+"message_id", f.MessageId, 998)
	line(c, prefix+"request_id", f.RequestId, 64)
	line(c, prefix+"batch_id", f.BatchId, 64)
	checkPairs(c, prefix+"labels", f.Labels)
	if f.Recipient != "" {
		to, err := message.ParseAddress(f.Recipient)
		if err != nil {
			c.Bad(prefix+"recipient", "%v", err)
		}
		out.Recipient = to.Key()
	}
	if f.Since != nil {
		if f.Since.CheckValid() != nil {
			c.Bad(prefix+"since", "is not a time")
		}
		out.Since = f.Since.AsTime()
	}
	if f.Until != nil {
		if f.Until.CheckValid() != nil {
			c.Bad(prefix+"until", "is not a time")
		}
		out.Until = f.Until.AsTime()
	}
	if !out.Since.IsZero() && !out.Until.IsZero() && !out.Since.Before(out.Until) {
		c.Bad(prefix+"until", "is not after since")
	}
	empty = f.Team == nil && f.MailServer == "" && len(f.Statuses) == 0 && f.Kind == 0 && f.Reference == "" && f.Recipient == "" && f.MessageId == "" &&
		len(f.Labels) == 0 && f.RequestId == "" && f.BatchId == "" && f.Since == nil && f.Until == nil
	return out, empty
}

// cursor is a position in a journal: time, then id.
func cursor(b []byte) store.Cursor {
	if len(b) != 24 {
		return store.Cursor{}
	}
	return store.Cursor{Time: time.UnixMicro(int64(binary.BigEndian.Uint64(b))).UTC(), ID: uuid.UUID(b[8:])}
}

func cursorBytes(t *time.Time, id uuid.UUID) []byte {
	var us int64
	if t != nil {
		us = t.UnixMicro()
	}
	return append(binary.BigEndian.AppendUint64(nil, uint64(us)), id[:]...)
}

// list is a page of one journal.
func (a *API) list(ctx context.Context, kind string, f *pb.MailFilter, size int32, token string,
	read func(context.Context, store.Scope, store.MailFilter, store.Cursor, int) ([]*store.Mail, error)) ([]*pb.Mail, string, error) {
	var c apierr.Check
	sf, _ := filter(&c, "filter.", f)
	n := pageSize(&c, size)
	if err := c.Err(); err != nil {
		return nil, "", err
	}
	if f == nil {
		f = &pb.MailFilter{}
	}
	pos, err := a.position(kind, f, token)
	if err != nil {
		return nil, "", err
	}
	p, at, full := &mailPage{}, cursor(pos), false
	for asked, got := 0, 0; got == asked && !full && len(p.mails) <= n; {
		asked = p.room(n + 1 - len(p.mails))
		ms, err := read(ctx, a.scope(ctx), sf, at, asked)
		if err != nil {
			return nil, "", a.fault(err)
		}
		if got = len(ms); got == 0 {
			break
		}
		if full = p.add(viewerOf(ctx), ms); !full {
			at = store.Cursor{ID: p.last().ID}
			if done := p.last().FinishTime; done != nil {
				at.Time = *done
			}
		}
	}
	if len(p.mails) > n {
		p.mails, p.from, full = p.mails[:n], p.from[:n], true
	}
	if !full {
		return p.mails, "", nil
	}
	return p.mails, a.pageToken(kind, f, cursorBytes(p.last().FinishTime, p.last().ID)), nil
}

// ListDueOutMails implements the service.
func (a *API) ListDueOutMails(ctx context.Context, r *pb.ListDueOutMailsRequest) (*pb.ListDueOutMailsResponse, error) {
	ms, next, err := a.list(ctx, "due", r.Filter, r.PageSize, r.PageToken, a.Store.ListDue)
	if err != nil {
		return nil, err
	}
	return &pb.ListDueOutMailsResponse{Mails: ms, NextPageToken: next}, nil
}

// ListArchivedMails implements the service.
func (a *API) ListArchivedMails(ctx context.Context, r *pb.ListArchivedMailsRequest) (*pb.ListArchivedMailsResponse, error) {
	ms, next, err := a.list(ctx, "archive", r.Filter, r.PageSize, r.PageToken, a.Store.ListArchive)
	if err != nil {
		return nil, err
	}
	return &pb.ListArchivedMailsResponse{Mails: ms, NextPageToken: next}, nil
}

// failureText is a reason and words for a mail that could not be changed.
func failureText(err error) (reason, text string) {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return pb.ReasonMailNotFound, "mail not found"
	case errors.Is(err, store.ErrSending):
		return pb.ReasonWrongState, "the mail is being sent, or a replica has it to send it next"
	case errors.Is(err, store.ErrFinished):
		return pb.ReasonWrongState, "the mail is finished"
	case errors.Is(err, store.ErrDamaged):
		return pb.ReasonDamaged, store.ErrDamaged.Error()
	}
	if e, is := apierr.As(err); is && (e.Reason == pb.ReasonTokenBound || e.Reason == pb.ReasonOwnRelease) {
		return e.Reason, e.Text
	} else if is {
		return pb.ReasonWrongState, e.Text
	}
	return pb.ReasonWrongState, strings.TrimSpace(err.Error())
}

package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Upload is a file that waits for mails to carry it.
type Upload struct {
	ID          uuid.UUID
	Team        string
	Filename    string
	ContentType string
	SHA256      []byte // of the file
	SizeBytes   int64
	Content     Content // as it stands in a mail; without Data
	RequestID   string  // "" = none
	ExpireTime  time.Time
}

const (
	// uploadLife is how long an upload can be used after it was made, and after each use.
	uploadLife = 7 * 24 * time.Hour
	// uploadTouch is how much of that has to have passed before a use is written down: many
	// mails use one upload.
	uploadTouch = time.Hour
	// contentRest is how long content that no mail and no upload refers to is left alone:
	// somebody may be about to refer to it.
	contentRest = 3 * 24 * time.Hour
)

type uploadRow struct {
	ID          uuid.UUID
	Team        string
	Filename    string
	ContentType string `db:"content_type"`
	SHA256      []byte
	SizeBytes   int64 `db:"size_bytes"`
	Hash        []byte
	ContentSize int    `db:"content_size"`
	ExpireTime  dbTime `db:"expire_time"`
}

func (r *uploadRow) upload() (*Upload, error) {
	if len(r.Hash) != 32 {
		return nil, fmt.Errorf("upload %s has a bad hash", r.ID)
	}
	return &Upload{ID: r.ID, Team: r.Team, Filename: r.Filename, ContentType: r.ContentType, SHA256: r.SHA256, SizeBytes: r.SizeBytes,
		Content: Content{Sum: [32]byte(r.Hash), Size: r.ContentSize}, ExpireTime: r.ExpireTime.Time}, nil
}

// PutUpload stores an upload whose content is read from r, of which it holds a chunk in memory
// at a time, and sets its ExpireTime. With a request_id that was used before it returns the
// first upload, renewed, and true, or ErrRequestIDReused when that was another file.
func (s *Store) PutUpload(ctx context.Context, u *Upload, r io.ReadSeeker) (*Upload, bool, error) {
	// Times of uploads are for people; a day more or less loses nothing.
	now := micro(s.now())
	put := *u
	put.ExpireTime = now.Add(uploadLife)
	var first *uploadRow
	err := s.workTx(ctx, func(tx *sqlx.Tx) error {
		first = nil
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if err := s.putStream(ctx, tx, &u.Content, r); err != nil {
			return err
		}
		res, err := s.q.in(ctx, tx, "upload_insert").ExecContext(ctx, u.ID, u.Team, u.Filename, u.ContentType, u.SHA256, u.SizeBytes, u.Content.Sum[:], u.Content.Size,
			nullString(u.RequestID), s.t(&now), s.t(&put.ExpireTime))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return err
		}
		first, err = s.renewUpload(ctx, tx, u, put.ExpireTime)
		return err
	})
	switch {
	case err != nil:
		return nil, false, err
	case first == nil:
		return &put, false, nil
	case !first.sameFile(u):
		return nil, false, ErrRequestIDReused
	}
	had, err := first.upload()
	return had, true, err
}

func (r *uploadRow) sameFile(u *Upload) bool {
	return bytes.Equal(r.SHA256, u.SHA256) && r.Filename == u.Filename && r.ContentType == u.ContentType
}

// renewUpload reads the upload that has u's request_id. Where it is the same file it lives
// until the given time, also if it had expired: its id has to be good for who gets it now.
func (s *Store) renewUpload(ctx context.Context, tx *sqlx.Tx, u *Upload, until time.Time) (*uploadRow, error) {
	var r uploadRow
	err := s.q.in(ctx, tx, "upload_by_request").GetContext(ctx, &r, u.Team, u.RequestID)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errOvertaken // forgotten meanwhile
	}
	if err != nil || !r.sameFile(u) || until.Sub(r.ExpireTime.Time) <= uploadTouch {
		return &r, err
	}
	res, err := s.q.in(ctx, tx, "upload_use").ExecContext(ctx, s.t(&until), idList([]uuid.UUID{r.ID}))
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		if err == nil {
			err = errOvertaken // forgotten meanwhile, or renewed
		}
		return nil, err
	}
	r.ExpireTime.Time = until
	return &r, nil
}

// putStream is putContentTx with the bytes out of a reader.
func (s *Store) putStream(ctx context.Context, tx *sqlx.Tx, c *Content, r io.Reader) error {
	err := s.putContentTx(ctx, tx, c.Sum, c.Size, nil, false)
	if !errors.Is(err, ErrContentGone) {
		return err
	}
	now, err := s.dialect.clock(ctx, tx)
	if err != nil {
		return err
	}
	res, err := s.q.in(ctx, tx, "content_insert").ExecContext(ctx, c.Sum[:], c.Size, s.dialect.date(now), false)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err // somebody else has just stored the same
	}
	buf := make([]byte, chunkBytes)
	for n := 0; ; n++ {
		k, err := io.ReadFull(r, buf)
		if k > 0 {
			if _, err := s.q.in(ctx, tx, "chunk_insert").ExecContext(ctx, c.Sum[:], n, buf[:k]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the upload: %w", err)
		}
	}
}

// Uploads finds those of the uploads of a team that have not expired, with one statement, and
// moves their expiry on.
func (s *Store) Uploads(ctx context.Context, team string, ids []uuid.UUID) (map[uuid.UUID]*Upload, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	// Again where somebody renewed one meanwhile, or it ended.
	for ctx.Err() == nil {
		now := micro(s.now())
		var rows []uploadRow
		if err := s.q.get("upload_get").SelectContext(ctx, &rows, idList(ids), team, s.t(&now)); err != nil {
			return nil, s.fault(err)
		}
		found := make(map[uuid.UUID]*Upload, len(rows))
		var old []uuid.UUID
		until := now.Add(uploadLife)
		for i := range rows {
			u, err := rows[i].upload()
			if err != nil {
				return nil, err
			}
			found[u.ID] = u
			if until.Sub(u.ExpireTime) > uploadTouch {
				old = append(old, u.ID)
			}
		}
		if len(old) == 0 {
			return found, nil
		}
		res, err := s.q.get("upload_use").ExecContext(ctx, s.t(&until), idList(old))
		if err != nil {
			return nil, s.fault(err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return nil, s.fault(err)
		}
		if int(n) == len(old) {
			for _, id := range old {
				found[id].ExpireTime = until
			}
			return found, nil
		}
	}
	return nil, ctx.Err()
}

// Upload finds one upload as Uploads does. ErrNotFound.
func (s *Store) Upload(ctx context.Context, team string, id uuid.UUID) (*Upload, error) {
	found, err := s.Uploads(ctx, team, []uuid.UUID{id})
	if err != nil {
		return nil, err
	}
	if u := found[id]; u != nil {
		return u, nil
	}
	return nil, ErrNotFound
}

func idList(ids []uuid.UUID) string {
	b, _ := json.Marshal(ids) // ids always can be
	return string(b)
}

// ForgetUploads ends uploads whose time has passed, and removes content that no upload needs
// and no mail has ever referred to. Content that a mail refers to, or did, stays.
func (s *Store) ForgetUploads(ctx context.Context) (uploads, contents int, err error) {
	now := micro(s.now())
	before := s.dialect.date(now.Add(-contentRest))
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		res, err := s.q.in(ctx, tx, "upload_forget").ExecContext(ctx, s.t(&now))
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return err
		}
		uploads = int(n)
		var sums [][]byte
		if err := s.q.in(ctx, tx, "content_collect").SelectContext(ctx, &sums, before); err != nil {
			return err
		}
		for _, sum := range sums {
			if _, err := s.q.in(ctx, tx, "chunk_delete").ExecContext(ctx, sum); err != nil {
				return err
			}
		}
		contents = len(sums)
		return nil
	})
	return uploads, contents, err
}

// CopyMail is a mail's content and options for a new mail, with the id, times, Message-ID and
// request_id still to be set. ErrNotFound, also outside the scope; ErrContentRemoved.
func (s *Store) CopyMail(ctx context.Context, sc Scope, id uuid.UUID) (*NewMail, error) {
	var r struct {
		ID         uuid.UUID
		Team       string
		MailServer string `db:"mail_server"`
		Mode       Mode
		Kind       Kind
		Priority   int16
		Reference  string
		Sender     string
		Subject    string
		MessageID  string `db:"message_id"`
		SizeBytes  int64  `db:"size_bytes"`
		UTF8       bool
		Route      string
		Recipients []byte
		Labels     []byte
		Raw        []byte
		Layout     []byte
		Removed    sql.NullString
	}
	all, teams := sc.args()
	if err := s.q.get("mail_copy").GetContext(ctx, &r, id, all, teams, sc.Caller); err != nil {
		return nil, s.notFound(err)
	}
	if r.Removed.Valid {
		return nil, ErrContentRemoved
	}
	m := &NewMail{Team: r.Team, MailServer: r.MailServer, Mode: r.Mode, Kind: r.Kind, Priority: r.Priority, Reference: r.Reference, From: r.Sender,
		Subject: r.Subject, MessageID: r.MessageID, SizeBytes: r.SizeBytes, UTF8: r.UTF8, Route: r.Route, ResentFrom: r.ID}
	err := json.Unmarshal(r.Recipients, &m.Recipients)
	if err == nil && len(r.Labels) > 0 {
		err = json.Unmarshal(r.Labels, &m.Labels)
	}
	if err == nil {
		m.Raw, err = unpack(r.Raw, r.Layout)
	}
	if err != nil {
		return nil, fmt.Errorf("mail %s: %w", id, err)
	}
	return m, nil
}

package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// Keeping is what the service Retention needs of the store.
type Keeping interface {
	PlaceHold(ctx context.Context, h *store.LegalHold, a store.Audit) error
	LiftHold(ctx context.Context, sc store.Scope, id uuid.UUID, a store.Audit) (*store.LegalHold, error)
	LegalHolds(ctx context.Context, sc store.Scope, team *string, lifted bool, after uuid.UUID, n int) ([]*store.LegalHold, error)
	RetentionProgress(ctx context.Context) ([]store.RuleProgress, error)
	EraseRecipient(ctx context.Context, e *store.Erasure) (*store.Erased, error)
	Overdue(ctx context.Context, r store.KeepRule) (time.Duration, error)
}

var (
	partName   = map[store.Part]pb.MailPart{store.PartMetadata: pb.MailPart_MAIL_PART_METADATA, store.PartBody: pb.MailPart_MAIL_PART_BODY, store.PartAttachments: pb.MailPart_MAIL_PART_ATTACHMENTS}
	storedName = map[store.Removed]pb.StoredContent{store.RemovedNothing: pb.StoredContent_STORED_CONTENT_COMPLETE, store.RemovedAttachments: pb.StoredContent_STORED_CONTENT_WITHOUT_ATTACHMENTS,
		store.RemovedBody: pb.StoredContent_STORED_CONTENT_NONE, store.RemovedErased: pb.StoredContent_STORED_CONTENT_ERASED}
)

func contentRemoved(id string) error {
	return apierr.Precondition(pb.ReasonContentRemoved, id, "content of the mail was removed; GetMail says in stored_content what is left")
}

// ownTeam is the team of a request that may leave it out: a caller of one team means that.
func (a *API) ownTeam(ctx context.Context, c *apierr.Check, team *string) string {
	sc := a.scope(ctx)
	switch {
	case team != nil:
		checkTeam(c, "team", *team)
		if !sc.All && !slices.Contains(sc.Teams, *team) {
			c.Bad("team", "is none of the caller's teams")
		}
		return *team
	case sc.All:
		return ""
	case len(sc.Teams) != 1:
		c.Bad("team", "is required: the caller has several teams")
		return ""
	}
	return sc.Teams[0]
}

// PlaceLegalHold implements the service.
func (a *API) PlaceLegalHold(ctx context.Context, r *pb.PlaceLegalHoldRequest) (*pb.PlaceLegalHoldResponse, error) {
	var c apierr.Check
	h := &store.LegalHold{}
	given := 0
	if r.MailId != "" {
		given++
		h.MailID = mailID(&c, "mail_id", r.MailId)
	}
	if r.Reference != "" {
		given++
		line(&c, "reference", r.Reference, maxReference)
		h.Reference = &r.Reference
	}
	if r.AllMail {
		given++
	}
	if given != 1 {
		c.Bad("mail_id", "give exactly one of mail_id, reference and all_mail")
	}
	why(&c, r.Reason)
	if r.MailId == "" {
		h.Team = a.ownTeam(ctx, &c, r.Team)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	if r.MailId != "" {
		m, err := a.Store.Mail(ctx, a.scope(ctx), h.MailID)
		if err == nil && r.Team != nil && *r.Team != m.Team {
			err = store.ErrNotFound
		}
		if err != nil {
			return nil, a.mailFault(err, r.MailId)
		}
		h.Team = m.Team
	}
	var err error
	if h.ID, err = uuid.NewV7(); err != nil {
		return nil, err
	}
	if err := a.Keeping.PlaceHold(ctx, h, a.audit(ctx, "PlaceLegalHold", r.Reason)); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return nil, a.mailFault(err, r.MailId)
		}
		return nil, a.fault(err)
	}
	return &pb.PlaceLegalHoldResponse{LegalHold: legalHold(h)}, nil
}

// why checks a reason that has to be given.
func why(c *apierr.Check, reason string) {
	if strings.TrimSpace(reason) == "" {
		c.Bad("reason", "is required: the audit log keeps it")
	}
	line(c, "reason", reason, 500)
}

// LiftLegalHold implements the service.
func (a *API) LiftLegalHold(ctx context.Context, r *pb.LiftLegalHoldRequest) (*pb.LiftLegalHoldResponse, error) {
	var c apierr.Check
	id, err := uuid.Parse(r.Id)
	if err != nil {
		c.Bad("id", "is not the id of a legal hold")
	}
	why(&c, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	h, err := a.Keeping.LiftHold(ctx, a.scope(ctx), id, a.audit(ctx, "LiftLegalHold", r.Reason))
	if errors.Is(err, store.ErrNotFound) {
		return nil, apierr.New(codes.NotFound, pb.ReasonLegalHoldNotFound, "no legal hold has this id")
	}
	if err != nil {
		return nil, a.fault(err)
	}
	return &pb.LiftLegalHoldResponse{LegalHold: legalHold(h)}, nil
}

func legalHold(h *store.LegalHold) *pb.LegalHold {
	out := &pb.LegalHold{Id: h.ID.String(), Team: h.Team, AllMail: h.MailID == uuid.Nil && h.Reference == nil, Reason: h.Reason, PlacedBy: h.PlacedBy,
		PlaceTime: stampOf(h.PlaceTime), LiftedBy: h.LiftedBy, LiftReason: h.LiftReason}
	if h.MailID != uuid.Nil {
		out.MailId = h.MailID.String()
	}
	if h.Reference != nil {
		out.Reference = *h.Reference
	}
	if !h.LiftTime.IsZero() {
		out.LiftTime = stampOf(h.LiftTime)
	}
	return out
}

// ListLegalHolds implements the service.
func (a *API) ListLegalHolds(ctx context.Context, r *pb.ListLegalHoldsRequest) (*pb.ListLegalHoldsResponse, error) {
	var c apierr.Check
	if r.Team != nil {
		checkTeam(&c, "team", *r.Team)
	}
	n := pageSize(&c, r.PageSize)
	if err := c.Err(); err != nil {
		return nil, err
	}
	filter := proto.CloneOf(r)
	filter.PageSize, filter.PageToken = 0, ""
	at, err := a.position("legal holds", filter, r.PageToken)
	if err != nil {
		return nil, err
	}
	var after uuid.UUID
	copy(after[:], at)
	hs, err := a.Keeping.LegalHolds(ctx, a.scope(ctx), r.Team, r.ShowLifted, after, n+1)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.ListLegalHoldsResponse{}
	for _, h := range hs {
		out.LegalHolds = append(out.LegalHolds, legalHold(h))
	}
	if n = fits(out.LegalHolds, n); n < len(hs) {
		out.LegalHolds = out.LegalHolds[:n]
		out.NextPageToken = a.pageToken("legal holds", filter, hs[n-1].ID[:])
	}
	return out, nil
}

// EraseRecipient implements the service.
func (a *API) EraseRecipient(ctx context.Context, r *pb.EraseRecipientRequest) (*pb.EraseRecipientResponse, error) {
	var c apierr.Check
	to, err := message.ParseAddress(r.Address)
	switch {
	case err != nil:
		c.Bad("address", "%v", err)
	case to.Name != "":
		c.Bad("address", "has a name: give only the address")
	}
	why(&c, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	m := hmac.New(sha256.New, a.EraseKey)
	m.Write([]byte(strings.ToLower(to.Mailbox)))
	e := &store.Erasure{Mailbox: to.Mailbox, Hash: m.Sum(nil), DryRun: r.ValidateOnly}
	e.Pseudonym = fmt.Sprintf("erased-%x@erased.invalid", e.Hash[:16])
	e.Audit = a.audit(ctx, "EraseRecipient", e.Redact(r.Reason))
	e.Audit.Actor = e.Redact(e.Audit.Actor)
	e.Keys = a.Quota.AddressKeys(to.Mailbox)
	x, err := a.Keeping.EraseRecipient(ctx, e)
	if err != nil {
		return nil, a.eraseFault(err)
	}
	out := &pb.EraseRecipientResponse{Mails: int64(x.Mails), FirstTime: stamp(&x.First), LastTime: stamp(&x.Last), Pseudonym: e.Pseudonym, Texts: map[string]int64{},
		ErasedTime: stamp(&x.Before), ErasedMails: int64(x.BeforeMails), ErasedFirstTime: stamp(&x.BeforeFirst), ErasedLastTime: stamp(&x.BeforeLast)}
	for table, n := range x.Texts {
		out.Texts[table] = int64(n)
	}
	return out, nil
}

func (a *API) eraseFault(err error) error {
	var r *store.EraseRefusedError
	if !errors.As(err, &r) {
		return a.fault(err)
	}
	reason, ids := pb.ReasonAddressInUse, []uuid.UUID(nil)
	if len(r.Held) > 0 {
		reason, ids = pb.ReasonLegalHold, r.Held
	}
	if len(r.Operations) > 0 {
		reason, ids = pb.ReasonMailsPending, r.Operations
	}
	if len(r.Waiting) > 0 {
		reason, ids = pb.ReasonMailsPending, r.Waiting
	}
	resource := strings.Join(r.Settings, ", ")
	if len(ids) > 0 {
		resource = ids[0].String()
	}
	return apierr.Precondition(reason, resource, "the address is not erased: %s", r)
}

// GetRetention implements the service.
func (a *API) GetRetention(ctx context.Context, _ *pb.GetRetentionRequest) (*pb.GetRetentionResponse, error) {
	done, err := a.Keeping.RetentionProgress(ctx)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.GetRetentionResponse{}
	for _, r := range a.Rules {
		x := &pb.RetentionRule{Kind: kindName[r.Kind], Part: partName[r.Part], Age: durationpb.New(r.Age)}
		if i := slices.IndexFunc(done, func(d store.RuleProgress) bool { return d.Name == r.Name() }); i >= 0 {
			x.Mails, x.RunTime = done[i].Mails, stamp(&done[i].RunTime)
		}
		by, err := a.Keeping.Overdue(ctx, r)
		if err != nil {
			return nil, a.fault(err)
		}
		if by > 0 {
			x.Overdue = durationpb.New(by)
		}
		out.Rules = append(out.Rules, x)
	}
	return out, nil
}

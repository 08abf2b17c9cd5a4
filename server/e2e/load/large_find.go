package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// finds looks mails of the archive up, each time another one, and reads pages of filters.
func (l *largeRun) finds(ctx context.Context) error {
	if l.archive == 0 {
		return nil
	}
	f := &filler{n: l.archive, begin: l.since}
	random := rand.New(rand.NewPCG(1, 2)) // the same mails in each run
	anyMail := func() int { return random.IntN(f.n) }
	const look, page = 5 * time.Millisecond, 20 * time.Millisecond
	for _, x := range []struct {
		name string
		f    func() *pb.MailFilter
		want int // mails at least
	}{
		{"reference", func() *pb.MailFilter { return &pb.MailFilter{Reference: f.reference(anyMail())} }, 1},
		{"recipient", func() *pb.MailFilter { return &pb.MailFilter{Recipient: f.recipient(anyMail())} }, min(4, f.n)},
		{"Message-ID", func() *pb.MailFilter { return &pb.MailFilter{MessageId: f.messageID(anyMail())} }, 1},
		{"Message-ID of another program", func() *pb.MailFilter {
			return &pb.MailFilter{MessageId: f.messageID(anyMail() / foreignEvery * foreignEvery)}
		}, 1},
	} {
		err := l.quick(ctx, "FindMails by "+x.name, look, 500, func(ctx context.Context, _ int) error {
			return l.find(ctx, &pb.FindMailsRequest{Filter: x.f()}, x.want)
		})
		if err != nil {
			return err
		}
	}
	for _, x := range []struct {
		name string
		r    *pb.FindMailsRequest
		want int
	}{
		{"all", &pb.FindMailsRequest{}, 50},
		{"a mail server", &pb.FindMailsRequest{Filter: &pb.MailFilter{MailServer: "php"}}, 0},
		{"kind and status", &pb.FindMailsRequest{Filter: &pb.MailFilter{Kind: pb.Kind_KIND_BULK, Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_SENT}}}, 0},
	} {
		err := l.quick(ctx, "FindMails, page of "+x.name, page, 100, func(ctx context.Context, _ int) error { return l.find(ctx, x.r, x.want) })
		if err != nil {
			return err
		}
	}
	for _, x := range []struct {
		name string
		f    *pb.MailFilter
	}{
		{"all", &pb.MailFilter{}},
		{"a mail server", &pb.MailFilter{MailServer: "php"}},
		{"team and kind", &pb.MailFilter{Team: new(string), Kind: pb.Kind_KIND_INVOICE}},
		{"status and time", &pb.MailFilter{Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_SENT}}},
		{"status that is rare", &pb.MailFilter{Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_CANCELLED}}},
	} {
		err := l.quick(ctx, "ListArchivedMails, page of "+x.name, page, 100, func(ctx context.Context, _ int) error {
			r, err := l.p.journal.ListArchivedMails(ctx, &pb.ListArchivedMailsRequest{Filter: x.f})
			if err == nil && len(r.Mails) == 0 {
				err = fmt.Errorf("an empty page")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *largeRun) find(ctx context.Context, r *pb.FindMailsRequest, want int) error {
	got, err := l.p.journal.FindMails(ctx, r)
	if err == nil && len(got.Mails) < want {
		err = fmt.Errorf("%d mails, not %d: %v", len(got.Mails), want, r)
	}
	return err
}

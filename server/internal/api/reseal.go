package api

import (
	"context"
	"errors"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/store"
)

// maxLost is how many secrets that do not open are told by name.
const maxLost = 100

// ResealSecrets implements the service.
func (a *AccessAdmin) ResealSecrets(ctx context.Context, r *pb.ResealSecretsRequest) (*pb.ResealSecretsResponse, error) {
	var c apierr.Check
	line(&c, "reason", r.Reason, 500)
	if err := c.Err(); err != nil {
		return nil, err
	}
	out := &pb.ResealSecretsResponse{}
	err := outbound.Each(ctx, a.Tokens, a.scope(ctx), func(s *store.MailServer) error {
		in := a.Outbound.Inspect(s)
		out.Current += int32(in.Current)
		out.LostCount += int32(len(in.Lost))
		for _, name := range in.Lost[:min(len(in.Lost), maxLost-len(out.Lost))] {
			out.Lost = append(out.Lost, &pb.ResealSecretsResponse_Lost{MailServer: s.Name, What: name})
		}
		n := in.Older
		if n > 0 && !r.ValidateOnly {
			var err error
			n, err = a.Tokens.Reseal(ctx, s.Name, a.audit(ctx, "mail_server.reseal", r.Reason), a.Outbound.Reseal)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			} else if err != nil {
				return err
			}
		}
		out.Resealed += int32(n)
		return nil
	})
	if err != nil {
		return nil, a.fault(err)
	}
	return out, nil
}

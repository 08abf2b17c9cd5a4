package api_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// guardedRig is a rig whose callers are asked who they are.
type guardedRig struct {
	*rig
	book *access.Book
	grpc *grpc.Server
	conn *grpc.ClientConn
}

func newGuardedRig(t testing.TB, dsn string) *guardedRig {
	t.Helper()
	r := &guardedRig{rig: newRig(t, dsn, nil)}
	var err error
	if r.book, err = access.NewBook(ctx(t), access.Config{Store: r.store, Mode: access.Required}); err != nil {
		t.Fatal(err)
	}
	r.conn = r.serve(r.book.Guard(), func(g *grpc.Server) {
		pb.RegisterAccessAdminServer(g, r.rig.api.AccessAdmin(r.store, func(c context.Context) { _ = r.book.Read(c) }, r.book.On))
		healthpb.RegisterHealthServer(g, health.NewServer())
		reflection.Register(g)
		r.grpc = g
	})
	return r
}

// token makes a token of "n" for a team.
func (r *guardedRig) token(team string, role store.Role, change ...func(*store.Token)) (secret, id string) {
	r.t.Helper()
	secret, id, hash := access.NewSecret()
	tok := &store.Token{ID: id, Name: "n", Hash: hash, Roles: []store.Role{role}, Teams: []string{team}, CreateTime: time.Now(), ExpireTime: time.Now().Add(time.Hour)}
	for _, c := range change {
		c(tok)
	}
	if err := r.store.CreateToken(ctx(r.t), tok, store.Audit{Actor: "test"}); err != nil {
		r.t.Fatal(err)
	}
	if err := r.book.Read(ctx(r.t)); err != nil {
		r.t.Fatal(err)
	}
	return secret, id
}

func system(t *store.Token) { t.System, t.Teams = true, nil }

// with is a context that carries a token.
func with(c context.Context, secret string) context.Context {
	if secret == "" {
		return c
	}
	return metadata.AppendToOutgoingContext(c, "authorization", "Bearer "+secret)
}

// held hands over a mail that is held.
func (r *guardedRig) held(secret, server string) (id, batch string) {
	r.t.Helper()
	s, err := pb.NewDispatchClient(r.conn).SendStream(with(ctx(r.t), secret))
	if err != nil {
		r.t.Fatal(err)
	}
	err = s.Send(&pb.SendStreamRequest{Options: &pb.BatchOptions{Options: &pb.SendOptions{MailServer: server, Hold: true}},
		Items: []*pb.BatchItem{{Message: message("a@y.example")}}})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		r.t.Fatal(err)
	}
	ans, err := s.Recv()
	if err != nil || ans.MailId == "" {
		r.t.Fatalf("got %v, %v, want a mail", ans, err)
	}
	if _, err := s.Recv(); err != io.EOF {
		r.t.Fatal(err)
	}
	return ans.MailId, ans.BatchId
}

// TestNobodyMakesNoSecondToken: a replica that does not ask yet makes the first token for
// whoever calls, and no other; who has this machine's user may.
func TestNobodyMakesNoSecondToken(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	as := func(p *access.Principal) pb.AccessAdminClient {
		return pb.NewAccessAdminClient(r.serve(access.As(p), func(g *grpc.Server) {
			pb.RegisterAccessAdminServer(g, r.rig.api.AccessAdmin(r.store, func(context.Context) {}, r.book.On))
		}))
	}
	open, local := as(access.Everybody()), as(access.Local())
	request := &pb.CreateTokenRequest{Name: "n", Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true}
	first, err := open.CreateToken(ctx(t), request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.CreateToken(ctx(t), request); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a second token: got %v, want PERMISSION_DENIED", err)
	}
	if _, err := open.RevokeToken(ctx(t), &pb.RevokeTokenRequest{Id: first.Info.Id}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("to revoke: got %v, want PERMISSION_DENIED", err)
	}
	if _, err := local.CreateToken(ctx(t), request); err != nil {
		t.Errorf("who has this machine's user: %v", err)
	}
	if _, err := local.RevokeToken(ctx(t), &pb.RevokeTokenRequest{Id: first.Info.Id}); err != nil {
		t.Errorf("who has this machine's user: %v", err)
	}
}

// TestLongCallsEnd: a revoked token ends the calls that last.
func TestLongCallsEnd(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, storetest.SQLiteDSN(t))
	r.server("one", pb.Mode_MODE_DAEMON)
	secret, id := r.token("t1", store.RoleSend)
	d := pb.NewDispatchClient(r.conn)
	c := with(ctx(t), secret)
	watch, err := d.WatchMails(c, &pb.WatchMailsRequest{})
	if err == nil {
		_, err = watch.Recv() // it has begun
	}
	if err != nil {
		t.Fatal(err)
	}
	options := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "one", Hold: true}}
	item := []*pb.BatchItem{{Message: message("a@y.example")}}
	stream, err := d.SendStream(c)
	if err == nil {
		err = stream.Send(&pb.SendStreamRequest{Options: options, Items: item})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	batch, err := d.SendBatch(c)
	if err == nil {
		err = batch.Send(&pb.SendBatchRequest{Options: options, Items: item})
	}
	if err != nil {
		t.Fatal(err)
	}
	upload, err := d.UploadAttachment(c)
	if err == nil {
		err = upload.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.RevokeToken(ctx(t), id, store.Audit{Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := r.book.Read(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if _, err = watch.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("WatchMails: got %v, want UNAUTHENTICATED", err)
	}
	if _, err = stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("SendStream: got %v, want UNAUTHENTICATED", err)
	}
	if err := batch.RecvMsg(&pb.SendBatchResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("SendBatch: got %v, want UNAUTHENTICATED", err)
	}
	// the answer says why it failed
	_ = upload.Send(&pb.UploadAttachmentRequest{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: []byte("x")}})
	if _, err := upload.CloseAndRecv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("UploadAttachment: got %v, want UNAUTHENTICATED", err)
	}
}

// TestTokenSecretsStayHidden: the secret of a token is in the answer that makes it, and nowhere
// else: not in the log, not in an error, not in the database.
func TestTokenSecretsStayHidden(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, plain *rig) {
		r := &guardedRig{rig: plain}
		var err error
		if r.book, err = access.NewBook(ctx(t), access.Config{Store: r.store, Mode: access.Required}); err != nil {
			t.Fatal(err)
		}
		r.conn = r.serve(r.book.Guard(), func(g *grpc.Server) {
			pb.RegisterAccessAdminServer(g, r.rig.api.AccessAdmin(r.store, func(c context.Context) { _ = r.book.Read(c) }, r.book.On))
		})
		root, _ := r.token("", store.RoleAdmin, system)
		c := with(ctx(t), root)
		admin := pb.NewAccessAdminClient(r.conn)
		made, err := admin.CreateToken(c, &pb.CreateTokenRequest{Name: "n", Roles: []pb.Role{pb.Role_ROLE_SEND}, Teams: []string{"t1"}})
		if err != nil {
			t.Fatal(err)
		}
		var told strings.Builder
		tell := func(v any, err error) { fmt.Fprintln(&told, v, err) }
		tell(admin.ListTokens(c, &pb.ListTokensRequest{ShowEnded: true}))
		tell(admin.WhoAmI(with(ctx(t), made.Secret), &pb.WhoAmIRequest{}))
		// the whole token, by mistake
		tell(admin.RevokeToken(c, &pb.RevokeTokenRequest{Id: made.Secret[:60]}))
		tell(admin.RevokeToken(c, &pb.RevokeTokenRequest{Id: made.Secret}))
		tell(admin.RevokeToken(with(ctx(t), made.Secret), &pb.RevokeTokenRequest{Id: "x"}))
		tell(admin.WhoAmI(with(ctx(t), made.Secret+"x"), &pb.WhoAmIRequest{}))
		tell(admin.RevokeToken(c, &pb.RevokeTokenRequest{Id: made.Info.Id}))
		tell(admin.WhoAmI(with(ctx(t), made.Secret), &pb.WhoAmIRequest{}))
		ts, err := r.store.Tokens(ctx(t), "", true, 10)
		if err != nil || len(ts) != 2 {
			t.Fatalf("got %d tokens, %v, want 2", len(ts), err)
		}
		for _, x := range ts {
			fmt.Fprintf(&told, "%+v %q\n", x, x.Hash[:])
		}
		for what, text := range map[string]string{"the log": r.log.String(), "an answer or the database": told.String(), "the audit": fmt.Sprint(r.audits())} {
			for _, canary := range []string{root, made.Secret} {
				if secret := strings.Split(canary, "_")[2]; strings.Contains(text, secret[:20]) || strings.Contains(text, secret[30:]) {
					t.Errorf("%s has a secret", what)
				}
			}
		}
	})
}

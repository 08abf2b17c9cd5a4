package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// isDefault makes a mail server the default.
func isDefault(m *pb.MailServer) {
	yes := true
	m.IsDefault = &yes
}

// of gives a mail server to a team.
func of(team string) func(*pb.MailServer) {
	return func(m *pb.MailServer) { m.Team = team }
}

// off makes a mail server unavailable.
func off(m *pb.MailServer) { m.Status = pb.MailServer_STATUS_UNAVAILABLE }

// turn makes a mail server available or unavailable.
func (r *rig) turn(name string, to pb.MailServer_Status) *pb.MailServer {
	r.t.Helper()
	res, err := r.admin.UpdateMailServer(ctx(r.t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: name, Status: to}})
	if err != nil {
		r.t.Fatal(err)
	}
	return res.MailServer
}

// offers are the ways in which a team's mail that names no mail server can be offered.
func (r *rig) offers(team string) map[string]func() (route string, err error) {
	o := &pb.SendOptions{Team: team}
	send := func(validate bool) func() (string, error) {
		return func() (string, error) {
			evs, err := r.send(ctx(r.t), &pb.SendRequest{Options: o, Message: message("a@y.example"), ValidateOnly: validate})
			if err != nil {
				return "", err
			}
			return evs[0].GetAccepted().GetMailServer(), nil
		}
	}
	return map[string]func() (string, error){
		"Send": send(false), "Send validate_only": send(true),
		"SendBatch": func() (string, error) {
			st, err := r.dispatch.SendBatch(ctx(r.t))
			if err != nil {
				return "", err
			}
			// CloseAndRecv tells
			_ = st.Send(&pb.SendBatchRequest{Options: &pb.BatchOptions{Options: o}, Items: []*pb.BatchItem{{Message: message("a@y.example")}}})
			res, err := st.CloseAndRecv()
			if err != nil {
				return "", err
			}
			list, err := r.dispatch.ListDueOutMails(ctx(r.t), &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{BatchId: res.BatchId}})
			if err != nil || len(list.Mails) != 1 {
				return "", fmt.Errorf("the batch holds %v: %w", list, err)
			}
			return list.Mails[0].MailServer, nil
		},
	}
}

// named wants the refusal of mail whose default is unavailable, with the name of that default.
func named(t *testing.T, what string, err error, server string) {
	t.Helper()
	refused(t, what, err, codes.FailedPrecondition, pb.ReasonMailServerUnavailable)
	if !strings.Contains(status.Convert(err).Message(), `"`+server+`"`) {
		t.Errorf("%s: got %q, want it to name %s", what, status.Convert(err).Message(), server)
	}
	if !slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool {
		p, is := d.(*errdetails.PreconditionFailure)
		return is && p.Violations[0].Subject == server
	}) {
		t.Errorf("%s: got %v, want %s as the subject of a precondition", what, status.Convert(err).Details(), server)
	}
}

// TestDefaultUnavailable: a default that is switched off stays the default. Mail that names no
// mail server is refused, naming that default, and leaves through no other; once the default is
// available again, it is what the mail leaves through.
func TestDefaultUnavailable(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("system", pb.Mode_MODE_DAEMON, isDefault)
		r.server("sales", pb.Mode_MODE_DAEMON, isDefault, of("sales"))
		for _, c := range []struct{ off, team string }{{"sales", "sales"}, {"system", ""}, {"system", "without-default"}} {
			for what, offer := range r.offers(c.team) {
				if through, err := offer(); err != nil || through != c.off {
					t.Fatalf("%s of team %q before: got %q, %v, want %s", what, c.team, through, err, c.off)
				}
			}
			if m := r.turn(c.off, pb.MailServer_STATUS_UNAVAILABLE); !m.GetIsDefault() || m.Status != pb.MailServer_STATUS_UNAVAILABLE {
				t.Errorf("switched off: got %v, want it unavailable and still the default", m)
			}
			for what, offer := range r.offers(c.team) {
				_, err := offer()
				named(t, what+" of team "+c.team, err, c.off)
			}
			if m := r.turn(c.off, pb.MailServer_STATUS_AVAILABLE); !m.GetIsDefault() || m.Status != pb.MailServer_STATUS_AVAILABLE {
				t.Errorf("switched on: got %v, want it available and the default", m)
			}
			for what, offer := range r.offers(c.team) {
				if through, err := offer(); err != nil || through != c.off {
					t.Errorf("%s of team %q afterwards: got %q, %v, want %s", what, c.team, through, err, c.off)
				}
			}
		}
		// What is unavailable for others is no hindrance for who names a mail server, or whose
		// own default works.
		r.turn("system", pb.MailServer_STATUS_UNAVAILABLE)
		for what, offer := range r.offers("sales") {
			if through, err := offer(); err != nil || through != "sales" {
				t.Errorf("%s of a team whose own default works: got %q, %v", what, through, err)
			}
		}
	})
}

// TestDefaultAndStatus: each is set without the other, at creation and later, and both at once.
// There is one default a team, available or not.
func TestDefaultAndStatus(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		if m := r.server("one", pb.Mode_MODE_DAEMON, isDefault, off); !m.GetIsDefault() || m.Status != pb.MailServer_STATUS_UNAVAILABLE {
			t.Fatalf("created: got %v, want an unavailable default", m)
		}
		r.server("two", pb.Mode_MODE_DAEMON, off)
		yes, no := true, false
		update := func(m *pb.MailServer, paths ...string) (*pb.MailServer, error) {
			res, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
			return res.GetMailServer(), err
		}
		_, err := update(&pb.MailServer{Name: "two", IsDefault: &yes}, "is_default")
		refused(t, "a second default beside one that is unavailable", err, codes.FailedPrecondition, pb.ReasonDefaultExists)
		for _, name := range []string{"one", "two"} {
			_, err = r.admin.SetDefaultMailServer(ctx(t), &pb.SetDefaultMailServerRequest{Name: name})
			named(t, "a swap to one that is unavailable", err, name)
		}
		if m, err := update(&pb.MailServer{Name: "one", IsDefault: &no}, "is_default"); err != nil || m.GetIsDefault() || m.Status != pb.MailServer_STATUS_UNAVAILABLE {
			t.Errorf("no default any more: got %v, %v", m, err)
		}
		if m, err := update(&pb.MailServer{Name: "two", IsDefault: &yes}, "is_default"); err != nil || !m.GetIsDefault() || m.Status != pb.MailServer_STATUS_UNAVAILABLE {
			t.Errorf("the default while unavailable: got %v, %v", m, err)
		}
		r.turn("one", pb.MailServer_STATUS_AVAILABLE)
		res, err := r.admin.SetDefaultMailServer(ctx(t), &pb.SetDefaultMailServerRequest{Name: "one"})
		if err != nil || !res.MailServer.GetIsDefault() || res.PreviousDefault.GetName() != "two" || res.PreviousDefault.Status != pb.MailServer_STATUS_UNAVAILABLE {
			t.Errorf("a swap from one that is unavailable: got %v, %v", res, err)
		}
		if m := r.turn("two", pb.MailServer_STATUS_AVAILABLE); m.GetIsDefault() {
			t.Errorf("switched on after it had lost the default: got %v", m)
		}
	})
}

package web

import (
	"net/url"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// holdsBody is what the view of retention shows.
type holdsBody struct {
	Rows   []holdRow
	Rules  []*pb.RetentionRule
	System bool // the caller may see the rules
	Lifted bool
	Next   string
}

// holdRow is a legal hold.
type holdRow struct {
	*pb.LegalHold
	Mail string // its mail, as an id; empty = it is not of one
	Lift string // address of the act that ends it
}

// holds shows legal holds, and the rules by which finished mail is removed.
func holds(v *view) error {
	q := v.r.URL.Query()
	req := &pb.ListLegalHoldsRequest{ShowLifted: q.Get("lifted") != "", PageSize: pageSize, PageToken: q.Get("page")}
	if t := q.Get("team"); t != "" {
		req.Team = &t
	}
	res, err := v.retention().ListLegalHolds(v.ctx(), req)
	if err != nil {
		return err
	}
	b := holdsBody{Lifted: req.ShowLifted, System: v.who.System}
	for _, h := range res.LegalHolds {
		r := holdRow{LegalHold: h}
		if isID.MatchString(h.MailId) {
			r.Mail = h.MailId
		}
		if h.LiftTime == nil {
			for _, l := range v.links(url.Values{"hold": {h.Id}}, "lift") {
				r.Lift = l.Address
			}
		}
		b.Rows = append(b.Rows, r)
	}
	if res.NextPageToken != "" {
		b.Next = with("/holds", q, "page", res.NextPageToken)
	}
	if b.System {
		rules, err := v.retention().GetRetention(v.ctx(), &pb.GetRetentionRequest{})
		if err != nil && status.Code(err) != codes.PermissionDenied {
			return err
		}
		b.Rules = rules.GetRules()
	}
	return v.render("holds", "Retention", b)
}

// holdActs place and lift legal holds.
func holdActs() []*act {
	admin := pb.Role_ROLE_ADMIN
	scope := ask{Name: "scope", Label: "What is kept", Kind: "choice", Choices: []choice{{"mail", "this mail", true}, {"reference", "every mail of its reference, also to come", false}, {"team", "every mail of its team, also to come", false}}}
	place := func(m *pb.Mail, scope, why string) *pb.PlaceLegalHoldRequest {
		r := &pb.PlaceLegalHoldRequest{Team: &m.Team, Reason: why}
		switch scope {
		case "reference":
			r.Reference = m.Reference
		case "team":
			r.AllMail = true
		default:
			r.MailId = m.Id
		}
		return r
	}
	return []*act{
		{name: "keep", label: "Legal hold", role: admin, reason: true, asks: []ask{scope},
			count: func(v *view, q url.Values) (*counted, error) {
				m, err := v.theMail(q)
				if err != nil {
					return nil, err
				}
				return &counted{Count: 1, About: aboutMail(m), Text: "1 legal hold would be placed: whatever the rules of retention say, nothing of this is removed until it is lifted.", next: func(made *calls, why string) {
					made.note(pb.Retention_PlaceLegalHold_FullMethodName, place(m, "", why))
				}}, nil
			},
			do: func(v *view, q, form url.Values) (*did, error) {
				m, err := v.theMail(q)
				if err != nil {
					return nil, err
				}
				_, err = v.retention().PlaceLegalHold(v.ctx(), place(m, form.Get("scope"), form.Get("reason")))
				return &did{done: "kept", to: with("/holds", nil, "done", "kept")}, err
			}},
		{name: "lift", label: "Lift", role: admin, reason: true, danger: true,
			count: func(v *view, q url.Values) (*counted, error) {
				id := q.Get("hold")
				return &counted{Count: 1, Text: "1 legal hold would end: " + plain.Text(id, 60) + ". The rules take that mail then, also where its time has passed.", next: func(made *calls, why string) {
					made.note(pb.Retention_LiftLegalHold_FullMethodName, &pb.LiftLegalHoldRequest{Id: id, Reason: why})
				}}, nil
			},
			do: func(v *view, q, form url.Values) (*did, error) {
				_, err := v.retention().LiftLegalHold(v.ctx(), &pb.LiftLegalHoldRequest{Id: q.Get("hold"), Reason: form.Get("reason")})
				return &did{done: "lifted", to: with("/holds", nil, "done", "lifted")}, err
			}},
	}
}

// serviceBody is what the view of the service shows.
type serviceBody struct {
	*pb.GetServiceInfoResponse
	Limits []header
}

// service shows which version runs and what the limits of callers are.
func service(v *view) error {
	res, err := v.access().GetServiceInfo(v.ctx(), &pb.GetServiceInfoRequest{})
	if err != nil {
		return err
	}
	return v.render("service", "Service", serviceBody{res, limitsOf(res.Limits)})
}

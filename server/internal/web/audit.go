package web

import (
	"net/url"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// auditBody is what the view of the audit log shows.
type auditBody struct {
	Query url.Values
	Rows  []auditRow
	Next  string
	First string
	More  bool // fields beyond the first are set
}

// auditRow is a row of the log, with its detail as JSON.
type auditRow struct {
	*pb.AuditRow
	Detail string
	Before string // its target: words
	Mail   string // and the mail behind them
}

// audit shows who did what.
func audit(v *view) error {
	q := v.r.URL.Query()
	req := &pb.ListAuditRequest{Actor: q.Get("actor"), Action: q.Get("action"), Target: q.Get("target"), PageSize: pageSize, PageToken: q.Get("page")}
	if t := q.Get("team"); t != "" {
		req.Team = &t
	}
	var err error
	if req.Since, err = v.moment(q, "since"); err != nil {
		return err
	}
	if req.Until, err = v.moment(q, "until"); err != nil {
		return err
	}
	res, err := v.access().ListAudit(v.ctx(), req)
	if err != nil {
		return err
	}
	b := auditBody{Query: q, More: req.Action+req.Actor != "" || req.Team != nil || req.Since != nil || req.Until != nil}
	for _, r := range res.Rows {
		x := auditRow{AuditRow: r, Before: r.Target}
		if n := len(r.Target) - idLength; n >= 0 && isID.MatchString(r.Target[n:]) {
			x.Before, x.Mail = r.Target[:n], r.Target[n:]
		}
		if r.Detail != nil {
			x.Detail = plain.JSON(r.Detail)
		}
		b.Rows = append(b.Rows, x)
	}
	if res.NextPageToken != "" {
		b.Next = with("/audit", q, "page", res.NextPageToken)
	}
	if req.PageToken != "" {
		b.First = with("/audit", q, "page", "")
	}
	return v.render("audit", "Audit", b)
}

package web

import (
	"crypto/hmac"
	"fmt"
	"net/url"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// An act on more mails than one call changes is an operation in the background. Its count is
// one as well: the person waits for it on the act's view, whose address names it.

// countLife is how long a count that an operation has made may be confirmed.
const countLife = 10 * time.Minute

// lookAgain is after how many seconds a browser loads the view of what goes on once more.
const lookAgain = "2"

// operationsBody is what the list of operations shows.
type operationsBody struct {
	Rows  []*operationRow
	Next  string
	First string
}

// operationRow is an operation as a bar.
type operationRow struct {
	*pb.Operation
	Verb    string
	Running bool
	Ended   string  // how; the class and the word of a badge
	Bar     [3]int  // changed, failed and what is left, of 1000
	Of      int64   // mails that it is about, as far as that is known
	Acts    []link  // that it permits
	Groups  []group // why mails could not be changed
}

// group is mails that could not be changed for one reason.
type group struct {
	*pb.FailureGroup
	Some []string // ids of the first
}

// operationVerbs are what operations do, by their call.
var operationVerbs = map[string]string{"HoldMails": "Hold", "ReleaseMails": "Release", "CancelMails": "Cancel", "RetryMails": "Try again", "MoveMails": "Move"}

func (v *view) operationRow(o *pb.Operation) *operationRow {
	r := &operationRow{Operation: o, Verb: operationVerbs[o.Action], Running: o.State == pb.OperationState_OPERATION_STATE_RUNNING, Of: max(o.Total, o.Matched, 1)}
	if r.Verb == "" {
		r.Verb = o.Action
	}
	if o.ValidateOnly {
		r.Verb = "Count: " + r.Verb
	}
	r.Bar[0], r.Bar[1] = int(1000*o.Changed/r.Of), int(1000*o.Failed/r.Of)
	r.Bar[2] = r.Bar[0] + r.Bar[1]
	if r.Running {
		r.Acts = v.links(url.Values{"operation": {o.Id}}, "stop")
	}
	for _, g := range o.Failures {
		x := group{FailureGroup: g}
		for _, id := range g.Ids {
			if isID.MatchString(id) && len(x.Some) < 3 {
				x.Some = append(x.Some, id)
			}
		}
		r.Groups = append(r.Groups, x)
	}
	return r
}

// operations lists what goes on and went on in the background.
func operations(v *view) error {
	q := v.r.URL.Query()
	req := &pb.ListOperationsRequest{Running: q.Get("running") != "", PageSize: pageSize, PageToken: q.Get("page")}
	if t := q.Get("team"); t != "" {
		req.Team = &t
	}
	res, err := v.operations().ListOperations(v.ctx(), req)
	if err != nil {
		return err
	}
	b := operationsBody{}
	for _, o := range res.Operations {
		b.Rows = append(b.Rows, v.operationRow(o))
	}
	if res.NextPageToken != "" {
		b.Next = with("/operations", q, "page", res.NextPageToken)
	}
	if req.PageToken != "" {
		b.First = with("/operations", q, "page", "")
	}
	return v.render("operations", "Operations", b)
}

// operation shows how far one is. While it runs the browser looks again.
func operation(v *view) error {
	res, err := v.operations().GetOperation(v.ctx(), &pb.GetOperationRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	r := v.operationRow(res.Operation)
	if r.Running {
		v.w.Header().Set("Refresh", lookAgain)
	}
	return v.render("operation", r.Verb, r)
}

func operationPath(id, done string) string {
	return with("/operations/"+url.PathEscape(id), nil, "done", done)
}

// stopAct lets no further piece of an operation begin.
func stopAct() *act {
	return &act{name: "stop", label: "Stop", role: pb.Role_ROLE_SEND, danger: true,
		count: func(v *view, q url.Values) (*counted, error) {
			res, err := v.operations().GetOperation(v.ctx(), &pb.GetOperationRequest{Id: q.Get("operation")})
			if err != nil {
				return nil, err
			}
			o := res.Operation
			if o.State != pb.OperationState_OPERATION_STATE_RUNNING {
				return &counted{Text: "The operation has ended already."}, nil
			}
			return &counted{Count: 1, Text: fmt.Sprintf("1 operation would be stopped. It has changed %s; that stays so.", plural(o.Changed, "mail")), next: func(made *calls, _ string) {
				made.note(pb.Operations_StopOperation_FullMethodName, &pb.StopOperationRequest{Id: o.Id})
			}}, nil
		},
		do: func(v *view, q, _ url.Values) (*did, error) {
			_, err := v.operations().StopOperation(v.ctx(), &pb.StopOperationRequest{Id: q.Get("operation")})
			return &did{done: "stopped", to: operationPath(q.Get("operation"), "stopped")}, err
		}}
}

// seal binds an operation that counts to the selection which it counts for this person, so that
// no address shows the count of another one.
func (v *view) seal(q url.Values, id string) string {
	return v.page.csrf(v.cookie + "\n" + with("", q, "counting", "", "seal", "") + "\n" + id)
}

// countInBackground leads to the act's view that waits for the operation.
func (v *view) countInBackground(q url.Values, o *pb.Operation) error {
	return v.go_(with("/act", q, "counting", o.Id, "seal", v.seal(q, o.Id)))
}

// countedInBackground is what the operation has counted that the address names.
func (v *view) countedInBackground(q url.Values, would string) (*counted, error) {
	id := q.Get("counting")
	if !hmac.Equal([]byte(q.Get("seal")), []byte(v.seal(q, id))) {
		return nil, v.go_(with("/act", q, "counting", "", "seal", ""))
	}
	res, err := v.operations().GetOperation(v.ctx(), &pb.GetOperationRequest{Id: id})
	if err != nil {
		return nil, err
	}
	o := res.Operation
	switch o.State {
	case pb.OperationState_OPERATION_STATE_RUNNING:
		v.w.Header().Set("Refresh", lookAgain)
		return &counted{Text: fmt.Sprintf("Many mails are selected, and are being counted: %d of about %d so far. This view loads itself again.", o.Matched, max(o.Total, o.Matched))}, nil
	case pb.OperationState_OPERATION_STATE_DONE:
		if v.page.cfg.Now().Sub(o.EndTime.AsTime()) > countLife {
			return nil, v.go_(with("/act", q, "counting", "", "seal", ""))
		}
		c := &counted{Count: o.Changed, Mails: true, Text: plural(o.Changed, "mail") + " " + would + ", in the background. You can watch it and stop it."}
		for _, g := range v.operationRow(o).Groups {
			c.More = append(c.More, plural(g.Count, "mail")+" would stay as it is: "+g.Message)
		}
		return c, nil
	}
	return &counted{Text: "The count has not come to its end. " + o.Error}, nil
}

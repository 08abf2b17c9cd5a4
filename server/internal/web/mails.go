package web

import (
	"net/url"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// pageSize is how many rows a list shows; with foreign text of any length it stays under what a
// view may have.
const pageSize = 30

// journals are the statuses of each journal.
var journals = map[string][]pb.MailStatus{
	"due-out": {pb.MailStatus_MAIL_STATUS_QUEUED, pb.MailStatus_MAIL_STATUS_SENDING, pb.MailStatus_MAIL_STATUS_DEFERRED, pb.MailStatus_MAIL_STATUS_HELD, pb.MailStatus_MAIL_STATUS_FAILED,
		pb.MailStatus_MAIL_STATUS_UNKNOWN, pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT},
	"archive": {pb.MailStatus_MAIL_STATUS_SENT, pb.MailStatus_MAIL_STATUS_CANCELLED},
}

// bad is a field of an address or a form that cannot be read.
func bad(field, format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, field+": "+format, args...)
}

// filterOf reads the filter that an address holds, also that of an act.
func (v *view) filterOf(q url.Values) (*pb.MailFilter, error) {
	f := &pb.MailFilter{MailServer: q.Get("server"), Reference: q.Get("reference"), Recipient: q.Get("to"), BatchId: q.Get("batch"), MessageId: q.Get("message-id")}
	if q.Get("team") != "" {
		team := q.Get("team")
		f.Team = &team
	}
	for _, s := range q["status"] {
		if s == "" {
			continue
		}
		n, ok := plain.FromWord(pb.MailStatus(0), s)
		if !ok {
			return nil, bad("status", "is one of %s", strings.Join(plain.Words(pb.MailStatus(0)), ", "))
		}
		f.Statuses = append(f.Statuses, pb.MailStatus(n))
	}
	if k := q.Get("kind"); k != "" {
		n, ok := plain.FromWord(pb.Kind(0), k)
		if !ok {
			return nil, bad("kind", "is one of %s", strings.Join(plain.Words(pb.Kind(0)), ", "))
		}
		f.Kind = pb.Kind(n)
	}
	if l := q.Get("label"); l != "" {
		key, value, ok := strings.Cut(l, "=")
		if !ok {
			return nil, bad("label", "is key=value")
		}
		f.Labels = map[string]string{key: value}
	}
	var err error
	if f.Since, err = v.moment(q, "since"); err == nil {
		f.Until, err = v.moment(q, "until")
	}
	return f, err
}

// moment reads a time of an address.
func (v *view) moment(q url.Values, field string) (*timestamppb.Timestamp, error) {
	s := q.Get(field)
	if s == "" {
		return nil, nil
	}
	t, err := plain.Moment(s, v.page.cfg.Now())
	if err != nil {
		return nil, bad(field, "%v", err)
	}
	return t, nil
}

// mailsBody is what the view of both journals shows.
type mailsBody struct {
	Query    url.Values
	Journal  string
	Journals []link
	Mails    []*pb.Mail
	Next     string // address of the next page
	First    string // address of the first page; empty = this is it
	Words    bool   // no mail is called so: these have the words in the subject
	Empty    bool   // nothing was searched for, and there is nothing
	Statuses []choice
	Kinds    []choice
	Failures []choice
	More     bool // fields beyond the first are set
	Acts     []link
}

// link leads somewhere.
type link struct {
	Label   string
	Address string
	Here    bool
	Main    bool // what a person most likely wants next
	Risky   bool // it ends something
}

// choice is an option of a field.
type choice struct {
	Value  string
	Label  string
	Chosen bool
}

// choices are the words of an enum, the first of them none.
func choices(words, chosen []string) []choice {
	out := []choice{{Label: "any", Chosen: len(chosen) == 0}}
	for _, w := range words {
		out = append(out, choice{w, strings.ReplaceAll(w, "-", " "), slices.Contains(chosen, w)})
	}
	return out
}

// with is an address with fields changed; a value of "" takes one away.
func with(path string, q url.Values, pairs ...string) string {
	out := url.Values{}
	for k, v := range q {
		if v = slices.DeleteFunc(slices.Clone(v), func(s string) bool { return s == "" }); len(v) > 0 {
			out[k] = v
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if out.Del(pairs[i]); pairs[i+1] != "" {
			out.Set(pairs[i], pairs[i+1])
		}
	}
	if len(out) == 0 {
		return path
	}
	return path + "?" + out.Encode()
}

// searchFields are those beyond the text that select mails.
var searchFields = []string{"status", "kind", "server", "team", "to", "domain", "subject", "failure", "reference", "batch", "label", "message-id", "since", "until", "finished-since", "finished-until", "duplicate"}

// filterFields are those that an act on a selection takes as well.
var filterFields = []string{"status", "kind", "server", "team", "to", "reference", "batch", "label", "message-id", "since", "until"}

// mails searches both journals by what the address says.
func mails(v *view) error {
	q := v.r.URL.Query()
	f, err := v.filterOf(q)
	if err != nil {
		return err
	}
	req := &pb.FindMailsRequest{Text: strings.TrimSpace(q.Get("q")), RecipientDomain: q.Get("domain"), Subject: q.Get("subject"), PossibleDuplicate: q.Get("duplicate") != "", PageSize: pageSize, PageToken: q.Get("page")}
	if w := q.Get("failure"); w != "" {
		n, ok := plain.FromWord(pb.RecipientResult_Failure(0), w)
		if !ok {
			return bad("failure", "is one of %s", strings.Join(plain.Words(pb.RecipientResult_Failure(0)), ", "))
		}
		req.Failure = pb.RecipientResult_Failure(n)
	}
	if req.FinishedSince, err = v.moment(q, "finished-since"); err != nil {
		return err
	}
	if req.FinishedUntil, err = v.moment(q, "finished-until"); err != nil {
		return err
	}
	journal := q.Get("journal")
	if len(f.Statuses) == 0 {
		f.Statuses = journals[journal]
	}
	if !proto.Equal(f, &pb.MailFilter{}) {
		req.Filter = f
	}
	b := mailsBody{Query: q, Journal: journal}
	words := q.Get("words") != "" && req.Text != ""
	if words { // a further page of them
		req.Subject, req.Text = strings.TrimSpace(req.Subject+" "+req.Text), ""
	}
	res, err := v.dispatch().FindMails(v.ctx(), req)
	if err != nil {
		return err
	}
	if len(res.Mails) == 0 && res.NextPageToken == "" && req.Text != "" && req.PageToken == "" {
		words, req.Subject, req.Text = true, strings.TrimSpace(req.Subject+" "+req.Text), ""
		if res, err = v.dispatch().FindMails(v.ctx(), req); err != nil {
			return err
		}
	}
	b.Mails, b.Words = res.Mails, words
	if res.NextPageToken != "" {
		b.Next = with("/mails", q, "page", res.NextPageToken, "words", map[bool]string{true: "1"}[words])
	}
	if req.PageToken != "" {
		b.First = with("/mails", q, "page", "", "words", "")
	}
	for _, j := range []string{"", "due-out", "archive"} {
		label := map[string]string{"": "All mails", "due-out": "Due-out journal", "archive": "Archive journal"}[j]
		b.Journals = append(b.Journals, link{Label: label, Address: with("/mails", q, "journal", j, "status", "", "page", "", "words", ""), Here: j == journal})
	}
	b.Statuses = choices(plain.Words(pb.MailStatus(0)), q["status"])
	b.Kinds = choices(plain.Words(pb.Kind(0)), q["kind"])
	b.Failures = choices(plain.Words(pb.RecipientResult_Failure(0)), q["failure"])
	b.More = slices.ContainsFunc(searchFields, func(k string) bool { return q.Get(k) != "" })
	b.Empty = len(b.Mails) == 0 && with("/mails", q) == "/mails"
	b.Acts = v.actsOnSelection(q, journal)
	return v.render("mails", "Mails", b)
}

// recipients are a mail's recipients in a few words.
func recipients(m *pb.Mail) string {
	if len(m.GetRecipients()) == 0 {
		return "–"
	}
	return plain.Text(m.Recipients[0].Address, 60)
}

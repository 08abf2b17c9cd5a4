package web

import (
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// recipientsShown is how many recipients one view of a mail shows.
const recipientsShown = 15

// actsShown is how many acts of people it shows, the newest.
const actsShown = 10

// mailBody is what the view of one mail shows.
type mailBody struct {
	Mail       *pb.Mail
	Name       string
	Headline   string
	NextStep   string // what a person does now; empty = nothing
	Same       string // address of all mails with its reference
	Bad        bool   // its last error is why it needs a person
	Events     []event
	Recipients []*pb.RecipientResult
	From       int // place of the first recipient that is shown, from 1
	Next       string
	Acts       []link
	Asks       bool // its outcome is unknown, and somebody has to say
	Labels     []string
}

// event is something that happened to a mail.
type event struct {
	at    time.Time
	When  string
	What  string
	Reply string // foreign words
	Bad   bool
	Good  bool
}

// mail tells the story of a mail.
func mail(v *view) error {
	res, err := v.dispatch().GetMail(v.ctx(), &pb.GetMailRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	m := res.Mail
	b := mailBody{Mail: m, Name: m.Reference, Headline: sentence(plain.Headlines[m.Status]), Acts: v.actsOnMail(m), From: 1}
	if v.can(pb.Role_ROLE_SEND) {
		b.NextStep = nextSteps[m.Status]
	}
	b.Bad = m.Status == pb.MailStatus_MAIL_STATUS_FAILED || m.Status == pb.MailStatus_MAIL_STATUS_UNKNOWN
	if m.Reference != "" && len(m.Reference) <= maxReason {
		b.Same = with("/mails", url.Values{"reference": {m.Reference}})
	}
	if b.Name == "" {
		b.Name = m.Id
	}
	for k, x := range m.Labels {
		b.Labels = append(b.Labels, k+"="+x)
	}
	slices.Sort(b.Labels)
	b.Labels = b.Labels[:min(len(b.Labels), 10)]
	var acts []*pb.AuditRow
	if v.can(pb.Role_ROLE_ADMIN) {
		res, err := v.access().ListAudit(v.ctx(), &pb.ListAuditRequest{Target: m.Id, PageSize: actsShown})
		switch status.Code(err) {
		case codes.OK:
			acts = res.Rows[:min(len(res.Rows), actsShown)]
		case codes.PermissionDenied, codes.InvalidArgument: // its story is told without
		default:
			return err
		}
	}
	b.Events = events(m, acts)
	// those that somebody has to look at first
	all := slices.Clone(m.Recipients)
	sort.SliceStable(all, func(i, j int) bool { return rank(all[i].Status) < rank(all[j].Status) })
	if n, err := strconv.Atoi(v.r.URL.Query().Get("from")); err == nil && n > 0 && n <= len(all) {
		b.From = n
	}
	all = all[b.From-1:]
	if len(all) > recipientsShown {
		all = all[:recipientsShown]
		b.Next = "/mails/" + m.Id + "?from=" + strconv.Itoa(b.From+recipientsShown) + "#recipients"
	}
	b.Recipients = all
	return v.render("mail", b.Name, b)
}

// nextSteps are what a person does about a mail in a state, where something is to be done.
var nextSteps = map[pb.MailStatus]string{
	pb.MailStatus_MAIL_STATUS_DEFERRED:       "Nothing has to be done. “Try again” does it sooner.",
	pb.MailStatus_MAIL_STATUS_HELD:           "“Release” lets it go, “Cancel” ends it.",
	pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT: "See below who has it. If an address is wrong, “Send once more” takes the right one. “Try again” sends only to those who have not got it.",
	pb.MailStatus_MAIL_STATUS_FAILED:         "Mend what the mail server complains of, then “Try again”. If an address is wrong, “Send once more” takes the right one.",
	pb.MailStatus_MAIL_STATUS_UNKNOWN:        "Ask the recipient, or look into the mail server's own log. Then “Say what became of it”. The service does not send it again by itself, so that nobody gets it twice.",
}

// sentence writes the words in capitals, which a terminal has instead of bold, as others.
func sentence(s string) string {
	words := strings.Fields(s)
	for i, w := range words {
		if len(w) > 1 && w == strings.ToUpper(w) {
			words[i] = strings.ToLower(w)
		}
	}
	s = strings.Join(words, " ")
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// rank orders recipients: unknown, refused, put off, pending, accepted.
func rank(s pb.RecipientResult_Status) int {
	return slices.Index([]pb.RecipientResult_Status{pb.RecipientResult_STATUS_UNKNOWN, pb.RecipientResult_STATUS_REJECTED, pb.RecipientResult_STATUS_DEFERRED, pb.RecipientResult_STATUS_PENDING, pb.RecipientResult_STATUS_ACCEPTED}, s)
}

// events are what happened to a mail, in order.
func events(m *pb.Mail, acts []*pb.AuditRow) []event {
	out := []event{{at: m.CreateTime.AsTime(), When: clock(m.CreateTime), What: "given to the service"}}
	for i, x := range m.Attempts {
		e := event{at: x.StartTime.AsTime(), When: clock(x.StartTime), What: "attempt " + strconv.Itoa(int(x.Number)) + " through " + x.MailServer + ": " + plain.Outcome(x.Outcome)}
		if i > 0 && x.Number > m.Attempts[i-1].Number+1 {
			e.What += " (" + strconv.Itoa(int(x.Number-m.Attempts[i-1].Number-1)) + " attempts before it are left out)"
		}
		if x.Outcome != "sent" {
			e.Reply = x.Detail
		}
		e.Bad = x.Outcome == "failed" || x.Outcome == "unknown"
		e.Good = x.Outcome == "sent"
		out = append(out, e)
	}
	for _, x := range acts {
		who := x.Actor
		if who == "" {
			who = "somebody (nobody was asked)"
		}
		out = append(out, event{at: x.Time.AsTime(), When: clock(x.Time), What: plain.Text(who, 120) + ": " + x.Action, Reply: x.Reason})
	}
	if m.FinishTime != nil {
		out = append(out, event{at: m.FinishTime.AsTime(), When: clock(m.FinishTime), What: "finished"})
	}
	slices.SortStableFunc(out, func(a, b event) int { return a.at.Compare(b.at) })
	if m.FinishTime == nil && m.DueTime != nil {
		out = append(out, event{When: clock(m.DueTime), What: "tried next"})
	}
	return out
}

package web

import (
	"net/url"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// queueBody is what the view of the queue shows.
type queueBody struct {
	Team    string
	Server  string
	Teams   []string
	Stats   *pb.GetQueueStatsResponse
	States  []state
	Lag     *durationpb.Duration // of those who watch; nil = none worth a word
	Waiting *chart
	Sent    *chart
	Charts  string // why there is none
	Servers []*pb.MailServer
	More    bool // mail servers than are shown
	Admin   bool
	Acts    []link
	// Attention is what somebody has to look at.
	Attention []link
}

// state is a count of mails in one state, and leads to them.
type state struct {
	Status pb.MailStatus
	Count  int64
}

// states are the counts that are worth a look, in the order of a mail's life.
func states(c *pb.MailCounts) []state {
	return []state{{pb.MailStatus_MAIL_STATUS_QUEUED, c.GetQueued()}, {pb.MailStatus_MAIL_STATUS_SENDING, c.GetSending()}, {pb.MailStatus_MAIL_STATUS_DEFERRED, c.GetDeferred()},
		{pb.MailStatus_MAIL_STATUS_HELD, c.GetHeld()}, {pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT, c.GetPartiallySent()}, {pb.MailStatus_MAIL_STATUS_UNKNOWN, c.GetUnknown()},
		{pb.MailStatus_MAIL_STATUS_FAILED, c.GetFailed()}}
}

// home leads to the first view that the person may see.
func home(v *view) error {
	if v.can(pb.Role_ROLE_READ) {
		return v.go_("/queue")
	}
	return v.go_("/mails")
}

// queue shows what waits, for how long, and how fast it goes.
func queue(v *view) error {
	q := v.r.URL.Query()
	b := queueBody{Team: q.Get("team"), Server: q.Get("server"), Teams: v.who.Teams}
	req := &pb.GetQueueStatsRequest{MailServer: b.Server}
	if b.Team == "" && !v.who.System && len(v.who.Teams) == 1 {
		b.Team = v.who.Teams[0]
	}
	if b.Team != "" {
		req.Team = &b.Team
	}
	var err error
	if b.Stats, err = v.dispatch().GetQueueStats(v.ctx(), req); err != nil {
		return err
	}
	b.States = states(b.Stats.Counts)
	b.Admin = v.can(pb.Role_ROLE_ADMIN)
	b.attend()
	if b.Stats.Waiting > 0 && b.Team == "" {
		b.Acts = v.links(url.Values{"name": {b.Server}}, "run")
	}
	if l := b.Stats.WatchLag; l.AsDuration() > 0 {
		b.Lag = l
	}
	list := &pb.ListMailServersRequest{PageSize: pageSize}
	if b.Team != "" {
		list.Team = &b.Team
	}
	servers, err := v.servers().ListMailServers(v.ctx(), list)
	if err != nil {
		return err
	}
	b.Servers, b.More = servers.MailServers, servers.NextPageToken != ""
	v.chart(&b)
	return v.render("queue", "Queue", b)
}

// attend names what does not go on without a person.
func (b *queueBody) attend() {
	for _, x := range []struct {
		status pb.MailStatus
		n      int64
		text   string
	}{
		{pb.MailStatus_MAIL_STATUS_UNKNOWN, b.Stats.Counts.GetUnknown(), "of unknown outcome: say what became of it"},
		{pb.MailStatus_MAIL_STATUS_FAILED, b.Stats.Counts.GetFailed(), "refused: see why"},
	} {
		if x.n > 0 {
			q := url.Values{"status": {plain.Word(x.status)}, "server": {b.Server}, "team": {b.Team}}
			b.Attention = append(b.Attention, link{Label: plural(x.n, "mail") + " " + x.text, Address: with("/mails", q)})
		}
	}
}

// chart draws the last hours. The samples are of whole teams or of everything, and only who may
// count those mails sees them.
func (v *view) chart(b *queueBody) {
	switch {
	case b.Server != "":
		b.Charts = "The charts are of all mail servers together."
		return
	case b.Team == "" && !v.who.System:
		b.Charts = "Choose a team to see its last hours."
		return
	case b.Team != "" && !v.who.System && !slices.Contains(v.who.Teams, b.Team):
		return // the counts were refused already
	}
	if !v.page.history.watch(b.Team, v.page.cfg.Now()) {
		b.Charts = "Too many teams are looked at to keep samples of this one."
		return
	}
	samples := v.page.history.of(b.Team)
	b.Waiting = draw("waiting", "Mails that wait", samples, func(s sample) int64 { return s.waiting })
	b.Sent = draw("sent", "Mails sent a minute", samples, func(s sample) int64 { return s.sent })
	if b.Waiting == nil {
		b.Charts = "The service counts every 30 seconds from its start on. There are too few yet: look again in a minute."
	}
}

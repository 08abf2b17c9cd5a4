package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// mail is one that the service has accepted.
type mail struct {
	to    []string
	since time.Time
	sent  bool // a caller was told so
}

// load is the callers of the service and the person who looks after it.
type load struct {
	replicas []*replica
	relay    *relay

	mu      sync.Mutex
	acked   map[string]*mail // by mail id
	doubled int              // request_ids that got two mails
	again   int              // calls that were made again after an error
	refused map[codes.Code]int
	given   int // mails that nobody ever accepted
	late    time.Duration
}

var teams = []string{"north", "south", "west"}

// configure makes a php-mode and a daemon-mode mail server for each team.
func (l *load) configure(ctx context.Context) error {
	l.refused = map[codes.Code]int{}
	for _, team := range teams {
		for _, mode := range []pb.Mode{pb.Mode_MODE_PHP, pb.Mode_MODE_DAEMON} {
			_, err := l.replicas[0].up().CreateMailServer(ctx, &pb.CreateMailServerRequest{MailServer: &pb.MailServer{
				Name: serverName(team, mode), Team: team, Type: pb.MailServer_TYPE_SMTP, Mode: mode, From: "Shop <shop@" + team + ".example>",
				Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(l.relay.server.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE}}})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func serverName(team string, mode pb.Mode) string {
	return team + map[pb.Mode]string{pb.Mode_MODE_PHP: "-now", pb.Mode_MODE_DAEMON: "-bulk"}[mode]
}

// run sends at the rate until ctx ends, and waits for the callers.
func (l *load) run(ctx context.Context, rate float64) {
	var wg sync.WaitGroup
	t := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			wg.Wait()
			return
		case <-t.C:
			wg.Go(func() { l.send(n) })
		}
	}
}

var kinds = []pb.Kind{pb.Kind_KIND_BULK, pb.Kind_KIND_BULK, pb.Kind_KIND_INVOICE, pb.Kind_KIND_AGENT_MESSAGE, pb.Kind_KIND_WORK_ORDER, pb.Kind_KIND_OTHER}

// patience is how long a caller tries to hand over one mail.
const patience = 3 * time.Minute

// send hands one mail over, as a caller should: again with the same request_id, at whatever
// replica is up, until it is accepted.
func (l *load) send(n int) {
	team, mode := teams[n%len(teams)], pb.Mode_MODE_DAEMON
	if n%2 == 0 {
		mode = pb.Mode_MODE_PHP
	}
	to := []string{fmt.Sprintf("a%d@y.example", n)}
	if n%3 == 0 {
		to = append(to, fmt.Sprintf("b%d@y.example", n))
	}
	r := &pb.SendRequest{RequestId: fmt.Sprintf("soak-%d", n), Options: &pb.SendOptions{Team: team, MailServer: serverName(team, mode), Kind: kinds[rand.IntN(len(kinds))]},
		Message: &pb.MailMessage{To: to, Subject: fmt.Sprintf("Nachricht 消息 %d", n), Text: "Guten Tag", Html: "<p>Guten Tag</p>"}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	id := ""
	for began := time.Now(); ctx.Err() == nil; {
		if c := l.replicas[rand.IntN(len(l.replicas))].up(); c != nil {
			got, err := l.try(ctx, c, r, to)
			l.mu.Lock()
			if id != "" && got != "" && id != got {
				l.doubled++
			}
			if err != nil {
				l.again++
				l.refused[status.Code(err)]++
			}
			l.mu.Unlock()
			if got != "" {
				id = got
			}
			if err == nil {
				l.mu.Lock()
				l.late = max(l.late, time.Since(began))
				l.mu.Unlock()
				return
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	if id == "" {
		l.mu.Lock()
		l.given++
		l.mu.Unlock()
	}
}

// try is one call. It returns the id of the mail as soon as that is accepted, also when the
// stream breaks afterwards.
func (l *load) try(ctx context.Context, c *client.Client, r *pb.SendRequest, to []string) (id string, err error) {
	stream, err := c.Send(ctx, r)
	for err == nil {
		var ev *pb.SendResponse
		if ev, err = stream.Recv(); err != nil {
			break
		}
		id = ev.MailId
		l.mu.Lock()
		m := l.acked[id]
		if m == nil {
			m = &mail{to: to, since: time.Now()}
			l.acked[id] = m
		}
		if done := ev.GetCompleted(); done != nil && done.Mail.Status == pb.MailStatus_MAIL_STATUS_SENT {
			m.sent = true
		}
		l.mu.Unlock()
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return id, err
}

// person does each minute what a person would: what failed is tried again, and what is unknown
// is sent again.
func (l *load) person(ctx context.Context) {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		c := l.replicas[len(l.replicas)-1].up()
		if c == nil {
			continue
		}
		// An error is a replica that is being replaced: the next minute does it.
		_, _ = c.RetryMails(ctx, &pb.RetryMailsRequest{Filter: &pb.MailFilter{Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_FAILED}}, Reason: "soak"})
		due, err := c.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{PageSize: 500, Filter: &pb.MailFilter{Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_UNKNOWN}}})
		if err != nil {
			continue
		}
		for _, m := range due.Mails {
			// it may have changed meanwhile
			_, _ = c.ResolveMail(ctx, &pb.ResolveMailRequest{Id: m.Id, Resolution: pb.Resolution_RESOLUTION_RESEND, Reason: "soak"})
		}
	}
}

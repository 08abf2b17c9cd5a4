package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestDemoKeep: with --keep the service stays up behind its last step, says where it is, shows
// what is sent through it, and ends in peace when it is told to.
func TestDemoKeep(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := runDemo(ctx, w, []string{"--keep"})
		_ = w.CloseWithError(err)
		done <- err
	}()
	lines := bufio.NewScanner(r)
	until := func(want string) []string {
		t.Helper()
		var seen []string
		for lines.Scan() {
			if seen = append(seen, lines.Text()); strings.Contains(lines.Text(), want) {
				return seen
			}
		}
		t.Fatalf("it ended (%v) without %q:\n%s", lines.Err(), want, strings.Join(seen, "\n"))
		return nil
	}
	if steps := until("stays up"); !strings.Contains(strings.Join(steps, "\n"), "| Subject: Invoice 4711 / 发票 4711\n") {
		t.Errorf("no mail is shown as its reader sees it:\n%s", strings.Join(steps, "\n"))
	}
	addr := regexp.MustCompile(`--address (\S+) why`).FindStringSubmatch(until(" why INV-4711")[1])
	conn, err := grpc.NewClient(addr[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	seen := until("in a browser: ")
	_, page, _ := strings.Cut(seen[len(seen)-1], "in a browser: ")
	res, err := http.Get(page)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), "<h1>Queue</h1>") {
		t.Errorf("the page at %s: got %d %s, %v", page, res.StatusCode, b, err)
	}
	sent := make(chan error, 1)
	go func() { // what it shows is read meanwhile
		_, err := pb.NewDispatchClient(conn).SendMail(ctx, &pb.SendMailRequest{Options: &pb.SendOptions{Team: "finance"},
			Message: &pb.MailMessage{To: []string{"you@example.com"}, Subject: "Hello", Text: "The first mail"}})
		sent <- err
	}()
	until("took a mail for you@example.com:")
	until("   | The first mail")
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	cancel()
	until("which is gone now")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

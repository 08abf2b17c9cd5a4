package client_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// A program has one client for its whole life. The zero Options reach a service on this
// machine.
func Example() {
	c, err := client.New("localhost:50051", client.Options{UserAgent: "invoicing"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Println(c.Conn().Target())
	// Output: localhost:50051
}

// A remote service is reached with TLS and the system's roots; the token is shown once by
// `maildispatchd token create`.
func ExampleNew() {
	c, err := client.New("dns:///mail.internal:50051", client.Options{Token: "t0ken"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	_, err = client.New("mail.internal:50051", client.Options{Token: "t0ken", Insecure: true})
	fmt.Println(err)
	// Output: maildispatch: a token may not travel to mail.internal:50051 in plaintext
}

// An invoice is sent while the caller waits. That one recipient was refused is a result, not an
// error.
func ExampleClient_Deliver() {
	srv := clienttest.Start()
	defer srv.Close()
	srv.Answer("left@example.com", clienttest.Refused)
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	res, err := c.Deliver(context.Background(), &maildispatchv1.SendRequest{
		RequestId: "invoice-4711", // called again with it, there is still one mail
		Options:   &maildispatchv1.SendOptions{Kind: maildispatchv1.Kind_KIND_INVOICE, Reference: "4711"},
		Message: &maildispatchv1.MailMessage{
			To:      []string{"Anna Müller <anna@example.com>"},
			Cc:      []string{"left@example.com"},
			Subject: "Invoice 4711",
			Text:    "Please find the invoice attached.",
			Attachments: []*maildispatchv1.Attachment{
				{Filename: "invoice-4711.pdf", Content: []byte("%PDF-1.7 ...")},
			},
		},
	})
	if err != nil {
		// the call failed; res.RequestID and perhaps res.MailID say how to find out what became
		// of the mail
		log.Fatal(err)
	}
	fmt.Println("through", res.Accepted.GetMailServer()+":", res.Mail.GetStatus())
	for _, r := range res.NotAccepted() {
		fmt.Println(r.GetAddress(), r.GetStatus(), r.GetSmtpCode(), r.GetEnhancedCode(), r.GetDetail())
	}
	// Output:
	// through test: MAIL_STATUS_PARTIALLY_SENT
	// left@example.com STATUS_REJECTED 550 5.1.1 no such user
}

// A person who watches a mail leave wants the events as they come.
func ExampleClient_Follow() {
	srv := clienttest.Start()
	defer srv.Close()
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	req := &maildispatchv1.SendRequest{Message: &maildispatchv1.MailMessage{To: []string{"anna@example.com", "ben@example.com"}, Subject: "Hello"}}
	for e, err := range c.Follow(context.Background(), req) {
		if err != nil {
			log.Fatal(err)
		}
		switch e := e.GetEvent().(type) {
		case *maildispatchv1.SendResponse_Accepted_:
			fmt.Println("taken:", e.Accepted.GetRouteDetail())
		case *maildispatchv1.SendResponse_Attempt:
			fmt.Println("attempt", e.Attempt.GetNumber())
		case *maildispatchv1.SendResponse_Recipient:
			fmt.Println(e.Recipient.GetAddress(), e.Recipient.GetSmtpCode())
		case *maildispatchv1.SendResponse_Completed_:
			fmt.Println("completed:", e.Completed.GetMail().GetStatus())
		}
	}
	// Output:
	// taken: "test" is the default of the system
	// attempt 1
	// anna@example.com 250
	// ben@example.com 250
	// completed: MAIL_STATUS_SENT
}

// A newsletter, of which each item's answer is heard as it comes. The window bounds what is
// kept in memory, and a broken connection is mended on the way.
func ExampleClient_Bulk() {
	srv := clienttest.Start()
	defer srv.Close()
	srv.AddMailServer(&maildispatchv1.MailServer{Name: "bulk", Mode: maildispatchv1.Mode_MODE_DAEMON})
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	b := c.Bulk(context.Background(), &maildispatchv1.BatchOptions{
		BatchId: "spring-2026",
		Options: &maildispatchv1.SendOptions{MailServer: "bulk"},
		Message: &maildispatchv1.MailMessage{Subject: "News for {{name}}", Html: "<p>Dear {{name}}, ...</p>"},
	}, client.BulkOptions{Answer: func(item *maildispatchv1.BatchItem, a *maildispatchv1.SendStreamResponse) {
		if r := a.GetRejection(); r != nil {
			fmt.Println(item.GetMessage().GetTo(), r.GetViolations()[0].GetField(), r.GetViolations()[0].GetDescription())
			return
		}
		fmt.Println(item.GetMessage().GetTo(), a.GetStatus())
	}})
	for _, name := range []string{"Anna", "王伟", ""} {
		item := &maildispatchv1.BatchItem{Message: &maildispatchv1.MailMessage{To: []string{name + " <a@example.com>"}}, Variables: map[string]string{"name": name}}
		if name == "" {
			item.Variables = nil
		}
		if err := b.Add(item); err != nil {
			log.Fatal(err)
		}
	}
	sum, err := b.Close()
	if err != nil {
		log.Fatal(err) // b.Unanswered() is what may not have been taken
	}
	fmt.Println(sum.GetBatchId()+":", sum.GetAccepted(), "accepted,", sum.GetRejected(), "rejected")
	// Output:
	// [Anna <a@example.com>] MAIL_STATUS_QUEUED
	// [王伟 <a@example.com>] MAIL_STATUS_QUEUED
	// [ <a@example.com>] variables.name is missing: the message uses it
	// spring-2026: 2 accepted, 1 rejected
}

// One price list for many customers: uploaded once, stored once, sent with one call.
func ExampleClient_SendAll() {
	srv := clienttest.Start()
	defer srv.Close()
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()

	file, err := c.Upload(ctx, &maildispatchv1.UploadAttachmentRequest_Header{Filename: "prices.pdf"}, strings.NewReader("%PDF-1.7 ..."))
	if err != nil {
		log.Fatal(err)
	}
	customers := []string{"anna@example.com", "ben@example.com", "chen@example.com"}
	sum, err := c.SendAll(ctx, &maildispatchv1.BatchOptions{
		Message: &maildispatchv1.MailMessage{Subject: "Prices", Text: "Please find them attached.", Attachments: []*maildispatchv1.Attachment{{UploadId: file.GetUploadId()}}},
	}, func(yield func(*maildispatchv1.BatchItem) bool) {
		for _, to := range customers {
			if !yield(&maildispatchv1.BatchItem{Message: &maildispatchv1.MailMessage{To: []string{to}}}) {
				return
			}
		}
	})
	if err != nil {
		log.Fatal(err)
	}
	srv.RunBatch() // the service does it every minute
	batch, err := c.GetBatch(ctx, &maildispatchv1.GetBatchRequest{BatchId: sum.GetBatchId()})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sum.GetAccepted(), "accepted,", batch.GetBatch().GetCounts().GetSent(), "sent")
	// Output: 3 accepted, 3 sent
}

// Everything of one team that a person has to look at, whatever number of pages it takes.
func ExampleClient_DueOutMails() {
	srv := clienttest.Start()
	defer srv.Close()
	srv.Answer("left@example.com", clienttest.Refused)
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	for _, to := range []string{"left@example.com", "anna@example.com"} {
		if _, err := c.Deliver(ctx, &maildispatchv1.SendRequest{
			Options: &maildispatchv1.SendOptions{Team: "billing"},
			Message: &maildispatchv1.MailMessage{To: []string{to}, Subject: "For " + to},
		}); err != nil {
			log.Fatal(err)
		}
	}

	team := "billing"
	for m, err := range c.DueOutMails(ctx, &maildispatchv1.ListDueOutMailsRequest{Filter: &maildispatchv1.MailFilter{Team: &team}}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %q %s\n", m.GetStatus(), m.GetSubject(), m.GetLastError())
	}
	// Output:
	// MAIL_STATUS_FAILED "For left@example.com" left@example.com: 550 5.1.1 no such user
}

func ExampleClient_Download() {
	srv := clienttest.Start()
	defer srv.Close()
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	res, err := c.Deliver(ctx, &maildispatchv1.SendRequest{Message: &maildispatchv1.MailMessage{To: []string{"anna@example.com"}, Subject: "Hello", Text: "How are you?"}})
	if err != nil {
		log.Fatal(err)
	}

	var raw bytes.Buffer
	if _, err := c.Download(ctx, res.MailID, &raw); err != nil {
		log.Fatal(err)
	}
	for line := range strings.SplitSeq(raw.String(), "\r\n") {
		if strings.HasPrefix(line, "Subject:") || strings.HasPrefix(line, "How") {
			fmt.Println(line)
		}
	}
	// Output:
	// Subject: Hello
	// How are you?
}

// What failed is read from the reason, never from the text.
func ExampleReasonOf() {
	srv := clienttest.Start()
	defer srv.Close()
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	_, err = c.Deliver(context.Background(), &maildispatchv1.SendRequest{
		Options: &maildispatchv1.SendOptions{MailServer: "newsletter"},
		Message: &maildispatchv1.MailMessage{To: []string{"anna@example.com"}},
	})
	switch client.ReasonOf(err) {
	case maildispatchv1.ReasonMailServerNotFound:
		fmt.Println("create the mail server first")
	case maildispatchv1.ReasonMailServerUnavailable:
		fmt.Println("ask the administrator")
	}
	// Output: create the mail server first
}

// A form shows every mistake beside its field.
func ExampleViolations() {
	srv := clienttest.Start()
	defer srv.Close()
	c, err := srv.Connect(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	_, err = c.Deliver(context.Background(), &maildispatchv1.SendRequest{
		Message: &maildispatchv1.MailMessage{To: []string{"anna@example.com", "nonsense"}, Cc: []string{"@"}},
	})
	for _, v := range client.Violations(err) {
		fmt.Println(v.Field, v.Description)
	}
	// Output:
	// message.to[1] is not an address
	// message.cc[0] is not an address
}

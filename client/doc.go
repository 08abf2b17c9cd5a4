// Package client is maildispatch for callers written in Go.
//
//	c, err := client.New("mail.internal:50051", client.Options{TokenFile: "/run/secrets/mail"})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	r, err := c.Deliver(ctx, &maildispatchv1.SendRequest{
//		RequestId: "invoice-3", // sent again, it is still one mail
//		Options:   &maildispatchv1.SendOptions{Kind: maildispatchv1.Kind_KIND_INVOICE, Reference: "INV-3"},
//		Message:   &maildispatchv1.MailMessage{To: []string{"ann@example.com"}, Subject: "Invoice 3", Text: "Dear Ann, ..."},
//	})
//	if err != nil {
//		return err // client.Temporary(err): call again with the same RequestId
//	}
//	if !r.Sent() {
//		log.Println(r.MailID, r.Refused(), r.Unknown(), r.WillRetry())
//	}
//
// New gives a Client: both generated stubs, embedded, and a few helpers where a bare stub is
// tedious.
//
//	Deliver     sends one mail and folds the stream of Send into one Result
//	Follow      the same, event by event
//	Bulk        sends any number of mails over SendStream, with an answer for each; goes on after a broken connection
//	SendAll     sends a slice or sequence of mails over SendBatch, with one summary
//	Upload      takes a file from an io.Reader once, for any number of mails
//	Watch       yields every change of the mails that a filter takes; goes on after a broken connection
//	Download    writes the raw message of a mail to an io.Writer
//	DueOutMails, ArchivedMails, MailServers   iterate over all pages of a listing
//	ReasonOf, Violations, RetryAfter, Temporary   read what an error says
//
// # What it promises
//
// A call is repeated by itself only where that is safe, and only on UNAVAILABLE (the helpers
// also on RESOURCE_EXHAUSTED with RetryInfo, after the time that it asks for): reads, and the
// calls that create something, because every one of those leaves with a request_id (an empty
// one is filled in, in a copy of the request). Such a call may be made any number of times and
// creates one thing. service_config.json, generated from the schema, lists them; everything
// else fails at once. Bulk, SendAll and Upload repeat their streams in the same way, which the
// bare stubs do not.
//
// A mail that was not delivered is not an error. Send answers OK whatever the mail server said;
// look at Result.Sent or at the recipients. An error says that the call failed. After an error
// of Deliver the mail may have been taken all the same: call again with Result.RequestID in the
// request, which attaches to the same mail, or read it with GetMail when Result.MailID is
// known.
//
// Every unary call and every helper has a deadline, from Options when the context has none.
//
// # What it does not do
//
// It keeps no queue and no copy of a mail, but for a Bulk's items that wait for their answers:
// what is not accepted is the caller's. It imports the schema and grpc, nothing else of
// maildispatch. Tests of programs that use it need no service: see package clienttest.
package client

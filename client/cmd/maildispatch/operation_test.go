package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestManyMails: an act on more than 1000 mails goes on in the service. The command waits for
// it and tells what it came to, and the operation can be listed, shown and watched afterwards.
func TestManyMails(t *testing.T) {
	r := newRig(t)
	const n = 1100
	r.bulk("news", n)
	held := func() int64 {
		res, err := r.c.GetBatch(context.Background(), &maildispatchv1.GetBatchRequest{BatchId: "news"})
		if err != nil {
			t.Fatal(err)
		}
		return res.Batch.Counts.Held
	}
	if out := r.done("batch", "stop", "news", "--reason", "typo", "--yes"); !strings.Contains(out, "1100 mails held.") || held() != n {
		t.Errorf("batch stop: %d are held\n%s", held(), out)
	}
	if out := r.done("release", "--batch", "news", "--yes"); !strings.Contains(out, "1100 mails released.") || held() != 0 {
		t.Errorf("release: %d are held\n%s", held(), out)
	}
	list := r.done("operation", "list")
	if !strings.Contains(list, "ReleaseMails") || !strings.Contains(list, "1100") || !strings.Contains(list, "typo") {
		t.Errorf("list:\n%s", list)
	}
	if out := r.done("operation", "list", "--running"); strings.Contains(out, "Mails") {
		t.Errorf("list of those that go on:\n%s", out)
	}
	id := strings.Fields(list)[7] // the first one below the seven names of columns
	for _, what := range []string{"show", "watch"} {
		if out := r.done("operation", what, id); !strings.Contains(out, "ReleaseMails is done: 1100 mails came to, 1100 changed, 0 could not be.") {
			t.Errorf("%s:\n%s", what, out)
		}
	}
	// one that has ended stays as it is
	if out := r.done("operation", "stop", id, "--yes"); !strings.Contains(out, "ReleaseMails is done") {
		t.Errorf("stop:\n%s", out)
	}
	if code, _, errs := r.run(context.Background(), "", "operation", "show", "01980000-0000-7000-8000-000000000001"); code != exitRefused || !strings.Contains(errs, "OPERATION_NOT_FOUND") {
		t.Errorf("none: got %d, %s", code, errs)
	}
}

// TestBar: how far a call is stands in one line of standard error, and the line is gone at the
// end. Where that is no terminal, nothing is drawn.
func TestBar(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	a := &app{out: &out, errs: &errs, drawn: true}
	asked := make(chan struct{}, 1)
	b := a.bar(200, func() string {
		select {
		case asked <- struct{}{}:
		default:
		}
		return ", 3 refused"
	})
	b.at(50)
	<-asked // it is drawn
	<-asked
	b.end()
	for _, part := range []string{"[######..................]", "50/200, 3 refused, ", "/s, ", " left"} {
		if !strings.Contains(errs.String(), part) {
			t.Errorf("got %q, want %q in it", errs.String(), part)
		}
	}
	if out.Len() > 0 {
		t.Errorf("standard output got %q", out.String())
	}
	for _, quiet := range []*app{{errs: &errs}, {errs: &errs, drawn: true, json: true}, {errs: &errs, drawn: true, grpcurl: true}} {
		errs.Reset()
		b := quiet.bar(200, nil)
		b.at(50)
		b.end()
		if errs.Len() > 0 {
			t.Errorf("drawn: %q", errs.String())
		}
	}
}

package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
	"github.com/maildispatch/maildispatch/store"
)

const (
	// recordTimeout bounds the look for a DNS record, within the time of the test.
	recordTimeout = 5 * time.Second
	maxRecords    = 5   // that a report shows
	maxRecord     = 500 // octets of each
)

// LookupTXT asks DNS for the TXT records of a name.
type LookupTXT func(ctx context.Context, name string) ([]string, error)

// recordStep looks whether the DNS record of s's key is what it should be. It never fails a
// test: mail leaves without it.
func (a *API) recordStep(ctx context.Context, s *store.MailServer) *pb.TestStep {
	d := s.DKIM
	name := dkim.RecordName(d.Domain, d.Selector)
	step := &pb.TestStep{Kind: pb.TestStep_KIND_DKIM, Outcome: pb.TestStep_OUTCOME_SKIPPED, Facts: map[string]string{"dns_name": name}}
	if d.PublicKey == "" {
		step.Detail, step.Hint = "there is no key yet", "save the mail server, which makes one, or give dkim.private_key"
		return step
	}
	want := dkim.Record(d.PublicKey)
	step.Facts["dns_value"] = want
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	begin := time.Now()
	// the dot at the end: no search list of this machine is gone through
	records, err := a.LookupTXT(ctx, name+".")
	step.Elapsed = durationpb.New(time.Since(begin))
	var no *net.DNSError
	if err != nil && !(errors.As(err, &no) && no.IsNotFound) {
		step.Detail = "cannot be seen from here: " + smtpx.Clean(err.Error(), maxRecord)
		step.Hint = fmt.Sprintf("look from elsewhere: %s has to have the TXT record %q", name, want)
		return step
	}
	for i, r := range records[:min(len(records), maxRecords)] {
		step.Facts[fmt.Sprintf("found_%d", i+1)] = smtpx.Clean(r, maxRecord)
	}
	wrong, missing := dkim.Compare(records, d.PublicKey)
	switch {
	case missing:
		step.Outcome, step.Detail = pb.TestStep_OUTCOME_WARNING, "missing: "+wrong
		step.Hint = fmt.Sprintf("publish the TXT record %s with the text %q; receivers take the mail for unsigned until then", name, want)
	case wrong != "":
		step.Outcome, step.Detail = pb.TestStep_OUTCOME_WARNING, "differs: "+wrong
		step.Hint = fmt.Sprintf("change the TXT record %s to %q, or choose another selector", name, want)
	case !aligned(d.Domain, s.From):
		step.Outcome, step.Detail = pb.TestStep_OUTCOME_WARNING, "found, but the domain is not that of from"
		step.Hint = "receivers that go by DMARC do not count the signature: sign for the domain of from, or one above it"
	default:
		step.Outcome, step.Detail = pb.TestStep_OUTCOME_OK, "found"
	}
	return step
}

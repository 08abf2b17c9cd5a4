package smtpx_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	mail "github.com/xhit/go-simple-mail/v2"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

const benchConns = 32

func cpu() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

func fiveKB() []byte {
	return []byte("From: a@x.example\r\nTo: b@y.example\r\nSubject: s\r\nMessage-ID: <1@x.example>\r\n\r\n" + strings.Repeat(strings.Repeat("x", 74)+"\r\n", 66))
}

// benchmark runs b.N mails over 32 connections to a sink in this process; the CPU figure is of
// both ends.
func benchmark(b *testing.B, open func(port int) (send func() error, done func())) {
	sink := &smtpxtest.Sink{}
	if err := sink.Start(); err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	sends, dones := make([]func() error, benchConns), make([]func(), benchConns)
	for i := range benchConns {
		sends[i], dones[i] = open(sink.Port())
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	before := cpu()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range benchConns {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := sends[i](); err != nil {
					b.Error(err)
					return
				}
			}
			dones[i]()
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
	b.ReportMetric((cpu()-before)*1e6/float64(b.N), "cpu-us/mail")
	if sink.Mails() != b.N {
		b.Fatalf("the sink counted %d of %d", sink.Mails(), b.N)
	}
}

func session(b *testing.B, port int) *smtpx.Session {
	s, err := new(smtpx.Dialer).Dial(context.Background(), smtpx.Relay{Host: "127.0.0.1", Port: port, Encryption: smtpx.EncryptionNone})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkSessionOneRoundTrip is the session as a batch uses it.
func BenchmarkSessionOneRoundTrip(b *testing.B) {
	raw := fiveKB()
	benchmark(b, func(port int) (func() error, func()) {
		s := session(b, port)
		return func() error {
				return s.Submit(context.Background(), &smtpx.Transaction{From: "a@x.example", To: []string{"b@y.example"}, Raw: raw,
					Done: func(o smtpx.Outcome) {
						if o.Recipients[0].Status != smtpx.StatusAccepted {
							b.Error(o.Err)
						}
					}})
			}, func() {
				if err := s.Flush(context.Background()); err != nil {
					b.Error(err)
				}
				_ = s.Close()
			}
	})
}

// BenchmarkSessionTwoRoundTrips is the session as php mode uses it: one mail at a time.
func BenchmarkSessionTwoRoundTrips(b *testing.B) {
	raw := fiveKB()
	benchmark(b, func(port int) (func() error, func()) {
		s := session(b, port)
		return func() error {
			if o := s.Send(context.Background(), &smtpx.Transaction{From: "a@x.example", To: []string{"b@y.example"}, Raw: raw}); o.Err != nil {
				return o.Err
			}
			return nil
		}, func() { _ = s.Close() }
	})
}

// BenchmarkLibraryBare is the mail library without the session, at its best: ready bytes, kept
// connection, no timeouts.
func BenchmarkLibraryBare(b *testing.B) {
	raw := string(fiveKB())
	benchmark(b, func(port int) (func() error, func()) {
		srv := mail.NewSMTPClient()
		srv.Host, srv.Port, srv.KeepAlive, srv.SendTimeout, srv.Encryption = "127.0.0.1", port, true, 0, mail.EncryptionNone
		c, err := srv.Connect()
		if err != nil {
			b.Fatal(err)
		}
		return func() error { return mail.SendMessage("a@x.example", []string{"b@y.example"}, raw, c) }, func() { _ = c.Close() }
	})
}

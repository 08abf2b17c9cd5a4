package web

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/maildispatch/maildispatch/proto/plain"
)

// timed is a service that says how much time a download has.
type timed struct {
	hostile
	left *time.Duration
}

func (s timed) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, o ...grpc.CallOption) (grpc.ClientStream, error) {
	if at, ok := ctx.Deadline(); ok {
		*s.left = time.Until(at)
	}
	return s.hostile.NewStream(ctx, d, method, o...)
}

func newPage(t *testing.T, calls grpc.ClientConnInterface) *Page {
	t.Helper()
	p, err := New(Config{Calls: calls, Samples: calls, Asks: func() bool { return false }, Named: func(string) bool { return false }, Loopback: true,
		Target: func(string, string) plain.Target { return plain.Target{Address: "127.0.0.1:1", Plaintext: true} }})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDownloadTime: a large mail on a slow line has more time than a view.
func TestDownloadTime(t *testing.T) {
	t.Parallel()
	var left time.Duration
	p := newPage(t, timed{hostile{text: "x"}, &left})
	for path, want := range map[string]time.Duration{"/mails/x/raw": downloadTime, "/mails/x/message": viewTime} {
		p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://127.0.0.1"+path, nil))
		if left > want || left < want-time.Minute/3 {
			t.Errorf("%s: got %v, want about %v", path, left, want)
		}
	}
}

// TestReading: so many messages are in memory at once. Another person waits, and is told.
func TestReading(t *testing.T) {
	t.Parallel()
	p := newPage(t, hostile{text: "x"})
	ask := func(path string) *httptest.ResponseRecorder {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1"+path, nil).WithContext(ctx))
		return w
	}
	paths := []string{"/mails/x/message", "/mails/x/parts/1"}
	for _, path := range paths {
		for range maxReading + 1 {
			if w := ask(path); w.Code != http.StatusOK {
				t.Fatalf("%s: got %d %s", path, w.Code, w.Body)
			}
		}
	}
	for range maxReading {
		p.reading <- struct{}{}
	}
	for _, path := range paths {
		if w := ask(path); w.Code != http.StatusTooManyRequests || !strings.Contains(w.Body.String(), "large messages") {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
}

// counting counts what is read of it.
type counting struct{ n int64 }

func (c *counting) Read(b []byte) (int, error) {
	c.n += int64(len(b))
	if c.n > 64<<20 {
		return 0, io.EOF
	}
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// TestLargeForm: of a form of 64 MiB no more is read than a form may have, and the person is
// told what is wrong with it.
func TestLargeForm(t *testing.T) {
	t.Parallel()
	p := newPage(t, hostile{text: "x"})
	for _, path := range []string{"/act", "/login", "/token", "/server/save", "/server/test", "/logout"} {
		for _, typ := range []string{"application/x-www-form-urlencoded", "multipart/form-data; boundary=b"} {
			body := &counting{}
			q := httptest.NewRequest("POST", "http://127.0.0.1"+path, body)
			q.Header.Set("Content-Type", typ)
			w := httptest.NewRecorder()
			p.ServeHTTP(w, q)
			want := http.StatusRequestEntityTooLarge
			if strings.HasPrefix(typ, "multipart") {
				want = http.StatusForbidden // it is not read at all
			}
			if w.Code != want || body.n > 2*maxForm {
				t.Errorf("%s %s: got %d, %d octets read, want %d", path, typ, w.Code, body.n, want)
			}
		}
	}
}

// TestDisarm: no element is left by which a mail without scripts speaks to others.
func TestDisarm(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`<link rel=preconnect href=http://evil.example>`:           `<x-link rel=preconnect href=http://evil.example>`,
		`<LiNk/rel=dns-prefetch href=//evil.example><b>x</b>`:      `<x-LiNk/rel=dns-prefetch href=//evil.example><b>x</b>`,
		`<meta http-equiv=refresh content="0;url=//evil.example">`: `<x-meta http-equiv=refresh content="0;url=//evil.example">`,
		`<noscript><base href=//evil.example></noscript></base>`:   `<noscript><x-base href=//evil.example></noscript></x-base>`,
		`<svg><link></svg><p title="<link">1 < 2</p>`:              `<svg><x-link></svg><p title="<x-link">1 < 2</p>`,
	} {
		if got := string(disarm([]byte(in))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

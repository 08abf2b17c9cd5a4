//go:build browser

package web_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestBrowser does in Chromium what a person does: it adds a mail server, tries it, sees why
// that fails, mends it, finds a mail, reads its story and cancels it with a reason. Views are
// held against WCAG AA by axe-core, narrow and wide, light and dark: some of them, and every
// one with MAILDISPATCH_TEST_FULL=1.
//
// A mail's content tries to reach a listener by all that HTML has, and must not.
//
// MAILDISPATCH_TEST_AXE is the path of axe.min.js. Pictures go to MAILDISPATCH_TEST_SHOTS where
// it is set.
func TestBrowser(t *testing.T) {
	axe, err := os.ReadFile(os.Getenv("MAILDISPATCH_TEST_AXE"))
	if err != nil {
		t.Fatalf("MAILDISPATCH_TEST_AXE: %v; npm install axe-core, and give node_modules/axe-core/axe.min.js", err)
	}
	r := newRig(t)
	r.server("later", pb.Mode_MODE_DAEMON)
	r.server("main", pb.Mode_MODE_PHP)
	refused := r.mail("main", "INV-1", pb.Kind_KIND_INVOICE, "nobody@shop.example", "ann@shop.example")
	r.mail("later", "WO-1", pb.Kind_KIND_WORK_ORDER, "bob@other.example")
	unknown := r.mail("main", "INV-3", pb.Kind_KIND_INVOICE, "silent@shop.example")
	r.batch("news", "later", 7)

	alloc, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()))...)
	defer stop()
	tab, end := chromedp.NewContext(alloc)
	defer end()
	tab, cancel := context.WithTimeout(tab, 8*time.Minute)
	defer cancel()
	b := &chrome{T: t, rig: r, tab: tab, axe: string(axe), full: os.Getenv("MAILDISPATCH_TEST_FULL") == "1"}
	chromedp.ListenTarget(tab, func(ev any) {
		if q, is := ev.(*network.EventRequestWillBeSent); is {
			b.mu.Lock()
			b.asked = append(b.asked, q.Request.URL)
			b.mu.Unlock()
		}
	})
	b.run(network.Enable())

	b.open("/queue")
	b.look("queue")
	b.click(`//a[text()="Mail servers"]`)
	b.look("servers")
	b.click(`//a[text()="Add a mail server"]`)
	b.fill("name", "shop")
	b.fill("from", "Shop <shop@x.example>")
	b.fill("smtp.host", "127.0.0.1")
	b.fill("smtp.port", "1")
	b.choose("smtp.encryption", "none")
	b.choose("mode", "php")
	b.look("add")
	b.click(`//button[text()="Test without saving"]`)
	b.says("failed", "connection refused")
	b.look("test-failed")
	if hint := b.text(".steps .note.warn"); hint == "" {
		t.Error("a test that fails gives no hint")
	}
	b.fill("smtp.port", r.port())
	b.click(`//button[text()="Save"]`)
	b.says("The mail server is saved")
	b.look("server")
	b.click(`//button[text()="Test"]`)
	b.says("connect success!", "greeting")
	b.look("test-success")

	b.click(`//a[text()="Mails"]`)
	b.look("mails")
	b.fill("q", "WO-1")
	b.click(`//button[text()="Find"]`)
	b.says("WO-1")
	b.click(`//td/a[contains(., "WO-1")]`)
	b.says("Waits for its first attempt", "given to the service")
	b.look("mail-waits")
	b.click(`//a[text()="Cancel"]`)
	b.says("1 mail would be cancelled")
	b.look("act")
	b.fill("reason", "the customer has cancelled")
	b.run(chromedp.Click(`//input[@name="confirm"]`, chromedp.BySearch))
	b.click(`//button[text()="Cancel 1 mail"]`)
	b.says("Cancelled. 1 mail.", "CANCELLED", "the customer has cancelled")

	b.open("/mails/" + refused.Id)
	b.says("Delivered to some", "no such mailbox")
	b.look("mail")
	b.click(`//a[text()="Message and parts"]`)
	b.look("message")
	b.askedNobodyElse()
	b.reachNobody()
	if b.full {
		for path, name := range map[string]string{"/batches": "batches", "/batch?id=news": "batch", "/audit": "audit", "/act?do=resolve&id=" + unknown.Id: "resolve", "/mails/nonsense": "fault",
			"/mails?kind=invoice&journal=due-out": "mails-fields", "/operations": "operations", "/tokens": "tokens", "/token": "token", "/holds": "holds", "/service": "service", "/move?id=" + refused.Id: "move",
			"/act?do=pause&name=main": "pause", "/mails?q=nothing-has-this": "mails-none"} {
			b.open(path)
			b.look(name)
		}
	}
	r.token, _ = r.secret("ops")
	b.open("/queue")
	b.says("Sign in")
	b.look("login")
	b.fill("token", r.token)
	b.click(`//button[text()="Sign in"]`)
	b.says("ops", "Queue")

	b.askedNobodyElse()
}

// askedNobodyElse: so far the browser has asked for nothing from other hosts. It forgets what
// was asked for.
func (b *chrome) askedNobodyElse() {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range b.asked {
		if !strings.HasPrefix(u, b.rig.url+"/") {
			b.Errorf("the browser asked for %s", u)
		}
	}
	b.asked = nil
}

// chrome is a tab.
type chrome struct {
	*testing.T
	rig *rig
	tab context.Context
	axe string
	// full: every view is looked at, else the few of fewViews.
	full bool

	mu    sync.Mutex // guards asked
	asked []string   // addresses that the browser asked for
}

func (b *chrome) run(a ...chromedp.Action) {
	b.Helper()
	if err := chromedp.Run(b.tab, a...); err != nil {
		b.Fatal(err)
	}
}

func (b *chrome) open(path string) {
	b.Helper()
	if _, err := chromedp.RunResponse(b.tab, chromedp.Navigate(b.rig.url+path)); err != nil {
		b.Fatalf("%s: %v", path, err)
	}
}

// click follows a link or sends a form.
func (b *chrome) click(xpath string) {
	b.Helper()
	if _, err := chromedp.RunResponse(b.tab, chromedp.Click(xpath, chromedp.BySearch)); err != nil {
		b.Fatalf("%s: %v\n%s", xpath, err, b.text("main"))
	}
}

func (b *chrome) fill(name, value string) {
	b.Helper()
	b.run(chromedp.Evaluate(fmt.Sprintf("document.querySelector('[name=%q]').value = ''", name), nil), chromedp.SendKeys(fmt.Sprintf("[name=%q]", name), value, chromedp.ByQuery))
}

func (b *chrome) choose(name, value string) {
	b.Helper()
	b.run(chromedp.SetValue(fmt.Sprintf("select[name=%q]", name), value, chromedp.ByQuery))
}

func (b *chrome) text(selector string) (s string) {
	b.Helper()
	b.run(chromedp.Evaluate(fmt.Sprintf("(document.querySelector(%q) || {innerText: ''}).innerText", selector), &s))
	return s
}

func (b *chrome) says(parts ...string) {
	b.Helper()
	for _, p := range parts {
		if got := b.text("body"); !strings.Contains(strings.ToLower(got), strings.ToLower(p)) {
			b.Fatalf("got\n%s\nwant %q in it", got, p)
		}
	}
}

// fewViews are looked at in every run.
var fewViews = []string{"queue", "test-failed", "mails", "mail", "act"}

// reachNobody shows a mail whose content tries to reach a listener of ours.
func (b *chrome) reachNobody() {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	reached := make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(reached)
				return
			}
			// a preconnect sends nothing
			_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
			line, _ := bufio.NewReader(c).ReadString('\n')
			_ = c.Close()
			reached <- line
		}
	}()
	to := "http://" + l.Addr().String()
	content := strings.ReplaceAll(`<link rel=preconnect href=X/preconnect><link rel=dns-prefetch href=X><link rel=stylesheet href=X/sheet><link rel=prefetch href=X/prefetch><link rel=icon href=X/icon>
<meta http-equiv=refresh content="0;url=X/refresh"><base href=X/base/><script src=X/script></script><script>location="X/run"</script><img src=X/img onerror="fetch('X/onerror')"><iframe src=X/iframe></iframe>
<object data=X/object></object><embed src=X/embed><video poster=X/poster src=X/video autoplay></video><audio src=X/audio autoplay></audio><input type=image src=X/input autofocus onfocus="location='X/focus'">
<style>@import "X/import";@font-face{font-family:x;src:url(X/font)}body{background:url(X/css);font-family:x}</style><body background=X/body><p style="background:url(X/style)">what the mail says</p>
<svg><image href=X/svg /><use href=X/use#a /><style>*{fill:url(X/fill)}</style><script href=X/svgscript /></svg><form action=X/form><button autofocus>go</button></form><a href="javascript:location='X/js'" ping=X/ping>link</a>`, "X", to)
	res, err := b.rig.dispatch().SendMail(b.rig.ctx(), &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: &pb.MailMessage{To: []string{"ann@shop.example"}, Subject: "hostile", Html: content}})
	if err != nil {
		b.Fatal(err)
	}
	b.open("/mails/" + res.MailId + "/message")
	b.run(chromedp.Sleep(300 * time.Millisecond)) // it is given time to do wrong
	b.open("/mails/" + res.MailId + "/parts/1")   // not in the frame either
	b.says("what the mail says")
	b.run(chromedp.Sleep(300 * time.Millisecond))
	if at := b.rig.url + "/mails/" + res.MailId + "/parts/1"; b.address() != at {
		b.Errorf("the mail has led the browser to %s", b.address())
	}
	_ = l.Close()
	for line := range reached {
		b.Errorf("the mail has reached the listener: %q", line)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = nil // what the mail has asked for was refused in the browser: nobody was reached
}

// address is where the tab is.
func (b *chrome) address() (at string) {
	b.Helper()
	b.run(chromedp.Location(&at))
	return at
}

// look holds the view against WCAG AA and takes pictures of it.
func (b *chrome) look(name string) {
	b.Helper()
	if !b.full && !slices.Contains(fewViews, name) {
		return
	}
	var scripts int
	b.run(chromedp.Evaluate("document.scripts.length", &scripts), chromedp.Evaluate(b.axe, nil))
	if scripts != 0 {
		b.Errorf("%s has %d scripts", name, scripts)
	}
	for _, as := range []struct {
		width  int64
		scheme string
	}{{1280, "light"}, {390, "dark"}} {
		width, scheme := as.width, as.scheme
		var found string
		var wide bool
		b.run(emulation.SetDeviceMetricsOverride(width, 900, 1, width < 500),
			emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
			chromedp.Evaluate("document.documentElement.scrollWidth > window.innerWidth", &wide),
			chromedp.Evaluate(`axe.run({iframes: false, runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}).then(r => JSON.stringify(r.violations.map(v => ({id: v.id, nodes: v.nodes.slice(0, 5).map(n => n.html.slice(0, 200) + " " + n.failureSummary)}))))`,
				&found, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
		if wide {
			b.Errorf("%s at %d: is wider than the window", name, width)
		}
		var violations []struct {
			ID    string
			Nodes []string
		}
		if err := json.Unmarshal([]byte(found), &violations); err != nil {
			b.Fatal(err)
		}
		for _, v := range violations {
			b.Errorf("%s at %d, %s: %s: %q", name, width, scheme, v.ID, v.Nodes)
		}
		if dir := os.Getenv("MAILDISPATCH_TEST_SHOTS"); dir != "" {
			var png []byte
			b.run(chromedp.FullScreenshot(&png, 100))
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", name, width, scheme)), png, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.run(emulation.SetDeviceMetricsOverride(1280, 900, 1, false))
}

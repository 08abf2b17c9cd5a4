package message

import (
	"strings"
	"testing"
)

// TestPlacesOfVariables: where in html a variable may stand.
func TestPlacesOfVariables(t *testing.T) {
	for html, where := range map[string]string{
		`<p>{{a}}</p>`:                                           "",
		`<p title="x {{a}} y" id='{{a}}'>`:                       "",
		`a < {{a}} <3 {{a}}`:                                     "",
		`<title>{{a}}</title>`:                                   "",
		`<!-- {{a}} --><p>{{a}}`:                                 "",
		`<!--[if mso]><b>{{a}}</b><![endif]-->{{a}}`:             "",
		`<!--[if !mso]><!--><b>{{a}}</b><!--<![endif]-->{{a}}`:   "",
		`<script>x</script><style>y</style>{{a}}`:                "",
		`<script src="x"></script >{{a}}`:                        "",
		`<style>a>b{}</style><a href="https://x.example/{{a}}">`: "",
		`<br/>{{a}}<img alt = "{{a}}" src=x>{{a}}`:               "",
		`<!doctype html><html>{{a}}`:                             "",
		`<a title="<script>">{{a}}`:                              "",
		`<img alt={{a}} src=x>`:                                  "in an attribute without quotes",
		`<img alt= {{a}}>`:                                       "in an attribute without quotes",
		`<img alt=x{{a}}>`:                                       "in an attribute without quotes",
		`<a href={{a}}>`:                                         "in an attribute without quotes",
		`<script>var x = '{{a}}';</script>`:                      "in script",
		`<SCRIPT type="x">'</a>{{a}}</SCRIPT>`:                   "in script",
		`<style>a{b:{{a}}}</style>`:                              "in style",
		`<!--[if mso]><style>{{a}}</style><![endif]-->`:          "in style",
		`<p style="color:{{a}}">`:                                "in style",
		`<p onclick="f('{{a}}')">`:                               "in script",
		`<a href="javascript:f('{{a}}')">`:                       "in script",
		`<a href=" java&#115;cript:x" onclick='{{a}}'>`:          "in script",
		`<iframe srcdoc="{{a}}">`:                                "in script",
		`<p {{a}}>`:                                              "in a tag",
		`<{{a}}>`:                                                "in a tag",
		`</{{a}}>`:                                               "in a tag",
		`<p {{a}}="x">`:                                          "in a tag",
		`<p a{{a}}>`:                                             "in a tag",
		`<!doctype {{a}}>`:                                       "in a tag",
	} {
		_, vs := NewTemplate(&Message{Subject: "s", HTML: html})
		if where == "" && len(vs) > 0 || where != "" && (len(vs) != 1 || vs[0].Field != "html" || !strings.Contains(vs[0].Description, " "+where+",")) {
			t.Errorf("%s: got %v, want %q", html, vs, where)
		}
	}
}

// TestValuesThatBeginAURL have a scheme that does nothing but show.
func TestValuesThatBeginAURL(t *testing.T) {
	for _, c := range []struct {
		html, a, b string
		wrong      string // the variable
	}{
		{`<a href="{{a}}">`, "https://x.example/?a=1&b=2", "", ""},
		{`<a href='{{a}}'>`, "HTTP://x.example", "", ""},
		{`<a href=" {{a}}">`, "mailto:a@x.example", "", ""},
		{`<a href="{{a}}">`, "", "", ""},
		{`<a href="{{a}}">`, "javascript:alert(1)", "", "a"},
		{`<a HREF = "{{a}}">`, " javascript:alert(1)", "", "a"},
		{`<a href="{{a}}">`, "java\tscript:alert(1)", "", "a"},
		{`<a href="{{a}}">`, "data:text/html,x", "", "a"},
		{`<a href="{{a}}">`, "/relative", "", "a"},
		{`<a href="{{a}}">`, "cid:logo", "", "a"},
		{`<img src="{{a}}">`, "cid:logo", "", ""},
		{`<img src="{{a}}">`, "file:///x", "", "a"},
		{`<a href="{{a}}{{b}}">`, "https://x.example/", "javascript:", ""},
		{`<a href="{{a}}{{b}}">`, "java", "script:x", "a"},
		{`<a href="{{a}}{{b}}">`, "", "javascript:x", "b"},
		{`<a href="x{{a}}">`, "javascript:x", "", ""},
		{`<a href="https://x.example/{{a}}">{{b}}`, "javascript:x", "javascript:x", ""},
		{`<a title="{{a}}" href="https://x.example/">`, "javascript:x", "", ""},
	} {
		tp, vs := NewTemplate(&Message{Subject: "s", HTML: c.html})
		if len(vs) > 0 {
			t.Errorf("%s: %v", c.html, vs)
			continue
		}
		_, vs, err := tp.Compose(&Fill{From: Address{Mailbox: "a@x.example"}, MessageID: "1@x.example", Variables: map[string]string{"a": c.a, "b": c.b}})
		if err != nil || c.wrong == "" && len(vs) > 0 || c.wrong != "" && (len(vs) != 1 || vs[0].Field != "variables."+c.wrong) {
			t.Errorf("%s with %q, %q: got %v, %v, want %q", c.html, c.a, c.b, vs, err, c.wrong)
		}
	}
}

package message

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// checkPlaces refuses variables at places of html where escaping a value does not keep it a
// value: in a tag, in an attribute without quotes, in script and style. It finds the values
// that begin a URL, which are looked at in every mail.
//
// It reads html as browsers do (the tokenizer of WHATWG HTML 13.2.5), as far as places need it.
// What stands in a conditional comment is html to the programs that it is for.
func checkPlaces(vs *[]Violation, runs []run) []link {
	var p place
	var links []link
	told := map[string]bool{}
	for _, r := range runs {
		if r.name == "" {
			p.literal(r.literal)
			continue
		}
		if where := p.refuses(); where != "" && !told[r.name+where] {
			told[r.name+where] = true
			*vs = append(*vs, Violation{"html", fmt.Sprintf("has the variable {{%s}} %s, where no value is safe", r.name, where)})
		}
		if p.state == inQuotes && p.isURL() && strings.Trim(p.value, blanks) == "" {
			if p.link == nil {
				p.link = &link{src: p.attr == "src"}
			}
			p.link.names = append(p.link.names, r.name)
			links = slices.DeleteFunc(links, func(l link) bool { return p.link.extends(l) })
			links = append(links, *p.link)
		} else if p.state == beforeValue {
			p.state = unquoted
		}
	}
	return links
}

// link is a URL that begins with the values of these variables, of which all but one may be
// empty.
type link struct {
	names []string
	src   bool // it may show a part of the mail
}

// extends reports whether l is what other was before one more name.
func (l *link) extends(other link) bool {
	n := len(l.names) - 1
	return l.src == other.src && len(other.names) == n && n > 0 && slices.Equal(l.names[:n], other.names)
}

var safeScheme = regexp.MustCompile(`^(?i)(https?|mailto):`)

func (l *link) wrong(values map[string]string) (name string, wrong bool) {
	for _, n := range l.names {
		if v := values[n]; v != "" {
			return n, !safeScheme.MatchString(v) && !(l.src && strings.HasPrefix(v, "cid:"))
		}
	}
	return "", false
}

func (l *link) schemes() string {
	if l.src {
		return "https:, http:, mailto: or cid:"
	}
	return "https:, http: or mailto:"
}

type placeState int

const (
	inText placeState = iota
	inTag             // name of a tag, and between its attributes
	inAttr            // name of an attribute
	beforeValue
	inQuotes
	unquoted
	inRaw     // script or style
	inComment // that is none of a condition
	inMarkup  // <!doctype ...>, <![endif]-->, <!--[if ...]>, <?...>
)

const blanks = " \t\r\n\f"

// place is where in html the next octet stands.
type place struct {
	state     placeState
	tag, attr string // the last ones, in lower case
	naming    bool   // the name of the tag goes on
	quote     byte
	value     string // of the attribute so far, its literals
	link      *link  // that its variables make
}

func (p *place) literal(s string) {
	if p.state == inQuotes {
		p.link = nil
	}
	for s != "" {
		c := s[0]
		switch p.state {
		case inText:
			i := strings.IndexByte(s, '<')
			if i < 0 {
				return
			}
			s = s[i+1:]
			p.open(&s)
			continue
		case inRaw:
			i := strings.Index(strings.ToLower(s), "</"+p.tag)
			if i < 0 {
				return
			}
			s, p.state, p.naming = s[i+len("</")+len(p.tag):], inTag, false
			p.tag = ""
			continue
		case inComment:
			i := strings.Index(s, "-->")
			if i < 0 {
				return
			}
			s, p.state = s[i+len("-->"):], inText
			continue
		case inMarkup:
			i := strings.IndexByte(s, '>')
			if i < 0 {
				return
			}
			s, p.state = s[i+1:], inText
			continue
		case inTag:
			switch {
			case c == '>':
				p.close()
			case strings.IndexByte(blanks+"/", c) >= 0:
				p.naming = false
			case p.naming:
				p.tag += lower(c)
			default:
				p.state, p.attr = inAttr, lower(c)
			}
		case inAttr:
			switch {
			case c == '>':
				p.close()
			case c == '=':
				p.state, p.value, p.link = beforeValue, "", nil
			case c == '/':
				p.state = inTag
			case strings.IndexByte(blanks, c) >= 0:
				if rest := strings.TrimLeft(s, blanks); rest == "" || rest[0] != '=' {
					p.state = inTag
				}
			default:
				p.attr += lower(c)
			}
		case beforeValue:
			switch {
			case c == '>':
				p.close()
			case c == '"' || c == '\'':
				p.state, p.quote = inQuotes, c
			case strings.IndexByte(blanks, c) < 0:
				p.state = unquoted
			}
		case unquoted:
			switch {
			case c == '>':
				p.close()
			case strings.IndexByte(blanks, c) >= 0:
				p.state = inTag
			}
		case inQuotes:
			if c == p.quote {
				p.state, p.link = inTag, nil
			} else if len(p.value) < 64 {
				p.value += string(rune(c))
			}
		}
		s = s[1:]
	}
}

// open reads on behind a "<".
func (p *place) open(s *string) {
	rest := *s
	switch {
	case strings.HasPrefix(rest, "!--[if"), strings.HasPrefix(rest, "!-->"), strings.HasPrefix(rest, "!--->"):
		p.state = inMarkup
	case strings.HasPrefix(rest, "!--"):
		p.state, *s = inComment, rest[len("!--"):]
	case rest != "" && (rest[0] == '!' || rest[0] == '?'):
		p.state = inMarkup
	case rest == "", rest[0]|0x20 >= 'a' && rest[0]|0x20 <= 'z', rest[0] == '/':
		p.state, p.tag, p.naming = inTag, "", true
		if rest != "" && rest[0] == '/' {
			p.tag, *s = "/", rest[1:]
		}
	}
}

func (p *place) close() {
	p.state = inText
	if p.tag == "script" || p.tag == "style" {
		p.state = inRaw
	}
}

func lower(c byte) string { return strings.ToLower(string(rune(c))) }

// isURL: attributes that name something to load or to go to.
func (p *place) isURL() bool {
	switch p.attr {
	case "href", "src", "xlink:href", "action", "formaction", "background", "poster", "data", "cite",
		"longdesc", "lowsrc", "dynsrc", "srcset", "ping":
		return true
	}
	return false
}

// refuses says where a variable would stand, if it may not.
func (p *place) refuses() string {
	switch p.state {
	case inText, inComment:
		return ""
	case inRaw:
		return "in " + p.tag
	case beforeValue, unquoted:
		return "in an attribute without quotes"
	case inQuotes:
		scheme := strings.ToLower(strings.Map(func(r rune) rune {
			if r <= ' ' {
				return -1
			}
			return r
		}, p.value))
		switch {
		case strings.HasPrefix(p.attr, "on"), p.attr == "srcdoc",
			p.isURL() && (strings.HasPrefix(scheme, "javascript:") || strings.HasPrefix(scheme, "vbscript:") || strings.HasPrefix(scheme, "data:")):
			return "in script"
		case p.attr == "style":
			return "in style"
		}
		return ""
	}
	return "in a tag"
}

package web

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// formField is a field of a mail server in the form, by its path in the schema.
type formField struct {
	Path    string
	Label   string
	Hint    string
	Section string
	// text, number, choice, check, list, area, and secret or key, which are never shown
	Kind  string
	Short string // label of a check in the view of a mail server
	head  bool   // the view of a mail server says it in its first lines
	fixed bool   // cannot be changed
	first string // what a new one begins with
}

// serverFields are what the form offers. Annotations are set by other means.
var serverFields = []formField{
	{Path: "name", Label: "Name", Hint: "a-z, 0-9 and hyphens; cannot be changed later", Section: "Mail server", Kind: "text", fixed: true, head: true},
	{Path: "team", Label: "Team", Hint: "empty: the whole system", Section: "Mail server", Kind: "text", fixed: true, head: true},
	{Path: "display_name", Label: "Description", Section: "Mail server", Kind: "text", head: true},
	{Path: "from", Label: "Sender", Hint: "such as Shop <shop@shop.example>", Section: "Mail server", Kind: "text", head: true},
	{Path: "mode", Label: "Mode", Hint: "php: sent while the caller waits; daemon: queued", Section: "Mail server", Kind: "choice", first: "daemon", head: true},
	{Path: "type", Label: "Type", Hint: "smtp: the host below; localhost: this machine's mail program", Section: "Mail server", Kind: "choice", fixed: true, first: "smtp", head: true},
	{Path: "smtp.host", Label: "Host", Hint: "such as smtp.shop.example", Section: "Connection", Kind: "text", head: true},
	{Path: "smtp.port", Label: "Port", Section: "Connection", Kind: "number", first: "587", head: true},
	{Path: "smtp.encryption", Label: "Encryption", Section: "Connection", Kind: "choice", first: "starttls", head: true},
	{Path: "smtp.username", Label: "User", Hint: "empty: no login", Section: "Connection", Kind: "text"},
	{Path: "smtp.password", Label: "Password", Hint: "empty: the stored one", Section: "Connection", Kind: "secret"},
	{Path: "smtp.auth", Label: "Login mechanism", Section: "Connection", Kind: "choice"},
	{Path: "smtp.helo_name", Label: "Name in EHLO", Hint: "empty: the machine's", Section: "Connection", Kind: "text"},
	{Path: "smtp.timeout", Label: "Timeout", Hint: "such as 30s", Section: "Connection", Kind: "text"},
	{Path: "smtp.allow_plaintext_auth", Short: "Log in without TLS", Label: "Log in without TLS: anybody on the way can read the password", Section: "Connection", Kind: "check"},
	{Path: "smtp.ca_pem", Label: "Certificates of a private authority (PEM)", Section: "Connection", Kind: "area"},
	{Path: "status", Label: "Status", Hint: "unavailable: no mail is taken for it", Section: "Use", Kind: "choice", first: "available"},
	{Path: "fallback", Label: "Fallback", Hint: "name of another mail server, used while this one is down", Section: "Use", Kind: "text"},
	{Path: "hold_unknown", Short: "Holds every unknown mail", Label: "Every mail of unknown outcome waits for a person, not only invoices and work orders", Section: "Use", Kind: "check"},
	{Path: "smtp.oauth2.grant", Label: "By what a token is asked for", Section: "OAuth 2", Kind: "choice"},
	{Path: "smtp.oauth2.client_id", Label: "Client", Section: "OAuth 2", Kind: "text"},
	{Path: "smtp.oauth2.token_url", Label: "Token endpoint", Hint: "https://...", Section: "OAuth 2", Kind: "text"},
	{Path: "smtp.oauth2.scopes", Label: "Scopes", Hint: "with blanks between them", Section: "OAuth 2", Kind: "list"},
	{Path: "smtp.oauth2.client_secret", Label: "Client secret", Hint: "empty: the stored one", Section: "OAuth 2", Kind: "secret"},
	{Path: "smtp.oauth2.refresh_token", Label: "Refresh token", Hint: "empty: the stored one", Section: "OAuth 2", Kind: "secret"},
	{Path: "smtp.oauth2.service_account_key", Label: "Key of a service account (JSON)", Hint: "empty: the stored one", Section: "OAuth 2", Kind: "key"},
	{Path: "dkim.domain", Label: "Domain that signs", Hint: "that of the sender, or one above it; empty: no signature", Section: "DKIM", Kind: "text", head: true},
	{Path: "dkim.selector", Label: "Selector", Hint: "such as mail2026", Section: "DKIM", Kind: "text", head: true},
	{Path: "dkim.private_key", Label: "Private key (PEM)", Hint: "empty: the stored one, or a new one that the service makes", Section: "DKIM", Kind: "key"},
	{Path: "limits.mails_per_minute", Label: "Mails per minute", Hint: "0: no limit", Section: "Limits", Kind: "number"},
	{Path: "limits.mails_per_day", Label: "Mails per day", Hint: "0: no limit", Section: "Limits", Kind: "number"},
	{Path: "limits.max_connections", Label: "Connections", Hint: "0: 10 per replica", Section: "Limits", Kind: "number"},
	{Path: "limits.max_attempts", Label: "Attempts", Hint: "0: attempts for 5 days", Section: "Limits", Kind: "number"},
	{Path: "limits.max_recipients_per_mail", Label: "Recipients per transaction", Hint: "0: 100", Section: "Limits", Kind: "number"},
	{Path: "limits.max_mail_bytes", Label: "Bytes per mail", Hint: "0: 10 MiB", Section: "Limits", Kind: "number"},
}

// at leads to the field's message and descriptor; make makes what is missing on the way.
func (f *formField) at(m *pb.MailServer, make bool) (protoreflect.Message, protoreflect.FieldDescriptor) {
	x := m.ProtoReflect()
	names := strings.Split(f.Path, ".")
	for _, n := range names[:len(names)-1] {
		d := x.Descriptor().Fields().ByName(protoreflect.Name(n))
		if !x.Has(d) && !make {
			return nil, nil
		}
		x = x.Mutable(d).Message()
	}
	return x, x.Descriptor().Fields().ByName(protoreflect.Name(names[len(names)-1]))
}

// secret reports whether the field's value is never shown.
func (f *formField) secret() bool { return f.Kind == "secret" || f.Kind == "key" }

// text is a field's value as the form has it.
func (f *formField) text(m *pb.MailServer) string {
	x, d := f.at(m, false)
	if x == nil || f.secret() {
		return ""
	}
	value := x.Get(d)
	switch {
	case d.IsList():
		var words []string
		for i := range value.List().Len() {
			words = append(words, value.List().Get(i).String())
		}
		return strings.Join(words, " ")
	case d.Kind() == protoreflect.EnumKind:
		if value.Enum() == 0 {
			return ""
		}
		return wordOf(d.Enum(), value.Enum())
	case d.Message() != nil:
		t, is := value.Message().Interface().(*durationpb.Duration)
		if !is || !x.Has(d) {
			return ""
		}
		return t.AsDuration().String()
	}
	return value.String()
}

// set reads what the form says.
func (f *formField) set(m *pb.MailServer, text string) error {
	x, d := f.at(m, true)
	switch {
	case d.IsList():
		x.Clear(d)
		for _, w := range strings.Fields(text) {
			x.Mutable(d).List().Append(protoreflect.ValueOfString(w))
		}
	case d.Kind() == protoreflect.EnumKind && text == "":
		x.Clear(d)
	case d.Kind() == protoreflect.EnumKind:
		n, ok := plain.FromWord(enumOf(d.Enum()), text)
		if !ok {
			return bad(f.Path, "%q is none of its words", text)
		}
		x.Set(d, protoreflect.ValueOfEnum(n))
	case d.Kind() == protoreflect.BoolKind:
		x.Set(d, protoreflect.ValueOfBool(text == "true"))
	case d.Kind() == protoreflect.Int32Kind, d.Kind() == protoreflect.Int64Kind:
		if text == "" {
			text = "0"
		}
		bits := map[protoreflect.Kind]int{protoreflect.Int32Kind: 32, protoreflect.Int64Kind: 64}[d.Kind()]
		n, err := strconv.ParseInt(text, 10, bits)
		if err != nil {
			return bad(f.Path, "%q is not a number", text)
		}
		if bits == 32 {
			x.Set(d, protoreflect.ValueOfInt32(int32(n)))
		} else {
			x.Set(d, protoreflect.ValueOfInt64(n))
		}
	case d.Message() != nil && text == "":
		x.Clear(d)
	case d.Message() != nil:
		t, err := time.ParseDuration(text)
		if err != nil {
			return bad(f.Path, "%q is not a time such as 30s", text)
		}
		x.Set(d, protoreflect.ValueOfMessage(durationpb.New(t).ProtoReflect()))
	default:
		x.Set(d, protoreflect.ValueOfString(text))
	}
	return nil
}

// anEnum is a value of an enum whose Go type is not at hand.
type anEnum struct {
	protoreflect.EnumDescriptor
	n protoreflect.EnumNumber
}

func (e anEnum) Descriptor() protoreflect.EnumDescriptor { return e.EnumDescriptor }
func (e anEnum) Type() protoreflect.EnumType             { return nil }
func (e anEnum) Number() protoreflect.EnumNumber         { return e.n }

func enumOf(d protoreflect.EnumDescriptor) protoreflect.Enum { return anEnum{d, 0} }

func wordOf(d protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	return plain.Word(anEnum{d, n})
}

// formServer is the mail server that a form describes: all of it, or of a saved one what
// differs, with the paths of that.
func (v *view) formServer(form url.Values) (m *pb.MailServer, paths []string, err error) {
	var faults []string
	m = &pb.MailServer{}
	saved := &pb.MailServer{}
	name := form.Get("saved")
	if name != "" {
		res, err := v.servers().GetMailServer(v.ctx(), &pb.GetMailServerRequest{Name: name})
		if err != nil {
			return nil, nil, err
		}
		saved, m.Name, m.Etag = res.MailServer, name, form.Get("etag")
	}
	// a mail program on this machine has no connection to describe
	localhost := form.Get("type") == "localhost" || saved.Type == pb.MailServer_TYPE_LOCALHOST
	for _, f := range serverFields {
		text := strings.TrimSpace(form.Get(f.Path))
		if f.Kind == "check" && text == "" {
			text = "false"
		}
		switch {
		case strings.HasPrefix(f.Path, "smtp.") && localhost, f.secret() && text == "", name != "" && f.fixed:
			continue
		case name != "" && !differs(&f, saved, text):
			continue
		case name == "" && text == "" || f.Kind == "number" && name == "" && text == "0":
			continue
		}
		if err := f.set(m, text); err != nil {
			faults = append(faults, status.Convert(err).Message())
			continue
		}
		if name != "" {
			paths = append(paths, f.Path)
		}
	}
	if len(faults) > 0 {
		return nil, nil, status.Error(codes.InvalidArgument, strings.Join(faults, "\n"))
	}
	return m, dropEmpty(m, saved, paths, form), nil
}

// dropEmpty takes a group of settings away of which nothing is left: signing by DKIM, the login
// by OAuth 2.
func dropEmpty(m, saved *pb.MailServer, paths []string, form url.Values) []string {
	for group, had := range map[string]bool{"dkim": saved.Dkim != nil, "smtp.oauth2": saved.GetSmtp().GetOauth2() != nil} {
		of := func(path string) bool { return strings.HasPrefix(path, group+".") }
		left := slices.ContainsFunc(serverFields, func(f formField) bool { return of(f.Path) && strings.TrimSpace(form.Get(f.Path)) != "" })
		if !had || left || !slices.ContainsFunc(paths, of) {
			continue
		}
		paths = append(slices.DeleteFunc(paths, of), group)
		if m.Dkim != nil && group == "dkim" {
			m.Dkim = nil
		} else if m.Smtp != nil && group == "smtp.oauth2" {
			m.Smtp.Oauth2 = nil
		}
	}
	return paths
}

// differs reports whether a form says something else than what is saved, as it was shown.
func differs(f *formField, saved *pb.MailServer, text string) bool {
	was := f.text(saved)
	switch f.Kind {
	case "check", "number":
		was = map[bool]string{true: map[string]string{"check": "false", "number": "0"}[f.Kind], false: was}[was == ""]
	case "area":
		text, was = strings.ReplaceAll(text, "\r\n", "\n"), strings.TrimSpace(was)
	default:
		was = strings.TrimSpace(plain.Text(was, maxShown))
	}
	return f.secret() || text != was
}

// formBody is what the form shows.
type formBody struct {
	Saved    string
	Etag     string
	Request  string
	Sections []section
	Faults   []string
	Test     *testBody
}

// section is a group of fields.
type section struct {
	Name   string
	Folded bool // it is not what most mail servers need
	Open   bool // something is set in it
	Fields []shownField
}

// foldedSections are those that the form shows on demand.
var foldedSections = []string{"Use", "Limits", "OAuth 2", "DKIM"}

// shownField is a field with its value.
type shownField struct {
	formField
	Value   string
	Choices []choice
}

// addForm is the form for a new mail server.
func addForm(v *view) error {
	form := url.Values{"request": {random()}}
	for _, f := range serverFields {
		form.Set(f.Path, f.first)
	}
	return v.showForm(form, nil)
}

// editForm is the form for a saved one.
func editForm(v *view) error {
	res, err := v.servers().GetMailServer(v.ctx(), &pb.GetMailServerRequest{Name: v.r.URL.Query().Get("name")})
	if err != nil {
		return err
	}
	form := url.Values{"saved": {res.MailServer.Name}, "etag": {res.MailServer.Etag}}
	for _, f := range serverFields {
		form.Set(f.Path, f.text(res.MailServer))
	}
	return v.showForm(form, nil)
}

func (v *view) showForm(form url.Values, faults []string) error {
	return v.showFormWith(form, faults, nil)
}

func (v *view) showFormWith(form url.Values, faults []string, t *testBody) error {
	b := formBody{Saved: form.Get("saved"), Etag: form.Get("etag"), Request: form.Get("request"), Faults: faults, Test: t}
	for _, f := range serverFields {
		if b.Saved != "" && f.fixed || strings.HasPrefix(f.Path, "smtp.") && b.Saved != "" && form.Get("smtp.host") == "" && form.Get("smtp.port") == "" {
			continue // of a mail program on this machine
		}
		s := shownField{formField: f, Value: form.Get(f.Path)}
		switch f.Kind {
		case "secret", "key":
			s.Value = "" // the page never shows one again
			if b.Saved == "" {
				s.Hint = "" // none is stored
			}
		case "choice":
			_, d := f.at(&pb.MailServer{}, true)
			for _, w := range append([]string{""}, plain.Words(enumOf(d.Enum()))...) {
				if w == "" && f.first != "" {
					continue
				}
				label := w
				switch {
				case w == "" && f.Section == "OAuth 2":
					label = "no OAuth 2"
				case w == "":
					label = "automatic"
				}
				s.Choices = append(s.Choices, choice{w, strings.ReplaceAll(label, "-", " "), w == s.Value})
			}
		}
		if n := len(b.Sections); n == 0 || b.Sections[n-1].Name != f.Section {
			b.Sections = append(b.Sections, section{Name: f.Section, Folded: slices.Contains(foldedSections, f.Section)})
		}
		last := &b.Sections[len(b.Sections)-1]
		last.Fields = append(last.Fields, s)
		last.Open = last.Open || s.Value != "" && s.Value != f.first && s.Value != "0" && s.Value != "false"
	}
	title := "Add a mail server"
	if b.Saved != "" {
		title = "Change " + b.Saved
	}
	if len(faults) > 0 {
		v.code = http.StatusBadRequest
	}
	return v.render("serverform", title, b)
}

// refused reports whether an error is about what the person has typed.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists, codes.Aborted:
		return true
	}
	return false
}

func words_(err error) []string { return words(status.Convert(err)) }

// save adds or changes a mail server.
func save(v *view) error {
	form := v.r.PostForm
	m, paths, err := v.formServer(form)
	switch {
	case err != nil:
	case form.Get("saved") == "":
		_, err = v.servers().CreateMailServer(v.ctx(), &pb.CreateMailServerRequest{MailServer: m, RequestId: form.Get("request")})
	case len(paths) > 0:
		_, err = v.servers().UpdateMailServer(v.ctx(), &pb.UpdateMailServerRequest{MailServer: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, Reason: form.Get("reason")})
	}
	switch {
	case err != nil && refused(err):
		return v.showForm(form, words_(err))
	case err != nil:
		return err
	case proto.Size(m) > 0 && form.Get("saved") == "":
		return v.go_(serverPath(m.Name, "server-added"))
	}
	return v.go_(serverPath(form.Get("saved"), "server-changed"))
}

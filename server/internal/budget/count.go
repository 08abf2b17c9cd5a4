package budget

import (
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A repeated field costs little on the wire and much in memory: a million empty attachments are
// 2 MB of request and over a gigabyte decoded, checked and complained about. So every repeated
// field of a request has a limit, and what lies beyond it is cut off before the request is
// decoded. One entry more than the limit is left, so that the check of the request still finds
// it too long and says so in its own words. A request that was cut is always refused.
//
// Limits by the name of the field. Every repeated field that a caller can fill has to be here.
var limits = map[protoreflect.FullName]int{
	// twice what a mail may have: the same may stand there twice
	"maildispatch.v1.MailMessage.to":                          1000,
	"maildispatch.v1.MailMessage.cc":                          1000,
	"maildispatch.v1.MailMessage.bcc":                         1000,
	"maildispatch.v1.MailMessage.headers":                     50,
	"maildispatch.v1.MailMessage.attachments":                 100,
	"maildispatch.v1.MailMessage.alternatives":                5,
	"maildispatch.v1.SendOptions.labels":                      32,
	"maildispatch.v1.BatchItem.labels":                        32,
	"maildispatch.v1.BatchItem.variables":                     100,
	"maildispatch.v1.SendBatchRequest.items":                  10000,
	"maildispatch.v1.SendStreamRequest.items":                 10000,
	"maildispatch.v1.MailFilter.statuses":                     16,
	"maildispatch.v1.MailFilter.labels":                       32,
	"maildispatch.v1.RetryMailsRequest.ids":                   1000,
	"maildispatch.v1.CancelMailsRequest.ids":                  1000,
	"maildispatch.v1.HoldMailsRequest.ids":                    1000,
	"maildispatch.v1.ReleaseMailsRequest.ids":                 1000,
	"maildispatch.v1.MoveMailsRequest.ids":                    1000,
	"maildispatch.v1.ResolveMailRequest.recipients":           500,
	"maildispatch.v1.ResendMailRequest.only_recipients":       500,
	"maildispatch.v1.ResendMailRequest.additional_recipients": 100,
	"maildispatch.v1.MailServer.annotations":                  32,
	"maildispatch.v1.MailServer.allowed_headers":              20,
	"maildispatch.v1.OAuth2.scopes":                           20,
	"maildispatch.v1.CreateTokenRequest.roles":                3,
	"maildispatch.v1.CreateTokenRequest.kinds":                16,
	"maildispatch.v1.CreateTokenRequest.teams":                100,
	"maildispatch.v1.CreateTokenRequest.mail_servers":         100,
	"maildispatch.v1.SetSenderDomainsRequest.domains":         100,
	"google.protobuf.FieldMask.paths":                         64,
}

// Limit is the limit of a repeated field, 0 where it has none.
func Limit(field protoreflect.FullName) int { return limits[field] }

// plan is what has to be counted in a message of one type. It is not changed once it is made.
type plan struct {
	fields []field // by number
}

type field struct {
	limit  int   // of a repeated field; 0 = not counted
	place  int   // of its counter, or of its bytes when it is a single message
	single bool  // a message that is not repeated: given twice, the two are one (merged)
	list   bool  // of numbers, which may be packed
	keyed  bool  // a map
	inside *plan // what is counted in the message; nil = nothing
}

// most is how many fields of a message can be counted or looked into.
const most = 8

var plans sync.Map // of *plan by full name of the message

func planOf(d protoreflect.MessageDescriptor) *plan {
	if p, ok := plans.Load(d.FullName()); ok {
		return p.(*plan)
	}
	p, _ := plans.LoadOrStore(d.FullName(), newPlan(d, nil))
	return p.(*plan)
}

// newPlan makes the plan of a message, nil if nothing in it is counted. above are the messages
// around it: a type that holds itself is not looked into a second time.
func newPlan(d protoreflect.MessageDescriptor, above []protoreflect.FullName) *plan {
	for _, a := range above {
		if a == d.FullName() {
			return nil
		}
	}
	above = append(above, d.FullName())
	p := &plan{}
	counters, singles := 0, 0
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		f := field{limit: limits[fd.FullName()], keyed: fd.IsMap(), list: fd.IsList() && (fd.Kind() == protoreflect.EnumKind)}
		if fd.Message() != nil && !fd.IsMap() {
			f.inside = newPlan(fd.Message(), above)
		}
		switch {
		case f.limit > 0:
			f.place = counters
			counters++
		case f.inside != nil && !fd.IsList():
			f.single, f.place = true, singles
			singles++
		case f.inside == nil:
			continue
		}
		for len(p.fields) <= int(fd.Number()) {
			p.fields = append(p.fields, field{})
		}
		p.fields[fd.Number()] = f
	}
	if counters > most || singles > most {
		panic("budget: more to count in " + string(d.FullName()) + " than there is room for")
	}
	if p.fields == nil {
		return nil
	}
	return p
}

// next cuts the next field off a message. ok is false at its end, and where it cannot be read:
// then decoding it finds the fault.
func next(b []byte) (num protowire.Number, typ protowire.Type, value, rest []byte, ok bool) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, 0, nil, nil, false
	}
	m := protowire.ConsumeFieldValue(num, typ, b[n:])
	if m < 0 {
		return 0, 0, nil, nil, false
	}
	return num, typ, b[n : n+m], b[n+m:], true
}

func (p *plan) field(num protowire.Number) field {
	if int(num) >= len(p.fields) {
		return field{}
	}
	return p.fields[num]
}

// entries is how many entries a field's value brings: packed numbers bring several.
func (f field) entries(typ protowire.Type, value []byte) int {
	if !f.list || typ != protowire.BytesType {
		return 1
	}
	b, _ := protowire.ConsumeBytes(value)
	n := 0
	for _, c := range b {
		if c < 0x80 {
			n++ // the last octet of a number
		}
	}
	return n
}

// within reports whether no field has more than one entry beyond its limit.
func (p *plan) within(b []byte) bool {
	var counts [most]int
	var parts [most][]byte
	var own [most]bool // the bytes are a copy of ours
	for {
		num, typ, value, rest, ok := next(b)
		if !ok {
			break
		}
		b = rest
		f := p.field(num)
		if f.limit > 0 {
			if counts[f.place] += f.entries(typ, value); counts[f.place] > f.limit+1 {
				return false
			}
		}
		if f.inside == nil || typ != protowire.BytesType {
			continue
		}
		body, _ := protowire.ConsumeBytes(value)
		switch {
		case !f.single:
			if !f.inside.within(body) {
				return false
			}
		case parts[f.place] == nil:
			parts[f.place] = body
		default:
			if !own[f.place] {
				parts[f.place], own[f.place] = append([]byte(nil), parts[f.place]...), true
			}
			parts[f.place] = append(parts[f.place], body...)
		}
	}
	for _, f := range p.fields {
		if f.single && !f.inside.within(parts[f.place]) {
			return false
		}
	}
	return true
}

// cut is the message without what lies beyond one entry more than the limits.
func (p *plan) cut(b []byte) []byte {
	var counts [most]int
	var parts [most][]byte
	var given [most]bool
	keys := map[protowire.Number]map[string]bool{}
	out := make([]byte, 0, min(len(b), 64<<10))
	for {
		num, typ, value, rest, ok := next(b)
		if !ok {
			out = append(out, b...) // what cannot be read stays, so that decoding says so
			break
		}
		b = rest
		f := p.field(num)
		if f.limit > 0 {
			n := f.entries(typ, value)
			switch room := f.limit + 1 - counts[f.place]; {
			case f.keyed:
				// An entry with a key that was there replaces the one before.
				if keys[num] == nil {
					keys[num] = map[string]bool{}
				}
				k := key(value)
				if !keys[num][k] && room <= 0 {
					continue
				}
				if n = 0; !keys[num][k] {
					keys[num][k], n = true, 1
				}
			case room <= 0:
				continue
			case n > room:
				body, _ := protowire.ConsumeBytes(value)
				value = protowire.AppendBytes(nil, firstNumbers(body, room))
			}
			counts[f.place] += n
		}
		if f.inside != nil && typ == protowire.BytesType {
			body, _ := protowire.ConsumeBytes(value)
			if f.single {
				parts[f.place], given[f.place] = append(parts[f.place], body...), true
				continue
			}
			value = protowire.AppendBytes(nil, f.inside.cut(body))
		}
		out = append(protowire.AppendTag(out, num, typ), value...)
	}
	for num, f := range p.fields {
		if f.single && given[f.place] {
			out = protowire.AppendTag(out, protowire.Number(num), protowire.BytesType)
			out = protowire.AppendBytes(out, f.inside.cut(parts[f.place]))
		}
	}
	return out
}

// key is the key of a map's entry, as it stands on the wire.
func key(value []byte) string {
	b, _ := protowire.ConsumeBytes(value)
	k := ""
	for {
		num, _, v, rest, ok := next(b)
		if !ok {
			return k
		}
		if b = rest; num == 1 {
			k = string(v)
		}
	}
}

// firstNumbers are the first n of packed numbers.
func firstNumbers(b []byte, n int) []byte {
	for i, c := range b {
		if c < 0x80 {
			if n--; n == 0 {
				return b[:i+1]
			}
		}
	}
	return b
}

package dkim

import (
	"fmt"
	"strings"
)

// RecordName is where the record of a selector stands in DNS (RFC 6376 3.6.2.1).
func RecordName(domain, selector string) string { return selector + "._domainkey." + domain }

// Record is the text of the TXT record that publishes a public key. DNS keeps it in strings of
// at most 255 octets, into which most providers' pages split it by themselves.
func Record(publicKey string) string { return "v=DKIM1; k=rsa; p=" + publicKey }

// Compare says what is wrong with the TXT records found under RecordName, for a person; "" =
// they publish the key. missing: there is none of DKIM among them.
func Compare(records []string, publicKey string) (wrong string, missing bool) {
	var keys []map[string]string
	for _, r := range records {
		if tags := parse(r); tags != nil {
			keys = append(keys, tags)
		}
	}
	switch len(keys) {
	case 0:
		return "there is no DKIM record", true
	case 1:
	default:
		return fmt.Sprintf("there are %d DKIM records, of which a receiver takes any", len(keys)), false
	}
	switch tags := keys[0]; {
	case tags["p"] == "":
		return "the record revokes the key (an empty p=)", false
	case tags["k"] != "" && !strings.EqualFold(tags["k"], "rsa"):
		return "the record is for another kind of key (k=)", false
	case tags["p"] != publicKey:
		return "the record holds another key (p=)", false
	case tags["h"] != "" && !lists(tags["h"], "sha256"):
		return "the record does not allow SHA-256 (h=)", false
	case tags["s"] != "" && !lists(tags["s"], "email") && !lists(tags["s"], "*"):
		return "the record is not for mail (s=)", false
	case lists(tags["t"], "y"):
		return "the record says that the domain only tests DKIM (t=y), so that receivers pass over the signature", false
	}
	return "", false
}

func lists(list, want string) bool {
	for x := range strings.SplitSeq(list, ":") {
		if strings.EqualFold(x, want) {
			return true
		}
	}
	return false
}

// parse reads the tags of a record (RFC 6376 3.2), nil if it is none of DKIM. Blanks in values
// mean nothing here.
func parse(record string) map[string]string {
	tags := map[string]string{}
	for i, part := range strings.Split(record, ";") {
		name, value, is := strings.Cut(part, "=")
		if !is {
			continue
		}
		name, value = strings.TrimSpace(name), strings.Join(strings.Fields(value), "")
		if name == "v" && (i > 0 || value != "DKIM1") { // 3.6.1: the first, if it is there
			return nil
		}
		if _, twice := tags[name]; twice {
			return nil
		}
		tags[name] = value
	}
	if _, has := tags["p"]; !has {
		return nil
	}
	return tags
}

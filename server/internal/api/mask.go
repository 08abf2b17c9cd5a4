package api

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// What a mask may not name, and what an overlay leaves alone.
var (
	immutable  = map[string]bool{"name": true, "team": true, "type": true}
	outputOnly = map[string]bool{"etag": true, "create_time": true, "update_time": true, "delete_time": true, "health": true, "smtp.has_password": true,
		"smtp.oauth2.has_client_secret": true, "smtp.oauth2.has_refresh_token": true, "smtp.oauth2.has_service_account_key": true, "dkim.dns_name": true, "dkim.dns_value": true}
)

// maxPaths is how many paths a mask may have.
const maxPaths = 64

// overlay writes changes into m. Without a mask: every present field. "*": everything that may
// be changed. Else: the named paths, absent ones being cleared. An immutable field may be given
// only as it is.
func overlay(c *apierr.Check, m, changes *pb.MailServer, mask *fieldmaskpb.FieldMask) {
	if changes.Type != pb.MailServer_TYPE_UNSPECIFIED && changes.Type != m.Type {
		c.Bad("mail_server.type", "cannot be changed")
	}
	if changes.Team != "" && changes.Team != m.Team {
		c.Bad("mail_server.team", "cannot be changed")
	}
	paths := mask.GetPaths()
	if len(paths) > maxPaths {
		c.Bad("update_mask", "has more than %d paths", maxPaths)
		return
	}
	if len(paths) == 0 {
		overlayPresent(m.ProtoReflect(), changes.ProtoReflect(), "")
		return
	}
	if len(paths) == 1 && paths[0] == "*" {
		paths = nil
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if n := string(fields.Get(i).Name()); !immutable[n] && !outputOnly[n] {
				paths = append(paths, n)
			}
		}
	}
	for _, p := range paths {
		switch {
		case p == "*":
			c.Bad("update_mask", `"*" stands alone`)
		case immutable[p]:
			c.Bad("update_mask", "%s cannot be changed", p)
		case outputOnly[p], strings.HasPrefix(p, "health."):
			c.Bad("update_mask", "%s is output only", p)
		case !overlayPath(m.ProtoReflect(), changes.ProtoReflect(), strings.Split(p, ".")):
			c.Bad("update_mask", "%q is not a field of a mail server", clip(p))
		}
	}
}

// clip keeps a caller's text short in an error.
func clip(s string) string {
	if len(s) > 60 {
		s = s[:60] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// merges reports whether a field is a message of ours, whose fields are looked at one by one; a
// Duration or a map is taken whole.
func merges(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && !fd.IsMap() && !fd.IsList() && fd.Message().ParentFile().Package() == "maildispatch.v1"
}

func overlayPresent(dst, src protoreflect.Message, prefix string) {
	src.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := prefix + string(fd.Name())
		switch {
		case immutable[path] || outputOnly[path]:
		case merges(fd):
			overlayPresent(dst.Mutable(fd).Message(), v.Message(), path+".")
		default:
			dst.Set(fd, v)
		}
		return true
	})
}

func overlayPath(dst, src protoreflect.Message, path []string) bool {
	fd := dst.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	if fd == nil {
		return false
	}
	if len(path) > 1 {
		if !merges(fd) {
			return false
		}
		return overlayPath(dst.Mutable(fd).Message(), src.Get(fd).Message(), path[1:])
	}
	if !src.Has(fd) {
		dst.Clear(fd)
		return true
	}
	if merges(fd) {
		dst.Set(fd, protoreflect.ValueOfMessage(proto.Clone(src.Get(fd).Message().Interface()).ProtoReflect()))
		return true
	}
	dst.Set(fd, src.Get(fd))
	return true
}

// names reports whether the mask says p itself.
func names(mask *fieldmaskpb.FieldMask, p string) bool {
	for _, q := range mask.GetPaths() {
		if q == p {
			return true
		}
	}
	return false
}

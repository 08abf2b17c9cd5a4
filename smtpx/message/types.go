package message

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// typeOf is the media type of an attachment that came without one, by the ending of its file
// name. It is our own table, so that a mail does not depend on the machine that composes it.
//
// What is not in it is application/octet-stream. So are whole mails (eml, mht, mbox): their
// types are message/* and multipart/*, which base64 may not carry (RFC 2046 5.2.1 and 5.1).
var typeOf = map[string]string{
	"7z": "application/x-7z-compressed", "avif": "image/avif", "bmp": "image/bmp", "css": "text/css",
	"csv": "text/csv", "doc": "application/msword", "docm": "application/vnd.ms-word.document.macroEnabled.12",
	"docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
	"dxf":  "image/vnd.dxf", "epub": "application/epub+zip", "flac": "audio/flac", "gif": "image/gif",
	"gz": "application/gzip", "heic": "image/heic", "htm": "text/html", "html": "text/html", "ico": "image/x-icon",
	"ics": "text/calendar", "jpeg": "image/jpeg", "jpg": "image/jpeg", "js": "text/javascript",
	"json": "application/json", "log": "text/plain", "m4a": "audio/mp4", "md": "text/markdown",
	"mov": "video/quicktime", "mp3": "audio/mpeg", "mp4": "video/mp4",
	"odp": "application/vnd.oasis.opendocument.presentation", "ods": "application/vnd.oasis.opendocument.spreadsheet",
	"odt": "application/vnd.oasis.opendocument.text", "ogg": "audio/ogg", "p7m": "application/pkcs7-mime",
	"p7s": "application/pkcs7-signature", "pdf": "application/pdf", "png": "image/png",
	"ppt":  "application/vnd.ms-powerpoint",
	"pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
	"rtf":  "application/rtf", "svg": "image/svg+xml", "tar": "application/x-tar", "tif": "image/tiff",
	"tiff": "image/tiff", "tsv": "text/tab-separated-values", "txt": "text/plain", "vcf": "text/vcard",
	"wav": "audio/wav", "webm": "video/webm", "webp": "image/webp", "xls": "application/vnd.ms-excel",
	"xlsm": "application/vnd.ms-excel.sheet.macroEnabled.12",
	"xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xml": "application/xml",
	"zip": "application/zip",
}

// saysItself: formats whose bytes declare their own character set, which a parameter would
// override.
var saysItself = map[string]bool{"text/html": true, "text/css": true}

// guessType is the type for an attachment without one. A text says its character set only
// where that was looked at: its bytes are at hand, are UTF-8, and hold no control character
// that would mean another encoding (NUL in UTF-16, ESC in ISO-2022-JP).
func guessType(a *Attachment) string {
	t := ""
	if i := strings.LastIndexByte(a.Filename, '.'); i >= 0 {
		t = typeOf[strings.ToLower(a.Filename[i+1:])]
	}
	switch {
	case t == "":
		return "application/octet-stream"
	case strings.HasPrefix(t, "text/") && !saysItself[t] && a.Stored == nil && isUTF8Text(a.Content):
		return t + "; charset=utf-8"
	}
	return t
}

func isUTF8Text(b []byte) bool {
	return utf8.Valid(b) && bytes.IndexFunc(b, func(r rune) bool {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' && r != '\f' || r == 0x7f
	}) < 0
}

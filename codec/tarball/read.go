package tarball

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"imagefs/codec"
)

// Member is one plain file of an archive.
type Member struct {
	Name      string // no path
	Off, Size int64  // of its bytes, in the archive
	Time      time.Time
}

// Open is the member as a source of its own.
func (m Member) Open(src codec.Source) codec.Source { return codec.Section(src, m.Off, m.Size) }

// Bounds of what is read besides the headers.
const (
	maxPax   = 64 << 10 // bytes of one pax header
	maxLong  = 4 << 10  // bytes of one long name
	maxExtra = 16       // such headers before one member
	// maxTail bounds the zeros behind the end: the largest record of the tar
	// program.
	maxTail = 1 << 20
)

// Probe reports whether head begins with the header of an archive.
func Probe(head []byte) bool {
	return len(head) >= sector && bytes.HasPrefix(head[257:], []byte("ustar"))
}

// Read lists the members of the archive src, of which there are limit at most.
// The error is ErrCorrupt for a damaged archive and ErrUnsupported for a member
// that is no plain file.
func Read(ctx context.Context, src codec.Source, limit int) ([]Member, error) {
	r := &reader{ctx: ctx, src: src, names: map[string]string{}}
	for {
		m, ok, err := r.next()
		if err != nil || !ok {
			return r.members, err
		}
		if len(r.members) == limit {
			return nil, codec.Unsupportedf("member %q at %#x is number %d, an archive holds up to %d here", m.Name, r.at, limit+1, limit)
		}
		fold := strings.ToLower(m.Name)
		if other, ok := r.names[fold]; ok {
			return nil, codec.Corruptf("members %q and %q have one name", other, m.Name)
		}
		r.names[fold] = m.Name
		r.members = append(r.members, m)
	}
}

// Find is the member of a name, nil for none.
func Find(members []Member, name string) *Member {
	for i := range members {
		if members[i].Name == name {
			return &members[i]
		}
	}
	return nil
}

type reader struct {
	ctx     context.Context
	src     codec.Source
	at      int64 // of the next header
	members []Member
	names   map[string]string
}

// pending is what headers before a member say of it.
type pending struct {
	long, path  string
	size, mtime int64 // -1: not said
}

// next reads the headers of one member, and moves behind its bytes. It tells
// false at the end of the archive.
func (r *reader) next() (Member, bool, error) {
	p := pending{size: -1, mtime: -1}
	b := make([]byte, sector)
	for range maxExtra {
		at := r.at
		if at > r.src.Size()-sector {
			return Member{}, false, codec.Corruptf("archive of %d bytes: a header or the zeros of the end should lie at %#x: truncated, want %d bytes at least", r.src.Size(), at, at+2*sector)
		}
		if err := codec.ReadFull(r.ctx, r.src, b, at, "tar header"); err != nil {
			return Member{}, false, err
		}
		if codec.Empty(b) {
			if p != (pending{size: -1, mtime: -1}) {
				return Member{}, false, codec.Corruptf("archive ends at %#x, where the member of a long name or pax header should be", at)
			}
			return Member{}, false, r.end()
		}
		h, err := parseHeader(b)
		if err != nil {
			return Member{}, false, fmt.Errorf("tar header at %#x: %w", at, err)
		}
		m, done, err := r.take(h, &p)
		if err != nil {
			return Member{}, false, fmt.Errorf("tar header at %#x: %w", at, err)
		}
		if done {
			return m, true, nil
		}
	}
	return Member{}, false, codec.Unsupportedf("more than %d headers before the member at %#x", maxExtra, r.at)
}

// end checks that nothing but zeros follows.
func (r *reader) end() error {
	n := r.src.Size() - r.at
	if n > maxTail {
		return codec.Unsupportedf("%d bytes behind the end of the archive at %#x, up to %d are known", n, r.at, maxTail)
	}
	b := make([]byte, n)
	if err := codec.ReadFull(r.ctx, r.src, b, r.at, "zeros at the end"); err != nil {
		return err
	}
	if !codec.Empty(b) {
		return codec.Corruptf("bytes other than zero behind the end of the archive at %#x", r.at)
	}
	return nil
}

// header is one header as it stands.
type header struct {
	name        string
	size, mtime int64
	kind        byte
}

func parseHeader(b []byte) (h header, err error) {
	magic := string(b[257:265])
	if magic != string(USTAR) && magic != string(GNU) {
		return h, codec.Corruptf("magic at 257 is %q, want %q or %q", magic, USTAR, GNU)
	}
	sum, err := parseNumber(b[148:156])
	if err != nil {
		return h, codec.Corruptf("checksum at 148: %v", err)
	}
	if unsigned, signed := sums(b); sum != unsigned && sum != signed {
		return h, codec.Corruptf("checksum at 148 is %#o, the header has %#o", sum, unsigned)
	}
	h.kind = b[156]
	h.name = cString(b[:100])
	if prefix := cString(b[345:500]); magic == string(USTAR) && prefix != "" {
		h.name = prefix + "/" + h.name
	}
	if h.size, err = parseNumber(b[124:136]); err != nil {
		return h, codec.Corruptf("size at 124: %v", err)
	}
	// A time is no reason to refuse an archive.
	if h.mtime, err = parseNumber(b[136:148]); err != nil {
		h.mtime = 0
	}
	return h, nil
}

// kinds are the types of members that are refused.
var kinds = map[byte]string{
	'1': "a hard link", '2': "a symbolic link", 'K': "a link with a long target",
	'3': "a character device", '4': "a block device", '6': "a pipe", '5': "a folder", 'D': "a folder",
	'S': "sparse", 'M': "the rest of a member of another archive", 'V': "the name of a volume",
}

// take makes the member of h, or notes in p what a header before it says. It
// moves behind the bytes of either.
func (r *reader) take(h header, p *pending) (m Member, done bool, err error) {
	off := r.at + sector
	if h.kind == '0' || h.kind == 0 {
		m, err := p.member(h, off)
		if err != nil {
			return m, false, err
		}
		return m, true, r.skip(m.Name, off, m.Size)
	}
	limit := int64(maxPax)
	switch h.kind {
	case 'x', 'g':
	case 'L':
		limit = maxLong
	default:
		if what, ok := kinds[h.kind]; ok {
			return m, false, codec.Unsupportedf("member %.200q is %s, not a plain file", h.name, what)
		}
		return m, false, codec.Unsupportedf("member %.200q is of the unknown type %q", h.name, h.kind)
	}
	if h.size > limit {
		return m, false, codec.Unsupportedf("header of type %q with %d bytes, up to %d are known", h.kind, h.size, limit)
	}
	if err := r.skip(h.name, off, h.size); err != nil {
		return m, false, err
	}
	b := make([]byte, h.size)
	if err := codec.ReadFull(r.ctx, r.src, b, off, "extended tar header"); err != nil {
		return m, false, err
	}
	if h.kind == 'L' {
		if p.long != "" {
			return m, false, codec.Corruptf("second long name for one member")
		}
		if p.long = cString(b); p.long == "" {
			return m, false, codec.Corruptf("empty long name")
		}
		return m, false, nil
	}
	return m, false, p.pax(b, h.kind == 'g')
}

// skip moves to the header behind a member's bytes.
func (r *reader) skip(name string, off, size int64) error {
	if size > r.src.Size()-off {
		return codec.Corruptf("member %.200q at %#x has %d bytes: past the end of the file (%d bytes): truncated, or more than was written", name, off, size, r.src.Size())
	}
	r.at = off + codec.Up(size, sector)
	return nil
}

// member joins a header with what stood before it.
func (p *pending) member(h header, off int64) (Member, error) {
	switch {
	case p.long != "" && p.path != "":
		return Member{}, codec.Corruptf("two long names for one member, %.200q and %.200q", p.long, p.path)
	case p.long != "":
		h.name = p.long
	case p.path != "":
		h.name = p.path
	}
	if p.size >= 0 {
		h.size = p.size
	}
	if p.mtime >= 0 {
		h.mtime = p.mtime
	}
	m := Member{Name: strings.TrimPrefix(h.name, "./"), Off: off, Size: h.size}
	if h.mtime > 0 {
		m.Time = time.Unix(min(h.mtime, 1<<40), 0).UTC()
	}
	return m, checkName(m.Name)
}

// pax reads the records of a pax header: "LENGTH KEY=VALUE\n", where LENGTH
// counts all of the record (POSIX pax, "pax Extended Header"). A global header
// may say nothing that matters here: it would hold for every member.
func (p *pending) pax(b []byte, global bool) error {
	for len(b) > 0 {
		digits, _, ok := bytes.Cut(b[:min(len(b), 8)], []byte(" "))
		n, err := strconv.ParseUint(string(digits), 10, 31)
		if !ok || err != nil || int(n) > len(b) || int(n) <= len(digits)+1 || b[n-1] != '\n' {
			return codec.Corruptf("pax record %.40q: wrong length", b)
		}
		key, val, ok := strings.Cut(string(b[len(digits)+1:n-1]), "=")
		if !ok {
			return codec.Corruptf("pax record %.40q has no value", b)
		}
		b = b[n:]
		if err := p.set(key, val, global); err != nil {
			return err
		}
	}
	return nil
}

func (p *pending) set(key, val string, global bool) error {
	switch {
	case strings.HasPrefix(key, "GNU.sparse."), key == "SCHILY.realsize":
		return codec.Unsupportedf("pax record %.40q: a sparse member", key)
	case key == "linkpath":
		return codec.Unsupportedf("pax record %q: a link", key)
	case key != "path" && key != "size" && key != "mtime":
		return nil
	case global && key == "mtime":
		return nil
	case global:
		return codec.Unsupportedf("pax record %q for all members", key)
	}
	if key == "path" {
		if val == "" || p.path != "" {
			return codec.Corruptf("pax record path=%.200q: empty, or there is one already (%.200q)", val, p.path)
		}
		p.path = val
		return nil
	}
	to := &p.size
	if key == "mtime" {
		to = &p.mtime
		val, _, _ = strings.Cut(val, ".")
		if strings.HasPrefix(val, "-") {
			val = "0"
		}
	}
	n, err := strconv.ParseUint(val, 10, 63)
	if err != nil || *to >= 0 {
		return codec.Corruptf("pax record %s=%.40q: no number, or there is one already", key, val)
	}
	*to = int64(n)
	return nil
}

// checkName refuses what is not the plain name of one file.
func checkName(name string) error {
	bad := func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == '/' || r == '\\' }
	switch {
	case name == "" || name == "." || name == "..":
		return codec.Unsupportedf("name of a member, %q: no name of a file", name)
	case len(name) > 255:
		return codec.Unsupportedf("name of a member, %.80q: longer than 255 bytes", name)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, bad):
		return codec.Unsupportedf("name of a member, %q: a path, or not plain text", name)
	}
	return nil
}

// parseNumber reads a field: octal text between spaces and NULs, or base-256.
// The number fits 63 bits and is not negative.
func parseNumber(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		low := b
		if n := len(b) - 8; n > 0 {
			low = b[n:]
			for i, c := range b[:n] {
				if c != 0 && (i > 0 || c != 0x80) {
					return 0, fmt.Errorf("% x: negative or past 63 bits", b)
				}
			}
		} else { // a field of 8 bytes carries the mark in the number
			return 0, fmt.Errorf("% x: not octal", b)
		}
		if v := binary.BigEndian.Uint64(low); v < 1<<63 {
			return int64(v), nil
		}
		return 0, fmt.Errorf("% x: past 63 bits", b)
	}
	text := strings.Trim(string(b), " \x00")
	if text == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(text, 8, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not octal", b)
	}
	return int64(v), nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

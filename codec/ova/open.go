package ova

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"imagefs/codec"
	"imagefs/codec/tarball"
)

// maxMembers bounds an archive: a read each.
const maxMembers = 256

// archive is the members of a package by what they are.
type archive struct {
	members  []tarball.Member
	ovf      *tarball.Member
	manifest *tarball.Member // nil: none
	cert     *tarball.Member
}

func list(ctx context.Context, src codec.Source) (*archive, error) {
	head := make([]byte, min(512, src.Size()))
	if err := codec.ReadFull(ctx, src, head, 0, "head of the archive"); err != nil {
		return nil, err
	}
	if !tarball.Probe(head) {
		return nil, fmt.Errorf("%w: no tar archive", codec.ErrFormat)
	}
	members, err := tarball.Read(ctx, src, maxMembers)
	if err != nil {
		return nil, err
	}
	a := &archive{members: members}
	for i, m := range members {
		var to **tarball.Member
		switch name := strings.ToLower(m.Name); {
		case strings.HasSuffix(name, ".ovf"):
			to = &a.ovf
		case strings.HasSuffix(name, ".mf"):
			to = &a.manifest
		case strings.HasSuffix(name, ".cert"):
			to = &a.cert
		default:
			continue
		}
		if *to != nil {
			return nil, codec.Unsupportedf("two members of one kind, %q and %q", (*to).Name, m.Name)
		}
		*to = &members[i]
	}
	if a.ovf == nil {
		return nil, fmt.Errorf("%w: archive without an .ovf", codec.ErrFormat)
	}
	return a, nil
}

// text reads a small member.
func (a *archive) text(ctx context.Context, src codec.Source, m *tarball.Member) ([]byte, error) {
	if m.Size > maxDescriptor {
		return nil, codec.Unsupportedf("member %q of %d bytes, longest is %d", m.Name, m.Size, maxDescriptor)
	}
	b := make([]byte, m.Size)
	return b, codec.ReadFull(ctx, src, b, m.Off, "member "+fmt.Sprintf("%q", m.Name))
}

// Open reads the descriptor and finds the disks.
func (p pack) Open(ctx context.Context, src codec.Source) (codec.Machine, []codec.Part, error) {
	m, parts, err := p.open(ctx, src)
	if err != nil {
		return codec.Machine{}, nil, fmt.Errorf("open ova: %w", err)
	}
	return m, parts, nil
}

func (pack) open(ctx context.Context, src codec.Source) (m codec.Machine, parts []codec.Part, err error) {
	a, err := list(ctx, src)
	if err != nil {
		return m, nil, err
	}
	text, err := a.text(ctx, src, a.ovf)
	if err != nil {
		return m, nil, err
	}
	e, err := parseEnvelope(text)
	if err != nil {
		return m, nil, fmt.Errorf("descriptor %q: %w", a.ovf.Name, err)
	}
	m = e.machine
	m.Created = a.ovf.Time
	if err := m.Check(); err != nil {
		return m, nil, fmt.Errorf("descriptor %q: %w", a.ovf.Name, err)
	}
	files, err := a.match(e.files)
	if err != nil {
		return m, nil, err
	}
	if a.manifest != nil {
		if _, err := a.readManifest(ctx, src); err != nil {
			return m, nil, err
		}
	}
	for i, d := range e.disks {
		member, ok := files[d.fileRef]
		if !ok {
			return m, nil, codec.Corruptf("disk %.80q refers to the file %.80q, which the descriptor does not have", d.id, d.fileRef)
		}
		format, err := known(ctx, member.Open(src))
		if err != nil {
			return m, nil, fmt.Errorf("member %q: %w", member.Name, err)
		}
		parts = append(parts, codec.Part{Number: i, Name: member.Name, Off: member.Off, Len: member.Size, Format: format, Size: d.capacity})
	}
	return m, parts, nil
}

// match finds the member of each file, by id. Every file has one, every member
// is a file's.
func (a *archive) match(files []file) (map[string]*tarball.Member, error) {
	found := map[string]*tarball.Member{}
	named := map[string]bool{a.ovf.Name: true}
	for _, m := range []*tarball.Member{a.manifest, a.cert} {
		if m != nil {
			named[m.Name] = true
		}
	}
	for _, f := range files {
		m := tarball.Find(a.members, f.href)
		if m == nil { // a reference is a URL, though few writers escape it
			if name, err := url.PathUnescape(f.href); err == nil {
				m = tarball.Find(a.members, name)
			}
		}
		switch {
		case m == nil:
			return nil, codec.Corruptf("descriptor names the file %.200q, which is no member of the archive", f.href)
		case named[m.Name]:
			return nil, codec.Corruptf("descriptor names the member %q twice, or as a file", m.Name)
		case f.size >= 0 && f.size != m.Size:
			return nil, codec.Corruptf("descriptor says that %q has %d bytes, the member has %d", m.Name, f.size, m.Size)
		}
		named[m.Name] = true
		found[f.id] = m
	}
	for _, m := range a.members {
		if !named[m.Name] {
			return nil, codec.Corruptf("member %q is not named by the descriptor", m.Name)
		}
	}
	return found, nil
}

// formats are those of disks in a package, by their signature.
var formats = []string{"vmdk", "vhd", "vhdx", "vdi", "qcow2"}

// known tells the format of a disk. A raw disk, which its guest could make look
// like another, is not taken.
func known(ctx context.Context, src codec.Source) (string, error) {
	head, tail, err := codec.Ends(ctx, src)
	if err != nil {
		return "", err
	}
	names := codec.Signatures(head, tail)
	if len(names) != 1 || !slices.Contains(formats, names[0]) {
		what := "no known signature"
		if len(names) > 0 {
			what = strings.Join(names, " and ")
		}
		return "", codec.Unsupportedf("disk of a package with %s, want one of %s", what, strings.Join(formats, ", "))
	}
	return names[0], nil
}

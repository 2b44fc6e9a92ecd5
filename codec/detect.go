package codec

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// What a probe sees: the first 64 KiB and the last 1,536 bytes, enough for
// every signature and for the footer of a VMDK.
const (
	HeadLen = 64 << 10
	TailLen = 1536
)

// Ends reads the head and tail of src that a probe wants, both at once: each may
// be a request to a server far away.
func Ends(ctx context.Context, src Source) (head, tail []byte, err error) {
	head = make([]byte, min(HeadLen, src.Size()))
	tail = make([]byte, min(TailLen, src.Size()))
	last := make(chan error, 1)
	go func() { last <- readEnd(ctx, src, tail, src.Size()-int64(len(tail))) }()
	err = readEnd(ctx, src, head, 0)
	if err2 := <-last; err == nil {
		err = err2
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the ends of the image: %w", err)
	}
	return head, tail, nil
}

func readEnd(ctx context.Context, src Source, p []byte, off int64) error {
	n, err := src.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// signature is one row of the table by which content is known: any format of
// the field, read here or not.
type signature struct {
	name string
	is   func(head, tail []byte) bool
	then string // what to do first with content that is not read here
}

// VMDKDescriptor is the signature of a VMDK's descriptor in a file of its own.
const VMDKDescriptor = "vmdk descriptor without its extents"

func at(off int, magic string) func(head, tail []byte) bool {
	return func(head, _ []byte) bool { return hasAt(head, off, magic) }
}

func hasAt(b []byte, off int, magic string) bool {
	return len(b) >= off+len(magic) && string(b[off:off+len(magic)]) == magic
}

// atEnd looks n bytes before the end of the file.
func atEnd(n int, magic string) func(head, tail []byte) bool {
	return func(_, tail []byte) bool { return len(tail) >= n && hasAt(tail, len(tail)-n, magic) }
}

func qcow(versions ...uint32) func(head, tail []byte) bool {
	return func(head, _ []byte) bool {
		if !hasAt(head, 0, "QFI\xfb") {
			return false
		}
		if len(head) < 8 {
			return len(versions) == 0
		}
		v := binary.BigEndian.Uint32(head[4:])
		for _, w := range versions {
			if v == w {
				return true
			}
		}
		return len(versions) == 0 && (v < 1 || v > 3)
	}
}

func either(a, b func(head, tail []byte) bool) func(head, tail []byte) bool {
	return func(head, tail []byte) bool { return a(head, tail) || b(head, tail) }
}

// signatures stands in the order of the reference table of formats: what lies
// at the start, then text, then what only the tail tells.
var signatures = []signature{
	{"qcow2", qcow(2, 3), ""},
	{"qcow1", qcow(1), ""},
	{"qcow of an unknown version", qcow(), "convert it first, with the program that made it"},
	{"vmdk", at(0, "KDMV"), ""},
	{"vmdk COWD delta", at(0, "COWD"), "flatten it first, on its host: vmkfstools -i DESCRIPTOR OUT.vmdk"},
	{"vmdk seSparse delta", at(0, "\xbe\xba\xfe\xca\x00\x00\x00\x00"), "flatten it first, on its host: vmkfstools -i DESCRIPTOR OUT.vmdk"},
	{"vhdx", at(0, "vhdxfile"), ""},
	{"vhd", either(at(0, "conectix"), either(atEnd(512, "conectix"), atEnd(511, "conectix"))), ""},
	{"vdi", at(64, "\x7f\x10\xda\xbe"), ""},
	{"zvhd", at(0, "stream\x00\x00"), ""},
	{"zvhd2", at(0, "z2strm\x00\x00"), ""},
	{"qed", at(0, "QED\x00"), ""},
	{"parallels", func(head, _ []byte) bool {
		return (hasAt(head, 0, "WithoutFreeSpace") || hasAt(head, 0, "WithouFreSpacExt")) && hasAt(head, 16, "\x02\x00\x00\x00")
	}, ""},
	{"LUKS encrypted disk", at(0, "LUKS\xba\xbe"), "decrypt it first: qemu-img convert --object secret,id=key,file=KEYFILE " +
		"--image-opts driver=luks,key-secret=key,file.filename=IN -O qcow2 OUT"},
	{"gzip compressed file", at(0, "\x1f\x8b"), "unpack it first: gunzip"},
	{"xz compressed file", at(0, "\xfd7zXZ\x00"), "unpack it first: unxz"},
	{"zstd compressed file", at(0, "\x28\xb5\x2f\xfd"), "unpack it first: unzstd"},
	{"bzip2 compressed file", at(0, "BZh"), "unpack it first: bunzip2"},
	{"zip archive", at(0, "PK\x03\x04"), "unpack it first: unzip"},
	{"tar archive", at(257, "ustar"), "name it .ova or .oci where it is one, or unpack it first: tar -xf"},
	{VMDKDescriptor, vmdkText, "name it .vmdk and copy the files that it names beside it, or convert it first: qemu-img convert -f vmdk -O qcow2 IN OUT"},
	{"cloop", cloop, "convert it first: qemu-img convert -f cloop -O qcow2 IN OUT"},
	{"bochs", at(0, "Bochs Virtual HD Image"), "convert it first: qemu-img convert -f bochs -O qcow2 IN OUT"},
	{"dmg", atEnd(512, "koly"), "convert it first: qemu-img convert -f dmg -O qcow2 IN OUT"},
}

// vmdkText knows a VMDK descriptor as the field's readers do: by its first
// line, or by a version line after comments and blank lines only.
func vmdkText(head, _ []byte) bool {
	text := strings.ToLower(string(head[:min(len(head), 4096)]))
	for _, s := range []string{"# disk descriptorfile", "# disk descriptor file", "#disk descriptorfile"} {
		if strings.HasPrefix(text, s) {
			return true
		}
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		return line == "version=1" || line == "version=2" || line == "version=3"
	}
	return false
}

// cloop knows the script of up to 128 bytes, whatever its version, by which
// such a file mounts itself.
func cloop(head, _ []byte) bool {
	text := head[:min(len(head), 128)]
	return hasAt(text, 0, "#!") && bytes.Contains(text, []byte("cloop"))
}

// Signatures names every format whose signature the ends of a file carry.
func Signatures(head, tail []byte) []string {
	var names []string
	for _, s := range signatures {
		if s.is(head, tail) {
			names = append(names, s.name)
		}
	}
	return names
}

// Detect tells the format of content by asking every format. The error is
// ErrUnsupported for a signature known but not read here, with what to do first,
// and for a file that two formats claim: checked as the one, it could be used as
// the other.
func Detect(formats []Format, head, tail []byte) (Format, error) {
	if names := Signatures(head, tail); len(names) > 1 {
		return nil, Unsupportedf("content is %s at the same time", strings.Join(names, " and "))
	} else if len(names) == 1 {
		for _, f := range formats {
			if f.Name() == names[0] {
				return f, nil
			}
		}
		return nil, unread(names[0])
	}
	var found Format
	for _, f := range formats {
		if !f.Probe(head, tail) {
			continue
		}
		if found != nil {
			return nil, Unsupportedf("content is %s and %s at the same time", found.Name(), f.Name())
		}
		found = f
	}
	if found == nil {
		return nil, fmt.Errorf("%w: content has no known signature", ErrFormat)
	}
	return found, nil
}

// unread is the error for content of a signature that no format reads.
func unread(name string) error {
	for _, s := range signatures {
		if s.name == name && s.then != "" {
			return Unsupportedf("content is a %s: %s", name, s.then)
		}
	}
	return Unsupportedf("content is a %s", name)
}

var zeroPage [4096]byte

// Empty reports whether b is all zeros.
func Empty(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroPage))
		if !bytes.Equal(b[:n], zeroPage[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

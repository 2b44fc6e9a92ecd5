package codectest

import (
	"testing"

	"imagefs/codec"
)

// Signature is content of a known kind: the ends of a file of it.
type Signature struct {
	Name       string // as in [codec.Signatures]
	Head, Tail []byte
}

// Signatures are one or more samples for every row of the table by which
// content is known, section 2.1 of the reference of formats.
func Signatures() []Signature {
	sig := func(name string, off int, magic string) Signature {
		b := make([]byte, 4096)
		copy(b[off:], magic)
		return Signature{name, b, b[len(b)-codec.TailLen:]}
	}
	end := func(name string, n int, magic string) Signature {
		return sig(name, 4096-n, magic)
	}
	text := func(name, s string) Signature { return Signature{name, []byte(s), []byte(s)} }
	return []Signature{
		sig("qcow1", 0, "QFI\xfb\x00\x00\x00\x01"),
		sig("qcow2", 0, "QFI\xfb\x00\x00\x00\x02"),
		sig("qcow2", 0, "QFI\xfb\x00\x00\x00\x03"),
		sig("qcow of an unknown version", 0, "QFI\xfb\x00\x00\x00\x00"),
		sig("qcow of an unknown version", 0, "QFI\xfb\x00\x00\x00\x04"),
		sig("vmdk", 0, "KDMV"),
		sig("vmdk COWD delta", 0, "COWD"),
		sig("vmdk seSparse delta", 0, "\xbe\xba\xfe\xca\x00\x00\x00\x00"),
		sig("vhdx", 0, "vhdxfile"),
		sig("vhd", 0, "conectix"),
		end("vhd", 512, "conectix"),
		end("vhd", 511, "conectix"),
		sig("vdi", 64, "\x7f\x10\xda\xbe"),
		sig("zvhd", 0, "stream\x00\x00"),
		sig("zvhd2", 0, "z2strm\x00\x00"),
		sig("qed", 0, "QED\x00"),
		sig("parallels", 0, "WithoutFreeSpace\x02\x00\x00\x00"),
		sig("parallels", 0, "WithouFreSpacExt\x02\x00\x00\x00"),
		sig("LUKS encrypted disk", 0, "LUKS\xba\xbe"),
		sig("gzip compressed file", 0, "\x1f\x8b"),
		sig("xz compressed file", 0, "\xfd7zXZ\x00"),
		sig("zstd compressed file", 0, "\x28\xb5\x2f\xfd"),
		sig("bzip2 compressed file", 0, "BZh91AY&SY"),
		sig("zip archive", 0, "PK\x03\x04"),
		sig("tar archive", 257, "ustar"),
		text("vmdk descriptor without its extents", "# Disk DescriptorFile\nversion=1\nCID=12345678\n"),
		text("vmdk descriptor without its extents", "# Disk Descriptor File\r\nversion=1\r\n"),
		text("vmdk descriptor without its extents", "#Disk DescriptorFile\nversion=1\n"),
		text("vmdk descriptor without its extents", "# made by hand\n\n  \nversion=3\nRW 63 FLAT \"/etc/passwd\" 0\n"),
		text("cloop", "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"),
		sig("bochs", 0, "Bochs Virtual HD Image\x00"),
		end("dmg", 512, "koly"),
	}
}

// probe: a format knows its own files and none of the others'.
func (s *suite) probe(t *testing.T) {
	for _, d := range []*Disk{Empty(mib), Full(70000, 1), Alternating(4*mib, 64*kib), LastBlock(4*gib, 64*kib)} {
		head, tail, err := codec.Ends(t.Context(), s.layout(t, d))
		if err != nil {
			t.Fatal(err)
		}
		if !s.open.Probe(head, tail) {
			t.Errorf("the layout of %s is not known as %s", d.Name, s.open.Name())
		}
		if f, err := codec.Detect([]codec.Format{s.open}, head, tail); err != nil || f.Name() != s.open.Name() {
			t.Errorf("the layout of %s is detected as %v, %v", d.Name, f, err)
		}
	}
	s.foreign(t)
}

// foreign: a format claims no file of another's, and no bytes make it panic.
func (s *suite) foreign(t *testing.T) {
	for _, sig := range Signatures() {
		own := sig.Name == s.open.Name() || len(sig.Name) > len(s.open.Name()) && sig.Name[:len(s.open.Name())+1] == s.open.Name()+" "
		if !own && s.open.Probe(sig.Head, sig.Tail) {
			t.Errorf("%s claims a file of kind %q", s.open.Name(), sig.Name)
		}
	}
	// Ends of any length are no reason to panic.
	for n := range 600 {
		b := make([]byte, n)
		s.open.Probe(b, b)
		s.open.Probe(b, nil)
	}
	s.open.Probe(nil, nil)
}

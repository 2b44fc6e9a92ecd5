package codec_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/raw"
)

func TestEverySignatureIsKnownAlone(t *testing.T) {
	for _, s := range codectest.Signatures() {
		if got := codec.Signatures(s.Head, s.Tail); !slices.Equal(got, []string{s.Name}) {
			t.Errorf("content of kind %q is known as %q", s.Name, got)
		}
	}
}

func TestSignatureNeedsEveryByte(t *testing.T) {
	for _, s := range codectest.Signatures() {
		if strings.HasPrefix(s.Name, "vmdk descriptor") || s.Name == "cloop" || strings.HasPrefix(s.Name, "qcow") {
			continue // text, of which only a part counts, and versions
		}
		for i, c := range s.Head {
			if c == 0 {
				continue
			}
			b := bytes.Clone(s.Head)
			b[i] ^= 0x20
			tail := b[max(0, len(b)-codec.TailLen):]
			if strings.HasPrefix(s.Name, "bzip2") && i > 2 {
				continue
			}
			if got := codec.Signatures(b, tail); len(got) != 0 {
				t.Errorf("%q with another byte %d is known as %q", s.Name, i, got)
			}
		}
	}
}

func TestPolyglotsAreRefused(t *testing.T) {
	formats := []codec.Format{known("qcow2"), known("vmdk"), known("vhd"), known("vdi"), raw.Format}
	sigs := codectest.Signatures()
	pairs := 0
	for i, a := range sigs {
		for _, b := range sigs[i+1:] {
			if a.Name == b.Name || len(a.Head) != len(b.Head) {
				continue
			}
			// Where the bytes of both fit, a file is both.
			both, ok := bytes.Clone(a.Head), true
			for k, c := range b.Head {
				if c != 0 && both[k] != 0 && both[k] != c {
					ok = false
				}
				both[k] |= c
			}
			if !ok {
				continue
			}
			tail := both[len(both)-codec.TailLen:]
			if got := codec.Signatures(both, tail); len(got) < 2 {
				continue // one magic is a part of the other
			}
			pairs++
			if f, err := codec.Detect(formats, both, tail); f != nil || !errors.Is(err, codec.ErrUnsupported) {
				t.Errorf("%s and %s at once: %v, %v, want %v", a.Name, b.Name, f, err, codec.ErrUnsupported)
			} else if !strings.Contains(err.Error(), a.Name) || !strings.Contains(err.Error(), b.Name) {
				t.Errorf("%s and %s at once: %q does not name both", a.Name, b.Name, err)
			}
		}
	}
	if pairs < 40 {
		t.Errorf("only %d pairs tried", pairs)
	}
}

func TestTextThatIsNoImage(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"script", "#!/bin/sh\nset -e\nexec qemu-img convert -O vmdk a b\n", ""},
		{"script that sets a variable", "#!/bin/sh\nversion=12\n", ""},
		{"script with a version later", "#!/bin/sh\nset -e\nversion=1\n", ""},
		{"python", "#!/usr/bin/env python3\nversion = 1\n", ""},
		{"yaml", "# settings\nversion: 1\n", ""},
		{"comments only", "# one\n# two\n\n", ""},
		{"markdown", "# Disk images\n\nversion=1 is old\n", ""},
		{"nothing", "", ""},
		{"blank lines", "\n\n\n", ""},
		{"zeros", strings.Repeat("\x00", 600), ""},
		{"descriptor in capitals", "# DISK DESCRIPTORFILE\nVERSION=1\n", "vmdk descriptor without its extents"},
		{"descriptor of DOS lines", "# hello\r\n\r\nversion=2\r\n", "vmdk descriptor without its extents"},
		// qemu takes this for a descriptor, so nobody shall have it as raw.
		{"script that is a descriptor to others", "#!/bin/sh\nversion=1\n", "vmdk descriptor without its extents"},
		{"cloop 2", "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0\n", "cloop"},
		{"cloop of another version", "#!/bin/sh\n#V4.0 Format\nmodprobe cloop file=$0\n", "cloop"},
		{"script that names cloop late", "#!/bin/sh\n" + strings.Repeat("#\n", 70) + "modprobe cloop\n", ""},
		{"prose on cloop", "cloop is a block device\n", ""},
	} {
		got := strings.Join(codec.Signatures([]byte(c.text), []byte(c.text)), ",")
		if got != c.want {
			t.Errorf("%s: known as %q, want %q", c.name, got, c.want)
		}
	}
}

func TestRawIsWhatNothingElseIs(t *testing.T) {
	formats := []codec.Format{known("qcow2"), raw.Format}
	boot := make([]byte, 64<<10)
	copy(boot[510:], "\x55\xaa")
	copy(boot[512:], "EFI PART")
	copy(boot[32769:], "CD001")
	for _, c := range []struct {
		name string
		head []byte
	}{
		{"boot sector, GPT and ISO", boot},
		{"nothing", nil},
		{"one byte", []byte{0}},
		{"part of a magic", []byte("KDM")},
		{"conectix away from the ends", append(append(make([]byte, 512), "conectix"...), make([]byte, 2048)...)},
	} {
		f, err := codec.Detect(formats, c.head, c.head[max(0, len(c.head)-codec.TailLen):])
		if err != nil || f.Name() != "raw" {
			t.Errorf("%s: %v, %v, want raw", c.name, f, err)
		}
	}
	for _, s := range codectest.Signatures() {
		f, err := codec.Detect(formats, s.Head, s.Tail)
		if s.Name == "qcow2" {
			if err != nil || f.Name() != "qcow2" {
				t.Errorf("qcow2: %v, %v", f, err)
			}
		} else if f != nil || !errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), s.Name) {
			t.Errorf("%s: %v, %v, want %v that names it", s.Name, f, err, codec.ErrUnsupported)
		}
	}
	if f, err := codec.Detect([]codec.Format{known("qcow2")}, boot, boot); f != nil || !errors.Is(err, codec.ErrFormat) {
		t.Errorf("no format: %v, %v, want %v", f, err, codec.ErrFormat)
	}
	two := []codec.Format{raw.Format, alias{raw.Format}}
	if f, err := codec.Detect(two, boot, boot); f != nil || !errors.Is(err, codec.ErrUnsupported) {
		t.Errorf("claimed by two formats: %v, %v, want %v", f, err, codec.ErrUnsupported)
	}
}

// TestUnreadContentSaysWhatToDo: what is known and not read is refused with a
// step that leads on.
func TestUnreadContentSaysWhatToDo(t *testing.T) {
	const luks = "qemu-img convert --object secret,id=key,file=KEYFILE --image-opts driver=luks,key-secret=key,file.filename=IN -O qcow2 OUT"
	want := map[string]string{
		"qcow of an unknown version": "with the program that made it",
		"vmdk COWD delta":            "vmkfstools -i",
		"vmdk seSparse delta":        "vmkfstools -i",
		"LUKS encrypted disk":        "decrypt it first: " + luks,
		"gzip compressed file":       "unpack it first: gunzip",
		"xz compressed file":         "unpack it first: unxz",
		"zstd compressed file":       "unpack it first: unzstd",
		"bzip2 compressed file":      "unpack it first: bunzip2",
		"zip archive":                "unpack it first: unzip",
		"tar archive":                "name it .ova or .oci",
		codec.VMDKDescriptor:         "copy the files that it names beside it",
		"cloop":                      "qemu-img convert -f cloop -O qcow2 IN OUT",
		"bochs":                      "qemu-img convert -f bochs -O qcow2 IN OUT",
		"dmg":                        "qemu-img convert -f dmg -O qcow2 IN OUT",
	}
	read := []codec.Format{raw.Format}
	for _, name := range []string{"qcow1", "qcow2", "vmdk", "vhdx", "vhd", "vdi", "zvhd", "zvhd2", "qed", "parallels"} {
		read = append(read, known(name))
	}
	seen := map[string]bool{}
	for _, s := range codectest.Signatures() {
		f, err := codec.Detect(read, s.Head, s.Tail)
		if f != nil {
			if f.Name() != s.Name {
				t.Errorf("%s is detected as %s", s.Name, f.Name())
			}
			continue
		}
		seen[s.Name] = true
		begin := "not supported: content is a " + s.Name + ": "
		if w := want[s.Name]; w == "" || !errors.Is(err, codec.ErrUnsupported) || !strings.HasPrefix(err.Error(), begin) || !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v, want %q", s.Name, err, w)
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d signatures are not read, want %d", len(seen), len(want))
	}
}

func TestEndsOfFiles(t *testing.T) {
	ctx := context.Background()
	for _, size := range []int64{0, 1, 511, 1535, 1536, 1537, 65535, 65536, 65537, 200000} {
		d := codectest.Full(size, 1)
		b, err := codectest.ReadAll(d)
		if size > 0 && err != nil {
			t.Fatal(err)
		}
		head, tail, err := codec.Ends(ctx, d)
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
			continue
		}
		if !bytes.Equal(head, b[:min(size, codec.HeadLen)]) || !bytes.Equal(tail, b[size-min(size, codec.TailLen):]) {
			t.Errorf("%d bytes: the ends are %d and %d bytes, or others", size, len(head), len(tail))
		}
	}
	if _, _, err := codec.Ends(ctx, codectest.Faulty(codectest.Bytes(make([]byte, 9999)), codectest.ErrBoom, 1)); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("a store that fails: %v", err)
	}
}

// known is a format that only has a name.
type known string

func (k known) Name() string            { return string(k) }
func (known) Probe(head, _ []byte) bool { return false }
func (known) Open(context.Context, codec.Source) (codec.Disk, error) {
	return nil, codec.ErrFormat
}

func (known) Layout(context.Context, codec.Disk, codec.Facts) (*codec.File, error) {
	return nil, codec.ErrTooLarge
}

type alias struct{ codec.Format }

func (alias) Name() string { return "alias" }

func TestEmpty(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 10000} {
		b := make([]byte, n)
		if !codec.Empty(b) {
			t.Errorf("%d zeros are not empty", n)
		}
		for _, i := range []int{0, n / 2, n - 1} {
			if n > 0 {
				b[i] = 1
				if codec.Empty(b) {
					t.Errorf("byte %d of %d set, and empty", i, n)
				}
				b[i] = 0
			}
		}
	}
}

package codec_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// kind is a package that opens what holds its name, and refuses what holds "bad
// NAME".
type kind string

func (k kind) Name() string                { return string(k) }
func (k kind) Probe(head []byte) bool      { return bytes.HasPrefix(head, []byte("pack")) }
func (k kind) View() codec.View            { return nil }
func (k kind) DiskName(string, int) string { return "" }

func (k kind) Layout(codec.Machine, []codec.PackDisk) (*codec.File, error) {
	return nil, codec.ErrNotPossible
}

func (k kind) Open(ctx context.Context, src codec.Source) (codec.Machine, []codec.Part, error) {
	b := make([]byte, src.Size())
	if err := codec.ReadFull(ctx, src, b, 0, "package"); err != nil {
		return codec.Machine{}, nil, err
	}
	switch text := string(b); {
	case strings.Contains(text, "bad "+string(k)):
		return codec.Machine{}, nil, codec.Corruptf("bad %s", string(k))
	case strings.Contains(text, string(k)):
		return codec.Machine{Name: string(k)}, []codec.Part{{Off: 1, Len: 2}}, nil
	}
	return codec.Machine{}, nil, codec.ErrFormat
}

// TestOpenPackage: the members tell, not the order of the list.
func TestOpenPackage(t *testing.T) {
	pkgs := []codec.Package{kind("ova"), kind("oci")}
	for text, c := range map[string]struct {
		name string
		want error
		say  string
	}{
		"pack ova":            {"ova", nil, ""},
		"pack oci":            {"oci", nil, ""},
		"pack else":           {"", codec.ErrFormat, "no known package"},
		"ova":                 {"", codec.ErrFormat, "no known package"},
		"":                    {"", codec.ErrFormat, "no known package"},
		"pack bad oci":        {"", codec.ErrCorrupt, "bad oci"},
		"pack ova oci":        {"", codec.ErrUnsupported, "ova and oci at the same time"},
		"\x1f\x8bpack":        {"", codec.ErrUnsupported, "unpack the gzip first"},
		"pack ova, a bad oci": {"", codec.ErrCorrupt, "bad oci"},
	} {
		p, m, parts, err := codec.OpenPackage(context.Background(), pkgs, codectest.Bytes([]byte(text)))
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.say) {
			t.Errorf("%q: %v, want %v and %q", text, err, c.want, c.say)
		}
		if c.name == "" && (p != nil || parts != nil) || c.name != "" && (p == nil || p.Name() != c.name || m.Name != c.name || len(parts) != 1) {
			t.Errorf("%q: %v, %+v, %v", text, p, m, parts)
		}
	}
	_, _, _, err := codec.OpenPackage(context.Background(), pkgs, codectest.Faulty(codectest.Bytes([]byte("pack ova")), codectest.ErrBoom, 1))
	if !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("a failing store: %v", err)
	}
}

// TestMachineCheck: bounds of what a package may say.
func TestMachineCheck(t *testing.T) {
	ok := codec.Machine{Name: "a é", Description: "one\n\ttwo", CPUs: codec.MaxCPUs, MemoryMiB: codec.MaxMemoryMiB, Firmware: "uefi", Extra: map[string]string{"a.b": "c"}}
	if err := ok.Check(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		m    codec.Machine
		want error
		say  string
	}{
		{codec.Machine{Name: "a\n"}, codec.ErrCorrupt, "name of the machine"},
		{codec.Machine{OS: "\xff"}, codec.ErrCorrupt, "operating system"},
		{codec.Machine{OSVersion: "\u0085"}, codec.ErrCorrupt, "version"},
		{codec.Machine{Arch: "\uffff"}, codec.ErrCorrupt, "architecture"},
		{codec.Machine{Description: "a\r"}, codec.ErrCorrupt, "description"},
		{codec.Machine{Name: strings.Repeat("a", 1025)}, codec.ErrUnsupported, "1025 bytes"},
		{codec.Machine{Extra: map[string]string{"a\x00": ""}}, codec.ErrCorrupt, "property"},
		{codec.Machine{Extra: map[string]string{"a": "\x00"}}, codec.ErrCorrupt, `property "a"`},
		{codec.Machine{CPUs: -1}, codec.ErrUnsupported, "processors"},
		{codec.Machine{CPUs: codec.MaxCPUs + 1}, codec.ErrUnsupported, "processors"},
		{codec.Machine{MemoryMiB: -1}, codec.ErrUnsupported, "memory"},
		{codec.Machine{MemoryMiB: codec.MaxMemoryMiB + 1}, codec.ErrUnsupported, "memory"},
		{codec.Machine{Firmware: "coreboot"}, codec.ErrUnsupported, "firmware"},
	} {
		if err := c.m.Check(); !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.say) {
			t.Errorf("%+v: %v, want %v and %q", c.m, err, c.want, c.say)
		}
	}
	for s, want := range map[string]string{"AMD64": "x86_64", "i686": "i386", "ARM64": "aarch64", "riscv64": "riscv64", "": ""} {
		if got := codec.Arch(s); got != want {
			t.Errorf("Arch(%q) = %q, want %q", s, got, want)
		}
	}
}

// TestSection: a range of a source, cut where the source ends.
func TestSection(t *testing.T) {
	ctx := context.Background()
	src := codectest.Bytes([]byte("0123456789"))
	for _, c := range []struct {
		off, n int64
		want   string
	}{{0, 10, "0123456789"}, {3, 4, "3456"}, {8, 10, "89"}, {10, 1, ""}, {20, 1, ""}, {-1, 2, "01"}, {3, -1, ""}} {
		s := codec.Part{Off: c.off, Len: c.n}.Open(src)
		got, err := codectest.ReadAll(s)
		if c.want != "" && err != nil || string(got) != c.want {
			t.Errorf("[%d, +%d): %q, %v, want %q", c.off, c.n, got, err, c.want)
		}
	}
	s := codec.Section(src, 3, 4)
	b := make([]byte, 10)
	if n, err := s.ReadAt(ctx, b, 2); n != 2 || err != io.EOF || string(b[:2]) != "56" {
		t.Errorf("read over the end: %d, %v, %q", n, err, b[:2])
	}
	if n, err := s.ReadAt(ctx, b[:2], 2); n != 2 || err != nil {
		t.Errorf("read up to the end: %d, %v", n, err)
	}
	if _, err := s.ReadAt(ctx, b, 4); err != io.EOF {
		t.Errorf("read behind the end: %v", err)
	}
	// A source that is shorter than it says must not look like the end.
	long := codec.Section(lying{src}, 5, 20)
	if n, err := long.ReadAt(ctx, b, 0); n != 5 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read of a source that lies: %d, %v", n, err)
	}
	if n := testing.AllocsPerRun(100, func() { s.ReadAt(ctx, b[:2], 1) }); n != 0 {
		t.Errorf("a read allocates %.0f times", n)
	}
}

type lying struct{ codec.Source }

func (lying) Size() int64 { return 1000 }

// TestPackagesSee: what the list of all formats sees in a tar archive.
func TestPackagesSee(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "a", Mode: 0o644})
	w.Close()
	if got := codec.Signatures(b.Bytes(), nil); len(got) != 1 || got[0] != "tar archive" {
		t.Errorf("signatures %q", got)
	}
}

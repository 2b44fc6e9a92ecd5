package codec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of what a [Machine] says.
const (
	MaxCPUs      = 4096
	MaxMemoryMiB = 1 << 26 // 64 TiB
	maxText      = 1024    // bytes of a name
	maxLongText  = 64 << 10
	maxExtra     = 256 << 10 // all of it is kept in the catalog's entry
)

// Machine is what a package says of an image besides its disks. A zero field
// is not known: the package's folder says what is written then.
type Machine struct {
	Name      string
	ID        [16]byte  // of the image; no package carries it
	Created   time.Time // in whole seconds
	CPUs      int
	MemoryMiB int64
	Firmware  string // "bios" or "uefi"
	OS        string // such as "Debian", in anyone's spelling
	OSVersion string
	Arch      string // "x86_64", "i386", "aarch64" as read; [Arch] knows their other names
	// Description may have several lines.
	Description string
	// Extra is what one kind of package alone knows, under keys that begin
	// with its name: "oci.image_metadata" (its JSON) and "ova.os_id",
	// "ova.os_type" (the numbers and names of guest systems).
	Extra map[string]string
}

// Check holds m to its bounds: a text is UTF-8 without control characters. The
// error names the field.
func (m *Machine) Check() error {
	texts := []struct {
		what, s string
		max     int
		lines   bool
	}{
		{"name", m.Name, maxText, false},
		{"operating system", m.OS, maxText, false},
		{"version of the operating system", m.OSVersion, maxText, false},
		{"architecture", m.Arch, maxText, false},
		{"description", m.Description, maxLongText, true},
	}
	for _, t := range texts {
		if err := checkText(t.s, t.max, t.lines); err != nil {
			return fmt.Errorf("%s of the machine: %w", t.what, err)
		}
	}
	for k, v := range m.Extra {
		if err := checkText(k, maxText, false); err != nil {
			return fmt.Errorf("name of a property: %w", err)
		}
		if err := checkText(v, maxExtra, false); err != nil {
			return fmt.Errorf("property %q: %w", k, err)
		}
	}
	switch {
	case m.CPUs < 0 || m.CPUs > MaxCPUs:
		return Unsupportedf("%d processors, up to %d are known", m.CPUs, MaxCPUs)
	case m.MemoryMiB < 0 || m.MemoryMiB > MaxMemoryMiB:
		return Unsupportedf("memory of %d MiB, up to %d are known", m.MemoryMiB, MaxMemoryMiB)
	case m.Firmware != "" && m.Firmware != "bios" && m.Firmware != "uefi":
		return Unsupportedf("firmware %.40q, known are bios and uefi", m.Firmware)
	}
	return nil
}

func checkText(s string, limit int, lines bool) error {
	if len(s) > limit {
		return Unsupportedf("a text of %d bytes, longest is %d", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return Corruptf("%.80q is not UTF-8", s)
	}
	for _, r := range s {
		if (r < ' ' || r >= 0x7f && r < 0xa0) && (!lines || r != '\n' && r != '\t') {
			return Corruptf("%.80q has the control character %q", s, r)
		}
		if r == 0xfffe || r == 0xffff {
			return Corruptf("%.80q has %q, which is no character", s, r)
		}
	}
	return nil
}

// Arch returns the usual name of an architecture that is known under several,
// and what is not known as it is, in small letters.
func Arch(s string) string {
	switch s = strings.ToLower(s); s {
	case "amd64", "x64", "x86-64", "x86_64":
		return "x86_64"
	case "x86", "i386", "i486", "i586", "i686", "ia32":
		return "i386"
	case "arm64", "aarch64":
		return "aarch64"
	}
	return s
}

// PackDisk is a disk to be laid out in a package.
type PackDisk struct {
	Number     int
	Size, Data int64 // guest bytes, and how many of them are allocated
	File       Disk  // in the package's format, under the name of [Package.DiskName]
}

// Part is a disk inside a package: a range of its bytes, of no further coding.
type Part struct {
	Number   int    // from 0, without gaps
	Name     string // of the member
	Off, Len int64
	Format   string // by its signature, such as "vmdk"; "" where it is not told
	Size     int64  // guest bytes that the package says, 0 where it does not: for remarks only
}

// Open is the part as a source of its own.
func (p Part) Open(src Source) Source { return Section(src, p.Off, p.Len) }

// Package is a file of a whole image: what the machine is, and its disks.
type Package interface {
	// Name is the package's name: its file suffix and flag value.
	Name() string
	// Probe reports, without I/O, whether a file that begins with head may be
	// this package. Several are tar archives, which only Open tells apart.
	Probe(head []byte) bool
	// View is what the disks inside are laid out as.
	View() View
	// DiskName is [Facts.Name] of a disk inside: its file's name without the
	// suffix.
	DiskName(image string, number int) string
	// Layout lays the package out. It reads sizes, never bytes.
	// [ErrNotPossible] where the package cannot say what the machine is,
	// [ErrTooLarge] where the disks do not fit.
	Layout(m Machine, disks []PackDisk) (*File, error)
	// Open reads what src says of a machine, and where its disks lie. Nothing
	// is unpacked and nothing of the disks is read but their ends. ErrFormat
	// for what is another package; other errors are as of [Format].
	Open(ctx context.Context, src Source) (Machine, []Part, error)
}

// Digested is a Package that carries digests of its members. Verify reads all
// of src once and compares; nil where src has none.
type Digested interface {
	Package
	Verify(ctx context.Context, src Source) error
}

// OpenPackage opens src as the one of pkgs that its members tell.
func OpenPackage(ctx context.Context, pkgs []Package, src Source) (Package, Machine, []Part, error) {
	head := make([]byte, min(HeadLen, src.Size()))
	if err := ReadFull(ctx, src, head, 0, "head of the package"); err != nil {
		return nil, Machine{}, nil, err
	}
	if hasAt(head, 0, "\x1f\x8b") {
		return nil, Machine{}, nil, Unsupportedf("content is compressed: unpack the gzip first")
	}
	var found Package
	var m Machine
	var parts []Part
	for _, p := range pkgs {
		if !p.Probe(head) {
			continue
		}
		pm, pp, err := p.Open(ctx, src)
		switch {
		case errors.Is(err, ErrFormat):
		case err != nil:
			return nil, Machine{}, nil, err
		case found != nil:
			return nil, Machine{}, nil, Unsupportedf("content is %s and %s at the same time", found.Name(), p.Name())
		default:
			found, m, parts = p, pm, pp
		}
	}
	if found == nil {
		return nil, Machine{}, nil, fmt.Errorf("%w: content is no known package", ErrFormat)
	}
	return found, m, parts, nil
}

// Section is n bytes of src from off on, cut where src ends.
func Section(src Source, off, n int64) Source {
	off = min(max(off, 0), src.Size())
	return section{src, off, min(max(n, 0), src.Size()-off)}
}

type section struct {
	src       Source
	off, size int64
}

func (s section) Size() int64 { return s.size }

func (s section) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return ReadParts(ctx, p, off, s.size, func(ctx context.Context, p []byte, off int64) (int, error) {
		n, err := s.src.ReadAt(ctx, p, s.off+off)
		if n == len(p) {
			err = nil // the end of src
		} else if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // src is shorter than its size says
		}
		return n, err
	})
}

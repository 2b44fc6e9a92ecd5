package ova

import (
	"fmt"
	"strings"

	"imagefs/codec"
	"imagefs/codec/tarball"
	"imagefs/codec/vmdk"
)

// Package is the OVA package.
var Package codec.Package = pack{}

var _ codec.Digested = pack{}

type pack struct{}

func (pack) Name() string { return "ova" }

func (pack) Probe(head []byte) bool { return tarball.Probe(head) }

func (pack) View() codec.View { return vmdk.Format }

// DiskName is the name of the file of a disk inside, without its suffix.
func (pack) DiskName(image string, number int) string {
	return fmt.Sprintf("%s-disk%d", portable(image), number)
}

const (
	maxBase = 80 // of the 100 bytes that a header holds
	// perController is how many disks stand on one, at 0 to 15 without 7, which
	// is its own address.
	perController  = 15
	maxControllers = 4
	maxDisks       = perController * maxControllers
)

// portable is a name in the characters of portable file names (POSIX): those
// that no tar, file system or reference needs to escape.
func portable(name string) string {
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '_'
	}, name)
	name = name[:min(len(name), maxBase)]
	if name == "" || name[0] == '-' || name[0] == '.' {
		name = "_" + name[min(1, len(name)):]
	}
	return name
}

func notPossible(format string, a ...any) error {
	return fmt.Errorf("%w: %s", codec.ErrNotPossible, fmt.Sprintf(format, a...))
}

// Layout lays out an archive of the descriptor and the disks, in their order.
func (p pack) Layout(m codec.Machine, disks []codec.PackDisk) (*codec.File, error) {
	f, err := p.layout(m, disks)
	if err != nil {
		return nil, fmt.Errorf("lay out ova: %w", err)
	}
	return f, nil
}

func (p pack) layout(m codec.Machine, disks []codec.PackDisk) (*codec.File, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	if n := len(disks); n == 0 || n > maxDisks {
		return nil, notPossible("%d disks: an ova holds 1 to %d", n, maxDisks)
	}
	names := make([]string, len(disks))
	seen := map[string]bool{}
	for i, d := range disks {
		names[i] = p.DiskName(m.Name, d.Number) + "." + p.View().Name()
		if seen[names[i]] {
			return nil, fmt.Errorf("two disks have the number %d", d.Number)
		}
		seen[names[i]] = true
	}
	text, err := newDescriptor(&m, disks, names)
	if err != nil {
		return nil, err
	}
	w := tarball.NewWriter(tarball.USTAR, m.Created)
	if err := w.Bytes(portable(m.Name)+".ovf", text); err != nil {
		return nil, err
	}
	for i, d := range disks {
		if err := w.Disk(names[i], d.File); err != nil {
			return nil, err
		}
	}
	return w.Close(512), nil
}

package oci

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"imagefs/codec"
	"imagefs/codec/qcow2"
	"imagefs/codec/tarball"
)

// Package is the Oracle Cloud image file.
var Package codec.Package = pack{}

type pack struct{}

const (
	metadataName = "image_metadata.json"
	diskName     = "output"
	suffix       = ".QCOW2"
	record       = 20 * 512
)

func (pack) Name() string { return "oci" }

func (pack) Probe(head []byte) bool { return tarball.Probe(head) }

func (pack) View() codec.View { return qcow2.Format }

// MaxDisks is how many disks the package holds.
func (pack) MaxDisks() int { return 1 }

// DiskName is the name that Oracle's own exports have, whatever the image's is.
func (pack) DiskName(string, int) string { return diskName }

// Layout lays out the metadata and the one disk.
func (pack) Layout(m codec.Machine, disks []codec.PackDisk) (*codec.File, error) {
	if n := len(disks); n != 1 {
		return nil, fmt.Errorf("lay out oci: %w: %d disks: an oci holds one", codec.ErrNotPossible, n)
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("lay out oci: %w", err)
	}
	w := tarball.NewWriter(tarball.GNU, m.Created)
	if err := w.Bytes(metadataName, []byte(metadata(&m))); err != nil {
		return nil, fmt.Errorf("lay out oci: %w", err)
	}
	if err := w.Disk(diskName+suffix, disks[0].File); err != nil {
		return nil, fmt.Errorf("lay out oci: %w", err)
	}
	return w.Close(record), nil
}

// Open reads the metadata and finds the disk, a qcow2 or VMDK of any name, in any
// order.
func (pack) Open(ctx context.Context, src codec.Source) (codec.Machine, []codec.Part, error) {
	m, parts, err := open(ctx, src)
	if err != nil {
		return codec.Machine{}, nil, fmt.Errorf("open oci: %w", err)
	}
	return m, parts, nil
}

func open(ctx context.Context, src codec.Source) (m codec.Machine, parts []codec.Part, err error) {
	head := make([]byte, min(512, src.Size()))
	if err := codec.ReadFull(ctx, src, head, 0, "head of the archive"); err != nil {
		return m, nil, err
	}
	if strings.HasPrefix(string(head), "\x1f\x8b") {
		return m, nil, codec.Unsupportedf("content is compressed: unpack the gzip first")
	}
	if !tarball.Probe(head) {
		return m, nil, fmt.Errorf("%w: no tar archive", codec.ErrFormat)
	}
	// More than are allowed are listed, so that another package is known.
	members, err := tarball.Read(ctx, src, 256)
	if err != nil {
		return m, nil, err
	}
	meta := tarball.Find(members, metadataName)
	if meta == nil {
		return m, nil, fmt.Errorf("%w: archive without %s", codec.ErrFormat, metadataName)
	}
	if n := len(members); n != 2 {
		return m, nil, codec.Unsupportedf("archive of %d members, want %s and one disk", n, metadataName)
	}
	if meta.Size > maxJSON {
		return m, nil, codec.Unsupportedf("%s of %d bytes, longest is %d", metadataName, meta.Size, maxJSON)
	}
	text := make([]byte, meta.Size)
	if err := codec.ReadFull(ctx, src, text, meta.Off, metadataName); err != nil {
		return m, nil, err
	}
	if m, err = machine(text); err != nil {
		return m, nil, err
	}
	m.Created = meta.Time
	disk := members[0]
	if disk.Name == metadataName {
		disk = members[1]
	}
	headDisk, tail, err := codec.Ends(ctx, disk.Open(src))
	if err != nil {
		return m, nil, err
	}
	names := codec.Signatures(headDisk, tail)
	if len(names) != 1 || !slices.Contains([]string{"qcow2", "vmdk"}, names[0]) {
		return m, nil, codec.Unsupportedf("member %q is no qcow2 or vmdk (signatures: %q)", disk.Name, names)
	}
	return m, []codec.Part{{Name: disk.Name, Off: disk.Off, Len: disk.Size, Format: names[0]}}, nil
}

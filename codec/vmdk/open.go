package vmdk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"imagefs/codec"
)

// Format is the VMDK format. It is laid out as streamOptimized.
var Format codec.Format = format{}

var _ codec.Noted = (*disk)(nil)

type format struct{}

func (format) Name() string { return "vmdk" }

func (format) Probe(head, _ []byte) bool {
	return strings.HasPrefix(string(head[:min(4, len(head))]), magic)
}

// disk is the table with remarks.
type disk struct {
	*codec.Table
	notes  []string
	loader loader
	first  error // why the grain directory is not used, but its copy is
}

// Notes implements [codec.Noted].
func (d *disk) Notes() []string { return d.notes }

// Verify checks what opening does not, for an image that comes from a stranger:
// that the directory is sound by itself, since few readers use its copy, and
// that no two compressed grains share a byte, which takes a read for each.
func (d *disk) Verify(ctx context.Context) error {
	if d.first != nil {
		return fmt.Errorf("verify vmdk: readers without the redundant grain directory see another disk: %w", d.first)
	}
	if !d.loader.h.compressed() {
		return nil
	}
	l := d.loader
	l.whole = true
	if _, err := l.load(ctx, l.h.gdOffset, "grain directory"); err != nil {
		return fmt.Errorf("verify vmdk: %w", err)
	}
	return nil
}

// Open reads a monolithicSparse or streamOptimized image: header, footer where
// the header refers to it, descriptor, directory and tables.
func (format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	d, err := open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open vmdk: %w", err)
	}
	return d, nil
}

func open(ctx context.Context, src codec.Source) (*disk, error) {
	b := make([]byte, min(sector, src.Size()))
	if err := codec.ReadFull(ctx, src, b, 0, "header"); err != nil {
		return nil, err
	}
	if !(format{}).Probe(b, nil) {
		return nil, refuse(ctx, src)
	}
	if len(b) < sector {
		return nil, codec.Corruptf("header of %d bytes: the file ends after %d", sector, len(b))
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	footer := int64(-1)
	if h.gdOffset == atFooter {
		f, at, err := readFooter(ctx, src)
		if err != nil {
			return nil, err
		}
		if err := h.sameDisk(&f); err != nil {
			return nil, err
		}
		footer = at
		h.gdOffset, h.rgdOffset, h.unclean = f.gdOffset, f.rgdOffset, f.unclean
	}
	sectors, err := readDescriptor(ctx, src, &h)
	if err != nil {
		return nil, err
	}

	d := &disk{}
	if h.unclean != 0 {
		d.notes = append(d.notes, "the image was not closed cleanly by its writer")
	}
	d.loader = loader{src: src, h: &h, size: sectors * sector, footer: footer}
	if err := d.load(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// refuse tells what a file without the magic is: a relative of the format, or
// nothing of it.
func refuse(ctx context.Context, src codec.Source) error {
	head, tail, err := codec.Ends(ctx, src)
	if err != nil {
		return err
	}
	names := codec.Signatures(head, tail)
	if slices.Contains(names, "vmdk descriptor without its extents") {
		d, err := parseDescriptor(head)
		if err == nil {
			err = d.check()
		}
		if errors.Is(err, codec.ErrUnsupported) {
			return err
		}
		return codec.Unsupportedf("vmdk descriptor without its extents%s; %s", d.names(), flatten)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "vmdk ") {
			return codec.Unsupportedf("content is a %s; %s", name, flatten)
		}
	}
	return fmt.Errorf("%w: no VMDK magic at 0", codec.ErrFormat)
}

// maxPadding is how many sectors of zeros a writer may leave behind the end
// of the stream, which is one itself.
const maxPadding = 128

// readFooter finds the footer: the last sector that is not zeros, with a marker
// before it. at is where the marker begins.
func readFooter(ctx context.Context, src codec.Source) (f header, at int64, err error) {
	size := src.Size() / sector * sector
	n := min(size, (maxPadding+3)*sector)
	b := make([]byte, n)
	if err := codec.ReadFull(ctx, src, b, size-n, "footer"); err != nil {
		return f, 0, err
	}
	for len(b) >= sector && codec.Empty(b[len(b)-sector:]) {
		b = b[:len(b)-sector]
	}
	at = size - n + int64(len(b)) - 2*sector
	if len(b) < 2*sector || string(b[len(b)-sector:][:4]) != magic {
		return f, 0, codec.Corruptf("no footer before the end of the file (%d bytes), where the header says that one is: truncated", src.Size())
	}
	b = b[len(b)-2*sector:]
	if m := parseMarker(b); m != (marker{1, 0, markerFooter}) {
		return f, 0, codec.Corruptf("marker before the footer, at %#x: %d sectors, length %d, type %d, want 1, 0, %d", at, m.sectors, m.length, m.kind, markerFooter)
	}
	if f, err = parseHeader(b[sector:]); err != nil {
		return f, 0, fmt.Errorf("footer at %#x: %w", at+sector, err)
	}
	if f.gdOffset == atFooter {
		return f, 0, codec.Corruptf("footer at %#x refers to the footer for the grain directory", at+sector)
	}
	return f, at, nil
}

// readDescriptor returns the size of the disk in sectors. VirtualBox rounds
// the capacity up to a grain and has the exact size in the extent line.
func readDescriptor(ctx context.Context, src codec.Source, h *header) (int64, error) {
	off, n := h.descriptorOffset, h.descriptorSize*sector
	if off > uint64(src.Size())/sector {
		return 0, codec.Corruptf("descriptor at sector %#x: past the end of the file (%d bytes)", off, src.Size())
	}
	if n > uint64(src.Size()) {
		return 0, codec.Corruptf("descriptor of %d bytes at sector %#x: past the end of the file (%d bytes)", n, off, src.Size())
	}
	b := make([]byte, n)
	if err := codec.ReadFull(ctx, src, b, int64(off)*sector, "descriptor"); err != nil {
		return 0, err
	}
	d, err := parseDescriptor(b)
	if err != nil {
		return 0, err
	}
	if err := d.check(); err != nil {
		return 0, err
	}
	got, grain := d.extents[0].sectors, int64(h.grainSize)
	if got > int64(h.capacity) || codec.Ceil(got, grain) != h.grains() {
		return 0, codec.Corruptf("extent line of %d sectors, capacity at 12 of %d: want the same, or the second rounded up to a grain of %d", got, h.capacity, grain)
	}
	return got, nil
}

package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"imagefs/codec"
	"imagefs/remote/catalog"
)

// Pack is an image as one file: a package of all its disks.
type Pack struct {
	codec.Disk        // the file's bytes, size and holes
	Kind       string // of package
	Image      *catalog.Image
	Blocks     uint64    // of 512 bytes that hold data
	Ino        uint64    // derived from the image, its disks' versions and the kind
	ModTime    time.Time // of the image: what a package says follows its entry too

	of []*Disk // whose bytes it holds: they stay open for it
}

// Slice implements [codec.Slicer].
func (p *Pack) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	return codec.Slice(ctx, p.Disk, off, n)
}

// Package returns im as a package, laid out at the first call. [ErrNotShown]
// wraps the reason when the package cannot hold it; any other error is that of a
// disk that cannot be opened.
func (o *Opener) Package(ctx context.Context, im *catalog.Image, p codec.Package) (*Pack, error) {
	if im.Err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", im.Name, codec.ErrCorrupt, im.Err)
	}
	m := codec.Machine{Name: im.Name, ID: im.ID, Created: im.Created}
	if err := m.SetProps(im.Props, p.Name()); err != nil {
		return nil, notPacked(err)
	}
	h := sha256.New() // of all that the bytes follow from; a map is printed in order
	fmt.Fprintf(h, "%q %q %x %d %q", p.Name(), im.Name, im.ID, im.Created.Unix(), m.Props())
	var disks []*Disk
	for _, cd := range im.Disks {
		d, err := o.Open(ctx, im, cd)
		if err != nil {
			return nil, err
		}
		disks = append(disks, d)
		fmt.Fprintf(h, "%d %q %q %d", d.Number, d.Object.Key, d.Object.ETag, d.Object.Size)
	}
	ino := Ino(h.Sum(nil))
	f, err := disks[0].pack(ino, func() (*Pack, error) {
		f, err := layoutPack(ctx, m, p, disks)
		if err != nil {
			err = notPacked(fmt.Errorf("image %q as %s: %w", im.Name, p.Name(), err))
		}
		return f, err
	})
	if err != nil {
		return nil, err
	}
	pack := *f
	pack.Image, pack.Ino, pack.ModTime = im, ino, im.ModTime
	return &pack, nil
}

// packing is a package that was laid out, or why it cannot be.
type packing struct {
	*Pack
	err error
}

// pack remembers with the first disk of an image what make lays out: listings,
// look-ups and opens ask for it one after the other, and a large disk takes a
// while. A package that changed has another number.
func (d *Disk) pack(ino uint64, make func() (*Pack, error)) (*Pack, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p, ok := d.packs[ino]; ok {
		return p.Pack, p.err
	}
	p, err := make()
	if err == nil || errors.Is(err, ErrNotShown) {
		d.packs[ino] = packing{p, err}
	}
	return p, err
}

// layoutPack lays disks out as a package. Each is laid out anew, since what was
// copied in may be of a kind that the package's readers do not take.
func layoutPack(ctx context.Context, m codec.Machine, p codec.Package, disks []*Disk) (*Pack, error) {
	var list []codec.PackDisk
	for _, d := range disks {
		facts := d.facts
		facts.Name = p.DiskName(m.Name, d.Number) // the image may have been renamed
		f, err := p.View().Layout(ctx, d.guest, facts)
		if err != nil {
			return nil, fmt.Errorf("disk %d as %s: %w", d.Number, p.View().Name(), err)
		}
		list = append(list, codec.PackDisk{Number: d.Number, Size: d.Size, Data: d.Data, File: f})
	}
	f, err := p.Layout(m, list)
	if err != nil {
		return nil, err
	}
	n, err := blocks(ctx, f)
	return &Pack{Disk: f, Kind: p.Name(), Blocks: n, of: disks}, err
}

// limited is a package that holds at most so many disks.
type limited interface{ MaxDisks() int }

// HiddenPackage reports whether it is known, without opening anything, that im
// is not shown as a package.
func (o *Opener) HiddenPackage(im *catalog.Image, p codec.Package) bool {
	if im.Err != nil {
		return false
	}
	if l, ok := p.(limited); ok && len(im.Disks) > l.MaxDisks() {
		return true
	}
	for _, d := range im.Disks {
		if o.opened(im, d) == nil {
			return false
		}
	}
	_, err := o.Package(context.Background(), im, p) // remembered or no I/O
	return errors.Is(err, ErrNotShown)
}

// notPacked makes errors that lie in what a package can hold ErrNotShown.
func notPacked(err error) error {
	if errors.Is(err, codec.ErrNotPossible) || errors.Is(err, codec.ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrNotShown, err)
	}
	return err
}

// blocks counts the blocks of 512 bytes that hold data.
func blocks(ctx context.Context, d codec.Disk) (uint64, error) {
	var data int64
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil {
			return 0, err
		}
		if !e.Zero {
			data += e.Len
		}
	}
	return uint64(codec.Ceil(data, 512)), nil
}

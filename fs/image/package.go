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
}

// Package returns im as a package. [ErrNotShown] wraps the reason when the
// package cannot hold it; any other error is that of a disk that cannot be
// opened.
func (o *Opener) Package(ctx context.Context, im *catalog.Image, p codec.Package) (*Pack, error) {
	if im.Err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", im.Name, codec.ErrCorrupt, im.Err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %x %d", p.Name(), im.Name, im.ID, im.Created.Unix())
	m := codec.Machine{Name: im.Name, ID: im.ID, Created: im.Created}
	if err := m.SetProps(im.Props, p.Name()); err != nil {
		return nil, notPacked(err)
	}
	fmt.Fprintf(h, "%q", m.Props()) // maps are printed in order
	var disks []codec.PackDisk
	for _, cd := range im.Disks {
		d, err := o.Open(ctx, im, cd)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(h, "%d %q %q %d", d.Number, d.Object.Key, d.Object.ETag, d.Object.Size)
		f, err := d.packed(ctx, p)
		if err != nil {
			return nil, notPacked(err)
		}
		disks = append(disks, codec.PackDisk{Number: d.Number, Size: d.Size, Data: d.Data, File: f})
	}
	f, err := p.Layout(m, disks)
	if err != nil {
		return nil, notPacked(fmt.Errorf("image %q as %s: %w", im.Name, p.Name(), err))
	}
	blocks, err := blocks(ctx, f)
	if err != nil {
		return nil, err
	}
	return &Pack{Disk: f, Kind: p.Name(), Image: im, Blocks: blocks, Ino: Ino(h.Sum(nil)), ModTime: im.ModTime}, nil
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
		if !o.isOpen(im, d) {
			return false
		}
	}
	_, err := o.Package(context.Background(), im, p) // remembered or no I/O
	return errors.Is(err, ErrNotShown)
}

// isOpen reports whether a disk is open already.
func (o *Opener) isOpen(im *catalog.Image, d catalog.Disk) bool {
	o.mu.Lock()
	p := o.disks[newVersion(im, d)]
	o.mu.Unlock()
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return p.err == nil
	default:
		return false
	}
}

// notPacked makes errors that lie in what a package can hold ErrNotShown.
func notPacked(err error) error {
	if errors.Is(err, codec.ErrNotPossible) || errors.Is(err, codec.ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrNotShown, err)
	}
	return err
}

// packed is the disk as it lies in a package: always laid out anew, since what
// was copied in may be of a kind that the package's readers do not take.
func (d *Disk) packed(ctx context.Context, p codec.Package) (codec.Disk, error) {
	facts := d.facts
	facts.Name = p.DiskName(d.Image.Name, d.Number)
	f, err := p.View().Layout(ctx, d.guest, facts)
	if err != nil {
		return nil, fmt.Errorf("disk %d as %s: %w", d.Number, p.View().Name(), err)
	}
	return f, nil
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

package vhd

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math/bits"
	"sync/atomic"

	"imagefs/codec"
)

var (
	_ codec.Noted = (*fixed)(nil)
	_ codec.Noted = (*dynamic)(nil)
)

// fixed is the first size bytes of a source.
type fixed struct {
	src   codec.Source
	size  int64
	notes []string
	doubt error // why readers disagree on the disk, or nil
}

func (d *fixed) Size() int64     { return d.size }
func (d *fixed) Notes() []string { return d.notes }

// Verify checks what [dynamic.Verify] does, as far as a fixed disk has it.
func (d *fixed) Verify(context.Context) error {
	if d.doubt != nil {
		return fmt.Errorf("verify vhd: %w", d.doubt)
	}
	return nil
}

func (d *fixed) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, d.size, d.src.ReadAt)
}

func (d *fixed) Extents(_ context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		if n = min(n, d.size-off); off >= 0 && n > 0 {
			yield(codec.Extent{Off: off, Len: n}, nil)
		}
	}
}

// maxUnit is the part of a block whose bits are remembered together: a sector
// of the bitmap, all of it where blocks are 2 MiB.
const maxUnit = sector * 8 * sector

// dynamic is a table of blocks over which the bitmaps are laid. A bitmap costs
// a read of its own, so each is read when its block is, once, and remembered:
// all set as nothing more than that, else as its bits, 512 bytes at most.
type dynamic struct {
	t     *codec.Table
	src   codec.Source
	notes []string
	doubt error // why readers disagree on the disk, or nil
	shift uint  // log2 of the unit
	pages []atomic.Pointer[page]
}

// page holds what is known of neighbouring units: nil for nothing yet, allSet,
// or the bits.
type page [512]atomic.Pointer[string]

var allSet = new(string)

func newDynamic(t *codec.Table, src codec.Source, notes []string) *dynamic {
	unit := min(t.Block(), maxUnit)
	d := &dynamic{t: t, src: src, notes: notes, shift: uint(bits.TrailingZeros64(uint64(unit)))}
	d.pages = make([]atomic.Pointer[page], codec.Ceil(codec.Ceil(t.Size(), unit), int64(len(page{}))))
	return d
}

func (d *dynamic) Size() int64     { return d.t.Size() }
func (d *dynamic) Notes() []string { return d.notes }

// Extents calls all of a block that the file holds data: what its bitmap says
// is not known without reading it.
func (d *dynamic) Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return d.t.Extents(ctx, off, n)
}

func (d *dynamic) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, d.t.Size(), d.readPart)
}

// readPart reads as many units as are whole from off on, or what the bits of
// one leave.
func (d *dynamic) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	for n := 0; ; {
		at := off + int64(n)
		m, err := d.bits(ctx, at)
		if err != nil && n == 0 {
			return 0, err
		}
		if err != nil || m != allSet {
			if n > 0 {
				return d.t.ReadAt(ctx, p[:n], off)
			}
			end := (at>>d.shift + 1) << d.shift
			n = int(min(int64(len(p)), end-at))
			return n, d.readMixed(ctx, p[:n], off, *m)
		}
		end := (at>>d.shift + 1) << d.shift
		if n += int(min(int64(len(p)-n), end-at)); n == len(p) {
			return d.t.ReadAt(ctx, p, off)
		}
	}
}

// bits tells what is set in the unit at off; allSet where there is no block.
func (d *dynamic) bits(ctx context.Context, off int64) (*string, error) {
	base := d.t.Offset(off >> bits.TrailingZeros64(uint64(d.t.Block())))
	if base == 0 {
		return allSet, nil
	}
	u := off >> d.shift
	per := int64(len(page{}))
	pg := d.pages[u/per].Load()
	if pg == nil {
		d.pages[u/per].CompareAndSwap(nil, new(page))
		pg = d.pages[u/per].Load()
	}
	if m := pg[u%per].Load(); m != nil {
		return m, nil
	}
	// Two readers may both come here: they store the same.
	n := int64(1) << d.shift / sector / 8
	in := (off & (d.t.Block() - 1)) >> d.shift
	buf := make([]byte, n)
	if err := codec.ReadFull(ctx, d.src, buf, base-bitmapLen(d.t.Block())+in*n, "bitmap of a block"); err != nil {
		return nil, err
	}
	m := allSet
	if s := string(buf); !whole(s, min(1<<d.shift, d.t.Size()-u<<d.shift)) {
		m = &s
	}
	pg[u%per].Store(m)
	return m, nil
}

// Verify checks, for an image that comes from a stranger, that sectors which
// were never written are zeros in the file too: many readers, QEMU among them,
// take the bytes and leave the bitmap alone. It reads all bitmaps. A footer that
// gives two sizes is refused as well.
func (d *dynamic) Verify(ctx context.Context) error {
	if d.doubt != nil {
		return fmt.Errorf("verify vhd: %w", d.doubt)
	}
	unit := int64(1) << d.shift
	buf := make([]byte, 128*sector)
	for off := int64(0); off < d.t.Size(); off += unit {
		m, err := d.bits(ctx, off)
		if err != nil {
			return fmt.Errorf("verify vhd: %w", err)
		}
		if m == allSet {
			continue
		}
		end := min(off+unit, d.t.Size())
		for at := off; at < end; {
			p := buf[:0]
			for len(p) < len(buf) && at+int64(len(p)) < end && !set(*m, (at-off+int64(len(p)))/sector) {
				p = buf[:min(len(p)+sector, int(end-at))]
			}
			if len(p) == 0 {
				at += sector
				continue
			}
			if n, err := d.t.ReadAt(ctx, p, at); n < len(p) {
				return fmt.Errorf("verify vhd: read guest bytes at %#x: %w", at, err)
			}
			if !codec.Empty(p) {
				block := off / d.t.Block()
				return fmt.Errorf("verify vhd: %w", codec.Unsupportedf("block %d at %#x: its bitmap says that the sectors at %#x of the disk were never written, but they hold data: readers disagree on them",
					block, d.t.Offset(block), at))
			}
			at += int64(len(p))
		}
	}
	return nil
}

// whole reports whether all bits are set of the sectors that n bytes touch.
func whole(m string, n int64) bool {
	for i := range codec.Ceil(n, sector) {
		if !set(m, i) {
			return false
		}
	}
	return true
}

func set(m string, i int64) bool { return m[i/8]<<(i%8)&0x80 != 0 }

// readMixed reads a part of one unit, off in the disk: in one read from the
// first sector that is set to the last, and then clears those that are not.
func (d *dynamic) readMixed(ctx context.Context, p []byte, off int64, m string) error {
	in := off & (1<<d.shift - 1)
	from, to := -1, 0
	for i := 0; i < len(p); {
		s := (in + int64(i)) / sector
		end := int(min(int64(len(p)), (s+1)*sector-in))
		if set(m, s) {
			if from < 0 {
				from = i
			}
			to = end
		}
		i = end
	}
	if from < 0 {
		clear(p)
		return nil
	}
	if n, err := d.t.ReadAt(ctx, p[from:to], off+int64(from)); n < to-from {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	for i := 0; i < len(p); {
		s := (in + int64(i)) / sector
		end := int(min(int64(len(p)), (s+1)*sector-in))
		if !set(m, s) {
			clear(p[i:end])
		}
		i = end
	}
	return nil
}

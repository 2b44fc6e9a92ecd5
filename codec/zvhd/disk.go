package zvhd

import (
	"context"
	"iter"
	"sort"

	"imagefs/codec"
)

var (
	_ codec.Coded = (*disk)(nil)
	_ codec.Noted = (*disk)(nil)
)

// disk is an opened image: its records in order of their blocks. Its memory is
// 16 bytes per record, whatever the size of the disk.
type disk struct {
	reader
	size  int64
	dec   decoder
	notes []string
}

// decoder decodes blocks.
type decoder interface {
	// decode fills dst with the first bytes of the block of record k. It is
	// the start of a slice with room for the block; if it is the whole block,
	// the payload is checked to its end.
	decode(ctx context.Context, w *worker, k int, dst []byte) error
}

// Size is the size of the disk in bytes.
func (d *disk) Size() int64 { return d.size }

// Notes implements [codec.Noted].
func (d *disk) Notes() []string { return d.notes }

// Unit implements [codec.Coded].
func (d *disk) Unit() int64 {
	if len(d.recs) == 0 {
		return 0
	}
	return blockSize
}

// after is the first record whose block is i or above.
func (d *disk) after(i int64) int {
	return sort.Search(len(d.recs), func(k int) bool { return int64(d.recs[k].block) >= i })
}

// status returns the end of the run of one status that begins at off, looked
// for up to stop only, and whether it reads as zeros.
func (d *disk) status(off, stop int64) (end int64, zero bool) {
	i := off / blockSize
	k := d.after(i)
	if k == len(d.recs) {
		return stop, true
	}
	if b := int64(d.recs[k].block); b > i {
		return min(b*blockSize, stop), true
	}
	last := (stop - 1) / blockSize
	for ; i < last && k+1 < len(d.recs) && int64(d.recs[k+1].block) == i+1; k++ {
		i++
	}
	if i == last {
		return stop, false
	}
	return (i + 1) * blockSize, false
}

// Extents implements [codec.Disk]. It does no I/O and never fails.
func (d *disk) Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		if off < 0 || off >= d.size {
			return
		}
		stop := off + min(n, d.size-off)
		for off < stop {
			if err := ctx.Err(); err != nil {
				yield(codec.Extent{}, err)
				return
			}
			end, zero := d.status(off, stop)
			if !yield(codec.Extent{Off: off, Len: end - off, Zero: zero}, nil) {
				return
			}
			off = end
		}
	}
}

// ReadAt implements [codec.Disk].
func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, d.size, d.readPart)
}

// readPart reads from off on what one hole or block has of it.
func (d *disk) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	rel := off % blockSize
	n := int(min(int64(len(p)), d.size-off))
	if end, zero := d.status(off, off+int64(n)); zero {
		n = int(end - off)
		clear(p[:n])
		return n, nil
	}
	n = int(min(int64(n), blockSize-rel))
	k := d.after(off / blockSize)
	w := workers.Get().(*worker)
	defer workers.Put(w)
	if n == blockSize {
		if err := d.dec.decode(ctx, w, k, p[:n:n]); err != nil {
			return 0, err
		}
		return n, nil
	}
	want := rel + int64(n)
	if rel == 0 && want == d.size-off { // the last block, whole
		want = blockSize
	}
	dst := w.block()[:want]
	if err := d.dec.decode(ctx, w, k, dst); err != nil {
		return 0, err
	}
	copy(p[:n], dst[rel:])
	return n, nil
}

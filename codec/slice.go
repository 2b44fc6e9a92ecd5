package codec

import "context"

// Slicer is a ReaderAt that may hand bytes out where they are. Slice returns n of
// them from off on, which nobody writes ever again, or nil where they have to be
// read: when they lie in several places, or past the end.
type Slicer interface {
	Slice(ctx context.Context, off int64, n int) ([]byte, error)
}

// Slice returns bytes of r without copying them, nil if it has to be read.
func Slice(ctx context.Context, r ReaderAt, off int64, n int) ([]byte, error) {
	if s, ok := r.(Slicer); ok {
		return s.Slice(ctx, off, n)
	}
	return nil, nil
}

// zeroMiB is what all zeros are handed out from.
var zeroMiB [1 << 20]byte

// Slice implements [Slicer], where one segment holds the range.
func (f *File) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	if off < 0 || n <= 0 || off > f.size-int64(n) {
		return nil, nil
	}
	i, end := f.find(off)
	s, ok := f.segs[i].fill.(Slicer)
	if !ok || off+int64(n) > end {
		return nil, nil
	}
	return s.Slice(ctx, off-f.segs[i].off, n)
}

func (l literal) Slice(_ context.Context, rel int64, n int) ([]byte, error) {
	return l[rel : rel+int64(n) : rel+int64(n)], nil
}

func (zeros) Slice(_ context.Context, _ int64, n int) ([]byte, error) {
	if n > len(zeroMiB) {
		return nil, nil
	}
	return zeroMiB[:n:n], nil
}

// Slice implements [Slicer], up to the disk's end.
func (g *Guest) Slice(ctx context.Context, rel int64, n int) ([]byte, error) {
	if g.Off+rel > g.Disk.Size()-int64(n) {
		return nil, nil
	}
	return Slice(ctx, g.Disk, g.Off+rel, n)
}

// Slice implements [Slicer], where the range is one of the disk too.
func (d *Packed) Slice(ctx context.Context, rel int64, n int) ([]byte, error) {
	head, block, stride := int64(len(d.Prefix)), d.Map.Block(), d.Stride()
	k := rel / stride
	in := rel - k*stride - head
	if in < 0 {
		return nil, nil
	}
	b := d.Map.Select(k)
	end := b + 1
	if head == 0 {
		end, _ = d.Map.run(b, b+Ceil(in+int64(n), block))
	}
	at := b*block + in
	if at+int64(n) > min(end*block, d.Disk.Size()) {
		return nil, nil
	}
	return Slice(ctx, d.Disk, at, n)
}

// Slice implements [Slicer].
func (d mapped) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	return Slice(ctx, d.Disk, off, n)
}

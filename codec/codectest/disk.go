package codectest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"sort"
	"sync/atomic"

	"imagefs/codec"
)

// Range is a part of a disk that holds data, in bytes.
type Range struct{ Off, Len int64 }

// Disk is a synthetic disk: its data is a function of the seed and the offset,
// its map is true, and it counts what is read of it. It holds no data, so it
// may have any size. Safe for concurrent use.
type Disk struct {
	Name string // says what it is, in test names and golden files
	size int64
	seed uint64
	soft bool
	runs []Range // ordered, disjoint, not adjoining

	reads, bytes, walks atomic.Int64

	// FailRead and FailExtents, when not nil, are returned by every read and
	// every walk over the extents. Set them before use.
	FailRead, FailExtents error
}

var _ codec.Disk = (*Disk)(nil)

// New makes a disk of size bytes with data in runs, which may stand in any
// order and overlap; what lies past the end is cut.
func New(name string, size int64, seed uint64, runs ...Range) *Disk {
	d := &Disk{Name: name, size: size, seed: seed}
	runs = slices.Clone(runs)
	slices.SortFunc(runs, func(a, b Range) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	for _, r := range runs {
		r.Len = min(r.Len, size-r.Off)
		if r.Len <= 0 {
			continue
		}
		if k := len(d.runs) - 1; k >= 0 && r.Off <= d.runs[k].Off+d.runs[k].Len {
			d.runs[k].Len = max(d.runs[k].Len, r.Off+r.Len-d.runs[k].Off)
		} else {
			d.runs = append(d.runs, r)
		}
	}
	return d
}

// Empty is a disk without data.
func Empty(size int64) *Disk { return New(fmt.Sprintf("empty-%d", size), size, 1) }

// Full is a disk of data from end to end.
func Full(size int64, seed uint64) *Disk {
	return New(fmt.Sprintf("full-%d", size), size, seed, Range{0, size})
}

// LastSector has data in its last, maybe partial, 512 bytes only.
func LastSector(size int64) *Disk {
	from := max(size-1, 0) / 512 * 512
	return New(fmt.Sprintf("last-sector-%d", size), size, 2, Range{from, 512})
}

// LastBlock has data in its last, maybe partial, block only.
func LastBlock(size, block int64) *Disk {
	from := max(size-1, 0) / block * block
	return New(fmt.Sprintf("last-block-%d", size), size, 3, Range{from, block})
}

// Alternating has data in every second block, from the first on.
func Alternating(size, block int64) *Disk {
	var runs []Range
	for off := int64(0); off < size; off += 2 * block {
		runs = append(runs, Range{off, block})
	}
	return New(fmt.Sprintf("alternating-%d-%d", size, block), size, 4, runs...)
}

// Scattered has n extents at random places, in whole sectors of up to 256 KiB:
// one in each n-th part of the disk.
func Scattered(size int64, n int, seed uint64) *Disk {
	r := rand.New(rand.NewPCG(seed, 0x5ca77e4ed))
	slot := size / int64(n) / 512
	runs := make([]Range, 0, n)
	for i := range int64(n) {
		if slot == 0 {
			break
		}
		long := 1 + r.Int64N(min(slot, 512))
		at := r.Int64N(slot - long + 1)
		runs = append(runs, Range{(i*slot + at) * 512, long * 512})
	}
	return New(fmt.Sprintf("scattered-%d-%d", size, n), size, seed, runs...)
}

// Example is the disk of the worked example: 128 MiB with 70 blocks of 64 KiB,
// in 3 groups of 512, 8 blocks of 1 MiB and 7 of 2 MiB.
func Example() *Disk {
	const block = 64 << 10
	var runs []Range
	// 16 + 16 + 16 + 16 blocks fill four areas of 1 MiB, two of which adjoin
	// in one of 2 MiB; the other six stand in four more.
	for _, mib := range []int64{0, 1, 40, 80} {
		runs = append(runs, Range{mib << 20, 1 << 20})
	}
	for i, at := range []int64{10, 50, 90, 94} {
		n := int64(1)
		if i < 2 {
			n = 2
		}
		runs = append(runs, Range{at << 20, n * block})
	}
	return New("example", 128<<20, 18, runs...)
}

// Soft gives d bytes that compress well, though every sector still differs.
func (d *Disk) Soft() *Disk {
	d.soft = true
	d.Name += "-soft"
	return d
}

// Seeded is a copy of d with other data in the same places.
func (d *Disk) Seeded(seed uint64) *Disk {
	return &Disk{Name: d.Name, size: d.size, seed: seed, soft: d.soft, runs: d.runs}
}

// Runs are the ranges with data, in order.
func (d *Disk) Runs() []Range { return d.runs }

// Size is the size in bytes.
func (d *Disk) Size() int64 { return d.size }

// Reads is the number of reads so far, and Walks that of calls of Extents.
func (d *Disk) Reads() int64 { return d.reads.Load() }

// Walks is the number of calls of Extents so far.
func (d *Disk) Walks() int64 { return d.walks.Load() }

// BytesRead is the number of bytes read so far.
func (d *Disk) BytesRead() int64 { return d.bytes.Load() }

// after is the index of the first run that ends behind off.
func (d *Disk) after(off int64) int {
	return sort.Search(len(d.runs), func(i int) bool { return d.runs[i].Off+d.runs[i].Len > off })
}

// ReadAt implements [codec.Disk].
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	d.reads.Add(1)
	if d.FailRead != nil {
		return 0, d.FailRead
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d of a synthetic disk", off)
	}
	if off >= d.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > d.size-off {
		p, eof = p[:d.size-off], io.EOF
	}
	d.bytes.Add(int64(len(p)))
	n := len(p)
	for i := d.after(off); len(p) > 0; i++ {
		if i == len(d.runs) || d.runs[i].Off >= off+int64(len(p)) {
			clear(p)
			break
		}
		r := d.runs[i]
		if gap := r.Off - off; gap > 0 {
			clear(p[:gap])
			p, off = p[gap:], r.Off
		}
		k := min(int64(len(p)), r.Off+r.Len-off)
		d.fill(p[:k], off)
		p, off = p[k:], off+k
	}
	return n, eof
}

// Slice implements [codec.Slicer], for every other range.
func (d *Disk) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	if off < 0 || n <= 0 || off > d.size-int64(n) || off/512%2 == 0 {
		return nil, nil
	}
	p := make([]byte, n)
	_, err := d.ReadAt(ctx, p, off)
	return p, err
}

// The three below work on memory of the caller's alone, and are most of the time
// of a test under the race detector otherwise.

// word makes the 8 bytes at 8*i.
//
//go:norace
func (d *Disk) word(i int64) uint64 {
	if d.soft {
		return mix(d.seed+uint64(i>>6)) ^ uint64(i&63)
	}
	return mix(d.seed*0x9e3779b97f4a7c15 + uint64(i))
}

// mix scrambles x: a bijection of which every bit depends on every other.
//
//go:norace
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fill makes the data at off.
//
//go:norace
func (d *Disk) fill(p []byte, off int64) {
	var b [8]byte
	if in := off & 7; in != 0 && len(p) > 0 {
		binary.LittleEndian.PutUint64(b[:], d.word(off>>3))
		n := copy(p, b[in:])
		p, off = p[n:], off+int64(n)
	}
	for ; len(p) >= 8; p, off = p[8:], off+8 {
		binary.LittleEndian.PutUint64(p, d.word(off>>3))
	}
	if len(p) > 0 {
		binary.LittleEndian.PutUint64(b[:], d.word(off>>3))
		copy(p, b[:])
	}
}

// Extents implements [codec.Disk].
func (d *Disk) Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		d.walks.Add(1)
		if d.FailExtents != nil {
			yield(codec.Extent{}, d.FailExtents)
			return
		}
		if off < 0 || off >= d.size {
			return
		}
		stop := off + min(n, d.size-off)
		for i := d.after(off); off < stop; {
			if err := ctx.Err(); err != nil {
				yield(codec.Extent{}, err)
				return
			}
			e := codec.Extent{Off: off, Len: stop - off, Zero: true}
			if i < len(d.runs) {
				if r := d.runs[i]; r.Off <= off {
					e.Zero = false
					e.Len = min(stop, r.Off+r.Len) - off
					i++
				} else {
					e.Len = min(stop, r.Off) - off
				}
			}
			if !yield(e, nil) {
				return
			}
			off += e.Len
		}
	}
}

package codec

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"sort"
)

// Map is an allocation map: one bit per block of a disk, set where the block
// holds data anywhere, with counts that make rank and select fast. A layout
// places allocated blocks in guest order, so rank gives a block's place in the
// file and select the block found at a place.
//
// It costs 1 bit per block and 64 bits per 512 blocks: 4.5 MiB for 2 TiB in
// 64 KiB blocks. It is immutable.
type Map struct {
	size  int64 // of the disk, bytes
	shift uint  // log2 of the block size
	n     int64 // blocks
	words []uint64
	ranks []int64 // ranks[j] = set bits in words[:8*j]
}

const wordsPerRank = 8 // 512 blocks per count

// MaxBlocks bounds a map, 128 TiB in blocks of 64 KiB, to 288 MiB of memory: a
// small image can claim a disk whose map no machine holds.
const MaxBlocks = 1 << 31

// NewMap maps d in blocks of the given size, a power of two. [ErrTooLarge] when
// these are more than [MaxBlocks].
func NewMap(ctx context.Context, d Disk, block int64) (*Map, error) {
	m := &Map{size: d.Size(), shift: uint(bits.TrailingZeros64(uint64(block)))}
	m.n = Ceil(m.size, block)
	if m.n > MaxBlocks {
		return nil, fmt.Errorf("%w: %d bytes are more than %d blocks of %d bytes", ErrTooLarge, m.size, int64(MaxBlocks), block)
	}
	m.words = make([]uint64, Ceil(m.n, 64))
	for e, err := range d.Extents(ctx, 0, m.size) {
		if err != nil {
			return nil, err
		}
		if !e.Zero && e.Len > 0 {
			m.set(e.Off>>m.shift, (e.Off+e.Len-1)>>m.shift)
		}
	}
	m.count()
	return m, nil
}

// set marks the blocks lo to hi, both included.
func (m *Map) set(lo, hi int64) {
	for w := lo / 64; w <= hi/64; w++ {
		mask := ^uint64(0)
		if w == lo/64 {
			mask <<= uint(lo % 64)
		}
		if w == hi/64 {
			mask &= ^uint64(0) >> uint(63-hi%64)
		}
		m.words[w] |= mask
	}
}

func (m *Map) count() {
	m.ranks = make([]int64, len(m.words)/wordsPerRank+2)
	var sum int64
	for i, w := range m.words {
		if i%wordsPerRank == 0 {
			m.ranks[i/wordsPerRank] = sum
		}
		sum += int64(bits.OnesCount64(w))
	}
	for j := Ceil(int64(len(m.words)), wordsPerRank); j < int64(len(m.ranks)); j++ {
		m.ranks[j] = sum
	}
}

// Size is the size of the mapped disk in bytes.
func (m *Map) Size() int64 { return m.size }

// Block is the size of a block in bytes.
func (m *Map) Block() int64 { return 1 << m.shift }

// Blocks is the number of blocks of the disk, the last one maybe partial.
func (m *Map) Blocks() int64 { return m.n }

// Count is the number of allocated blocks.
func (m *Map) Count() int64 { return m.ranks[len(m.ranks)-1] }

// Has reports whether block i is allocated; false outside the disk.
func (m *Map) Has(i int64) bool {
	return i >= 0 && i < m.n && m.words[i/64]>>(uint(i)%64)&1 == 1
}

// Rank is the number of allocated blocks below i; i may be past the end.
func (m *Map) Rank(i int64) int64 {
	if i <= 0 {
		return 0
	}
	if i >= m.n {
		return m.Count()
	}
	w := i / 64
	r := m.ranks[w/wordsPerRank]
	for j := w / wordsPerRank * wordsPerRank; j < w; j++ {
		r += int64(bits.OnesCount64(m.words[j]))
	}
	return r + int64(bits.OnesCount64(m.words[w]&(1<<(uint(i)%64)-1)))
}

// Select is the index of allocated block number k, from 0; -1 if there are
// not that many.
func (m *Map) Select(k int64) int64 {
	if k < 0 || k >= m.Count() {
		return -1
	}
	j := sort.Search(len(m.ranks)-1, func(j int) bool { return m.ranks[j+1] > k })
	k -= m.ranks[j]
	for w := j * wordsPerRank; ; w++ {
		c := int64(bits.OnesCount64(m.words[w]))
		if k >= c {
			k -= c
			continue
		}
		x := m.words[w]
		for ; k > 0; k-- {
			x &= x - 1
		}
		return int64(w)*64 + int64(bits.TrailingZeros64(x))
	}
}

// run returns the end of the run of blocks with one status that begins at i,
// looked for up to limit only.
func (m *Map) run(i, limit int64) (end int64, set bool) {
	set, limit = m.Has(i), min(limit, m.n)
	for i < limit {
		x := m.words[i/64]
		if set {
			x = ^x
		}
		x >>= uint(i) % 64
		if x != 0 {
			return min(i+int64(bits.TrailingZeros64(x)), limit), set
		}
		i = (i/64 + 1) * 64
	}
	return limit, set
}

// Run returns where the run of one status that holds byte off ends, at most
// the disk's size, and whether it reads as zeros. off lies within the disk.
func (m *Map) Run(off int64) (end int64, zero bool) {
	b, set := m.run(off>>m.shift, m.n)
	if b >= m.n {
		return m.size, !set
	}
	return b << m.shift, !set
}

// Extents is the map as the extents of a disk. It never fails.
func (m *Map) Extents(_ context.Context, off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if off < 0 || off >= m.size {
			return
		}
		end := off + min(n, m.size-off)
		for off < end {
			b, set := m.run(off>>m.shift, (end-1)>>m.shift+1)
			stop := end
			if b < m.n { // else b<<shift may lie past the disk's end
				stop = min(end, b<<m.shift)
			}
			if !yield(Extent{Off: off, Len: stop - off, Zero: !set}, nil) {
				return
			}
			off = stop
		}
	}
}

// Sum is a hash of the map, its size and its block size: a part of the name of
// a disk's content.
func (m *Map) Sum() [32]byte {
	h := sha256.New()
	var b [512]byte
	n := binary.PutUvarint(b[:], uint64(m.size))
	b[n] = byte(m.shift)
	h.Write(b[:n+1])
	for i := 0; i < len(m.words); {
		k := 0
		for ; k < len(b) && i < len(m.words); k += 8 {
			binary.LittleEndian.PutUint64(b[k:], m.words[i])
			i++
		}
		h.Write(b[:k])
	}
	return [32]byte(h.Sum(nil))
}

// Mapped returns d with its extents answered by m, which was made of d: no
// I/O, and the same answer for ever. It is still [Coded] and [Noted] if d is.
func Mapped(d Disk, m *Map) Disk { return mapped{d, m} }

type mapped struct {
	Disk
	m *Map
}

func (d mapped) Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error] {
	return d.m.Extents(ctx, off, n)
}

func (d mapped) Unit() int64 {
	if c, ok := d.Disk.(Coded); ok {
		return c.Unit()
	}
	return 0
}

func (d mapped) Notes() []string {
	if n, ok := d.Disk.(Noted); ok {
		return n.Notes()
	}
	return nil
}

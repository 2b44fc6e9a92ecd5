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
// It is kept in pages of 32,768 blocks (2 GiB of 64 KiB blocks). A page with
// data costs 4 KiB, one wholly with or without data nothing of its own: 4 MiB
// for 2 TiB at most, and a few pages for a small image that claims a huge disk.
// It is immutable.
type Map struct {
	size  int64 // of the disk, bytes
	shift uint  // log2 of the block size
	n     int64 // blocks
	pages []*mapPage
	ranks []int64 // ranks[p] = set bits in pages below p; one more for all
}

const (
	wordShift = 6 // log2 of the blocks in a word
	stepShift = 9 // of those between two counts
	pageShift = 15

	pageBlocks   = 1 << pageShift
	pageWords    = pageBlocks >> wordShift
	wordsPerStep = 1 << (stepShift - wordShift)
)

// mapPage is the bits of 32,768 blocks.
type mapPage struct {
	words [pageWords]uint64
	steps [pageWords / wordsPerStep]uint16 // set bits below each step of 512 blocks
}

// Pages that many maps share: no bit set, and all.
var noBlocks, allBlocks = new(mapPage), fullPage()

func fullPage() *mapPage {
	p := new(mapPage)
	for i := range p.words {
		p.words[i] = ^uint64(0)
	}
	p.count()
	return p
}

// count sets the steps and returns the number of bits set.
func (p *mapPage) count() (sum int64) {
	for i, w := range p.words {
		if i%wordsPerStep == 0 {
			p.steps[i/wordsPerStep] = uint16(sum)
		}
		sum += int64(bits.OnesCount64(w))
	}
	return sum
}

// MaxBlocks bounds a map: 128 TiB in blocks of 64 KiB, more than any format
// here but qcow2 and raw can hold.
const MaxBlocks = 1 << 31

// NewMap maps d in blocks of the given size, a power of two. [ErrTooLarge] when
// these are more than [MaxBlocks].
func NewMap(ctx context.Context, d Disk, block int64) (*Map, error) {
	m := &Map{size: d.Size(), shift: uint(bits.TrailingZeros64(uint64(block)))}
	m.n = Ceil(m.size, block)
	if m.n > MaxBlocks {
		return nil, fmt.Errorf("%w: %d bytes are more than %d blocks of %d bytes", ErrTooLarge, m.size, int64(MaxBlocks), block)
	}
	m.pages = make([]*mapPage, Ceil(m.n, pageBlocks))
	for i := range m.pages {
		m.pages[i] = noBlocks
	}
	for e, err := range d.Extents(ctx, 0, m.size) {
		if err != nil {
			return nil, err
		}
		if !e.Zero && e.Len > 0 {
			m.set(e.Off>>m.shift, (e.Off+e.Len-1)>>m.shift)
		}
	}
	m.ranks = make([]int64, len(m.pages)+1)
	for i, p := range m.pages {
		n := int64(0)
		switch p {
		case noBlocks:
		case allBlocks:
			n = pageBlocks
		default:
			n = p.count()
		}
		m.ranks[i+1] = m.ranks[i] + n
	}
	return m, nil
}

// set marks the blocks lo to hi, both included.
func (m *Map) set(lo, hi int64) {
	for i := lo >> pageShift; i <= hi>>pageShift; i++ {
		first := i << pageShift
		from, to := max(lo-first, 0), min(hi-first, pageBlocks-1)
		switch {
		case m.pages[i] == allBlocks:
			continue
		case from == 0 && to == pageBlocks-1:
			m.pages[i] = allBlocks
			continue
		case m.pages[i] == noBlocks:
			m.pages[i] = new(mapPage)
		}
		m.pages[i].set(from, to)
	}
}

func (p *mapPage) set(lo, hi int64) {
	for w := lo / 64; w <= hi/64; w++ {
		mask := ^uint64(0)
		if w == lo/64 {
			mask <<= uint(lo % 64)
		}
		if w == hi/64 {
			mask &= ^uint64(0) >> uint(63-hi%64)
		}
		p.words[w] |= mask
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
	return i >= 0 && i < m.n && m.word(i)>>(uint(i)%64)&1 == 1
}

// word holds the bit of block i, which lies within the disk.
func (m *Map) word(i int64) uint64 {
	return m.pages[i>>pageShift].words[i>>wordShift%pageWords]
}

// Rank is the number of allocated blocks below i; i may be past the end.
func (m *Map) Rank(i int64) int64 {
	if i <= 0 {
		return 0
	}
	if i >= m.n {
		return m.Count()
	}
	p, w := m.pages[i>>pageShift], i>>wordShift%pageWords
	step := w / wordsPerStep
	r := m.ranks[i>>pageShift] + int64(p.steps[step])
	for _, x := range p.words[step*wordsPerStep : w] {
		r += int64(bits.OnesCount64(x))
	}
	return r + int64(bits.OnesCount64(p.words[w]&(1<<(uint(i)%64)-1)))
}

// Select is the index of allocated block number k, from 0; -1 if there are
// not that many.
func (m *Map) Select(k int64) int64 {
	if k < 0 || k >= m.Count() {
		return -1
	}
	i := sort.Search(len(m.pages), func(i int) bool { return m.ranks[i+1] > k })
	return int64(i)<<pageShift + m.pages[i].find(k-m.ranks[i])
}

// find is the place of set bit number k of the page, which has as many.
func (p *mapPage) find(k int64) int64 {
	step := sort.Search(len(p.steps), func(s int) bool { return int64(p.steps[s]) > k }) - 1
	k -= int64(p.steps[step])
	for w := step * wordsPerStep; ; w++ {
		c := int64(bits.OnesCount64(p.words[w]))
		if k >= c {
			k -= c
			continue
		}
		x := p.words[w]
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
	whole := noBlocks
	if set {
		whole = allBlocks
	}
	for i < limit {
		if m.pages[i>>pageShift] == whole {
			i = (i>>pageShift + 1) << pageShift
			continue
		}
		x := m.word(i)
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
	var b [8 * pageWords]byte
	n := binary.PutUvarint(b[:], uint64(m.size))
	b[n] = byte(m.shift)
	h.Write(b[:n+1])
	for i, p := range m.pages {
		if p == noBlocks {
			continue
		}
		h.Write(b[:binary.PutUvarint(b[:], uint64(i))])
		for j, w := range p.words {
			binary.LittleEndian.PutUint64(b[8*j:], w)
		}
		h.Write(b[:])
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

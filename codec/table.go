package codec

import (
	"cmp"
	"context"
	"io"
	"iter"
	"math/bits"
	"slices"
	"sync"
)

// Entry says where the bytes of a guest block are: 0 is nowhere (zeros), a
// plain number the offset in the source (no format keeps data at offset 0),
// and with [Encoded] set a number of the format's own for its Decode.
type Entry uint64

// Encoded marks an entry whose block has to be decoded.
const Encoded Entry = 1 << 63

// Table is a disk whose guest blocks stand anywhere in a source: what the
// tables of qcow2, VMDK, VDI, VHD and VHDX come down to. A format's Open parses
// its tables into it; reading, extents and the checks that all formats share
// are here.
//
// It is kept in pages, of which a wholly unallocated one costs nothing, so its
// memory is a small multiple of the tables the file really holds. Fill it from
// one goroutine, call Seal, and read it from many.
type Table struct {
	src   Source
	size  int64
	shift uint
	per   int64 // entries per page
	pages [][]Entry
	coded bool

	// Masks of parts that read as zeros, one bit per 1/32 of a block, the
	// lowest first: for formats that allocate below the block. Same pages.
	masks [][]uint32

	claims  []claim
	claimed int64 // bytes in claims

	// ShortTail allows the last block in the file to be cut by its end: the
	// rest reads as zeros. Writers that truncate leave such files.
	ShortTail bool

	// Decode fills dst, one whole block, from an entry with Encoded set.
	// It must be set before Seal when there are such entries, and may
	// be called concurrently.
	Decode func(ctx context.Context, e Entry, dst []byte) error

	scratch sync.Pool // *[]byte of one block, for parts of encoded ones
}

type claim struct{ off, end int64 }

// NewTable makes an empty table of a disk of size bytes in blocks of the given
// size, a power of two, with perPage entries to a page. The caller has checked
// that the file holds a top-level table for that many pages.
func NewTable(src Source, size, block, perPage int64) *Table {
	t := &Table{src: src, size: size, shift: uint(bits.TrailingZeros64(uint64(block))), per: perPage}
	t.pages = make([][]Entry, Ceil(Ceil(size, block), perPage))
	return t
}

// Blocks is the number of blocks of the disk, the last one maybe partial.
func (t *Table) Blocks() int64 { return Ceil(t.size, t.Block()) }

// Block is the size of a block in bytes.
func (t *Table) Block() int64 { return 1 << t.shift }

// Claim reserves [off, off+n) of the file for what names: it must lie inside,
// and Seal checks that no two claims share a byte.
func (t *Table) Claim(off, n int64, what string) error {
	if off < 0 || n < 0 || off > t.src.Size() || n > t.src.Size()-off {
		return Corruptf("%s at %#x, %d bytes: past the end of the file (%d bytes)", what, off, n, t.src.Size())
	}
	if n == 0 {
		return nil
	}
	// More claims than bytes must overlap: known here, a table that aims all
	// its entries at one block costs no memory.
	if n > t.src.Size()-t.claimed {
		return Corruptf("%s at %#x, %d bytes: tables and blocks share bytes, they are more than the file holds (%d bytes)", what, off, n, t.src.Size())
	}
	t.claimed += n
	if k := len(t.claims) - 1; k >= 0 && t.claims[k].end == off {
		t.claims[k].end = off + n
	} else {
		t.claims = append(t.claims, claim{off, off + n})
	}
	return nil
}

// Set says that guest block i stands whole at off in the file.
func (t *Table) Set(i, off int64) error {
	if err := t.inside(i); err != nil {
		return err
	}
	n := t.Block()
	if off <= 0 || off >= t.src.Size() {
		return Corruptf("block %d at %#x: past the end of the file (%d bytes)", i, off, t.src.Size())
	}
	if left := t.src.Size() - off; left < n {
		// What the guest needs of its last block may be less than a block.
		if !t.ShortTail && left < t.size-i<<t.shift {
			return Corruptf("block %d at %#x: cut by the end of the file (%d bytes)", i, off, t.src.Size())
		}
		n = left
	}
	if err := t.Claim(off, n, "block"); err != nil {
		return err
	}
	t.put(i, Entry(off))
	return nil
}

func (t *Table) inside(i int64) error {
	if i < 0 || i >= t.Blocks() {
		return Corruptf("block %d of a disk of %d blocks", i, t.Blocks())
	}
	return nil
}

// SetEncoded says that guest block i is decoded from e, and that its bytes
// begin with at least n bytes at off in the file.
func (t *Table) SetEncoded(i int64, e Entry, off, n int64) error {
	if err := t.inside(i); err != nil {
		return err
	}
	if err := t.Claim(off, n, "encoded block"); err != nil {
		return err
	}
	t.coded = true
	t.put(i, e|Encoded)
	return nil
}

// SetMask says which 1/32 parts of block i read as zeros, the lowest bit first.
func (t *Table) SetMask(i int64, zero uint32) {
	if t.masks == nil {
		t.masks = make([][]uint32, len(t.pages))
	}
	p := i / t.per
	if t.masks[p] == nil {
		t.masks[p] = make([]uint32, min(t.per, t.Blocks()-p*t.per))
	}
	t.masks[p][i%t.per] = zero
}

func (t *Table) put(i int64, e Entry) {
	p := i / t.per
	if t.pages[p] == nil {
		t.pages[p] = make([]Entry, min(t.per, t.Blocks()-p*t.per))
	}
	t.pages[p][i%t.per] = e
}

// Seal checks the claims: two blocks on the same bytes amplify a small file
// into a large disk, and a block over a table makes guest data the map. The
// table is immutable after it.
func (t *Table) Seal() error {
	order := func(a, b claim) int { return cmp.Compare(a.off, b.off) }
	if !slices.IsSortedFunc(t.claims, order) {
		slices.SortFunc(t.claims, order)
	}
	for i := 1; i < len(t.claims); i++ {
		if a, b := t.claims[i-1], t.claims[i]; b.off < a.end {
			return Corruptf("two tables or blocks share the bytes at %#x", b.off)
		}
	}
	t.claims = nil
	return nil
}

// Size is the size of the disk in bytes.
func (t *Table) Size() int64 { return t.size }

// Unit is the size of a block when blocks are encoded, else 0: see [Coded].
func (t *Table) Unit() int64 {
	if !t.coded {
		return 0
	}
	return t.Block()
}

// Offset is where block i stands in the file, 0 for a block that stands nowhere
// or is encoded.
func (t *Table) Offset(i int64) int64 {
	if e := t.entry(i); e&Encoded == 0 {
		return int64(e)
	}
	return 0
}

func (t *Table) entry(i int64) Entry {
	p := t.pages[i/t.per]
	if p == nil {
		return 0
	}
	return p[i%t.per]
}

func (t *Table) mask(i int64) uint32 {
	if t.masks == nil || t.masks[i/t.per] == nil {
		return 0
	}
	return t.masks[i/t.per][i%t.per]
}

// status returns the end of the part of one status that begins at off, within
// one page or block, and whether it reads as zeros.
func (t *Table) status(off int64) (end int64, zero bool) {
	i := off >> t.shift
	if p := i / t.per; t.pages[p] == nil {
		if p+1 == int64(len(t.pages)) { // the last page may end past int64
			return t.size, true
		}
		return (p + 1) * t.per << t.shift, true
	}
	end = min((i+1)<<t.shift, t.size)
	if t.entry(i) == 0 {
		return end, true
	}
	m := t.mask(i)
	if m == 0 {
		return end, false
	}
	part := uint(off >> (t.shift - 5) & 31)
	zero = m>>part&1 == 1
	x := m >> part
	if zero {
		x = ^x
	}
	part += uint(bits.TrailingZeros32(x))
	if part < 32 {
		end = min(i<<t.shift+int64(part)<<(t.shift-5), t.size)
	}
	return end, zero
}

// Extents implements [Disk]. It does no I/O and never fails.
func (t *Table) Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if off < 0 || off >= t.size {
			return
		}
		stop := off + min(n, t.size-off)
		for off < stop {
			if err := ctx.Err(); err != nil {
				yield(Extent{}, err)
				return
			}
			end, zero := t.status(off)
			for end < stop {
				e, z := t.status(end)
				if z != zero {
					break
				}
				end = e
			}
			end = min(end, stop)
			if !yield(Extent{Off: off, Len: end - off, Zero: zero}, nil) {
				return
			}
			off = end
		}
	}
}

// ReadAt implements [Disk]. Neighbouring blocks that are neighbours in the
// source too are read in one call.
func (t *Table) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return ReadParts(ctx, p, off, t.size, t.readPart)
}

// readPart reads the longest run from off that one call can serve.
func (t *Table) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	if i := off >> t.shift; t.entry(i)&Encoded != 0 {
		if end, zero := t.status(off); !zero {
			p = p[:min(int64(len(p)), end-off)]
			if err := t.decode(ctx, t.entry(i), p, off-i<<t.shift); err != nil {
				return 0, err
			}
			return len(p), nil
		}
	}
	at, n := t.Locate(off, int64(len(p)))
	p = p[:n]
	if at < 0 {
		clear(p)
		return len(p), nil
	}
	m, err := t.src.ReadAt(ctx, p, at)
	if m == len(p) {
		return m, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// Source implements [Located].
func (t *Table) Source() Source { return t.src }

// Locate implements [Located]. Encoded blocks lie nowhere.
func (t *Table) Locate(off, limit int64) (at, n int64) {
	end, zero := t.status(off)
	n = min(limit, end-off)
	i := off >> t.shift
	e := t.entry(i)
	if zero || e&Encoded != 0 {
		return -1, n
	}
	at = int64(e) + off - i<<t.shift
	for n < limit {
		next := off + n
		if next&(t.Block()-1) != 0 {
			break
		}
		if end, zero = t.status(next); zero || t.entry(next>>t.shift) != e+Entry(next-i<<t.shift) {
			break
		}
		n += min(limit-n, end-next)
	}
	switch left := t.src.Size() - at; {
	case left >= n:
		return at, n
	case left > 0:
		return at, left
	}
	return -1, n // cut by the end of the file: see ShortTail
}

func (t *Table) decode(ctx context.Context, e Entry, p []byte, rel int64) error {
	if rel == 0 && int64(len(p)) == t.Block() {
		return t.Decode(ctx, e, p)
	}
	buf, _ := t.scratch.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, t.Block())
		buf = &b
	}
	err := t.Decode(ctx, e, *buf)
	if err == nil {
		copy(p, (*buf)[rel:])
	}
	t.scratch.Put(buf)
	return err
}

// ReadParts fills p with the bytes at off of something of the given size, by
// calls of part, which reads at least one byte where it does not fail. It cuts
// p at the end, with io.EOF, and gives io.ReaderAt's results.
func ReadParts(ctx context.Context, p []byte, off, size int64, part func(context.Context, []byte, int64) (int, error)) (int, error) {
	if off < 0 {
		return 0, errNegative
	}
	var eof error
	if off >= size {
		return 0, io.EOF
	}
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	for n := 0; n < len(p); {
		m, err := part(ctx, p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return len(p), eof
}

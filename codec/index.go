package codec

import (
	"context"
	"fmt"
	"iter"
)

// Streamed is a [Coded] disk whose encoded blocks can be handed on as they are:
// what lies in the source of one is a whole stream of its own.
type Streamed interface {
	Coded
	// Encoding is what the streams are: [Deflate] or [Zstd].
	Encoding() string
	// Stored is the source that holds the streams.
	Stored() Source
	// StreamAt is where the stream of block i begins in Stored. It is not ok
	// for a block that is not encoded.
	StreamAt(i int64) (off int64, ok bool)
	// Measure decodes block i, which is encoded, into dst, which has room for
	// exactly one, and returns how many bytes of Stored its stream has: it is
	// then a whole stream of exactly one block, with nothing behind. 0 says
	// that it decodes here, but that other readers would not take it alone.
	// It may be called concurrently.
	Measure(ctx context.Context, i int64, dst []byte) (n int64, err error)
}

// Encodings of streams.
const (
	Deflate = "deflate" // RFC 1951, ended by a final block; no zlib head around it
	Zstd    = "zstd"    // RFC 8878, one frame or more
)

// Windowed is a [Coded] disk that is one long stream: what a block decodes to
// depends on those before it. Windows at restart points let a reader begin near
// the block it wants.
type Windowed interface {
	Coded
	// Stored is the source that holds the stream.
	Stored() Source
	// Restarts is how many restart points there are, and of how many bytes of
	// blocks one is the start.
	Restarts() (n, every int64)
	// Walk decodes the disk once. It calls each for every block, in any order
	// and concurrently, cut at the disk's end; and keep for every restart
	// point, in order, with the bytes before it, at most 32 KiB, or none
	// where the blocks behind need none. Both hold for the call only.
	Walk(ctx context.Context, workers int, each func(off int64, block []byte) error, keep func(window []byte) error) error
	// SetWindows lets d ask for the windows that a Walk kept, by the number
	// of the restart point. It is called before the first read. Where they
	// fail, d reads on without.
	SetWindows(window func(ctx context.Context, k int64) ([]byte, error))
}

// Index is what was found out about an encoded disk by decoding it once, and
// what its file does not say: how long each stream is and what it sums up to,
// or windows of one that is long. It is what a layout needs that hands streams
// on. It holds about 8 bytes for each encoded block; windows stay where they
// are. It is immutable.
type Index struct {
	encoding string // of the blocks, "" without
	stored   int64  // bytes of the object
	ends     uint32 // sum of its ends
	size     int64  // of the disk
	block    int64

	encoded *Map     // the blocks that are encoded
	handed  *Map     // those of them whose stream can be handed on
	lens    []uint32 // bytes of the streams handed on, in order
	sums    []uint32 // adler32 of what they decode to; 0 but for deflate

	every   int64
	windows []window
	data    ReaderAt // that holds the windows
	pile    *pile    // the same, of an index just built
}

// window is where a window is in the data of an index.
type window struct {
	off int64
	n   uint32 // bytes; 0 for none needed
	crc uint32
}

// Close gives up what an index that was built holds outside memory.
func (x *Index) Close() error {
	if x == nil || x.pile == nil {
		return nil
	}
	return x.pile.close()
}

// Blocks is how many encoded blocks there are, and how many of them have a
// stream that can be handed on.
func (x *Index) Blocks() (encoded, handed int64) {
	if x.encoded == nil {
		return 0, 0
	}
	return x.encoded.Count(), x.handed.Count()
}

// takes reports whether the stream of block i, n bytes long, can be handed on
// in the place of the block: it is a whole one, and shorter.
func (x *Index) takes(i, n int64) bool {
	return n > 0 && n < x.block && i < x.size/x.block
}

// hand makes the map of streams that are handed on, with their lengths and
// sums behind those that x has, of all that next tells of the encoded blocks in
// order.
func (x *Index) hand(ctx context.Context, d Streamed, next func(i int64) (n int64, sum uint32, err error)) error {
	count := x.encoded.Count()
	var failed error
	m, err := NewMap(ctx, &blocksWhere{d, x.block, func(i int64) bool {
		if failed != nil || !x.encoded.Has(i) {
			return false
		}
		n, sum, err := next(i)
		if failed = err; err != nil || !x.takes(i, n) {
			return false
		}
		x.lens, x.sums = append(x.lens, uint32(n)), append(x.sums, sum)
		return true
	}}, x.block)
	if err != nil || failed != nil {
		return firstOf(failed, err)
	}
	if x.handed = m; m.Count() == count {
		x.handed = x.encoded
	}
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// newIndex is an empty index of d.
func newIndex(d Coded, stored Source) *Index {
	return &Index{stored: stored.Size(), size: d.Size(), block: d.Unit()}
}

// encodedBlocks maps the blocks of d that are encoded.
func encodedBlocks(ctx context.Context, d Streamed) (*Map, error) {
	m, err := NewMap(ctx, &blocksWhere{d, d.Unit(), func(i int64) bool {
		_, ok := d.StreamAt(i)
		return ok
	}}, d.Unit())
	if err != nil {
		return nil, fmt.Errorf("map the encoded blocks: %w", err)
	}
	return m, nil
}

// blocksWhere is the blocks of a disk with data of which something holds, for
// [NewMap]: each is asked about once, in order.
type blocksWhere struct {
	Disk
	block int64
	is    func(i int64) bool
}

// Extents yields the blocks alone, whole.
func (b *blocksWhere) Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		next := int64(0)
		for e, err := range b.Disk.Extents(ctx, off, n) {
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if e.Zero || e.Len <= 0 {
				continue
			}
			for i := max(e.Off/b.block, next); i <= (e.Off+e.Len-1)/b.block; i++ {
				next = i + 1
				if b.is(i) && !yield(Extent{Off: i * b.block, Len: min(b.block, b.Size()-i*b.block)}, nil) {
					return
				}
			}
		}
	}
}

// Stored is the source of a table's blocks.
func (t *Table) Stored() Source { return t.src }

// EncodedAt is the entry of block i if it is encoded, as Decode gets it.
func (t *Table) EncodedAt(i int64) (e Entry, ok bool) {
	if i < 0 || i >= t.Blocks() {
		return 0, false
	}
	e = t.entry(i)
	return e, e&Encoded != 0
}

package codec

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sort"
)

// Streamer is a Disk that offers its streams to a layout that can hand them on.
type Streamer interface {
	Disk
	// Streams says what there is. [ErrNotPossible], with the reason for
	// people, where nothing is; other errors may pass.
	Streams(ctx context.Context) (*Streams, error)
}

// Reframing is a View that hands the streams of a disk on, and shows no other.
type Reframing interface {
	View
	// Takes is nil where the view shows a disk whose blocks, of so many bytes,
	// are stored in an encoding, "" for none; else [ErrNotPossible] with the
	// reason. It does no I/O.
	Takes(encoding string, block int64) error
}

// NotPossiblef returns an [ErrNotPossible] with the reason for people.
func NotPossiblef(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrNotPossible, fmt.Sprintf(format, a...))
}

// EncodingOf is what the encoded blocks of d are, and their size in bytes; ""
// where there are none that could be handed on.
func EncodingOf(d Disk) (encoding string, block int64) {
	if s, ok := d.(Streamed); ok && s.Unit() > 0 {
		return s.Encoding(), s.Unit()
	}
	return "", 0
}

// Streams are those of a disk's blocks that can be handed on, and which of its
// other blocks have data. It is immutable.
type Streams struct {
	Encoding string
	Coded    *Map // blocks with a stream that is shorter than they are, all whole
	Plain    *Map // the other ones with data
	d        Streamed
	x        *Index
}

// NewStreams makes the streams of d, a [Streamed], of its index.
func NewStreams(ctx context.Context, d Disk, x *Index) (*Streams, error) {
	sd, ok := d.(Streamed)
	if !ok || x == nil || x.handed == nil {
		return nil, NotPossiblef("no block of the disk is stored as a stream of its own")
	}
	s := &Streams{Encoding: x.encoding, Coded: x.handed, d: sd, x: x}
	var err error
	s.Plain, err = NewMap(ctx, &blocksWhere{d, x.block, func(i int64) bool { return !x.handed.Has(i) }}, x.block)
	return s, err
}

// Block is the size of a block in bytes.
func (s *Streams) Block() int64 { return s.x.block }

// Len is how many bytes the stream of coded block number k has.
func (s *Streams) Len(k int64) int64 { return int64(s.x.lens[k]) }

// Adler is the adler32 of what the stream of coded block number k decodes to,
// for deflate only.
func (s *Streams) Adler(k int64) uint32 { return s.x.sums[k] }

// Read fills p with bytes of the stream of coded block number k, which is block
// i, from its byte rel on. They lie within it.
func (s *Streams) Read(ctx context.Context, p []byte, k, i, rel int64) error {
	off, ok := s.d.StreamAt(i)
	if !ok || rel < 0 || rel+int64(len(p)) > s.Len(k) {
		return Corruptf("bytes %d to %d of the stream of block %d", rel, rel+int64(len(p)), i)
	}
	if n, err := s.d.Stored().ReadAt(ctx, p, off+rel); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read the stream of block %d at %#x: %w", i, off+rel, err)
	}
	return nil
}

// sumShift is log2 of the blocks between two totals.
const sumShift = 6

// Sums are the places of records of different lengths, one for each coded block:
// what stands around a stream and then the stream, rounded up to whole units.
type Sums struct {
	lens   []uint32
	around int64
	shift  uint
	totals []int64 // of every 64th record, and of the end
}

// Sums places records of around bytes and the stream each, in units of 1<<shift
// bytes.
func (s *Streams) Sums(around int64, shift uint) *Sums {
	t := &Sums{lens: s.x.lens, around: around, shift: shift}
	t.totals = make([]int64, 0, len(t.lens)>>sumShift+2)
	sum := int64(0)
	for k := range t.lens {
		if k&(1<<sumShift-1) == 0 {
			t.totals = append(t.totals, sum)
		}
		sum += t.Units(int64(k))
	}
	t.totals = append(t.totals, sum)
	return t
}

// Units is the length of record k.
func (t *Sums) Units(k int64) int64 {
	return (int64(t.lens[k]) + t.around + 1<<t.shift - 1) >> t.shift
}

// Total is the length of all records, in units.
func (t *Sums) Total() int64 { return t.totals[len(t.totals)-1] }

// Start is where record k begins, in units; Total for the one behind the last.
func (t *Sums) Start(k int64) int64 {
	if k >= int64(len(t.lens)) {
		return t.Total()
	}
	i := k >> sumShift
	sum := t.totals[i]
	for j := i << sumShift; j < k; j++ {
		sum += t.Units(j)
	}
	return sum
}

// Find is the record that holds a unit below Total, and where it begins.
func (t *Sums) Find(unit int64) (k, start int64) {
	last := len(t.totals) - 1 // of the end
	i := sort.Search(last, func(i int) bool { return t.totals[i] > unit }) - 1
	k, start = int64(i)<<sumShift, t.totals[i]
	for {
		n := t.Units(k)
		if unit < start+n {
			return k, start
		}
		k, start = k+1, start+n
	}
}

// Groups maps the blocks with data in larger ones of group bytes.
func (s *Streams) Groups(ctx context.Context, group int64) (*Map, error) {
	return NewMap(ctx, &eitherMap{s.Coded, s.Plain}, group)
}

// eitherMap is two maps of a disk as its extents, for [NewMap]: not in order.
type eitherMap struct{ a, b *Map }

func (m *eitherMap) Size() int64 { return m.a.Size() }

func (m *eitherMap) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, errNegative
}

// Extents yields those of one and then those of the other.
func (m *eitherMap) Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for _, x := range []*Map{m.a, m.b} {
			for e, err := range x.Extents(ctx, off, n) {
				if !yield(e, err) {
					return
				}
			}
		}
	}
}

// Mapped is d with exactly the blocks as data that have a stream or are plain.
func (s *Streams) Mapped(d Disk) Disk { return &onlyBlocks{d, eitherMap{s.Coded, s.Plain}} }

type onlyBlocks struct {
	Disk
	m eitherMap
}

func (d *onlyBlocks) Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error] {
	return d.m.Extents(ctx, off, n)
}

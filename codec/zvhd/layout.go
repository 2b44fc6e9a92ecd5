package zvhd

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// Zlib2 lays out a ZVHD2 with zlib, which [Format2] reads.
var Zlib2 codec.View = layout{name: "zlib.zvhd2", cookie: cookie2, shape: stored, method: methodZlib}

// recordLen is the length of a record with stored data in any shape.
const recordLen = 513 * page

// maxUsed is how many blocks with data a ZVHD2 may have: the length of its index
// has 32 bits.
const maxUsed = (1<<32/indexSegment - 1) * segmentItems

// shape is the form of a payload with stored data: lead, and then pieces of the
// block, each behind a head.
type shape struct {
	lead       string
	head, last string // before each piece, and before the last one
	piece      int    // bytes
}

var (
	// stored is a zlib stream of stored blocks (RFC 1951, section 3.2.4).
	stored = shape{"\x78\x01", "\x00\x00\x80\xff\x7f", "\x00\x00\x80\xff\x7f", 32 << 10}
	// framed is a zstd frame of raw blocks (RFC 8878, section 3.1.1): one
	// segment, its size in four bytes.
	framed = shape{"\x28\xb5\x2f\xfd\xa0\x00\x00\x20\x00", "\x00\x00\x10", "\x01\x00\x10", 128 << 10}
)

// stride is the distance of two pieces.
func (s *shape) stride() int { return len(s.head) + s.piece }

// body is the length of all pieces.
func (s *shape) body() int { return blockSize / s.piece * s.stride() }

// layout is how a disk is laid out.
type layout struct {
	name   string
	cookie string
	shape  shape
	once   bool // the lead is in the first record only
	method byte // of a ZVHD2
}

func (l layout) Name() string { return l.name }

// Layout lays d out with stored data.
func (l layout) Layout(ctx context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	m, err := codec.NewMap(ctx, d, blockSize)
	if err != nil {
		return nil, fmt.Errorf("map the disk in %s blocks: %w", l.name, err)
	}
	size := codec.Up(d.Size(), 512)
	h := header{
		cookie:   l.cookie,
		version:  version10,
		time:     codec.VHDTime(f.Created),
		original: uint64(size),
		current:  uint64(codec.Up(size, giant)),
		kind:     kindOnly,
		uuid:     f.UUID(l.name, "header"),
	}
	n := m.Count()
	if l.cookie == cookie2 {
		if n > maxUsed {
			return nil, fmt.Errorf("%w: zvhd2 holds at most %d bytes of data, the disk has %d", codec.ErrTooLarge, int64(maxUsed)*blockSize, n*blockSize)
		}
		h.two = l.directory(m)
	}
	block := h.marshal()

	file := new(codec.File)
	file.Literal(block)
	file.Append(n*recordLen, &records{l, codec.Guest{Disk: d}, m})
	if l.cookie == cookie2 {
		file.Literal(block)
		file.Append(n*indexEntry, &codec.Entries{Size: indexEntry, Put: func(b []byte, i int64) {
			le.PutUint64(b, uint64(page+i*recordLen))
			le.PutUint32(b[8:], uint32(m.Select(i)))
			le.PutUint32(b[12:], recordLen)
		}})
		file.ZeroTo(int64(h.two.bitmap))
		file.Append(codec.Ceil(m.Blocks(), 8), &codec.Entries{Size: 1, Put: func(b []byte, i int64) {
			b[0] = 0
			for bit := range int64(8) {
				if m.Has(8*i + bit) {
					b[0] |= 1 << bit
				}
			}
		}})
		file.ZeroTo(int64(h.two.bitmap) + int64(h.two.bitmapLen))
	}
	file.Literal(block)
	return file, nil
}

// directory is that of a ZVHD2 of the blocks in m.
func (l *layout) directory(m *codec.Map) directory {
	n, blocks := m.Count(), m.Blocks()
	index := page + n*recordLen + page
	indexSegs, bitmapSegs := codec.Ceil(n, segmentItems), codec.Ceil(blocks, segmentItems)
	return directory{
		version: 1, block: blockSize, blocks: uint32(blocks),
		index: uint64(index), bitmap: uint64(index + indexSegs*indexSegment),
		indexLen: uint32(indexSegs * indexSegment), bitmapLen: uint32(bitmapSegs * bitmapSegment),
		indexSeg: indexSegment, bitmapSeg: bitmapSegment,
		indexSegs: uint32(indexSegs), bitmapSegs: uint32(bitmapSegs),
		used: uint32(n), method: l.method,
	}
}

// records fills the records of all blocks with data.
type records struct {
	layout
	guest codec.Guest
	m     *codec.Map
}

// Fill implements [codec.Filler].
func (r *records) Fill(ctx context.Context, p []byte, rel int64) error {
	for len(p) > 0 {
		k, in := rel/recordLen, rel%recordLen
		q := p[:min(int64(len(p)), recordLen-in)]
		if err := r.record(ctx, q, int(in), k); err != nil {
			return err
		}
		p, rel = p[len(q):], rel+int64(len(q))
	}
	return nil
}

// record fills p with the bytes from number in on of the k-th record.
func (r *records) record(ctx context.Context, p []byte, in int, k int64) error {
	i := r.m.Select(k)
	lead := r.shape.lead
	if r.once && k > 0 {
		lead = ""
	}
	body := r.shape.body()
	first := recordHead + len(lead)
	last := first + body
	if in < first {
		var b [recordHead + 16]byte
		copy(b[:], recordMagic)
		le.PutUint32(b[12:], uint32(len(lead)+body))
		le.PutUint32(b[16:], uint32(i))
		copy(b[recordHead:], lead)
		n := copy(p, b[in:first])
		p, in = p[n:], in+n
	}
	if in < last && len(p) > 0 {
		q := p[:min(len(p), last-in)]
		if err := r.pieces(ctx, q, in-first, i*blockSize); err != nil {
			return err
		}
		p, in = p[len(q):], in+len(q)
	}
	clear(p)
	const mark = recordLen - len(recordEnd)
	if n := mark - in; n < len(p) {
		copy(p[max(n, 0):], recordEnd[max(-n, 0):])
	}
	return nil
}

// pieces fills p with the bytes from number in on of the pieces of the block at
// off of the guest. Its bytes are read at once into the end of p: what is to be
// put before any of them is never longer than the heads that are still to come,
// so each moves forward to its place.
func (r *records) pieces(ctx context.Context, p []byte, in int, off int64) error {
	s := &r.shape
	from := s.before(in)
	data := p[len(p)-(s.before(in+len(p))-from):]
	if err := r.guest.Fill(ctx, data, off+int64(from)); err != nil {
		return err
	}
	for len(p) > 0 {
		i, at := in/s.stride(), in%s.stride()
		head := s.head
		if (i+1)*s.piece == blockSize {
			head = s.last
		}
		var n int
		if at < len(head) {
			n = copy(p, head[at:])
		} else {
			n = copy(p, data[:min(len(data), s.stride()-at)])
			data = data[n:]
		}
		p, in = p[n:], in+n
	}
	return nil
}

// before is how many bytes of a block stand before byte in of its pieces.
func (s *shape) before(in int) int {
	return in/s.stride()*s.piece + max(in%s.stride()-len(s.head), 0)
}

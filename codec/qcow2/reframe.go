package qcow2

import (
	"context"
	"fmt"
	mathbits "math/bits"

	"imagefs/codec"
)

// Zlib and Zstd lay out images of compressed clusters, of streams that the disk
// is stored as. Zlib is read by all readers of qcow2, and Zstd by QEMU.
var (
	Zlib codec.View = reframed{"zlib.qcow2", codec.Deflate}
	Zstd codec.View = reframed{"zstd.qcow2", codec.Zstd}
)

var (
	_ codec.Reframing = reframed{}
	_ codec.Filler    = (*payloads)(nil)
)

type reframed struct{ name, encoding string }

func (v reframed) Name() string { return v.name }

// Takes implements [codec.Reframing].
func (v reframed) Takes(encoding string, block int64) error {
	switch {
	case encoding == v.encoding && block >= 1<<minClusterBits && block <= 1<<maxClusterBits:
		return nil
	case encoding == v.encoding:
		return codec.NotPossiblef("stored in blocks of %d bytes, qcow2 has clusters of %d to %d", block, 1<<minClusterBits, 1<<maxClusterBits)
	case v.encoding == codec.Zstd:
		return codec.NotPossiblef("not stored as zstd-compressed qcow2 or ZVHD2")
	}
	return codec.NotPossiblef("not stored as zlib-compressed qcow2 or VMDK")
}

// streamsOf is what d offers to v.
func (v reframed) streamsOf(ctx context.Context, d codec.Disk) (*codec.Streams, error) {
	sd, ok := d.(codec.Streamer)
	if !ok {
		return nil, v.Takes("", 0)
	}
	s, err := sd.Streams(ctx)
	if err != nil {
		return nil, err
	}
	return s, v.Takes(s.Encoding, s.Block())
}

// Layout lays d out in clusters of the size of its blocks: see the package's
// doc. It depends on nothing but the disk and its streams, and reads no byte of
// either.
func (v reframed) Layout(ctx context.Context, d codec.Disk, _ codec.Facts) (*codec.File, error) {
	s, err := v.streamsOf(ctx, d)
	if err != nil {
		return nil, err
	}
	clusterBits := uint(mathbits.TrailingZeros64(uint64(s.Block())))
	m, err := newPayloadMap(ctx, s, clusterBits, d.Size())
	if err != nil {
		return nil, err
	}
	p := &m.plan
	f := new(codec.File)
	if v.encoding == codec.Zstd {
		f.Literal(p.compressedHeader(codec.Up(d.Size(), 512)))
	} else {
		f.Literal(p.header(codec.Up(d.Size(), 512)))
	}
	f.ZeroTo(p.rt << p.bits)
	p.tables(f, m.groups, m.count, m.entry)
	f.Append(m.sums.Total()*payloadUnit, &payloads{s, m.sums})
	f.ZeroTo(m.plain)
	packed := &codec.Packed{Disk: d, Map: s.Plain}
	f.Append(packed.Len(), packed)
	return f, nil
}

// Payloads begin on sectors: their places are counted in them, and how many
// touch a cluster follows from two searches.
const (
	payloadShift = 9
	payloadUnit  = 1 << payloadShift
)

// payloadMap is where everything is in an image of payloads.
type payloadMap struct {
	plan
	s      *codec.Streams
	sums   *codec.Sums
	groups *codec.Map // L2 tables that there are
	first  int64      // where the payloads begin, bytes
	plain  int64      // where the plain clusters do
}

func newPayloadMap(ctx context.Context, s *codec.Streams, clusterBits uint, size int64) (*payloadMap, error) {
	m := &payloadMap{plan: plan{bits: clusterBits}, s: s, sums: s.Sums(0, payloadShift)}
	if n := m.l1Entries(size); 8*n > maxL1Bytes {
		return nil, fmt.Errorf("%w: qcow2 holds at most %d bytes in clusters of %d, the disk has %d",
			codec.ErrTooLarge, maxL1Bytes/8*m.perL2()*m.cluster(), m.cluster(), size)
	}
	var err error
	if m.groups, err = s.Groups(ctx, m.perL2()*m.cluster()); err != nil {
		return nil, err
	}
	area := codec.Ceil(m.sums.Total()*payloadUnit, m.cluster())
	m.plan = planFor(clusterBits, size, area+s.Plain.Count(), m.groups.Count())
	m.first = m.data << m.bits
	m.plain = m.first + area<<m.bits
	// An entry has fewer bits for an offset the larger clusters are.
	if end := m.total << m.bits; end>>min(62-(clusterBits-8), 56) != 0 {
		return nil, fmt.Errorf("%w: the file would have %d bytes", codec.ErrTooLarge, end)
	}
	return m, m.tooManyCounts()
}

// entry is the L2 entry of guest cluster c.
func (m *payloadMap) entry(c int64) uint64 {
	switch {
	case m.s.Coded.Has(c):
		k := m.s.Coded.Rank(c)
		return compressedEntry(m.bits, m.first+m.sums.Start(k)*payloadUnit, m.s.Len(k))
	case m.s.Plain.Has(c):
		return uint64(m.plain+m.s.Plain.Rank(c)<<m.bits) | entryCopied
	}
	return 0
}

// count is the refcount of cluster c of the file. A payload counts in each
// cluster that one of its sectors is in.
func (m *payloadMap) count(c int64) uint16 {
	at := c << m.bits
	if at < m.first || at >= m.plain {
		return 1
	}
	lo := (at - m.first) / payloadUnit
	hi := min(lo+m.cluster()/payloadUnit, m.sums.Total()) - 1
	if lo > hi { // the payloads end before
		return 0
	}
	a, _ := m.sums.Find(lo)
	b, _ := m.sums.Find(hi)
	return uint16(b - a + 1)
}

// payloads fills the streams, one behind the other, each from a sector on.
type payloads struct {
	s    *codec.Streams
	sums *codec.Sums
}

// Fill implements [codec.Filler].
func (f *payloads) Fill(ctx context.Context, p []byte, rel int64) error {
	k, start := f.sums.Find(rel / payloadUnit)
	i := f.s.Coded.Select(k)
	for in := rel - start*payloadUnit; len(p) > 0; k, in = k+1, 0 {
		if !f.s.Coded.Has(i) {
			i = f.s.Coded.Select(k)
		}
		q := p[:min(int64(len(p)), f.sums.Units(k)*payloadUnit-in)]
		have := min(int64(len(q)), max(f.s.Len(k)-in, 0))
		if have > 0 {
			if err := f.s.Read(ctx, q[:have], k, i, in); err != nil {
				return err
			}
		}
		clear(q[have:])
		p, i = p[len(q):], i+1
	}
	return nil
}

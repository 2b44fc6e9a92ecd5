package vmdk

import (
	"context"
	"encoding/binary"
	"sort"
	"sync"

	"imagefs/codec"
)

// The record of a grain: see the package's description.
const (
	recordSectors = 129
	recordLen     = recordSectors * sector
	half          = 32768              // guest bytes in a stored block
	halfA         = recordHead + 2 + 5 // where the first half begins
	middle        = halfA + half       // the head of the second block
	halfB         = middle + 5         // where the second half begins
	checksum      = halfB + half       // where the adler32 stands
	recordEnd     = checksum + 4       // then zeros
	dataLen       = recordEnd - recordHead

	groupTail = (1 + tableSectors) * sector // marker and table behind a group

	streamFirst = 128 // sector of the first record

	// Guest bytes of so many neighbouring grains are read at once.
	maxRun = 16
)

const (
	zlibHead   = "\x78\x01"
	blockHead  = "\x00\x00\x80\xff\x7f"
	lastHead   = "\x01\x00\x80\xff\x7f"
	recordText = zlibHead + blockHead
)

// Layout lays d out as streamOptimized with stored grains.
func (v format) Layout(ctx context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	p, err := newPlan(ctx, d)
	if err != nil {
		return nil, err
	}
	s := newStream(p, d)
	return s.file(v.Name(), f, s)
}

func newStream(p *plan, d codec.Disk) *stream {
	s := &stream{plan: p, guest: codec.Guest{Disk: d}}
	s.bufs.New = func() any { return new([grainLen]byte) }
	return s
}

// groupStarts are the places of the groups of a streamOptimized file.
type groupStarts interface {
	codec.Filler // of all groups
	// start is the sector, counted from the first record, where the j-th
	// group begins of those that hold grains; their number gives the end.
	start(j int64) int64
}

// file lays out a streamOptimized image with such groups.
func (p *plan) file(name string, f codec.Facts, s groupStarts) (*codec.File, error) {
	body := s.start(p.groups.Count())
	if err := tooLarge(streamFirst + body); err != nil {
		return nil, err
	}
	h := p.header()
	h.version, h.flags = 3, flagNewlines|flagCompressed|flagMarkers
	h.algorithm = algorithmDeflate
	h.gdOffset, h.overHead = atFooter, streamFirst
	text, err := newDescriptor(name, "streamOptimized", p.sectors, f)
	if err != nil {
		return nil, err
	}

	file := new(codec.File)
	file.Literal(h.marshal())
	file.Literal(text)
	file.ZeroTo(streamFirst * sector)
	file.Append(body*sector, s)
	file.Literal(markerSector(marker{uint64(p.dir), 0, markerDirectory}))
	h.gdOffset = uint64(file.Size() / sector)
	file.Append(4*p.groups.Blocks(), &codec.Entries{Size: 4, Put: func(b []byte, g int64) {
		e := uint32(0)
		if p.groups.Has(g) {
			j := p.groups.Rank(g)
			e = uint32(streamFirst + s.start(j+1) - tableSectors)
		}
		le.PutUint32(b, e)
	}})
	file.ZeroTo((int64(h.gdOffset) + p.dir) * sector)
	file.Literal(markerSector(marker{1, 0, markerFooter}))
	file.Literal(h.marshal())
	file.Literal(make([]byte, sector)) // end of stream: data to a reader, no hole
	return file, nil
}

func markerSector(m marker) []byte {
	b := make([]byte, sector)
	m.put(b)
	return b
}

// stream fills the groups: the records of each, and its table.
type stream struct {
	*plan
	guest codec.Guest
	bufs  sync.Pool // *[grainLen]byte
}

func (s *stream) start(j int64) int64 {
	i := s.grains.Blocks()
	if g := s.groups.Select(j); g >= 0 {
		i = g * tableGrains
	}
	return recordSectors*s.grains.Rank(i) + groupTail/sector*j
}

// Fill implements [codec.Filler].
func (s *stream) Fill(ctx context.Context, p []byte, rel int64) error {
	at := rel / sector
	// The last group that begins at or before at.
	j := int64(sort.Search(int(s.groups.Count()), func(j int) bool { return s.start(int64(j)) > at })) - 1
	for ; len(p) > 0; j++ {
		from, end := s.start(j)*sector, s.start(j+1)*sector
		table := end - groupTail
		if rel < table {
			q := p[:min(int64(len(p)), table-rel)]
			g := s.groups.Select(j)
			if err := s.records(ctx, q, rel-from, s.grains.Rank(g*tableGrains)); err != nil {
				return err
			}
			p, rel = p[len(q):], rel+int64(len(q))
		}
		if len(p) > 0 {
			q := p[:min(int64(len(p)), end-rel)]
			s.table(q, rel-table, j)
			p, rel = p[len(q):], rel+int64(len(q))
		}
	}
	return nil
}

// records fills p with the bytes at rel of the records from number k on, all
// of one group.
func (s *stream) records(ctx context.Context, p []byte, rel, k int64) error {
	k, rel = k+rel/recordLen, rel%recordLen
	for len(p) > 0 {
		i := s.grains.Select(k)
		n := 0
		if rel == 0 {
			for n < maxRun && (n+1)*recordLen <= len(p) && s.grains.Has(i+int64(n)) {
				n++
			}
		}
		if n > 0 {
			q := p[:n*recordLen]
			if err := s.whole(ctx, q, i, n); err != nil {
				return err
			}
			p, k = p[len(q):], k+int64(n)
			continue
		}
		q := p[:min(int64(len(p)), recordLen-rel)]
		if err := s.part(ctx, q, rel, i); err != nil {
			return err
		}
		p, k, rel = p[len(q):], k+1, 0
	}
	return nil
}

// whole fills p with the records of n neighbouring grains from i on. Their
// bytes are read at once into the end of p: a record is longer than a grain by
// a sector, so that the bytes of those that follow lie behind each record
// while it is put together.
func (s *stream) whole(ctx context.Context, p []byte, i int64, n int) error {
	data := p[n*sector:]
	if err := s.guest.Fill(ctx, data, i*grainLen); err != nil {
		return err
	}
	for ; n > 0; n-- {
		grain := data[:grainLen]
		sum := codec.Adler32(grain)
		copy(p[halfA:], grain[:half])
		copy(p[halfB:], grain[half:])
		putHead(p, i)
		copy(p[middle:], lastHead)
		binary.BigEndian.PutUint32(p[checksum:], sum)
		clear(p[recordEnd:recordLen])
		p, data, i = p[recordLen:], data[grainLen:], i+1
	}
	return nil
}

func putHead(p []byte, i int64) {
	le.PutUint64(p, uint64(i*grainSectors))
	le.PutUint32(p[8:], dataLen)
	copy(p[recordHead:], recordText)
}

// part fills p with the bytes at rel of the record of grain i.
func (s *stream) part(ctx context.Context, p []byte, rel, i int64) error {
	w := window{p, int(rel)}
	clear(w.of(recordEnd, recordLen))
	if w.has(0, halfA) {
		var b [halfA]byte
		putHead(b[:], i)
		w.put(0, b[:])
	}
	w.putString(middle, lastHead)
	if !w.has(checksum, recordEnd) {
		for _, at := range [2]int{halfA, halfB} {
			if err := s.direct(ctx, &w, at, i); err != nil {
				return err
			}
		}
		return nil
	}
	buf := s.bufs.Get().(*[grainLen]byte)
	defer s.bufs.Put(buf)
	if err := s.guest.Fill(ctx, buf[:], i*grainLen); err != nil {
		return err
	}
	w.put(halfA, buf[:half])
	w.put(halfB, buf[half:])
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], codec.Adler32(buf[:]))
	w.put(checksum, sum[:])
	return nil
}

// direct reads what w wants of the half of grain i that stands at at.
func (s *stream) direct(ctx context.Context, w *window, at int, i int64) error {
	q := w.of(at, at+half)
	if len(q) == 0 {
		return nil
	}
	in := max(w.rel-at, 0)
	if at == halfB {
		in += half
	}
	return s.guest.Fill(ctx, q, i*grainLen+int64(in))
}

// window is the part of a record that is wanted, from byte rel on.
type window struct {
	p   []byte
	rel int
}

// of is where the bytes [lo, hi) of the record go, as far as they are wanted.
func (w *window) of(lo, hi int) []byte {
	lo, hi = max(lo-w.rel, 0), min(hi-w.rel, len(w.p))
	if lo >= hi {
		return nil
	}
	return w.p[lo:hi]
}

func (w *window) has(lo, hi int) bool { return len(w.of(lo, hi)) > 0 }

// put puts b, which stands at byte at of the record.
func (w *window) put(at int, b []byte) {
	if q := w.of(at, at+len(b)); len(q) > 0 {
		copy(q, b[max(w.rel-at, 0):])
	}
}

func (w *window) putString(at int, s string) {
	if q := w.of(at, at+len(s)); len(q) > 0 {
		copy(q, s[max(w.rel-at, 0):])
	}
}

// table fills p with the bytes at rel of the marker and the table behind the
// j-th group that holds grains.
func (s *stream) table(p []byte, rel, j int64) {
	var m [sector]byte
	marker{tableSectors, 0, markerTable}.put(m[:])
	if rel < sector {
		n := copy(p, m[rel:])
		p, rel = p[n:], rel+int64(n)
	}
	if len(p) == 0 {
		return
	}
	rel -= sector
	i := s.groups.Select(j)*tableGrains + rel/4
	e := streamFirst + recordSectors*s.grains.Rank(i) + groupTail/sector*j
	for in := int(rel % 4); len(p) > 0; i, in = i+1, 0 {
		if !s.grains.Has(i) {
			p = putPart(p, 0, in)
			continue
		}
		p = putPart(p, uint32(e), in)
		e += recordSectors
	}
}

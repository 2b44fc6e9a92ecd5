package vmdk

import (
	"context"
	"encoding/binary"
	"sort"

	"imagefs/codec"
)

// Deflate lays out streamOptimized images of streams that the disk is stored as.
var Deflate codec.View = deflate{}

var (
	_ codec.Reframing = deflate{}
	_ groupStarts     = (*handedOn)(nil)
)

type deflate struct{}

func (deflate) Name() string { return "deflate.vmdk" }

// Takes implements [codec.Reframing].
func (deflate) Takes(encoding string, block int64) error {
	switch {
	case encoding != codec.Deflate:
		return codec.NotPossiblef("not stored as zlib-compressed qcow2 or VMDK")
	case block%1024 == 0 && block != grainLen:
		return codec.NotPossiblef("stored in clusters of %d KiB, VMDK grains are %d KiB", block/1024, grainLen/1024)
	case block != grainLen:
		return codec.NotPossiblef("stored in clusters of %d bytes, VMDK grains are %d KiB", block, grainLen/1024)
	}
	return nil
}

// Layout lays d out with its streams as grains: see the package's description.
// No byte of the guest or of a stream is read.
func (v deflate) Layout(ctx context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	sd, ok := d.(codec.Streamer)
	if !ok {
		return nil, v.Takes("", 0)
	}
	streams, err := sd.Streams(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.Takes(streams.Encoding, streams.Block()); err != nil {
		return nil, err
	}
	// The disk's own map may call more data than its blocks hold.
	p, err := newPlan(ctx, streams.Mapped(d))
	if err != nil {
		return nil, err
	}
	s := newHandedOn(p, d, streams)
	return p.file(v.Name(), f, s)
}

const (
	streamHead = recordHead + len(handedHead) // before a stream
	streamTail = 4                            // its adler32
	handedHead = "\x78\x9c"                   // of a zlib stream, for any window
)

// handedOn fills the groups of records, of which some have streams that are
// handed on and others a stored grain.
type handedOn struct {
	*stream // of the stored ones
	streams *codec.Streams
	sums    *codec.Sums
	starts  []int64 // of each group that holds grains, and the end: see start
}

func newHandedOn(p *plan, d codec.Disk, streams *codec.Streams) *handedOn {
	s := &handedOn{stream: newStream(p, d), streams: streams}
	s.sums = streams.Sums(int64(streamHead)+streamTail, 9)
	n := p.groups.Count()
	s.starts = make([]int64, n+1)
	for j := range n {
		s.starts[j] = s.sectorOf(p.groups.Select(j)*tableGrains) + groupTail/sector*j
	}
	s.starts[n] = s.sectorOf(p.grains.Blocks()) + groupTail/sector*n
	return s
}

// sectorOf is how many sectors the records of the grains below i have.
func (s *handedOn) sectorOf(i int64) int64 {
	return s.sums.Start(s.streams.Coded.Rank(i)) + recordSectors*s.streams.Plain.Rank(i)
}

func (s *handedOn) start(j int64) int64 { return s.starts[j] }

// recordAt is a record on the way through a file.
type recordAt struct {
	i, k    int64 // grain; its number among those with a stream
	coded   bool
	sectors int64
}

// at is the record of grain i, with number k of the streams if it has one.
func (s *handedOn) at(i, k int64) recordAt {
	if s.streams.Coded.Has(i) {
		return recordAt{i, k, true, s.sums.Units(k)}
	}
	return recordAt{i, k, false, recordSectors}
}

// next is the record behind r in its group, which has one.
func (s *handedOn) next(r recordAt) recordAt {
	k := r.k
	if r.coded {
		k++
	}
	for i := r.i + 1; ; i++ {
		if s.grains.Has(i) {
			return s.at(i, k)
		}
	}
}

// first is the first record of the j-th group.
func (s *handedOn) first(j int64) recordAt {
	i := s.grains.Select(s.grains.Rank(s.groups.Select(j) * tableGrains))
	return s.at(i, s.streams.Coded.Rank(i))
}

// Fill implements [codec.Filler].
func (s *handedOn) Fill(ctx context.Context, p []byte, rel int64) error {
	at := rel / sector
	j := int64(sort.Search(len(s.starts), func(j int) bool { return s.starts[j] > at })) - 1
	for ; len(p) > 0; j++ {
		from, end := s.starts[j]*sector, s.starts[j+1]*sector
		table := end - groupTail
		if rel < table {
			q := p[:min(int64(len(p)), table-rel)]
			if err := s.records(ctx, q, rel-from, j); err != nil {
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

// records fills p with the bytes at rel of the records of the j-th group.
func (s *handedOn) records(ctx context.Context, p []byte, rel, j int64) error {
	r := s.first(j)
	for rel >= r.sectors*sector {
		rel -= r.sectors * sector
		r = s.next(r)
	}
	for {
		q := p[:min(int64(len(p)), r.sectors*sector-rel)]
		var err error
		switch {
		case r.coded:
			err = s.handed(ctx, q, rel, r)
		case len(q) == recordLen:
			err = s.whole(ctx, q, r.i, 1)
		default:
			err = s.part(ctx, q, rel, r.i)
		}
		if err != nil {
			return err
		}
		if p, rel = p[len(q):], 0; len(p) == 0 {
			return nil
		}
		r = s.next(r)
	}
}

// handed fills p with the bytes at rel of a record with a stream.
func (s *handedOn) handed(ctx context.Context, p []byte, rel int64, r recordAt) error {
	w := window{p, int(rel)}
	n := int(s.streams.Len(r.k))
	end := streamHead + n
	var b [streamHead]byte
	le.PutUint64(b[:], uint64(r.i*grainSectors))
	le.PutUint32(b[8:], uint32(n+zlibAround))
	copy(b[recordHead:], handedHead)
	w.put(0, b[:])
	if q := w.of(streamHead, end); len(q) > 0 {
		if err := s.streams.Read(ctx, q, r.k, r.i, max(rel-int64(streamHead), 0)); err != nil {
			return err
		}
	}
	var sum [streamTail]byte
	binary.BigEndian.PutUint32(sum[:], s.streams.Adler(r.k))
	w.put(end, sum[:])
	clear(w.of(end+streamTail, int(r.sectors)*sector))
	return nil
}

// table fills p with the bytes at rel of the marker and the table behind the
// j-th group that holds grains.
func (s *handedOn) table(p []byte, rel, j int64) {
	var b [groupTail]byte
	marker{tableSectors, 0, markerTable}.put(b[:])
	first := s.groups.Select(j) * tableGrains
	e, k := streamFirst+s.starts[j], s.streams.Coded.Rank(first)
	for i := range int64(tableGrains) {
		if !s.grains.Has(first + i) {
			continue
		}
		le.PutUint32(b[sector+4*i:], uint32(e))
		r := s.at(first+i, k)
		if e += r.sectors; r.coded {
			k++
		}
	}
	copy(p, b[rel:])
}

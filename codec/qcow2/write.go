package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"

	"imagefs/codec"
)

// CompressBehind bounds, in bytes, how far [Compress] falls back behind the
// end of its furthest write, the first cluster aside: what lies further back is
// final.
const CompressBehind = 16 << 20

// maxBehind leaves the cluster that payloads fill early enough: the pieces of a
// batch are not written in order.
const maxBehind = CompressBehind - 2*batchLen

// places gives out the bytes of a file behind its first cluster. Payloads lie
// back to back in clusters of their own, while plain clusters go by. All
// follows from the lengths, in guest order.
type places struct {
	next int64 // the first cluster that is not used, its offset
	pack int64 // where the next payload goes if its cluster has room for it
}

func newPlaces() places { return places{layCluster, layCluster} }

// place places a guest cluster stored as n says, see [storedPlain]. gap is how
// many bytes stay unused behind the payload before.
func (p *places) place(n uint16) (off, gap int64) {
	room := codec.Up(p.pack, layCluster) - p.pack
	if n == storedPlain {
		if p.next-p.pack > maxBehind {
			p.pack, gap = p.pack+room, room
		}
		return p.take(), gap
	}
	if int64(n) > room {
		if c := p.take(); c != p.pack+room { // else it reaches over
			p.pack, gap = c, room
		}
	}
	off = p.pack
	p.pack += int64(n)
	return off, gap
}

// take gives out a whole cluster.
func (p *places) take() (off int64) {
	off = p.next
	p.next += layCluster
	return off
}

// writer writes an image of compressed clusters. What is where is kept as the
// length of each stored cluster only, from which the places follow again when
// the tables are written.
type writer struct {
	w      io.WriterAt
	size   int64 // of the disk, bytes
	at     places
	groups []*group            // that hold a stored cluster, in order
	counts []*[layPerRC]uint16 // refcounts of the file's clusters, in blocks
}

// group is what an L2 table maps.
type group struct {
	index int64
	lens  [layPerL2]uint16 // see [storedPlain]
}

func newWriter(w io.WriterAt, size int64) *writer {
	return &writer{w: w, size: size, at: newPlaces()}
}

// add writes a batch behind those before it.
func (im *writer) add(b *batch) error {
	payloads, plains := span{buf: b.out}, span{buf: b.in}
	var from int64 // in b.out
	for i, n := range b.lens {
		if n == notStored {
			continue
		}
		was := im.at.pack
		off, gap := im.put(b.first+int64(i), n)
		if err := im.zero(was, gap); err != nil {
			return err
		}
		var err error
		if n == storedPlain {
			err = plains.extend(im, int64(i)*layCluster, layCluster, off)
		} else {
			err = payloads.extend(im, from, int64(n), off)
			from += int64(n)
		}
		if err != nil {
			return err
		}
	}
	if err := payloads.flush(im); err != nil {
		return err
	}
	return plains.flush(im)
}

// put places guest cluster c, the highest so far, and notes it for the tables.
func (im *writer) put(c int64, n uint16) (off, gap int64) {
	if k := len(im.groups); k == 0 || im.groups[k-1].index != c/layPerL2 {
		im.groups = append(im.groups, &group{index: c / layPerL2})
	}
	im.groups[len(im.groups)-1].lens[c%layPerL2] = n
	off, gap = im.at.place(n)
	if n == storedPlain {
		im.count(off, layCluster)
	} else {
		im.count(off, int64(n))
	}
	return off, gap
}

// count counts one reference to each cluster that [off, off+n) touches. A
// payload's reference reaches to the end of its last sector, which lies in the
// same cluster as its last byte. A payload has 9 bytes at least: no count of
// 16 bits overflows.
func (im *writer) count(off, n int64) {
	for c := off / layCluster; c <= (off+n-1)/layCluster; c++ {
		for int64(len(im.counts)) <= c/layPerRC {
			im.counts = append(im.counts, new([layPerRC]uint16))
		}
		im.counts[c/layPerRC][c%layPerRC]++
	}
}

// span is bytes that are neighbours in a buffer and in the file, to be written
// in one call.
type span struct {
	buf      []byte
	from, to int64 // in buf
	off      int64 // in the file
}

// extend adds n bytes at from in the buffer that belong at off in the file; it
// writes what it held if they do not continue it.
func (s *span) extend(im *writer, from, n, off int64) error {
	if s.to == from && s.off+s.to-s.from == off {
		s.to += n
		return nil
	}
	err := s.flush(im)
	s.from, s.to, s.off = from, from+n, off
	return err
}

func (s *span) flush(im *writer) error {
	if s.from == s.to {
		return nil
	}
	err := im.write(s.buf[s.from:s.to], s.off)
	s.from = s.to
	return err
}

func (im *writer) write(p []byte, off int64) error {
	if n, err := im.w.WriteAt(p, off); n < len(p) || err != nil {
		if err == nil {
			err = io.ErrShortWrite
		}
		return fmt.Errorf("write %d bytes of qcow2 at %#x: %w", len(p), off, err)
	}
	return nil
}

// zero fills n bytes, less than a cluster.
func (im *writer) zero(off, n int64) error {
	if n == 0 {
		return nil
	}
	return im.write(make([]byte, n), off)
}

// finish writes the tables behind the data, the map last, so that who opens the
// file finds it in one piece at its end; then the first cluster.
func (im *writer) finish() (size int64, err error) {
	if err := im.zero(im.at.pack, codec.Up(im.at.pack, layCluster)-im.at.pack); err != nil {
		return 0, err
	}
	n := im.at.next/layCluster - 1
	p := makePlan(im.size, n, int64(len(im.groups)))
	if err := p.tooManyCounts(); err != nil {
		return 0, err
	}
	p.data = 1
	p.rcb = p.data + n
	p.rt = p.rcb + p.rcbLen
	p.l1 = p.rt + p.rtLen
	p.l2 = p.l1 + p.l1Len
	im.count(0, layCluster)
	im.count(p.rcb*layCluster, (p.total-p.rcb)*layCluster)

	buf := make([]byte, layCluster)
	for _, table := range []struct {
		at, n int64
		fill  func(b []byte, i int64)
	}{
		{p.rcb, p.rcbLen, im.fillCounts},
		{p.rt, p.rtLen, func(b []byte, i int64) { fillRefTable(b, i, &p) }},
		{p.l1, p.l1Len, im.l1Filler(&p)},
		{p.l2, p.l2Len, im.l2Filler()},
		{0, 1, func(b []byte, _ int64) { copy(b, p.compressedHeader(codec.Up(im.size, 512))) }},
	} {
		for i := range table.n {
			clear(buf)
			table.fill(buf, i)
			if err := im.write(buf, (table.at+i)*layCluster); err != nil {
				return 0, err
			}
		}
	}
	return p.total * layCluster, nil
}

// fillCounts fills refcount block i.
func (im *writer) fillCounts(b []byte, i int64) {
	for k, n := range im.counts[i] {
		binary.BigEndian.PutUint16(b[2*k:], n)
	}
}

// fillRefTable fills cluster i of the refcount table.
func fillRefTable(b []byte, i int64, p *plan) {
	for k := range min(p.rcbLen-i*layPerL2, layPerL2) {
		binary.BigEndian.PutUint64(b[8*k:], uint64(p.rcb+i*layPerL2+k)*layCluster)
	}
}

// l1Filler returns what fills the clusters of the L1 table one after another.
func (im *writer) l1Filler(p *plan) func(b []byte, i int64) {
	k := 0
	return func(b []byte, i int64) {
		for ; k < len(im.groups) && im.groups[k].index < (i+1)*layPerL2; k++ {
			at := uint64(p.l2+int64(k)) * layCluster
			binary.BigEndian.PutUint64(b[8*(im.groups[k].index-i*layPerL2):], at|entryCopied)
		}
	}
}

// l2Filler returns what fills the L2 tables one after another: it places
// every cluster again.
func (im *writer) l2Filler() func(b []byte, i int64) {
	at := newPlaces()
	return func(b []byte, i int64) {
		for k, n := range im.groups[i].lens {
			if n == notStored {
				continue
			}
			off, _ := at.place(n)
			e := uint64(off) | entryCopied
			if n != storedPlain {
				e = compressedEntry(layBits, off, int64(n))
			}
			binary.BigEndian.PutUint64(b[8*k:], e)
		}
	}
}

// compressedEntry is the L2 entry of a payload of n bytes at off, in clusters of
// 1<<bits bytes.
func compressedEntry(bits uint, off, n int64) uint64 {
	more := (off+n-1)>>9 - off>>9
	return entryCompressed | uint64(more)<<(62-(bits-8)) | uint64(off)
}

// compressedHeader is the header of an image of zstd clusters.
func (p *plan) compressedHeader(size int64) []byte {
	b := append(p.header(size), make([]byte, headerMax-headerV3)...)
	binary.BigEndian.PutUint64(b[72:], incCompression)
	binary.BigEndian.PutUint32(b[100:], headerMax)
	b[104] = 1
	return b
}

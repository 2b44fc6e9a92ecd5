package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"imagefs/codec"
)

// The parameters of the layout.
const (
	layBits    = 16
	layCluster = 1 << layBits
	layPerL2   = layCluster / 8 // an L2 table maps 512 MiB
	layPerRC   = layCluster / 2 // 16-bit counts of a refcount block

	// layMax is the largest disk, 2 PiB: its L1 table reaches QEMU's limit.
	layMax = maxL1Bytes / 8 * layPerL2 * layCluster
	// layMaxRT is QEMU's limit of a refcount table, bytes.
	layMaxRT = 8 << 20
)

// plan is where things are in a laid out file, all in clusters.
type plan struct {
	bits        uint  // log2 of the bytes in a cluster
	rt, rtLen   int64 // refcount table
	rcb, rcbLen int64 // refcount blocks
	l1, l1Len   int64
	l2, l2Len   int64
	data, total int64
}

// makePlan places the parts of a file with n data clusters and l2Len L2 tables,
// for a disk of size bytes.
func makePlan(size, n, l2Len int64) plan { return planFor(layBits, size, n, l2Len) }

// planFor is makePlan for clusters of 1<<bits bytes.
func planFor(bits uint, size, n, l2Len int64) plan {
	p := plan{bits: bits, rt: 1, rtLen: 1, rcbLen: 1, l2Len: l2Len}
	p.l1Len = codec.Ceil(8*p.l1Entries(size), p.cluster())
	// Counts count the clusters that hold them: more clusters need more
	// counts, until nothing changes, after two or three rounds.
	for {
		p.rcb = p.rt + p.rtLen
		p.l1 = p.rcb + p.rcbLen
		p.l2 = p.l1 + p.l1Len
		p.data = p.l2 + p.l2Len
		p.total = p.data + n
		rcbLen := codec.Ceil(p.total, p.cluster()/2)
		rtLen := codec.Ceil(8*rcbLen, p.cluster())
		if rcbLen == p.rcbLen && rtLen == p.rtLen {
			return p
		}
		p.rcbLen, p.rtLen = rcbLen, rtLen
	}
}

func (p *plan) cluster() int64 { return 1 << p.bits }

// perL2 is how many clusters an L2 table maps.
func (p *plan) perL2() int64 { return p.cluster() / 8 }

// l1Entries is the length of the L1 table of a disk of size bytes.
func (p *plan) l1Entries(size int64) int64 {
	return max(1, codec.Ceil(size, p.perL2()*p.cluster()))
}

// tooManyCounts says that the refcount table is larger than QEMU reads.
func (p *plan) tooManyCounts() error {
	if p.rtLen*p.cluster() <= layMaxRT {
		return nil
	}
	return fmt.Errorf("%w: %d clusters need a refcount table larger than the %d bytes of qcow2", codec.ErrTooLarge, p.total, layMaxRT)
}

// Layout lays d out in clusters of 64 KiB: see the package's doc. It depends
// on nothing but the disk.
func (format) Layout(ctx context.Context, d codec.Disk, _ codec.Facts) (*codec.File, error) {
	size := d.Size()
	if size > layMax {
		return nil, tooLarge(size)
	}
	m, err := codec.NewMap(ctx, d, layCluster)
	if err != nil {
		return nil, err
	}
	groups, err := codec.NewMap(ctx, codec.Mapped(d, m), layPerL2*layCluster)
	if err != nil {
		return nil, err
	}
	p := makePlan(size, m.Count(), groups.Count())
	if err := p.tooManyCounts(); err != nil {
		return nil, err
	}

	f := new(codec.File)
	f.Literal(p.header(codec.Up(size, 512)))
	f.ZeroTo(p.rt * layCluster)
	p.tables(f, groups, func(int64) uint16 { return 1 }, func(c int64) uint64 {
		if !m.Has(c) {
			return 0
		}
		return uint64(p.data+m.Rank(c))*layCluster | entryCopied
	})
	packed := &codec.Packed{Disk: d, Map: m}
	f.Append(packed.Len(), packed)
	return f, nil
}

// tables adds refcount table and blocks, L1 and L2 tables. groups are the L2
// tables that there are, count the refcount of a cluster of the file, and entry
// the L2 entry of one of the guest.
func (p *plan) tables(f *codec.File, groups *codec.Map, count func(c int64) uint16, entry func(c int64) uint64) {
	table := func(clusters int64, put func(i int64) uint64) {
		f.Append(clusters*p.cluster(), &codec.Entries{Size: 8, Put: func(b []byte, i int64) {
			binary.BigEndian.PutUint64(b, put(i))
		}})
	}
	table(p.rtLen, func(i int64) uint64 {
		if i >= p.rcbLen {
			return 0
		}
		return uint64(p.rcb+i) << p.bits
	})
	f.Append(p.rcbLen*p.cluster(), &codec.Entries{Size: 2, Put: func(b []byte, i int64) {
		var n uint16
		if i < p.total {
			n = count(i)
		}
		binary.BigEndian.PutUint16(b, n)
	}})
	table(p.l1Len, func(i int64) uint64 {
		if !groups.Has(i) {
			return 0
		}
		return uint64(p.l2+groups.Rank(i))<<p.bits | entryCopied
	})
	per := p.perL2()
	table(p.l2Len, func(i int64) uint64 { return entry(groups.Select(i/per)*per + i%per) })
}

func tooLarge(size int64) error {
	return fmt.Errorf("%w: qcow2 holds at most %d bytes in clusters of 64 KiB, the disk has %d", codec.ErrTooLarge, int64(layMax), size)
}

// header makes a version 3 header without features; the zeros behind it end
// its extensions.
func (p *plan) header(size int64) []byte {
	b := make([]byte, headerV3)
	copy(b, magic)
	put32 := func(off int, v int64) { binary.BigEndian.PutUint32(b[off:], uint32(v)) }
	put64 := func(off int, v int64) { binary.BigEndian.PutUint64(b[off:], uint64(v)) }
	put32(4, 3)
	put32(20, int64(p.bits))
	put64(24, size)
	put32(36, p.l1Entries(size))
	put64(40, p.l1<<p.bits)
	put64(48, p.rt<<p.bits)
	put32(56, p.rtLen)
	put32(96, 4) // 1<<4 bits to a count
	put32(100, headerV3)
	return b
}

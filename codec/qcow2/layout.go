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
	rt, rtLen   int64 // refcount table
	rcb, rcbLen int64 // refcount blocks
	l1, l1Len   int64
	l2, l2Len   int64
	data, total int64
}

// makePlan places the parts of a file with n data clusters and l2Len L2 tables,
// for a disk of size bytes.
func makePlan(size, n, l2Len int64) plan {
	p := plan{rt: 1, rtLen: 1, rcbLen: 1, l2Len: l2Len}
	p.l1Len = codec.Ceil(8*max(1, codec.Ceil(size, layPerL2*layCluster)), layCluster)
	// Counts count the clusters that hold them: more clusters need more
	// counts, until nothing changes, after two or three rounds.
	for {
		p.rcb = p.rt + p.rtLen
		p.l1 = p.rcb + p.rcbLen
		p.l2 = p.l1 + p.l1Len
		p.data = p.l2 + p.l2Len
		p.total = p.data + n
		rcbLen := codec.Ceil(p.total, layPerRC)
		rtLen := codec.Ceil(8*rcbLen, layCluster)
		if rcbLen == p.rcbLen && rtLen == p.rtLen {
			return p
		}
		p.rcbLen, p.rtLen = rcbLen, rtLen
	}
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
	if p.rtLen*layCluster > layMaxRT {
		return nil, fmt.Errorf("%w: %d data clusters need a refcount table larger than the %d bytes of qcow2", codec.ErrTooLarge, m.Count(), layMaxRT)
	}

	f := new(codec.File)
	f.Literal(p.header(codec.Up(size, 512)))
	f.ZeroTo(p.rt * layCluster)
	table := func(clusters int64, put func(i int64) uint64) {
		f.Append(clusters*layCluster, &codec.Entries{Size: 8, Put: func(b []byte, i int64) {
			binary.BigEndian.PutUint64(b, put(i))
		}})
	}
	table(p.rtLen, func(i int64) uint64 {
		if i >= p.rcbLen {
			return 0
		}
		return uint64(p.rcb+i) * layCluster
	})
	f.Append(p.rcbLen*layCluster, &codec.Entries{Size: 2, Put: func(b []byte, i int64) {
		var count uint16
		if i < p.total {
			count = 1
		}
		binary.BigEndian.PutUint16(b, count)
	}})
	table(p.l1Len, func(i int64) uint64 {
		if !groups.Has(i) {
			return 0
		}
		return uint64(p.l2+groups.Rank(i))*layCluster | entryCopied
	})
	table(p.l2Len, func(i int64) uint64 {
		c := groups.Select(i/layPerL2)*layPerL2 + i%layPerL2
		if !m.Has(c) {
			return 0
		}
		return uint64(p.data+m.Rank(c))*layCluster | entryCopied
	})
	packed := &codec.Packed{Disk: d, Map: m}
	f.Append(packed.Len(), packed)
	return f, nil
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
	put32(20, layBits)
	put64(24, size)
	put32(36, max(1, codec.Ceil(size, layPerL2*layCluster)))
	put64(40, p.l1*layCluster)
	put64(48, p.rt*layCluster)
	put32(56, p.rtLen)
	put32(96, 4) // 1<<4 bits to a count
	put32(100, headerV3)
	return b
}

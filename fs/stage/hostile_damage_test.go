package stage_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"

	"imagefs/codec"
)

const sector = 512

// places are the sectors of a file by what stands in them, as offsets.
type places struct {
	meta  []int64 // headers, tables, descriptors
	near  []int64 // zeros beside them, where further entries would stand
	data  []int64 // the guest's bytes, maybe encoded
	edges []int64 // where one of these ends and another begins
}

// findMeta compares two images of disks that differ in their data only: a
// sector that is mostly the same in both is not the guest's.
func findMeta(a, b []byte) *places {
	var p places
	var last byte
	kindAt := func(off int) byte {
		x := a[off:min(off+sector, len(a))]
		if codec.Empty(x) {
			return 'z'
		}
		// The zeros of half a sector of data say nothing, and of an entry of a
		// table the half may differ.
		same, used := 0, 0
		for i := range x {
			if x[i] != 0 {
				used++
				if off+i < len(b) && x[i] == b[off+i] {
					same++
				}
			}
		}
		if 6*same >= used {
			return 'm'
		}
		return 'd'
	}
	for off := 0; off < len(a); off += sector {
		kind := kindAt(off)
		if kind != last && off > 0 {
			p.edges = append(p.edges, int64(off))
		}
		last = kind
		switch {
		case kind == 'm':
			p.meta = append(p.meta, int64(off))
		case kind == 'd':
			p.data = append(p.data, int64(off))
		case len(p.meta) > 0 && int64(off)-p.meta[len(p.meta)-1] <= 4*kib:
			p.near = append(p.near, int64(off))
		}
	}
	return &p
}

// cuts are 40 sizes below that of a file: at its start and end, around edges,
// and evenly spread.
func cuts(size int64, p *places) []int64 {
	c := []int64{0, 1, 511, 512, 513, size - 1, size - 511, size - 512, size - 513, size - 64*kib}
	for i := range 5 {
		if k := len(p.edges); k > 0 { // the first and the last, and some between
			at := p.edges[i*(k-1)/4]
			c = append(c, at-1, at, at+1)
		}
	}
	for i := int64(1); len(c) < 40; i++ {
		c = append(c, size*i/16+i%3-1)
	}
	c = slices.DeleteFunc(c, func(n int64) bool { return n < 0 || n >= size })
	slices.Sort(c)
	return slices.Compact(c)
}

// hurt damages an image at random: mostly a bit in a table or header, else a
// word that is another's or an extreme one. Checksums are made to fit every
// other time, or nothing behind them would be reached.
func hurt(r *rand.Rand, format string, b []byte, p *places) (*damaged, string) {
	d := &damaged{base: b, size: int64(len(b))}
	pick := func(at []int64) int64 { return at[r.IntN(len(at))] + r.Int64N(sector) }
	where := p.meta
	switch n := r.IntN(10); {
	case n == 0 && len(p.near) > 0:
		where = p.near
	case n <= 2 && len(p.data) > 0:
		where = p.data
	}
	at := min(pick(where), d.size-1)
	var what string
	switch n := r.IntN(10); {
	case n < 6:
		bit := r.IntN(8)
		d.put(at, []byte{b[at] ^ 1<<bit})
		what = fmt.Sprintf("bit %d of byte %#x flipped", bit, at)
	default:
		width := []int64{2, 4, 8}[r.IntN(3)]
		at = min(at&^(width-1), d.size-width)
		x := make([]byte, 8)
		switch r.IntN(5) {
		case 0:
		case 1:
			binary.LittleEndian.PutUint64(x, ^uint64(0))
		case 2:
			binary.BigEndian.PutUint64(x, 1<<63)
		case 3:
			binary.LittleEndian.PutUint64(x, r.Uint64()>>r.IntN(64))
		case 4:
			copy(x, b[min(pick(p.meta)&^(width-1), d.size-width):])
		}
		d.put(at, x[:width])
		what = fmt.Sprintf("% x put at %#x over % x", x[:width], at, b[at:at+width])
	}
	if r.IntN(2) == 0 && reseal(d, format) {
		what += ", checksums fit"
	}
	return d, what
}

// reseal makes the checksums of a VHD or VHDX fit.
func reseal(d *damaged, format string) bool {
	switch format {
	case "vhd":
		for _, at := range []int64{0, d.size - 512} {
			resealVHD(d, at, 512, 64)
		}
		resealVHD(d, 512, 1024, 36) // where qemu-img has the dynamic header
	case "vhdx":
		for _, x := range []struct{ at, n int64 }{{64 * kib, 4 * kib}, {128 * kib, 4 * kib}, {192 * kib, 64 * kib}, {256 * kib, 64 * kib}} {
			b := d.bytes(x.at, x.n)
			clear(b[4:8])
			d.put(x.at+4, binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
		}
	default:
		return false
	}
	return true
}

func resealVHD(d *damaged, at, n, field int64) {
	b := d.bytes(at, n)
	if string(b[:8]) != "conectix" && string(b[:8]) != "cxsparse" {
		return
	}
	var sum uint32
	clear(b[field : field+4])
	for _, c := range b {
		sum += uint32(c)
	}
	d.put(at+field, binary.BigEndian.AppendUint32(nil, ^sum))
}

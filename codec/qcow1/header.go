package qcow1

import (
	"encoding/binary"

	"imagefs/codec"
)

const (
	magic   = "QFI\xfb"
	headLen = 48
	sector  = 512

	// Limits of QEMU.
	minClusterBits, maxClusterBits = 9, 16
	minL2Bits, maxL2Bits           = 6, 13

	compressed = 1 << 63 // in an L2 entry
)

var be = binary.BigEndian

// header is the whole header but the backing file's time.
type header struct {
	version             uint32
	backingOff          uint64
	backingLen          uint32
	size                uint64 // bytes
	clusterBits, l2Bits byte
	crypt               uint32
	l1Off               uint64
}

// parse reads the fields of b, headLen bytes, and checks nothing.
func parse(b []byte) header {
	return header{
		version:     be.Uint32(b[4:]),
		backingOff:  be.Uint64(b[8:]),
		backingLen:  be.Uint32(b[16:]),
		size:        be.Uint64(b[24:]),
		clusterBits: b[32],
		l2Bits:      b[33],
		crypt:       be.Uint32(b[36:]),
		l1Off:       be.Uint64(b[40:]),
	}
}

// check tells whether an image with this header is read here. The place of the
// L1 table is checked where it is read.
func (h *header) check() error {
	const flatten = "; flatten it with qemu-img convert where it is trusted"
	switch {
	case h.backingOff != 0 || h.backingLen != 0:
		return codec.Unsupportedf("qcow1 with a backing file, its name at %#x, %d bytes%s", h.backingOff, h.backingLen, flatten)
	case h.crypt != 0:
		return codec.Unsupportedf("qcow1 encrypted by method %d", h.crypt)
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits:
		return codec.Corruptf("qcow1 cluster_bits at 32 is %d: not from %d to %d", h.clusterBits, minClusterBits, maxClusterBits)
	case h.l2Bits < minL2Bits || h.l2Bits > maxL2Bits:
		return codec.Corruptf("qcow1 l2_bits at 33 is %d: not from %d to %d", h.l2Bits, minL2Bits, maxL2Bits)
	case h.size%sector != 0 || h.size > codec.MaxSize: // of another size QEMU leaves out the end
		return codec.Corruptf("qcow1 disk size at 24 is %d: not a multiple of %d that a disk has", h.size, sector)
	case h.l1Off > codec.MaxSize:
		return codec.Corruptf("qcow1 L1 table at %#x: past the end of any file", h.l1Off)
	}
	return nil
}

// cluster is the size of a cluster in bytes.
func (h *header) cluster() int64 { return 1 << h.clusterBits }

// perL2 is the number of entries of an L2 table.
func (h *header) perL2() int64 { return 1 << h.l2Bits }

// clusters is the number of clusters of the disk, the last one maybe partial.
func (h *header) clusters() int64 { return codec.Ceil(int64(h.size), h.cluster()) }

// unpack is the place and length of the data of a compressed entry.
func (h *header) unpack(e uint64) (off, n int64) {
	e &^= compressed
	bits := 63 - uint(h.clusterBits)
	return int64(e & (1<<bits - 1)), int64(e >> bits)
}

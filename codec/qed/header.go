package qed

import (
	"encoding/binary"

	"imagefs/codec"
)

const (
	magic   = "QED\x00"
	headLen = 64
	sector  = 512

	minCluster, maxCluster = 4 << 10, 64 << 20
	maxTable               = 16 // clusters

	featureBacking   = 1 << 0
	featureNeedCheck = 1 << 1
	featureNoProbe   = 1 << 2 // of the backing file's format

	entryZero = 1 // in an L2 table
)

var le = binary.LittleEndian

// header is the header but the features that a reader may ignore.
type header struct {
	cluster                uint32 // bytes
	table, header          uint32 // clusters
	features               uint64
	l1Off                  uint64
	size                   uint64 // bytes
	backingOff, backingLen uint32
}

// parse reads the fields of b, headLen bytes, and checks nothing.
func parse(b []byte) header {
	return header{
		cluster:    le.Uint32(b[4:]),
		table:      le.Uint32(b[8:]),
		header:     le.Uint32(b[12:]),
		features:   le.Uint64(b[16:]),
		l1Off:      le.Uint64(b[40:]),
		size:       le.Uint64(b[48:]),
		backingOff: le.Uint32(b[56:]),
		backingLen: le.Uint32(b[60:]),
	}
}

// check tells whether an image with this header is read here. Places are
// checked against the file where they are claimed.
func (h *header) check() error {
	const flatten = "; flatten it with qemu-img convert where it is trusted"
	power := func(n uint32) bool { return n != 0 && n&(n-1) == 0 }
	switch {
	case h.features&featureBacking != 0 || h.backingOff != 0 || h.backingLen != 0:
		return codec.Unsupportedf("QED with a backing file, its name at %#x, %d bytes%s", h.backingOff, h.backingLen, flatten)
	case h.features&^(featureNeedCheck|featureNoProbe) != 0:
		return codec.Unsupportedf("QED with unknown features %#x", h.features&^(featureNeedCheck|featureNoProbe))
	case !power(h.cluster) || h.cluster < minCluster || h.cluster > maxCluster:
		return codec.Corruptf("QED cluster size at 4 is %d: not a power of two from 4 KiB to 64 MiB", h.cluster)
	case !power(h.table) || h.table > maxTable:
		return codec.Corruptf("QED table size at 8 is %d clusters: not a power of two from 1 to %d", h.table, maxTable)
	case h.header == 0:
		return codec.Corruptf("QED header size at 12 is 0 clusters")
	case h.l1Off%uint64(h.cluster) != 0 || h.l1Off > codec.MaxSize:
		return codec.Corruptf("QED L1 table at %#x: not a multiple of the cluster size %d inside the file", h.l1Off, h.cluster)
	case h.size%sector != 0 || h.size > codec.MaxSize:
		return codec.Corruptf("QED disk size at 48 is %d: not a multiple of %d that a disk has", h.size, sector)
	case codec.Ceil(h.clusters(), h.entries()) > h.entries():
		return codec.Corruptf("QED disk size at 48 is %d: more than two levels of tables of %d entries hold", h.size, h.entries())
	}
	return nil
}

// entries is the number of entries of a table, a power of two.
func (h *header) entries() int64 { return h.tableLen() / 8 }

// tableLen is the length of a table in bytes.
func (h *header) tableLen() int64 { return int64(h.table) * int64(h.cluster) }

// clusters is the number of clusters of the disk, the last one maybe partial.
func (h *header) clusters() int64 { return codec.Ceil(int64(h.size), int64(h.cluster)) }

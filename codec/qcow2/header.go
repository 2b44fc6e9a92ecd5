package qcow2

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"imagefs/codec"
)

const (
	magic = "QFI\xfb"

	headerV2  = 72  // bytes, where a version 2 header ends
	headerV3  = 104 // bytes, the shortest version 3 header
	headerMax = 112 // bytes, what this package knows of a header

	minClusterBits = 9
	maxClusterBits = 21
	minExtL2Bits   = 14 // a subcluster is at least a sector

	maxL1Bytes     = 32 << 20 // as QEMU has it
	maxBackingName = 1023     // bytes, section Header
)

// Bits of incompatible_features.
const (
	incDirty = 1 << iota
	incCorrupt
	incDataFile
	incCompression
	incExtL2

	incRead = incDirty | incCompression | incExtL2
)

// autoRawData is the autoclear bit of an external data file that is raw.
const autoRawData = 1 << 1

// Types of header extensions that matter here.
const (
	extEnd      = 0
	extFeatures = 0x6803f857
	extCrypto   = 0x0537be77
	extDataFile = 0x44415441
)

const flatten = "flatten it with qemu-img convert"

var (
	be32 = binary.BigEndian.Uint32
	be64 = binary.BigEndian.Uint64
)

// header is what reading needs of a header, checked as far as the header alone
// allows.
type header struct {
	version     uint32
	clusterBits uint
	size        int64  // of the disk, bytes
	l1Off       int64  // in the file
	l1Len       int64  // entries
	snapshots   uint32 // how many
	zstd        bool   // compressed clusters are zstd, else deflate
	extL2       bool   // L2 entries are two words
	length      int    // of the header, bytes: extensions follow
}

func (h *header) cluster() int64 { return 1 << h.clusterBits }

// l2Entry is the size of an L2 entry in bytes.
func (h *header) l2Entry() int64 {
	if h.extL2 {
		return 16
	}
	return 8
}

// perL2 is the number of entries of an L2 table, which is one cluster.
func (h *header) perL2() int64 { return h.cluster() / h.l2Entry() }

// l2Tables is the number of L1 entries that the disk needs; more belong to the
// machine state of snapshots.
func (h *header) l2Tables() int64 {
	return codec.Ceil(codec.Ceil(h.size, h.cluster()), h.perL2())
}

// parseHeader reads a header from the first bytes of a file, up to a cluster of
// them. Section Header.
func parseHeader(b []byte) (*header, error) {
	if len(b) < 8 || string(b[:4]) != magic {
		return nil, codec.ErrFormat
	}
	h := &header{version: be32(b[4:]), length: headerV2}
	switch h.version {
	case 2, 3:
	default:
		return nil, codec.Unsupportedf("qcow version %d", h.version)
	}
	if len(b) < headerV2 {
		return nil, codec.Corruptf("header: cut by the end of the file (%d of %d bytes)", len(b), headerV2)
	}
	if bits := be32(b[20:]); bits < minClusterBits || bits > maxClusterBits {
		return nil, codec.Corruptf("cluster_bits at 20: %d, not %d to %d", bits, minClusterBits, maxClusterBits)
	} else {
		h.clusterBits = uint(bits)
	}
	if h.version >= 3 {
		if err := h.parseV3(b); err != nil {
			return nil, err
		}
	}
	if err := refuseOutside(b); err != nil {
		return nil, err
	}

	size, l1Off := be64(b[24:]), be64(b[40:])
	if size > codec.MaxSize {
		return nil, codec.Corruptf("size at 24: %d bytes", size)
	}
	if l1Off > math.MaxInt64 || l1Off&uint64(h.cluster()-1) != 0 {
		return nil, codec.Corruptf("l1_table_offset at 40: %#x, not on a cluster of %d bytes", l1Off, h.cluster())
	}
	h.size, h.l1Off, h.l1Len = int64(size), int64(l1Off), int64(be32(b[36:]))
	h.snapshots = be32(b[60:])
	switch need := h.l2Tables(); {
	case need*8 > maxL1Bytes:
		return nil, codec.Corruptf("size at 24: %d bytes need an l1 table of %d bytes, more than %d", h.size, need*8, maxL1Bytes)
	case h.l1Len < need:
		return nil, codec.Corruptf("l1_size at 36: %d entries, %d bytes of disk need %d", h.l1Len, h.size, need)
	case need > 0 && h.l1Off == 0:
		return nil, codec.Corruptf("l1_table_offset at 40: 0")
	}
	return h, nil
}

// parseV3 reads what version 3 adds.
func (h *header) parseV3(b []byte) error {
	if len(b) < headerV3 {
		return codec.Corruptf("header: cut by the end of the file (%d of %d bytes)", len(b), headerV3)
	}
	n := be32(b[100:])
	switch {
	case n < headerV3 || n%8 != 0 || int64(n) > h.cluster():
		return codec.Corruptf("header_length at 100: %d", n)
	case int64(n) > int64(len(b)):
		return codec.Corruptf("header_length at 100: %d, cut by the end of the file (%d bytes)", n, len(b))
	}
	h.length = int(n)

	inc := be64(b[72:])
	switch {
	case inc&incDataFile != 0 || be64(b[88:])&autoRawData != 0:
		return refuseDataFile(h.extension(b, extDataFile))
	case inc&incCorrupt != 0:
		return codec.Unsupportedf("image marked as corrupt by its writer; repair it with qemu-img check -r all")
	case inc&^incRead != 0:
		return codec.Unsupportedf("unknown incompatible feature %s", h.featureNames(b, inc&^incRead))
	}
	h.extL2 = inc&incExtL2 != 0
	if h.extL2 && h.clusterBits < minExtL2Bits {
		return codec.Corruptf("cluster_bits at 20: %d, extended L2 entries need at least %d", h.clusterBits, minExtL2Bits)
	}

	var kind byte
	if h.length > headerV3 {
		kind = b[104]
	}
	switch {
	case kind > 1:
		return codec.Unsupportedf("compression type %d", kind)
	case (kind != 0) != (inc&incCompression != 0):
		return codec.Corruptf("compression_type at 104: %d, but incompatible_features at 72 is %#x", kind, inc)
	}
	h.zstd = kind == 1
	return nil
}

// refuseOutside refuses what needs another file or a key.
func refuseOutside(b []byte) error {
	off, n := be64(b[8:]), be32(b[16:])
	if off != 0 || n != 0 {
		name := ""
		if off < uint64(len(b)) && n <= maxBackingName && uint64(n) <= uint64(len(b))-off {
			name = string(b[off : off+uint64(n)])
		}
		return codec.Unsupportedf("backing file %q; %s", name, flatten)
	}
	switch m := be32(b[32:]); m {
	case 0:
		return nil
	case 1:
		return codec.Unsupportedf("AES encryption; decrypt and %s", flatten)
	case 2:
		return codec.Unsupportedf("LUKS encryption; decrypt and %s", flatten)
	default:
		return codec.Unsupportedf("encryption method %d", m)
	}
}

func refuseDataFile(name []byte) error {
	return codec.Unsupportedf("external data file %q; %s", name, flatten)
}

// extensions calls f for every header extension within b, the first cluster,
// and checks that each lies inside it. Section Header extensions.
func (h *header) extensions(b []byte, f func(kind uint32, data []byte) error) error {
	b = b[:min(int64(len(b)), h.cluster())]
	for off := h.length; len(b)-off >= 8; {
		kind, n := be32(b[off:]), be32(b[off+4:])
		if kind == extEnd {
			return nil
		}
		off += 8
		if int64(n) > int64(len(b)-off) {
			return codec.Corruptf("header extension %#x at %#x: %d bytes, past the end of the first cluster", kind, off-8, n)
		}
		if err := f(kind, b[off:off+int(n)]); err != nil {
			return err
		}
		off += int(codec.Up(int64(n), 8))
	}
	return nil
}

// extension returns the data of the first extension of a kind, nil without one.
func (h *header) extension(b []byte, kind uint32) (data []byte) {
	_ = h.extensions(b, func(k uint32, d []byte) error {
		if k == kind && data == nil {
			data = d
		}
		return nil
	})
	return data
}

// checkExtensions refuses what only extensions tell.
func (h *header) checkExtensions(b []byte) error {
	return h.extensions(b, func(kind uint32, data []byte) error {
		switch kind {
		case extDataFile:
			return refuseDataFile(data)
		case extCrypto:
			return codec.Unsupportedf("LUKS encryption; decrypt and %s", flatten)
		}
		return nil
	})
}

// featureNames names incompatible bits, by the image's own table if it has one:
// entries of a type byte, a bit number and 46 bytes of name.
func (h *header) featureNames(b []byte, bits uint64) string {
	table := h.extension(b, extFeatures)
	var names []string
	for i := range byte(64) {
		if bits>>i&1 == 0 {
			continue
		}
		name := ""
		for t := table; len(t) >= 48; t = t[48:] {
			if t[0] == 0 && t[1] == i {
				name = strings.TrimRight(string(t[2:48]), "\x00")
				break
			}
		}
		names = append(names, fmt.Sprintf("bit %d (%q)", i, name))
	}
	return strings.Join(names, ", ")
}

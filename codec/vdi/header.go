package vdi

import (
	"encoding/binary"

	"imagefs/codec"
)

const (
	signature = 0xBEDA107F
	sigOff    = 64
	version11 = 0x00010001
	preLen    = 72  // text, signature, version: what the header size leaves out
	headLen   = 512 // what is read; the map lies behind it
	minHeader = 384 // header size of writers without the second geometry
	newHeader = 400

	typeDynamic, typeFixed, typeUndo, typeDiff = 1, 2, 3, 4

	minBlock, maxBlock = 4 << 10, 64 << 20

	// Entries of the block map. Any other is the number of a block.
	entryNone, entryZero = 0xFFFFFFFF, 0xFFFFFFFE

	// maxEntries is the most that QEMU reads: 512 TiB in blocks of 1 MiB.
	maxEntries = 0x1FFFFF80
)

// header is the part of the header that places the bytes.
type header struct {
	version            uint32
	size               uint32 // of the header from preLen on
	kind               uint32
	offBlocks, offData uint32
	sector             uint32
	disk               uint64 // bytes
	block, extra       uint32 // bytes
	entries, allocated uint32
	create, modify     [16]byte // mixed-endian
	parent             [16]byte
}

var le = binary.LittleEndian

func hasSignature(b []byte) bool {
	return len(b) >= sigOff+4 && le.Uint32(b[sigOff:]) == signature
}

// parse reads the fields of b, headLen bytes, and checks nothing.
func parse(b []byte) (h header) {
	h.version = le.Uint32(b[68:])
	h.size = le.Uint32(b[72:])
	h.kind = le.Uint32(b[76:])
	h.offBlocks = le.Uint32(b[340:])
	h.offData = le.Uint32(b[344:])
	h.sector = le.Uint32(b[360:])
	h.disk = le.Uint64(b[368:])
	h.block = le.Uint32(b[376:])
	h.extra = le.Uint32(b[380:])
	h.entries = le.Uint32(b[384:])
	h.allocated = le.Uint32(b[388:])
	copy(h.create[:], b[392:])
	copy(h.modify[:], b[408:])
	copy(h.parent[:], b[424:])
	return h
}

// marshal is the whole header, headLen bytes, of a disk without parent.
func (h header) marshal() []byte {
	b := make([]byte, headLen)
	copy(b, "<<< Oracle VM VirtualBox Disk Image >>>\n")
	le.PutUint32(b[sigOff:], signature)
	le.PutUint32(b[68:], h.version)
	le.PutUint32(b[72:], h.size)
	le.PutUint32(b[76:], h.kind)
	le.PutUint32(b[340:], h.offBlocks)
	le.PutUint32(b[344:], h.offData)
	le.PutUint32(b[360:], h.sector)
	le.PutUint64(b[368:], h.disk)
	le.PutUint32(b[376:], h.block)
	le.PutUint32(b[380:], h.extra)
	le.PutUint32(b[384:], h.entries)
	le.PutUint32(b[388:], h.allocated)
	copy(b[392:], h.create[:])
	copy(b[408:], h.modify[:])
	copy(b[424:], h.parent[:])
	le.PutUint32(b[468:], h.sector) // of the second geometry
	return b
}

// check tells whether an image with this header is read here. The places of
// map and blocks are checked against the file where they are claimed.
func (h header) check() error {
	const flatten = "; flatten it with VBoxManage clonemedium"
	switch h.version >> 16 {
	case 0:
		return codec.Unsupportedf("VDI version %d.%d, the version 0 header; convert it with VBoxManage clonemedium", h.version>>16, h.version&0xffff)
	default:
		if h.version != version11 {
			return codec.Unsupportedf("VDI version %d.%d, only 1.1 is read", h.version>>16, h.version&0xffff)
		}
	}
	switch h.kind {
	case typeDynamic, typeFixed:
	case typeUndo:
		return codec.Unsupportedf("VDI undo image (type 3)%s", flatten)
	case typeDiff:
		return codec.Unsupportedf("VDI differencing image (type 4)%s", flatten)
	default:
		return codec.Corruptf("VDI type at 76 is %d", h.kind)
	}
	if h.parent != [16]byte{} {
		return codec.Unsupportedf("VDI differencing image, parent UUID %x%s", codec.MixedEndian(h.parent), flatten)
	}
	switch {
	case h.size < minHeader || int64(h.size) > int64(h.offBlocks)-preLen:
		return codec.Corruptf("VDI header size at 72 is %d: not within %d and the block map at %#x", h.size, minHeader, h.offBlocks)
	case h.offBlocks%512 != 0: // and at least 512, since a header fits before it
		return codec.Corruptf("VDI offset of the block map at 340 is %#x: not a multiple of 512", h.offBlocks)
	case h.offData%512 != 0 || h.offData == 0:
		return codec.Corruptf("VDI offset of the data at 344 is %#x: not a multiple of 512 above 0", h.offData)
	case h.sector != 512:
		return codec.Unsupportedf("VDI sector size %d, only 512 is read", h.sector)
	case h.block < minBlock || h.block > maxBlock || h.block&(h.block-1) != 0:
		return codec.Corruptf("VDI block size at 376 is %d: not a power of two from 4 KiB to 64 MiB", h.block)
	case h.extra != 0:
		return codec.Unsupportedf("VDI with %d extra bytes before each block", h.extra)
	case h.entries > maxEntries:
		return codec.Unsupportedf("VDI with %d blocks, at most %d are read", h.entries, maxEntries)
	case h.disk > uint64(h.entries)*uint64(h.block):
		return codec.Corruptf("VDI disk size at 368 is %d: more than its %d blocks of %d bytes", h.disk, h.entries, h.block)
	}
	return nil
}

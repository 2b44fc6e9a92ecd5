package zvhd

import (
	"encoding/binary"

	"imagefs/codec"
)

const (
	cookie1   = "stream\x00\x00"
	cookie2   = "z2strm\x00\x00"
	cookieLen = 8

	headerLen = 512  // what counts of a header block
	page      = 4096 // a header block, and the unit of records
	version10 = 0x00010000
	kindOnly  = 4
	blockSize = 2 << 20
	giant     = 1 << 30 // current sizes are multiples

	indexEntry    = 16
	segmentItems  = 32768 // entries of an index segment, bits of one of the bitmap
	indexSegment  = segmentItems * indexEntry
	bitmapSegment = segmentItems / 8

	methodZlib, methodZstd = 0, 1
)

var le = binary.LittleEndian

// header is the part of a header block that is read or written.
type header struct {
	cookie            string
	version           uint32
	time              uint32 // seconds since 2000
	original, current uint64 // bytes
	kind              uint32
	uuid              [16]byte
	saved             byte
	two               directory
}

// directory is what the header of a ZVHD2 has besides.
type directory struct {
	version               byte
	block                 uint32 // bytes
	blocks                uint32 // of the disk
	index, bitmap         uint64 // where they begin, bytes
	indexLen, bitmapLen   uint32 // bytes
	indexSeg, bitmapSeg   uint32 // bytes of a segment
	indexSegs, bitmapSegs uint32
	used                  uint32 // blocks with data
	all                   byte   // the index has blocks without data too
	method                byte
}

// checksum is that of b, a header.
func checksum(b []byte) uint32 {
	var sum uint32
	for i, c := range b[:headerLen] {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// parseHeader reads b, headerLen bytes that begin with a cookie and are read
// from at in the file.
func parseHeader(b []byte, at int64) (h header, err error) {
	got, want := le.Uint32(b[64:]), checksum(b)
	if got != want && got != want+uint32(b[85]) { // as if hidden were 0
		return h, codec.Corruptf("header at %#x: checksum %#x, its bytes give %#x", at, got, want)
	}
	h.cookie = string(b[:cookieLen])
	h.version = le.Uint32(b[12:])
	h.time = le.Uint32(b[24:])
	h.original, h.current = le.Uint64(b[40:]), le.Uint64(b[48:])
	h.kind = le.Uint32(b[60:])
	copy(h.uuid[:], b[68:])
	h.saved = b[84]
	h.two = directory{
		version: b[87], block: le.Uint32(b[88:]), blocks: le.Uint32(b[92:]),
		index: le.Uint64(b[96:]), bitmap: le.Uint64(b[104:]),
		indexLen: le.Uint32(b[112:]), bitmapLen: le.Uint32(b[116:]),
		indexSeg: le.Uint32(b[120:]), bitmapSeg: le.Uint32(b[124:]),
		indexSegs: le.Uint32(b[128:]), bitmapSegs: le.Uint32(b[132:]),
		used: le.Uint32(b[136:]), all: b[140], method: b[141],
	}
	return h, nil
}

// size is that of the disk in bytes.
func (h *header) size() (int64, error) {
	s := h.original
	if s == 0 || s > h.current {
		s = h.current
	}
	if s > codec.MaxSize {
		return 0, codec.Corruptf("header: original size at 40 is %d, current size at 48 is %d: larger than any disk", h.original, h.current)
	}
	return int64(s), nil
}

// check tells whether a disk with this header is read here.
func (h *header) check() error {
	switch {
	case h.version>>16 != 1:
		return codec.Unsupportedf("header version %d.%d, only 1.0 is read", h.version>>16, h.version&0xffff)
	case h.kind != kindOnly:
		return codec.Unsupportedf("header type %d, only %d is read", h.kind, kindOnly)
	case h.cookie == cookie1:
		return nil
	}
	switch d := &h.two; {
	case d.version != 1:
		return codec.Unsupportedf("ZVHD2 version %d, only 1 is read", d.version)
	case d.block != blockSize:
		return codec.Unsupportedf("ZVHD2 block size at 88 of the header is %d, only %d is read", d.block, blockSize)
	case d.all != 0:
		return codec.Unsupportedf("ZVHD2 index of blocks without data too (%d at 140 of the header)", d.all)
	case d.method != methodZlib && d.method != methodZstd:
		return codec.Unsupportedf("ZVHD2 compression %d at 141 of the header, only zlib (0) and zstd (1) are read", d.method)
	}
	return nil
}

// marshal is the whole header block.
func (h *header) marshal() []byte {
	b := make([]byte, page)
	copy(b, h.cookie)
	le.PutUint32(b[8:], 2) // reserved, always set
	le.PutUint32(b[12:], h.version)
	le.PutUint64(b[16:], 1<<64-1)
	le.PutUint32(b[24:], h.time)
	copy(b[28:], "tap")
	le.PutUint32(b[32:], 0x00010004)
	le.PutUint64(b[40:], h.original)
	le.PutUint64(b[48:], h.current)
	le.PutUint32(b[56:], geometry(int64(h.original)))
	le.PutUint32(b[60:], h.kind)
	copy(b[68:], h.uuid[:])
	b[84] = h.saved
	if h.cookie == cookie2 {
		h.two.put(b)
	}
	le.PutUint32(b[64:], checksum(b))
	return b
}

func (d *directory) put(b []byte) {
	b[87] = d.version
	le.PutUint32(b[88:], d.block)
	le.PutUint32(b[92:], d.blocks)
	le.PutUint64(b[96:], d.index)
	le.PutUint64(b[104:], d.bitmap)
	for i, v := range []uint32{d.indexLen, d.bitmapLen, d.indexSeg, d.bitmapSeg, d.indexSegs, d.bitmapSegs, d.used} {
		le.PutUint32(b[112+4*i:], v)
	}
	b[140], b[141] = d.all, d.method
}

// geometry is the "CHS Calculation" of the VHD specification for a disk of size
// bytes, as one field.
func geometry(size int64) uint32 {
	total := min(size/512, 65535*16*255)
	heads, sectors := int64(16), int64(255)
	if total < 65535*16*63 {
		sectors = 17
		heads = max(codec.Ceil(total/sectors, 1024), 4)
		if heads > 16 || total/sectors >= heads*1024 {
			heads, sectors = 16, 31
		}
		if total/sectors >= heads*1024 {
			sectors = 63
		}
	}
	return uint32(total/sectors/heads<<16 | heads<<8 | sectors)
}

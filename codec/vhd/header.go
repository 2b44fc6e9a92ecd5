package vhd

import (
	"encoding/binary"
	"unicode/utf16"

	"imagefs/codec"
)

const (
	cookie        = "conectix"
	dynamicCookie = "cxsparse"
	footerLen     = 512
	headerLen     = 1024
	version10     = 0x00010000
	allOnes       = 1<<64 - 1

	typeFixed, typeDynamic, typeDiff = 2, 3, 4

	sector             = 512
	minBlock, maxBlock = 4 << 10, 256 << 20
	entryNone          = 0xFFFFFFFF // in the BAT
)

var be = binary.BigEndian

// footer is the part of the footer that is read or written.
type footer struct {
	version    uint32
	dataOffset uint64 // of the dynamic header, bytes
	time       uint32 // seconds since 2000
	creator    string // of four characters
	size       uint64 // current size, bytes
	cylinders  uint16
	heads      byte
	sectors    byte // per track
	kind       uint32
	uuid       [16]byte
	saved      byte
}

// checksum is that of b, whose own field of four bytes stands at off.
func checksum(b []byte, off int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < off || i >= off+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// parseFooter reads b, footerLen bytes that begin with the cookie and are read
// from at in the file.
func parseFooter(b []byte, at int64) (f footer, err error) {
	if got, want := be.Uint32(b[64:]), checksum(b, 64); got != want {
		return f, codec.Corruptf("VHD footer at %#x: checksum %#x, its bytes give %#x", at, got, want)
	}
	f.version = be.Uint32(b[12:])
	f.dataOffset = be.Uint64(b[16:])
	f.time = be.Uint32(b[24:])
	f.creator = string(b[28:32])
	f.size = be.Uint64(b[48:])
	f.cylinders, f.heads, f.sectors = be.Uint16(b[56:]), b[58], b[59]
	f.kind = be.Uint32(b[60:])
	copy(f.uuid[:], b[68:])
	f.saved = b[84]
	return f, nil
}

// check tells whether a disk with this footer is read here, a differencing one
// as well: that is refused where its parent's name is known.
func (f footer) check() error {
	if f.version>>16 != 1 {
		return codec.Unsupportedf("VHD version %d.%d, only 1.0 is read", f.version>>16, f.version&0xffff)
	}
	switch f.kind {
	case typeFixed, typeDynamic, typeDiff:
	default:
		return codec.Unsupportedf("VHD type %d, only fixed (2) and dynamic (3) disks are read", f.kind)
	}
	if f.size > codec.MaxSize {
		return codec.Corruptf("VHD current size at 48 of the footer is %d: larger than any disk", f.size)
	}
	return nil
}

// doubt tells whether readers take disks of different sizes from this footer
// for a reason that only damage can have. QEMU computes the size of what it
// wrote itself of the geometry, unless that is the largest there is, and writes
// a current size that is the same. Of other creators the two may differ, and
// the current size is what counts.
func (f footer) doubt() error {
	geometry := uint64(f.cylinders) * uint64(f.heads) * uint64(f.sectors) * sector
	largest := f.cylinders == 65535 && f.heads == 16 && f.sectors == 255
	if f.creator != "qemu" || largest || geometry == f.size {
		return nil
	}
	return codec.Unsupportedf("VHD geometry at 56 of the footer, %d cylinders, %d heads and %d sectors, is %d bytes, the current size is %d: readers disagree on the disk's size",
		f.cylinders, f.heads, f.sectors, geometry, f.size)
}

// marshal is the whole footer.
func (f footer) marshal() []byte {
	b := make([]byte, footerLen)
	copy(b, cookie)
	be.PutUint32(b[8:], 2) // reserved, always set
	be.PutUint32(b[12:], f.version)
	be.PutUint64(b[16:], f.dataOffset)
	be.PutUint32(b[24:], f.time)
	copy(b[28:], "win ")
	be.PutUint32(b[32:], 0x000A0000)
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], f.size)
	be.PutUint64(b[48:], f.size)
	c, h, s := geometry(int64(f.size))
	be.PutUint16(b[56:], c)
	b[58], b[59] = h, s
	be.PutUint32(b[60:], f.kind)
	copy(b[68:], f.uuid[:])
	b[84] = f.saved
	be.PutUint32(b[64:], checksum(b, 64))
	return b
}

// geometry is the appendix "CHS Calculation" for a disk of size bytes.
func geometry(size int64) (cylinders uint16, heads, sectors byte) {
	total := min(size/sector, 65535*16*255)
	var h, s, ct int64
	if total >= 65535*16*63 {
		h, s = 16, 255
		ct = total / s
	} else {
		s = 17
		ct = total / s
		h = max(codec.Ceil(ct, 1024), 4)
		if ct >= h*1024 || h > 16 {
			h, s = 16, 31
			ct = total / s
		}
		if ct >= h*1024 {
			h, s = 16, 63
			ct = total / s
		}
	}
	return uint16(ct / h), byte(h), byte(s)
}

// header is the part of the dynamic header that is read or written.
type header struct {
	tableOffset uint64 // of the BAT, bytes
	version     uint32
	entries     uint32
	block       uint32 // bytes
}

// parseHeader reads b, headerLen bytes from at in the file, and checks what
// needs no knowledge of the file.
func parseHeader(b []byte, at int64) (h header, err error) {
	if string(b[:8]) != dynamicCookie {
		return h, codec.Corruptf("VHD dynamic header at %#x begins with %q, not %q", at, b[:8], dynamicCookie)
	}
	if got, want := be.Uint32(b[36:]), checksum(b[:headerLen], 36); got != want {
		return h, codec.Corruptf("VHD dynamic header at %#x: checksum %#x, its bytes give %#x", at, got, want)
	}
	h.tableOffset = be.Uint64(b[16:])
	h.version = be.Uint32(b[24:])
	h.entries = be.Uint32(b[28:])
	h.block = be.Uint32(b[32:])
	switch {
	case h.version>>16 != 1:
		return h, codec.Unsupportedf("VHD dynamic header of version %d.%d, only 1.0 is read", h.version>>16, h.version&0xffff)
	case h.block < minBlock || h.block > maxBlock || h.block&(h.block-1) != 0:
		return h, codec.Corruptf("VHD block size at 32 of the dynamic header is %d: not a power of two from 4 KiB to 256 MiB", h.block)
	}
	return h, nil
}

// marshal is the whole dynamic header.
func (h header) marshal() []byte {
	b := make([]byte, headerLen)
	copy(b, dynamicCookie)
	be.PutUint64(b[8:], allOnes)
	be.PutUint64(b[16:], h.tableOffset)
	be.PutUint32(b[24:], h.version)
	be.PutUint32(b[28:], h.entries)
	be.PutUint32(b[32:], h.block)
	be.PutUint32(b[36:], checksum(b, 36))
	return b
}

// parentName is the parent's name in a dynamic header, to be quoted: it is
// what a stranger wrote.
func parentName(b []byte) string {
	var u []uint16
	for b = b[64:576]; len(b) > 0; b = b[2:] {
		c := be.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// bitmapLen is the length in bytes of the bitmap before each block.
func bitmapLen(block int64) int64 { return codec.Up(block/sector/8, sector) }

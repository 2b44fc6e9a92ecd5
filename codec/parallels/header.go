package parallels

import (
	"encoding/binary"

	"imagefs/codec"
)

const (
	magicOld = "WithoutFreeSpace" // BAT entries count sectors
	magicExt = "WithouFreSpacExt" // BAT entries count clusters

	headLen  = 64 // the BAT follows
	sector   = 512
	version2 = 2

	inUse = 0x746F6E59

	// maxSectors of a cluster is QEMU's limit, almost 2 GiB.
	maxSectors = (1<<31 - 1) / 513
)

var le = binary.LittleEndian

// header is what places the bytes.
type header struct {
	ext       bool
	version   uint32
	cluster   uint32 // sectors
	entries   uint32
	sectors   uint64
	inUse     uint32
	extension uint64 // sector, 0 for none
}

func hasMagic(b []byte) bool {
	return len(b) >= 20 && (string(b[:16]) == magicOld || string(b[:16]) == magicExt) && le.Uint32(b[16:]) == version2
}

// parse reads the fields of b, headLen bytes, and checks nothing.
func parse(b []byte) header {
	h := header{
		ext:       string(b[:16]) == magicExt,
		version:   le.Uint32(b[16:]),
		cluster:   le.Uint32(b[28:]),
		entries:   le.Uint32(b[32:]),
		sectors:   le.Uint64(b[36:]),
		inUse:     le.Uint32(b[44:]),
		extension: le.Uint64(b[56:]),
	}
	if !h.ext {
		h.sectors &= 1<<32 - 1
	}
	return h
}

// check tells whether an image with this header is read here.
func (h *header) check() error {
	switch {
	case h.cluster == 0 || h.cluster > maxSectors:
		return codec.Corruptf("Parallels cluster at 28 of %d sectors: not from 1 to %d", h.cluster, maxSectors)
	case h.sectors > codec.MaxSize/sector:
		return codec.Corruptf("Parallels disk at 36 of %d sectors: larger than any disk", h.sectors)
	case h.clusters() > int64(h.entries):
		return codec.Corruptf("Parallels disk at 36 of %d sectors: more than its %d clusters of %d", h.sectors, h.entries, h.cluster)
	case h.inUse == inUse && h.extension != 0:
		return codec.Unsupportedf("Parallels image that was not closed cleanly, with a format extension at sector %#x; repair it with qemu-img check -r all", h.extension)
	}
	return nil
}

// clusters is the number of clusters of the disk, the last one maybe partial.
func (h *header) clusters() int64 { return codec.Ceil(int64(h.sectors), int64(h.cluster)) }

// clusterLen is the length of a cluster in bytes.
func (h *header) clusterLen() int64 { return int64(h.cluster) * sector }

// place is where the cluster of BAT entry e stands in the file. It fits: both
// factors are below 2^32, and their product below 2^63.
func (h *header) place(e uint32) int64 {
	if h.ext {
		return int64(e) * h.clusterLen()
	}
	return int64(e) * sector
}

const (
	extensionMagic = 0xAB234CEF23DCEA87
	extensionHead  = 24
	featureHead    = 24
	// maxExtension is how much of the extension is looked at.
	maxExtension = 1 << 20
	// flagTransit asks a writer to keep a feature that it does not know.
	flagTransit = 1 << 1
)

// checkExtension refuses a feature without which the disk may not be read. b is
// the extension.
func checkExtension(b []byte) error {
	if len(b) < extensionHead || le.Uint64(b) != extensionMagic {
		return codec.Corruptf("no magic at the format extension")
	}
	for p := b[extensionHead:]; len(p) >= featureHead; {
		magic, flags, n := le.Uint64(p), le.Uint64(p[8:]), codec.Up(int64(le.Uint32(p[16:])), 8)
		switch {
		case magic == 0:
			return nil
		case flags&^flagTransit != 0:
			return codec.Unsupportedf("Parallels feature %#x with flags %#x in the format extension", magic, flags)
		case n > int64(len(p)-featureHead):
			return codec.Corruptf("feature %#x of %d bytes: past the end of the format extension", magic, n)
		}
		p = p[featureHead+n:]
	}
	return codec.Corruptf("format extension without an end")
}

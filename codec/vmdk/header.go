package vmdk

import (
	"encoding/binary"

	"imagefs/codec"
)

var le = binary.LittleEndian

const (
	sector = 512
	magic  = "KDMV"

	newlines = "\n \r\n"
	atFooter = 1<<64 - 1 // a grain directory that the footer knows
)

// Flags of the header. The upper half says what a reader must know.
const (
	flagNewlines   = 1 << 0
	flagRedundant  = 1 << 1
	flagZeroGrain  = 1 << 2
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17

	flagsMust  = 0xffff0000
	flagsKnown = flagCompressed | flagMarkers
)

const algorithmDeflate = 1

// Limits of what is read and made. 2^31 grains are 128 TiB in the usual grains
// of 64 KiB, twice what VMware has.
const (
	minGrain, maxGrain       = 8, 2048   // sectors
	minTable, maxTable       = 128, 4096 // entries
	maxGrains                = 1 << 31
	maxTables                = 1 << 22
	maxDescriptor            = 1 << 20 / sector
	maxSectors         int64 = 1 << 32 // a table entry has 32 bits
)

// header is the sparse extent header, and the footer too.
type header struct {
	version          uint32
	flags            uint32
	capacity         uint64 // sectors
	grainSize        uint64 // sectors
	descriptorOffset uint64
	descriptorSize   uint64
	tableEntries     uint32
	rgdOffset        uint64
	gdOffset         uint64
	overHead         uint64
	unclean          byte
	algorithm        uint16
}

// parseHeader reads a sector that begins with the magic. It checks the
// newlines only, which tell whether any field can be believed.
func parseHeader(b []byte) (header, error) {
	h := header{
		version:          le.Uint32(b[4:]),
		flags:            le.Uint32(b[8:]),
		capacity:         le.Uint64(b[12:]),
		grainSize:        le.Uint64(b[20:]),
		descriptorOffset: le.Uint64(b[28:]),
		descriptorSize:   le.Uint64(b[36:]),
		tableEntries:     le.Uint32(b[44:]),
		rgdOffset:        le.Uint64(b[48:]),
		gdOffset:         le.Uint64(b[56:]),
		overHead:         le.Uint64(b[64:]),
		unclean:          b[72],
		algorithm:        le.Uint16(b[77:]),
	}
	if got := string(b[73:77]); h.flags&flagNewlines != 0 && got != newlines {
		return h, codec.Corruptf("newline test at 73 is %q, want %q: mangled by a text transfer", got, newlines)
	}
	return h, nil
}

// marshal is the header as a sector.
func (h *header) marshal() []byte {
	b := make([]byte, sector)
	copy(b, magic)
	le.PutUint32(b[4:], h.version)
	le.PutUint32(b[8:], h.flags)
	le.PutUint64(b[12:], h.capacity)
	le.PutUint64(b[20:], h.grainSize)
	le.PutUint64(b[28:], h.descriptorOffset)
	le.PutUint64(b[36:], h.descriptorSize)
	le.PutUint32(b[44:], h.tableEntries)
	le.PutUint64(b[48:], h.rgdOffset)
	le.PutUint64(b[56:], h.gdOffset)
	le.PutUint64(b[64:], h.overHead)
	b[72] = h.unclean
	copy(b[73:], newlines)
	le.PutUint16(b[77:], h.algorithm)
	return b
}

// check holds the header to the format and to the limits above.
func (h *header) check() error {
	switch {
	case h.version < 1 || h.version > 3:
		return codec.Unsupportedf("version %d at 4, known are 1 to 3", h.version)
	case h.flags&flagsMust&^flagsKnown != 0:
		return codec.Unsupportedf("unknown flags %#x at 8", h.flags&flagsMust&^flagsKnown)
	case h.algorithm > algorithmDeflate:
		return codec.Unsupportedf("compressAlgorithm %d at 77, known is 1, deflate", h.algorithm)
	case h.compressed() != (h.algorithm == algorithmDeflate):
		return codec.Corruptf("compressAlgorithm is %d at 77, and the flags at 8 are %#x: one says that grains are compressed", h.algorithm, h.flags)
	case h.compressed() != (h.flags&flagMarkers != 0):
		return codec.Unsupportedf("flags %#x at 8: compressed grains and markers come together only", h.flags)
	case h.grainSize < minGrain || h.grainSize > maxGrain || h.grainSize&(h.grainSize-1) != 0:
		return codec.Corruptf("grainSize at 20 is %d sectors, want a power of two from %d to %d", h.grainSize, minGrain, maxGrain)
	case h.tableEntries < minTable || h.tableEntries > maxTable || h.tableEntries&(h.tableEntries-1) != 0:
		return codec.Corruptf("numGTEsPerGT at 44 is %d, want a power of two from %d to %d", h.tableEntries, minTable, maxTable)
	case h.capacity > codec.MaxSize/sector:
		return codec.Corruptf("capacity at 12 is %d sectors, more than any disk has", h.capacity)
	case h.grains() > maxGrains || h.tables() > maxTables:
		return codec.Unsupportedf("capacity of %d sectors at 12: %d grains in %d tables, the limits are %d and %d",
			h.capacity, h.grains(), h.tables(), maxGrains, maxTables)
	case h.descriptorOffset == 0:
		return codec.Unsupportedf("sparse extent without a descriptor: a piece of a split image; flatten the whole image with qemu-img convert")
	case h.descriptorSize == 0 || h.descriptorSize > maxDescriptor:
		return codec.Corruptf("descriptorSize at 36 is %d sectors, want 1 to %d", h.descriptorSize, maxDescriptor)
	}
	return nil
}

// sameDisk compares the footer f with the header h in all that both must say.
func (h *header) sameDisk(f *header) error {
	for _, x := range []struct {
		name string
		h, f uint64
	}{
		{"version", uint64(h.version), uint64(f.version)},
		{"flags", uint64(h.flags), uint64(f.flags)},
		{"capacity", h.capacity, f.capacity},
		{"grainSize", h.grainSize, f.grainSize},
		{"descriptorOffset", h.descriptorOffset, f.descriptorOffset},
		{"descriptorSize", h.descriptorSize, f.descriptorSize},
		{"numGTEsPerGT", uint64(h.tableEntries), uint64(f.tableEntries)},
		{"compressAlgorithm", uint64(h.algorithm), uint64(f.algorithm)},
	} {
		if x.h != x.f {
			return codec.Corruptf("%s is %#x in the header and %#x in the footer", x.name, x.h, x.f)
		}
	}
	return nil
}

func (h *header) compressed() bool { return h.flags&flagCompressed != 0 }

// grains is the number of grains of the disk, the last one maybe partial.
func (h *header) grains() int64 { return codec.Ceil(int64(h.capacity), int64(h.grainSize)) }

// tables is the number of entries of the grain directory: the header has no
// field for it.
func (h *header) tables() int64 { return codec.Ceil(h.grains(), int64(h.tableEntries)) }

// tableLen is the length of a grain table in bytes.
func (h *header) tableLen() int64 { return 4 * int64(h.tableEntries) }

package vhdx

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"

	"imagefs/codec"
)

var le = binary.LittleEndian

const (
	kib = 1 << 10
	mib = 1 << 20
	tib = 1 << 40

	identifier = "vhdxfile"

	headerLen      = 4 * kib
	header1At      = 64 * kib
	header2At      = 128 * kib
	regionTableLen = 64 * kib
	regionTable1At = 192 * kib
	regionTable2At = 256 * kib
	fixedLen       = 320 * kib // identifier, headers and region tables
	headersEnd     = 1 * mib   // what is reserved for them

	tableEntryLen   = 32   // of the region table and of the metadata table
	maxTableEntries = 2047 // of either
	metadataTable   = 64 * kib
	maxItemLen      = 1 * mib

	minBlock    = 1 * mib
	maxBlock    = 256 * mib
	maxDiskSize = 64 * tib
)

// guid is a GUID as it is stored: the first three fields little-endian.
type guid [16]byte

// parseGUID reads the text form of a constant.
func parseGUID(s string) guid {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic("vhdx: bad GUID " + s)
	}
	return guid(codec.MixedEndian([16]byte(b)))
}

func (g guid) String() string {
	u := codec.MixedEndian(g)
	return fmt.Sprintf("%X-%X-%X-%X-%X", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

var (
	regionBAT      = parseGUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
	regionMetadata = parseGUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")

	itemFileParameters = parseGUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
	itemDiskSize       = parseGUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
	itemLogicalSector  = parseGUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
	itemPhysicalSector = parseGUID("CDA348C7-445D-4471-9CC9-E9885251C556")
	itemPage83         = parseGUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
	itemParentLocator  = parseGUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC-32C of the parts of a structure joined, with the
// checksum field, bytes 4 to 8 of the first part, taken as zero.
func checksum(first []byte, more ...[]byte) uint32 {
	sum := crc32.Update(0, castagnoli, first[:4])
	sum = crc32.Update(sum, castagnoli, []byte{0, 0, 0, 0})
	sum = crc32.Update(sum, castagnoli, first[8:])
	for _, b := range more {
		sum = crc32.Update(sum, castagnoli, b)
	}
	return sum
}

// header is what a header says (2.2.2). All zeros as a logGUID means that the
// log is empty.
type header struct {
	sequence   uint64
	fileWrite  guid
	dataWrite  guid
	logGUID    guid
	logVersion uint16
	version    uint16
	logLength  uint32
	logOffset  uint64
}

// parseHeader parses the 4 KiB of a header; ok when signature and checksum are
// right.
func parseHeader(b []byte) (h header, ok bool) {
	if string(b[:4]) != "head" || le.Uint32(b[4:]) != checksum(b) {
		return h, false
	}
	return header{
		sequence:   le.Uint64(b[8:]),
		fileWrite:  guid(b[16:32]),
		dataWrite:  guid(b[32:48]),
		logGUID:    guid(b[48:64]),
		logVersion: le.Uint16(b[64:]),
		version:    le.Uint16(b[66:]),
		logLength:  le.Uint32(b[68:]),
		logOffset:  le.Uint64(b[72:]),
	}, true
}

// bytes serialises h with its checksum.
func (h header) bytes() []byte {
	b := make([]byte, headerLen)
	copy(b, "head")
	le.PutUint64(b[8:], h.sequence)
	copy(b[16:], h.fileWrite[:])
	copy(b[32:], h.dataWrite[:])
	copy(b[48:], h.logGUID[:])
	le.PutUint16(b[64:], h.logVersion)
	le.PutUint16(b[66:], h.version)
	le.PutUint32(b[68:], h.logLength)
	le.PutUint64(b[72:], h.logOffset)
	le.PutUint32(b[4:], checksum(b))
	return b
}

// currentHeader chooses the header that counts from the fixed part of a file:
// the valid one with the higher sequence. With one sequence in both they must
// be the same, or nobody knows which is newer.
func currentHeader(fixed []byte) (header, error) {
	b1, b2 := fixed[header1At:header1At+headerLen], fixed[header2At:header2At+headerLen]
	h1, ok1 := parseHeader(b1)
	h2, ok2 := parseHeader(b2)
	switch {
	case !ok1 && !ok2:
		return header{}, codec.Corruptf("headers at %#x and %#x: signature or checksum wrong in both", header1At, header2At)
	case ok1 && ok2 && h1.sequence == h2.sequence && string(b1) != string(b2):
		return header{}, codec.Corruptf("headers at %#x and %#x: different but both with sequence number %d", header1At, header2At, h1.sequence)
	case !ok1 || ok2 && h2.sequence > h1.sequence:
		return h2, nil
	}
	return h1, nil
}

// region is one entry of a region table (2.2.3.2).
type region struct {
	id       guid
	offset   uint64
	length   uint32
	required bool
}

// currentRegions parses the region table from the fixed part of a file: either
// copy when the other is damaged.
func currentRegions(fixed []byte) ([]region, error) {
	b1 := fixed[regionTable1At : regionTable1At+regionTableLen]
	b2 := fixed[regionTable2At : regionTable2At+regionTableLen]
	valid := func(b []byte) bool {
		return string(b[:4]) == "regi" && le.Uint32(b[4:]) == checksum(b)
	}
	ok1, ok2 := valid(b1), valid(b2)
	switch {
	case !ok1 && !ok2:
		return nil, codec.Corruptf("region tables at %#x and %#x: signature or checksum wrong in both", regionTable1At, regionTable2At)
	case ok1 && ok2 && string(b1) != string(b2):
		return nil, codec.Corruptf("region tables at %#x and %#x: valid but different", regionTable1At, regionTable2At)
	case ok1:
		return parseRegions(b1)
	}
	return parseRegions(b2)
}

func parseRegions(b []byte) ([]region, error) {
	n := le.Uint32(b[8:])
	if n > maxTableEntries {
		return nil, codec.Corruptf("region table: %d entries, at most %d", n, maxTableEntries)
	}
	regions := make([]region, n)
	for i := range regions {
		e := b[16+i*tableEntryLen:]
		regions[i] = region{guid(e[:16]), le.Uint64(e[16:]), le.Uint32(e[24:]), le.Uint32(e[28:])&1 != 0}
	}
	return regions, nil
}

// regionTable serialises a region table, cut behind its last entry: the rest
// of its 64 KiB is zeros.
func regionTable(regions []region) []byte {
	b := make([]byte, regionTableLen)
	copy(b, "regi")
	le.PutUint32(b[8:], uint32(len(regions)))
	for i, r := range regions {
		e := b[16+i*tableEntryLen:]
		copy(e, r.id[:])
		le.PutUint64(e[16:], r.offset)
		le.PutUint32(e[24:], r.length)
		if r.required {
			le.PutUint32(e[28:], 1)
		}
	}
	le.PutUint32(b[4:], checksum(b))
	return b[:16+len(regions)*tableEntryLen]
}

// Flags of a metadata item (2.6.1.2).
const (
	itemIsUser      = 1 << 0
	itemVirtualDisk = 1 << 1
	itemRequired    = 1 << 2
)

// item is one entry of the metadata table (2.6.1.2).
type item struct {
	id     guid
	offset uint32 // from the region's start
	length uint32
	flags  uint32
}

// parseItems parses the metadata table from its 64 KiB.
func parseItems(b []byte) ([]item, error) {
	if string(b[:8]) != "metadata" {
		return nil, codec.Corruptf("metadata table: signature %q", b[:8])
	}
	n := le.Uint16(b[10:])
	if n > maxTableEntries {
		return nil, codec.Corruptf("metadata table: %d entries, at most %d", n, maxTableEntries)
	}
	items := make([]item, n)
	for i := range items {
		e := b[32+i*tableEntryLen:]
		items[i] = item{guid(e[:16]), le.Uint32(e[16:]), le.Uint32(e[20:]), le.Uint32(e[24:])}
	}
	return items, nil
}

// itemTable serialises a metadata table, cut behind its last entry.
func itemTable(items []item) []byte {
	b := make([]byte, 32+len(items)*tableEntryLen)
	copy(b, "metadata")
	le.PutUint16(b[10:], uint16(len(items)))
	for i, it := range items {
		e := b[32+i*tableEntryLen:]
		copy(e, it.id[:])
		le.PutUint32(e[16:], it.offset)
		le.PutUint32(e[20:], it.length)
		le.PutUint32(e[24:], it.flags)
	}
	return b
}

// Flags of the file parameters (2.6.2.1).
const (
	leaveAllocated = 1 << 0 // a fixed disk: all blocks are present
	hasParent      = 1 << 1
)

// States of a payload block (2.5.1.1) in the low three bits of a BAT entry,
// and of a sector bitmap, which is not present or present only.
const (
	blockNotPresent  = 0
	blockUndefined   = 1
	blockZero        = 2
	blockUnmapped    = 3
	blockUnmapped095 = 5 // as drafts of the format had it
	blockPresent     = 6
	blockPartial     = 7 // of a disk with a parent

	stateMask = 7
)

// chunkRatio is the number of payload entries between two entries of sector
// bitmaps (2.5).
func chunkRatio(sector, block int64) int64 { return sector << 23 / block }

// batEntries is the number of BAT entries of a disk of n blocks.
func batEntries(n, ratio int64) int64 {
	if n == 0 {
		return 0
	}
	return n + (n-1)/ratio
}

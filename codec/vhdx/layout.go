package vhdx

import (
	"context"
	"fmt"
	"unicode/utf16"

	"imagefs/codec"
)

// Where a view has its parts.
const (
	logAt      = 1 * mib
	logLen     = 1 * mib
	metadataAt = 2 * mib
	batAt      = 3 * mib

	smallBlock = 2 * mib  // up to smallDisk
	largeBlock = 32 * mib // above, where the BAT would grow
	smallDisk  = 2 * tib

	logicalSector  = 512
	physicalSector = 4096

	creator = "imagefs"
)

// Layout implements [codec.View]: a dynamic disk with an empty log.
func (format) Layout(ctx context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	if d.Size() > maxDiskSize {
		return nil, fmt.Errorf("lay out vhdx: %w: %d bytes, at most %d", codec.ErrTooLarge, d.Size(), int64(maxDiskSize))
	}
	size := codec.Up(d.Size(), logicalSector)
	block := int64(smallBlock)
	if size > smallDisk {
		block = largeBlock
	}
	m, err := codec.NewMap(ctx, d, block)
	if err != nil {
		return nil, fmt.Errorf("lay out vhdx: %w", err)
	}
	b := &bat{m: m, ratio: chunkRatio(logicalSector, block)}
	entries := batEntries(m.Blocks(), b.ratio)
	batLen := max(codec.Up(8*entries, mib), mib) // a region is not empty
	b.data = batAt + batLen

	file := new(codec.File)
	appendHeaders(file, f, batLen)
	appendMetadata(file, f, size, block)
	file.Append(8*entries, &codec.Entries{Size: 8, Put: b.put})
	file.ZeroTo(b.data)
	blocks := &codec.Packed{Disk: d, Map: m}
	file.Append(blocks.Len(), blocks)
	return file, nil
}

// appendHeaders appends all up to the metadata: the fixed part and the log.
func appendHeaders(file *codec.File, f codec.Facts, batLen int64) {
	id := []byte(identifier)
	for _, u := range utf16.Encode([]rune(creator)) {
		id = le.AppendUint16(id, u)
	}
	file.Literal(id)
	h := header{
		fileWrite: codec.MixedEndian(f.VersionUUID("vhdx", "file-write")),
		dataWrite: codec.MixedEndian(f.VersionUUID("vhdx", "data-write")),
		version:   1,
		logLength: logLen,
		logOffset: logAt,
	}
	file.ZeroTo(header1At)
	file.Literal(h.bytes())
	h.sequence = 1
	file.ZeroTo(header2At)
	file.Literal(h.bytes())
	table := regionTable([]region{
		{regionBAT, batAt, uint32(batLen), true},
		{regionMetadata, metadataAt, batAt - metadataAt, true},
	})
	file.ZeroTo(regionTable1At)
	file.Literal(table)
	file.ZeroTo(regionTable2At)
	file.Literal(table)
	file.ZeroTo(metadataAt)
}

// appendMetadata appends the metadata region.
func appendMetadata(file *codec.File, f codec.Facts, size, block int64) {
	page83 := codec.MixedEndian(f.UUID("vhdx", "page83"))
	contents := []struct {
		id    guid
		flags uint32
		b     []byte
	}{
		{itemFileParameters, itemRequired, le.AppendUint64(nil, uint64(block))}, // flags 0 behind the 32 bits
		{itemDiskSize, itemRequired | itemVirtualDisk, le.AppendUint64(nil, uint64(size))},
		{itemLogicalSector, itemRequired | itemVirtualDisk, le.AppendUint32(nil, logicalSector)},
		{itemPhysicalSector, itemRequired | itemVirtualDisk, le.AppendUint32(nil, physicalSector)},
		{itemPage83, itemRequired | itemVirtualDisk, page83[:]},
	}
	var items []item
	var all []byte
	for _, c := range contents {
		items = append(items, item{c.id, uint32(metadataTable + len(all)), uint32(len(c.b)), c.flags})
		all = append(all, c.b...)
	}
	file.Literal(itemTable(items))
	file.ZeroTo(metadataAt + metadataTable)
	file.Literal(all)
	file.ZeroTo(batAt)
}

// bat makes the entries of a view's BAT.
type bat struct {
	m     *codec.Map
	ratio int64
	data  int64 // where the blocks begin
}

// put puts entry i: a block that is left out is a zero block, and a sector
// bitmap is not present.
func (t *bat) put(b []byte, i int64) {
	var e uint64
	if i%(t.ratio+1) != t.ratio {
		block := i - i/(t.ratio+1)
		e = blockZero
		if t.m.Has(block) {
			e = uint64(t.data+t.m.Rank(block)*t.m.Block()) | blockPresent
		}
	}
	le.PutUint64(b, e)
}

package vdi

import (
	"context"
	"fmt"

	"imagefs/codec"
)

const (
	blockSize = 1 << 20 // the only one that every reader knows
	maxDisk   = maxEntries * blockSize
)

// Layout lays d out as a dynamic image.
func (format) Layout(ctx context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	if d.Size() > maxDisk {
		return nil, fmt.Errorf("%w: vdi holds at most %d bytes, the disk has %d", codec.ErrTooLarge, int64(maxDisk), d.Size())
	}
	m, err := codec.NewMap(ctx, d, blockSize)
	if err != nil {
		return nil, fmt.Errorf("map the disk in vdi blocks: %w", err)
	}
	h := header{
		version:   version11,
		size:      newHeader,
		kind:      typeDynamic,
		offBlocks: blockSize,
		offData:   uint32(codec.Up(blockSize+4*m.Blocks(), blockSize)),
		sector:    512,
		disk:      uint64(codec.Up(d.Size(), 512)),
		block:     blockSize,
		entries:   uint32(m.Blocks()),
		allocated: uint32(m.Count()),
		// VirtualBox takes a header for damaged when either is zero.
		create: codec.MixedEndian(f.UUID("vdi", "create")),
		modify: codec.MixedEndian(f.VersionUUID("vdi", "modify")),
	}
	file := new(codec.File)
	file.Literal(h.marshal())
	file.ZeroTo(int64(h.offBlocks))
	file.Append(4*m.Blocks(), &codec.Entries{Size: 4, Put: func(b []byte, i int64) {
		e := uint32(entryNone)
		if m.Has(i) {
			e = uint32(m.Rank(i))
		}
		le.PutUint32(b, e)
	}})
	file.ZeroTo(int64(h.offData))
	p := &codec.Packed{Disk: d, Map: m}
	file.Append(p.Len(), p)
	return file, nil
}

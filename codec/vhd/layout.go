package vhd

import (
	"bytes"
	"context"
	"fmt"

	"imagefs/codec"
)

const (
	blockSize = 2 << 20
	// maxDisk is the specification's limit, 2040 GiB: the BAT counts sectors
	// of the file in 32 bits.
	maxDisk  = 2040 << 30
	tableOff = footerLen + headerLen
)

// ones is the bitmap of a block: every sector is there.
var ones = bytes.Repeat([]byte{0xff}, blockSize/sector/8)

// Layout lays d out as a dynamic disk.
func (format) Layout(ctx context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	if d.Size() > maxDisk {
		return nil, fmt.Errorf("%w: vhd holds at most %d bytes, the disk has %d", codec.ErrTooLarge, int64(maxDisk), d.Size())
	}
	m, err := codec.NewMap(ctx, d, blockSize)
	if err != nil {
		return nil, fmt.Errorf("map the disk in vhd blocks: %w", err)
	}
	foot := footer{
		version:    version10,
		dataOffset: footerLen,
		time:       codec.VHDTime(f.Created),
		size:       uint64(codec.Up(d.Size(), sector)),
		kind:       typeDynamic,
		uuid:       f.UUID("vhd", "footer"),
	}.marshal()
	p := &codec.Packed{Disk: d, Map: m, Prefix: ones}
	data := codec.Up(tableOff+4*m.Blocks(), sector)

	file := new(codec.File)
	file.Literal(foot)
	file.Literal(header{tableOffset: tableOff, version: version10, entries: uint32(m.Blocks()), block: blockSize}.marshal())
	// The rest of the table's last sector is entries without a block.
	file.Append(data-tableOff, &codec.Entries{Size: 4, Put: func(b []byte, i int64) {
		e := uint32(entryNone)
		if m.Has(i) {
			e = uint32((data + m.Rank(i)*p.Stride()) / sector)
		}
		be.PutUint32(b, e)
	}})
	file.Append(p.Len(), p)
	file.Literal(foot)
	return file, nil
}

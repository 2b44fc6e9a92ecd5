package vhdx

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf16"

	"imagefs/codec"
)

const perPage = 4096 // blocks to a page of the table in memory

// Open implements [codec.Format].
func (f format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	d, err := open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open vhdx: %w", err)
	}
	return d, nil
}

func open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	id := make([]byte, len(identifier))
	if src.Size() < int64(len(id)) {
		return nil, fmt.Errorf("%w: %d bytes have no file identifier", codec.ErrFormat, src.Size())
	}
	if err := codec.ReadFull(ctx, src, id, 0, "file identifier"); err != nil {
		return nil, err
	}
	if string(id) != identifier {
		return nil, fmt.Errorf("%w: file identifier %q", codec.ErrFormat, id)
	}
	fixed := make([]byte, fixedLen)
	if err := codec.ReadFull(ctx, src, fixed, 0, "headers"); err != nil {
		return nil, err
	}
	h, err := currentHeader(fixed)
	if err != nil {
		return nil, err
	}
	if h.version != 1 {
		return nil, codec.Unsupportedf("header version %d", h.version)
	}
	regions, err := currentRegions(fixed)
	if err != nil {
		return nil, err
	}
	bat, metadata, err := findRegions(regions, src.Size())
	if err != nil {
		return nil, err
	}
	if h.logLength != 0 || h.logGUID != (guid{}) {
		if err := checkRange("log", h.logOffset, h.logLength, src.Size()); err != nil {
			return nil, err
		}
	}
	content, applied := src, 0
	if h.logGUID != (guid{}) {
		if content, applied, err = replay(ctx, src, h); err != nil {
			return nil, err
		}
	}
	p, err := readMetadata(ctx, content, metadata)
	if err != nil {
		return nil, err
	}
	t := codec.NewTable(content, p.size, p.block, perPage)
	if err := claimAll(t, h, regions); err != nil {
		return nil, err
	}
	if err := readBAT(ctx, content, t, p, bat); err != nil {
		return nil, err
	}
	if err := t.Seal(); err != nil {
		return nil, err
	}
	if applied > 0 {
		return &replayed{t, applied}, nil
	}
	return t, nil
}

// replayed is a disk whose file has a log that is applied in memory.
type replayed struct {
	*codec.Table
	entries int
}

var _ codec.Noted = (*replayed)(nil)

// Notes implements [codec.Noted].
func (r *replayed) Notes() []string {
	return []string{fmt.Sprintf("the file was not closed cleanly: the %d entries of its log are applied when it is read", r.entries)}
}

// checkRange checks the alignment of a region or the log, and that it lies in
// the file and behind the headers.
func checkRange(what string, offset uint64, length uint32, size int64) error {
	if offset%mib != 0 || length%mib != 0 || length == 0 || offset < headersEnd {
		return codec.Corruptf("%s at %#x, %d bytes: not in whole MiB behind the first", what, offset, length)
	}
	if offset > uint64(size) || uint64(length) > uint64(size)-offset {
		return codec.Corruptf("truncated: %s at %#x, %d bytes, ends past the end of the file (%d bytes)", what, offset, length, size)
	}
	return nil
}

// findRegions finds the two regions that are known, and checks the ranges of
// all. A region that is required and not known is refused (2.2.3.2). The
// regions lie in the file as it is, not as a log may extend it, so the tables
// that are read are really there.
func findRegions(regions []region, size int64) (bat, metadata region, err error) {
	seen := make(map[guid]bool, len(regions))
	for _, r := range regions {
		if seen[r.id] {
			return bat, metadata, codec.Corruptf("region table: two regions %s", r.id)
		}
		seen[r.id] = true
		switch r.id {
		case regionBAT:
			bat = r
		case regionMetadata:
			metadata = r
		default:
			if r.required {
				return bat, metadata, codec.Unsupportedf("required region %s at %#x", r.id, r.offset)
			}
		}
		if err := checkRange("region "+r.id.String(), r.offset, r.length, size); err != nil {
			return bat, metadata, err
		}
	}
	if bat.length == 0 {
		return bat, metadata, codec.Corruptf("region table: no BAT region")
	}
	if metadata.length == 0 {
		return bat, metadata, codec.Corruptf("region table: no metadata region")
	}
	return bat, metadata, nil
}

// claimAll claims all that is not a block.
func claimAll(t *codec.Table, h header, regions []region) error {
	if err := t.Claim(0, headersEnd, "headers"); err != nil {
		return err
	}
	if err := t.Claim(int64(h.logOffset), int64(h.logLength), "log"); err != nil {
		return err
	}
	for _, r := range regions {
		if err := t.Claim(int64(r.offset), int64(r.length), "region"); err != nil {
			return err
		}
	}
	return nil
}

// params is what the metadata tell of a disk.
type params struct {
	size   int64
	block  int64
	sector int64 // logical
}

// metadata is the metadata region: its items, and its first part in memory.
type metadata struct {
	src   codec.Source
	r     region
	begin []byte
	items map[guid]item // of those that are not a user's
}

// readMetadata reads what is needed of the metadata region r, and refuses what
// is required and not known.
func readMetadata(ctx context.Context, src codec.Source, r region) (p params, err error) {
	m, err := openMetadata(ctx, src, r)
	if err != nil {
		return p, err
	}
	b, err := m.item(ctx, itemFileParameters, "file parameters", 8)
	if err != nil {
		return p, err
	}
	flags := le.Uint32(b[4:])
	switch {
	case flags&hasParent != 0:
		return p, codec.Unsupportedf("differencing disk with the parent %s; flatten it with qemu-img convert or Convert-VHD where the parent is", m.parent(ctx))
	case flags&^(leaveAllocated|hasParent) != 0:
		return p, codec.Unsupportedf("file parameters with the unknown flags %#x", flags)
	case m.items[itemParentLocator].length != 0:
		return p, codec.Corruptf("metadata: a parent locator, but file parameters without a parent")
	}
	p.block = int64(le.Uint32(b))
	if p.block < minBlock || p.block > maxBlock || p.block&(p.block-1) != 0 {
		return p, codec.Corruptf("metadata: block size %d", p.block)
	}
	if b, err = m.item(ctx, itemLogicalSector, "logical sector size", 4); err != nil {
		return p, err
	}
	if p.sector = int64(le.Uint32(b)); p.sector != 512 && p.sector != 4096 {
		return p, codec.Corruptf("metadata: logical sector size %d", p.sector)
	}
	if b, err = m.item(ctx, itemDiskSize, "virtual disk size", 8); err != nil {
		return p, err
	}
	size := le.Uint64(b)
	if size > maxDiskSize || size%uint64(p.sector) != 0 {
		return p, codec.Corruptf("metadata: virtual disk size %d, more than 64 TiB or no multiple of the logical sector size %d", size, p.sector)
	}
	p.size = int64(size)
	return p, nil
}

// openMetadata reads the metadata table. Its items mostly follow at once, so
// some bytes behind it are read with it.
func openMetadata(ctx context.Context, src codec.Source, r region) (*metadata, error) {
	m := &metadata{src: src, r: r, items: make(map[guid]item)}
	m.begin = make([]byte, metadataTable+pageLen) // a region is 1 MiB at least
	if err := codec.ReadFull(ctx, src, m.begin, int64(r.offset), "metadata table"); err != nil {
		return nil, err
	}
	items, err := parseItems(m.begin[:metadataTable])
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		known := it.flags&itemIsUser == 0
		switch it.id {
		case itemFileParameters, itemDiskSize, itemLogicalSector, itemPhysicalSector, itemPage83, itemParentLocator:
		default:
			known = false
		}
		if !known {
			if it.flags&itemRequired != 0 {
				return nil, codec.Unsupportedf("required metadata item %s", it.id)
			}
			continue
		}
		if it.length > maxItemLen || it.offset < metadataTable || it.offset > r.length || it.length > r.length-it.offset {
			return nil, codec.Corruptf("metadata item %s at %#x, %d bytes: not in the region of %d bytes", it.id, it.offset, it.length, r.length)
		}
		if _, twice := m.items[it.id]; twice {
			return nil, codec.Corruptf("metadata table: two items %s", it.id)
		}
		m.items[it.id] = it
	}
	return m, nil
}

// item reads n bytes, the least that it must have, of an item.
func (m *metadata) item(ctx context.Context, id guid, what string, n uint32) ([]byte, error) {
	it := m.items[id]
	if it.length < n {
		return nil, codec.Corruptf("metadata: %s of %d bytes, %d needed", what, it.length, n)
	}
	if end := it.offset + n; int64(end) <= int64(len(m.begin)) {
		return m.begin[it.offset:end], nil
	}
	b := make([]byte, n)
	err := codec.ReadFull(ctx, m.src, b, int64(m.r.offset)+int64(it.offset), what)
	return b, err
}

// parent tells the paths of the parent locator (2.6.2.6), for the error only:
// nothing is opened, and what is damaged is left out.
func (m *metadata) parent(ctx context.Context) string {
	const unknown = "(not named)"
	b, err := m.item(ctx, itemParentLocator, "parent locator", m.items[itemParentLocator].length)
	if err != nil || len(b) < 20 {
		return unknown
	}
	text := func(off uint32, n uint16) string {
		if uint64(off)+uint64(n) > uint64(len(b)) {
			return ""
		}
		u := make([]uint16, min(n, 2*kib)/2)
		for i := range u {
			u[i] = le.Uint16(b[int(off)+2*i:])
		}
		return string(utf16.Decode(u))
	}
	var paths []string
	for i := range min(int(le.Uint16(b[18:])), 16) {
		e := 20 + 12*i
		if e+12 > len(b) {
			break
		}
		key := text(le.Uint32(b[e:]), le.Uint16(b[e+8:]))
		if value := text(le.Uint32(b[e+4:]), le.Uint16(b[e+10:])); value != "" && strings.HasSuffix(key, "path") {
			paths = append(paths, fmt.Sprintf("%q", value))
		}
	}
	if len(paths) == 0 {
		return unknown
	}
	return strings.Join(paths, " or ")
}

// readBAT reads the BAT into t, piece by piece (2.5).
func readBAT(ctx context.Context, src codec.Source, t *codec.Table, p params, r region) error {
	blocks, ratio := t.Blocks(), chunkRatio(p.sector, p.block)
	n := batEntries(blocks, ratio)
	if n > int64(r.length)/8 {
		return codec.Corruptf("BAT region of %d bytes, the disk of %d bytes needs %d entries", r.length, p.size, n)
	}
	return codec.ReadEntries(ctx, src, int64(r.offset), n, 8, "BAT", func(i int64, b []byte) error {
		if e := le.Uint64(b); e != 0 {
			return setEntry(t, ratio, i, e)
		}
		return nil
	})
}

// setEntry takes over entry i of the BAT. Without a parent all that is not
// present reads as zeros.
func setEntry(t *codec.Table, ratio, i int64, e uint64) error {
	off := e &^ (mib - 1)
	if off > codec.MaxSize {
		off = codec.MaxSize // past the end of any file
	}
	bitmap := i%(ratio+1) == ratio
	switch state := e & stateMask; {
	case state == blockPresent && bitmap:
		return t.Claim(int64(off), mib, "sector bitmap")
	case state == blockPresent:
		return t.Set(i-i/(ratio+1), int64(off))
	case state == blockNotPresent:
	case !bitmap && (state == blockUndefined || state == blockZero || state == blockUnmapped || state == blockUnmapped095):
	case !bitmap && state == blockPartial:
		return codec.Corruptf("BAT entry %d: block partially present, but the disk has no parent", i)
	default:
		return codec.Corruptf("BAT entry %d: state %d", i, state)
	}
	return nil
}

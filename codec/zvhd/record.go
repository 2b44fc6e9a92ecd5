package zvhd

import (
	"context"

	"imagefs/codec"
)

const (
	recordMagic = "hwstream bg\x00"
	recordEnd   = "end\x00"
	recordHead  = 48
	maxPayload  = 4<<20 - 1 // the vendor's reader has room for no more
)

// record says where the record of a block stands.
type record struct {
	off   int64  // in the file
	block uint32 // number
	pages uint32 // its length
}

func (r record) len() int64 { return int64(r.pages) * page }

func (r record) end() int64 { return r.off + r.len() }

// recordPages is the length in pages of a record whose payload has n bytes.
func recordPages(n int64) int64 { return codec.Ceil(recordHead+n+int64(len(recordEnd)), page) }

// parseRecord reads the head of a record, b, that stands at off, and returns it
// with the length of its payload.
func parseRecord(b []byte, off int64) (r record, payload int64, err error) {
	if string(b[:len(recordMagic)]) != recordMagic {
		return r, 0, codec.Corruptf("record at %#x begins with %q, not %q", off, b[:len(recordMagic)], recordMagic)
	}
	payload = int64(le.Uint32(b[12:]))
	if payload > maxPayload {
		return r, 0, codec.Corruptf("record at %#x: payload of %d bytes, want %d at most", off, payload, maxPayload)
	}
	return record{off, le.Uint32(b[16:]), uint32(recordPages(payload))}, payload, nil
}

// checkEnd looks at the last bytes of the record r, b.
func (r record) checkEnd(b []byte) error {
	if string(b) != recordEnd {
		return codec.Corruptf("record of block %d at %#x: it ends at %#x with %q, not %q", r.block, r.off, r.end(), b, recordEnd)
	}
	return nil
}

// check holds r against what came before it and the limits of disk and file.
func (r record) check(prev *record, blocks, end int64) error {
	switch {
	case int64(r.block) >= blocks:
		return codec.Corruptf("record at %#x is of block %d, on a disk of %d blocks", r.off, r.block, blocks)
	case r.off < page || r.off%page != 0 || r.pages == 0 || int64(r.pages) > recordPages(maxPayload):
		return codec.Corruptf("record of block %d at %#x, %d bytes: want it on pages of %d bytes, from the second on, and shorter than 4 MiB", r.block, r.off, r.len(), page)
	case r.off > end || r.len() > end-r.off:
		return codec.Corruptf("record of block %d at %#x, %d bytes: past the end of the records at %#x", r.block, r.off, r.len(), end)
	case prev != nil && r.block <= prev.block:
		return codec.Corruptf("record at %#x is of block %d, behind that of block %d", r.off, r.block, prev.block)
	case prev != nil && r.off < prev.end():
		return codec.Corruptf("record of block %d at %#x: that of block %d ends at %#x", r.block, r.off, prev.block, prev.end())
	}
	return nil
}

// walk finds the records of a ZVHD, up to end, with a read for each. Their
// number is bounded by the file's pages.
func walk(ctx context.Context, src codec.Source, blocks, end int64) (recs []record, err error) {
	const mark = len(recordEnd)
	var prev *record
	var buf [mark + recordHead]byte
	for at := int64(page); ; {
		// The end of the record before and the head of the next at once.
		b := buf[:min(int64(len(buf)), int64(mark)+end-at)]
		if err := codec.ReadFull(ctx, src, b, at-int64(mark), "record"); err != nil {
			return nil, err
		}
		if prev != nil {
			if err := prev.checkEnd(b[:mark]); err != nil {
				return nil, err
			}
		}
		if at == end {
			return recs, nil
		}
		r, _, err := parseRecord(b[mark:], at)
		if err == nil {
			err = r.check(prev, blocks, end)
		}
		if err != nil {
			return nil, err
		}
		recs = append(recs, r)
		prev, at = &recs[len(recs)-1], r.end()
	}
}

// readIndex reads the records of a ZVHD2 in its index, and holds them against
// the bitmap. Heads and ends of records are looked at when they are read.
func readIndex(ctx context.Context, src codec.Source, d *directory, blocks int64) ([]record, error) {
	end, err := d.check(src.Size()-page, blocks)
	if err != nil {
		return nil, err
	}
	var recs []record
	var prev *record
	err = codec.ReadEntries(ctx, src, int64(d.index), int64(d.used), indexEntry, "index", func(i int64, b []byte) error {
		off, n := le.Uint64(b), le.Uint32(b[12:])
		if off > codec.MaxSize || n%page != 0 {
			return codec.Corruptf("index entry %d: a record at %#x of %d bytes", i, off, n)
		}
		r := record{int64(off), le.Uint32(b[8:]), n / page}
		if err := r.check(prev, blocks, end); err != nil {
			return err
		}
		recs = append(recs, r)
		prev = &recs[len(recs)-1]
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Readers find a block by its bit, and its entry by counting bits.
	left := recs
	err = codec.ReadEntries(ctx, src, int64(d.bitmap), int64(d.bitmapLen), 1, "bitmap", func(i int64, b []byte) error {
		want := byte(0)
		for len(left) > 0 && int64(left[0].block)/8 == i {
			want |= 1 << (left[0].block % 8)
			left = left[1:]
		}
		if b[0] != want {
			return codec.Corruptf("bitmap at %#x: byte %d is %#02x, the index gives %#02x", d.bitmap, i, b[0], want)
		}
		return nil
	})
	return recs, err
}

// check holds the places of index and bitmap against the file, which has a
// header at last, and returns where the records end.
func (d *directory) check(last, blocks int64) (end int64, err error) {
	if int64(d.blocks) != blocks {
		return 0, codec.Corruptf("header: %d blocks at 92, the disk has %d", d.blocks, blocks)
	}
	if d.used > d.blocks {
		return 0, codec.Corruptf("header: %d blocks with data at 136, the disk has %d", d.used, d.blocks)
	}
	type table struct {
		what           string
		off            uint64
		n, seg, segs   uint32
		wantSeg, items int64
	}
	index := table{"index", d.index, d.indexLen, d.indexSeg, d.indexSegs, indexSegment, int64(d.used)}
	bitmap := table{"bitmap", d.bitmap, d.bitmapLen, d.bitmapSeg, d.bitmapSegs, bitmapSegment, blocks}
	for _, t := range []table{index, bitmap} {
		segs := codec.Ceil(t.items, segmentItems)
		if int64(t.seg) != t.wantSeg || int64(t.segs) != segs || int64(t.n) != segs*t.wantSeg {
			return 0, codec.Corruptf("header: %s of %d bytes in %d segments of %d, want %d of %d", t.what, t.n, t.segs, t.seg, segs, t.wantSeg)
		}
		if t.off < page || t.off > uint64(last) || int64(t.n) > last-int64(t.off) {
			return 0, codec.Corruptf("%s at %#x, %d bytes: not between the headers at 0 and %#x", t.what, t.off, t.n, last)
		}
	}
	if bitmap.off < index.off {
		index, bitmap = bitmap, index
	}
	if int64(bitmap.off-index.off) < int64(index.n) {
		return 0, codec.Corruptf("%s at %#x, %d bytes, and %s at %#x share bytes", index.what, index.off, index.n, bitmap.what, bitmap.off)
	}
	return int64(index.off), nil
}

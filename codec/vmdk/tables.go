package vmdk

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"imagefs/codec"
)

// loader makes the table of a disk from a grain directory.
type loader struct {
	src    codec.Source
	h      *header
	size   int64 // of the disk, bytes
	footer int64 // where its marker begins, or -1
	whole  bool  // claim compressed grains whole: a read for each

	dec *decoder // of the table loaded last
}

// load reads the directory at a sector, and all its tables.
func (l *loader) load(ctx context.Context, dir uint64, what string) (*codec.Table, error) {
	if dir == 0 || dir > uint64(l.src.Size())/sector {
		return nil, codec.Corruptf("%s at sector %#x: not inside the file (%d bytes)", what, dir, l.src.Size())
	}
	off := int64(dir) * sector
	var tables []codec.TableAt
	entries := int64(l.h.tableEntries)
	err := codec.ReadEntries(ctx, l.src, off, l.h.tables(), 4, what, func(i int64, b []byte) error {
		e := int64(le.Uint32(b)) * sector
		if e == 0 {
			return nil
		}
		if e > l.src.Size()-l.h.tableLen() {
			return codec.Corruptf("entry %d of the %s: grain table at %#x: past the end of the file (%d bytes)", i, what, e, l.src.Size())
		}
		tables = append(tables, codec.TableAt{Off: e, First: i * entries, N: entries})
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(tables, func(a, b codec.TableAt) int { return cmp.Compare(a.Off, b.Off) })
	for i := 1; i < len(tables); i++ {
		if a, b := tables[i-1], tables[i]; b.Off-a.Off < l.h.tableLen() {
			return nil, codec.Corruptf("entries %d and %d of the %s: the grain tables share the bytes at %#x", a.First/entries, b.First/entries, what, b.Off)
		}
	}

	grain := int64(l.h.grainSize) * sector
	t := codec.NewTable(l.src, l.size, grain, int64(l.h.tableEntries))
	l.dec = &decoder{src: l.src, size: l.size, grain: grain}
	t.Decode = l.dec.decode
	if err := l.claim(t, off, what); err != nil {
		return nil, err
	}
	err = codec.ReadTables(ctx, l.src, tables, 4, "grain tables", func(a codec.TableAt, b []byte) error { return l.set(ctx, t, a, b) })
	if err != nil {
		return nil, err
	}
	if err := t.Seal(); err != nil {
		return nil, err
	}
	return t, nil
}

func (l *loader) claim(t *codec.Table, dir int64, what string) error {
	if err := t.Claim(0, sector, "header"); err != nil {
		return err
	}
	if err := t.Claim(int64(l.h.descriptorOffset)*sector, int64(l.h.descriptorSize)*sector, "descriptor"); err != nil {
		return err
	}
	if err := t.Claim(dir, 4*l.h.tables(), what); err != nil {
		return err
	}
	if l.footer < 0 {
		return nil
	}
	return t.Claim(l.footer, 2*sector, "footer")
}

var noGrains [4 * maxTable]byte

// set puts the entries of one grain table.
func (l *loader) set(ctx context.Context, t *codec.Table, a codec.TableAt, b []byte) error {
	if err := t.Claim(a.Off, int64(len(b)), "grain table"); err != nil {
		return err
	}
	if bytes.Equal(b, noGrains[:len(b)]) {
		return nil
	}
	for i := a.First; len(b) > 0 && i < t.Blocks(); i, b = i+1, b[4:] {
		e := int64(le.Uint32(b))
		if e == 0 || e == 1 && l.h.flags&flagZeroGrain != 0 {
			continue
		}
		if err := l.setGrain(ctx, t, i, e); err != nil {
			return fmt.Errorf("grain table at %#x, entry %d: %w", a.Off, i-a.First, err)
		}
	}
	return nil
}

func (l *loader) setGrain(ctx context.Context, t *codec.Table, i, e int64) error {
	if !l.h.compressed() {
		return t.Set(i, e*sector)
	}
	if e*sector >= l.src.Size() {
		return codec.Corruptf("grain %d at %#x: past the end of the file (%d bytes)", i, e*sector, l.src.Size())
	}
	// How long a record is stands in it, and is checked when it is read.
	n := min(sector, l.src.Size()-e*sector)
	if l.whole && n >= recordHead {
		b := make([]byte, recordHead)
		if err := codec.ReadFull(ctx, l.src, b, e*sector, "grain"); err != nil {
			return err
		}
		if data := int64(le.Uint32(b[8:])); data <= 2*int64(l.h.grainSize)*sector { // else it is not decoded
			n = min(codec.Up(recordHead+data, sector), l.src.Size()-e*sector)
		}
	}
	return t.SetEncoded(i, record(i, e), e*sector, n)
}

// record packs what a grain is decoded by: its index, which the record has to
// repeat, and its sector in the file.
func record(i, e int64) codec.Entry { return codec.Entry(i<<32 | e) }

func unpack(e codec.Entry) (i, at int64) {
	return int64(e &^ codec.Encoded >> 32), int64(e&(1<<32-1)) * sector
}

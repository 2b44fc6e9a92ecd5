package vdi

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// Format is the VDI format.
var Format codec.Format = format{}

type format struct{}

func (format) Name() string { return "vdi" }

func (format) Probe(head, _ []byte) bool { return hasSignature(head) }

// entriesPerPage makes 512 MiB of guest, where blocks are 1 MiB, cost 4 KiB
// once any of it is allocated.
const entriesPerPage = 512

// Open reads the header and the block map. The disk has the exact size of the
// header, which writers exist that do not round to a sector.
func (format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	t, err := open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open vdi: %w", err)
	}
	return t, nil
}

func open(ctx context.Context, src codec.Source) (*codec.Table, error) {
	b := make([]byte, min(headLen, src.Size()))
	if err := codec.ReadFull(ctx, src, b, 0, "header"); err != nil {
		return nil, err
	}
	if !hasSignature(b) {
		return nil, fmt.Errorf("%w: no VDI signature at 64", codec.ErrFormat)
	}
	if len(b) < headLen {
		return nil, codec.Corruptf("header of %d bytes: the file ends after %d", headLen, len(b))
	}
	h := parse(b)
	if err := h.check(); err != nil {
		return nil, err
	}

	t := codec.NewTable(src, int64(h.disk), int64(h.block), entriesPerPage)
	if err := claim(t, h); err != nil {
		return nil, err
	}
	// Some tools cut the last block in the file where its data end.
	t.ShortTail = true
	// Entries behind the disk's end mean nothing.
	err := codec.ReadEntries(ctx, src, int64(h.offBlocks), t.Blocks(), 4, "block map", func(i int64, b []byte) error {
		e := le.Uint32(b)
		if e == entryNone || e == entryZero {
			return nil
		}
		return t.Set(i, int64(h.offData)+int64(e)*int64(h.block))
	})
	if err != nil {
		return nil, err
	}
	if err := t.Seal(); err != nil {
		return nil, err
	}
	return t, nil
}

func claim(t *codec.Table, h header) error {
	if err := t.Claim(0, max(headLen, preLen+int64(h.size)), "header"); err != nil {
		return err
	}
	return t.Claim(int64(h.offBlocks), int64(h.entries)*4, "block map")
}

package qcow1

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// Format is the qcow1 format, which is only read.
var Format codec.Format = format{"qcow1"}

type format struct{ codec.ReadOnly }

func (format) Probe(head, _ []byte) bool {
	return len(head) >= 8 && string(head[:4]) == magic && be.Uint32(head[4:]) == 1
}

// Open reads the header, the L1 table and the L2 tables.
func (f format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	t, err := f.open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open qcow1: %w", err)
	}
	return t, nil
}

func (f format) open(ctx context.Context, src codec.Source) (*codec.Table, error) {
	b := make([]byte, min(headLen, src.Size()))
	if err := codec.ReadFull(ctx, src, b, 0, "header"); err != nil {
		return nil, err
	}
	if !f.Probe(b, nil) {
		return nil, fmt.Errorf("%w: no magic of qcow version 1 at 0", codec.ErrFormat)
	}
	if len(b) < headLen {
		return nil, codec.Corruptf("header of %d bytes: the file ends after %d", headLen, len(b))
	}
	h := parse(b)
	if err := h.check(); err != nil {
		return nil, err
	}
	return readTables(ctx, src, &h)
}

func readTables(ctx context.Context, src codec.Source, h *header) (*codec.Table, error) {
	l1, n := int64(h.l1Off), codec.Ceil(h.clusters(), h.perL2())
	if l1 > src.Size() || n > (src.Size()-l1)/8 { // before anything is allocated for it
		return nil, codec.Corruptf("L1 table at %#x, %d entries: past the end of the file (%d bytes)", l1, n, src.Size())
	}
	t := codec.NewTable(src, int64(h.size), h.cluster(), h.perL2())
	t.Decode = (&decoder{src: src, h: h}).decode
	if err := t.Claim(0, headLen, "header"); err != nil {
		return nil, err
	}
	if err := t.Claim(l1, 8*n, "L1 table"); err != nil {
		return nil, err
	}
	var tables []codec.TableAt
	err := codec.ReadEntries(ctx, src, l1, n, 8, "L1 table", func(i int64, b []byte) error {
		e := be.Uint64(b)
		if e == 0 {
			return nil
		}
		if e > codec.MaxSize {
			return codec.Corruptf("L1 entry %d: L2 table at %#x: past the end of the file (%d bytes)", i, e, src.Size())
		}
		if err := t.Claim(int64(e), 8*h.perL2(), "L2 table"); err != nil {
			return fmt.Errorf("L1 entry %d: %w", i, err)
		}
		first := i * h.perL2()
		tables = append(tables, codec.TableAt{Off: int64(e), First: first, N: min(h.perL2(), h.clusters()-first)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = codec.ReadTables(ctx, src, tables, 8, "L2 tables", func(r codec.TableAt, b []byte) error {
		for i := r.First; len(b) > 0; i, b = i+1, b[8:] {
			if e := be.Uint64(b); e != 0 {
				if err := setCluster(t, h, i, e); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, t.Seal()
}

// setCluster puts guest cluster i of the L2 entry e.
func setCluster(t *codec.Table, h *header, i int64, e uint64) error {
	if e&compressed != 0 {
		off, n := h.unpack(e)
		if n == 0 || off == 0 {
			return codec.Corruptf("L2 entry %#x of cluster %d: compressed, %d bytes at %#x", e, i, n, off)
		}
		return t.SetEncoded(i, codec.Entry(e), off, n)
	}
	if e%sector != 0 || e > codec.MaxSize {
		return codec.Corruptf("L2 entry %#x of cluster %d: not a multiple of %d inside the file", e, i, sector)
	}
	return t.Set(i, int64(e))
}

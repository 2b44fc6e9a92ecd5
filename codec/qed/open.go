package qed

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// Format is the QED format, which is only read.
var Format codec.Format = format{"qed"}

type format struct{ codec.ReadOnly }

func (format) Probe(head, _ []byte) bool { return len(head) >= 4 && string(head[:4]) == magic }

// disk is the table with remarks.
type disk struct {
	*codec.Table
	notes []string
}

var _ codec.Noted = (*disk)(nil)

// Notes implements [codec.Noted].
func (d *disk) Notes() []string { return d.notes }

// Open reads the header, the L1 table and the L2 tables. An image that was not
// closed cleanly is read: what QEMU would check then is checked always.
func (f format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	d, err := f.open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open qed: %w", err)
	}
	return d, nil
}

func (f format) open(ctx context.Context, src codec.Source) (*disk, error) {
	b := make([]byte, min(headLen, src.Size()))
	if err := codec.ReadFull(ctx, src, b, 0, "header"); err != nil {
		return nil, err
	}
	if !f.Probe(b, nil) {
		return nil, fmt.Errorf("%w: no QED magic at 0", codec.ErrFormat)
	}
	if len(b) < headLen {
		return nil, codec.Corruptf("header of %d bytes: the file ends after %d", headLen, len(b))
	}
	h := parse(b)
	if err := h.check(); err != nil {
		return nil, err
	}
	t, err := readTables(ctx, src, &h)
	if err != nil {
		return nil, err
	}
	d := &disk{Table: t}
	if h.features&featureNeedCheck != 0 {
		d.notes = append(d.notes, "the image was not closed cleanly by its writer")
	}
	return d, nil
}

func readTables(ctx context.Context, src codec.Source, h *header) (*codec.Table, error) {
	l1, n := int64(h.l1Off), codec.Ceil(h.clusters(), h.entries())
	if l1 > src.Size() || h.tableLen() > src.Size()-l1 { // before anything is allocated for it
		return nil, codec.Corruptf("L1 table at %#x, %d bytes: past the end of the file (%d bytes)", l1, h.tableLen(), src.Size())
	}
	t := codec.NewTable(src, int64(h.size), int64(h.cluster), h.entries())
	if err := t.Claim(0, int64(h.header)*int64(h.cluster), "header"); err != nil {
		return nil, err
	}
	if err := t.Claim(l1, h.tableLen(), "L1 table"); err != nil {
		return nil, err
	}
	var tables []codec.TableAt
	err := codec.ReadEntries(ctx, src, l1, n, 8, "L1 table", func(i int64, b []byte) error {
		e := le.Uint64(b)
		if e == 0 {
			return nil
		}
		off, err := h.place(e)
		if err != nil {
			return fmt.Errorf("L1 entry %d: %w", i, err)
		}
		if err := t.Claim(off, h.tableLen(), "L2 table"); err != nil {
			return fmt.Errorf("L1 entry %d: %w", i, err)
		}
		first := i * h.entries()
		tables = append(tables, codec.TableAt{Off: off, First: first, N: min(h.entries(), h.clusters()-first)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = codec.ReadTables(ctx, src, tables, 8, "L2 tables", func(r codec.TableAt, b []byte) error {
		for i := r.First; len(b) > 0; i, b = i+1, b[8:] {
			e := le.Uint64(b)
			if e == 0 || e == entryZero {
				continue
			}
			off, err := h.place(e)
			if err == nil {
				err = t.Set(i, off)
			}
			if err != nil {
				return fmt.Errorf("L2 entry of cluster %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, t.Seal()
}

// place is entry e as the place of a table or cluster.
func (h *header) place(e uint64) (int64, error) {
	if e%uint64(h.cluster) != 0 || e > codec.MaxSize {
		return 0, codec.Corruptf("%#x is not a multiple of the cluster size %d inside the file", e, h.cluster)
	}
	return int64(e), nil
}

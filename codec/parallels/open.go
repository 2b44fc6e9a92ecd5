package parallels

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// Format is the Parallels format, which is only read.
var Format codec.Format = format{"parallels"}

type format struct{ codec.ReadOnly }

func (format) Probe(head, _ []byte) bool { return hasMagic(head) }

const (
	// entriesPerPage makes 512 MiB of guest, where clusters are 1 MiB, cost
	// 4 KiB once any of it is allocated.
	entriesPerPage = 512
	// maxParts bounds the parts of allocated clusters whose size is no power
	// of two: 128 MiB of memory. Parts are 4 KiB and more in images of such
	// clusters that are known.
	maxParts = 1 << 24
)

// disk is the table with remarks.
type disk struct {
	*codec.Table
	notes []string
}

var _ codec.Noted = (*disk)(nil)

// Notes implements [codec.Noted].
func (d *disk) Notes() []string { return d.notes }

// Open reads the header and the BAT.
func (format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	d, err := open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open parallels: %w", err)
	}
	return d, nil
}

func open(ctx context.Context, src codec.Source) (*disk, error) {
	b := make([]byte, min(headLen, src.Size()))
	if err := codec.ReadFull(ctx, src, b, 0, "header"); err != nil {
		return nil, err
	}
	if !hasMagic(b) {
		return nil, fmt.Errorf("%w: no Parallels magic and version at 0", codec.ErrFormat)
	}
	if len(b) < headLen {
		return nil, codec.Corruptf("header of %d bytes: the file ends after %d", headLen, len(b))
	}
	h := parse(b)
	if err := h.check(); err != nil {
		return nil, err
	}
	d := new(disk)
	if h.inUse == inUse {
		d.notes = append(d.notes, "the image was not closed cleanly by its writer")
	}
	var err error
	d.Table, err = readTable(ctx, src, &h)
	return d, err
}

func readTable(ctx context.Context, src codec.Source, h *header) (*codec.Table, error) {
	table := 4 * int64(h.entries)
	if table > src.Size()-headLen { // before anything is allocated for it
		return nil, codec.Corruptf("BAT at %#x, %d entries: past the end of the file (%d bytes)", headLen, h.entries, src.Size())
	}
	// A table wants a power of two: the largest that makes up a cluster.
	part := h.clusterLen() & -h.clusterLen()
	c := clusters{h: h, parts: h.clusterLen() / part}
	c.t = codec.NewTable(src, int64(h.sectors)*sector, part, entriesPerPage)
	if err := c.t.Claim(0, headLen+table, "header and BAT"); err != nil {
		return nil, err
	}
	if h.extension != 0 {
		if err := readExtension(ctx, src, h, c.t); err != nil {
			return nil, err
		}
	}
	// Entries behind the disk's end mean nothing.
	err := codec.ReadEntries(ctx, src, headLen, h.clusters(), 4, "BAT", func(i int64, b []byte) error {
		if e := le.Uint32(b); e != 0 {
			return c.set(i, e)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.t, c.t.Seal()
}

func readExtension(ctx context.Context, src codec.Source, h *header, t *codec.Table) error {
	if h.extension > uint64(src.Size())/sector {
		return codec.Corruptf("format extension at sector %#x: past the end of the file (%d bytes)", h.extension, src.Size())
	}
	off := int64(h.extension) * sector
	if err := t.Claim(off, h.clusterLen(), "format extension"); err != nil {
		return err
	}
	b := make([]byte, min(h.clusterLen(), maxExtension))
	if err := codec.ReadFull(ctx, src, b, off, "format extension"); err != nil {
		return err
	}
	return checkExtension(b)
}

// clusters puts clusters into a table as so many parts each.
type clusters struct {
	h     *header
	t     *codec.Table
	parts int64
	used  int64 // parts that are allocated
}

// set puts guest cluster i of the BAT entry e.
func (c *clusters) set(i int64, e uint32) error {
	off := c.h.place(e)
	if c.used += c.parts; c.parts > 1 && c.used > maxParts {
		return codec.Unsupportedf("Parallels clusters of %d sectors, no power of two, in %d parts and more; convert it with qemu-img convert", c.h.cluster, c.used)
	}
	first := i * c.parts
	for k := range min(c.parts, c.t.Blocks()-first) {
		if err := c.t.Set(first+k, off+k*c.t.Block()); err != nil {
			return fmt.Errorf("cluster %d, BAT entry %#x: %w", i, e, err)
		}
	}
	return nil
}

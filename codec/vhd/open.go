package vhd

import (
	"context"
	"errors"
	"fmt"

	"imagefs/codec"
)

// Format is the VHD format.
var Format codec.Format = format{}

type format struct{}

func (format) Name() string { return "vhd" }

func (format) Probe(head, tail []byte) bool {
	_, ok := footerIn(tail)
	return ok || hasCookie(head)
}

func hasCookie(b []byte) bool { return len(b) >= len(cookie) && string(b[:len(cookie)]) == cookie }

// footerIn is the length of the footer that the end of a file holds: 512, or
// 511 where its last byte is missing.
func footerIn(tail []byte) (n int, ok bool) {
	for n = footerLen; n >= footerLen-1; n-- {
		if len(tail) >= n && hasCookie(tail[len(tail)-n:]) {
			return n, true
		}
	}
	return 0, false
}

// entriesPerPage makes 1 GiB of guest, where blocks are 2 MiB, cost 4 KiB once
// any of it is allocated.
const entriesPerPage = 512

// Open reads the footer, and of a dynamic disk its header and BAT. The bitmaps
// are read with the blocks they belong to, since they stand between them.
func (format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	d, err := open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open vhd: %w", err)
	}
	return d, nil
}

func open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	e, err := readEnds(ctx, src)
	if err != nil {
		return nil, err
	}
	f, notes, err := e.choose()
	if err != nil {
		return nil, err
	}
	if f.saved != 0 {
		notes = append(notes, "a suspended guest's saved state belongs to this disk and is not carried over: the guest did not shut down")
	}
	doubt := e.doubt()
	if f.kind == typeFixed {
		if have := e.tailOff; int64(f.size) > have {
			return nil, codec.Corruptf("VHD current size at 48 of the footer is %d, but only %d bytes precede the footer: truncated", f.size, have)
		}
		return &fixed{src: src, size: int64(f.size), notes: notes, doubt: doubt}, nil
	}
	d, err := openDynamic(ctx, src, f, e, notes)
	if err != nil {
		return nil, err
	}
	d.doubt = doubt
	return d, nil
}

// ends are the places of a file where a footer may be.
type ends struct {
	head    []byte // of the file, footerLen bytes
	tail    []byte // the footer at the end, footerLen bytes; nil for none
	tailOff int64  // where it begins; the end of the file for none
	size    int64  // of the file
}

func readEnds(ctx context.Context, src codec.Source) (e ends, err error) {
	e.size = src.Size()
	e.tailOff = e.size
	e.head = make([]byte, min(footerLen, e.size))
	if err := codec.ReadFull(ctx, src, e.head, 0, "copy of the footer"); err != nil {
		return e, err
	}
	if len(e.head) < footerLen {
		if hasCookie(e.head) {
			return e, codec.Corruptf("VHD footer of %d bytes: the file has %d", footerLen, e.size)
		}
		return e, fmt.Errorf("%w: no VHD footer", codec.ErrFormat)
	}
	tail := make([]byte, footerLen)
	if err := codec.ReadFull(ctx, src, tail, e.size-footerLen, "footer"); err != nil {
		return e, err
	}
	if n, ok := footerIn(tail); ok {
		e.tailOff = e.size - int64(n)
		e.tail = make([]byte, footerLen)
		copy(e.tail, tail[footerLen-n:])
	} else if !hasCookie(e.head) {
		return e, fmt.Errorf("%w: no VHD footer at the end nor at the start", codec.ErrFormat)
	}
	return e, nil
}

// doubt is the first of the sound footers': some readers look at the one at the
// end, others at the one at the start.
func (e *ends) doubt() error {
	for _, b := range [][]byte{e.tail, e.head} {
		if !hasCookie(b) {
			continue
		}
		if f, err := parseFooter(b, 0); err == nil && f.doubt() != nil {
			return f.doubt()
		}
	}
	return nil
}

// choose takes the footer at the end, or of a dynamic disk the copy at 0 where
// that is missing or damaged. Two that are sound and disagree on the content
// are refused: one reader would check the one, another use the other.
func (e *ends) choose() (f footer, notes []string, err error) {
	copied := hasCookie(e.head)
	if e.tail == nil {
		if f, err = parseFooter(e.head, 0); err != nil {
			return f, nil, err
		}
		if err := f.check(); err != nil {
			return f, nil, err
		}
		if f.kind == typeFixed {
			return f, nil, codec.Corruptf("VHD footer of a fixed disk at 0 and none at the end of the file (%d bytes): truncated", e.size)
		}
		return f, []string{"the footer at the end is missing: its copy at the start is used"}, nil
	}
	f, err = parseFooter(e.tail, e.tailOff)
	if err != nil {
		// The start of a fixed disk is the guest's: it must not become
		// the footer because the real one is damaged.
		if be.Uint32(e.tail[60:]) == typeFixed || !copied {
			return f, nil, err
		}
		c, cerr := parseFooter(e.head, 0)
		if cerr != nil || c.kind == typeFixed {
			return f, nil, err
		}
		e.tail, e.tailOff = nil, e.size
		return c, []string{"the footer at the end is damaged: its copy at the start is used"}, c.check()
	}
	if err := f.check(); err != nil {
		return f, nil, err
	}
	if f.kind == typeFixed {
		if copied && e.tailOff > 0 {
			return f, nil, codec.Unsupportedf("fixed VHD that begins with another VHD footer: readers disagree on which counts")
		}
		return f, nil, nil
	}
	if !copied {
		return f, []string{"the copy of the footer at the start is missing"}, nil
	}
	c, err := parseFooter(e.head, 0)
	if err != nil {
		return f, []string{"the copy of the footer at the start is damaged"}, nil
	}
	if c.kind != f.kind || c.size != f.size || c.dataOffset != f.dataOffset {
		return f, nil, codec.Corruptf("VHD footer at %#x and its copy at 0 disagree: type %d and %d, current size %d and %d, data offset %#x and %#x",
			e.tailOff, f.kind, c.kind, f.size, c.size, f.dataOffset, c.dataOffset)
	}
	return f, nil, nil
}

func openDynamic(ctx context.Context, src codec.Source, f footer, e ends, notes []string) (*dynamic, error) {
	b := make([]byte, headerLen)
	at := int64(min(f.dataOffset, codec.MaxSize))
	err := codec.ReadFull(ctx, src, b, at, "dynamic header")
	if f.kind == typeDiff {
		if err != nil && !errors.Is(err, codec.ErrCorrupt) {
			return nil, err
		}
		return nil, codec.Unsupportedf("VHD differencing disk (type 4), its parent is %q; merge it into its parent with Merge-VHD, or flatten it with VBoxManage clonemedium", parentName(b))
	}
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(b, at)
	if err != nil {
		return nil, err
	}
	block := int64(h.block)
	if f.size > uint64(h.entries)*uint64(h.block) {
		return nil, codec.Corruptf("VHD current size at 48 of the footer is %d: more than its %d blocks of %d bytes", f.size, h.entries, h.block)
	}
	t := codec.NewTable(src, int64(f.size), block, entriesPerPage)
	table := int64(min(h.tableOffset, codec.MaxSize))
	for _, c := range []struct {
		off, n int64
		what   string
	}{
		{0, footerLen, "copy of the footer"},
		{at, headerLen, "dynamic header"},
		{table, int64(h.entries) * 4, "block allocation table"},
		{e.tailOff, e.size - e.tailOff, "footer"},
	} {
		if err := t.Claim(c.off, c.n, c.what); err != nil {
			return nil, err
		}
	}
	bitmap := bitmapLen(block)
	// Entries behind the disk's end mean nothing.
	err = codec.ReadEntries(ctx, src, table, t.Blocks(), 4, "block allocation table", func(i int64, b []byte) error {
		v := be.Uint32(b)
		if v == entryNone {
			return nil
		}
		off := int64(v) * sector
		if end := off + bitmap + block; end > e.size {
			return codec.Corruptf("VHD block %d at %#x: ends at %#x, past the end of the file (%d bytes)", i, off, end, e.size)
		}
		if err := t.Claim(off, bitmap, "bitmap of a block"); err != nil {
			return err
		}
		return t.Set(i, off+bitmap)
	})
	if err != nil {
		return nil, err
	}
	if err := t.Seal(); err != nil {
		return nil, err
	}
	return newDynamic(t, src, notes), nil
}

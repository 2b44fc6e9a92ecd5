package zvhd

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// Format is ZVHD, Format2 is ZVHD2, laid out with zstd.
var (
	Format  codec.Format = format{layout{name: "zvhd", cookie: cookie1, shape: stored, once: true}}
	Format2 codec.Format = format{layout{name: "zvhd2", cookie: cookie2, shape: framed, method: methodZstd}}
)

type format struct{ layout }

func (f format) Probe(head, _ []byte) bool {
	return len(head) >= cookieLen && string(head[:cookieLen]) == f.cookie
}

// Open reads the headers, and the index of a ZVHD2. A ZVHD has none: a read for
// each of its records finds them.
func (f format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	d, err := f.open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f.name, err)
	}
	switch dec := d.dec.(type) {
	case *stream:
		return &streamDisk{d, dec}, nil
	case *single:
		if dec.method == methodZstd {
			return &frameDisk{d, dec}, nil
		}
	}
	return d, nil
}

func (f format) open(ctx context.Context, src codec.Source) (*disk, error) {
	h, notes, err := f.readHeader(ctx, src)
	if err != nil {
		return nil, err
	}
	size, err := h.size()
	if err != nil {
		return nil, err
	}
	d := &disk{reader: reader{src: src}, size: size, notes: notes}
	blocks := codec.Ceil(size, blockSize)
	if f.cookie == cookie2 {
		d.recs, err = readIndex(ctx, src, &h.two, blocks)
		d.dec = &single{&d.reader, h.two.method}
	} else {
		d.recs, err = walk(ctx, src, blocks, src.Size()-page)
		d.dec = newStream(&d.reader)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// readHeader reads the headers at both ends. That at the start counts of a ZVHD,
// and that at the end of a ZVHD2, which knows the places of the tables.
func (f format) readHeader(ctx context.Context, src codec.Source) (h header, notes []string, err error) {
	size := src.Size()
	first := make([]byte, min(headerLen, size))
	if err := codec.ReadFull(ctx, src, first, 0, "header"); err != nil {
		return h, nil, err
	}
	if !f.Probe(first, nil) {
		return h, nil, fmt.Errorf("%w: no cookie %q at 0", codec.ErrFormat, f.cookie)
	}
	if size < 2*page || size%page != 0 {
		return h, nil, codec.Corruptf("the file has %d bytes, want a multiple of %d, and two at least: truncated", size, page)
	}
	last := make([]byte, headerLen)
	if err := codec.ReadFull(ctx, src, last, size-page, "header at the end"); err != nil {
		return h, nil, err
	}
	if !f.Probe(last, nil) {
		return h, nil, codec.Corruptf("no header in the last %d bytes, at %#x: truncated", page, size-page)
	}
	at, spare := int64(0), size-page
	if f.cookie == cookie2 {
		first, last, at, spare = last, first, spare, at
	}
	if h, err = parseHeader(first, at); err != nil {
		return h, nil, err
	}
	if err := h.check(); err != nil {
		return h, nil, err
	}
	if h.saved != 0 {
		notes = append(notes, "a suspended guest's saved state belongs to this disk and is not carried over: the guest did not shut down")
	}
	s, err := parseHeader(last, spare)
	if err != nil {
		return h, append(notes, fmt.Sprintf("the copy of the header at %#x is damaged", spare)), nil
	}
	if s.original != h.original || s.current != h.current {
		return h, nil, codec.Corruptf("headers at %#x and %#x disagree: original size %d and %d, current size %d and %d",
			at, spare, h.original, s.original, h.current, s.current)
	}
	return h, notes, nil
}

package qcow2

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"imagefs/codec"
)

// Bits of L1 and L2 entries. Section Cluster mapping table.
const (
	entryCopied     = 1 << 63 // the refcount is exactly one: for writers
	entryCompressed = 1 << 62
	entryZero       = 1 << 0
	entryOffset     = 1<<56 - 1<<9 // bits 9-55
)

// disk is an opened image.
type disk struct {
	*codec.Table
	h     *header
	dec   *decoder
	notes []string
}

var (
	_ codec.Streamed = (*disk)(nil)
	_ codec.Noted    = (*disk)(nil)
)

// Notes implements [codec.Noted].
func (d *disk) Notes() []string { return d.notes }

// Encoding implements [codec.Streamed].
func (d *disk) Encoding() string {
	if d.h.zstd {
		return codec.Zstd
	}
	return codec.Deflate
}

// StreamAt implements [codec.Streamed].
func (d *disk) StreamAt(i int64) (off int64, ok bool) {
	e, ok := d.EncodedAt(i)
	if ok {
		off, _ = d.h.compressedRange(uint64(e))
	}
	return off, ok
}

// Measure implements [codec.Streamed].
func (d *disk) Measure(ctx context.Context, i int64, dst []byte) (int64, error) {
	e, ok := d.EncodedAt(i)
	if !ok {
		return 0, fmt.Errorf("cluster %d is not compressed", i)
	}
	return d.dec.measure(ctx, e, dst)
}

// Open reads an image's header, L1 and L2 tables. The active state is read;
// refcounts, snapshots and bitmaps are left alone, so that a dirty image, whose
// refcounts may be stale, is as good as a clean one.
func (format) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	head, err := readHead(ctx, src, codec.HeadLen)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(head)
	if err != nil {
		return nil, err
	}
	// Extensions may reach to the end of the first cluster.
	if c := h.cluster(); c > int64(len(head)) && src.Size() > int64(len(head)) {
		if head, err = readHead(ctx, src, c); err != nil {
			return nil, err
		}
	}
	if err := h.checkExtensions(head); err != nil {
		return nil, err
	}
	d := &disk{h: h, dec: newDecoder(src, h)}
	if h.snapshots > 0 {
		d.notes = append(d.notes, fmt.Sprintf("%d internal snapshots are not carried over, only the active state is", h.snapshots))
	}
	if d.Table, err = readTables(ctx, src, h, d.dec); err != nil {
		return nil, err
	}
	return d, nil
}

// readHead reads the first n bytes of src, or all of a smaller one.
func readHead(ctx context.Context, src codec.Source, n int64) ([]byte, error) {
	b := make([]byte, min(n, src.Size()))
	return b, codec.ReadFull(ctx, src, b, 0, "header")
}

// l1Piece is how much of an L1 table one call reads.
const l1Piece = 1 << 20

// readTables makes a table of the image.
func readTables(ctx context.Context, src codec.Source, h *header, dec *decoder) (*codec.Table, error) {
	n := 8 * h.l2Tables()
	if h.l1Off > src.Size() || n > src.Size()-h.l1Off { // before anything is allocated for it
		return nil, codec.Corruptf("l1 table at %#x, %d bytes: past the end of the file (%d bytes)", h.l1Off, n, src.Size())
	}
	t := codec.NewTable(src, h.size, h.cluster(), h.perL2())
	t.ShortTail = true
	t.Decode = dec.decode
	if err := t.Claim(0, min(h.cluster(), src.Size()), "header"); err != nil {
		return nil, err
	}
	if err := t.Claim(h.l1Off, n, "l1 table"); err != nil {
		return nil, err
	}
	refs, err := readL1(ctx, src, h)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(refs, func(a, b codec.TableAt) int { return cmp.Compare(a.Off, b.Off) })
	for i, r := range refs {
		// Seal would tell too, but only after reading a table many times.
		if i > 0 && refs[i-1].Off == r.Off {
			return nil, codec.Corruptf("l1 entries %d and %d: the same l2 table at %#x", refs[i-1].First/h.perL2(), r.First/h.perL2(), r.Off)
		}
		if err := t.Claim(r.Off, h.cluster(), "l2 table"); err != nil {
			return nil, err
		}
	}
	p := parser{h, t, src.Size()}
	if err := codec.ReadTables(ctx, src, refs, int(h.l2Entry()), "l2 tables", p.l2); err != nil {
		return nil, err
	}
	return t, t.Seal()
}

// readL1 reads the L1 entries that the disk needs.
func readL1(ctx context.Context, src codec.Source, h *header) ([]codec.TableAt, error) {
	var refs []codec.TableAt
	n := h.l2Tables() * 8
	buf := make([]byte, min(n, l1Piece))
	for at := int64(0); at < n; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), n-at)]
		if err := codec.ReadFull(ctx, src, buf, h.l1Off+at, "l1 table"); err != nil {
			return nil, err
		}
		for j := 0; j < len(buf); j += 8 {
			e := be64(buf[j:])
			if e == 0 {
				continue
			}
			i, off := (at+int64(j))/8, int64(e&entryOffset)
			switch {
			case e&^(entryOffset|entryCopied) != 0:
				return nil, codec.Corruptf("l1 entry %d at %#x: %#x has reserved bits", i, h.l1Off+at+int64(j), e)
			case off == 0:
				continue
			case off&(h.cluster()-1) != 0:
				return nil, codec.Corruptf("l1 entry %d at %#x: l2 table at %#x, not on a cluster", i, h.l1Off+at+int64(j), off)
			}
			first := i * h.perL2()
			refs = append(refs, codec.TableAt{Off: off, First: first, N: min(h.perL2(), codec.Ceil(h.size, h.cluster())-first)})
		}
	}
	return refs, nil
}

// parser puts L2 entries into a table.
type parser struct {
	h    *header
	t    *codec.Table
	size int64 // of the file
}

// l2 parses the part b of an L2 table that stands at r.
func (p *parser) l2(r codec.TableAt, b []byte) error {
	step := int(p.h.l2Entry())
	i := r.First
	for at := 0; at < len(b); at, i = at+step, i+1 {
		e, bitmap := be64(b[at:]), uint64(0)
		if p.h.extL2 {
			bitmap = be64(b[at+8:])
		}
		if e == 0 && bitmap == 0 {
			continue
		}
		if err := p.entry(i, e, bitmap); err != nil {
			return fmt.Errorf("l2 entry %#x at %#x of guest cluster %d: %w", e, r.Off+int64(at), i, err)
		}
	}
	return nil
}

// entry sets guest cluster i from its L2 entry.
func (p *parser) entry(i int64, e, bitmap uint64) error {
	if e&entryCompressed != 0 {
		return p.compressed(i, e, bitmap)
	}
	reserved := ^uint64(entryOffset | entryCopied)
	if p.h.version >= 3 && !p.h.extL2 {
		reserved &^= entryZero
	}
	off := int64(e & entryOffset)
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	switch {
	case e&reserved != 0:
		return codec.Corruptf("reserved bits are set")
	case alloc&zero != 0:
		return codec.Corruptf("bitmap %#x: subclusters both allocated and zero", bitmap)
	case off == 0 && alloc != 0:
		return codec.Corruptf("bitmap %#x: subclusters allocated in no cluster", bitmap)
	case off == 0:
		return nil
	case off&(p.h.cluster()-1) != 0:
		return codec.Corruptf("not on a cluster of %d bytes", p.h.cluster())
	case e&entryZero != 0, p.h.extL2 && alloc == 0:
		// Preallocated but reads as zeros; only its place is taken.
		if off < p.size {
			return p.t.Claim(off, min(p.h.cluster(), p.size-off), "preallocated cluster")
		}
		return nil
	}
	if err := p.t.Set(i, off); err != nil {
		return err
	}
	if p.h.extL2 && alloc != 1<<32-1 {
		p.t.SetMask(i, ^alloc)
	}
	return nil
}

// compressed sets a guest cluster that is stored compressed.
func (p *parser) compressed(i int64, e, bitmap uint64) error {
	off, bound := p.h.compressedRange(e)
	switch {
	case e&entryCopied != 0:
		return codec.Corruptf("bit 63 of a compressed cluster is set")
	case bitmap != 0:
		return codec.Corruptf("bitmap %#x of a compressed cluster", bitmap)
	case off <= 0 || off >= p.size:
		return codec.Corruptf("compressed cluster at %#x: past the end of the file (%d bytes)", off, p.size)
	}
	// The true length is only in the data. It touches its last sector; one
	// sector less is claimed, for writers that count one too many.
	sure := min(max(bound-1024+1, 1), p.size-off)
	return p.t.SetEncoded(i, codec.Entry(e&^entryCompressed), off, sure)
}

// compressedRange is where the data of a compressed entry begin, and how many
// bytes they have at most: they end in the last of its 512-byte sectors.
func (h *header) compressedRange(e uint64) (off, bound int64) {
	x := 62 - (h.clusterBits - 8)
	off = int64(e & (1<<x - 1))
	more := int64(e &^ (entryCopied | entryCompressed) >> x)
	return off, (more+1)*512 - off%512
}

package vmdk

import (
	"context"
	"fmt"
	"iter"

	"imagefs/codec"
)

// Sizes of what is laid out.
const (
	grainSectors = 128
	grainLen     = grainSectors * sector
	tableGrains  = 512 // entries of a table
	tableSectors = tableGrains * 4 / sector
	groupLen     = tableGrains * grainLen // guest bytes of one table
	maxDisk      = maxGrains * grainLen
)

// Sparse lays out a monolithicSparse image, which [Format] reads.
var Sparse codec.View = sparse{}

type sparse struct{}

func (sparse) Name() string { return "sparse.vmdk" }

// plan is what the two layouts share.
type plan struct {
	sectors int64      // of the guest, rounded up
	grains  *codec.Map // in grains
	groups  *codec.Map // in grain tables: which have a grain
	dir     int64      // sectors of a grain directory
}

func newPlan(ctx context.Context, d codec.Disk) (*plan, error) {
	if d.Size() > maxDisk {
		return nil, fmt.Errorf("%w: vmdk holds at most %d bytes here, the disk has %d", codec.ErrTooLarge, int64(maxDisk), d.Size())
	}
	m, err := codec.NewMap(ctx, d, grainLen)
	if err != nil {
		return nil, fmt.Errorf("map the disk in vmdk grains: %w", err)
	}
	g, err := codec.NewMap(ctx, codec.Mapped(d, m), groupLen)
	if err != nil {
		return nil, fmt.Errorf("map the disk in vmdk grain tables: %w", err)
	}
	return &plan{
		sectors: codec.Ceil(d.Size(), sector),
		grains:  m,
		groups:  g,
		dir:     codec.Ceil(4*g.Blocks(), sector),
	}, nil
}

// tooLarge says that grains would lie where a table entry cannot point.
func tooLarge(end int64) error {
	if end < maxSectors {
		return nil
	}
	return fmt.Errorf("%w: the file would have %d sectors, vmdk counts them in 32 bits", codec.ErrTooLarge, end)
}

func (p *plan) header() header {
	return header{
		capacity:         uint64(p.sectors),
		grainSize:        grainSectors,
		descriptorOffset: 1,
		descriptorSize:   descriptorSectors,
		tableEntries:     tableGrains,
	}
}

// Layout lays d out with both copies of all tables.
func (v sparse) Layout(ctx context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	p, err := newPlan(ctx, d)
	if err != nil {
		return nil, err
	}
	const rgd = 1 + descriptorSectors
	n := p.groups.Blocks()
	gd := rgd + p.dir + tableSectors*n
	end := gd + p.dir + tableSectors*n
	first := codec.Up(end, grainSectors)
	if err := tooLarge(first + grainSectors*p.grains.Count()); err != nil {
		return nil, err
	}
	h := p.header()
	h.version, h.flags = 1, flagNewlines|flagRedundant
	h.rgdOffset, h.gdOffset, h.overHead = rgd, uint64(gd), uint64(first)
	text, err := newDescriptor(v.Name(), "monolithicSparse", p.sectors, f)
	if err != nil {
		return nil, err
	}

	file := new(codec.File)
	file.Literal(h.marshal())
	file.Literal(text)
	tables := &sparseTables{p, first}
	for _, at := range []int64{rgd, gd} {
		file.Append(4*n, &codec.Entries{Size: 4, Put: func(b []byte, i int64) {
			le.PutUint32(b, uint32(at+p.dir+tableSectors*i))
		}})
		file.ZeroTo((at + p.dir) * sector)
		file.Append(n*tableSectors*sector, tables)
	}
	file.ZeroTo(first * sector)
	g := &codec.Packed{Disk: d, Map: p.grains}
	file.Append(g.Len(), g)
	return file, nil
}

// sparseTables fills all grain tables of a disk, one behind the other.
type sparseTables struct {
	*plan
	first int64 // sector of the first grain
}

// Fill implements [codec.Filler].
func (t *sparseTables) Fill(_ context.Context, p []byte, rel int64) error {
	for len(p) > 0 {
		end, zero := t.run(rel)
		n := int(min(int64(len(p)), end-rel))
		if zero {
			clear(p[:n])
		} else {
			putTable(p[:n], rel, t)
		}
		p, rel = p[n:], rel+int64(n)
	}
	return nil
}

// entry is the sector of grain i.
func (t *sparseTables) entry(i, rank int64) uint32 {
	return uint32(t.first + grainSectors*rank)
}

// putTable fills p with the part at byte rel of the tables, 4 bytes a grain.
func putTable(p []byte, rel int64, t *sparseTables) {
	i := rel / 4
	rank := t.grains.Rank(i)
	for in := int(rel % 4); len(p) > 0; i, in = i+1, 0 {
		e := uint32(0)
		if t.grains.Has(i) {
			e = t.entry(i, rank)
			rank++
		}
		p = putPart(p, e, in)
	}
}

// putPart puts the bytes of e from number in on, and returns the rest of p.
func putPart(p []byte, e uint32, in int) []byte {
	if in == 0 && len(p) >= 4 {
		le.PutUint32(p, e)
		return p[4:]
	}
	for ; in < 4 && len(p) > 0; in++ {
		p[0] = byte(e >> (8 * in))
		p = p[1:]
	}
	return p
}

// run returns where the run of tables with, or without, a grain ends that
// holds byte rel of all tables.
func (t *sparseTables) run(rel int64) (end int64, zero bool) {
	const table = tableSectors * sector
	off, zero := t.groups.Run(rel / table * groupLen)
	return codec.Ceil(off, groupLen) * table, zero
}

// Extents shows tables without a grain as holes: they are all zeros.
func (t *sparseTables) Extents(_ context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		for stop := off + n; off < stop; {
			end, zero := t.run(off)
			end = min(end, stop)
			if !yield(codec.Extent{Off: off, Len: end - off, Zero: zero}, nil) {
				return
			}
			off = end
		}
	}
}

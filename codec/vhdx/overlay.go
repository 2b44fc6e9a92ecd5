package vhdx

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"io"
	"slices"
	"sort"

	"imagefs/codec"
)

// pageLen is the unit of the log: of its sectors, its entries and its writes.
const pageLen = 4 * kib

// patch is a write of the log: a page of data, or zeros of any number of pages.
type patch struct {
	off, end int64 // in the file
	at       int64 // of the data in the ring, or zeroData
}

const zeroData = -1

// overlay is a file as it reads once its log is applied: patched pages before
// those of the file, and zeros behind its end up to the size that the log
// gives it. It holds the log's ring and nothing else of size. Immutable.
type overlay struct {
	src     codec.Source
	size    int64
	ring    []byte
	patches []patch // disjoint, ascending
}

var _ codec.Source = (*overlay)(nil)

// newOverlay covers src by writes in the order in which they are applied.
func newOverlay(src codec.Source, size int64, ring []byte, writes []patch) *overlay {
	return &overlay{src, max(size, src.Size()), ring, flatten(writes)}
}

func (o *overlay) Size() int64 { return o.size }

// ReadAt implements [codec.Source]: one read of the file for any range, with
// the patches put over it.
func (o *overlay) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, o.size, o.readPart)
}

func (o *overlay) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	i := sort.Search(len(o.patches), func(i int) bool { return o.patches[i].end > off })
	covered := i < len(o.patches) && o.patches[i].off <= off && o.patches[i].end >= end
	if !covered {
		have := int(min(int64(len(p)), max(o.src.Size()-off, 0)))
		clear(p[have:])
		if have > 0 {
			if n, err := o.src.ReadAt(ctx, p[:have], off); n < have {
				if err == nil || errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return 0, err
			}
		}
	}
	for ; i < len(o.patches) && o.patches[i].off < end; i++ {
		w := o.patches[i]
		lo, hi := max(w.off, off), min(w.end, end)
		dst := p[lo-off : hi-off]
		if w.at == zeroData {
			clear(dst)
		} else {
			copy(dst, o.ring[w.at+lo-w.off:])
		}
	}
	return len(p), nil
}

// flatten turns writes in order into disjoint ones that leave the same bytes.
// It sweeps over the file and keeps the writes that cover the place in a heap,
// the latest on top: hostile logs may have a million of them.
func flatten(writes []patch) []patch {
	byOff := make([]int, len(writes))
	for i := range byOff {
		byOff[i] = i
	}
	slices.SortFunc(byOff, func(a, b int) int { return cmp.Compare(writes[a].off, writes[b].off) })

	var flat []patch
	var over latest
	var pos int64
	for len(byOff) > 0 || len(over) > 0 {
		if len(over) == 0 {
			pos = max(pos, writes[byOff[0]].off)
		}
		for len(byOff) > 0 && writes[byOff[0]].off <= pos {
			heap.Push(&over, byOff[0])
			byOff = byOff[1:]
		}
		w := writes[over[0]]
		if w.end <= pos {
			heap.Pop(&over)
			continue
		}
		end := w.end
		if len(byOff) > 0 {
			end = min(end, writes[byOff[0]].off)
		}
		at := w.at
		if at != zeroData {
			at += pos - w.off
		}
		if k := len(flat) - 1; k >= 0 && flat[k].end == pos && at == zeroData && flat[k].at == zeroData {
			flat[k].end = end
		} else {
			flat = append(flat, patch{pos, end, at})
		}
		pos = end
	}
	return flat
}

// latest is a heap of the numbers of writes, the highest on top.
type latest []int

func (h latest) Len() int           { return len(h) }
func (h latest) Less(i, j int) bool { return h[i] > h[j] }
func (h latest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *latest) Push(x any)        { *h = append(*h, x.(int)) }
func (h *latest) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

package cache

import (
	"cmp"
	"context"
	"slices"
)

// Locate says where a part of a thing lies in the one that it is stored in: the n
// bytes from off on, at most limit and at least one, lie from at on, or are zeros
// when at is negative. It does no I/O, and it is called with locks held: it must
// call nothing of this package.
type Locate func(off, limit int64) (at, n int64)

// Placed reads a thing whose parts lie anywhere in a Reader's, such as the disk in
// an image file that a guest wrote here and there. It is read ahead in its own
// order. Its methods may be called concurrently.
type Placed struct{ f *follower }

// Placed returns what reads a thing of size bytes that lies in r's where locate
// says. It does no I/O. There is nothing to close but r.
func (r *Reader) Placed(size int64, locate Locate) *Placed {
	f := &follower{r: r, locate: locate, size: size}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.placed = append(r.placed, f)
	return &Placed{f}
}

// Size returns the bytes of the whole thing.
func (p *Placed) Size() int64 { return p.f.size }

// ReadAt is [Reader.ReadAt] for the thing.
func (p *Placed) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	f := p.f
	b, eof := clip(b, off, f.size)
	if len(b) == 0 {
		return 0, eof
	}
	r, c := f.r, f.r.c
	c.mu.Lock()
	s := f.touch(off, int64(len(b)))
	c.mu.Unlock()
	n := 0
	for first, asked := true, false; n < len(b); {
		at, m := f.locate(off+int64(n), int64(len(b)-n))
		part := b[n : n+int(m)]
		if at < 0 {
			clear(part)
			n += len(part)
			continue
		}
		c.mu.Lock()
		if data, _ := r.find(at >> r.shift); data == nil && !asked {
			f.want(ctx, off+int64(n), off+int64(len(b)))
			asked = true
		}
		k, err := r.read(ctx, part, at, s, first)
		if n += k; err != nil {
			return n, err
		}
		first = false
	}
	return n, eof
}

// Slice is [Reader.Slice] for a part of the thing that lies together.
func (p *Placed) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	f := p.f
	if off < 0 || n <= 0 || off > f.size-int64(n) {
		return nil, nil
	}
	at, m := f.locate(off, int64(n))
	if at < 0 || m < int64(n) {
		return nil, nil
	}
	c := f.r.c
	c.mu.Lock()
	return f.r.slice(ctx, at, n, f.touch(off, int64(n)))
}

// want starts to fetch what is missing of the rest of a read, if that takes several
// parts: they are waited for one after the other. Callers hold Cache.mu.
func (f *follower) want(ctx context.Context, off, end int64) {
	r := f.r
	end = min(end, off+max(r.window, r.block)) // the rest is fetched where it is read
	if _, n := f.locate(off, end-off); r.c.closed || n == end-off {
		return
	}
	nested := ctx.Value(flightKey{}) != nil
	parts, _ := f.parts(off, end, end, hops, end-off)
	for _, p := range parts {
		r.want(p.first, p.end, nested)
	}
}

// part is the blocks that hold a part of a thing, and where that is in it.
type part struct{ first, end, from int64 }

// hops is how many parts one look ahead goes through at most.
const hops = 4096

// parts returns where the bytes of a thing from off up to end lie, in the order in
// which they lie there, neighbours as one, and how far it came: to the end, or to
// as many parts or bytes as told. Zeros do not count: for them the end moves on, up
// to limit.
func (f *follower) parts(off, end, limit int64, most int, bytes int64) (parts []part, stop int64) {
	r := f.r
	for range hops {
		if off >= end || len(parts) >= most || bytes <= 0 {
			break
		}
		at, n := f.locate(off, min(end-off, max(bytes, r.block)))
		if at < 0 {
			end = min(end+n, limit)
		} else {
			parts = append(parts, part{at >> r.shift, (at+n-1)>>r.shift + 1, off})
			bytes -= n
		}
		off += n
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.first, b.first) })
	merged := parts[:0]
	for _, p := range parts {
		if k := len(merged) - 1; k >= 0 && p.first <= merged[k].end {
			merged[k].end = max(merged[k].end, p.end)
			merged[k].from = min(merged[k].from, p.from)
		} else {
			merged = append(merged, p)
		}
	}
	return merged, off
}

// planPlaced is plan for a thing that lies anywhere in the reader's own. What the
// window covers is fetched in the order in which it lies there, so that neighbours
// come in one fetch whatever order they are read in.
func (s *stream) planPlaced() {
	f, r := s.f, s.f.r
	s.planned = max(s.planned, s.next)
	end := min(s.next+s.window, f.size)
	if end < f.size && end-s.planned < min(r.span<<r.shift, s.window/2) {
		return // until a fetch of some size comes together
	}
	if s.planned >= end {
		return
	}
	// What there is room for is taken in the order of the thing, or what is far
	// away would take the room of what is next.
	parts, stop := f.parts(s.planned, end, f.size, flights*r.par-s.flights, s.room()<<r.shift)
	for k, p := range parts {
		if s.fetch(p.first, p.end, false) == p.end {
			continue
		}
		for _, q := range parts[k:] { // the next look begins at the first that is left
			stop = min(stop, q.from)
		}
		break
	}
	s.planned = stop
}

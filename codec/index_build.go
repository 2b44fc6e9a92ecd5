package codec

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// buildPiece is how many bytes of a disk a worker takes at a time, unless a
// block is larger.
const buildPiece = 2 << 20

// BuildIndex decodes every encoded block of d once, on so many goroutines, and
// returns what it found out; nil where there is nothing to keep. It is all the
// decoding that checking an image takes: an error says which block is damaged.
//
// each, which may be nil, gets every encoded block, cut at the disk's end, and
// where it begins: concurrently and in no order. The bytes hold for the call
// only, and an error ends the work. Blocks that are stored plain are not read.
//
// A worker costs a few blocks of memory. Nothing runs any more when BuildIndex
// has returned. What it returns is to be closed.
func BuildIndex(ctx context.Context, d Disk, workers int, each func(off int64, block []byte) error) (*Index, error) {
	if each == nil {
		each = func(int64, []byte) error { return nil }
	}
	workers = max(workers, 1)
	switch c := d.(type) {
	case Streamed:
		if c.Unit() > 0 {
			return buildStreams(ctx, c, workers, each)
		}
	case Windowed:
		if c.Unit() > 0 {
			return buildWindows(ctx, c, workers, each)
		}
	case Coded:
		if c.Unit() > 0 {
			return nil, decodeBlocks(ctx, c, workers, each)
		}
	}
	return nil, nil
}

func buildStreams(ctx context.Context, d Streamed, workers int, each func(int64, []byte) error) (*Index, error) {
	x := newIndex(d, d.Stored())
	x.encoding = d.Encoding()
	var err error
	if x.encoded, err = encodedBlocks(ctx, d); err != nil {
		return nil, err
	}
	lens, sums := make([]uint32, x.encoded.Count()), make([]uint32, x.encoded.Count())
	err = eachSpan(ctx, x.encoded, workers, func(ctx context.Context, buf []byte, lo, hi int64) error {
		k := x.encoded.Rank(lo)
		for i := lo; i < hi; i, k = i+1, k+1 {
			n, err := d.Measure(ctx, i, buf)
			if err != nil {
				return fmt.Errorf("guest bytes at %d: %w", i*x.block, err)
			}
			if err := each(i*x.block, buf[:min(x.block, x.size-i*x.block)]); err != nil {
				return err
			}
			if !x.takes(i, n) {
				continue
			}
			if lens[k] = uint32(n); x.encoding == Deflate {
				sums[k] = Adler32(buf)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if x.ends, err = sumEnds(ctx, d.Stored()); err != nil {
		return nil, err
	}
	// What is handed on moves to the front of the same memory.
	x.lens, x.sums = lens[:0], sums[:0]
	k := 0
	err = x.hand(ctx, d, func(int64) (int64, uint32, error) {
		k++
		return int64(lens[k-1]), sums[k-1], nil
	})
	if err != nil {
		return nil, err
	}
	return x, nil
}

func buildWindows(ctx context.Context, d Windowed, workers int, each func(int64, []byte) error) (*Index, error) {
	x := newIndex(d, d.Stored())
	x.pile = new(pile)
	x.data = x.pile
	var n int64
	n, x.every = d.Restarts()
	var packer windowPacker
	err := d.Walk(ctx, workers, each, func(w []byte) error {
		b, err := packer.pack(w)
		if err != nil {
			return err
		}
		x.windows = append(x.windows, window{x.pile.size, uint32(len(b)), checksum(b)})
		return x.pile.add(b)
	})
	if err == nil && int64(len(x.windows)) != n {
		err = fmt.Errorf("%d windows at %d restart points", len(x.windows), n)
	}
	if err == nil {
		x.ends, err = sumEnds(ctx, d.Stored())
	}
	if err != nil || x.dataLen() == 0 { // no window is needed anywhere
		return nil, firstOf(err, x.Close())
	}
	return x, nil
}

// decodeBlocks only decodes what d calls data.
func decodeBlocks(ctx context.Context, d Coded, workers int, each func(int64, []byte) error) error {
	m, err := NewMap(ctx, d, d.Unit())
	if err != nil {
		return err
	}
	return eachSpan(ctx, m, workers, func(ctx context.Context, buf []byte, lo, hi int64) error {
		for i := lo; i < hi; i++ {
			off := i * m.Block()
			b := buf[:min(m.Block(), m.Size()-off)]
			if n, err := d.ReadAt(ctx, b, off); n < len(b) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("guest bytes at %d: %w", off, err)
			}
			if err := each(off, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachSpan calls fn on so many goroutines for all blocks of m, in runs lo to
// hi-1 of about buildPiece bytes, with room for a block. The first error ends it.
func eachSpan(ctx context.Context, m *Map, workers int, fn func(ctx context.Context, buf []byte, lo, hi int64) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type span struct{ lo, hi int64 }
	work := make(chan span)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf := make([]byte, m.Block())
			for s := range work {
				if err := fn(ctx, buf, s.lo, s.hi); err != nil {
					cancel(err)
				}
			}
		})
	}
	per := max(buildPiece/m.Block(), 1)
	err := func() error {
		defer close(work)
		for e, err := range m.Extents(ctx, 0, m.Size()) {
			if err != nil {
				return err
			}
			if e.Zero {
				continue
			}
			end := Ceil(e.Off+e.Len, m.Block())
			for lo := e.Off / m.Block(); lo < end; {
				hi := min(lo+per-lo%per, end)
				select {
				case work <- span{lo, hi}:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				lo = hi
			}
		}
		return nil
	}()
	wg.Wait()
	// What a worker found ends the walk as well, which then says only that.
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// PanicError is the error of a fetch whose Fetcher panicked.
type PanicError struct {
	Value any    // what was passed to panic
	Stack []byte // of the fetching goroutine
}

func (e *PanicError) Error() string { return fmt.Sprintf("fetch panicked: %v", e.Value) }

// errGoexit stands until a fetch has returned; it stays when the Fetcher ends its
// goroutine.
var errGoexit = errors.New("fetch ended its goroutine")

// flightKey marks the contexts of flights: a read made under one is a Fetcher's,
// and must not wait for the memory that its own flight holds.
type flightKey struct{}

// batch is neighbouring blocks fetched by one call, in flight or landed.
type batch struct {
	r     *Reader
	first int64   // block index
	n     int     // blocks
	size  int64   // bytes
	early bool    // started as read-ahead
	slot  *stream // that started it, when early; another stream may have it by now

	done chan struct{} // closed when landed; data and err are final then
	data []byte        // never written after done
	err  error

	// Guarded by Cache.mu.
	ready      bool    // landed without an error
	rush       bool    // a Fetcher waits for it: no waiting for memory
	owner      *stream // whose unread bytes it counts to; nil once reached
	pins       int     // streams reading in it
	spent      bool    // the last of them was a scan
	where      *list
	prev, next *batch
	at         time.Time // of landing, for batches read ahead
}

// block returns the bytes of block i of a landed batch.
func (b *batch) block(i int64) []byte {
	from := (i - b.first) << b.r.shift
	to := min(from+b.r.block, b.size)
	return b.data[from:to:to]
}

// start enters n missing blocks from first as one flight. The caller holds
// Cache.mu and has seen that the cache is open. s is the stream that will reach
// them, for read-ahead, else nil.
func (r *Reader) start(first int64, n int, s *stream, rush bool) *batch {
	c := r.c
	off := first << r.shift
	b := &batch{
		r: r, first: first, n: n, size: min(int64(n)<<r.shift, r.size-off),
		early: s != nil, rush: rush, done: make(chan struct{}),
	}
	for i := range int64(n) {
		r.entries[first+i] = b
	}
	if s != nil {
		b.owner, b.slot = s, s
		if s.unread == 0 {
			c.active++
		}
		s.unread += b.size
		c.unread += b.size
		c.flyAhead += b.size
		s.flights++
		s.flying += b.size
		c.stats.ReadAheadFetches++
		c.stats.ReadAheadBytes += uint64(b.size)
	}
	c.stats.Fetches++
	c.stats.FetchedBytes += uint64(b.size)
	c.wg.Add(1)
	go c.fly(b)
	return b
}

// fly runs one flight from making room to landing.
func (c *Cache) fly(b *batch) {
	defer c.wg.Done()
	parent := c.ctx
	if b.early {
		parent = b.r.ctx
	}
	ctx, cancel := context.WithTimeout(parent, c.cfg.FetchTimeout)
	defer cancel()

	c.mu.Lock()
	if !b.early {
		for c.demand > 0 && c.demand+b.size > c.lim.demand && !b.rush && !c.closed {
			c.landed.Wait()
		}
		c.demand += b.size
	}
	out := c.reserve(b.size)
	c.mu.Unlock()
	c.keep(out)

	err := errGoexit
	var data []byte
	defer func() {
		// Also reached when the Fetcher panics or ends the goroutine: waiters
		// must never hang.
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
		c.land(b, data, err)
	}()
	if err = ctx.Err(); err == nil {
		data = make([]byte, b.size)
		err = errGoexit
		err = b.r.fill(ctx, data, b.first<<b.r.shift)
	}
}

// fill gets the bytes of a batch: from the tier what it has at both ends, and all
// between by one call of the Fetcher. One long fetch beats several short ones, so
// what the tier has in the middle is fetched again.
func (r *Reader) fill(ctx context.Context, p []byte, off int64) error {
	if r.tier == nil {
		return r.fetcher.ReadRange(ctx, p, off)
	}
	from, to := len(p), 0 // from the first byte that is not kept to the last
	for n := 0; n < len(p); {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, kept := r.tier.Load(p[n:], off+int64(n))
		if !kept {
			from, to = min(from, n), n+m
		}
		n += m
	}
	if from >= to {
		return nil
	}
	if err := r.fetcher.ReadRange(ctx, p[from:to], off+int64(from)); err != nil {
		return err
	}
	r.tier.Save(p[from:to:to], off+int64(from))
	return nil
}

// land publishes a batch, or its error.
func (c *Cache) land(b *batch, data []byte, err error) {
	r := b.r
	c.mu.Lock()
	c.reserved -= b.size
	if b.early {
		c.flyAhead -= b.size
		b.slot.flights--
		b.slot.flying -= b.size
	} else {
		c.demand -= b.size
	}
	if err != nil {
		if c.closed {
			err = fmt.Errorf("%w: %w", ErrClosed, err)
		}
		b.err = fmt.Errorf("cache: fetch %d bytes at %d: %w", b.size, b.first<<r.shift, err)
		c.stats.FetchErrors++
	} else {
		b.data = data
		b.ready = true
	}
	if err != nil || r.closed || c.closed {
		c.claim(b)
		c.forget(b)
	} else {
		if b.early {
			b.at = time.Now()
		}
		c.place(b)
	}
	close(b.done)
	c.landed.Broadcast()
	c.mu.Unlock()
}

// wait returns when b has landed or ctx has ended, with the error of either.
// What b holds may be read only once it has landed.
func (b *batch) wait(ctx context.Context) (landed bool, err error) {
	select {
	case <-b.done:
		return true, b.err
	default:
	}
	select {
	case <-b.done:
		return true, b.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// mine reports whether the failure of b says something about each of its blocks.
// It does not when the blame may lie with a neighbour, or when the flight was
// read-ahead of a reader that closed. A store that let the deadline pass once is
// not asked again, nor one that had its time for what was asked by a read.
func (b *batch) mine() bool {
	whole := b.r.c.cfg.Whole
	switch {
	case b.early && errors.Is(b.err, context.Canceled):
		return false
	case b.n > 1:
		return errors.Is(b.err, context.DeadlineExceeded) || !b.early && whole != nil && whole(b.err)
	}
	return true
}

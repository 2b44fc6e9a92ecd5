package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
)

// DefaultBlock is the block of a reader that is not told one, in bytes: small, so
// that who reads at random fetches little that he did not ask for. Who reads in
// order gets many of them by one fetch.
const DefaultBlock = 64 * kib

const (
	minBlock        = 4 * kib
	defaultSpan     = 4 * mib
	defaultParallel = 8
)

// Fetcher fills whole aligned ranges of one immutable thing.
type Fetcher interface {
	// ReadRange fills p with the bytes from off. off is a multiple of the
	// reader's block size, p is several blocks or ends with the thing, and both
	// lie inside the size given to Cache.Reader. It returns nil only when all of
	// p is filled, and keeps no reference to p. It must return soon after ctx
	// ends, and must pass ctx on when it reads through the same Cache. Calls are
	// concurrent.
	ReadRange(ctx context.Context, p []byte, off int64) error
}

// Tier keeps pieces of one thing beyond memory, such as on a local disk, in units of
// its own: a reader with a Tier needs a Block that is a whole number of them. Offsets
// are multiples of the unit, and p is several units or ends with the thing. Calls are
// concurrent.
type Tier interface {
	// Load returns how many bytes of p, from the first on and at least one unit,
	// are of one status: kept, and then it has filled them in, or not. There may
	// be more of that status behind. Into the rest of p it may have written
	// anything.
	Load(p []byte, off int64) (n int, kept bool)
	// Save is given the bytes at off, just fetched. It must return at once; it
	// may keep p, which is never written again.
	Save(p []byte, off int64)
}

// ReaderConfig says how one thing is fetched. The zero value is useful.
type ReaderConfig struct {
	// Block is the unit of caching in bytes, a power of two of at least 4096.
	// Default DefaultBlock. Anything else is raised to the next such number.
	Block int64
	// Span is the bytes of the largest fetch: several neighbouring missing blocks
	// are got with one call. Default 4 MiB; never below Block, and never above
	// 1/16 of the pool unless one block is.
	Span int64
	// Parallel is how many read-ahead fetches of Span bytes one stream may have
	// in flight; of smaller ones as many bytes, in at most eight times as many.
	// Default 8.
	Parallel int
	// Scan is how far a stream reads until it is taken for a scan of all there is,
	// whose blocks nobody comes back for: they are let go soon after they were
	// read. Default what the store can keep.
	Scan int64
	// Tier is asked for blocks before the Fetcher, and given what that fetched;
	// nil for none.
	Tier Tier
}

// Reader reads one immutable thing through the cache. Its methods may be called
// concurrently.
type Reader struct {
	c       *Cache
	fetcher Fetcher
	tier    Tier // may be nil
	serial  uint64
	size    int64 // bytes
	block   int64 // bytes
	shift   int   // block is 1<<shift
	blocks  int64 // number of blocks
	span    int64 // blocks in one fetch at most
	window  int64 // bytes ahead of a stream at most
	par     int
	scan    int64 // bytes that a stream reads before its blocks are let go

	ctx    context.Context // parent of read-ahead; ends with Close
	cancel context.CancelFunc

	// Guarded by Cache.mu.
	closed  bool
	entries map[int64]*batch // blocks in flight and in the pool
	own     follower         // of reads of the thing itself
	placed  []*follower      // of reads of what lies in it

	stored  sync.Mutex      // guards gone and inStore
	gone    bool            // nothing more goes to the store
	inStore map[int64]*kept // blocks given to the store
}

// Reader returns a reader of the size bytes that f fetches. It does no I/O. Two
// readers share nothing but memory, even over the same Fetcher.
func (c *Cache) Reader(f Fetcher, size int64, rc ReaderConfig) *Reader {
	if rc.Block <= 0 {
		rc.Block = DefaultBlock
	}
	shift := bits.Len64(uint64(max(rc.Block, minBlock)) - 1)
	r := &Reader{
		c: c, fetcher: f, tier: rc.Tier, serial: c.serial.Add(1), size: max(size, 0),
		block: 1 << shift, shift: shift,
		entries: map[int64]*batch{}, inStore: map[int64]*kept{},
	}
	r.blocks = (r.size + r.block - 1) >> shift
	if rc.Span <= 0 {
		rc.Span = defaultSpan
	}
	r.span = max(1, min(rc.Span, c.lim.batch)>>shift)
	r.par = rc.Parallel
	if r.par <= 0 {
		r.par = defaultParallel
	}
	if r.scan = rc.Scan; r.scan <= 0 {
		r.scan = c.lim.store
	}
	r.window = min(r.span<<shift*int64(r.par), c.lim.ahead)
	r.own = follower{r: r, size: r.size}
	r.ctx, r.cancel = context.WithCancel(c.ctx)
	return r
}

// Size returns the bytes of the whole thing.
func (r *Reader) Size() int64 { return r.size }

// Close cancels the reader's read-ahead and drops its blocks, some of them a
// little later. Reads after it still work, each by a fetch. Closing again does
// nothing.
func (r *Reader) Close() {
	c := r.c
	r.cancel()
	c.mu.Lock()
	if r.closed {
		c.mu.Unlock()
		return
	}
	r.closed = true
	for _, b := range r.entries {
		if b.where != nil { // else still in flight: it is dropped at landing
			c.drop(b)
		}
	}
	open := !c.closed
	if open {
		c.wg.Add(1) // Cache.Close waits until the store is no longer used here
	}
	c.mu.Unlock()
	if !open {
		return
	}
	defer c.wg.Done()
	c.spill.Lock()
	r.stored.Lock()
	r.gone = true
	indices := make([]int64, 0, len(r.inStore))
	for i := range r.inStore {
		indices = append(indices, i)
	}
	r.stored.Unlock()
	c.spill.Unlock()
	for _, i := range indices {
		c.store.Del(r.key(i))
	}
}

// key is the store's name of block i: serial and index packed, then mixed by a
// bijection, because the store's counters look at few bits. Beyond 2^32 blocks or
// readers two blocks may share a key, so a hit is checked.
func (r *Reader) key(i int64) uint64 {
	k := r.serial<<32 ^ uint64(i)
	k = (k ^ k>>30) * 0xbf58476d1ce4e5b9
	k = (k ^ k>>27) * 0x94d049bb133111eb
	return k ^ k>>31
}

// find looks block i up: its bytes when they are in memory, its batch when it is
// in the pool or in flight. Callers hold Cache.mu.
func (r *Reader) find(i int64) ([]byte, *batch) {
	if b := r.entries[i]; b != nil {
		if b.ready {
			return b.block(i), b
		}
		return nil, b
	}
	if k, ok := r.c.store.Get(r.key(i)); ok && k.r == r && k.index == i {
		return k.data, nil
	}
	return nil, nil
}

var errNegative = errors.New("cache: negative offset")

// ReadAt fills p from off. It returns fewer than len(p) bytes only with an error:
// io.EOF at the end of the thing, the context's error, ErrClosed, or what the
// Fetcher said about the first block that could not be had.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	p, eof := clip(p, off, r.size)
	if len(p) == 0 {
		return 0, eof
	}
	c := r.c
	c.mu.Lock()
	s := r.own.touch(off, int64(len(p)))
	n, err := r.read(ctx, p, off, s, true)
	if err == nil {
		err = eof
	}
	return n, err
}

// clip cuts p, which is to be read at off, to a thing of size bytes. The error is
// that of a read that fills what is left.
func clip(p []byte, off, size int64) ([]byte, error) {
	switch {
	case off < 0:
		return nil, fmt.Errorf("%w %d", errNegative, off)
	case len(p) == 0 || int64(len(p)) <= size-off:
		return p, nil
	}
	return p[:max(size-off, 0)], io.EOF
}

// read fills p, which lies within the thing, for the stream s that it belongs to;
// first says that this is the first part of what was read there. It is called with
// Cache.mu held, and unlocks it.
func (r *Reader) read(ctx context.Context, p []byte, off int64, s *stream, first bool) (int, error) {
	c := r.c
	for n := 0; ; c.mu.Lock() {
		pos := off + int64(n)
		data, b := r.tail(pos)
		if data == nil || c.closed {
			c.mu.Unlock()
			return r.miss(ctx, p, n, off, s)
		}
		if len(data) > len(p)-n {
			data = data[:len(p)-n]
		}
		c.hit(s, b, r.covers(pos, len(data)), first)
		c.mu.Unlock()
		if n += copy(p[n:], data); n == len(p) {
			return n, nil
		}
		first = false
	}
}

// covers is the number of blocks that n bytes from off lie in.
func (r *Reader) covers(off int64, n int) int64 {
	return (off+int64(n)-1)>>r.shift - off>>r.shift + 1
}

// tail returns what is in memory of the bytes from off on, to the end of the block
// or, in the pool, of the batch. Callers hold Cache.mu.
func (r *Reader) tail(off int64) ([]byte, *batch) {
	i := off >> r.shift
	data, b := r.find(i)
	if data == nil {
		return nil, b
	}
	if b != nil {
		return b.data[off-b.first<<r.shift:], b
	}
	return data[off-i<<r.shift:], nil
}

// Slice returns the n bytes from off without copying, when they came, or come now,
// with one fetch and are not too far apart: a part of what that filled, which the
// caller must not write and may keep as long as it likes. Otherwise it returns nil
// and no error; use ReadAt then.
func (r *Reader) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	end := off + int64(n)
	if off < 0 || n <= 0 || end > r.size || end < off {
		return nil, nil
	}
	c := r.c
	c.mu.Lock()
	s := r.own.touch(off, int64(n))
	return r.slice(ctx, off, n, s)
}

// slice is Slice for the stream that the read belongs to. It is called with
// Cache.mu held, and unlocks it.
func (r *Reader) slice(ctx context.Context, off int64, n int, s *stream) ([]byte, error) {
	c := r.c
	data, b := r.tail(off)
	if len(data) >= n && !c.closed {
		c.hit(s, b, r.covers(off, n), true)
		c.mu.Unlock()
		return data[:n:n], nil
	}
	c.mu.Unlock()
	first, blocks := off>>r.shift, r.covers(off, n)
	if data != nil || blocks > r.span {
		return nil, nil
	}
	var room [maxSliced]ref
	refs, err := r.gather(ctx, first, first+blocks-1, s, room[:0])
	if err != nil {
		return nil, err
	}
	at := int(off - first<<r.shift)
	if blocks == 1 {
		if data, err = r.bytes(ctx, refs[0]); err != nil {
			return nil, err
		}
		return data[at : at+n : at+n], nil
	}
	b = refs[0].b
	if b == nil || refs[len(refs)-1].b != b {
		return nil, nil
	}
	landed, err := b.wait(ctx)
	if err == nil {
		at += int(first-b.first) << r.shift
		return b.data[at : at+n : at+n], nil
	}
	if !landed {
		return nil, err
	}
	for i := range refs {
		if _, err := r.bytes(ctx, refs[i]); err != nil { // a block may be good by itself
			return nil, err
		}
	}
	return nil, nil
}

// maxSliced is how many blocks a slice is made of without allocating.
const maxSliced = 17

// hit accounts for blocks found, in b when that was in the pool, and follows the
// stream s of the read. Callers hold mu.
func (c *Cache) hit(s *stream, b *batch, blocks int64, first bool) {
	c.stats.Hits += uint64(blocks)
	if s == nil {
		return
	}
	c.pin(s, b)
	if first {
		s.plan()
	}
}

// ref is one block of a read that could not be answered from memory alone.
type ref struct {
	i    int64
	data []byte // when it was there
	b    *batch // else its flight
}

// miss goes on with a read of p at off after its first n bytes.
func (r *Reader) miss(ctx context.Context, p []byte, n int, off int64, s *stream) (int, error) {
	last := (off + int64(len(p)) - 1) >> r.shift
	// A very long read proceeds in steps, so that what waits to be copied is bounded.
	step := max(1, r.window>>r.shift, r.span)
	var room [4]ref
	for n < len(p) {
		from := (off + int64(n)) >> r.shift
		refs, err := r.gather(ctx, from, min(last, from+step-1), s, room[:0])
		if err != nil {
			return n, err
		}
		for k := range refs {
			data, err := r.bytes(ctx, refs[k])
			if err != nil {
				return n, err
			}
			refs[k] = ref{}
			n += copy(p[n:], data[(off+int64(n))&(r.block-1):])
		}
	}
	return n, nil
}

// gather finds, joins or starts each block from first to last, neighbours that
// are missing as one fetch where Span allows, and then looks further ahead.
func (r *Reader) gather(ctx context.Context, first, last int64, s *stream, refs []ref) ([]ref, error) {
	nested := ctx.Value(flightKey{}) != nil
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	for i := first; i <= last; {
		data, b := r.find(i)
		if data != nil {
			c.stats.Hits++
			refs = append(refs, ref{i: i, data: data})
			i++
		} else if b != nil {
			c.stats.Misses++
			c.stats.Joined++
			if nested {
				c.hurry(b)
			}
			refs = append(refs, ref{i: i, b: b})
			i++
		} else {
			n := r.run(i, min(last-i+1, r.span))
			c.stats.Misses += uint64(n)
			b = r.start(i, int(n), nil, nested)
			for range n {
				refs = append(refs, ref{i: i, b: b})
				i++
			}
		}
		if s != nil {
			c.pin(s, b)
		}
	}
	if s != nil {
		s.plan()
	}
	return refs, nil
}

// Want starts to fetch what is missing of n bytes from off, for reads that are about
// to come, and returns at once. What there is no room for is left to them.
func (r *Reader) Want(off, n int64) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || off < 0 || off >= r.size || n <= 0 {
		return
	}
	n = min(n, r.size-off, max(r.window, r.block))
	r.want(off>>r.shift, (off+n-1)>>r.shift+1, false)
}

// want starts flights for what is missing of the blocks from first up to end.
// Callers hold Cache.mu.
func (r *Reader) want(first, end int64, rush bool) {
	for i := first; i < end; {
		if data, b := r.find(i); data != nil || b != nil {
			i++
			continue
		}
		n := r.run(i, min(end-i, r.span))
		r.start(i, int(n), nil, rush)
		i += n
	}
}

// run counts the missing blocks from i, which is one, up to limit. Callers hold
// Cache.mu.
func (r *Reader) run(i, limit int64) int64 {
	n := int64(1)
	for n < limit {
		if data, b := r.find(i + n); data != nil || b != nil {
			break
		}
		n++
	}
	return n
}

// hurry lets a flight go on that waits for memory. Callers hold mu.
func (c *Cache) hurry(b *batch) {
	if !b.rush {
		b.rush = true
		c.landed.Broadcast()
	}
}

// bytes waits for a block. When a fetch it shared with others failed, it is
// fetched by itself; a second such failure is final.
func (r *Reader) bytes(ctx context.Context, f ref) ([]byte, error) {
	for range 2 {
		if f.data != nil {
			return f.data, nil
		}
		landed, err := f.b.wait(ctx)
		if err == nil {
			return f.b.block(f.i), nil
		}
		if !landed || f.b.mine() {
			return nil, err
		}
		refs, err := r.gather(ctx, f.i, f.i, nil, nil)
		if err != nil {
			return nil, err
		}
		f = refs[0]
	}
	if f.data != nil {
		return f.data, nil
	}
	if _, err := f.b.wait(ctx); err != nil {
		return nil, err
	}
	return f.b.block(f.i), nil
}

package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// source is a thing whose bytes are a function of their offset. It counts what is
// fetched, and checks what a Fetcher may rely on.
type source struct {
	size, block int64
	fail        func(off, n int64) error // asked before each fetch
	gate        chan struct{}            // when not nil, each fetch takes a token or the channel is closed
	calls       atomic.Int64
	fetched     atomic.Int64
	errs        atomic.Pointer[string]

	mu    sync.Mutex
	count map[int64]int // fetches by block
}

func newSource(size, block int64) *source {
	return &source{size: size, block: block, count: map[int64]int{}}
}

// fill writes what the thing has at off: a stamp in each 512 bytes, else zeros,
// because more would make the race detector's runs slow.
func fill(p []byte, off int64) {
	const stride = 512
	clear(p)
	for o := off &^ (stride - 1); o < off+int64(len(p)); o += stride {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], uint64(o)*0x9e3779b97f4a7c15+1)
		if o < off {
			if o+8 > off {
				copy(p, w[off-o:])
			}
			continue
		}
		copy(p[o-off:], w[:])
	}
}

func (s *source) complain(text string) { s.errs.CompareAndSwap(nil, &text) }

func (s *source) ReadRange(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	if len(p) == 0 || off%s.block != 0 || end > s.size || end%s.block != 0 && end != s.size {
		s.complain("a fetch is not aligned or leaves the thing")
	}
	s.calls.Add(1)
	s.fetched.Add(int64(len(p)))
	s.mu.Lock()
	for o := off; o < end; o += s.block {
		s.count[o/s.block]++
	}
	s.mu.Unlock()
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if s.fail != nil {
		if err := s.fail(off, int64(len(p))); err != nil {
			return err
		}
	}
	fill(p, off)
	return ctx.Err()
}

func (s *source) check(t *testing.T) {
	t.Helper()
	if e := s.errs.Load(); e != nil {
		t.Error(*e)
	}
}

// open returns a cache that is closed, and checked for leaks, when the test ends.
func open(t testing.TB, cfg Config) *Cache {
	t.Helper()
	before := runtime.NumGoroutine()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		c.mu.Lock()
		if c.ringBytes != 0 || c.reserved != 0 || c.demand != 0 || c.flyAhead != 0 || c.unread != 0 || c.active != 0 {
			t.Errorf("after Close: ring %d reserved %d demand %d flyAhead %d unread %d active %d, want all 0",
				c.ringBytes, c.reserved, c.demand, c.flyAhead, c.unread, c.active)
		}
		c.mu.Unlock()
		if n := c.storeBytes.Load(); n != 0 {
			t.Errorf("after Close: store holds %d bytes, want 0", n)
		}
		eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return c
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

var bg = context.Background()

// readAll reads a reader from start to end in pieces of n bytes.
func readAll(r *Reader, n int, verify bool) error {
	p, want := make([]byte, n), make([]byte, n)
	for off := int64(0); ; off += int64(n) {
		m, err := r.ReadAt(bg, p, off)
		if err != nil && err != io.EOF {
			return err
		}
		if verify {
			fill(want[:m], off)
			if !bytes.Equal(p[:m], want[:m]) {
				return errors.New("wrong bytes")
			}
		}
		if err == io.EOF || off+int64(m) == r.Size() {
			if off+int64(m) != r.Size() {
				return errors.New("early end")
			}
			return nil
		}
	}
}

func TestManyWaitersOneFetch(t *testing.T) {
	c := open(t, Config{})
	src := newSource(8*mib, mib)
	src.gate = make(chan struct{})
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			p, want := make([]byte, 100), make([]byte, 100)
			if n, err := r.ReadAt(bg, p, 3*mib+5); n != 100 || err != nil {
				t.Errorf("ReadAt = %d, %v", n, err)
			}
			if fill(want, 3*mib+5); !bytes.Equal(p, want) {
				t.Error("wrong bytes")
			}
		})
	}
	eventually(t, "50 waiters", func() bool { return c.Stats().Misses == 50 })
	close(src.gate)
	wg.Wait()
	if got := src.calls.Load(); got != 1 {
		t.Errorf("%d fetches, want 1", got)
	}
}

func TestCancelledWaiterLeavesFlightAlone(t *testing.T) {
	c := open(t, Config{})
	src := newSource(8*mib, mib)
	src.gate = make(chan struct{})
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	ctx, cancel := context.WithCancel(bg)
	left, stayed := make(chan error), make(chan error)
	go func() { _, err := r.ReadAt(ctx, make([]byte, 10), 0); left <- err }()
	eventually(t, "a flight", func() bool { return src.calls.Load() == 1 })
	go func() { _, err := r.ReadAt(bg, make([]byte, 10), 0); stayed <- err }()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled waiter: %v, want context.Canceled", err)
	}
	close(src.gate)
	if err := <-stayed; err != nil {
		t.Errorf("other waiter: %v", err)
	}
	if got := src.calls.Load(); got != 1 {
		t.Errorf("%d fetches, want 1", got)
	}
}

var errBroken = errors.New("broken")

// A waiter may leave while its flight fails. Under the race detector this shows
// that it does not look at what the flight writes.
func TestWaiterLeavesAsItsFlightFails(t *testing.T) {
	for range 20 {
		c := open(t, Config{})
		src := newSource(mib, mib)
		src.gate = make(chan struct{})
		src.fail = func(off, n int64) error { return errBroken }
		r := c.Reader(src, src.size, ReaderConfig{Block: mib})
		ctx, cancel := context.WithCancel(bg)
		left := make(chan error)
		go func() { _, err := r.ReadAt(ctx, make([]byte, 10), 0); left <- err }()
		eventually(t, "a flight", func() bool { return src.calls.Load() == 1 })
		cancel()
		close(src.gate)
		if err := <-left; !errors.Is(err, context.Canceled) && !errors.Is(err, errBroken) {
			t.Errorf("waiter: %v, want context.Canceled or %v", err, errBroken)
		}
	}
}

func TestErrorsReachAllWaitersAndAreNotCached(t *testing.T) {
	c := open(t, Config{})
	src := newSource(8*mib, mib)
	src.gate = make(chan struct{})
	var healthy atomic.Bool
	src.fail = func(off, n int64) error {
		if healthy.Load() {
			return nil
		}
		return errBroken
	}
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if n, err := r.ReadAt(bg, make([]byte, 10), 0); n != 0 || !errors.Is(err, errBroken) {
				t.Errorf("ReadAt = %d, %v, want 0 and broken", n, err)
			}
		})
	}
	eventually(t, "10 waiters", func() bool { return c.Stats().Misses == 10 })
	close(src.gate)
	wg.Wait()
	if got := src.calls.Load(); got != 1 {
		t.Errorf("%d fetches, want 1", got)
	}
	healthy.Store(true)
	if n, err := r.ReadAt(bg, make([]byte, 10), 0); n != 10 || err != nil {
		t.Errorf("ReadAt after recovery = %d, %v", n, err)
	}
}

func TestBadBlockDoesNotSpoilItsNeighbours(t *testing.T) {
	c := open(t, Config{})
	src := newSource(64*mib, 64*kib)
	bad := int64(37)
	src.fail = func(off, n int64) error {
		if off <= bad*64*kib && bad*64*kib < off+n {
			return errBroken
		}
		return nil
	}
	r := c.Reader(src, src.size, ReaderConfig{Block: 64 * kib, Span: 512 * kib})
	p := make([]byte, mib)
	for off := int64(0); off < src.size; off += mib {
		n, err := r.ReadAt(bg, p, off)
		if want := bad*64*kib - off; want >= 0 && want < mib {
			if n != int(want) || !errors.Is(err, errBroken) {
				t.Errorf("ReadAt(%d) = %d, %v, want %d and broken", off, n, err, want)
			}
		} else if n != mib || err != nil {
			t.Errorf("ReadAt(%d) = %d, %v", off, n, err)
		}
	}
}

// A source that is away is not asked for each block once more.
func TestErrorOfTheWholeSourceIsFinal(t *testing.T) {
	c := open(t, Config{Whole: func(err error) bool { return errors.Is(err, errBroken) }})
	src := newSource(64*mib, 64*kib)
	src.fail = func(off, n int64) error { return errBroken }
	r := c.Reader(src, src.size, ReaderConfig{})
	r.Want(0, mib)
	for _, read := range []func() error{
		func() error { _, err := r.ReadAt(bg, make([]byte, mib), 2*mib); return err },
		func() error { _, err := r.Slice(bg, 4*mib, mib); return err },
		func() error { _, err := r.Slice(bg, 6*mib, 1000); return err },
	} {
		before := src.calls.Load()
		if err := read(); !errors.Is(err, errBroken) {
			t.Errorf("got %v", err)
		}
		if n := src.calls.Load() - before; n > 2 { // one may be that of Want
			t.Errorf("%d fetches", n)
		}
	}
}

func TestFetchPanicAndGoexitBecomeErrors(t *testing.T) {
	c := open(t, Config{})
	src := newSource(8*mib, mib)
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	src.fail = func(off, n int64) error { panic("boom") }
	var pe *PanicError
	if _, err := r.ReadAt(bg, make([]byte, 10), 0); !errors.As(err, &pe) || pe.Value != "boom" {
		t.Errorf("panic: %v, want PanicError", err)
	}
	src.fail = func(off, n int64) error { runtime.Goexit(); return nil }
	if _, err := r.ReadAt(bg, make([]byte, 10), 0); !errors.Is(err, errGoexit) {
		t.Errorf("goexit: %v", err)
	}
}

func TestFlightHasItsOwnDeadline(t *testing.T) {
	c := open(t, Config{FetchTimeout: 20 * time.Millisecond})
	src := newSource(8*mib, mib)
	src.gate = make(chan struct{})
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	if _, err := r.ReadAt(bg, make([]byte, 3*mib), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ReadAt = %v, want deadline exceeded", err)
	}
	if got := src.calls.Load(); got != 1 {
		t.Errorf("%d fetches, want 1: a store that is silent is not asked again", got)
	}
}

func TestRandomReadsCostOneBlockEach(t *testing.T) {
	const size, block = 1 << 30, 64 * kib
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	c := open(t, Config{Size: 64 * mib})
	src := newSource(size, block)
	r := c.Reader(src, size, ReaderConfig{Block: block})
	p, want := make([]byte, 4*kib), make([]byte, 4*kib)
	for range 2000 {
		off := rnd.Int64N(size/4096) * 4096
		if _, err := r.ReadAt(bg, p, off); err != nil {
			t.Fatal(err)
		}
		if fill(want, off); !bytes.Equal(p, want) {
			t.Fatalf("seed %d: wrong bytes at %d", seed, off)
		}
	}
	src.check(t)
	st := c.Stats()
	if st.ReadAheadFetches > 2 || st.FetchedBytes > (st.Misses+2)*block {
		t.Errorf("seed %d: %+v: want one block for each miss and no read-ahead", seed, st)
	}
}

func TestEndOfThing(t *testing.T) {
	c := open(t, Config{})
	src := newSource(3*mib+100, mib)
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	empty := c.Reader(src, 0, ReaderConfig{Block: mib})
	for _, tt := range []struct {
		name   string
		r      *Reader
		off    int64
		length int
		n      int
		err    error
	}{
		{"inside", r, 10, 100, 100, nil},
		{"up to the end", r, 3 * mib, 100, 100, nil},
		{"across the end", r, 3 * mib, 101, 100, io.EOF},
		{"long across the end", r, mib - 1, 4 * mib, 2*mib + 101, io.EOF},
		{"at the end", r, 3*mib + 100, 1, 0, io.EOF},
		{"beyond the end", r, 1 << 40, 1, 0, io.EOF},
		{"nothing at the end", r, 3*mib + 100, 0, 0, nil},
		{"negative", r, -1, 1, 0, errNegative},
		{"empty thing", empty, 0, 1, 0, io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, want := make([]byte, tt.length), make([]byte, tt.n)
			n, err := tt.r.ReadAt(bg, p, tt.off)
			if n != tt.n || !errors.Is(err, tt.err) {
				t.Fatalf("ReadAt = %d, %v, want %d, %v", n, err, tt.n, tt.err)
			}
			if fill(want, tt.off); !bytes.Equal(p[:n], want) {
				t.Error("wrong bytes")
			}
		})
	}
	src.check(t)
}

func TestSlice(t *testing.T) {
	c := open(t, Config{})
	src := newSource(3*mib+100, mib)
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	for _, tt := range []struct {
		name string
		off  int64
		n    int
		ok   bool
	}{
		{"inside one block", 5, 1000, true},
		{"a whole block", mib, mib, true},
		{"the short last block", 3 * mib, 100, true},
		{"two blocks", mib - 1, 2, false},
		{"across the end", 3 * mib, 101, false},
		{"beyond the end", 1 << 40, 1, false},
		{"nothing", 0, 0, false},
		{"negative", -1, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // missing, then there
				got, err := r.Slice(bg, tt.off, tt.n)
				if err != nil || (got != nil) != tt.ok {
					t.Fatalf("Slice = %d bytes, %v, want found %v", len(got), err, tt.ok)
				}
				want := make([]byte, len(got))
				if fill(want, tt.off); !bytes.Equal(got, want) || cap(got) != len(got) {
					t.Error("wrong bytes or capacity")
				}
			}
		})
	}
	src.check(t)
}

func TestHitDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	c := open(t, Config{Size: 16 * mib})
	r := c.Reader(newSource(14*mib, mib), 14*mib, ReaderConfig{Block: mib})
	p := make([]byte, 4*kib)
	for off := int64(0); off < 14*mib; off += 128 * kib {
		if _, err := r.ReadAt(bg, p, off); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		pool bool
	}{{"pool", true}, {"store", false}} {
		var at int64 = -1
		c.mu.Lock()
		for i := range r.blocks {
			if data, b := r.find(i); data != nil && (b != nil) == tt.pool {
				at = i * mib
			}
		}
		c.mu.Unlock()
		if at < 0 {
			t.Fatalf("no block in the %s", tt.name)
		}
		off := int64(0)
		if got := testing.AllocsPerRun(1000, func() {
			off = (off + 77*kib) % (mib - 4*kib)
			if _, err := r.ReadAt(bg, p, at+off); err != nil {
				t.Fatal(err)
			}
			if s, err := r.Slice(bg, at+off, 4*kib); s == nil || err != nil {
				t.Fatal(err)
			}
		}); got != 0 {
			t.Errorf("%s: %v allocations on a hit, want 0", tt.name, got)
		}
	}
}

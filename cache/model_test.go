package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// over checks the bounds that hold at every moment and names the first broken one.
func (c *Cache) over() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	store := c.storeBytes.Load()
	switch {
	case c.ringBytes+c.reserved > c.lim.pool:
		return fmt.Errorf("pool holds %d landed and %d in flight, limit %d", c.ringBytes, c.reserved, c.lim.pool)
	case c.flyAhead > c.lim.inFlight:
		return fmt.Errorf("read-ahead has %d in flight, limit %d", c.flyAhead, c.lim.inFlight)
	case c.unread > c.lim.ahead:
		return fmt.Errorf("read-ahead holds %d, limit %d", c.unread, c.lim.ahead)
	case store > c.lim.store+c.lim.swap:
		return fmt.Errorf("store holds %d, limit %d and %d on the way", store, c.lim.store, c.lim.swap)
	}
	return nil
}

// TestRandomReadsAgreeWithTheThing runs a mixture of everything against bytes
// known beforehand, with failing fetches and leaving waiters, and checks the
// memory bound during every fetch and on the heap at the end of every round.
func TestRandomReadsAgreeWithTheThing(t *testing.T) {
	for _, tt := range []struct {
		name        string
		size        int64
		block, span int64
	}{
		{"1 MiB blocks", 16 * mib, mib, 0},
		{"64 KiB blocks", 16 * mib, 64 * kib, 512 * kib},
		{"small blocks", 17 * mib, 4 * kib, 64 * kib},
		{"large cache", 64 * mib, mib, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			base := heap()
			c := open(t, Config{Size: tt.size, InFlight: 3 * mib})
			var readers []*Reader
			var sources []*source
			for k := range 5 {
				src := newSource(int64(20+k)*mib+int64(k)*1001, tt.block)
				var n atomic.Uint64
				src.fail = func(off, _ int64) error {
					if err := c.over(); err != nil {
						src.complain(err.Error())
					}
					if n.Add(1)%61 == 0 {
						return errBroken
					}
					return nil
				}
				sources = append(sources, src)
				readers = append(readers, c.Reader(src, src.size, ReaderConfig{Block: tt.block, Span: tt.span}))
			}
			rounds := 4
			if testing.Short() || raceEnabled {
				rounds = 1
			}
			for round := range rounds {
				var wg sync.WaitGroup
				for g := range 8 {
					rnd := rand.New(rand.NewPCG(seed, uint64(round*100+g)))
					wg.Go(func() {
						for range 60 {
							if err := step(rnd, readers[rnd.IntN(len(readers))]); err != nil {
								t.Errorf("seed %d: %v", seed, err)
								return
							}
						}
					})
				}
				wg.Wait()
				eventually(t, "read-ahead to land", func() bool { return c.Stats().FlightBytes == 0 })
				c.spill.Lock()
				c.store.Wait()
				c.spill.Unlock()
				// 4 MiB for what is not blocks: counters, entries, the test itself.
				if got := heap() - base; got > tt.size+4*mib {
					t.Errorf("seed %d: %d bytes live, want at most %d; %+v", seed, got, tt.size, c.Stats())
				}
			}
			for k, src := range sources {
				src.check(t)
				readers[k].Close()
				readers[k].Close()
				if n, err := readers[k].ReadAt(bg, make([]byte, 5), 5); err != nil && !errors.Is(err, errBroken) {
					t.Errorf("read after Close = %d, %v", n, err)
				}
			}
			c.store.Wait()
			if s := c.Stats(); s.Bytes != 0 {
				t.Errorf("all readers closed, %d bytes held: %+v", s.Bytes, s)
			}
		})
	}
}

// heap returns the live bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC() // empties what sync.Pool kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// step makes one access of some kind and checks its answer.
func step(rnd *rand.Rand, r *Reader) error {
	off := rnd.Int64N(r.Size() + 100)
	if rnd.IntN(2) == 0 {
		off &^= 4095
	}
	n := 1 + rnd.IntN(1<<rnd.IntN(22))
	want := make([]byte, max(0, min(int64(n), r.Size()-off)))
	fill(want, off)
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	allow := func(err error) bool {
		return errors.Is(err, errBroken) || errors.Is(err, context.Canceled) && ctx.Err() != nil
	}
	switch rnd.IntN(6) {
	case 0: // some sequential reads
		p := make([]byte, 128*kib)
		for range 1 + rnd.IntN(40) {
			m, err := r.ReadAt(ctx, p, off)
			want := make([]byte, m)
			if fill(want, off); !bytes.Equal(p[:m], want) {
				return fmt.Errorf("wrong bytes at %d", off)
			}
			if err != nil {
				if err == io.EOF || allow(err) {
					return nil
				}
				return err
			}
			off += int64(m)
		}
		return nil
	case 1:
		got, err := r.Slice(ctx, off, n)
		if err != nil && !allow(err) || got != nil && !bytes.Equal(got, want) {
			return fmt.Errorf("Slice(%d, %d) = %d bytes, %v", off, n, len(got), err)
		}
		return nil
	case 2:
		time.AfterFunc(time.Duration(rnd.IntN(200))*time.Microsecond, cancel)
	}
	p := make([]byte, n)
	m, err := r.ReadAt(ctx, p, off)
	if !bytes.Equal(p[:m], want[:m]) {
		return fmt.Errorf("wrong bytes at %d", off)
	}
	switch {
	case err == nil && m == n, err == io.EOF && m == len(want) && m < n, allow(err) && m < n:
		return nil
	}
	return fmt.Errorf("ReadAt(%d, %d) = %d, %v", off, n, m, err)
}

// decoder is a Fetcher over another Reader of the same cache, as decompression is.
type decoder struct{ from *Reader }

func (d decoder) ReadRange(ctx context.Context, p []byte, off int64) error {
	_, err := d.from.ReadAt(ctx, p, off)
	return err
}

// TestDecodersDoNotBlockThemselves fills the memory for demand fetches with
// flights that each need another one, and has plain reads waiting for some of the
// same blocks.
func TestDecodersDoNotBlockThemselves(t *testing.T) {
	c := open(t, Config{Size: 16 * mib, FetchTimeout: 30 * time.Second})
	src := newSource(64*mib, mib)
	raw := c.Reader(src, src.size, ReaderConfig{Block: mib})
	dec := c.Reader(decoder{raw}, src.size, ReaderConfig{Block: mib})
	var wg sync.WaitGroup
	for i := range int64(64) {
		for _, r := range []*Reader{dec, raw} {
			wg.Go(func() {
				p, want := make([]byte, kib), make([]byte, kib)
				off := (i * 37 % 64) * mib
				if _, err := r.ReadAt(bg, p, off); err != nil {
					t.Error(err)
				}
				if fill(want, off); !bytes.Equal(p, want) {
					t.Error("wrong bytes")
				}
			})
		}
	}
	wg.Wait()
	src.check(t)
}

func TestCloseEndsFlightsAndReads(t *testing.T) {
	c := open(t, Config{})
	src := newSource(8*mib, mib)
	src.gate = make(chan struct{})
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	errs := make(chan error)
	go func() { _, err := r.ReadAt(bg, make([]byte, 10), 0); errs <- err }()
	eventually(t, "a flight", func() bool { return src.calls.Load() == 1 })
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { c.Close(); r.Close() })
	}
	if err := <-errs; !errors.Is(err, ErrClosed) {
		t.Errorf("waiter at Close: %v, want ErrClosed", err)
	}
	wg.Wait()
	if _, err := r.ReadAt(bg, make([]byte, 10), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v, want ErrClosed", err)
	}
	if _, err := r.Slice(bg, 0, 10); !errors.Is(err, ErrClosed) {
		t.Errorf("slice after Close: %v, want ErrClosed", err)
	}
}

// TestReaderCloseDoesNotFailWaiters closes a reader whose read-ahead others wait for.
func TestReaderCloseDoesNotFailWaiters(t *testing.T) {
	c := open(t, Config{})
	src := newSource(64*mib, mib)
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	p := make([]byte, 512*kib)
	block := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(block) }) }
	defer open()
	src.fail = func(off, _ int64) error {
		if off >= 4*mib {
			<-block
		}
		return nil
	}
	for off := int64(0); off < 4*mib; off += 512 * kib {
		if _, err := r.ReadAt(bg, p, off); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error, 1)
	joined := c.Stats().Joined
	go func() { _, err := r.ReadAt(bg, p, 4*mib); errs <- err }()
	eventually(t, "a read to join read-ahead", func() bool { return c.Stats().Joined > joined })
	r.Close()
	open()
	if err := <-errs; err != nil {
		t.Errorf("waiter: %v", err)
	}
}

func TestReadAheadSurvivesRequestsOutOfOrder(t *testing.T) {
	c := open(t, Config{Size: 64 * mib})
	src := newSource(128*mib, mib)
	r := c.Reader(src, src.size, ReaderConfig{Block: mib})
	p := make([]byte, 128*kib)
	for base := int64(0); base < src.size; base += 4 * 128 * kib {
		for _, k := range []int64{1, 0, 3, 2} {
			if _, err := r.ReadAt(bg, p, base+k*128*kib); err != nil {
				t.Fatal(err)
			}
		}
	}
	st := c.Stats()
	if got := src.fetched.Load(); got != src.size || st.Fetches-st.ReadAheadFetches > 4 {
		t.Errorf("fetched %d bytes of %d, %+v", got, src.size, st)
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		ok   bool
	}{
		{"zero", Config{}, true},
		{"smallest", Config{Size: 16 * mib}, true},
		{"too small", Config{Size: 16*mib - 1}, false},
		{"negative", Config{Size: -1}, false},
		{"negative in flight", Config{InFlight: -1}, false},
		{"negative timeout", Config{FetchTimeout: -1}, false},
		{"much in flight", Config{InFlight: 1 << 50}, true},
		{"huge", Config{Size: 1 << 40}, true},
	} {
		cfg, err := tt.cfg.validate()
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %v", tt.name, err, tt.ok)
		}
		if err != nil {
			continue
		}
		l := cfg.limits()
		if l.pool+l.swap+l.store != cfg.Size || l.store < cfg.Size/8 || l.inFlight > l.ahead || l.ahead+l.demand != l.pool {
			t.Errorf("%s: limits %+v do not add up to %d", tt.name, l, cfg.Size)
		}
	}
}

func BenchmarkHit(b *testing.B) {
	for _, n := range []int{4 * kib, 128 * kib, mib} {
		for _, block := range []int64{64 * kib, mib} {
			b.Run(fmt.Sprintf("read=%dKiB/block=%dKiB", n/kib, block/kib), func(b *testing.B) {
				c := open(b, Config{})
				r := c.Reader(newSource(32*mib, block), 32*mib, ReaderConfig{Block: block})
				if err := readAll(r, mib, false); err != nil {
					b.Fatal(err)
				}
				p := make([]byte, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					if _, err := r.ReadAt(bg, p, off); err != nil {
						b.Fatal(err)
					}
					off = (off + int64(n)) % (32 * mib)
				}
			})
		}
	}
	for _, name := range []string{"sequential", "random"} {
		b.Run("slice=4KiB/"+name, func(b *testing.B) {
			c := open(b, Config{})
			r := c.Reader(newSource(32*mib, mib), 32*mib, ReaderConfig{Block: mib})
			if err := readAll(r, mib, false); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			off, by := int64(0), int64(4*kib)
			if name == "random" {
				by = 5_003 * 4 * kib
			}
			for b.Loop() {
				if _, err := r.Slice(bg, off, 4*kib); err != nil {
					b.Fatal(err)
				}
				off = (off + by) % (32 * mib)
			}
		})
	}
}

// idle is a Fetcher that takes a while and writes nothing.
type idle struct{ delay time.Duration }

func (f idle) ReadRange(ctx context.Context, p []byte, off int64) error {
	time.Sleep(f.delay)
	return nil
}

func BenchmarkColdScan(b *testing.B) {
	for _, block := range []int64{64 * kib, mib} {
		for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
			b.Run(fmt.Sprintf("block=%dKiB/delay=%v", block/kib, delay), func(b *testing.B) {
				const size = 512 * mib
				c := open(b, Config{})
				b.SetBytes(size)
				for b.Loop() {
					r := c.Reader(idle{delay}, size, ReaderConfig{Block: block})
					if err := readAll(r, 128*kib, false); err != nil {
						b.Fatal(err)
					}
					r.Close()
				}
			})
		}
	}
}

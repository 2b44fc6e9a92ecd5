package cache

import (
	"bytes"
	"sync"
	"testing"
)

// shelf is a Tier in memory that counts what it is asked and given.
type shelf struct {
	mu     sync.Mutex
	blocks map[int64][]byte
	asked  map[int64]int
	saved  map[int64]int
}

func newShelf() *shelf {
	return &shelf{blocks: map[int64][]byte{}, asked: map[int64]int{}, saved: map[int64]int{}}
}

// shelfUnit is what a shelf keeps bytes in, beside the shorter end of a thing.
const shelfUnit = 64 * kib

func (s *shelf) Load(p []byte, off int64) (n int, kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n < len(p) {
		part := p[n:min(n+shelfUnit, len(p))]
		b, ok := s.blocks[off+int64(n)]
		if n > 0 && ok != kept {
			copy(part, "the rest may hold anything")
			break
		}
		s.asked[off+int64(n)]++
		kept = ok
		n += len(part)
		if copy(part, b); !ok {
			copy(part, "what is not kept may hold anything")
		}
	}
	return n, kept
}

func (s *shelf) Save(p []byte, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 0; n < len(p); n += shelfUnit {
		s.saved[off+int64(n)]++
		s.blocks[off+int64(n)] = p[n:min(n+shelfUnit, len(p))]
	}
}

// TestTierIsAskedFirst reads through a tier that has some of four blocks: one
// fetch gets what lies between its first and last missing block.
func TestTierIsAskedFirst(t *testing.T) {
	const block = shelfUnit
	const size = 3*block + 100
	for _, tc := range []struct {
		name    string
		has     []int64
		fetched int64
		saved   int
	}{
		{"none", nil, size, 4},
		{"all", []int64{0, 1, 2, 3}, 0, 0},
		{"first", []int64{0, 1}, block + 100, 2},
		{"last", []int64{2, 3}, 2 * block, 2},
		{"ends", []int64{0, 3}, 2 * block, 2},
		{"middle", []int64{1, 2}, size, 4},
		{"all but one", []int64{0, 1, 3}, block, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t, Config{Size: minSize})
			src := newSource(size, block)
			want := make([]byte, size)
			fill(want, 0)
			tier := newShelf()
			for _, i := range tc.has {
				tier.blocks[i*block] = want[i*block : min((i+1)*block, size)]
			}
			r := c.Reader(src, size, ReaderConfig{Block: block, Span: 4 * block, Tier: tier})
			got := make([]byte, size)
			if n, err := r.ReadAt(bg, got, 0); n != size || err != nil {
				t.Fatalf("read %d, %v", n, err)
			}
			if !bytes.Equal(got, want) {
				t.Error("other bytes")
			}
			src.check(t)
			if n := src.fetched.Load(); n != tc.fetched || src.calls.Load() > 1 {
				t.Errorf("fetched %d bytes in %d calls, want %d in one", n, src.calls.Load(), tc.fetched)
			}
			tier.mu.Lock()
			defer tier.mu.Unlock()
			if len(tier.saved) != tc.saved {
				t.Errorf("saved %v, want %d blocks", tier.saved, tc.saved)
			}
			for off, n := range tier.asked {
				if n != 1 {
					t.Errorf("the block at %d was asked for %d times", off, n)
				}
			}
		})
	}
}

// TestManyWaitersOneLoad: what waits for a block shares its flight, tier or not.
func TestManyWaitersOneLoad(t *testing.T) {
	c := open(t, Config{Size: minSize})
	src := newSource(mib, mib)
	src.gate = make(chan struct{})
	tier := newShelf()
	r := c.Reader(src, mib, ReaderConfig{Tier: tier})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := r.ReadAt(bg, make([]byte, 100), 5000); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all to wait", func() bool { return c.Stats().Misses == 16 })
	close(src.gate)
	wg.Wait()
	if tier.asked[0] != 1 || tier.saved[0] != 1 || src.calls.Load() != 1 {
		t.Errorf("asked %v, saved %v, fetched %d times", tier.asked, tier.saved, src.calls.Load())
	}
}

func TestFailedFetchIsNotSaved(t *testing.T) {
	c := open(t, Config{Size: minSize})
	src := newSource(mib, mib)
	src.fail = func(int64, int64) error { return errBroken }
	tier := newShelf()
	r := c.Reader(src, mib, ReaderConfig{Tier: tier})
	if _, err := r.ReadAt(bg, make([]byte, 100), 0); err == nil {
		t.Error("no error")
	}
	if len(tier.saved) != 0 {
		t.Errorf("saved %v", tier.saved)
	}
}

package cache

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
)

// scattered is a thing of blocks that lie in another in any order, some of which
// are zeros.
type scattered struct {
	size, cluster int64
	at            []int64 // of each cluster; negative for zeros
}

// scatter lays n clusters out in a random order, runs of run of them together,
// with a table before and behind.
func scatter(rnd *rand.Rand, n, cluster int64, run int) *scattered {
	s := &scattered{size: n*cluster - 1000, cluster: cluster, at: make([]int64, n)}
	var runs [][]int64
	for i := int64(0); i < n; i++ {
		switch {
		case rnd.IntN(5) == 0:
			s.at[i] = -1
		case len(runs) == 0 || len(runs[len(runs)-1]) == run:
			runs = append(runs, []int64{i})
		default:
			runs[len(runs)-1] = append(runs[len(runs)-1], i)
		}
	}
	rnd.Shuffle(len(runs), func(i, j int) { runs[i], runs[j] = runs[j], runs[i] })
	pos := int64(1)
	for _, r := range runs {
		for _, i := range r {
			s.at[i] = pos * cluster
			pos++
		}
	}
	return s
}

// object is the size of what it lies in, and data how much of that is its own.
func (s *scattered) object() (size, data int64) {
	for _, at := range s.at {
		if at >= 0 {
			data += s.cluster
		}
	}
	return data + 2*s.cluster, data
}

func (s *scattered) locate(off, limit int64) (at, n int64) {
	i := off / s.cluster
	n = min(limit, (i+1)*s.cluster-off)
	if s.at[i] < 0 {
		return -1, n
	}
	at = s.at[i] + off%s.cluster
	for n < limit && i+1 < int64(len(s.at)) && s.at[i+1] == s.at[i]+s.cluster {
		i++
		n = min(limit, n+s.cluster)
	}
	return at, n
}

// fill is what the thing has at off.
func (s *scattered) fill(p []byte, off int64) {
	for len(p) > 0 {
		at, n := s.locate(off, int64(len(p)))
		if at < 0 {
			clear(p[:n])
		} else {
			fill(p[:n], at)
		}
		p, off = p[n:], off+n
	}
}

func TestPlacedScanFetchesEachByteOnce(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cache   int64
		cluster int64
		run     int // clusters that lie together
		read    int
		readers int
	}{
		{"scattered", 64 * mib, 64 * kib, 1, 128 * kib, 1},
		{"scattered, long reads", 64 * mib, 64 * kib, 1, mib, 1},
		{"scattered, odd reads", 64 * mib, 64 * kib, 1, 100_001, 1},
		{"in runs", 64 * mib, 64 * kib, 9, 128 * kib, 1},
		{"in order", 64 * mib, 64 * kib, 1 << 20, 128 * kib, 1},
		{"small cache", 16 * mib, 64 * kib, 3, 128 * kib, 1},
		{"large clusters", 64 * mib, mib, 1, mib, 1},
		{"four readers", 64 * mib, 64 * kib, 2, 128 * kib, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			size := int64(128 * mib)
			if testing.Short() || raceEnabled {
				size /= 8
			}
			c := open(t, Config{Size: tt.cache})
			var wg sync.WaitGroup
			for k := range tt.readers {
				s := scatter(rand.New(rand.NewPCG(1, uint64(k))), size/tt.cluster, tt.cluster, tt.run)
				object, data := s.object()
				src := newSource(object, 64*kib)
				p := c.Reader(src, object, ReaderConfig{}).Placed(s.size, s.locate)
				wg.Go(func() {
					if err := scan(p, s, tt.read); err != nil {
						t.Error(err)
					}
					src.check(t)
					if got := src.fetched.Load(); got > data {
						t.Errorf("fetched %d bytes in %d calls, there are %d", got, src.calls.Load(), data)
					}
				})
			}
			wg.Wait()
			st := c.Stats()
			t.Logf("%d fetches, %d ahead, of %d KiB on average", st.Fetches, st.ReadAheadFetches, st.FetchedBytes/st.Fetches/kib)
			// The first reads are not yet known to be in order, and a source that
			// takes no time cannot be kept ahead of.
			if late := st.FetchedBytes - st.ReadAheadBytes; late > st.FetchedBytes/2 {
				t.Errorf("of %d bytes %d were fetched only when they were read", st.FetchedBytes, late)
			}
		})
	}
}

// scan reads a thing from start to end and compares it.
func scan(p *Placed, s *scattered, n int) error {
	b, want := make([]byte, n), make([]byte, n)
	for off := int64(0); ; off += int64(n) {
		m, err := p.ReadAt(bg, b, off)
		if err != nil && err != io.EOF {
			return err
		}
		if s.fill(want[:m], off); !bytes.Equal(b[:m], want[:m]) {
			return errors.New("wrong bytes")
		}
		if off+int64(m) == s.size {
			return nil
		} else if m < n {
			return errors.New("a short read")
		}
	}
}

func TestPlacedRandomReads(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	c := open(t, Config{Size: 64 * mib})
	s := scatter(rnd, 8192, 64*kib, 3)
	object, _ := s.object()
	src := newSource(object, 64*kib)
	p := c.Reader(src, object, ReaderConfig{}).Placed(s.size, s.locate)
	b, want := make([]byte, 64*kib), make([]byte, 64*kib)
	read := int64(0)
	for range 1000 {
		off := rnd.Int64N(s.size/4096-16) * 4096
		if _, err := p.ReadAt(bg, b, off); err != nil {
			t.Fatal(err)
		}
		if s.fill(want, off); !bytes.Equal(b, want) {
			t.Fatalf("seed %d: wrong bytes at %d", seed, off)
		}
		read += int64(len(b))
	}
	src.check(t)
	if got := src.fetched.Load(); got > 2*read {
		t.Errorf("seed %d: fetched %d bytes for %d", seed, got, read)
	}
	if n, err := p.ReadAt(bg, b, s.size-5); n != 5 || err != io.EOF {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if _, err := p.ReadAt(bg, b, -1); !errors.Is(err, errNegative) {
		t.Errorf("before the start: %v", err)
	}
}

// A read that takes many parts waits once, not once for each.
func TestPlacedReadFetchesItsPartsTogether(t *testing.T) {
	c := open(t, Config{Size: 64 * mib})
	s := scatter(rand.New(rand.NewPCG(1, 1)), 64, 64*kib, 1)
	object, _ := s.object()
	src := newSource(object, 64*kib)
	src.gate = make(chan struct{})
	r := c.Reader(src, object, ReaderConfig{})
	p := r.Placed(s.size, s.locate)
	parts, _ := p.f.parts(0, mib, mib, hops, mib)
	done := make(chan error, 1)
	go func() {
		b, want := make([]byte, mib), make([]byte, mib)
		_, err := p.ReadAt(bg, b, 0)
		if s.fill(want, 0); err == nil && !bytes.Equal(b, want) {
			err = errors.New("wrong bytes")
		}
		done <- err
	}()
	eventually(t, "all parts to be asked for", func() bool { return src.calls.Load() == int64(len(parts)) })
	close(src.gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(parts) < 8 || src.calls.Load() != int64(len(parts)) {
		t.Errorf("%d parts, %d fetches", len(parts), src.calls.Load())
	}
	src.check(t)
}

func TestPlacedSlice(t *testing.T) {
	c := open(t, Config{Size: 64 * mib})
	s := scatter(rand.New(rand.NewPCG(1, 1)), 256, 64*kib, 4)
	object, data := s.object()
	src := newSource(object, 64*kib)
	p := c.Reader(src, object, ReaderConfig{}).Placed(s.size, s.locate)
	got := 0
	want := make([]byte, 100_000)
	for off := int64(0); off < s.size; off += int64(len(want)) {
		want = want[:min(int64(len(want)), s.size-off)]
		s.fill(want, off)
		b, err := p.Slice(bg, off, len(want))
		if err != nil || b != nil && !bytes.Equal(b, want) {
			t.Errorf("at %d: %d bytes, %v, or wrong ones", off, len(b), err)
		}
		if at, n := s.locate(off, int64(len(want))); b != nil && (at < 0 || n < int64(len(want))) {
			t.Errorf("at %d: a slice of what does not lie together", off)
		}
		if b != nil {
			got++
			continue
		}
		if _, err := p.ReadAt(bg, want, off); err != nil {
			t.Error(err)
		}
	}
	if got < 20 || src.fetched.Load() > data {
		t.Errorf("%d slices, %d bytes fetched of %d", got, src.fetched.Load(), data)
	}
	for _, at := range []int64{-1, s.size - 5, s.size} {
		if b, err := p.Slice(bg, at, 10); b != nil || err != nil {
			t.Errorf("at %d: %d bytes, %v", at, len(b), err)
		}
	}
	src.check(t)
}

func TestPlacedHitDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	c := open(t, Config{Size: 64 * mib})
	s := scatter(rand.New(rand.NewPCG(1, 1)), 128, 64*kib, 2)
	object, _ := s.object()
	p := c.Reader(newSource(object, 64*kib), object, ReaderConfig{}).Placed(s.size, s.locate)
	if err := scan(p, s, mib); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, mib)
	off := int64(0)
	if got := testing.AllocsPerRun(100, func() {
		off = (off + 777*kib) % (s.size - mib)
		if _, err := p.ReadAt(bg, b, off); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("%v allocations on a hit, want 0", got)
	}
}

package codectest

import (
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"imagefs/codec"
)

// concurrent: readers at the same time see the same bytes.
func (s *suite) concurrent(t *testing.T) {
	f := s.layout(t, victim(3))
	for _, c := range []struct {
		what string
		d    codec.Disk
	}{{"file", f}, {"opened disk", s.opened(t, f)}} {
		want, err := ReadAll(c.d)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for g := range uint64(8) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(g, 4))
				buf := make([]byte, 90*kib)
				for range readsOf(c.d, 60) {
					off := r.Int64N(c.d.Size())
					p := buf[:min(r.Int64N(int64(len(buf))), c.d.Size()-off)]
					if n, err := c.d.ReadAt(context.Background(), p, off); n < len(p) {
						t.Errorf("%s: read at %#x: %d, %v", c.what, off, n, err)
						return
					}
					if i := differ(p, want[off:off+int64(len(p))]); i >= 0 {
						t.Errorf("%s: byte %#x differs under concurrent reads", c.what, off+int64(i))
						return
					}
					if g == 0 {
						if err := extentsErrShort(c.d, off); err != nil {
							t.Errorf("%s: %v", c.what, err)
						}
					}
				}
			})
		}
		wg.Wait()
	}
}

func extentsErrShort(d codec.Disk, off int64) error {
	es, err := extents(d, off, 200*kib)
	if err != nil {
		return err
	}
	return covers(es, off, min(off+200*kib, d.Size()))
}

// allocations: steady reads allocate nothing, of the file and, unless blocks
// are decoded, of the opened disk.
func (s *suite) allocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector changes what pools allocate")
	}
	f := s.layout(t, New("steady", 24*mib, 5, Range{0, 9 * mib}, Range{12*mib + 512, 40 * kib}, Range{20 * mib, 3*mib + 512}))
	opened := s.opened(t, f)
	disks := []struct {
		what string
		d    codec.Disk
	}{{"file", f}, {"opened disk", opened}}
	if c, ok := opened.(codec.Coded); ok && c.Unit() != 0 {
		disks = disks[:1]
	}
	ctx := context.Background()
	for _, c := range disks {
		for _, size := range []int64{4 * kib, mib, 777} {
			buf := make([]byte, size)
			off := int64(0)
			var failed error
			n := testing.AllocsPerRun(int(min(c.d.Size()/size, 3000)), func() {
				if off >= c.d.Size() {
					off = 0
				}
				n, err := c.d.ReadAt(ctx, buf, off)
				if err != nil && err != io.EOF {
					failed = err
				}
				off += int64(n)
			})
			if failed != nil {
				t.Errorf("%s: %v", c.what, failed)
			}
			if n != 0 {
				t.Errorf("%s: a sequential read of %d bytes allocates %.0f times, want 0", c.what, size, n)
			}
		}
	}
}

// largeLayout: 2 TiB with a thousand extents cost little memory.
func (s *suite) largeLayout(t *testing.T) {
	size := 2 * tib
	f := s.layout(t, Scattered(size, 1000, 12))
	if f == nil {
		size = 2040 * gib
	}
	d := Scattered(size, 1000, 12)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f = s.layout(t, d)
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	if f == nil {
		t.Skipf("%d bytes are too large for the format", size)
	}
	n := after.TotalAlloc - before.TotalAlloc
	t.Logf("layout of %d bytes in 1,000 extents: %v, %d bytes allocated", size, took, n)
	if limit := uint64(16 * mib); n > limit {
		t.Errorf("layout of 2 TiB in 1,000 extents allocated %d bytes, want %d at most", n, limit)
	}
	start = time.Now()
	es, err := Extents(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d extents of the file in %v", len(es), time.Since(start))
	start = time.Now()
	got, err := s.open.Open(context.Background(), f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("opened again in %v", time.Since(start))
	sameDisk(t, got, d)
}

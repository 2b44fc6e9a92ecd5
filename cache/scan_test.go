package cache

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"time"
)

func TestScanFetchesEachByteOnce(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		cache, size           int64
		block, span, parallel int64
		read                  int
		readers               int
	}{
		{"one reader, 16 MiB cache", 16 * mib, 1024 * mib, mib, 0, 0, 128 * kib, 1},
		{"one reader, 64 MiB cache", 64 * mib, 512 * mib, mib, 0, 0, 128 * kib, 1},
		{"one reader, 256 MiB cache", 256 * mib, 512*mib + 77, mib, 0, 0, 128 * kib, 1},
		{"one reader, default cache, 1 MiB reads", 0, 512*mib + 77, mib, 0, 0, mib, 1},
		{"one reader, unaligned reads", 16 * mib, 256*mib + 4097, mib, 0, 0, 100_001, 1},
		{"eight readers, 16 MiB cache", 16 * mib, 256 * mib, mib, 0, 0, 128 * kib, 8},
		{"eight readers, 64 MiB cache", 64 * mib, 256 * mib, mib, 0, 0, 128 * kib, 8},
		{"eight readers, 256 MiB cache", 256 * mib, 256*mib - 1, mib, 0, 0, 128 * kib, 8},
		{"eight readers, 64 MiB cache, 4 KiB reads", 64 * mib, 64 * mib, mib, 0, 0, 4 * kib, 8},
		{"eight readers, small blocks", 16 * mib, 128 * mib, 64 * kib, 256 * kib, 4, 128 * kib, 8},
		{"one reader, small blocks, long reads", 16 * mib, 256*mib + 5, 64 * kib, mib, 0, mib, 1},
		{"eight readers, tiny blocks", 16 * mib, 32 * mib, 4 * kib, 64 * kib, 0, 128 * kib, 8},
		{"one reader, 2 MiB blocks", 16 * mib, 512 * mib, 2 * mib, 0, 0, 128 * kib, 1},
		{"one reader, blocks too large for read-ahead", 16 * mib, 256 * mib, 8 * mib, 0, 0, 128 * kib, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			size := tt.size
			if testing.Short() || raceEnabled {
				size = size/32 + 5
			}
			c := open(t, Config{Size: tt.cache})
			var wg sync.WaitGroup
			for range tt.readers {
				src := newSource(size, tt.block)
				r := c.Reader(src, size, ReaderConfig{Block: tt.block, Span: tt.span, Parallel: int(tt.parallel)})
				wg.Go(func() {
					if err := readAll(r, tt.read, true); err != nil {
						t.Error(err)
					}
					src.check(t)
					if got := src.fetched.Load(); got != size {
						t.Errorf("fetched %d bytes in %d calls, want %d", got, src.calls.Load(), size)
					}
				})
			}
			wg.Wait()
			st := c.Stats()
			t.Logf("%d fetches, %d ahead, of %d KiB on average", st.Fetches, st.ReadAheadFetches, st.FetchedBytes/st.Fetches/kib)
		})
	}
}

// What is read often stays, however much is read once beside it.
func TestScanLeavesOthersAlone(t *testing.T) {
	size := int64(512 * mib)
	if testing.Short() || raceEnabled {
		size /= 4
	}
	for _, late := range []bool{false, true} {
		c := open(t, Config{Size: 64 * mib})
		often, once := newSource(8*mib, 64*kib), newSource(size, 64*kib)
		r := c.Reader(often, often.size, ReaderConfig{})
		if err := readAll(r, 100_001, true); err != nil {
			t.Fatal(err)
		}
		scan := c.Reader(once, once.size, ReaderConfig{Scan: 4 * mib})
		p := make([]byte, mib)
		for off := int64(0); off < size; off += 2 * mib {
			first, second := off, off+mib
			if late { // as requests of the kernel may be
				first, second = second, first
			}
			for _, at := range []int64{first, second} {
				if _, err := scan.ReadAt(bg, p, at); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := once.fetched.Load(); got != size {
			t.Errorf("late %v: %d bytes fetched by the scan, want %d", late, got, size)
		}
		before := often.fetched.Load()
		if err := readAll(r, 100_001, true); err != nil {
			t.Fatal(err)
		}
		if got := often.fetched.Load() - before; got != 0 {
			t.Errorf("late %v: %d bytes were fetched again after a scan of %d", late, got, size)
		}
		if s := c.Stats(); s.Evicted != 0 || s.Bytes > 40*mib {
			t.Errorf("late %v: a scan left %+v", late, s)
		}
		often.check(t)
		once.check(t)
	}
}

func TestWantIsOneFetch(t *testing.T) {
	c := open(t, Config{})
	src := newSource(3*mib+5, 64*kib)
	r := c.Reader(src, src.size, ReaderConfig{})
	for _, off := range []int64{-1, src.size, src.size + 1} {
		r.Want(off, 5)
	}
	r.Want(0, 0)
	r.Want(0, mib)
	r.Want(5, mib/2) // on its way
	p := make([]byte, mib)
	if _, err := r.ReadAt(bg, p, 0); err != nil {
		t.Fatal(err)
	}
	if n := src.calls.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	r.Want(3*mib, 1<<40)
	if n, err := r.ReadAt(bg, p, 3*mib); n != 5 || err != io.EOF {
		t.Errorf("the end: %d, %v", n, err)
	}
	if got := src.fetched.Load(); got != mib+5 {
		t.Errorf("%d bytes fetched", got)
	}
	src.check(t)
	c.Close()
	r.Want(mib, mib)
}

func TestRelease(t *testing.T) {
	c := open(t, Config{Size: 16 * mib})
	src := newSource(40*mib, 64*kib)
	r := c.Reader(src, src.size, ReaderConfig{})
	held, err := r.Slice(bg, 5, 1000)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // also while it is being read
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
				c.Release()
			}
		}
	})
	for range 2 {
		if err := readAll(r, 100_001, true); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	eventually(t, "read-ahead to land", func() bool { return c.Stats().FlightBytes == 0 })
	c.Release()
	if s := c.Stats(); s.Bytes != 0 {
		t.Errorf("%d bytes held: %+v", s.Bytes, s)
	}
	want := make([]byte, len(held))
	if fill(want, 5); !bytes.Equal(held, want) {
		t.Error("what was held has changed")
	}
	if err := readAll(r, 100_001, true); err != nil {
		t.Error(err)
	}
	src.check(t)
	c.Close()
	c.Release() // does nothing
}

package disk

import (
	"bytes"
	"context"
	"os"
	"sync/atomic"
	"testing"

	"imagefs/cache"
)

// fetcher is the object that fill makes, and counts what is fetched of it.
type fetcher struct{ bytes atomic.Int64 }

func (f *fetcher) ReadRange(_ context.Context, p []byte, off int64) error {
	f.bytes.Add(int64(len(p)))
	for n := 0; n < len(p); n += Unit {
		copy(p[n:], unit(int(off+int64(n))/Unit))
	}
	return nil
}

// TestRestartFetchesNothing reads a thing through memory and disk, then through
// another memory and the same disk, then with every file of it damaged.
func TestRestartFetchesNothing(t *testing.T) {
	const size = 12*mib + 3*Unit
	dir := t.TempDir()
	read := func() (fetched int64, s Stats) {
		d := start(t, Config{Dir: dir, Size: 64 * mib}, system{})
		defer d.Close()
		c, err := cache.New(cache.Config{Size: minSize})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f := new(fetcher)
		r := c.Reader(f, size, cache.ReaderConfig{Tier: object(d, "a")})
		p := make([]byte, Unit)
		for i := range int64(size / Unit) {
			if _, err := r.ReadAt(t.Context(), p, i*Unit); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, unit(int(i))) {
				t.Fatalf("unit %d has other bytes", i)
			}
		}
		return f.bytes.Load(), d.Stats()
	}
	if n, s := read(); n != size || s.Hits != 0 {
		t.Errorf("at first: fetched %d bytes of %d; %+v", n, size, s)
	}
	if n, s := read(); n != 0 || s.Misses != 0 || s.ReadBytes != size {
		t.Errorf("after a restart: fetched %d bytes; %+v", n, s)
	}
	for _, path := range files(t, dir) {
		if err := os.Truncate(path, 4000); err != nil {
			t.Fatal(err)
		}
	}
	if n, s := read(); n != size || s.Damaged < 13 { // each of 13 files, until it is forgotten
		t.Errorf("with damaged files: fetched %d bytes of %d; %+v", n, size, s)
	}
	if n, _ := read(); n != 0 {
		t.Errorf("after that: fetched %d bytes", n)
	}
}

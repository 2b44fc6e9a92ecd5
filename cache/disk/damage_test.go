package disk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// rewrite replaces the bytes of a file.
func rewrite(t *testing.T, path string, change func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamageIsNeverServed flips bits of every file, at every kind of place, cuts
// files, and moves whole files to other names.
func TestDamageIsNeverServed(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(b []byte, rng *rand.Rand) []byte
	}{
		{"a bit of the header", func(b []byte, rng *rand.Rand) []byte {
			b[rng.IntN(headerSize)] ^= 1 << rng.IntN(8)
			return b
		}},
		{"a bit of the bytes", func(b []byte, rng *rand.Rand) []byte {
			b[headerSize+rng.IntN(len(b)-headerSize)] ^= 1 << rng.IntN(8)
			return b
		}},
		{"a page of zeros", func(b []byte, rng *rand.Rand) []byte {
			clear(b[4096*rng.IntN(17):][:4096])
			return b
		}},
		{"cut short", func(b []byte, rng *rand.Rand) []byte { return b[:rng.IntN(len(b))] }},
		{"empty", func(b []byte, _ *rand.Rand) []byte { return b[:0] }},
		{"another chunk", func(b []byte, _ *rand.Rand) []byte {
			h := header{sum: Identity{Store: "other"}.sum()}
			h.enter(b[headerSize:], 0)
			h.encode(b[:headerSize])
			return b
		}},
		{"another layout", func(b []byte, _ *rand.Rand) []byte {
			copy(b, "ifsblk\x00\x01")
			return b
		}},
		{"a unit that cannot be", func(b []byte, _ *rand.Rand) []byte {
			h := header{sum: Identity{Store: "s", Key: "a", ETag: "v1", Size: 1 << 30}.sum()}
			h.place = [perChunk]uint8{0: perChunk + 1}
			h.encode(b[:headerSize])
			return b
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const chunks = 16 // of one unit
			c := start(t, Config{}, system{})
			o := object(c, "a")
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			for i := range chunks {
				put(t, o, apart(i))
			}
			for _, path := range files(t, c.cfg.Dir) {
				rewrite(t, path, func(b []byte) []byte { return tc.damage(b, rng) })
			}
			for i := range chunks {
				if load(t, o, apart(i)) {
					t.Errorf("unit %d is served", apart(i))
				}
			}
			if got := c.Stats().Damaged; got != chunks {
				t.Errorf("%d of %d are counted as damaged", got, chunks)
			}
			settled(t, c)
			if got := files(t, c.cfg.Dir); len(got) != 0 {
				t.Errorf("%d damaged files are left", len(got))
			}
			for i := range chunks {
				put(t, o, apart(i))
				if !load(t, o, apart(i)) {
					t.Errorf("unit %d is not kept when it was fetched anew", apart(i))
				}
			}
		})
	}
}

// TestDamageCostsOneUnit: its neighbours are served, and it is kept again where it
// was.
func TestDamageCostsOneUnit(t *testing.T) {
	c := start(t, Config{}, system{})
	o := object(c, "a")
	for _, i := range rand.Perm(perChunk) {
		put(t, o, i)
	}
	path := files(t, c.cfg.Dir)[0]
	for slot := 0; slot < perChunk; slot += 5 {
		rewrite(t, path, func(b []byte) []byte {
			b[headerSize+slot*Unit+rand.IntN(Unit)] ^= 1
			return b
		})
		bad := -1
		p := make([]byte, Chunk)
		for n := 0; n < Chunk; {
			m, kept := o.Load(p[n:], int64(n))
			if !kept && (bad >= 0 || m != Unit) {
				t.Errorf("unit %d too: %d bytes", n/Unit, m)
			} else if !kept {
				bad = n / Unit
			} else if !bytes.Equal(p[n:n+m], units(n/Unit, m/Unit)) {
				t.Error("other bytes")
			}
			n += m
		}
		settled(t, c)
		if bad < 0 || load(t, o, bad) {
			t.Fatalf("slot %d: unit %d is damaged", slot, bad)
		}
		put(t, o, bad)
		if n, kept := o.Load(p, 0); n != Chunk || !kept || !bytes.Equal(p, units(0, perChunk)) {
			t.Fatalf("slot %d: when it was fetched anew %d bytes are kept", slot, n)
		}
	}
	if s := c.Stats(); s.Damaged != 4 || s.Chunks != 1 || s.Bytes != headerSize+Chunk {
		t.Errorf("got %+v", s)
	}
	counted(t, c)
}

// TestCutChunk: what lies before the cut is served.
func TestCutChunk(t *testing.T) {
	c := start(t, Config{}, system{})
	o := object(c, "a")
	fill(t, o, 0, perChunk)
	if err := os.Truncate(files(t, c.cfg.Dir)[0], headerSize+5*Unit-1); err != nil {
		t.Fatal(err)
	}
	for i := range perChunk {
		if got := load(t, o, i); got != (i < 4) {
			t.Errorf("unit %d: kept %v", i, got)
		}
	}
	fill(t, o, 0, perChunk)
	for i := range perChunk {
		if !load(t, o, i) {
			t.Errorf("unit %d is not kept when it was fetched anew", i)
		}
	}
}

// TestHeaderThatIsBeingWritten: a reader that finds half of one waits for the rest.
func TestHeaderThatIsBeingWritten(t *testing.T) {
	var o *Object
	var wg sync.WaitGroup
	headers := 0
	sys := system{write: func(f *os.File, p []byte, off int64) error {
		if headers++; off > 0 || filepath.Base(f.Name()) == "new" {
			return writeAt(f, p, off)
		}
		if err := writeAt(f, p[:70], 0); err != nil {
			return err
		}
		wg.Go(func() {
			if !load(t, o, 0) {
				t.Error("a unit that was there is not, while another comes")
			}
		})
		time.Sleep(time.Millisecond) // so that it mostly sees the half; no proof
		return writeAt(f, p[70:], 70)
	}}
	c := start(t, Config{}, sys)
	o = object(c, "a")
	fill(t, o, 0, perChunk)
	wg.Wait()
	if s := c.Stats(); s.Damaged != 0 || s.Hits != perChunk-1 || headers != 2*perChunk {
		t.Errorf("%d writes, %+v", headers, s)
	}
}

// TestHeaderThatCannotBeWritten: the chunk goes, for its header may be half of two.
func TestHeaderThatCannotBeWritten(t *testing.T) {
	sys := system{write: func(f *os.File, p []byte, off int64) error {
		if off > 0 || filepath.Base(f.Name()) == "new" {
			return writeAt(f, p, off)
		}
		_ = writeAt(f, p[:70], 0)
		return os.ErrDeadlineExceeded
	}}
	c := start(t, Config{}, sys)
	o := object(c, "a")
	put(t, o, 0)
	if o.Store(t.Context(), unit(1), Unit) == nil || load(t, o, 0) || load(t, o, 1) {
		t.Error("it is kept")
	}
	counted(t, c)
	if s := c.Stats(); s.Chunks != 0 || s.Errors != 1 || s.Dropped != 1 || s.Damaged != 0 {
		t.Errorf("got %+v", s)
	}
}

// TestOneChunkFromAllSides writes and reads units of one chunk at the same time.
func TestOneChunkFromAllSides(t *testing.T) {
	c := start(t, Config{}, system{})
	for round := range 4 {
		o := object(c, string(rune('a'+round)))
		var wg sync.WaitGroup
		for i := range perChunk {
			wg.Go(func() { put(t, o, i) })
			wg.Go(func() {
				p := make([]byte, Chunk)
				for n := 0; n < Chunk; {
					m, kept := o.Load(p[n:], int64(n))
					if kept && !bytes.Equal(p[n:n+m], units(n/Unit, m/Unit)) {
						t.Error("other bytes")
					}
					n += m
				}
			})
		}
		wg.Wait()
		for i := range perChunk {
			if !load(t, o, i) {
				t.Errorf("unit %d is not kept", i)
			}
		}
	}
	if s := c.Stats(); s.Damaged != 0 || s.Errors != 0 {
		t.Errorf("got %+v", s)
	}
	counted(t, c)
}

// TestFilesOfAnEarlierLayout are not found, but count and make way.
func TestFilesOfAnEarlierLayout(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "blocks", "5f", "0c31000000000000000000000000000000000f")
	if err := os.MkdirAll(filepath.Dir(old), 0o700); err != nil {
		t.Fatal(err)
	}
	b := append([]byte("ifsblk\x00\x01"), make([]byte, 64-8+mib)...)
	if err := os.WriteFile(old, b, 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	c := start(t, Config{Dir: dir}, system{})
	settled(t, c)
	if s := c.Stats(); s.Chunks != 1 || s.Bytes != mib+4096 {
		t.Errorf("got %+v", s)
	}
	o := object(c, "a")
	for i := 0; c.Stats().Evicted == 0; i++ {
		put(t, o, i)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("it is still there when others had to go")
	}
	if s := c.Stats(); s.Damaged != 0 {
		t.Errorf("got %+v", s)
	}
}

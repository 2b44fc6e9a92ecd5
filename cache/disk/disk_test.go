package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagefs/cache"
)

var _ cache.Tier = (*Object)(nil)

// patience bounds every wait for a condition; it is no assertion on speed.
const patience = 60 * time.Second

// plenty is a file system that is never short of room.
func plenty(string) (free, size int64, err error) { return 1 << 40, 1 << 41, nil }

// start opens a cache with a disk that the test controls, and closes it at the
// end. Fields of sys that are nil are those of a disk with plenty of room.
func start(t *testing.T, cfg Config, sys system) *Cache {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Size == 0 {
		cfg.Size = minSize
	}
	if sys.write == nil {
		sys.write = writeFile
	}
	if sys.space == nil {
		sys.space = plenty
	}
	c, err := open(cfg, sys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// block is n bytes that no other seed has.
func block(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7}).Read(b)
	return b
}

const unit = 64 << 10

func object(c *Cache, key string) *Object {
	return c.Object(Identity{Store: "s", Key: key, ETag: "v1", Size: 1 << 30})
}

// fill stores blocks from to to-1 of an object and waits for each.
func fill(t *testing.T, o *Object, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := o.Store(t.Context(), block(uint64(i), unit), int64(i)*unit); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
	}
}

// load reports whether block i is kept, and fails on any wrong byte.
func load(t *testing.T, o *Object, i int) bool {
	t.Helper()
	p := make([]byte, unit)
	if !o.Load(p, int64(i)*unit) {
		return false
	}
	if !bytes.Equal(p, block(uint64(i), unit)) {
		t.Errorf("block %d has other bytes", i)
	}
	return true
}

// settled waits until nothing is queued.
func settled(t *testing.T, c *Cache) {
	t.Helper()
	limit := time.Now().Add(patience)
	for {
		c.mu.Lock()
		idle := len(c.jobs) == 0 && c.waiting == 0
		c.mu.Unlock()
		if idle && c.Stats().Counted {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the queue does not get empty")
		}
		time.Sleep(time.Millisecond)
	}
	// Jobs without bytes: one more with a waiter is behind them.
	_ = c.Object(Identity{ETag: "settled"}).Store(t.Context(), nil, 0)
}

// files are the paths of all blocks.
func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blocks"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && len(filepath.Base(path)) == 2*nameBytes-2 {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestBlocksOutliveTheCache(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Config{Dir: dir}, system{})
	o := object(c, "a")
	for i := range 8 {
		o.Save(block(uint64(i), unit), int64(i)*unit)
	}
	o.Save(block(8, 100), 8*unit) // the last, shorter one
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if load(t, o, 0) {
		t.Error("a closed cache loads")
	}

	c = start(t, Config{Dir: dir}, system{})
	o = object(c, "a")
	for i := range 8 {
		if !load(t, o, i) {
			t.Errorf("block %d is gone", i)
		}
	}
	p := make([]byte, 100)
	if !o.Load(p, 8*unit) || !bytes.Equal(p, block(8, 100)) {
		t.Error("the last block is gone")
	}
	settled(t, c)
	s := c.Stats()
	if s.Hits != 9 || s.Misses != 0 || s.Blocks != 10 || s.Damaged != 0 { // settled adds one
		t.Errorf("got %+v", s)
	}
}

func TestAnotherIdentityFindsNothing(t *testing.T) {
	c := start(t, Config{}, system{})
	id := Identity{Store: "s", Key: "k", ETag: "v1", Size: 1 << 30}
	fill(t, c.Object(id), 0, 1)
	for name, other := range map[string]Identity{
		"store": {"t", "k", "v1", 1 << 30},
		"key":   {"s", "l", "v1", 1 << 30},
		"ETag":  {"s", "k", "v2", 1 << 30},
		"size":  {"s", "k", "v1", 1<<30 + 1},
		"cut":   {"sk", "", "v1", 1 << 30},
		"none":  {"s", "k", "", 1 << 30},
	} {
		if load(t, c.Object(other), 0) {
			t.Errorf("another %s finds the block", name)
		}
	}
	if load(t, c.Object(id), 1) {
		t.Error("another offset finds the block")
	}
	if !load(t, c.Object(id), 0) {
		t.Error("the same identity does not find the block")
	}
}

func TestNothingIsKeptWithoutETag(t *testing.T) {
	c := start(t, Config{}, system{})
	o := c.Object(Identity{Store: "s", Key: "k", Size: 1})
	o.Save([]byte("x"), 0)
	if o.Store(t.Context(), []byte("x"), 0) == nil || o.Load(make([]byte, 1), 0) {
		t.Error("an object without a version is kept")
	}
}

// TestDamageIsNeverServed flips bits of every file, at every kind of place, cuts
// and lengthens files, and moves whole files to other names.
func TestDamageIsNeverServed(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, path string, b []byte, rng *rand.Rand) []byte
	}{
		{"a bit of the header", func(_ *testing.T, _ string, b []byte, rng *rand.Rand) []byte {
			b[rng.IntN(headerSize)] ^= 1 << rng.IntN(8)
			return b
		}},
		{"a bit of the bytes", func(_ *testing.T, _ string, b []byte, rng *rand.Rand) []byte {
			b[headerSize+rng.IntN(len(b)-headerSize)] ^= 1 << rng.IntN(8)
			return b
		}},
		{"a page of zeros", func(_ *testing.T, _ string, b []byte, rng *rand.Rand) []byte {
			clear(b[4096*(1+rng.IntN(14)):][:4096])
			return b
		}},
		{"cut short", func(_ *testing.T, _ string, b []byte, rng *rand.Rand) []byte { return b[:rng.IntN(len(b))] }},
		{"empty", func(_ *testing.T, _ string, b []byte, _ *rand.Rand) []byte { return b[:0] }},
		{"longer", func(_ *testing.T, _ string, b []byte, _ *rand.Rand) []byte { return append(b, 0) }},
		{"another block", func(_ *testing.T, _ string, b []byte, _ *rand.Rand) []byte {
			h := makeHeader(Identity{Store: "other"}.sum(), b[headerSize:], 0)
			return append(h[:], b[headerSize:]...)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const blocks = 16
			c := start(t, Config{}, system{})
			o := object(c, "a")
			fill(t, o, 0, blocks)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			for _, path := range files(t, c.cfg.Dir) {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, tc.damage(t, path, b, rng), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for i := range blocks {
				if load(t, o, i) {
					t.Errorf("block %d is served", i)
				}
			}
			if got := c.Stats().Damaged; got != blocks {
				t.Errorf("%d of %d are counted as damaged", got, blocks)
			}
			settled(t, c)
			if got := files(t, c.cfg.Dir); len(got) != 1 { // the one of settled
				t.Errorf("%d damaged files are left", len(got)-1)
			}
			fill(t, o, 0, blocks)
			for i := range blocks {
				if !load(t, o, i) {
					t.Errorf("block %d is not kept when it was fetched anew", i)
				}
			}
		})
	}
}

func TestSizeIsABound(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Config{Dir: dir, Size: minSize}, system{})
	o := object(c, "a")
	const blocks = 2 * minSize / unit
	for i := range blocks {
		fill(t, o, i, i+1)
		if got := c.Stats().Bytes; got > minSize {
			t.Fatalf("%d bytes are held after block %d, more than %d", got, i, minSize)
		}
	}
	s := c.Stats()
	if s.Evicted == 0 || s.Bytes < minSize/2 {
		t.Errorf("got %+v", s)
	}
	var onDisk int64
	for _, path := range files(t, dir) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		onDisk += footprint(info.Size())
	}
	if onDisk != s.Bytes {
		t.Errorf("%d bytes lie there, %d are counted", onDisk, s.Bytes)
	}
	c.Close()

	// A smaller bound holds from the start, before anything is written.
	c2, err := open(Config{Dir: dir, Size: 2 * minSize}, system{writeFile, plenty})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, object(c2, "b"), 0, blocks/2)
	c2.Close()
	c = start(t, Config{Dir: dir, Size: minSize}, system{})
	settled(t, c)
	if got := c.Stats().Bytes; got > minSize {
		t.Errorf("%d bytes are held, more than %d", got, minSize)
	}
}

func TestWhatIsUsedStays(t *testing.T) {
	c := start(t, Config{Size: minSize}, system{})
	o := object(c, "a")
	const used, all = 64, 192 // of unit bytes, below the size together
	fill(t, o, 0, all)
	old := time.Now().Add(-time.Hour)
	for _, path := range files(t, c.cfg.Dir) {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	for i := range used {
		load(t, o, i)
	}
	settled(t, c)
	fill(t, o, all, all+160) // pushes out about 128
	stays, others := 0, 0
	for i := range all {
		if _, err := os.Stat(filepath.Join(c.blocks, o.name(int64(i)*unit))); err == nil && i < used {
			stays++
		} else if err == nil {
			others++
		}
	}
	if stays != used || c.Stats().Evicted < 64 {
		t.Errorf("%d of %d used blocks and %d others stay, %d were evicted", stays, used, others, c.Stats().Evicted)
	}
}

// TestQueueIsBounded stops the disk: saves return at once and are dropped.
func TestQueueIsBounded(t *testing.T) {
	stop := make(chan struct{})
	sys := system{write: func(name string, head, data []byte) error {
		<-stop
		return writeFile(name, head, data)
	}}
	c := start(t, Config{Queue: 4 * unit}, sys)
	t.Cleanup(sync.OnceFunc(func() { close(stop) })) // before the cache is closed
	o := object(c, "a")
	b := block(0, unit)
	for i := range 100 {
		o.Save(b, int64(i)*unit)
	}
	if s := c.Stats(); s.Dropped != 96 || s.Waiting != 4*unit {
		t.Errorf("got %+v", s)
	}
}

func TestFolderThatIsEmptiedOrTaken(t *testing.T) {
	c := start(t, Config{}, system{})
	o := object(c, "a")
	fill(t, o, 0, 32)
	if err := os.RemoveAll(c.blocks); err != nil {
		t.Fatal(err)
	}
	if load(t, o, 0) {
		t.Error("a removed block is served")
	}
	fill(t, o, 0, 32)
	if !load(t, o, 31) {
		t.Error("a block is not kept in a folder that was made anew")
	}
	// Files of others are not counted, served or removed.
	foreign := []string{
		filepath.Join(c.blocks, "letter.txt"),
		filepath.Join(filepath.Dir(files(t, c.cfg.Dir)[0]), "letter.txt"),
	}
	for _, name := range foreign {
		if err := os.WriteFile(name, make([]byte, 2*minSize), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, o, 0, 2*minSize/unit)
	for _, name := range foreign {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}

func TestErrorsMeanNotKept(t *testing.T) {
	broken := errors.New("the disk is broken")
	c := start(t, Config{Report: func(error) {}}, system{
		write: func(string, []byte, []byte) error { return broken },
		space: func(string) (int64, int64, error) { return 0, 0, broken },
	})
	o := object(c, "a")
	if err := o.Store(t.Context(), block(0, unit), 0); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if load(t, o, 0) {
		t.Error("it is kept")
	}
	if s := c.Stats(); s.Errors == 0 || s.Misses != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	start(t, Config{Dir: dir}, system{})
	_, err := Open(Config{Dir: dir, Size: minSize})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder in use: got %v", err)
	}
	if _, err := Open(Config{Dir: t.TempDir(), Size: minSize - 1}); err == nil {
		t.Error("a size below the minimum is accepted")
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: open, Size: minSize}); !errors.Is(err, ErrUnsafe) {
		t.Errorf("a folder that all may write: got %v", err)
	}
	blocks := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(blocks, "blocks"), 0o700), os.Chmod(filepath.Join(blocks, "blocks"), 0o770)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: blocks, Size: minSize}); !errors.Is(err, ErrUnsafe) {
		t.Errorf("blocks that a group may write: got %v", err)
	}
	link := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(link, "blocks")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: link, Size: minSize}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("blocks that are a link: got %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: file, Size: minSize}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file: got %v", err)
	}
	// What was refused holds no lock.
	if err := os.Chmod(open, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := Open(Config{Dir: open, Size: minSize})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestManyAtATime(t *testing.T) {
	c := start(t, Config{Size: minSize}, system{})
	const objects, blocks = 4, 96 // more than fit together
	var wg sync.WaitGroup
	for n := range objects {
		o := object(c, fmt.Sprint(n))
		for k := range 2 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(n), uint64(k)))
				for range 2 * blocks {
					i := rng.IntN(blocks)
					if !load(t, o, i) {
						o.Save(block(uint64(i), unit), int64(i)*unit)
					}
				}
			})
		}
	}
	wg.Wait()
	settled(t, c)
	if s := c.Stats(); s.Bytes > minSize || s.Damaged != 0 || s.Errors != 0 || s.Hits == 0 {
		t.Errorf("got %+v", s)
	}
}

func TestReportsAreFew(t *testing.T) {
	var got []string
	c := &Cache{cfg: Config{Dir: "d", Report: func(err error) { got = append(got, err.Error()) }}}
	for range 10 {
		c.failed(errors.New("broken"))
	}
	c.reported = time.Now().Add(-reportEvery)
	c.failed(errors.New("broken"))
	want := []string{`disk cache "d": broken`, `disk cache "d": broken (and 9 errors before it)`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

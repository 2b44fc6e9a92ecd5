package disk

import (
	"bytes"
	"encoding/binary"
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
		sys.write = writeAt
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

// bytesOf is n bytes, of which no 512 are in those of another seed or elsewhere in
// these.
func bytesOf(seed uint64, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 512 {
		var stamp [16]byte
		binary.LittleEndian.PutUint64(stamp[:], seed*0x9e3779b97f4a7c15)
		binary.LittleEndian.PutUint64(stamp[8:], ^(uint64(i) * 0xbf58476d1ce4e5b9))
		copy(b[i:], stamp[:])
	}
	return b
}

// unit is the bytes of unit i.
func unit(i int) []byte { return bytesOf(uint64(i), Unit) }

// units is the bytes of n units from i on.
func units(i, n int) (p []byte) {
	for k := range n {
		p = append(p, unit(i+k)...)
	}
	return p
}

// apart is a unit in chunk i, another one in each.
func apart(i int) int { return i*perChunk + i%perChunk }

func object(c *Cache, key string) *Object {
	return c.Object(Identity{Store: "s", Key: key, ETag: "v1", Size: 1 << 30})
}

// put stores a unit and waits for it.
func put(t *testing.T, o *Object, i int) {
	t.Helper()
	if err := o.Store(t.Context(), unit(i), int64(i)*Unit); err != nil {
		t.Fatalf("unit %d: %v", i, err)
	}
}

// fill stores units from to to-1 of an object and waits for each.
func fill(t *testing.T, o *Object, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		put(t, o, i)
	}
}

// load reports whether unit i is kept, and fails on any wrong byte.
func load(t *testing.T, o *Object, i int) bool {
	t.Helper()
	p := make([]byte, Unit)
	n, kept := o.Load(p, int64(i)*Unit)
	if n != Unit {
		t.Errorf("unit %d: %d bytes", i, n)
	}
	if kept && !bytes.Equal(p, unit(i)) {
		t.Errorf("unit %d has other bytes", i)
	}
	return kept
}

// settled waits until nothing is queued.
func settled(t *testing.T, c *Cache) {
	t.Helper()
	if err := last(c, func(*Cache, job) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

// last lets the writer do something behind all that is queued, and waits for it.
func last(c *Cache, do func(*Cache, job) error) error {
	done := make(chan error, 1)
	if !c.add(job{do: do, done: done}) {
		return ErrDropped
	}
	return <-done
}

// files are the paths of all chunks.
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

func TestUnitsOutliveTheCache(t *testing.T) {
	dir := t.TempDir()
	id := Identity{Store: "s", Key: "a", ETag: "v1", Size: 20*Unit + 100}
	c := start(t, Config{Dir: dir}, system{})
	o := c.Object(id)
	o.Save(units(0, 3), 0)
	o.Save(append(units(12, 8), bytesOf(20, 100)...), 12*Unit) // over the end of a chunk, to that of the object
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if n, kept := o.Load(make([]byte, Unit), 0); kept || n != Unit {
		t.Error("a closed cache loads")
	}

	c = start(t, Config{Dir: dir}, system{})
	o = c.Object(id)
	p, want := make([]byte, id.Size), append(units(0, 20), bytesOf(20, 100)...)
	for _, tc := range []struct {
		off, n int64 // of each answer
		kept   bool
	}{
		{0, 3 * Unit, true},
		{3 * Unit, 9 * Unit, false},
		{12 * Unit, 4 * Unit, true}, // to the end of the chunk
		{16 * Unit, 4*Unit + 100, true},
	} {
		clear(p)
		n, kept := o.Load(p[tc.off:], tc.off)
		if int64(n) != tc.n || kept != tc.kept {
			t.Errorf("from %d: %d bytes, kept %v, want %d, %v", tc.off, n, kept, tc.n, tc.kept)
		}
		if end := tc.off + tc.n; kept && !bytes.Equal(p[tc.off:end], want[tc.off:end]) {
			t.Errorf("from %d: other bytes", tc.off)
		}
	}
	settled(t, c)
	s := c.Stats()
	if s.Hits != 12 || s.Misses != 9 || s.Chunks != 2 || s.Damaged != 0 || s.ReadBytes != 11*Unit+100 {
		t.Errorf("got %+v", s)
	}
}

// TestOnlyWholeUnits: nothing is kept of anything else, and nothing is found.
func TestOnlyWholeUnits(t *testing.T) {
	c := start(t, Config{}, system{})
	o := c.Object(Identity{Store: "s", Key: "a", ETag: "v1", Size: 3*Unit + 100})
	for _, tc := range []struct{ off, n int64 }{
		{0, 0},
		{0, 100},
		{100, Unit},
		{0, Unit + 100},
		{-Unit, Unit},
		{3 * Unit, Unit},
		{3 * Unit, 99},
		{4 * Unit, Unit},
		{3*Unit + 100, 0},
		{1 << 62, Unit},
	} {
		p := make([]byte, tc.n)
		o.Save(p, tc.off)
		if o.Store(t.Context(), p, tc.off) == nil {
			t.Errorf("%d bytes at %d are stored", tc.n, tc.off)
		}
		if n, kept := o.Load(p, tc.off); kept || n != len(p) {
			t.Errorf("%d bytes at %d: %d, kept %v", tc.n, tc.off, n, kept)
		}
	}
	settled(t, c)
	if s := c.Stats(); s.Written != 0 || s.Chunks != 0 {
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
			t.Errorf("another %s finds the unit", name)
		}
	}
	if load(t, c.Object(id), 1) {
		t.Error("another offset finds the unit")
	}
	if !load(t, c.Object(id), 0) {
		t.Error("the same identity does not find the unit")
	}
}

func TestNothingIsKeptWithoutETag(t *testing.T) {
	c := start(t, Config{}, system{})
	o := c.Object(Identity{Store: "s", Key: "k", Size: 1})
	o.Save([]byte("x"), 0)
	if o.Store(t.Context(), []byte("x"), 0) == nil {
		t.Error("an object without a version is stored")
	}
	if _, kept := o.Load(make([]byte, 1), 0); kept {
		t.Error("an object without a version is kept")
	}
}

func TestSizeIsABound(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Config{Dir: dir, Size: minSize}, system{})
	o := object(c, "a")
	const units = 2 * minSize / Unit
	for i := range units {
		put(t, o, i)
		if got := c.Stats().Bytes; got > minSize {
			t.Fatalf("%d bytes are held after unit %d, more than %d", got, i, minSize)
		}
	}
	s := c.Stats()
	if s.Evicted == 0 || s.Bytes < minSize/2 {
		t.Errorf("got %+v", s)
	}
	counted(t, c)
	c.Close()

	// A smaller bound holds from the start, before anything is written.
	c2, err := open(Config{Dir: dir, Size: 2 * minSize}, system{writeAt, plenty})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, object(c2, "b"), 0, units/2)
	c2.Close()
	c = start(t, Config{Dir: dir, Size: minSize}, system{})
	settled(t, c)
	if got := c.Stats().Bytes; got > minSize {
		t.Errorf("%d bytes are held, more than %d", got, minSize)
	}
}

// counted holds what is counted against what lies there.
func counted(t *testing.T, c *Cache) {
	t.Helper()
	settled(t, c)
	var length, taken int64
	list := files(t, c.cfg.Dir)
	for _, path := range list {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		length += footprint(info.Size())
		taken += info.Sys().(*syscall.Stat_t).Blocks * 512
	}
	s := c.Stats()
	if s.Bytes != length || s.Chunks != int64(len(list)) {
		t.Errorf("%d bytes in %d files lie there, %d in %d are counted", length, len(list), s.Bytes, s.Chunks)
	}
	if diff := s.Bytes - taken; diff < -Unit*s.Chunks || diff > Unit*s.Chunks {
		t.Errorf("%d files take %d bytes, %d are counted", len(list), taken, s.Bytes)
	}
}

func TestWhatIsUsedStays(t *testing.T) {
	c := start(t, Config{Size: minSize}, system{})
	o := object(c, "a")
	const used, all = 64, 192 // chunks of one unit, below the size together
	for i := range all {
		put(t, o, apart(i))
	}
	old := time.Now().Add(-time.Hour)
	for _, path := range files(t, c.cfg.Dir) {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	for i := range used {
		load(t, o, apart(i))
	}
	settled(t, c)
	for i := all; i < all+160; i++ { // pushes out about 128
		put(t, o, apart(i))
	}
	stays, others := 0, 0
	for i := range all {
		if _, err := os.Stat(filepath.Join(c.blocks, o.name(int64(i)*Chunk))); err == nil && i < used {
			stays++
		} else if err == nil {
			others++
		}
	}
	if stays != used || c.Stats().Evicted < 64 {
		t.Errorf("%d of %d used chunks and %d others stay, %d were evicted", stays, used, others, c.Stats().Evicted)
	}
}

// TestQueueIsBounded stops the disk: saves return at once and are dropped.
func TestQueueIsBounded(t *testing.T) {
	stop := make(chan struct{})
	sys := system{write: func(f *os.File, p []byte, off int64) error {
		<-stop
		return writeAt(f, p, off)
	}}
	c := start(t, Config{Queue: 4 * Unit}, sys)
	t.Cleanup(sync.OnceFunc(func() { close(stop) })) // before the cache is closed
	o := object(c, "a")
	b := unit(0)
	for i := range 100 {
		o.Save(b, int64(i)*Unit)
	}
	o.Save(make([]byte, 40*Unit), 0)
	if s := c.Stats(); s.Dropped != 136 || s.Waiting != 4*Unit {
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
		t.Error("a removed unit is served")
	}
	fill(t, o, 0, 32)
	if !load(t, o, 31) {
		t.Error("a unit is not kept in a folder that was made anew")
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
	fill(t, o, 0, 2*minSize/Unit)
	for _, name := range foreign {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}

func TestErrorsMeanNotKept(t *testing.T) {
	broken := errors.New("the disk is broken")
	c := start(t, Config{Report: func(error) {}}, system{
		write: func(*os.File, []byte, int64) error { return broken },
		space: func(string) (int64, int64, error) { return 0, 0, broken },
	})
	o := object(c, "a")
	if err := o.Store(t.Context(), unit(0), 0); !errors.Is(err, broken) {
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
	const objects, units = 4, 96 // more than fit together
	var wg sync.WaitGroup
	for n := range objects {
		o := object(c, fmt.Sprint(n))
		for k := range 2 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(n), uint64(k)))
				for range 2 * units {
					i := rng.IntN(units)
					if !load(t, o, i) {
						o.Save(unit(i), int64(i)*Unit)
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

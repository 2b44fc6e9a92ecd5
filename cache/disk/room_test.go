package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestSomeSpaceStaysFree(t *testing.T) {
	const fsSize = 256 * mib
	const least = fsSize / freePart
	var mu sync.Mutex
	var c *Cache
	others := int64(fsSize - least - 4*mib) // taken by other programs
	sys := system{space: func(string) (int64, int64, error) {
		mu.Lock()
		defer mu.Unlock()
		held := int64(0)
		if c != nil {
			held = c.n.bytes.Load()
		}
		return fsSize - others - held, fsSize, nil
	}}
	opened := start(t, Config{Size: fsSize}, sys)
	mu.Lock()
	c = opened
	mu.Unlock()
	o := object(opened, "a")
	for i := range 128 {
		put(t, o, i)
		if free, _, _ := sys.space(""); free < least {
			t.Fatalf("%d bytes are free after unit %d, fewer than %d", free, i, least)
		}
	}
	if opened.Stats().Evicted == 0 {
		t.Error("nothing was evicted")
	}

	// Others take all the rest: blocks make way, and no more are kept.
	mu.Lock()
	others = fsSize - mib
	mu.Unlock()
	var err error
	for i := range 128 {
		err = o.Store(t.Context(), unit(i), int64(i)*Unit)
	}
	if !errors.Is(err, ErrNoRoom) {
		t.Errorf("got %v, want ErrNoRoom", err)
	}
	if s := opened.Stats(); s.Bytes != 0 || s.Dropped == 0 {
		t.Errorf("got %+v", s)
	}
}

// TestFreeSpaceRule: the least of 5 % and 1 GiB.
func TestFreeSpaceRule(t *testing.T) {
	for _, tc := range []struct{ size, free, excess int64 }{
		{100 * mib, 5 * mib, 0},
		{100 * mib, 4 * mib, mib},
		{1 << 40, 1 << 30, 0},
		{1 << 40, 1<<30 - 1, 1},
	} {
		c := start(t, Config{}, system{space: func(string) (int64, int64, error) { return tc.free, tc.size, nil }})
		settled(t, c)
		if got := c.excess(0); got != tc.excess {
			t.Errorf("%d free of %d: excess %d, want %d", tc.free, tc.size, got, tc.excess)
		}
	}
}

func TestFullDiskEvictsThenGoesOnWithout(t *testing.T) {
	var mu sync.Mutex
	var c *Cache
	room := int64(2 * mib) // that the file system really has
	var reports []string
	sys := system{write: func(f *os.File, p []byte, off int64) error {
		mu.Lock()
		defer mu.Unlock()
		if c != nil && off > 0 && c.n.bytes.Load()+headerSize+int64(len(p)) > room {
			_ = writeAt(f, p[:len(p)/2], off) // as far as it went
			return &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
		}
		return writeAt(f, p, off)
	}}
	opened := start(t, Config{Report: func(err error) { reports = append(reports, err.Error()) }}, sys)
	mu.Lock()
	c = opened
	mu.Unlock()
	o := object(opened, "a")
	fill(t, o, 0, 100)
	if s := opened.Stats(); s.Evicted == 0 || s.Errors != 0 || s.Bytes > room {
		t.Errorf("got %+v", s)
	}
	counted(t, opened)
	mu.Lock()
	room = 0
	mu.Unlock()
	for i := range 100 {
		if err := o.Store(t.Context(), unit(1), int64(1000+i)*Unit); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v, want ENOSPC", err)
		}
	}
	s := opened.Stats()
	if s.Errors != 100 || s.Dropped != 100 {
		t.Errorf("got %+v", s)
	}
	if _, err := os.Stat(filepath.Join(opened.blocks, "new")); err == nil {
		t.Error("an unfinished file is left")
	}
	if len(reports) != 1 || !strings.Contains(reports[0], "no space left") || !strings.Contains(reports[0], opened.cfg.Dir) {
		t.Errorf("reports %q", reports)
	}
}

// TestTmpfsThatIsFull is the same with a real file system.
func TestTmpfsThatIsFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=700"); err != nil {
		if os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skipf("only root mounts: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	c := start(t, Config{Dir: dir, Size: 64 * mib}, system{space: plenty}) // says nothing of being full
	o := object(c, "a")
	fill(t, o, 0, 300)
	settled(t, c)
	if s := c.Stats(); s.Evicted == 0 || s.Dropped != 0 || s.Bytes > 8*mib {
		t.Errorf("full without warning: got %+v", s)
	}
	c.Close()
	c = start(t, Config{Dir: dir, Size: 64 * mib}, system{space: space})
	o = object(c, "b")
	for i := range 300 {
		put(t, o, i)
		if free, size, err := space(dir); err != nil || free < size/freePart {
			t.Fatalf("%d of %d are free, %v", free, size, err)
		}
	}
	// Somebody else takes all that is left.
	var other []byte
	if free, _, err := space(dir); err != nil {
		t.Fatal(err)
	} else {
		other = make([]byte, free)
	}
	_ = os.WriteFile(filepath.Join(dir, "other"), other, 0o600)
	for i := range 300 {
		_ = o.Store(t.Context(), unit(i), int64(i)*Unit)
	}
	if free, size, err := space(dir); err != nil || free < size/freePart {
		t.Errorf("%d of %d are free, %v", free, size, err)
	}
	c.Close()
}

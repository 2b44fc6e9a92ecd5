package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestMemoryOfReaders holds the daemon to the formula of the README while 64
// readers go through views of an image in S3 that is larger than the cache, of
// IMAGEFS_READ_MIB in all, and to giving the memory back afterwards.
func TestMemoryOfReaders(t *testing.T) {
	needFUSE(t)
	const (
		cache   = 64 * miB
		readers = 64
		data    = 128 * miB
	)
	total := countOf(t, "IMAGEFS_READ_MIB", 512)
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	sparse(t, raw, 2*data, piece{miB, data})
	s := StartS3(t)
	for _, c := range []struct{ name, flag string }{{"plain", "-q"}, {"coded", "-c"}} {
		file := filepath.Join(dir, c.name+".qcow2")
		output(t, "qemu-img", "convert", "-q", c.flag, "-f", "raw", "-O", "qcow2", raw, file)
		s.Put(t, c.name+".qcow2", file)
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := MountEnv(t, s.Env, s.URL(), append(s.Flags(),
		"--cache-size", fmt.Sprint(cache), "--formats", "all", "--read-only", "--idle", "2s")...)
	exts := []string{"raw", "vmdk", "vdi", "vhdx", "vhd", "sparse.vmdk", "raw", "fixed.vhd"}
	errs := make(chan error, readers)
	var wg sync.WaitGroup
	for i := range readers {
		ext := exts[i%len(exts)]
		path := m.Path("images", []string{"plain", "coded"}[i/len(exts)%2], "disk0."+ext)
		compare := want
		if ext != "raw" {
			compare = nil
		}
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			if err := wander(path, rnd, total*miB/readers, compare); err != nil {
				errs <- fmt.Errorf("%s: %w", path, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	peak := peakMemory(t, m.Pid())
	t.Logf("%d readers, %d MiB: the daemon had at most %d MiB", readers, total, peak/miB)
	if limit := int64(cache + 256*miB); peak > limit {
		t.Errorf("the daemon had %d bytes, want at most %d", peak, limit)
	}
	const rest = 128 * miB
	waitFor(t, "the memory to be given back", func() bool { return residentMemory(t, m.Pid()) < rest })
	t.Logf("idle, it has %d MiB", residentMemory(t, m.Pid())/miB)
	if b, err := os.ReadFile(m.Path("images/plain/disk0.raw")); err != nil || !bytes.Equal(b, want) {
		t.Errorf("after it was idle: %d bytes, %v", len(b), err)
	}
}

// wander reads n bytes of a file, past the kernel's cache: runs from anywhere, and
// small pieces. want is what it holds, or nil.
func wander(path string, rnd *rand.Rand, n int64, want []byte) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	for n > 0 {
		size := int64(64 * kiB)
		runs := 1
		if rnd.IntN(4) > 0 {
			size, runs = miB, 1+rnd.IntN(16)
		}
		off := rnd.Int64N(st.Size()) &^ 4095
		for range runs {
			if off >= st.Size() {
				break
			}
			b, err := direct(path, off, int(size))
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if want != nil && !bytes.Equal(b, want[off:off+int64(len(b))]) {
				return fmt.Errorf("other bytes at %d", off)
			}
			off, n = off+size, n-size
		}
	}
	return nil
}

// peakMemory is the most that a process ever had in memory, in bytes.
func peakMemory(t testing.TB, pid int) int64 { t.Helper(); return memoryOf(t, pid, "VmHWM:") }

// residentMemory is what a process has in memory now, in bytes.
func residentMemory(t testing.TB, pid int) int64 { t.Helper(); return memoryOf(t, pid, "VmRSS:") }

// memoryOf is what the kernel says of a process, in bytes.
func memoryOf(t testing.TB, pid int, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), field)
	var kb int64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatalf("no %s in %s", field, b)
	}
	return kb * kiB
}

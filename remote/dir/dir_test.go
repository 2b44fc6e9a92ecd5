package dir_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/dir"
	"imagefs/remote/remotetest"
)

func open(t *testing.T, path string) *dir.Store {
	t.Helper()
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *dir.Store, key string, b []byte) remote.Object {
	t.Helper()
	o, err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), remote.Cond{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func read(t *testing.T, s *dir.Store, o remote.Object) ([]byte, error) {
	p := make([]byte, o.Size)
	return p, s.ReadRange(t.Context(), o, p, 0)
}

func keys(t *testing.T, s *dir.Store, folder string) []string {
	t.Helper()
	var keys []string
	for o, err := range s.List(t.Context(), folder) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	remotetest.Run(t, func(t *testing.T) remote.Store {
		path := t.TempDir()
		t.Cleanup(func() {
			// Whatever a check did, no temporary file is left.
			filepath.WalkDir(path, func(p string, _ fs.DirEntry, _ error) error {
				if name := filepath.Base(p); strings.HasPrefix(name, ".imagefs-") && name != ".imagefs-lock" {
					t.Errorf("left behind: %s", filepath.Base(p))
				}
				return nil
			})
		})
		return open(t, path)
	})
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing")
	if _, err := dir.Open(path); !errors.Is(err, remote.ErrNoBucket) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing directory: got error %v, want ErrNoBucket with the path", err)
	}
	write(t, path, "")
	if _, err := dir.Open(path); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("file: got error %v, want one that says so", err)
	}
}

func TestOpenVersionOutlivesReplacementAndDeletion(t *testing.T) {
	s := open(t, t.TempDir())
	want := remotetest.Bytes(1, 9000)
	o := put(t, s, "k", want)
	check := func(when string) {
		t.Helper()
		if got, err := read(t, s, o); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: wrong bytes or error %v", when, err)
		}
	}
	check("current")
	put(t, s, "k", remotetest.Bytes(2, 9000))
	check("replaced")
}

func TestModificationInPlaceIsAChange(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	for _, opened := range []bool{true, false} {
		o := put(t, s, "k", []byte("before"))
		if opened {
			if _, err := read(t, s, o); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(path, "k"), "after!")
		if _, err := read(t, s, o); !errors.Is(err, remote.ErrChanged) {
			t.Errorf("opened before %v: got error %v, want ErrChanged", opened, err)
		}
		// The file as it is now is a version of its own.
		now, err := s.Stat(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(t, s, now); err != nil || string(got) != "after!" {
			t.Errorf("new version: got %q, %v", got, err)
		}
	}
	o := put(t, s, "short", make([]byte, 5000))
	if _, err := read(t, s, o); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(path, "short"), 100); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, s, o); !errors.Is(err, remote.ErrChanged) {
		t.Errorf("truncated: got error %v, want ErrChanged", err)
	}
}

func TestOnlyRegularFilesInsideAreObjects(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "secret")
	path := t.TempDir()
	at := func(name string) string { return filepath.Join(path, name) }
	write(t, at("file"), "x")
	write(t, at(".hidden"), "x")
	write(t, at("new\nline"), "x")
	write(t, at(strings.Repeat("n", 201)), "x")
	for _, err := range []error{
		os.Mkdir(at("folder"), 0o755),
		os.Symlink("file", at("inside")),
		os.Symlink("folder", at("to-folder")),
		os.Symlink("missing", at("dangling")),
		os.Symlink("loop", at("loop")),
		os.Symlink(filepath.Join(outside, "secret"), at("absolute")),
		os.Symlink("../"+filepath.Base(outside)+"/secret", at("escape")),
		os.Symlink(outside, at("escape-folder")),
		syscall.Mkfifo(at("pipe"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, path)
	if got, want := keys(t, s, ""), []string{"file", "inside"}; !slices.Equal(got, want) {
		t.Errorf("list: got %q, want %q", got, want)
	}
	for _, key := range []string{"absolute", "escape", "escape-folder/secret", "pipe", "folder", "loop", "dangling"} {
		if _, err := s.Stat(t.Context(), key); err == nil {
			t.Errorf("stat %q: no error", key)
		}
		o := remote.Object{Key: key, ETag: "0", Size: 1}
		if _, err := read(t, s, o); err == nil {
			t.Errorf("read %q: no error", key)
		}
	}
	if _, err := s.Put(t.Context(), "escape-folder/new", strings.NewReader("x"), 1, remote.Cond{}); err == nil {
		t.Error("put through a link that leaves the directory: no error")
	}
	if _, err := os.Stat(filepath.Join(outside, "new")); err == nil {
		t.Error("a put left the directory")
	}
	put(t, s, "escape", []byte("replaced")) // the link, not what it points to
	if b, _ := os.ReadFile(filepath.Join(outside, "secret")); string(b) != "secret" {
		t.Error("a put wrote through a link")
	}
}

func TestOwnNamesAreNoKeys(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.Put(t.Context(), "a/.imagefs-lock", strings.NewReader("x"), 1, remote.Cond{}); err == nil {
		t.Error("put over the name of a lock file: no error")
	}
}

func TestMoreVersionsThanFilesKeptOpen(t *testing.T) {
	s := open(t, t.TempDir())
	var objects []remote.Object
	for i := range 150 {
		objects = append(objects, put(t, s, "k"+string(rune('0'+i/10))+string(rune('0'+i%10)), remotetest.Bytes(uint64(i), 100)))
	}
	for range 2 {
		for i, o := range objects {
			if got, err := read(t, s, o); err != nil || !bytes.Equal(got, remotetest.Bytes(uint64(i), 100)) {
				t.Fatalf("read %q: wrong bytes or error %v", o.Key, err)
			}
		}
	}
	if n := openFiles(t); n > 160 {
		t.Errorf("%d descriptors are open", n)
	}
	before := openFiles(t)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if after := openFiles(t); after > before-128 {
		t.Errorf("close left descriptors: %d before, %d after", before, after)
	}
	if _, err := read(t, s, objects[0]); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: got error %v, want ErrClosed", err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no list of descriptors here")
	}
	return len(entries)
}

func TestStaleTemporaryFilesAreRemoved(t *testing.T) {
	path := t.TempDir()
	stale, fresh := filepath.Join(path, ".imagefs-put-stale"), filepath.Join(path, ".imagefs-put-fresh")
	write(t, stale, "x")
	write(t, fresh, "x")
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	put(t, open(t, path), "k", nil)
	if _, err := os.Stat(stale); err == nil {
		t.Error("a file of yesterday is still there")
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error("a file that may be in use was removed")
	}
	os.Remove(fresh)
}

func TestLockIsHeldBetweenStores(t *testing.T) {
	path := t.TempDir()
	a, b := open(t, path), open(t, path)
	o := put(t, a, "k", []byte("x"))
	lock, err := os.OpenFile(filepath.Join(path, ".imagefs-lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = b.Put(ctx, "k", strings.NewReader("y"), 1, remote.Cond{ETag: o.ETag})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("swap under a lock of another: got error %v, want a timeout", err)
	}
	lock.Close()
	if _, err := b.Put(t.Context(), "k", strings.NewReader("y"), 1, remote.Cond{ETag: o.ETag}); err != nil {
		t.Errorf("swap after the lock was given up: %v", err)
	}
}

func TestHitDoesNotAllocate(t *testing.T) {
	s := open(t, t.TempDir())
	o := put(t, s, "k", make([]byte, 1<<16))
	p, ctx := make([]byte, 4096), context.Background()
	n := testing.AllocsPerRun(100, func() {
		if err := s.ReadRange(ctx, o, p, 8192); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}

func BenchmarkReadRange(b *testing.B) {
	s, err := dir.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	o, err := s.Put(b.Context(), "k", bytes.NewReader(make([]byte, 1<<20)), 1<<20, remote.Cond{})
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.ReadRange(b.Context(), o, p, 128<<10); err != nil {
			b.Fatal(err)
		}
	}
}

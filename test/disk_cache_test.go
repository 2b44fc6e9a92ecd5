package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cachedImage puts a raw image of random bytes, no whole number of blocks, into
// a bucket.
func cachedImage(t *testing.T, s *S3, name string) []byte {
	t.Helper()
	want := make([]byte, 20<<20+64<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	file := filepath.Join(t.TempDir(), name+".raw")
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	s.Put(t, name+".raw", file)
	return want
}

// cacheFiles are the files of the chunks in a cache folder.
func cacheFiles(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blocks"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// readsOf mounts a bucket with a cache folder, reads an image whole and compares
// it, and returns the mount with its counters.
func readsOf(t *testing.T, s *S3, dir string, want []byte, flags ...string) (*Mounted, map[string]int64) {
	t.Helper()
	m := MountEnv(t, s.Env, s.URL(), append(append(s.Flags(), "--cache-dir", dir, "--read-only"), flags...)...)
	got, err := os.ReadFile(m.Path("images", "a", "disk0.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the image has other bytes")
	}
	waitFor(t, "blocks to be written", func() bool { return m.Stats(t)["disk_cache.waiting_bytes"] == 0 })
	return m, m.Stats(t)
}

// TestDiskCache: what a mount has read, the next one reads from the disk, also
// when the daemon was killed; damaged files cost a fetch and never a wrong byte.
func TestDiskCache(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	s := StartS3(t)
	want := cachedImage(t, s, "a")
	dir := filepath.Join(t.TempDir(), "cache")

	m, n := readsOf(t, s, dir, want)
	if n["store.reads"] == 0 || n["disk_cache.written_bytes"] != int64(len(want)) || n["disk_cache.dropped"] != 0 {
		t.Errorf("the first mount: %v", n)
	}
	config, err := os.ReadFile(m.Path(".imagefs", "config"))
	if err != nil || !strings.Contains(string(config), fmt.Sprintf(`"cache_dir": %q`, dir)) {
		t.Errorf("the config does not name the folder: %v\n%s", err, config)
	}
	m.Kill(t)

	for _, after := range []string{"a kill", "an unmount"} {
		m, n = readsOf(t, s, dir, want, "--cache-size", "16M")
		if n["store.reads"] != 0 || n["disk_cache.misses"] != 0 || n["disk_cache.read_bytes"] < int64(len(want)) {
			t.Errorf("after %s: %v", after, n)
		}
		m.Stop(t)
	}

	files := cacheFiles(t, dir)
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		const header, unit = 4096, 64 << 10
		for at := header; at < len(b); at += unit {
			b[at+rand.IntN(min(unit, len(b)-at))] ^= 1 << rand.IntN(8)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, n = readsOf(t, s, dir, want)
	m.Expect("disk cache.*fetched anew")
	if n["store.read_bytes"] < int64(len(want)) || n["disk_cache.damaged"] == 0 || n["disk_cache.hits"] != 0 {
		t.Errorf("with %d damaged files: %v", len(files), n)
	}
	m.Stop(t)
	_, n = readsOf(t, s, dir, want)
	if n["store.reads"] != 0 {
		t.Errorf("after that: %v", n)
	}
}

// TestDiskCacheFolders: one folder serves one mount, and a store that is a folder
// needs none.
func TestDiskCacheFolders(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	s := StartS3(t)
	dir := t.TempDir()
	MountEnv(t, s.Env, s.URL(), append(s.Flags(), "--cache-dir", dir)...)
	mnt := t.TempDir()
	for _, where := range [][]string{nil, {"-f"}} {
		args := append(append([]string{"mount", "--cache-dir", dir}, where...), s.Flags()...)
		_, stderr, code := imagefsEnv(t, s.Env, append(args, s.URL(), mnt)...)
		if code != 1 || !strings.Contains(stderr, dir) || !strings.Contains(stderr, "another folder with --cache-dir") {
			t.Errorf("%v: a second mount with the folder: %d %s", where, code, stderr)
		}
		if isMountPoint(mnt) {
			t.Errorf("%s is mounted", mnt)
			unmountLazily(mnt)
		}
	}

	unused := filepath.Join(t.TempDir(), "cache")
	m := Mount(t, t.TempDir(), "--cache-dir", unused)
	if _, err := os.Stat(unused); !os.IsNotExist(err) {
		t.Errorf("a mount of a folder made a cache: %v", err)
	}
	if config, err := os.ReadFile(m.Path(".imagefs", "config")); err != nil || strings.Contains(string(config), "cache_dir") {
		t.Errorf("its config names one: %v\n%s", err, config)
	}
	if _, stderr, code := imagefs(t, "mount", "--disk-cache-size", "1G", t.TempDir(), mnt); code != 2 || !strings.Contains(stderr, "--cache-dir") {
		t.Errorf("a size without a folder: %d %s", code, stderr)
	}
}

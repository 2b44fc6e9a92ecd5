package test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestStable reads every view of an unchanged catalog in many ways: two
// daemons, cold and warm, one reader and eight, from a folder and from a copy
// of it in S3. The bytes never differ.
func TestStable(t *testing.T) {
	tool(t, "qemu-img")
	store := t.TempDir()
	for _, g := range guests {
		raw := filepath.Join(t.TempDir(), g.name)
		g.make(t, raw)
		for _, kind := range []string{"qcow2_zstd", "vmdk_stream", "vhdx", "raw"} {
			for _, s := range sources {
				if s.kind == kind {
					if err := s.store(t, raw, filepath.Join(store, s.name(g.name))); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}

	first := Mount(t, store, "--formats", "all")
	want := sums(t, first, 1)
	// Beside those: zvhd, zvhd2, zlib.zvhd2, fixed.vhd and the two packages.
	if n, shown := len(want), len(guests)*4*(len(views)+6); n != shown {
		t.Errorf("there are %d views, want %d", n, shown)
	}
	same := func(what string, got map[string]string) {
		t.Helper()
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%s: %s has sha256 %s, at first %s", what, name, got[name], want[name])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d views, at first %d", what, len(got), len(want))
		}
	}
	same("warm, 8 readers", sums(t, first, 8))

	second := Mount(t, store, "--formats", "all")
	same("a second daemon beside the first, 8 readers", sums(t, second, 8))
	first.Stop(t)
	second.Stop(t)

	small := Mount(t, store, "--formats", "all", "--cache-size", "16MiB")
	same("a small cache, 8 readers", sums(t, small, 8))
	small.Stop(t)

	s3 := StartS3(t)
	entries, err := os.ReadDir(store)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		s3.Put(t, e.Name(), filepath.Join(store, e.Name()))
	}
	remote := MountEnv(t, s3.Env, s3.URL(), append(s3.Flags(), "--formats", "all")...)
	same("S3, cold, 8 readers", sums(t, remote, 8))
	same("S3, warm, 1 reader", sums(t, remote, 1))
}

// sums returns the sha256 of each view below images, read by so many
// processes at once.
func sums(t testing.TB, m *Mounted, readers int) map[string]string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"disk*.*", "*.ova", "*.oci"} {
		found, err := filepath.Glob(m.Path("images", "*", pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	var (
		mu   sync.Mutex
		got  = map[string]string{}
		work = make(chan string)
		wg   sync.WaitGroup
	)
	for range readers {
		wg.Go(func() {
			for path := range work {
				sum, err := sumOf(path)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got[strings.TrimPrefix(path, m.Dir)] = sum
				mu.Unlock()
			}
		})
	}
	for _, f := range files {
		work <- f
	}
	close(work)
	wg.Wait()
	return got
}

// sumOf hashes a file as cat reads it.
func sumOf(path string) (string, error) {
	cmd := exec.Command("cat", path)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, out); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%w: %s", err, &stderr)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

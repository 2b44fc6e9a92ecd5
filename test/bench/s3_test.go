package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestDownloads: both ways bring the object, and the server counts its bytes,
// also of a line with a latency and a rate.
func TestDownloads(t *testing.T) {
	b := testBench(t)
	b.s3server = os.Getenv("IMAGEFS_S3SERVER")
	if b.s3server == "" && (os.Getenv("CI") != "" || os.Getenv("IMAGEFS_REQUIRE_TOOLS") != "") {
		t.Fatal("IMAGEFS_S3SERVER names no server: run make test")
	}
	if b.s3server == "" {
		t.Skip("IMAGEFS_S3SERVER names no server: make s3server")
	}
	want := make([]byte, parallelParts*parallelPart+12345) // more than one part for a connection
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	if err := os.MkdirAll(b.path("store"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.path("store", "o"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, rate := range []int64{0, 1 << 30} {
		b.rate = rate
		err := b.served(time.Millisecond, func(s *s3peer) error {
			for name, get := range map[string]func([]string) error{"one": getObject, "parallel": getParallel} {
				before, err := s.sent()
				if err != nil {
					return err
				}
				out := filepath.Join(t.TempDir(), "out")
				if err := get([]string{s.endpoint, "o", out}); err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				got, err := os.ReadFile(out)
				if err != nil {
					return err
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: other bytes", name)
				}
				if after, err := s.sent(); err != nil || after-before != int64(len(want)) {
					t.Errorf("%s: sent %d of %d bytes, %v", name, after-before, len(want), err)
				}
			}
			return nil
		}, "o")
		if err != nil {
			t.Fatal(err)
		}
	}
}

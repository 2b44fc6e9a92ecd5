package stage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"imagefs/codec/qcow2"
)

// TestVerifyFindsEveryDifference changes the raw disk, not the encoded one,
// whose own checksums would find it first.
func TestVerifyFindsEveryDifference(t *testing.T) {
	raw := bytes.Repeat([]byte("imagefs!"), 40_000)
	copy(raw[100_000:200_000], make([]byte, 100_000))
	raw = raw[:len(raw)-3] // no multiple of a sector
	file := func(name string, b []byte) *local {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		return &local{f: f, size: int64(len(b))}
	}
	src, enc := file("raw", raw), file("enc", nil)
	var err error
	if enc.size, err = qcow2.Compress(t.Context(), enc.f, src, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(t.Context(), enc, src); err != nil {
		t.Fatalf("a true copy: %v", err)
	}
	for _, off := range []int{0, 70_000, 100_000, 150_000, 199_999, len(raw) - 1} {
		bad := bytes.Clone(raw)
		bad[off] ^= 1
		if _, err := verify(t.Context(), enc, file("bad", bad)); err == nil {
			t.Errorf("the byte at %d differs, and nobody says so", off)
		}
	}
	for _, n := range []int64{src.size - 600, src.size + 600} {
		if _, err := verify(t.Context(), enc, &local{f: src.f, size: n}); err == nil {
			t.Errorf("a size of %d passes for one of %d", n, src.size)
		}
	}
	// A hole in the source where the encoded disk has data.
	if err := src.f.Truncate(65_536); err != nil {
		t.Fatal(err)
	}
	if err := src.f.Truncate(src.size); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(t.Context(), enc, src); err == nil {
		t.Error("data in a hole pass")
	}
}

package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// sample makes the bytes of a disk: text-like, random and zero parts, with a
// tail that is no whole cluster of any size.
func sample(size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"cluster ", "table ", "refcount ", "offset ", "guest ", "\n", "0x", "header "}
	for off := 0; off < size; off += 96 << 10 {
		part := b[off:min(off+96<<10, size)]
		switch r.IntN(4) {
		case 0: // stays zero
		case 1:
			for i := 0; i+8 <= len(part); i += 8 {
				binary.LittleEndian.PutUint64(part[i:], r.Uint64())
			}
		default:
			for i := 0; i < len(part); {
				i += copy(part[i:], words[r.IntN(len(words))])
				if r.IntN(9) == 0 && i < len(part) {
					part[i] = byte(r.Uint32())
					i++
				}
			}
		}
	}
	copy(b[size-3:], "end")
	return b
}

// run runs an outside tool, which the test needs.
func run(t testing.TB, tool string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(tool, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return out
}

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, src codec.Source) codec.Disk {
	t.Helper()
	d, err := Format.Open(context.Background(), src)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return d
}

// checkContent reads d whole and at odd places and compares it with want; what
// the extents call zero must be.
func checkContent(t *testing.T, d codec.Disk, want []byte) {
	t.Helper()
	ctx := context.Background()
	if d.Size() != int64(len(want)) {
		t.Fatalf("size is %d, want %d", d.Size(), len(want))
	}
	got := make([]byte, len(want))
	if n, err := d.ReadAt(ctx, got, 0); n < len(got) {
		t.Fatalf("ReadAt: %d, %v", n, err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("content differs at %#x", i)
	}
	r := rand.New(rand.NewPCG(3, 4))
	reads := 60
	if c, ok := d.(codec.Coded); ok && c.Unit() > 1<<16 { // each decodes all of one or two
		reads = max(4, int(60<<16/c.Unit()))
	}
	for range reads {
		off := r.IntN(len(want))
		p := make([]byte, 1+r.IntN(80<<10))
		n, err := d.ReadAt(ctx, p, int64(off))
		if n != min(len(p), len(want)-off) || n < len(p) && err == nil || !bytes.Equal(p[:n], want[off:off+n]) {
			t.Fatalf("ReadAt %d bytes at %#x: %d, %v, or other content", len(p), off, n, err)
		}
	}
	end := int64(0)
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil || e.Off != end || e.Len <= 0 {
			t.Fatalf("extent %+v after %#x: %v", e, end, err)
		}
		end = e.Off + e.Len
		if e.Zero && !codec.Empty(want[e.Off:end]) {
			t.Fatalf("extent %+v is not zero", e)
		}
	}
	if end != d.Size() {
		t.Fatalf("extents end at %#x of %#x", end, d.Size())
	}
}

func TestQemuImages(t *testing.T) {
	qemu := codectest.Tool(t, "qemu-img")
	dir := t.TempDir()
	want := sample(4<<20 + 1536)
	raw := write(t, filepath.Join(dir, "raw"), want)
	for _, tt := range []struct {
		name string
		opts string
		args []string
	}{
		{"plain", "", nil},
		{"plain v2", "compat=0.10", nil},
		{"smallest clusters", "cluster_size=512", nil},
		{"4 KiB clusters", "cluster_size=4k", nil},
		{"largest clusters", "cluster_size=2M", nil},
		{"extended L2", "extended_l2=on", nil},
		{"extended L2, smallest clusters", "extended_l2=on,cluster_size=16k", nil},
		{"extended L2, largest clusters", "extended_l2=on,cluster_size=2M", nil},
		{"1-bit refcounts", "refcount_bits=1", nil},
		{"metadata preallocated", "preallocation=metadata", nil},
		{"metadata preallocated, extended L2", "preallocation=metadata,extended_l2=on", nil},
		{"preallocated", "preallocation=falloc", nil},
		{"sparse to 4 KiB", "cluster_size=4k", []string{"-S", "4k"}},
		{"zlib", "", []string{"-c"}},
		{"zlib v2", "compat=0.10", []string{"-c"}},
		{"zlib, smallest clusters", "cluster_size=512", []string{"-c"}},
		{"zlib, 4 KiB clusters", "cluster_size=4k", []string{"-c"}},
		{"zlib, 1 MiB clusters", "cluster_size=1M", []string{"-c"}},
		{"zlib, largest clusters", "cluster_size=2M", []string{"-c"}},
		{"zlib, extended L2", "extended_l2=on", []string{"-c"}},
		{"zlib, unordered", "", []string{"-c", "-W", "-m", "16"}},
		{"zstd", "compression_type=zstd", []string{"-c"}},
		{"zstd, smallest clusters", "compression_type=zstd,cluster_size=512", []string{"-c"}},
		{"zstd, largest clusters", "compression_type=zstd,cluster_size=2M", []string{"-c"}},
		{"zstd, extended L2", "compression_type=zstd,extended_l2=on,cluster_size=128k", []string{"-c"}},
		{"zstd without compressed clusters", "compression_type=zstd", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(t.TempDir(), "img")
			args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, tt.args...)
			if tt.opts != "" {
				args = append(args, "-o", tt.opts)
			}
			run(t, qemu, append(args, raw, img)...)
			d := open(t, codectest.File(t, img))
			checkContent(t, d, want)
			if unit := d.(codec.Coded).Unit(); (unit != 0) != (len(tt.args) > 0 && tt.args[0] == "-c") {
				t.Errorf("unit is %d", unit)
			}
			if n := d.(codec.Noted).Notes(); len(n) > 0 {
				t.Errorf("notes %q", n)
			}
		})
	}
}

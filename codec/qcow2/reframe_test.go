package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/vmdk"
)

// reframe lays a file with streams out and shows it to the outside readers of
// what it is.
func reframe(t *testing.T, f codec.Format, src codec.Source) (*codec.File, *codectest.Offered) {
	t.Helper()
	o := codectest.Offer(t, f, src)
	v := Zlib
	if e, _ := codec.EncodingOf(o.Disk); e == codec.Zstd {
		v = Zstd
	}
	file := codectest.Reframe(t, v, Format, o)
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "img.qcow2"), filepath.Join(dir, "raw")
	codectest.WriteFile(t, path, file)
	codectest.WriteFile(t, raw, o.Disk)
	codectest.Check(t, "qcow2", path)
	codectest.Compare(t, "qcow2", path, raw)
	if v == Zlib {
		codectest.SevenZip(t, path, raw)
	}
	return file, o
}

// TestReframedImages hands on what QEMU compressed, in all cluster sizes.
func TestReframedImages(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "raw")
	codectest.WriteFile(t, raw, rawDisk(t, tiled(60)))
	for _, kind := range []string{"zlib", "zstd"} {
		for _, bits := range []uint{9, 12, 16, 17, 21} {
			t.Run(fmt.Sprintf("%s, clusters of %d", kind, 1<<bits), func(t *testing.T) {
				t.Parallel()
				path := codectest.Convert(t, "qcow2", raw, "-c", "-o", fmt.Sprintf("compression_type=%s,cluster_size=%d", kind, 1<<bits))
				file, _ := reframe(t, Format, codectest.File(t, path))
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				// Where clusters are no smaller than usual, sectors cost little.
				if limit := st.Size() + st.Size()/50 + 8<<bits; bits >= 16 && file.Size() > limit {
					t.Errorf("%d bytes, qemu-img has %d", file.Size(), st.Size())
				}
			})
		}
	}
	t.Run("vmdk", func(t *testing.T) {
		path := codectest.Convert(t, "vmdk", raw, "-o", "subformat=streamOptimized")
		reframe(t, vmdk.Format, codectest.File(t, path))
	})
	t.Run("as raw disks are stored", func(t *testing.T) {
		reframe(t, Format, codectest.File(t, compress(t, rawDisk(t, tiled(60)), 2)))
	})
	t.Run("extended l2", func(t *testing.T) {
		path := codectest.Convert(t, "qcow2", raw, "-c", "-o", "extended_l2=on,cluster_size=128k")
		codectest.Exec(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 1000k 4k", "-c", "write -z 2000k 4k", path)
		reframe(t, Format, codectest.File(t, path))
	})
}

// TestReframedForms hands on, or decodes, every way that writers store a
// cluster: what stricter readers would not take alone is laid out plain.
func TestReframedForms(t *testing.T) {
	junk := bytes.Repeat([]byte{0xa5}, 300)
	for _, tt := range []struct {
		name  string
		zstd  bool
		store func(b []byte) []byte
		plain bool
	}{
		{"window 15", false, func(b []byte) []byte { return deflate(t, b, 9) }, false},
		{"stored blocks", false, func(b []byte) []byte { return deflate(t, b, 0) }, true},
		{"junk behind", false, func(b []byte) []byte { return append(deflate(t, b, 6), junk...) }, false},
		{"a zlib checksum behind", false, func(b []byte) []byte { return zlibOf(deflate(t, b, 6), b)[2:] }, false},
		{"a longer stream", false, func(b []byte) []byte { return deflate(t, append(bytes.Clone(b), b[0]), 6) }, true},
		{"no final block", false, func(b []byte) []byte { return noFinal(t, b) }, true},
		{"an empty fixed block", false, func(b []byte) []byte { return append(noFinal(t, b), "\x03\x00"...) }, false},
		{"an empty stored block", false, func(b []byte) []byte { return append(noFinal(t, b), "\x01\x00\x00\xff\xff"...) }, false},
		{"zstd frames", true, func(b []byte) []byte {
			return append(append(zstdOf(t, b[:999]), "\x5a\x2a\x4d\x18\x05\x00\x00\x00abcde"...), zstdOf(t, b[999:])...)
		}, false},
		{"zstd and junk", true, func(b []byte) []byte { return append(zstdOf(t, b), junk...) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const n = 9
			data := sample(n << 16)
			var payloads [][]byte
			for i := range n {
				payloads = append(payloads, tt.store(data[i<<16:(i+1)<<16]))
			}
			payloads[4] = nil
			b := packed(16, tt.zstd, behind(payloads, 1, 0), payloads)
			_, o := reframe(t, Format, codectest.Bytes(b))
			s, err := o.Streams(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if tt.plain != (s.Coded.Count() == 0) {
				t.Errorf("%d blocks are handed on, %d are plain", s.Coded.Count(), s.Plain.Count())
			}
		})
	}
}

// noFinal is a deflate stream that ends with a sync flush.
func noFinal(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := flateWriter(t, &out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestReframedLastBlock: a block that the disk ends in may hold anything behind.
func TestReframedLastBlock(t *testing.T) {
	data := sample(3 << 16)
	var payloads [][]byte
	for i := range 3 {
		payloads = append(payloads, deflate(t, data[i<<16:(i+1)<<16], 6))
	}
	b := packed(16, false, behind(payloads, 1, 0), payloads)
	for _, less := range []int{1, 512, 1000, 65535} {
		put64(b, 24, uint64(3<<16-less))
		_, o := reframe(t, Format, codectest.Bytes(b))
		if s, _ := o.Streams(t.Context()); s.Coded.Count() != 2 || s.Plain.Count() != 1 {
			t.Errorf("less %d: %d coded, %d plain", less, s.Coded.Count(), s.Plain.Count())
		}
	}
}

// The bytes of these files are those of all releases.
func TestReframedGolden(t *testing.T) {
	for _, tt := range []struct {
		file string
		view codec.View
		sum  string
	}{
		{"zlib.qcow2.gz", Zlib, "d200df92325e4c06f01e91ad88c3c9cbb67525693fddf8d4b5709b634956195e"},
		{"zstd.qcow2.gz", Zstd, "3019b0cc2a236deac09dd2d43904f0d19a1f3517f23d635d8b72eac13bf11bca"},
	} {
		// qemu-img convert -c -o compression_type=zlib or zstd of a disk of 20
		// MiB and 512 bytes, with four clusters of data that shrink, one that
		// does not, and a last one of a sector.
		b := codectest.Unpacked(t, filepath.Join("testdata", tt.file))
		f := codectest.Reframe(t, tt.view, Format, codectest.Offer(t, Format, codectest.Bytes(b)))
		if got, err := codectest.Sum(f); got != tt.sum {
			t.Errorf("%s: the file's sum is %s, want %q (%v)", tt.view.Name(), got, tt.sum, err)
		}
	}
}

// TestReframedRefuses says why a disk is not shown.
func TestReframedRefuses(t *testing.T) {
	plain := codectest.Scattered(1<<20, 3, 1)
	zlib := codectest.Offer(t, Format, codectest.Bytes(packed(16, false, []int{0}, [][]byte{deflate(t, sample(1<<16), 6)})))
	for _, tt := range []struct {
		view codec.View
		d    codec.Disk
		says string
	}{
		{Zlib, plain, "not stored as zlib-compressed qcow2 or VMDK"},
		{Zstd, plain, "not stored as zstd-compressed qcow2"},
		{Zstd, zlib, "not stored as zstd-compressed qcow2"},
	} {
		_, err := tt.view.Layout(t.Context(), tt.d, codec.Facts{})
		if !errors.Is(err, codec.ErrNotPossible) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", tt.view.Name(), err, tt.says)
		}
	}
	if err := Zlib.(codec.Reframing).Takes(codec.Deflate, 4<<20); !errors.Is(err, codec.ErrNotPossible) {
		t.Errorf("clusters of 4 MiB: %v", err)
	}
}

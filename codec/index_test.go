package codec_test

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	stdadler "hash/adler32"
	"hash/crc32"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/qcow2"
	"imagefs/codec/raw"
	"imagefs/codec/vmdk"
	"imagefs/codec/zvhd"
)

// mixed is a disk of data that shrinks and data that does not.
func mixed() codec.Disk {
	d := codectest.Scattered(20<<20+512, 40, 6).Soft()
	hard := codectest.Full(1<<20, 3)
	return &overlaid{d, hard, 5 << 20}
}

// overlaid is a disk with the bytes of another at a place.
type overlaid struct {
	*codectest.Disk
	over *codectest.Disk
	at   int64
}

func (o *overlaid) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := o.Disk.ReadAt(ctx, p, off)
	from, to := max(off, o.at), min(off+int64(n), o.at+o.over.Size())
	if from < to {
		if _, err := o.over.ReadAt(ctx, p[from-off:to-off], from-o.at); err != nil && err != io.EOF {
			return 0, err
		}
	}
	return n, err
}

func (o *overlaid) Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return codectest.Full(o.Size(), 1).Extents(ctx, off, n)
}

// encodedFiles are disks that outside tools encoded, made once for all tests.
var encodedFiles struct {
	sync.Mutex
	m map[string][]byte
}

// encodedDisks are disks with streams, all of what mixed is.
func encodedDisks(t *testing.T) map[string]codec.Streamed {
	t.Helper()
	encodedFiles.Lock()
	defer encodedFiles.Unlock()
	if encodedFiles.m == nil {
		raw := filepath.Join(t.TempDir(), "raw")
		codectest.WriteFile(t, raw, mixed())
		m := map[string][]byte{}
		add := func(name, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m[name] = b
		}
		add("zlib", codectest.Convert(t, "qcow2", raw, "-c"))
		add("zlib 4 KiB", codectest.Convert(t, "qcow2", raw, "-c", "-o", "cluster_size=4096"))
		add("zstd", codectest.Convert(t, "qcow2", raw, "-c", "-o", "compression_type=zstd"))
		add("zstd 2 MiB", codectest.Convert(t, "qcow2", raw, "-c", "-o", "compression_type=zstd,cluster_size=2M"))
		add("vmdk", codectest.Convert(t, "vmdk", raw, "-o", "subformat=streamOptimized"))
		encodedFiles.m = m
	}
	ds := map[string]codec.Streamed{}
	for name, b := range encodedFiles.m {
		f := qcow2.Format
		if name == "vmdk" {
			f = vmdk.Format
		}
		ds[name] = codectest.Open(t, f, codectest.Bytes(b)).(codec.Streamed)
	}
	return ds
}

func build(t testing.TB, d codec.Disk) (*codec.Index, []byte) {
	t.Helper()
	x, err := codec.BuildIndex(t.Context(), d, 2, nil)
	if err != nil || x == nil {
		t.Fatalf("build: %v, %v", x, err)
	}
	t.Cleanup(func() { x.Close() })
	var b bytes.Buffer
	if n, err := x.WriteTo(&b); err != nil || n != int64(b.Len()) || n != x.Size() {
		t.Fatalf("wrote %d bytes, said %d, size %d: %v", b.Len(), n, x.Size(), err)
	}
	return x, b.Bytes()
}

// TestIndexOfStreams holds every length and sum to the bytes: a decoder of the
// standard library finds the stream to end there.
func TestIndexOfStreams(t *testing.T) {
	for name, d := range encodedDisks(t) {
		t.Run(name, func(t *testing.T) {
			built, b := build(t, d)
			x, err := codec.OpenIndex(t.Context(), codectest.Bytes(b), d)
			if err != nil {
				t.Fatal(err)
			}
			var again bytes.Buffer
			if _, err := x.WriteTo(&again); err != nil || !bytes.Equal(again.Bytes(), b) {
				t.Errorf("written again it differs: %v", err)
			}
			one, err1 := codec.NewStreams(t.Context(), d, built)
			s, err2 := codec.NewStreams(t.Context(), d, x)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if one.Coded.Sum() != s.Coded.Sum() || one.Plain.Sum() != s.Plain.Sum() {
				t.Error("the index as built has other streams than as read")
			}
			if s.Coded.Count() == 0 || s.Plain.Count() == 0 && s.Block() < 2<<20 {
				t.Errorf("%d blocks coded and %d plain: want some of each", s.Coded.Count(), s.Plain.Count())
			}
			checkStreams(t, d, s)
		})
	}
}

func checkStreams(t *testing.T, d codec.Disk, s *codec.Streams) {
	t.Helper()
	guest := make([]byte, s.Block())
	for k := range s.Coded.Count() {
		i := s.Coded.Select(k)
		if s.Plain.Has(i) {
			t.Fatalf("block %d is plain too", i)
		}
		if n, err := d.ReadAt(t.Context(), guest, i*s.Block()); n < len(guest) {
			t.Fatal(err)
		}
		p := make([]byte, s.Len(k))
		if err := s.Read(t.Context(), p, k, i, 0); err != nil {
			t.Fatal(err)
		}
		if s.Encoding != codec.Deflate {
			continue // an outside reader is asked where views are tested
		}
		if got, rest, err := inflateAll(p); err != nil || rest != 0 || !bytes.Equal(got, guest) {
			t.Fatalf("stream of block %d: %d bytes left behind it, %v", i, rest, err)
		}
		if got, want := s.Adler(k), stdadler.Checksum(guest); got != want {
			t.Fatalf("adler32 of block %d: %#x, want %#x", i, got, want)
		}
	}
	for e := range d.Extents(t.Context(), 0, d.Size()) {
		if i := e.Off / s.Block(); !e.Zero && !s.Plain.Has(i) && !s.Coded.Has(i) {
			t.Fatalf("block %d has data and is neither coded nor plain", i)
		}
	}
}

// TestBuildIndexDecodesEveryBlockOnce and hands each out.
func TestBuildIndexDecodesEveryBlockOnce(t *testing.T) {
	want := mixed()
	for name, d := range encodedDisks(t) {
		var mu sync.Mutex
		seen := map[int64]bool{}
		_, err := codec.BuildIndex(t.Context(), d, 3, func(off int64, b []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if seen[off] || int64(len(b)) != min(d.Unit(), d.Size()-off) {
				t.Errorf("%s: block at %d, %d bytes: again, or of another length", name, off, len(b))
			}
			seen[off] = true
			p := make([]byte, len(b))
			if n, err := want.ReadAt(t.Context(), p, off); n < len(p) || !bytes.Equal(p, b) {
				t.Errorf("%s: block at %d: other bytes, or %v", name, off, err)
			}
			return nil
		})
		if err != nil || len(seen) == 0 {
			t.Errorf("%s: %d blocks, %v", name, len(seen), err)
		}
		var calls atomic.Int64
		boom := errors.New("enough")
		if _, err := codec.BuildIndex(t.Context(), d, 1, func(int64, []byte) error { calls.Add(1); return boom }); !errors.Is(err, boom) {
			t.Errorf("%s: error %v after %d calls, want that of the callback", name, err, calls.Load())
		}
	}
}

// TestNothingToIndex: a disk that is not encoded, and one whose blocks cannot
// be handed on, of which the blocks are decoded all the same.
func TestNothingToIndex(t *testing.T) {
	disk := codectest.Scattered(20<<20, 10, 4)
	for _, f := range []codec.Format{raw.Format, qcow2.Format} {
		d := codectest.Open(t, f, codectest.Layout(t, f, disk))
		if x, err := codec.BuildIndex(t.Context(), d, 1, nil); x != nil || err != nil {
			t.Errorf("%s: %v, %v", f.Name(), x, err)
		}
	}
	d := codectest.Open(t, zvhd.Format2, codectest.Layout(t, zvhd.Zlib2, disk))
	n := atomic.Int64{}
	if x, err := codec.BuildIndex(t.Context(), d, 2, func(int64, []byte) error { n.Add(1); return nil }); x != nil || err != nil || n.Load() == 0 {
		t.Errorf("%v, %v, %d blocks", x, err, n.Load())
	}
}

// TestHostileIndex changes fields, with checksums that are right, and single
// bits, with ones that are not.
func TestHostileIndex(t *testing.T) {
	d := encodedDisks(t)["zlib"]
	_, good := build(t, d)
	open := func(b []byte) error {
		_, err := codec.OpenIndex(t.Context(), codectest.Bytes(b), d)
		return err
	}
	if err := open(seal(bytes.Clone(good))); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{16, 24, 32, 40, 48, 56, 64, 72, 88} {
		for _, v := range []uint64{0, 1, 3, 1 << 31, 1 << 63, 1<<64 - 1} {
			b := bytes.Clone(good)
			if binary.LittleEndian.Uint64(b[at:]) == v {
				continue
			}
			binary.LittleEndian.PutUint64(b[at:], v)
			if at == 40 && v == 1 {
				continue
			}
			if err := open(seal(b)); !errors.Is(err, codec.ErrCorrupt) {
				t.Errorf("field at %d is %#x: %v", at, v, err)
			}
		}
	}
	b := bytes.Clone(good)
	binary.LittleEndian.PutUint32(b[128:], 1<<31)
	if err := open(seal(b)); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("a stream past the end: %v", err)
	}
	for i := range len(good) * 8 {
		if i >= 8*512 && i%97 != 0 {
			continue
		}
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if err := open(b); !errors.Is(err, codec.ErrCorrupt) && !errors.Is(err, codec.ErrFormat) {
			t.Fatalf("bit %d: %v", i, err)
		}
	}
	for _, n := range []int{0, 1, 127, 128, len(good) - 1, len(good) + 1} {
		b := append(bytes.Clone(good), 0)[:n]
		if err := open(b); !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	other := codectest.Open(t, raw.Format, codectest.Bytes(make([]byte, 4096)))
	if _, err := codec.OpenIndex(t.Context(), codectest.Bytes(good), other); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("of a raw disk: %v", err)
	}
	boom := codectest.Faulty(codectest.Bytes(good), codectest.ErrBoom, 1)
	if _, err := codec.OpenIndex(t.Context(), boom, d); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("of a store that fails: %v", err)
	}
}

// TestSums compares places with counting.
func TestSums(t *testing.T) {
	for name, d := range encodedDisks(t) {
		x, _ := build(t, d)
		s, err := codec.NewStreams(t.Context(), d, x)
		if err != nil {
			t.Fatal(err)
		}
		for _, around := range []int64{0, 18} {
			sums, at := s.Sums(around, 9), int64(0)
			for k := range s.Coded.Count() {
				if got := sums.Start(k); got != at {
					t.Fatalf("%s: record %d starts at %d, want %d", name, k, got, at)
				}
				n := codec.Ceil(s.Len(k)+around, 512)
				for _, u := range []int64{at, at + n/2, at + n - 1} {
					if j, start := sums.Find(u); j != k || start != at {
						t.Fatalf("%s: unit %d is in record %d from %d on, want %d from %d", name, u, j, start, k, at)
					}
				}
				at += n
			}
			if sums.Total() != at || sums.Start(s.Coded.Count()) != at {
				t.Errorf("%s: %d units in all, want %d", name, sums.Total(), at)
			}
		}
	}
}

// inflateAll decodes a deflate stream and returns how many bytes follow it.
func inflateAll(p []byte) (b []byte, rest int, err error) {
	r := bytes.NewReader(p) // an io.ByteReader: nothing is read ahead
	b, err = io.ReadAll(flate.NewReader(r))
	return b, r.Len(), err
}

// offered is a disk with streams.
type offered struct {
	codec.Disk
	s *codec.Streams
}

func (o *offered) Streams(context.Context) (*codec.Streams, error) { return o.s, nil }

// TestWrongIndex: lengths that are wrong, though their checksums are right, make
// other files, which are as long as they say and end no reader.
func TestWrongIndex(t *testing.T) {
	d := encodedDisks(t)["zlib"]
	_, good := build(t, d)
	n := int(binary.LittleEndian.Uint64(good[48:]))
	r := rand.New(rand.NewPCG(1, 2))
	for _, length := range []func() uint32{
		func() uint32 { return 0 },
		func() uint32 { return 1 },
		func() uint32 { return 65535 },
		func() uint32 { return uint32(r.IntN(70000)) },
	} {
		b := bytes.Clone(good)
		for i := range n - 5 { // the last ones would reach past the end
			binary.LittleEndian.PutUint32(b[128+8*i:], length())
		}
		x, err := codec.OpenIndex(t.Context(), codectest.Bytes(seal(b)), d)
		if errors.Is(err, codec.ErrCorrupt) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := codec.NewStreams(t.Context(), d, x)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []codec.View{qcow2.Zlib, vmdk.Deflate} {
			f := codectest.Layout(t, v, &offered{d, s})
			if b, err := codectest.ReadAll(f); err != nil || int64(len(b)) != f.Size() {
				t.Errorf("%s: %d of %d bytes: %v", v.Name(), len(b), f.Size(), err)
			}
		}
	}
}

// seal makes the checksums of an index of blocks right.
func seal(b []byte) []byte {
	table := crc32.MakeTable(crc32.Castagnoli)
	n := binary.LittleEndian.Uint64(b[48:])
	if n <= uint64(len(b)-128)/8 {
		binary.LittleEndian.PutUint32(b[80:], crc32.Checksum(b[128:128+8*n], table))
	}
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], table))
	return b
}

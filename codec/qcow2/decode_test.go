package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/adler32"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	kflate "github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// packed makes an image of one guest cluster per payload, each placed at its
// offset from 0x40000 on; nil payloads are holes. The file ends where the last
// payload does.
func packed(bits uint, isZstd bool, at []int, payloads [][]byte) []byte {
	c := 1 << bits
	// Header, L1, and enough L2 tables for all entries, one behind another.
	per := c / 8
	tables := (len(payloads) + per - 1) / per
	l1 := c
	l2 := l1 + (tables*8+c-1)/c*c
	rt := l2 + tables*c // an empty refcount table, which QEMU wants
	base := max(0x40000, rt+c)
	end := base
	for i, p := range payloads {
		end = max(end, base+at[i]+len(p))
	}
	b := make([]byte, end)
	copy(b, magic)
	put32(b, 4, 3)
	put32(b, 20, uint32(bits))
	put64(b, 24, uint64(len(payloads)*c))
	put32(b, 36, uint32(tables))
	put64(b, 40, uint64(l1))
	put64(b, 48, uint64(rt))
	put32(b, 56, 1)
	put32(b, 96, 4)
	put32(b, 100, 112)
	if isZstd {
		put64(b, 72, incCompression)
		b[104] = 1
	}
	for i := range tables {
		put64(b, l1+8*i, uint64(l2+i*c))
	}
	for i, p := range payloads {
		if p == nil {
			continue
		}
		off := base + at[i]
		copy(b[off:], p)
		more := (off+len(p)-1)>>9 - off>>9
		put64(b, l2+8*i, 1<<62|uint64(more)<<(62-(bits-8))|uint64(off))
	}
	return b
}

// behind places payloads one behind another, on multiples of align plus by.
func behind(payloads [][]byte, align, by int) []int {
	at, next := make([]int, len(payloads)), 0
	for i, p := range payloads {
		at[i] = (next+align-1)/align*align + by
		next = at[i] + len(p)
	}
	return at
}

func zlibOf(raw, plain []byte) []byte {
	return binary.BigEndian.AppendUint32(append([]byte{0x78, 0x9c}, raw...), adler32.Checksum(plain))
}

func zstdOf(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(b, nil)
}

// Every way that writers store a cluster, and the field's readers take.
func TestCompressedForms(t *testing.T) {
	const skippable = "\x5a\x2a\x4d\x18\x05\x00\x00\x00abcde"
	flushed := func(b []byte) []byte {
		var out bytes.Buffer
		if _, err := kflate.NewStatelessWriter(&out).Write(b); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	for _, tt := range []struct {
		name       string
		bits       uint
		zstd       bool
		store      func(b []byte) []byte
		align, by  int
		notForQemu bool
	}{
		{name: "packed", bits: 16, store: func(b []byte) []byte { return deflate(t, b, 6) }, align: 1},
		{name: "on sectors", bits: 16, store: func(b []byte) []byte { return deflate(t, b, 6) }, align: 512},
		{name: "stored blocks", bits: 16, store: func(b []byte) []byte { return deflate(t, b, 0) }, align: 1},
		{name: "512-byte clusters", bits: 9, store: func(b []byte) []byte { return deflate(t, b, 6) }, align: 1},
		{name: "1 MiB clusters", bits: 20, store: func(b []byte) []byte { return deflate(t, b, 6) }, align: 1},
		{name: "2 MiB clusters", bits: 21, store: func(b []byte) []byte { return deflate(t, b, 6) }, align: 1},
		{name: "zlib stream entered after its header", bits: 16, store: func(b []byte) []byte { return zlibOf(deflate(t, b, 6), b)[2:] }, align: 1, by: 2},
		{name: "without a final block", bits: 16, store: flushed, align: 1, notForQemu: true},
		{name: "empty fixed block at the end", bits: 16, store: func(b []byte) []byte { return append(flushed(b), "\x03\x00"...) }, align: 1},
		{name: "empty stored block at the end", bits: 16, store: func(b []byte) []byte { return append(flushed(b), "\x01\x00\x00\xff\xff"...) }, align: 1},
		{name: "longer than a cluster", bits: 16, store: func(b []byte) []byte { return deflate(t, append(bytes.Clone(b), b[:1000]...), 6) }, align: 1},
		{name: "zstd", bits: 16, zstd: true, store: func(b []byte) []byte { return zstdOf(t, b) }, align: 1},
		{name: "zstd without checksum", bits: 16, zstd: true, store: func(b []byte) []byte { return zstdOf(t, b, zstd.WithEncoderCRC(false)) }, align: 1},
		{name: "zstd in a single segment", bits: 16, zstd: true, store: func(b []byte) []byte { return zstdOf(t, b, zstd.WithSingleSegment(true)) }, align: 512},
		{name: "zstd, 2 MiB clusters", bits: 21, zstd: true, store: func(b []byte) []byte { return zstdOf(t, b, zstd.WithEncoderLevel(zstd.SpeedBestCompression)) }, align: 1},
		{name: "zstd, 512-byte clusters", bits: 9, zstd: true, store: func(b []byte) []byte { return zstdOf(t, b) }, align: 1},
		{name: "zstd frames", bits: 16, zstd: true, store: func(b []byte) []byte {
			return append(append(zstdOf(t, b[:1000]), zstdOf(t, b[1000:1001])...), zstdOf(t, b[1001:])...)
		}, align: 1},
		{name: "zstd after a skippable frame", bits: 16, zstd: true, store: func(b []byte) []byte { return append([]byte(skippable), zstdOf(t, b)...) }, align: 1},
		{name: "zstd with an empty frame", bits: 16, zstd: true, store: func(b []byte) []byte {
			return append(zstdOf(t, nil, zstd.WithZeroFrames(true)), zstdOf(t, b)...)
		}, align: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := 7
			if tt.bits > 16 {
				n = 3
			}
			want := sample(n << tt.bits)
			var payloads [][]byte
			for i := range n {
				payloads = append(payloads, tt.store(want[i<<tt.bits:(i+1)<<tt.bits]))
			}
			payloads[1] = nil
			clear(want[1<<tt.bits : 2<<tt.bits])
			b := packed(tt.bits, tt.zstd, behind(payloads, tt.align, tt.by), payloads)
			checkContent(t, open(t, codectest.Bytes(b)), want)
			if tt.notForQemu {
				return
			}
			qemu := codectest.Tool(t, "qemu-img")
			dir := t.TempDir()
			img, raw := write(t, filepath.Join(dir, "img"), b), write(t, filepath.Join(dir, "raw"), want)
			if out, err := exec.Command(qemu, "compare", "-f", "qcow2", "-F", "raw", img, raw).CombinedOutput(); err != nil {
				t.Errorf("qemu-img differs: %v\n%s", err, out)
			}
		})
	}
}

// Damaged payloads are errors that say where, and never other bytes.
func TestDamagedPayloads(t *testing.T) {
	plain := sample(4 << 16)[1<<16 : 2<<16]
	short := plain[:1<<16-1]
	half := func(b []byte) []byte { return b[:len(b)/2] }
	dict := []byte("\x28\xb5\x2f\xfd\x61\x07\x00\xff\x03\x00\x00a")
	huge := []byte("\x28\xb5\x2f\xfd\x00\x98\x03\x00\x08a") // a window of 512 MiB
	sized := []byte("\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x7f\x03\x00\x08a")
	for _, tt := range []struct {
		name    string
		zstd    bool
		payload []byte
		text    string
	}{
		{"deflate, short", false, deflate(t, short, 6), errShort.Error()},
		{"deflate, empty", false, deflate(t, nil, 6), errShort.Error()},
		{"deflate, cut", false, half(deflate(t, plain, 6)), errShort.Error()},
		{"deflate, cut stored block", false, half(deflate(t, plain, 0)), errShort.Error()},
		{"deflate, block type 3", false, []byte{7}, errBlock.Error()},
		{"deflate, zlib header", false, zlibOf(deflate(t, plain, 6), plain), "deflate: "},
		{"deflate, distance", false, []byte{0x4b, 0x04, 0x12, 0}, errTooFar.Error()},
		{"deflate, stored length", false, []byte{1, 1, 0, 1, 0, 0}, errStored.Error()},
		{"zstd, short", true, zstdOf(t, short), errShort.Error()},
		{"zstd, long", true, zstdOf(t, append(bytes.Clone(plain), 1)), "size"},
		{"zstd, long in two frames", true, append(zstdOf(t, short), zstdOf(t, plain[:2])...), "size"},
		{"zstd, cut", true, half(zstdOf(t, plain)), errShort.Error()},
		{"zstd, cut checksum", true, zstdOf(t, plain)[:len(zstdOf(t, plain))-1], errShort.Error()},
		{"zstd, no frame", true, []byte("abcdefghijk"), "magic"},
		{"zstd, endless skippable frame", true, []byte("\x50\x2a\x4d\x18\xff\xff\xff\xff"), errShort.Error()},
		{"zstd, dictionary", true, dict, "dictionary"},
		{"zstd, window", true, huge, "window"},
		{"zstd, content size of 8 EiB", true, sized, "size"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := packed(16, tt.zstd, []int{0}, [][]byte{tt.payload})
			d := open(t, codectest.Bytes(b))
			p := make([]byte, 1000)
			n, err := d.ReadAt(context.Background(), p, 5)
			if !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), "compressed cluster at 0x40000") || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%d bytes, error %v, want a damaged image with %q", n, err, tt.text)
			}
		})
	}
	t.Run("zstd, checksum", func(t *testing.T) {
		p := zstdOf(t, plain)
		p[len(p)-1] ^= 1
		_, err := open(t, codectest.Bytes(packed(16, true, []int{0}, [][]byte{p}))).ReadAt(context.Background(), make([]byte, 1<<16), 0)
		if !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("error %v", err)
		}
	})
}

// A failing store is no damaged image.
func TestDecodeStoreError(t *testing.T) {
	b := packed(16, false, []int{0}, [][]byte{deflate(t, make([]byte, 1<<16), 6)})
	d := open(t, codectest.FaultyAt(codectest.Bytes(b), codectest.ErrBoom, 0x40000, 1))
	_, err := d.ReadAt(context.Background(), make([]byte, 10), 0)
	if !errors.Is(err, codectest.ErrBoom) || errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("error %v, want the store's", err)
	}
}

func TestDecodeConcurrently(t *testing.T) {
	for _, isZstd := range []bool{false, true} {
		want := sample(64 << 12)
		var payloads [][]byte
		for i := range 64 {
			p := want[i<<12 : (i+1)<<12]
			if isZstd {
				payloads = append(payloads, zstdOf(t, p))
			} else {
				payloads = append(payloads, deflate(t, p, 6))
			}
		}
		d := open(t, codectest.Bytes(packed(12, isZstd, behind(payloads, 1, 0), payloads)))
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				p := make([]byte, 6000)
				for i := range 200 {
					off := (g*977 + i*4099) % (len(want) - len(p))
					if _, err := d.ReadAt(context.Background(), p, int64(off)); err != nil || !bytes.Equal(p, want[off:off+len(p)]) {
						t.Errorf("read at %#x: %v, or other content", off, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

// BenchmarkDecode reads whole 64 KiB clusters on every processor.
func BenchmarkDecode(b *testing.B) {
	for _, isZstd := range []bool{false, true} {
		name := "zlib"
		if isZstd {
			name = "zstd"
		}
		b.Run(name, func(b *testing.B) {
			const n = 64
			want := sample(n << 16)
			var payloads [][]byte
			for i := range n {
				p := want[i<<16 : (i+1)<<16]
				if isZstd {
					payloads = append(payloads, zstdOf(b, p))
				} else {
					payloads = append(payloads, deflate(b, p, 6))
				}
			}
			d := open(b, codectest.Bytes(packed(16, isZstd, behind(payloads, 1, 0), payloads)))
			b.SetBytes(1 << 16)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, 1<<16)
				for i := int64(0); pb.Next(); i++ {
					if _, err := d.ReadAt(context.Background(), p, i%n<<16); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

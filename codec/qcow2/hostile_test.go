package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// small is an image of six clusters of 4 KiB: header, L1 at 0x1000, L2 at
// 0x2000, guest clusters 0, 2 and 3 at 0x3000, 0x5000 and 0x4000. The disk has
// five clusters less 1024 bytes.
func small() []byte {
	b := make([]byte, 6<<12)
	copy(b, magic)
	put32(b, 4, 3)
	put32(b, 20, 12)
	put64(b, 24, 5<<12-1024)
	put32(b, 36, 1)
	put64(b, 40, 0x1000)
	put32(b, 96, 4)
	put32(b, 100, 112)
	put64(b, 0x1000, 0x2000|entryCopied)
	put64(b, 0x2000, 0x3000|entryCopied)
	put64(b, 0x2010, 0x5000|entryCopied)
	put64(b, 0x2018, 0x4000)
	for i := 0x3000; i < len(b); i++ {
		b[i] = byte(i>>12 + i*7)
	}
	return b
}

func put32(b []byte, off int, v uint32) { binary.BigEndian.PutUint32(b[off:], v) }
func put64(b []byte, off int, v uint64) { binary.BigEndian.PutUint64(b[off:], v) }

// extended makes small an image with extended L2 entries, clusters of 16 KiB:
// L1 at 0x4000, L2 at 0x8000, guest clusters 0 and 1 at 0xc000 and 0x10000.
func extended() []byte {
	b := make([]byte, 5<<14)
	copy(b, small()[:112])
	put32(b, 20, 14)
	put64(b, 24, 3<<14)
	put64(b, 40, 0x4000)
	put64(b, 72, incExtL2)
	put64(b, 0x4000, 0x8000)
	put64(b, 0x8000, 0xc000)
	put64(b, 0x8008, 0xffff0000_0000ffff)
	put64(b, 0x8010, 0x10000)
	put64(b, 0x8018, 0x00000000_80000001)
	for i := 0xc000; i < len(b); i++ {
		b[i] = byte(i>>14 + i*7)
	}
	return b
}

type mend func(b []byte) []byte

func set32(off int, v uint32) mend { return func(b []byte) []byte { put32(b, off, v); return b } }
func set64(off int, v uint64) mend { return func(b []byte) []byte { put64(b, off, v); return b } }
func cut(n int) mend               { return func(b []byte) []byte { return b[:n] } }

func both(ms ...mend) mend {
	return func(b []byte) []byte {
		for _, m := range ms {
			b = m(b)
		}
		return b
	}
}

// ext puts a header extension at 112.
func ext(kind uint32, data string) mend {
	return func(b []byte) []byte {
		put32(b, 112, kind)
		put32(b, 116, uint32(len(data)))
		copy(b[120:], data)
		return b
	}
}

func text(off int, s string) mend {
	return func(b []byte) []byte { copy(b[off:], s); return b }
}

func TestRefusals(t *testing.T) {
	v2 := set32(4, 2)
	names := "\x00\x05future\x00" + strings.Repeat("\x00", 39) + "\x01\x07other" + strings.Repeat("\x00", 41) + "\x00\x07bad\nname" + strings.Repeat("\x00", 38)
	for _, tt := range []struct {
		name string
		base func() []byte
		mend mend
		err  error
		text string
	}{
		{"empty file", small, cut(0), codec.ErrFormat, ""},
		{"magic only", small, cut(4), codec.ErrFormat, ""},
		{"other magic", small, text(0, "QFI\xfa"), codec.ErrFormat, ""},
		{"version 1", small, set32(4, 1), codec.ErrUnsupported, "qcow version 1"},
		{"version 4", small, set32(4, 4), codec.ErrUnsupported, "qcow version 4"},
		{"short version 2 header", small, both(v2, cut(71)), codec.ErrCorrupt, "header: cut"},
		{"short version 3 header", small, cut(103), codec.ErrCorrupt, "header: cut"},
		{"header_length behind the end", small, cut(111), codec.ErrCorrupt, "header_length at 100: 112"},
		{"header_length too small", small, set32(100, 96), codec.ErrCorrupt, "header_length at 100: 96"},
		{"header_length odd", small, set32(100, 108), codec.ErrCorrupt, "header_length at 100: 108"},
		{"header_length over a cluster", small, set32(100, 4104), codec.ErrCorrupt, "header_length at 100: 4104"},
		{"header_length of 4 GiB", small, set32(100, 0xfffffff8), codec.ErrCorrupt, "header_length at 100"},
		{"clusters too small", small, set32(20, 8), codec.ErrCorrupt, "cluster_bits at 20: 8"},
		{"clusters too large", small, set32(20, 22), codec.ErrCorrupt, "cluster_bits at 20: 22"},
		{"cluster_bits wild", small, set32(20, 0xffffffff), codec.ErrCorrupt, "cluster_bits at 20"},
		{"backing file", small, both(set64(8, 0x200), set32(16, 11), text(0x200, "/etc/shad\n\x01w")), codec.ErrUnsupported, `backing file "/etc/shad\n\x01"; flatten it with qemu-img convert`},
		{"backing file of version 2", small, both(v2, set64(8, 0x200), set32(16, 4), text(0x200, "base")), codec.ErrUnsupported, `backing file "base"`},
		{"backing file somewhere", small, both(set64(8, 1<<63), set32(16, 11)), codec.ErrUnsupported, `backing file ""`},
		{"backing file of any length", small, both(set64(8, 0x200), set32(16, 0xffffffff)), codec.ErrUnsupported, `backing file ""`},
		{"backing length alone", small, set32(16, 5), codec.ErrUnsupported, "backing file"},
		{"AES", small, set32(32, 1), codec.ErrUnsupported, "AES encryption"},
		{"LUKS", small, set32(32, 2), codec.ErrUnsupported, "LUKS encryption"},
		{"other encryption", small, set32(32, 3), codec.ErrUnsupported, "encryption method 3"},
		{"LUKS extension", small, ext(extCrypto, strings.Repeat("\x00", 16)), codec.ErrUnsupported, "LUKS encryption"},
		{"marked corrupt", small, set64(72, incCorrupt), codec.ErrUnsupported, "marked as corrupt"},
		{"data file", small, both(set64(72, incDataFile), ext(extDataFile, "json:{\"x\"}")), codec.ErrUnsupported, `external data file "json:{\"x\"}"`},
		{"data file without a name", small, set64(72, incDataFile), codec.ErrUnsupported, "external data file"},
		{"data file by extension only", small, ext(extDataFile, "/dev/sda"), codec.ErrUnsupported, `external data file "/dev/sda"`},
		{"raw data file by autoclear only", small, set64(88, autoRawData), codec.ErrUnsupported, "external data file"},
		{"unknown incompatible", small, set64(72, 1<<40), codec.ErrUnsupported, `unknown incompatible feature bit 40 ("")`},
		{"named incompatible", small, both(set64(72, 1<<5|1<<7), ext(extFeatures, names)), codec.ErrUnsupported, `bit 5 ("future"), bit 7 ("bad\nname")`},
		{"extension too long", small, ext(1234, strings.Repeat("x", 3976+1)), codec.ErrCorrupt, "header extension 0x4d2 at 0x70"},
		{"extension of 4 GiB", small, both(set32(112, 5), set32(116, 0xffffffff)), codec.ErrCorrupt, "header extension 0x5 at 0x70"},
		{"compression type 2", small, both(set64(72, incCompression), set32(104, 2<<24)), codec.ErrUnsupported, "compression type 2"},
		{"zstd without its bit", small, set32(104, 1<<24), codec.ErrCorrupt, "compression_type at 104: 1"},
		{"compression bit without type", small, set64(72, incCompression), codec.ErrCorrupt, "compression_type at 104: 0"},
		{"compression bit in a short header", small, both(set64(72, incCompression), set32(100, 104), set32(104, 1<<24)), codec.ErrCorrupt, "compression_type at 104: 0"},
		{"extended L2 in small clusters", small, set64(72, incExtL2), codec.ErrCorrupt, "cluster_bits at 20: 12, extended"},
		{"size of 8 EiB", small, set64(24, 1<<63), codec.ErrCorrupt, "size at 24"},
		{"size over the L1 limit", small, both(set64(24, 9<<42), set32(36, 0xffffffff)), codec.ErrCorrupt, "size at 24"},
		{"l1_size too small", small, set64(24, 2<<21+1), codec.ErrCorrupt, "l1_size at 36: 1"},
		{"l1_size 0", small, set32(36, 0), codec.ErrCorrupt, "l1_size at 36: 0"},
		{"L1 at 0", small, set64(40, 0), codec.ErrCorrupt, "l1_table_offset at 40: 0"},
		{"L1 not aligned", small, set64(40, 0x1008), codec.ErrCorrupt, "l1_table_offset at 40: 0x1008"},
		{"L1 behind the end", small, set64(40, 0x6000), codec.ErrCorrupt, "l1 table at 0x6000"},
		{"L1 far away", small, set64(40, 1<<63-4096), codec.ErrCorrupt, "l1 table at 0x7ffffffffffff000"},
		{"L1 negative", small, set64(40, 1<<63), codec.ErrCorrupt, "l1_table_offset at 40"},
		{"L1 over the end", small, both(set64(24, 1000<<21), set32(36, 1000), set64(40, 0x5000)), codec.ErrCorrupt, "l1 table at 0x5000"},
		{"L1 reserved low bits", small, set64(0x1000, 0x2001), codec.ErrCorrupt, "l1 entry 0 at 0x1000"},
		{"L1 reserved high bits", small, set64(0x1000, 1<<60|0x2000), codec.ErrCorrupt, "l1 entry 0 at 0x1000"},
		{"L2 not aligned", small, set64(0x1000, 0x2200), codec.ErrCorrupt, "l2 table at 0x2200, not on a cluster"},
		{"L2 behind the end", small, set64(0x1000, 0x6000), codec.ErrCorrupt, "l2 table at 0x6000"},
		{"L2 far away", small, set64(0x1000, entryOffset&^0xfff), codec.ErrCorrupt, "l2 table at 0xfffffffffff000"},
		{"L2 over the end", small, both(set64(0x1000, 0x5000), cut(0x5fff)), codec.ErrCorrupt, "l2 table at 0x5000"},
		{"L2 is the L1", small, set64(0x1000, 0x1000), codec.ErrCorrupt, "two tables or blocks share"},
		{"L2 twice", small, both(set64(24, 2<<21), set32(36, 2), set64(0x1008, 0x2000)), codec.ErrCorrupt, "the same l2 table at 0x2000"},
		{"cluster not aligned", small, set64(0x2000, 0x3200), codec.ErrCorrupt, "l2 entry 0x3200 at 0x2000 of guest cluster 0: damaged image: not on a cluster"},
		{"cluster behind the end", small, set64(0x2008, 0x6000), codec.ErrCorrupt, "of guest cluster 1"},
		{"cluster twice", small, both(set64(0x2018, 0), set64(0x2008, 0x3000)), codec.ErrCorrupt, "share the bytes at 0x3000"},
		{"cluster in the L1", small, both(set64(0x2018, 0), set64(0x2008, 0x1000)), codec.ErrCorrupt, "share the bytes at 0x1000"},
		{"cluster in the L2", small, both(set64(0x2018, 0), set64(0x2008, 0x2000)), codec.ErrCorrupt, "share the bytes at 0x2000"},
		{"zero cluster in the L2", small, both(set64(0x2018, 0), set64(0x2008, 0x2001)), codec.ErrCorrupt, "share the bytes at 0x2000"},
		{"zero cluster on another", small, both(set64(0x2018, 0), set64(0x2008, 0x3001)), codec.ErrCorrupt, "share the bytes at 0x3000"},
		{"cluster cut by the end", small, both(set64(0x2008, 0x5000), set64(0x2010, 0), set64(24, 4<<12), cut(0x5000)), codec.ErrCorrupt, "of guest cluster 1"},
		{"zero flag in version 2", small, both(v2, set64(0x2008, 1)), codec.ErrCorrupt, "reserved bits are set"},
		{"reserved low bits", small, set64(0x2008, 0x80), codec.ErrCorrupt, "reserved bits are set"},
		{"reserved high bits", small, set64(0x2008, 1<<57), codec.ErrCorrupt, "reserved bits are set"},
		{"compressed with the refcount bit", small, set64(0x2008, 3<<62|0x3000), codec.ErrCorrupt, "bit 63 of a compressed cluster"},
		{"compressed behind the end", small, set64(0x2008, 1<<62|0x6000), codec.ErrCorrupt, "compressed cluster at 0x6000"},
		{"compressed at 0", small, set64(0x2008, 1<<62), codec.ErrCorrupt, "compressed cluster at 0x0"},
		{"compressed far away", small, set64(0x2008, 1<<62|(1<<58-1)), codec.ErrCorrupt, "compressed cluster at 0x3ffffffffffffff"},
		{"compressed over a cluster", small, set64(0x2008, 1<<62|0x3000), codec.ErrCorrupt, "share the bytes at 0x3000"},
		{"compressed over the L2", small, set64(0x2008, 1<<62|4<<58|0x1f00), codec.ErrCorrupt, "share the bytes at 0x2000"},
		{"compressed twice", small, both(set64(0x2008, 1<<62|0x5010), set64(0x2010, 1<<62|0x5010)), codec.ErrCorrupt, "share the bytes at 0x5010"},
		{"extended with the zero flag", extended, set64(0x8020, 1), codec.ErrCorrupt, "reserved bits are set"},
		{"subcluster zero and allocated", extended, set64(0x8008, 0x80000000_80000000), codec.ErrCorrupt, "both allocated and zero"},
		{"subclusters of no cluster", extended, set64(0x8028, 1), codec.ErrCorrupt, "allocated in no cluster"},
		{"compressed with subclusters", extended, both(set64(0x8020, 1<<62|0x13000), set64(0x8028, 1)), codec.ErrCorrupt, "of a compressed cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.mend(tt.base())
			_, err := Format.Open(context.Background(), codectest.Bytes(b))
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.err, tt.text)
			}
			if _, err := codectest.OpenHostile(Format, b); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// guest is the disk of small.
func guest() []byte {
	b, g := small(), make([]byte, 5<<12-1024)
	copy(g[0x0000:], b[0x3000:0x4000])
	copy(g[0x2000:], b[0x5000:0x6000])
	copy(g[0x3000:], b[0x4000:0x5000])
	return g
}

func TestAccepted(t *testing.T) {
	zeroed := func(from, to int) []byte {
		g := guest()
		clear(g[from:to])
		return g
	}
	for _, tt := range []struct {
		name string
		mend mend
		want []byte
	}{
		{"as it is", both(), guest()},
		{"version 2", both(set32(4, 2), set64(72, 0)), guest()},
		{"dirty", set64(72, incDirty), guest()},
		{"unknown compatible and autoclear", both(set64(80, 1<<63-1), set64(88, 1<<62|1)), guest()},
		{"zstd without compressed clusters", both(set64(72, incCompression), set32(104, 1<<24)), guest()},
		{"header of 104 bytes", both(set32(100, 104)), guest()},
		{"unknown header fields", both(set32(100, 128), text(112, "0123456789abcdef")), guest()},
		{"unknown extension", ext(0x12345678, "abc"), guest()},
		{"extension to the end of the cluster", ext(0x12345678, strings.Repeat("x", 3976)), guest()},
		{"backing format without a backing file", ext(0xe2792aca, "raw"), guest()},
		{"bitmaps", ext(0x23852875, strings.Repeat("\xff", 24)), guest()},
		{"wild refcounts", both(set64(48, 1<<63-1), set32(56, 1<<31), set32(96, 77)), guest()},
		{"snapshot table nowhere", both(set64(64, 1<<62)), guest()},
		{"more L1 entries than needed", both(set32(36, 0xffffffff), set64(0x1008, 1<<63-1)), guest()},
		{"L2 entries behind the disk", set64(0x2028, 1<<63-1), guest()},
		{"zero cluster", set64(0x2000, 1), zeroed(0, 0x1000)},
		{"preallocated zero cluster", set64(0x2000, 0x3001|entryCopied), zeroed(0, 0x1000)},
		{"preallocated zero cluster behind the end", set64(0x2000, 0x9001|entryCopied), zeroed(0, 0x1000)},
		{"no L2", set64(0x1000, 0), make([]byte, len(guest()))},
		{"no L2, refcount bit", set64(0x1000, entryCopied), make([]byte, len(guest()))},
		{"last cluster cut by the end", cut(0x5a00), zeroed(0x2a00, 0x3000)},
		{"last cluster cut after a sector", cut(0x5200), zeroed(0x2200, 0x3000)},
		{"no clusters", set64(24, 0), nil},
		{"no clusters and no L1", both(set64(24, 0), set32(36, 0), set64(40, 0)), nil},
		{"any size in bytes", set64(24, 0x2001), guest()[:0x2001]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t, codectest.Bytes(tt.mend(small())))
			if len(tt.want) == 0 {
				if d.Size() != 0 {
					t.Fatalf("size is %d, want 0", d.Size())
				}
				return
			}
			checkContent(t, d, tt.want)
		})
	}
}

func TestSubclusters(t *testing.T) {
	b := extended()
	want := make([]byte, 3<<14)
	copy(want, b[0xc000:0xc000+16*512])         // the first half
	copy(want[0x4000:], b[0x10000:0x10000+512]) // the first
	copy(want[0x8000-512:], b[0x14000-512:])    // the last
	put64(b, 0x8020, 0)                         // no cluster,
	put64(b, 0x8028, 0xffffffff_00000000)       // but zeros
	d := open(t, codectest.Bytes(b))
	checkContent(t, d, want)
	var data int64
	for e := range d.Extents(context.Background(), 0, d.Size()) {
		if !e.Zero {
			data += e.Len
		}
	}
	if data != 18*512 {
		t.Errorf("%d bytes of data, want %d", data, 18*512)
	}
	put64(b, 0x8008, 0xffffffff_00000000) // preallocated, all zeros
	clear(want[:0x4000])
	checkContent(t, open(t, codectest.Bytes(b)), want)
	put64(b, 0x8010, 0xc000) // another on its cluster
	if _, err := Format.Open(context.Background(), codectest.Bytes(b)); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("preallocated cluster in use: %v", err)
	}
}

func TestNotes(t *testing.T) {
	b := small()
	if n := open(t, codectest.Bytes(b)).(codec.Noted).Notes(); len(n) != 0 {
		t.Errorf("notes %q", n)
	}
	put32(b, 60, 3)
	n := open(t, codectest.Bytes(b)).(codec.Noted).Notes()
	if len(n) != 1 || !strings.Contains(n[0], "3 internal snapshots") {
		t.Errorf("notes %q", n)
	}
}

// Every bit of the header, the L1, and the used part of the L2, and every
// length: a clean error, or a disk that keeps its contract.
func TestDamaged(t *testing.T) {
	for _, base := range []func() []byte{small, extended, compressedSmall} {
		whole := base()
		l2 := int(be64(whole[be64(whole[40:]):]) & entryOffset)
		l1 := int(be64(whole[40:]))
		try := func(b []byte, what string, at int) {
			if _, err := codectest.OpenHostile(Format, b); err != nil {
				t.Fatalf("%s %#x: %v", what, at, err)
			}
		}
		for _, r := range [][2]int{{0, 128}, {l1, l1 + 8}, {l2, l2 + 48}} {
			for bit := r[0] * 8; bit < r[1]*8; bit++ {
				b := bytes.Clone(whole)
				b[bit/8] ^= 1 << (bit % 8)
				try(b, "bit", bit)
			}
		}
		for n := 0; n < len(whole); n += 1 + n/100 {
			try(bytes.Clone(whole[:n]), "cut to", n)
		}
		r := rand.New(rand.NewPCG(1, 1))
		for i := range 700 {
			b := bytes.Clone(whole)
			for range 1 + r.IntN(4) {
				at := []int{r.IntN(128), l1 + r.IntN(8), l2 + r.IntN(48)}[r.IntN(3)]
				b[at] = byte(r.Uint32() >> r.IntN(8))
			}
			try(b, "random", i)
		}
	}
}

// The same payload for two guest clusters is the amplification trick, whatever
// its length says and wherever it lies. Payloads that share no more than a
// sector are what writers make.
func TestSharedPayloads(t *testing.T) {
	for _, isZstd := range []bool{false, true} {
		for _, bits := range []uint{9, 16, 21} {
			for i, n := range []int{1, 20, 500, 511} { // bytes; one sector or two
				if bits == 21 && i%codectest.Thin(3) != 0 {
					t.Logf("clusters of 2 MiB, payloads of %d bytes: left to the run without the race detector", n)
					continue
				}
				p := bytes.Repeat([]byte{'p'}, n)
				for _, at := range []int{0, 1, 300, 511} {
					b := packed(bits, isZstd, []int{at, at + n, at + 2*n}, [][]byte{p, p, p})
					open(t, codectest.Bytes(b))
					for i, off := range []int{at, at + n, at + 2*n} {
						twice := packed(bits, isZstd, []int{at, at + n, at + 2*n, off}, [][]byte{p, p, p, p})
						if _, err := Format.Open(context.Background(), codectest.Bytes(twice)); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), "share") {
							t.Errorf("zstd %v, clusters of 1<<%d, payload %d of %d bytes at %d used twice: %v", isZstd, bits, i, n, off, err)
						}
					}
				}
			}
		}
	}
}

// compressedSmall is small with its guest clusters 0 and 1 compressed, packed
// at 0x3001.
func compressedSmall() []byte {
	b := small()
	var out bytes.Buffer
	w, _ := flate.NewWriter(&out, 6)
	_, _ = io.WriteString(w, strings.Repeat("0123456789abcdef", 256))
	_ = w.Close()
	p := out.Bytes()
	copy(b[0x3001:], p)
	copy(b[0x3001+len(p):], p)
	put64(b, 0x2000, 1<<62|0x3001)
	put64(b, 0x2008, 1<<62|uint64(0x3001+len(p)))
	return b
}

func FuzzOpen(f *testing.F) {
	for _, seed := range []func() []byte{small, extended, compressedSmall} {
		f.Add(seed())
		f.Add(seed()[:0x2800])
	}
	zs := compressedSmall()
	put64(zs, 72, incCompression)
	put32(zs, 104, 1<<24)
	copy(zs[0x3001:], "\x28\xb5\x2f\xfd\x60\x00\x0f\x03\x80\x00a") // 4 KiB of "a"
	f.Add(zs)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := codectest.OpenHostile(Format, b); err != nil {
			t.Fatal(err)
		}
	})
}

package vhd

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"unicode/utf16"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestRefusals(t *testing.T) {
	// foot changes the footer and its copy, head the dynamic header.
	foot := func(off int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte {
			be.PutUint32(b[off:], v)
			be.PutUint32(b[len(b)-512+off:], v)
			return resum(b)
		}
	}
	head := func(off int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte { be.PutUint32(b[512+off:], v); return resum(b) }
	}
	entry := func(i int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte { be.PutUint32(b[1536+4*i:], v); return b }
	}
	tail := func(mend func(f []byte)) func(b []byte) []byte {
		return func(b []byte) []byte { mend(b[len(b)-512:]); return resum(b) }
	}
	asFixed := func(mend func(b []byte) []byte) func(b []byte) []byte {
		return func([]byte) []byte { return mend(fixedSample()) }
	}
	diff := func(name string) func(b []byte) []byte {
		return func(b []byte) []byte {
			for i, c := range utf16.Encode([]rune(name)) {
				be.PutUint16(b[512+64+2*i:], c)
			}
			return foot(60, typeDiff)(b)
		}
	}
	for _, c := range []struct {
		name string
		mend func(b []byte) []byte
		err  error
		text string
	}{
		{"empty file", func([]byte) []byte { return nil }, codec.ErrFormat, "footer"},
		{"no footer", func([]byte) []byte { return make([]byte, 4096) }, codec.ErrFormat, "no VHD footer at the end"},
		{"short file", func(b []byte) []byte { return b[:100] }, codec.ErrCorrupt, "footer of 512 bytes"},
		{"version 2", foot(12, 0x20000), codec.ErrUnsupported, "version 2.0"},
		{"type 0", foot(60, 0), codec.ErrUnsupported, "type 0"},
		{"type 6", foot(60, 6), codec.ErrUnsupported, "type 6"},
		{"differencing", diff("base\n.vhd"), codec.ErrUnsupported, `its parent is "base\n.vhd"`},
		{"differencing without a header", func(b []byte) []byte { return foot(16, 1)(diff("")(b)) }, codec.ErrUnsupported, `differencing disk (type 4), its parent is ""`},
		{"size of 16 EiB", foot(48, 1<<32-1), codec.ErrCorrupt, "current size at 48"},
		{"size above the blocks", foot(48, 1), codec.ErrCorrupt, "more than its 7 blocks"},
		{"header past the end", foot(16, 1), codec.ErrCorrupt, "dynamic header at 0x100000200"},
		{"header far past the end", foot(16, 1<<32-1), codec.ErrCorrupt, "dynamic header"},
		{"header in the copy", foot(20, 0), codec.ErrCorrupt, "begins with"},
		{"header cookie", head(0, 0), codec.ErrCorrupt, "dynamic header at 0x200 begins with"},
		{"header checksum", func(b []byte) []byte { b[600]++; return b }, codec.ErrCorrupt, "dynamic header at 0x200: checksum"},
		{"header version", head(24, 0x20000), codec.ErrUnsupported, "dynamic header of version 2.0"},
		{"block size 0", head(32, 0), codec.ErrCorrupt, "block size at 32 of the dynamic header is 0"},
		{"block size no power of two", head(32, 12288), codec.ErrCorrupt, "is 12288"},
		{"small blocks", head(32, 2048), codec.ErrCorrupt, "is 2048"},
		{"large blocks", head(32, 512<<20), codec.ErrCorrupt, "is 536870912"},
		{"few entries", head(28, 6), codec.ErrCorrupt, "more than its 6 blocks"},
		{"many entries", head(28, 1<<32-1), codec.ErrCorrupt, "block allocation table at 0x600"},
		{"table past the end", head(20, 1<<24), codec.ErrCorrupt, "block allocation table at 0x1000000"},
		{"table far past the end", head(16, 1<<31), codec.ErrCorrupt, "block allocation table"},
		{"table in the header", head(20, 1024), codec.ErrCorrupt, "share"},
		{"block at 0", entry(1, 0), codec.ErrCorrupt, "share"},
		{"block in the header", entry(1, 1), codec.ErrCorrupt, "share"},
		{"block past the end", entry(1, 1<<24), codec.ErrCorrupt, "VHD block 1 at 0x200000000"},
		{"block far past the end", entry(1, entryNone-1), codec.ErrCorrupt, "VHD block 1 at"},
		{"block over the footer", entry(6, 2048/512+19), codec.ErrCorrupt, "share"},
		{"block cut by the end", entry(6, 2048/512+20), codec.ErrCorrupt, "VHD block 6 at 0x3000: ends at 0x4200"},
		{"block twice", entry(1, 4), codec.ErrCorrupt, "share"},
		{"other size in the copy", tail(func(f []byte) { f[54]-- }), codec.ErrCorrupt, "disagree"},
		{"other type in the copy", tail(func(f []byte) { f[63] = typeDiff }), codec.ErrCorrupt, "disagree"},
		{"both footers damaged", func(b []byte) []byte { return flip(flip(b, 100), len(b)-100) }, codec.ErrCorrupt, "checksum"},
		{"no footer and the copy damaged", func(b []byte) []byte { return flip(b[:len(b)-512], 100) }, codec.ErrCorrupt, "VHD footer at 0x0: checksum"},
		{"fixed, damaged footer", asFixed(func(b []byte) []byte { return flip(b, len(b)-100) }), codec.ErrCorrupt, "VHD footer at 0xa00: checksum"},
		{"fixed, truncated", asFixed(func(b []byte) []byte { return b[512:] }), codec.ErrCorrupt, "only 2048 bytes precede the footer"},
		{"fixed, footer at the start only", asFixed(func(b []byte) []byte { return slices.Concat(b[2560:], b[:2560]) }), codec.ErrCorrupt, "fixed disk at 0"},
		{"fixed, a dynamic disk inside", asFixed(func(b []byte) []byte { return slices.Concat(sample(), b[2560:]) }), codec.ErrUnsupported, "begins with another VHD footer"},
		{"fixed and damaged, a dynamic disk inside", asFixed(func(b []byte) []byte {
			return slices.Concat(sample(), flip(b, len(b)-100)[2560:])
		}), codec.ErrCorrupt, "checksum"},
	} {
		t.Run(c.name, func(t *testing.T) {
			codectest.Refused(t, Format, c.mend(sample()), c.err, c.text)
		})
	}
}

func TestTruncationIsAnErrorOrTheFooterMissing(t *testing.T) {
	for _, b := range [][]byte{sample(), fixedSample()} {
		dynamic := hasCookie(b)
		var want []byte
		if dynamic {
			want = content(b)
		} else {
			want = b[:2560]
		}
		for n := range b {
			d, err := Format.Open(context.Background(), codectest.Bytes(b[:n]))
			if err != nil {
				if !codectest.Clean(err) {
					t.Errorf("cut at %d: %v is no clean refusal", n, err)
				}
				continue
			}
			if n < len(b)-1 && (!dynamic || n < len(b)-512) {
				t.Fatalf("cut at %d: opened", n)
			}
			if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("cut at %d: other bytes, or %v", n, err)
			}
		}
	}
}

// The checksums and the copy leave no bit of a footer or header to chance.
func TestFlippedBits(t *testing.T) {
	for _, b := range [][]byte{sample(), fixedSample()} {
		want, from, dynamic := b[:2560], int64(2560), hasCookie(b)
		if dynamic {
			want, from = content(b), 0
		}
		for bit := from * 8; bit < int64(len(b))*8; bit++ {
			at := bit / 8
			if dynamic && at >= 1536 && at < int64(len(b))-512 {
				continue // the table and the blocks have no checksum
			}
			d, err := Format.Open(context.Background(), codectest.Flip(codectest.Bytes(b), bit))
			if err != nil {
				if !codectest.Clean(err) {
					t.Errorf("bit %d of byte %d: %v is no clean refusal", bit%8, at, err)
				}
				continue
			}
			if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, want) {
				t.Errorf("bit %d of byte %d: other bytes, or %v", bit%8, at, err)
			}
		}
	}
}

func TestBitmapsAreReadOnce(t *testing.T) {
	src := codectest.Bounded(codectest.Bytes(sample()), 1<<40, 1<<40)
	d := codectest.Open(t, Format, src)
	if _, err := codectest.ReadAll(d); err != nil {
		t.Fatal(err)
	}
	before, _ := src.Used()
	if _, err := codectest.ReadAll(d); err != nil {
		t.Fatal(err)
	}
	if after, _ := src.Used(); after-before != 3 {
		t.Errorf("%d reads of three known blocks, want 3", after-before)
	}
}

func TestConcurrentFirstReads(t *testing.T) {
	want := content(sample())
	for range 50 {
		d := codectest.Open(t, Format, codectest.Bytes(sample()))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, want) {
					t.Errorf("other bytes, or %v", err)
				}
			})
		}
		wg.Wait()
	}
}

func TestSourceErrorsPass(t *testing.T) {
	for after := range int64(4) {
		_, err := Format.Open(context.Background(), codectest.Faulty(codectest.Bytes(sample()), codectest.ErrBoom, after))
		if !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("after %d reads: error %v, want %v", after, err, codectest.ErrBoom)
		}
	}
	// A bitmap that cannot be read is not taken for a full one, nor remembered.
	src := codectest.Faulty(codectest.Bytes(sample()), codectest.ErrBoom, 4)
	d := codectest.Open(t, Format, src)
	for range 2 {
		if n, err := d.ReadAt(context.Background(), make([]byte, 8192), 0); !errors.Is(err, codectest.ErrBoom) || n != 0 {
			t.Errorf("%d bytes, error %v, want 0 and %v", n, err, codectest.ErrBoom)
		}
	}
	src.FailAfter(1 << 40)
	if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, content(sample())) {
		t.Errorf("other bytes, or %v", err)
	}
}

// Blocks above 2 MiB have bitmaps of several sectors, remembered one by one.
func TestLargeBlocks(t *testing.T) {
	const block = 8 << 20
	foot := footer{version: version10, dataOffset: 512, size: 2 * block, kind: typeDynamic}.marshal()
	h := header{tableOffset: 1536, version: version10, entries: 2, block: block}.marshal()
	b := slices.Concat(foot, h, bytes.Repeat([]byte{0xff}, 512), bytes.Repeat([]byte{0xff}, 2048), bytes.Repeat([]byte{7}, block), foot)
	be.PutUint32(b[1536+4:], 4)
	b[2048+512+3] = 0xf7 // sector 4 * 1024 + 28 of block 1
	want := append(make([]byte, block), bytes.Repeat([]byte{7}, block)...)
	at := block + (4*1024+28)*512
	clear(want[at : at+512])
	src := codectest.Bounded(codectest.Bytes(b), 1<<40, 1<<40)
	d := codectest.Open(t, Format, src)
	if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes, or %v", err)
	}
}

// FuzzOpen compares what is read with the table and bitmaps read naively.
func FuzzOpen(f *testing.F) {
	f.Add(sample())
	f.Add(sample()[:len(sample())-512])
	f.Add(flip(sample(), len(sample())-100))
	f.Add(fixedSample())
	f.Add(fixedSample()[:5*512+511])
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx := context.Background()
		for _, file := range [][]byte{b, mended(b)} {
			src := codectest.Bounded(codectest.Bytes(file), 2000, 64<<20)
			d, err := Format.Open(ctx, src)
			if err != nil {
				if !codectest.Clean(err) {
					t.Errorf("open: %v is no clean refusal", err)
				}
				continue
			}
			codectest.SameAs(t, d, naive(file))
		}
	})
}

// mended is b with checksums that hold: else few changes get past them.
func mended(b []byte) []byte {
	b = slices.Clone(b)
	if n, ok := footerIn(b); ok && len(b) >= 512 {
		f := append(slices.Clone(b[len(b)-n:]), 0)[:512]
		be.PutUint32(b[len(b)-n+64:], checksum(f, 64))
	}
	if hasCookie(b) && len(b) >= 512 {
		be.PutUint32(b[64:], checksum(b[:512], 64))
		if at := be.Uint64(b[16:]); at >= 512 && at < uint64(len(b)) && uint64(len(b))-at >= headerLen {
			be.PutUint32(b[at+36:], checksum(b[at:at+headerLen], 36))
		}
	}
	return b
}

// naive gives the byte at an offset of the disk in image b, which is sound.
func naive(b []byte) func(off int64) byte {
	foot := b[:512]
	if n, ok := footerIn(b); ok {
		f := append(slices.Clone(b[len(b)-n:]), 0)[:512]
		if be.Uint32(f[64:]) == checksum(f, 64) {
			foot = f
		}
	}
	if be.Uint32(foot[60:]) == typeFixed {
		return func(off int64) byte { return b[off] }
	}
	h := b[be.Uint64(foot[16:]):]
	block, table := int64(be.Uint32(h[32:])), int64(be.Uint64(h[16:]))
	return func(off int64) byte {
		e := be.Uint32(b[table+off/block*4:])
		if e == entryNone {
			return 0
		}
		s := off % block / 512
		if b[int64(e)*512+s/8]>>(7-s%8)&1 == 0 {
			return 0
		}
		return b[int64(e)*512+max(block/4096, 512)+off%block]
	}
}

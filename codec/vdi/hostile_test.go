package vdi

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestRefusals(t *testing.T) {
	field := func(off int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
	}
	entry := func(i int, v uint32) func(b []byte) []byte { return field(512+4*i, v) }
	for _, c := range []struct {
		name string
		mend func(b []byte) []byte
		err  error
		text string
	}{
		{"other signature", field(64, 1), codec.ErrFormat, "signature"},
		{"empty file", func(b []byte) []byte { return nil }, codec.ErrFormat, "signature"},
		{"short file", func(b []byte) []byte { return b[:100] }, codec.ErrCorrupt, "header"},
		{"version 0", field(68, 2), codec.ErrUnsupported, "version 0"},
		{"version 1.2", field(68, 0x00010002), codec.ErrUnsupported, "version 1.2"},
		{"version 2.0", field(68, 0x00020000), codec.ErrUnsupported, "version 2.0"},
		{"short header", field(72, 383), codec.ErrCorrupt, "header size at 72 is 383"},
		{"header over the map", field(72, 441), codec.ErrCorrupt, "header size at 72 is 441"},
		{"header of 4 GiB", field(72, 1<<32-1), codec.ErrCorrupt, "header size at 72"},
		{"type 0", field(76, 0), codec.ErrCorrupt, "type at 76 is 0"},
		{"undo", field(76, typeUndo), codec.ErrUnsupported, "undo"},
		{"differencing", field(76, typeDiff), codec.ErrUnsupported, "differencing"},
		{"parent", field(424, 1), codec.ErrUnsupported, "differencing image, parent UUID"},
		{"map in the header", field(340, 0), codec.ErrCorrupt, "block map at 0x0"},
		{"odd map", field(340, 513), codec.ErrCorrupt, "block map at 340 is 0x201"},
		{"map past the end", field(340, 1<<20), codec.ErrCorrupt, "block map at 0x100000"},
		{"odd data", field(344, 1025), codec.ErrCorrupt, "data at 344 is 0x401"},
		{"data at 0", field(344, 0), codec.ErrCorrupt, "data at 344 is 0x0"},
		{"data over the map", field(344, 512), codec.ErrCorrupt, "share"},
		{"data past the end", field(344, 1<<31), codec.ErrCorrupt, "past the end"},
		{"sector of 4096", field(360, 4096), codec.ErrUnsupported, "sector size 4096"},
		{"disk larger than its blocks", field(372, 1), codec.ErrCorrupt, "disk size at 368"},
		{"disk of 16 EiB", field(372, 1<<32-1), codec.ErrCorrupt, "disk size at 368"},
		{"block size 0", field(376, 0), codec.ErrCorrupt, "block size at 376 is 0"},
		{"block size no power of two", field(376, 12288), codec.ErrCorrupt, "block size at 376 is 12288"},
		{"small blocks", field(376, 2048), codec.ErrCorrupt, "block size at 376 is 2048"},
		{"large blocks", field(376, 128<<20), codec.ErrCorrupt, "block size at 376 is 134217728"},
		{"extra bytes", field(380, 512), codec.ErrUnsupported, "512 extra bytes"},
		{"few entries", field(384, 6), codec.ErrCorrupt, "disk size at 368"},
		{"many entries", field(384, 1<<20), codec.ErrCorrupt, "block map at 0x200"},
		{"too many entries", field(384, 1<<32-1), codec.ErrUnsupported, "4294967295 blocks"},
		{"block past the end", entry(1, 3), codec.ErrCorrupt, "block 1 at 0x3400: past the end"},
		{"block far past the end", entry(1, entryZero-1), codec.ErrCorrupt, "block 1 at"},
		{"block twice", entry(1, 0), codec.ErrCorrupt, "share"},
	} {
		t.Run(c.name, func(t *testing.T) {
			codectest.Refused(t, Format, c.mend(sample()), c.err, c.text)
		})
	}
}

func TestHeaderOfOlderWriters(t *testing.T) {
	b := sample()
	le.PutUint32(b[72:], 384)
	if got, err := codectest.ReadAll(codectest.Open(t, Format, codectest.Bytes(b))); err != nil || !bytes.Equal(got, content(b)) {
		t.Errorf("other bytes, or %v", err)
	}
}

func TestTruncationIsAnErrorOrTheCutBlock(t *testing.T) {
	b := sample()
	const last = 1024 + 2*4096 // where the last block in the file begins
	for n := range b {
		d, err := Format.Open(context.Background(), codectest.Bytes(b[:n]))
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("cut at %d: %v is no clean refusal", n, err)
			}
			continue
		}
		if n <= last {
			t.Fatalf("cut at %d: opened", n)
		}
		want := content(b)
		clear(want[6*4096+n-last:])
		if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("cut at %d: other bytes, or %v", n, err)
		}
	}
}

// Bits of the header that decide what is read; any other may take any value.
func TestFlippedBitsOfTheHeader(t *testing.T) {
	b := sample()
	want := content(b)
	for bit := int64(0); bit < 512*8; bit++ {
		at := bit / 8
		d, err := Format.Open(context.Background(), codectest.Flip(codectest.Bytes(b), bit))
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("bit %d of byte %d: %v is no clean refusal", bit%8, at, err)
			}
			continue
		}
		switch {
		case at >= 368 && at < 376 && d.Size() != int64(len(want)): // the disk's size itself
			continue
		case at >= 344 && at < 348: // where the data begin: another place inside the file
			continue
		case at >= 340 && at < 344, at >= 376 && at < 380: // another map or block size, when it fits
			continue
		}
		got, err := codectest.ReadAll(d)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("bit %d of byte %d: other bytes, or %v", bit%8, at, err)
		}
	}
}

func TestSourceErrorsPass(t *testing.T) {
	b := sample()
	for after := range int64(2) {
		_, err := Format.Open(context.Background(), codectest.Faulty(codectest.Bytes(b), codectest.ErrBoom, after))
		if !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("after %d reads: error %v, want %v", after, err, codectest.ErrBoom)
		}
	}
}

// A large map is read in large pieces.
func TestOpenReadsLittle(t *testing.T) {
	d := codectest.Scattered(3<<40, 1000, 1)
	src := codectest.Bounded(codectest.Layout(t, Format, d), 14, 13<<20)
	codectest.Open(t, Format, src)
}

// FuzzOpen compares what the table reads with the map read naively.
func FuzzOpen(f *testing.F) {
	f.Add(sample())
	f.Add(sample()[:len(sample())-1000])
	fixed := sampleHeader()
	fixed.kind, fixed.disk, fixed.entries = typeFixed, 8192, 2
	b := append(fixed.marshal(), make([]byte, 512+8192)...)
	b[516] = 1
	f.Add(b)
	empty := sampleHeader()
	empty.disk, empty.entries = 0, 0
	f.Add(empty.marshal())
	wide := sampleHeader()
	wide.block, wide.disk = 64<<20, 448<<20
	f.Add(append(wide.marshal(), bytes.Repeat([]byte{0xff}, 28)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx := context.Background()
		src := codectest.Bounded(codectest.Bytes(b), 1000, 64<<20)
		d, err := Format.Open(ctx, src)
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("open: %v is no clean refusal", err)
			}
			return
		}
		h := parse(b)
		codectest.SameAs(t, d, func(off int64) byte { return naive(b, h, off) })
	})
}

// naive is the byte at off of the disk in image b.
func naive(b []byte, h header, off int64) byte {
	i := off / int64(h.block)
	e := le.Uint32(b[int64(h.offBlocks)+4*i:])
	if e >= entryZero {
		return 0
	}
	at := int64(h.offData) + int64(e)*int64(h.block) + off%int64(h.block)
	if at >= int64(len(b)) {
		return 0
	}
	return b[at]
}

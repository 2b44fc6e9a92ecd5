package vhd

import (
	"context"
	"errors"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// TestVerifyHiddenData: a sector that the bitmap calls unwritten may not hold
// data, which other readers would show.
func TestVerifyHiddenData(t *testing.T) {
	d := codectest.New("small", 5<<20+512, 1, codectest.Range{Off: 0, Len: 70 << 10}, codectest.Range{Off: 5 << 20, Len: 512})
	fresh, err := codectest.ReadAll(codectest.Layout(t, Format, d))
	if err != nil {
		t.Fatal(err)
	}
	at := len(fresh) - 512 - 2*(512+blockSize) // the bitmap of the first block
	for _, tt := range []struct {
		name  string
		spoil func(b []byte)
		words string
	}{
		{"all bits set", func(b []byte) {}, ""},
		{"zeros not written", func(b []byte) { clear(b[at+20 : at+512]) }, ""},
		{"one sector hidden", func(b []byte) { b[at+2] &^= 0x10 }, "sectors at 0x2600 of the disk"},
		{"the last one of the data hidden", func(b []byte) { b[at+17] &^= 0x10; clear(b[at+18 : at+512]) }, "sectors at 0x11600 of the disk"},
		{"all hidden", func(b []byte) { clear(b[at : at+512]) }, "block 0 at 0x"},
		{"zeros of the last block not written", func(b []byte) { clear(b[at+512+blockSize : at+512+blockSize+256]) }, ""},
		{"behind the disk's end", func(b []byte) {
			second := at + 512 + blockSize
			clear(b[second+1<<20/512/8+1 : second+512])
			b[len(b)-513] = 1
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := append([]byte(nil), fresh...)
			tt.spoil(b)
			err := codectest.Open(t, Format, codectest.Bytes(b)).(*dynamic).Verify(t.Context())
			if tt.words == "" && err != nil || tt.words != "" && (!errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), tt.words)) {
				t.Errorf("got %v, want %q", err, tt.words)
			}
		})
	}
}

func TestVerifyStoreError(t *testing.T) {
	b, err := codectest.ReadAll(codectest.Layout(t, Format, codectest.Full(3<<20, 1)))
	if err != nil {
		t.Fatal(err)
	}
	src := codectest.Faulty(codectest.Bytes(b), codectest.ErrBoom, 1<<40)
	d := codectest.Open(t, Format, src)
	src.FailAfter(1)
	if err := d.(*dynamic).Verify(t.Context()); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("got %v, want the store's error", err)
	}
}

// TestVerifyGeometry: in what QEMU wrote, geometry and current size agree, in
// every footer that somebody may read; of others only the current size counts.
func TestVerifyGeometry(t *testing.T) {
	const size = 65535 * sector // 65,536 KiB, less a sector: no size of a geometry
	fits := int64(1024 * 4 * 17 * sector)
	for _, tt := range []struct {
		name    string
		creator string
		size    int64
		spoil   func(footer []byte)
		tail    bool // the footer at the end is spoilt, else the copy at the start
		both    bool // both are
		words   string
	}{
		{"ours", "win ", size, func([]byte) {}, true, false, ""},
		{"of QEMU", "qemu", fits, func([]byte) {}, true, false, ""},
		{"of VirtualBox, whose geometry is another", "vbox", size, func(f []byte) { f[59] = 63 }, true, false, ""},
		{"of QEMU, the largest geometry", "qemu", size, func(f []byte) { copy(f[56:], []byte{255, 255, 16, 255}) }, true, true, ""},
		{"of QEMU, sectors changed at the end", "qemu", fits, func(f []byte) { f[59] ^= 1 }, true, false, "16 sectors"},
		{"of QEMU, cylinders changed at the start", "qemu", fits, func(f []byte) { f[57] ^= 1 }, false, false, "1025 cylinders"},
		{"of QEMU, a size of its own", "qemu", size, func([]byte) {}, true, false, "current size is 33553920"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := codectest.ReadAll(codectest.Layout(t, Format, codectest.Empty(tt.size)))
			if err != nil {
				t.Fatal(err)
			}
			footers := map[bool][]byte{true: b[len(b)-footerLen:], false: b[:footerLen]}
			for _, f := range footers {
				copy(f[28:], tt.creator)
				if tt.size == fits {
					copy(f[56:], []byte{4, 0, 4, 17})
				}
				if tt.both {
					tt.spoil(f)
				}
			}
			if !tt.both {
				tt.spoil(footers[tt.tail])
			}
			for _, f := range footers {
				be.PutUint32(f[64:], checksum(f, 64))
			}
			fixedToo := append(make([]byte, tt.size), footers[tt.tail]...)
			last := fixedToo[tt.size:]
			be.PutUint32(last[60:], typeFixed)
			be.PutUint64(last[16:], allOnes)
			be.PutUint32(last[64:], checksum(last, 64))
			for kind, img := range map[string][]byte{"dynamic": b, "fixed": fixedToo} {
				err := codectest.Open(t, Format, codectest.Bytes(img)).(interface {
					Verify(ctx context.Context) error
				}).Verify(t.Context())
				if tt.words == "" && err != nil || tt.words != "" && (!errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), tt.words)) {
					t.Errorf("%s: got %v, want %q", kind, err, tt.words)
				}
			}
		})
	}
}

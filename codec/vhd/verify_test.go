package vhd

import (
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

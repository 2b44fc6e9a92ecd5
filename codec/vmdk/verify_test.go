package vmdk

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// verify opens b, which must work, and verifies it.
func verify(t *testing.T, b []byte) error {
	t.Helper()
	return codectest.Open(t, Format, codectest.Bytes(b)).(*disk).Verify(context.Background())
}

func TestVerifySoundImages(t *testing.T) {
	for name, b := range map[string][]byte{
		"sparse": image(t, Sparse, small()),
		"stream": image(t, Format, small()),
		"tables at the head": headStream(3*grainSectors, map[int64][]byte{
			0: deflated(make([]byte, grainLen)), 2: deflated(bytes.Repeat([]byte("abc"), grainLen/3+1)[:grainLen]),
		}),
	} {
		if err := verify(t, b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestVerifyRecordsApart: a record that reaches into the next one is decoded
// from bytes that are another's, though both decode.
func TestVerifyRecordsApart(t *testing.T) {
	// Grain 1's record lies whole in grain 0's, behind the end of its stream,
	// at the next sector.
	inner := make([]byte, sector)
	data := deflated(make([]byte, grainLen))
	le.PutUint64(inner, grainSectors)
	le.PutUint32(inner[8:], uint32(len(data)))
	copy(inner[recordHead:], data)
	outer := append(bytes.Clone(data), make([]byte, sector-recordHead-len(data))...)
	b := headStream(2*grainSectors, map[int64][]byte{0: append(outer, inner...)})
	le.PutUint32(b[22*sector+4:], 129)
	d := codectest.Open(t, Format, codectest.Bytes(b))
	if got, err := codectest.ReadAll(d); err != nil || !codec.Empty(got) {
		t.Fatalf("the trick does not work: %v", err)
	}
	if err := d.(*disk).Verify(t.Context()); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), "share the bytes at 0x10200") {
		t.Errorf("got %v, want %v of the second sector", err, codec.ErrCorrupt)
	}
}

// TestVerifyRecordOverTable: a record may not reach into a table either.
func TestVerifyRecordOverTable(t *testing.T) {
	b := image(t, Format, small())
	at := 128 * sector
	le.PutUint32(b[at+8:], le.Uint32(b[at+8:])+3*sector) // the marker and table of its group follow at once
	if err := verify(t, b); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), "share") {
		t.Errorf("got %v, want %v", err, codec.ErrCorrupt)
	}
}

// TestVerifyRedundant: an image that only its redundant directory saves is
// another disk to readers that do not know of it.
func TestVerifyRedundant(t *testing.T) {
	b := image(t, Sparse, small())
	le.PutUint32(b[(21+1+2*4+1)*sector+4*1:], 256) // grain 1 in the place of grain 0
	le.PutUint32(b[(21+1+2*4+1)*sector+4*0:], 256)
	if err := verify(t, b); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), "redundant") {
		t.Errorf("got %v, want %v", err, codec.ErrCorrupt)
	}
}

func TestVerifyStoreError(t *testing.T) {
	src := codectest.Faulty(codectest.Bytes(image(t, Format, small())), codectest.ErrBoom, 1<<40)
	d := codectest.Open(t, Format, src)
	src.FailAfter(4)
	if err := d.(*disk).Verify(t.Context()); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("got %v, want the store's error", err)
	}
}

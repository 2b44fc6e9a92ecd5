package vmdk

import (
	"context"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// tiny is an image of few KiB, in the smallest grains and tables: a fuzzer
// changes bytes that matter. Its only grain is the second of three.
func tiny(flags uint32, footer bool) []byte {
	h := header{
		version: 3, flags: flagNewlines | flags, capacity: 17, grainSize: minGrain, descriptorOffset: 1, descriptorSize: 1,
		tableEntries: minTable, gdOffset: 3, rgdOffset: 2, overHead: 5,
	}
	if h.compressed() {
		h.algorithm = algorithmDeflate
	}
	b := make([]byte, 5*sector)
	copy(b[sector:], "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\nRW 17 SPARSE \"a\"\n")
	le.PutUint32(b[2*sector:], 4)
	le.PutUint32(b[3*sector:], 4)
	le.PutUint32(b[4*sector+4:], 5)
	grain := make([]byte, minGrain*sector)
	grain[777] = 1
	if h.compressed() {
		z := deflated(grain)
		grain = le.AppendUint64(nil, minGrain)
		grain = append(le.AppendUint32(grain, uint32(len(z))), z...)
		grain = append(grain, make([]byte, sector-len(grain))...)
	}
	b = append(b, grain...)
	if footer {
		b = append(b, markerSector(marker{1, 0, markerFooter})...)
		b = append(append(b, h.marshal()...), make([]byte, sector)...)
		h.gdOffset = atFooter
	}
	copy(b, h.marshal())
	return b
}

// tinies are of every kind that is read.
func tinies() [][]byte {
	const stream = flagCompressed | flagMarkers
	return [][]byte{tiny(0, false), tiny(flagRedundant|flagZeroGrain, false), tiny(stream, false), tiny(stream, true), tiny(stream|flagZeroGrain|flagRedundant, true)}
}

// TestTiny: the smallest grains and tables are read.
func TestTiny(t *testing.T) {
	for i, b := range tinies() {
		d, err := Format.Open(context.Background(), codectest.Bytes(b))
		if err != nil {
			t.Errorf("image %d: %v", i, err)
			continue
		}
		got, err := codectest.ReadAll(d)
		if err != nil || len(got) != 17*sector {
			t.Errorf("image %d: %d bytes, %v", i, len(got), err)
			continue
		}
		if got[8*sector+777] != 1 || !codec.Empty(got[:8*sector+777]) || !codec.Empty(got[8*sector+778:]) {
			t.Errorf("image %d: other bytes", i)
		}
	}
}

// TestEveryFlip: with any bit or byte of an image flipped, and cut anywhere, it
// is refused or read within bounds.
func TestEveryFlip(t *testing.T) {
	for i, b := range tinies() {
		for at := range b {
			if i%3 != 0 && at%3 != 0 {
				continue // two of the five kinds whole, the others in part
			}
			old := b[at]
			// Fields stand at the start of a sector; what follows is padding,
			// unused entries, text, or the grain.
			body := at%sector > 80
			if old == 0 && body && at%8 != 0 {
				continue
			}
			for _, v := range []byte{1, 2, 4, 8, 16, 32, 64, 128, 255} {
				if b[at] = old ^ v; body && v != 4 {
					continue
				}
				if _, err := codectest.OpenHostile(Format, b); err != nil {
					t.Errorf("image %d, byte %#x made %#x: %v", i, at, b[at], err)
				}
			}
			b[at] = old
		}
		for n := 0; n < len(b); n += 1 + n%11 {
			if _, err := codectest.OpenHostile(Format, b[:n:n]); err != nil {
				t.Errorf("image %d cut to %d bytes: %v", i, n, err)
			}
		}
	}
}

// FuzzOpen opens bytes of any origin.
func FuzzOpen(f *testing.F) {
	for _, b := range tinies() {
		f.Add(b)
	}
	f.Add([]byte("# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"x\" 0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := codectest.OpenHostile(Format, b); err != nil {
			t.Error(err)
		}
	})
}

package disk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// FuzzHeader decodes headers whose checksum is right and whose places are anything:
// what is taken is used without a panic, and comes back as it was.
func FuzzHeader(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0, 16, 15}, uint8(3))
	f.Add([]byte{17}, uint8(0))
	f.Add([]byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, uint8(15))
	f.Fuzz(func(t *testing.T, places []byte, unit uint8) {
		b := make([]byte, headerSize)
		new(header).encode(b)
		copy(b[placesAt:sumsAt], places)
		binary.LittleEndian.PutUint32(b[endAt:], crc32.Checksum(b[:endAt], castagnoli))
		var h header
		if h.decode(b) != nil {
			return
		}
		again := make([]byte, headerSize)
		if h.encode(again); !bytes.Equal(again, b) {
			t.Error("it is encoded in another way")
		}
		first := int(unit) % perChunk
		if n, kept := h.run(first, perChunk-first); n < 1 || n > perChunk-first || kept != (h.place[first] != 0) {
			t.Errorf("from unit %d on %d are kept or not: %v", first, n, kept)
		}
		h.add(first, 1)
		var seen uint
		err := h.each(setOf(0, perChunk), func(unit, n int, off int64) error {
			if set := setOf(unit, n); n < 1 || seen&set != 0 || off < headerSize || off+int64(n)*Unit > headerSize+Chunk {
				t.Errorf("%d units from %d on at %d", n, unit, off)
			}
			seen |= setOf(unit, n)
			return nil
		})
		if err != nil || seen>>first&1 == 0 {
			t.Errorf("unit %d is not in the set %x: %v", first, seen, err)
		}
	})
}

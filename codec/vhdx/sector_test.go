package vhdx

import (
	"os"
	"testing"

	"imagefs/codec/codectest"
)

// sectors4096 turns an image of qemu-img, with blocks of 1 MiB and logical
// sectors of 512 bytes, into one with sectors of 4,096: the metadata say so,
// and the entries of sector bitmaps stand elsewhere in the BAT.
func sectors4096(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := func(n int, off int64) []byte {
		b := make([]byte, n)
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(b []byte, off int64) {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	regions, err := currentRegions(read(fixedLen, 0))
	if err != nil {
		t.Fatal(err)
	}
	bat, metadata, err := findRegions(regions, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	items, err := parseItems(read(metadataTable, int64(metadata.offset)))
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		if it.id == itemLogicalSector {
			write(le.AppendUint32(nil, 4096), int64(metadata.offset)+int64(it.offset))
		}
	}
	from := read(int(bat.length), int64(bat.offset))
	to := make([]byte, len(from))
	for i := range len(from) / 8 {
		if i%4097 == 4096 { // of a bitmap
			continue
		}
		block := i - i/4097
		if at := block + block/32768; 8*at+8 <= len(to) {
			copy(to[8*at:8*at+8], from[8*i:])
		}
	}
	write(to, int64(bat.offset))
}

func TestOpenReads4096ByteSectors(t *testing.T) {
	const gib = 1 << 30
	d := codectest.New("sectors", 34*gib, 5,
		codectest.Range{Off: 0, Len: 512}, codectest.Range{Off: 4*gib - 512, Len: 1024},
		codectest.Range{Off: 8 * gib, Len: mib}, codectest.Range{Off: 32*gib - mib, Len: 2 * mib},
		codectest.Range{Off: 34*gib - 4096, Len: 4096})
	path := codectest.Convert(t, "vhdx", codectest.RawFile(t, d), "-o", "block_size=1M")
	sectors4096(t, path)
	got := openFile(t, path)
	if err := codectest.Same(got, d); err != nil {
		t.Error(err)
	}
}

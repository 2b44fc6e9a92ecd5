package vdi

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) { codectest.Run(t, Format) }

func TestWorkedExampleHasItsLength(t *testing.T) {
	f := codectest.Layout(t, Format, codectest.Example())
	if f.Size() != 10485760 {
		t.Errorf("length %d, want 10485760", f.Size())
	}
	b := make([]byte, headLen)
	if _, err := f.ReadAt(context.Background(), b, 0); err != nil {
		t.Fatal(err)
	}
	h := parse(b)
	if h.offBlocks != 1<<20 || h.offData != 2<<20 || h.entries != 128 || h.allocated != 8 {
		t.Errorf("header %+v", h)
	}
}

func TestLayoutReadByOthers(t *testing.T) {
	for _, d := range codectest.ForTools(blockSize) {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			raw := codectest.RawFile(t, d)
			file := filepath.Join(t.TempDir(), "disk.vdi")
			codectest.WriteFile(t, file, codectest.Layout(t, Format, d))
			codectest.Compare(t, "vdi", file, raw)
			codectest.Check(t, "vdi", file)
			if d.Size() < 1<<30 {
				codectest.SevenZip(t, file, raw)
			}
		})
	}
}

func TestOpenOfOthersFiles(t *testing.T) {
	for _, d := range []*codectest.Disk{
		codectest.Example(),
		codectest.Empty(16 << 20),
		codectest.Full(5<<20+512, 1),
		codectest.LastSector(8<<20 + 512),
		codectest.Alternating(20<<20, 1<<20),
	} {
		for _, static := range []string{"off", "on"} {
			t.Run(d.Name+"/static="+static, func(t *testing.T) {
				file := codectest.Convert(t, "vdi", codectest.RawFile(t, d), "-o", "static="+static)
				got := codectest.Open(t, Format, codectest.File(t, file))
				if err := codectest.Same(got, d); err != nil {
					t.Error(err)
				}
				if got.Size() > codec.Up(d.Size(), 512) {
					t.Errorf("disk of %d bytes, want %d at most", got.Size(), codec.Up(d.Size(), 512))
				}
			})
		}
	}
}

func TestLayoutTooLarge(t *testing.T) {
	codectest.Layout(t, Format, codectest.Empty(maxDisk))
	_, err := Format.Layout(context.Background(), codectest.Empty(maxDisk+1), codectest.TestFacts())
	if !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("error %v, want %v", err, codec.ErrTooLarge)
	}
}

func TestIdentities(t *testing.T) {
	f := codectest.Layout(t, Format, codectest.Empty(512))
	b := make([]byte, headLen)
	if _, err := f.ReadAt(context.Background(), b, 0); err != nil {
		t.Fatal(err)
	}
	h := parse(b)
	if want := codec.MixedEndian(codectest.TestFacts().UUID("vdi", "create")); h.create != want {
		t.Errorf("create %x, want %x", h.create, want)
	}
	if want := codec.MixedEndian(codectest.TestFacts().VersionUUID("vdi", "modify")); h.modify != want {
		t.Errorf("modify %x, want %x", h.modify, want)
	}
}

// sample is a small image: 7 blocks of 4 KiB, the last of half a sector more
// than 2 KiB, in this order in the file: 5, 0, 6. Block 6 is cut by its end.
func sample() []byte {
	h := sampleHeader()
	b := make([]byte, 1024+2*4096+2048+256)
	copy(b, h.marshal())
	for i, e := range []uint32{1, entryNone, entryZero, entryNone, entryNone, 0, 2} {
		le.PutUint32(b[512+4*i:], e)
	}
	for i := range b[1024:] {
		b[1024+i] = byte(i/4096+1)*16 + byte(i%7)
	}
	return b
}

func sampleHeader() header {
	return header{
		version: version11, size: newHeader, kind: typeDynamic, offBlocks: 512, offData: 1024,
		sector: 512, disk: 6*4096 + 2048 + 256, block: 4096, entries: 7, allocated: 3,
		create: [16]byte{1}, modify: [16]byte{2},
	}
}

// content is the disk of sample.
func content(b []byte) []byte {
	d := make([]byte, 6*4096+2048+256)
	copy(d, b[1024+4096:1024+2*4096])
	copy(d[5*4096:], b[1024:1024+4096])
	copy(d[6*4096:], b[1024+2*4096:])
	return d
}

func TestScatteredBlocks(t *testing.T) {
	b := sample()
	got, err := codectest.ReadAll(codectest.Open(t, Format, codectest.Bytes(b)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content(b)) {
		t.Error("other bytes than the blocks hold")
	}
}

func TestMissingTailOfLastBlockReadsZero(t *testing.T) {
	b := sample()
	want := content(b)
	clear(want[len(want)-1000:])
	got, err := codectest.ReadAll(codectest.Open(t, Format, codectest.Bytes(b[:len(b)-1000])))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes than the cut block holds")
	}
}

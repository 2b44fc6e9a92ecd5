package vhdx

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// openFile opens the file at path, which must work.
func openFile(t *testing.T, path string) codec.Disk {
	t.Helper()
	d, err := Format.Open(context.Background(), codectest.File(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// readerDisks are laid out by us and read by others.
func readerDisks() []*codectest.Disk {
	return []*codectest.Disk{
		codectest.Empty(mib),
		codectest.Example(),
		codectest.Full(512, 1),
		codectest.Full(3000001, 3),
		codectest.LastSector(8 * mib),
		codectest.LastSector(2*mib + 512),
		codectest.Alternating(9*mib, 64*kib),
		codectest.Scattered(19*mib, 20, 4),
	}
}

func TestOthersReadLayouts(t *testing.T) {
	for _, d := range readerDisks() {
		t.Run(d.Name, func(t *testing.T) {
			raw := codectest.RawFile(t, d)
			f, err := Format.Layout(context.Background(), d, codectest.TestFacts())
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "disk.vhdx")
			codectest.WriteFile(t, path, f)
			codectest.Compare(t, "vhdx", path, raw)
			codectest.Check(t, "vhdx", path)
			if codec.Up(d.Size(), 512)%1024 == 0 { // 7-Zip refuses an odd number of sectors
				codectest.SevenZip(t, path, raw)
			}
		})
	}
}

// TestOthersReadLargeLayouts: disks of TiB, sparse, of both block sizes. The
// last is of the largest size that there is.
func TestOthersReadLargeLayouts(t *testing.T) {
	for _, d := range []*codectest.Disk{
		codectest.New("two-tib", 2*tib, 1, codectest.Range{Off: 0, Len: 64 * kib}, codectest.Range{Off: 2*tib - 512, Len: 512}),
		codectest.New("over-two-tib", 2*tib+1024, 2, codectest.Range{Off: tib + 77*512, Len: mib}, codectest.Range{Off: 2 * tib, Len: 1024}),
		codectest.New("largest", maxDiskSize, 3, codectest.Range{Off: 9*tib - 512, Len: 1024}, codectest.Range{Off: maxDiskSize - 512, Len: 512}),
	} {
		t.Run(d.Name, func(t *testing.T) {
			f, err := Format.Layout(context.Background(), d, codectest.TestFacts())
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "disk.vhdx")
			codectest.WriteFile(t, path, f)
			codectest.Check(t, "vhdx", path)
			// A reader that has no map walks through all of it, so only what
			// holds data is read, with the sectors around.
			for _, r := range d.Runs() {
				off := max(r.Off-512, 0)
				n := min(r.Len+1024, d.Size()-off)
				out := filepath.Join(t.TempDir(), "part.raw")
				codectest.Exec(t, "qemu-img", "dd", "-f", "vhdx", "-O", "raw", "bs=512",
					fmt.Sprintf("skip=%d", off/512), fmt.Sprintf("count=%d", (off+n)/512), "if="+path, "of="+out)
				got, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				want := make([]byte, n)
				if _, err := d.ReadAt(context.Background(), want, off); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("qemu-img reads %d other bytes at %#x", len(got), off)
				}
			}
		})
	}
}

func TestVhdinfoReadsLayouts(t *testing.T) {
	f, err := Format.Layout(context.Background(), codectest.Example(), codectest.TestFacts())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	codectest.WriteFile(t, path, f)
	out := codectest.Exec(t, "vhdiinfo", path)
	dataWrite := codectest.TestFacts().VersionUUID("vhdx", "data-write") // what it calls the identifier
	id := strings.ToLower(guid(codec.MixedEndian(dataWrite)).String())
	for _, want := range []string{"Dynamic", "134217728 bytes", "512", id} {
		if !strings.Contains(out, want) {
			t.Errorf("vhdiinfo does not tell %q:\n%s", want, out)
		}
	}
}

func TestOpenReadsQemuImages(t *testing.T) {
	disks := []*codectest.Disk{
		codectest.Example(),
		codectest.Full(5*mib+512, 1),
		codectest.LastSector(70*mib + 512),
		codectest.Empty(3*mib + 512),
	}
	for _, c := range []struct {
		options string
		disks   []*codectest.Disk
	}{
		{"subformat=dynamic", disks},
		{"subformat=fixed", disks[1:2]},
		{"subformat=fixed,block_size=1M", disks[1:3]},
		{"subformat=dynamic,block_size=1M,log_size=3M", disks[:2]},
		{"subformat=dynamic,block_size=2M,block_state_zero=off", disks[:1]},
		{"subformat=dynamic,block_size=256M", disks[2:3]},
	} {
		t.Run(c.options, func(t *testing.T) {
			for _, d := range c.disks {
				raw := codectest.RawFile(t, d)
				got := openFile(t, codectest.Convert(t, "vhdx", raw, "-o", c.options))
				if got.Size() != d.Size() {
					t.Errorf("%s: opened disk has %d bytes, want %d", d.Name, got.Size(), d.Size())
				}
				if err := codectest.Same(got, d); err != nil {
					t.Errorf("%s: %v", d.Name, err)
				}
			}
		})
	}
}

// TestOpenReadsManyChunks: with blocks of 1 MiB a sector bitmap's entry stands
// behind every 4,096 payload entries.
func TestOpenReadsManyChunks(t *testing.T) {
	d := codectest.New("chunks", 12<<30+mib, 5,
		codectest.Range{Off: 4<<30 - 512, Len: 1024}, codectest.Range{Off: 8<<30 - mib, Len: 2 * mib}, codectest.Range{Off: 12 << 30, Len: 512})
	raw := codectest.RawFile(t, d)
	got := openFile(t, codectest.Convert(t, "vhdx", raw, "-o", "block_size=1M"))
	if err := codectest.Same(got, d); err != nil {
		t.Error(err)
	}
}

// checkReplay compares an image with a log with what qemu-img makes of a copy
// that it repairs.
func checkReplay(t *testing.T, b []byte) {
	t.Helper()
	dir := t.TempDir()
	dirty, repaired, raw := filepath.Join(dir, "dirty.vhdx"), filepath.Join(dir, "repaired.vhdx"), filepath.Join(dir, "disk.raw")
	for _, path := range []string{dirty, repaired} {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	codectest.Exec(t, "qemu-img", "check", "-f", "vhdx", "-r", "all", repaired)
	codectest.Exec(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", repaired, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := codectest.ReadAll(openFile(t, dirty))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("byte %#x is %#02x, and %#02x once qemu-img repaired the file", i, got[i], want[i])
			}
		}
		t.Fatalf("disk has %d bytes, and %d once qemu-img repaired the file", len(got), len(want))
	}
}

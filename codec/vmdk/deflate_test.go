package vmdk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/qcow2"
)

// reframe lays a file with streams out and shows it to the outside readers.
func reframe(t *testing.T, f codec.Format, src codec.Source) *codec.File {
	t.Helper()
	o := codectest.Offer(t, f, src)
	file := codectest.Reframe(t, Deflate, Format, o)
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "disk1.deflate.vmdk"), filepath.Join(dir, "raw")
	codectest.WriteFile(t, path, file)
	codectest.WriteFile(t, raw, o.Disk)
	codectest.Check(t, "vmdk", path)
	codectest.Compare(t, "vmdk", path, raw)
	codectest.SevenZip(t, path, raw)
	codectest.Exec(t, "vmdkinfo", path)
	mounted(t, path, raw)
	return file
}

// softDisks are disks of which some grains shrink and some do not, over many
// groups, and with a last one that is partial.
func softDisks() []*codectest.Disk {
	return []*codectest.Disk{
		codectest.Scattered(70*mib, 30, 7).Soft(),
		codectest.Scattered(34*mib+512, 35, 8).Soft(),
		codectest.Alternating(12*mib, 64*kib).Soft(),
		codectest.Full(5*mib, 2),
		codectest.Full(512, 2).Soft(),
		codectest.LastSector(64*kib + 512),
		codectest.New("last-group", 96*mib+512, 5, codectest.Range{Off: 96 * mib, Len: 512}, codectest.Range{Off: mib, Len: mib}).Soft(),
	}
}

// TestReframedReaders hands on what QEMU compressed.
func TestReframedReaders(t *testing.T) {
	for _, d := range softDisks() {
		raw := codectest.RawFile(t, d)
		t.Run("qcow2 of "+d.Name, func(t *testing.T) {
			path := codectest.Convert(t, "qcow2", raw, "-c")
			encoding, block := codec.EncodingOf(codectest.Open(t, qcow2.Format, codectest.File(t, path)))
			if block == 0 { // nothing of the disk shrinks
				if err := Deflate.(codec.Reframing).Takes(encoding, block); !errors.Is(err, codec.ErrNotPossible) {
					t.Errorf("a disk without streams: %v", err)
				}
				return
			}
			reframe(t, qcow2.Format, codectest.File(t, path))
		})
		t.Run("vmdk of "+d.Name, func(t *testing.T) {
			path := codectest.Convert(t, "vmdk", raw, "-o", "subformat=streamOptimized")
			file := reframe(t, Format, codectest.File(t, path))
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if limit := st.Size() + st.Size()/50 + 128*kib; file.Size() > limit {
				t.Errorf("%d bytes, qemu-img has %d", file.Size(), st.Size())
			}
		})
	}
}

// TestReframedStored: the stored grains of a view are no shorter than plain.
func TestReframedStored(t *testing.T) {
	d := codectest.Scattered(40*mib+512, 20, 3)
	f, err := Format.Layout(t.Context(), d, codectest.TestFacts())
	if err != nil {
		t.Fatal(err)
	}
	if got := reframe(t, Format, f); got.Size() != f.Size() {
		t.Errorf("%d bytes, stored as %d", got.Size(), f.Size())
	}
}

// The bytes of this file are those of all releases.
func TestReframedGolden(t *testing.T) {
	// qemu-img convert -O vmdk -o subformat=streamOptimized of a disk of 20 MiB
	// and 512 bytes, with four grains of data that shrink, one that does not,
	// and a last one of a sector.
	b := codectest.Unpacked(t, filepath.Join("testdata", "deflate.vmdk.gz"))
	f := codectest.Reframe(t, Deflate, Format, codectest.Offer(t, Format, codectest.Bytes(b)))
	const want = "646047d42d95e1473524f9ca7827f45e481fdbe62361aa31db1ed4041247e82f"
	if got, err := codectest.Sum(f); got != want {
		t.Errorf("the file's sum is %s, want %q (%v)", got, want, err)
	}
}

// TestReframedRefuses says why a disk is not shown.
func TestReframedRefuses(t *testing.T) {
	plain := codectest.Scattered(mib, 3, 1)
	for _, tt := range []struct {
		encoding string
		block    int64
		says     string
	}{
		{"", 0, "not stored as zlib-compressed qcow2 or VMDK"},
		{codec.Zstd, grainLen, "not stored as zlib-compressed qcow2 or VMDK"},
		{codec.Deflate, 128 * kib, "stored in clusters of 128 KiB, VMDK grains are 64 KiB"},
		{codec.Deflate, 512, "stored in clusters of 512 bytes, VMDK grains are 64 KiB"},
	} {
		if err := Deflate.(codec.Reframing).Takes(tt.encoding, tt.block); !errors.Is(err, codec.ErrNotPossible) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q in blocks of %d: %v, want %q", tt.encoding, tt.block, err, tt.says)
		}
	}
	if _, err := Deflate.Layout(t.Context(), plain, codec.Facts{}); !errors.Is(err, codec.ErrNotPossible) {
		t.Errorf("a disk that is stored plain: %v", err)
	}
}

package vhd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func wholeMiB(n int64) int64 { return codec.Up(n, 1<<20) }

func TestFixed(t *testing.T) {
	codectest.RunView(t, Fixed, Format, codectest.Size(wholeMiB), codectest.ExampleLen(134218240))
}

// TestFixedReadByOthers: the size is that of whole MiB, for every reader.
func TestFixedReadByOthers(t *testing.T) {
	for _, d := range codectest.ForTools(blockSize) {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			raw := codectest.RawFile(t, d)
			file := filepath.Join(t.TempDir(), "disk.vhd")
			codectest.WriteFile(t, file, codectest.Layout(t, Fixed, d))
			codectest.Compare(t, "vpc", file, raw)
			size := wholeMiB(d.Size())
			if fi, err := os.Stat(file); err != nil || fi.Size() != size+512 {
				t.Errorf("file of %d bytes, %v, want %d", fi.Size(), err, size+512)
			}
			info := codectest.Exec(t, "qemu-img", "info", "-f", "vpc", "--output=json", file)
			if want := fmt.Sprintf(`"virtual-size": %d,`, size); !strings.Contains(info, want) {
				t.Errorf("qemu-img info says %s, want %s", info, want)
			}
			info = codectest.Exec(t, "vhdiinfo", file)
			for _, want := range []string{"Fixed", fmt.Sprintf("(%d bytes)", size)} {
				if !strings.Contains(info, want) {
					t.Errorf("vhdiinfo says %s, want %q", info, want)
				}
			}
			if d.Size() < 1<<30 {
				codectest.SevenZip(t, file, raw)
				mounted(t, file, raw)
			}
		})
	}
}

// mounted compares what libvhdi shows of file with a raw file, which may be
// shorter by zeros.
func mounted(t *testing.T, file, raw string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Logf("libvhdi is not asked for bytes: %v", err)
		return
	}
	umount := codectest.Tool(t, "fusermount3")
	dir := t.TempDir()
	codectest.Exec(t, "vhdimount", file, dir)
	defer func() {
		if out, err := exec.Command(umount, "-u", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v\n%s", err, out)
		}
	}()
	codectest.Exec(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", filepath.Join(dir, "vhdi1"), raw)
}

// TestFixedHolesAreHoles: what the disk leaves out the file does, up to the
// footer.
func TestFixedHolesAreHoles(t *testing.T) {
	d := codectest.New("holes", 3<<20+1000, 1, codectest.Range{Off: 512, Len: 1024}, codectest.Range{Off: 2 << 20, Len: 4096})
	es, err := codectest.Extents(codectest.Layout(t, Fixed, d))
	want := []codec.Extent{
		{Off: 0, Len: 512, Zero: true},
		{Off: 512, Len: 1024},
		{Off: 1536, Len: 2<<20 - 1536, Zero: true},
		{Off: 2 << 20, Len: 4096},
		{Off: 2<<20 + 4096, Len: 2<<20 - 4096, Zero: true},
		{Off: 4 << 20, Len: 512},
	}
	if err != nil || !slices.Equal(es, want) {
		t.Errorf("extents %v, %v, want %v", es, err, want)
	}
}

func TestFixedFooter(t *testing.T) {
	file := codectest.Layout(t, Fixed, codectest.Full(1<<20+1, 1))
	b := make([]byte, footerLen)
	if _, err := file.ReadAt(context.Background(), b, file.Size()-footerLen); err != nil {
		t.Fatal(err)
	}
	f, err := parseFooter(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	cy, h, s := geometry(2 << 20)
	want := footer{
		version: version10, dataOffset: allOnes, time: codec.VHDTime(codectest.TestFacts().Created), creator: "win ", size: 2 << 20,
		cylinders: cy, heads: h, sectors: s, kind: typeFixed, uuid: codectest.TestFacts().UUID("fixed.vhd", "footer"),
	}
	if f != want {
		t.Errorf("footer %+v, want %+v", f, want)
	}
	if other := codectest.TestFacts().UUID("vhd", "footer"); f.uuid == other {
		t.Error("the fixed and the dynamic file have one UUID")
	}
}

func TestFixedTooLarge(t *testing.T) {
	codectest.Layout(t, Fixed, codectest.LastSector(maxFixed))
	_, err := Fixed.Layout(context.Background(), codectest.Empty(maxFixed+512), codectest.TestFacts())
	if !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("error %v, want %v", err, codec.ErrTooLarge)
	}
}

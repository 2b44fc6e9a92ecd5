package vmdk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	tib = int64(1) << 40
)

// toolDisks are what outside readers are shown.
func toolDisks() []*codectest.Disk {
	return []*codectest.Disk{
		codectest.Empty(mib),
		codectest.LastSector(8 * mib),
		codectest.LastSector(64*kib + 512),
		codectest.Full(3*mib+1, 1),
		codectest.Full(512, 2),
		codectest.Alternating(36*mib, 64*kib),
		codectest.Scattered(5*mib+4242, 100, 7),
		codectest.Example(),
		codectest.New("last-group", 96*mib+512, 5, codectest.Range{Off: 96 * mib, Len: 512}),
	}
}

// TestOutsideReaders shows what is laid out to every reader at hand.
func TestOutsideReaders(t *testing.T) {
	for _, v := range []codec.View{Format, Sparse} {
		for _, d := range toolDisks() {
			t.Run(v.Name()+"/"+d.Name, func(t *testing.T) {
				raw := codectest.RawFile(t, d)
				// libvmdk finds the extent by the name in the descriptor.
				path := filepath.Join(t.TempDir(), "disk1."+v.Name())
				f, err := v.Layout(context.Background(), d, codectest.TestFacts())
				if err != nil {
					t.Fatal(err)
				}
				codectest.WriteFile(t, path, f)
				codectest.Check(t, "vmdk", path)
				codectest.Compare(t, "vmdk", path, raw)
				codectest.SevenZip(t, path, raw)
				codectest.Exec(t, "vmdkinfo", path)
				mounted(t, path, raw)
			})
		}
	}
}

// mounted compares what libvmdk shows of path with a raw file, which may be
// shorter by zeros.
func mounted(t *testing.T, path, raw string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Logf("libvmdk is not asked for bytes: %v", err)
		return
	}
	umount := codectest.Tool(t, "fusermount3")
	dir := t.TempDir()
	codectest.Exec(t, "vmdkmount", path, dir)
	defer func() {
		if out, err := exec.Command(umount, "-u", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v\n%s", err, out)
		}
	}()
	codectest.Exec(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", filepath.Join(dir, "vmdk1"), raw)
}

// TestTebibytes asks qemu for parts of a disk that is too large to be compared
// whole in good time.
func TestTebibytes(t *testing.T) {
	places := []codectest.Range{{Off: 0, Len: mib}, {Off: tib + 512, Len: 100 * kib}, {Off: 2*tib - 512, Len: 512}}
	d := codectest.New("tib", 2*tib, 6, places...)
	for _, v := range []codec.View{Format, Sparse} {
		f, err := v.Layout(context.Background(), d, codectest.TestFacts())
		if err != nil {
			t.Fatal(err)
		}
		path, out := filepath.Join(t.TempDir(), v.Name()), filepath.Join(t.TempDir(), "part")
		codectest.WriteFile(t, path, f)
		for _, r := range places {
			const bs = 64 * kib
			from := r.Off / bs
			count := codec.Ceil(r.Off+r.Len, bs) - from
			codectest.Exec(t, "qemu-img", "dd", "-f", "vmdk", "-O", "raw", fmt.Sprintf("bs=%d", bs),
				fmt.Sprintf("skip=%d", from), fmt.Sprintf("count=%d", from+count), "if="+path, "of="+out)
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, count*bs)
			if n, err := d.ReadAt(context.Background(), want, from*bs); n < len(want) {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: qemu-img reads other bytes at %#x, %d of them, want %d", v.Name(), from*bs, len(got), len(want))
			}
		}
	}
}

// TestQEMU opens what qemu-img makes.
func TestQEMU(t *testing.T) {
	for _, d := range []*codectest.Disk{
		codectest.Empty(mib),
		codectest.LastSector(33*mib + 512),
		codectest.Full(3*mib+512, 1).Soft(),
		codectest.Full(2*mib, 1),
		codectest.Alternating(36*mib, 64*kib).Soft(),
		codectest.Scattered(100*mib, 60, 3).Soft(),
	} {
		raw := codectest.RawFile(t, d)
		for _, kind := range []string{"monolithicSparse", "streamOptimized"} {
			t.Run(kind+"/"+d.Name, func(t *testing.T) {
				path := codectest.Convert(t, "vmdk", raw, "-o", "subformat="+kind)
				got, err := Format.Open(context.Background(), codectest.File(t, path))
				if err != nil {
					t.Fatal(err)
				}
				if got.Size() != d.Size() {
					t.Errorf("size %d, want %d", got.Size(), d.Size())
				}
				if err := codectest.Same(got, d); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

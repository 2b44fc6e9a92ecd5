package codectest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"imagefs/codec"
)

// RunReadOnly holds a format that is never laid out to what the formats share.
// image is a small sound file of it, of a disk that has the bytes want.
func RunReadOnly(t *testing.T, f codec.Format, image, want []byte) {
	ro := &readOnly{f, image, want}
	t.Run("read", ro.read)
	t.Run("probe", func(t *testing.T) { (&suite{open: f}).foreign(t) })
	t.Run("truncated", ro.truncated)
	t.Run("flipped bits", ro.flips)
	t.Run("store errors", ro.storeErrors)
	t.Run("cancelled", ro.cancelled)
	t.Run("concurrent", ro.concurrent)
}

type readOnly struct {
	f           codec.Format
	image, want []byte
}

func (ro *readOnly) read(t *testing.T) {
	d := Open(t, ro.f, Bytes(ro.image))
	if got, err := ReadAll(d); err != nil || !bytes.Equal(got, ro.want) {
		t.Errorf("other bytes, or %v", err)
	}
	checkExtents(t, d, "the disk")
	CheckRandom(t, d)
	head, tail, err := codec.Ends(t.Context(), Bytes(ro.image))
	if err != nil {
		t.Fatal(err)
	}
	if found, err := codec.Detect([]codec.Format{ro.f}, head, tail); err != nil || found.Name() != ro.f.Name() {
		t.Errorf("detected as %v, %v", found, err)
	}
	if file, err := ro.f.Layout(t.Context(), d, TestFacts()); file != nil || !errors.Is(err, codec.ErrNotPossible) {
		t.Errorf("layout: %v, %v, want %v", file, err, codec.ErrNotPossible)
	}
}

// truncated: a file cut short is refused, or all that the disk needs is there.
func (ro *readOnly) truncated(t *testing.T) {
	opened := 0
	for cut := range ro.image {
		d, err := OpenHostile(ro.f, ro.image[:cut:cut])
		if err != nil {
			t.Errorf("cut to %d of %d bytes: %v", cut, len(ro.image), err)
		}
		if d == nil {
			continue
		}
		opened++
		if got, err := ReadAll(d); err != nil && !Clean(err) || err == nil && !bytes.Equal(got, ro.want) {
			t.Errorf("cut to %d of %d bytes: opened, and other bytes are read, or %v", cut, len(ro.image), err)
		}
	}
	t.Logf("%d of %d opened", opened, len(ro.image))
}

func (ro *readOnly) flips(t *testing.T) {
	b := bytes.Clone(ro.image)
	flips, refused := 0, 0
	for bit := 0; bit < 8*len(b); bit++ {
		if bit > 8*1024 { // the header and first tables whole
			bit += 36*Thin(4) + Thin(4) - 1
		} else {
			bit += Thin(5) - 1
		}
		if bit >= 8*len(b) {
			break
		}
		b[bit/8] ^= 1 << (bit % 8)
		d, err := OpenHostile(ro.f, b)
		b[bit/8] ^= 1 << (bit % 8)
		if err != nil {
			t.Errorf("bit %d of byte %#x flipped: %v", bit%8, bit/8, err)
		}
		if flips++; d == nil {
			refused++
		}
	}
	t.Logf("%d of %d flips refused", refused, flips)
}

// storeErrors: the error of a store comes out of every call, whole.
func (ro *readOnly) storeErrors(t *testing.T) {
	ctx := t.Context()
	count := Bounded(Bytes(ro.image), 1<<40, 1<<40)
	if _, err := ro.f.Open(ctx, count); err != nil {
		t.Fatal(err)
	}
	reads, _ := count.Used()
	for n := range reads {
		if _, err := ro.f.Open(ctx, Faulty(Bytes(ro.image), ErrBoom, n)); !errors.Is(err, ErrBoom) {
			t.Errorf("open with a store that fails after %d of %d reads: %v", n, reads, err)
		}
	}
	src := Faulty(Bytes(ro.image), ErrBoom, 1<<40)
	d := Open(t, ro.f, src)
	src.FailAfter(0)
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadAt(ctx, make([]byte, e.Len), e.Off); e.Zero == errors.Is(err, ErrBoom) {
			t.Errorf("read of %+v with a failing store: %v", e, err)
		}
	}
}

func (ro *readOnly) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := ro.f.Open(ctx, Bytes(ro.image)); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
	d := Open(t, ro.f, Bytes(ro.image))
	if _, err := d.ReadAt(ctx, make([]byte, d.Size()), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
}

func (ro *readOnly) concurrent(t *testing.T) {
	d := Open(t, ro.f, Bytes(ro.image))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := ReadAll(d); err != nil || !bytes.Equal(got, ro.want) {
				t.Errorf("other bytes, or %v", err)
			}
		})
	}
	wg.Wait()
}

// ReadsQEMU opens what qemu-img makes of disks of several sizes, with each set
// of options, and what qemu-io writes into an image in any order. name is
// qemu's of the format.
func ReadsQEMU(t *testing.T, f codec.Format, name string, options ...[]string) {
	for _, d := range []*Disk{
		Empty(16 * mib), Full(512, 1), Full(2*mib+512, 1).Soft(), LastSector(33*mib + 512),
		Alternating(3*mib, 64*kib), Scattered(300*mib, 9, 1),
	} {
		raw := RawFile(t, d)
		for _, o := range options {
			t.Run(d.Name, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "made")
				args := slices.Concat([]string{"convert", "-t", "unsafe", "-f", "raw", "-O", name}, o, []string{raw, path})
				// qemu-img 7.2 writes a compressed qcow whole, and fails: what
				// counts is what it reads then.
				if out, err := exec.Command(Tool(t, "qemu-img"), args...).CombinedOutput(); err != nil {
					t.Logf("%q: %v\n%s", args, err, out)
				}
				Compare(t, name, path, raw)
				got := Open(t, f, File(t, path))
				if got.Size() != d.Size() {
					t.Errorf("%q: size %d, want %d", o, got.Size(), d.Size())
				}
				if err := Same(got, d); err != nil {
					t.Errorf("%q: %v", o, err)
				}
			})
		}
	}
	t.Run("written in any order", func(t *testing.T) {
		for _, o := range options {
			if len(o) > 0 && o[0] == "-c" { // of convert only
				continue
			}
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "image"), filepath.Join(dir, "raw")
			Exec(t, "qemu-img", slices.Concat([]string{"create", "-f", name}, o, []string{path, "23M"})...)
			Exec(t, "qemu-io", "-t", "unsafe", "-f", name, "-c", "write -P 1 22M 1M", "-c", "write -P 2 512 1024", "-c", "write -P 3 11M 100k",
				"-c", "write -P 4 3M 3M", "-c", "write -P 5 20000k 1k", "-c", "write -z 4M 1M", path)
			Exec(t, "qemu-img", "convert", "-f", name, "-O", "raw", path, raw)
			want, err := os.ReadFile(raw)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := ReadAll(Open(t, f, File(t, path))); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%q: other bytes, or %v", o, err)
			}
		}
	})
}

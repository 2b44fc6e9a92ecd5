package stage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/mem"
)

// kindOf is a kind of package by its name.
func kindOf(name string) codec.Package {
	return all.Packages[slices.IndexFunc(all.Packages, func(p codec.Package) bool { return p.Name() == name })]
}

// pack is a package of disks, as bytes.
func pack(t *testing.T, p codec.Package, m codec.Machine, disks ...codec.Disk) []byte {
	t.Helper()
	b, err := codectest.ReadAll(codectest.Pack(t, p, m, disks...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// twoDisks is an OVA of two small disks, and they.
func twoDisks(t *testing.T) (b []byte, disks []codec.Disk) {
	t.Helper()
	disks = []codec.Disk{codectest.Scattered(2<<20, 10, 1), codectest.Scattered(3<<20, 10, 2)}
	m := codec.Machine{Name: "web", CPUs: 4, MemoryMiB: 2048, Firmware: "uefi", OS: "Debian", OSVersion: "12", Arch: "x86_64"}
	return pack(t, kindOf("ova"), m, disks...), disks
}

// wantDisks asks that an image has just these disks.
func (e *env) wantDisks(name string, disks []codec.Disk) {
	e.Helper()
	im, err := e.cat.Lookup(e.Context(), name)
	if err != nil {
		e.Fatal(err)
	}
	if len(im.Disks) != len(disks) {
		e.Fatalf("%d disks, want %d", len(im.Disks), len(disks))
	}
	for n, want := range disks {
		b, d := e.object(name, n)
		if d.Format != "vmdk" || d.SHA256 != sum(b) || d.Index == nil {
			e.Errorf("disk %d is %+v", n, d)
		}
		got, err := codectest.ReadAll(codectest.Open(e.T, kindOf("ova").View().(codec.Format), codectest.Bytes(b)))
		if err != nil {
			e.Fatal(err)
		}
		whole, err := codectest.ReadAll(want)
		if err != nil {
			e.Fatal(err)
		}
		if !bytes.Equal(got, whole) {
			e.Errorf("disk %d differs", n)
		}
	}
}

func TestPackageIsAnImage(t *testing.T) {
	b, disks := twoDisks(t)
	for _, folder := range []string{"", "web"} {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("in %q, write-back %v", folder, back), func(t *testing.T) {
				e := newEnv(t, mem.New(), func(c *stage.Config) { c.WriteBack = back })
				if err := e.copyIn(folder, "web.ova", b); err != nil {
					t.Fatal(err)
				}
				wait(t, "the image", func() bool { return e.cat.Has("web") })
				e.wantDisks("web", disks)
				im, err := e.cat.Lookup(t.Context(), "web")
				if err != nil {
					t.Fatal(err)
				}
				for name, want := range map[string]string{
					"cpus": "4", "memory_mib": "2048", "firmware": "uefi", "os": "Debian", "os_version": "12", "architecture": "x86_64",
				} {
					if im.Props[name] != want {
						t.Errorf("property %s is %q, want %q", name, im.Props[name], want)
					}
				}
				// Once more under the same name is no new version of it.
				if _, err := e.spool.Create(folder, "web.ova"); !errors.Is(err, fs.ErrExist) {
					t.Errorf("again: %v", err)
				}
				if _, err := e.spool.Create("web", "other.ova"); !errors.Is(err, stage.ErrName) {
					t.Errorf("another name in the folder: %v", err)
				}
			})
		}
	}
}

// TestPackageRefused: nothing of a package is stored if any disk of it is bad.
func TestPackageRefused(t *testing.T) {
	b, _ := twoDisks(t)
	spoil := func(off int) []byte {
		bad := bytes.Clone(b)
		bad[off] ^= 0xff
		return bad
	}
	second := bytes.LastIndex(b, []byte("KDMV")) // the footer of the second disk
	for _, c := range []struct {
		what, name string
		b          []byte
		words      string
	}{
		{"the second disk is damaged", "web.ova", spoil(second + 12), `"web-disk1.vmdk"`},
		{"cut", "web.ova", b[:len(b)/2], "past the end"},
		{"another kind", "web.oci", b, "content is ova: name it .ova"},
		{"no package", "web.ova", noise(5000), "no known package"},
	} {
		t.Run(c.what, func(t *testing.T) {
			e := newEnv(t, mem.New())
			err := e.copyIn("", c.name, c.b)
			if !errors.Is(err, stage.ErrRefused) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v, want %q", err, c.words)
			}
			if keys := e.keys(); len(keys) > 0 || e.cat.Has("web") {
				t.Errorf("stored %q", keys)
			}
		})
	}
}

// failing is a store that fails at one step, once.
type failing struct {
	*mem.Store
	at, steps atomic.Int64
}

func (f *failing) step() error {
	if f.steps.Add(1) == f.at.Load() {
		return fmt.Errorf("step %d: %w", f.at.Load(), remote.ErrUnavailable)
	}
	return nil
}

func (f *failing) Upload(ctx context.Context, key string) (remote.Upload, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	u, err := f.Store.Upload(ctx, key)
	return failingUpload{u, f}, err
}

func (f *failing) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if err := f.step(); err != nil {
		return remote.Object{}, err
	}
	return f.Store.Put(ctx, key, r, size, c)
}

func (f *failing) Stat(ctx context.Context, key string) (remote.Object, error) {
	if err := f.step(); err != nil {
		return remote.Object{}, err
	}
	return f.Store.Stat(ctx, key)
}

type failingUpload struct {
	remote.Upload
	f *failing
}

func (u failingUpload) Part(ctx context.Context, n int, r *io.SectionReader) error {
	if err := u.f.step(); err != nil {
		return err
	}
	return u.Upload.Part(ctx, n, r)
}

func (u failingUpload) Complete(ctx context.Context) (remote.Object, error) {
	if err := u.f.step(); err != nil {
		return remote.Object{}, err
	}
	return u.Upload.Complete(ctx)
}

// TestPackageWhole: whatever fails on the way, there is the whole image or
// none, and closing again makes it.
func TestPackageWhole(t *testing.T) {
	b, disks := twoDisks(t)
	for at := int64(1); ; at++ {
		s := &failing{Store: mem.New()}
		e := newEnv(t, s)
		h := e.create("", "web.ova")
		fill(t, h, b)
		s.at.Store(s.steps.Load() + at)
		err := h.Flush(t.Context())
		failed := s.steps.Load() >= s.at.Load()
		if err == nil {
			e.wantDisks("web", disks)
		} else {
			if im, lerr := e.cat.Lookup(t.Context(), "web"); lerr == nil {
				t.Errorf("step %d failed with %v, and there is an image of %d disks", at, err, len(im.Disks))
			}
			fill(t, h, b[:1]) // as a program that tries again
			if err := h.Flush(t.Context()); err != nil {
				t.Fatalf("step %d, again: %v", at, err)
			}
			e.wantDisks("web", disks)
		}
		h.Release()
		if left := e.uploads(); len(left) > 0 {
			t.Errorf("step %d: unfinished uploads %q", at, left)
		}
		if !failed {
			t.Logf("%d steps", at-1)
			if at < 10 {
				t.Error("the store was hardly used")
			}
			return
		}
	}
}

// TestPackageRace: of two packages of one name one is the image, and the other
// stays with who copied it.
func TestPackageRace(t *testing.T) {
	b, _ := twoDisks(t)
	store := mem.New()
	one, two := newEnv(t, store), newEnv(t, store)
	other := pack(t, kindOf("oci"), codec.Machine{Name: "web"}, codectest.Scattered(2<<20, 10, 3))
	h := []*stage.Handle{one.create("", "web.ova"), two.create("", "web.oci")}
	fill(t, h[0], b)
	fill(t, h[1], other)
	errs := make(chan error, 2)
	for _, h := range h {
		go func() { errs <- h.Flush(t.Context()) }()
	}
	first, second := <-errs, <-errs
	if (first == nil) == (second == nil) || !errors.Is(errors.Join(first, second), fs.ErrExist) {
		t.Fatalf("one must win: %v, %v", first, second)
	}
	for _, h := range h {
		h.Release()
	}
	if _, err := one.cat.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	im, err := one.cat.Lookup(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	want := len(im.Disks)
	for _, d := range im.Disks {
		if d.Index != nil {
			want++
		}
	}
	n := 0
	for _, key := range one.keys() {
		if strings.HasPrefix(key, stage.Object) {
			n++
		}
	}
	if n != want {
		t.Errorf("%d objects are left, the image has %d: %q", n, want, one.keys())
	}
	if len(one.spool.Status())+len(two.spool.Status()) != 1 {
		t.Errorf("left: %+v %+v", one.spool.Status(), two.spool.Status())
	}
}

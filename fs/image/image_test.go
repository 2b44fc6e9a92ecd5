package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"imagefs/cache"
	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/codec/raw"
	"imagefs/fs/image"
	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

// opener returns an opener and the catalog of a store.
func opener(t testing.TB, s remote.Store, maxOpen int) (*image.Opener, *catalog.Catalog) {
	t.Helper()
	o, cat, _ := openerCache(t, s, maxOpen)
	return o, cat
}

func openerCache(t testing.TB, s remote.Store, maxOpen int) (*image.Opener, *catalog.Catalog, *cache.Cache) {
	t.Helper()
	c, err := cache.New(cache.Config{Size: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	cat, err := catalog.Open(t.Context(), s, all.Extensions)
	if err != nil {
		t.Fatal(err)
	}
	return image.NewOpener(image.Config{
		Store: s, Cache: c, Formats: all.Formats, Views: all.Views, MaxOpen: maxOpen,
	}), cat, c
}

func put(t testing.TB, s remote.Store, key string, b []byte) {
	t.Helper()
	if _, err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), remote.Cond{}); err != nil {
		t.Fatal(err)
	}
}

// open opens disk 0 of an image.
func open(t testing.TB, o *image.Opener, cat *catalog.Catalog, name string) (*image.Disk, error) {
	t.Helper()
	im, err := cat.Lookup(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	d, ok := im.Disk(0)
	if !ok {
		t.Fatalf("image %q has no disk 0", name)
	}
	return o.Open(t.Context(), im, d)
}

// render reads a whole disk or file.
func render(t *testing.T, s codec.Source) []byte {
	t.Helper()
	b := make([]byte, s.Size())
	if n, err := s.ReadAt(t.Context(), b, 0); n < len(b) || err != nil && err != io.EOF {
		t.Fatalf("read %d of %d bytes: %v", n, len(b), err)
	}
	return b
}

// stored returns a disk laid out in a format, as bytes.
func stored(t *testing.T, f codec.View, d codec.Disk) []byte {
	t.Helper()
	file, err := f.Layout(t.Context(), d, codec.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	return render(t, file)
}

// format returns the format of that name.
func format(t testing.TB, name string) codec.Format {
	t.Helper()
	for _, f := range all.Formats {
		if f.Name() == name {
			return f
		}
	}
	t.Fatalf("no format %q", name)
	return nil
}

// TestEveryPairOfFormats stores a disk in each format and reads it in each.
func TestEveryPairOfFormats(t *testing.T) {
	disk := codectest.Scattered(24<<20+512, 20, 7)
	want := render(t, disk)
	s := mem.New()
	for _, f := range all.Written {
		put(t, s, "i-"+f.Name()+"."+f.Name(), stored(t, f, disk))
	}
	o, cat := opener(t, s, 0)
	for _, f := range all.Written {
		d, err := open(t, o, cat, "i-"+f.Name())
		if err != nil {
			t.Error(err)
			continue
		}
		for _, v := range o.Views() {
			if _, ok := v.(codec.Reframing); ok {
				continue // needs what is stored encoded
			}
			t.Run(f.Name()+" as "+v.Name(), func(t *testing.T) {
				file, err := d.File(t.Context(), v)
				if err != nil {
					t.Fatal(err)
				}
				if file.Stored() != (f.Name() == v.Name()) {
					t.Errorf("stored: %v", file.Stored())
				}
				if file.Stored() && !bytes.Equal(render(t, file), stored(t, f, disk)) {
					t.Error("the stored bytes are not what is read back")
				}
				reader := codec.Format(nil)
				for _, r := range all.Written {
					if v.Name() == r.Name() || strings.HasSuffix(v.Name(), "."+r.Name()) {
						reader = r
					}
				}
				back, err := reader.Open(t.Context(), file)
				if err != nil {
					t.Fatal(err)
				}
				got := render(t, back)
				if !bytes.Equal(got[:len(want)], want) || !codec.Empty(got[len(want):]) {
					t.Error("another disk")
				}
			})
		}
	}
}

func TestContentAndNameMustAgree(t *testing.T) {
	disk := codectest.Full(1<<20, 1)
	vdi, qcow2 := format(t, "vdi"), format(t, "qcow2")
	s := mem.New()
	put(t, s, "a.qcow2", stored(t, vdi, disk))
	put(t, s, "b.raw", stored(t, qcow2, disk))
	put(t, s, "c.vhdx", make([]byte, 4096))
	put(t, s, "d.raw", append([]byte("LUKS\xba\xbe"), make([]byte, 4096)...))
	o, cat := opener(t, s, 0)
	for name, want := range map[string]struct {
		err  error
		says string
	}{
		"a": {codec.ErrFormat, "vdi"},
		"b": {codec.ErrFormat, "qcow2"},
		"c": {codec.ErrFormat, "no signature of vhdx"},
		"d": {codec.ErrUnsupported, "LUKS"},
	} {
		if _, err := open(t, o, cat, name); !errors.Is(err, want.err) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: got %v, want %v that says %q", name, err, want.err, want.says)
		}
	}
}

// failing fails reads on demand.
type failing struct {
	remote.Store
	mu  sync.Mutex
	err error
}

func (f *failing) ReadRange(ctx context.Context, o remote.Object, p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return f.Store.ReadRange(ctx, o, p, off)
}

func TestPassingErrorsAreNotRemembered(t *testing.T) {
	s := &failing{Store: mem.New(), err: fmt.Errorf("get: %w", remote.ErrUnavailable)}
	put(t, s, "a.raw", []byte("disk"))
	o, cat := opener(t, s, 0)
	if _, err := open(t, o, cat, "a"); !errors.Is(err, remote.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	s.err = nil
	if _, err := open(t, o, cat, "a"); err != nil {
		t.Errorf("after the store came back: %v", err)
	}
}

func TestADiskIsOpenedOnce(t *testing.T) {
	m := mem.New()
	put(t, m, "a.raw", make([]byte, 64<<10))
	for i := range 10 {
		put(t, m, fmt.Sprintf("other%d.raw", i), []byte{1})
	}
	s := remote.Observe(m)
	o, cat := opener(t, s, 4)
	var wg sync.WaitGroup
	disks := make([]*image.Disk, 16)
	for i := range disks {
		wg.Go(func() { disks[i], _ = open(t, o, cat, "a") })
	}
	wg.Wait()
	for _, d := range disks {
		if d == nil || d != disks[0] {
			t.Fatal("opened more than once")
		}
	}
	reads := s.Counts().Reads
	if reads > 1 {
		t.Errorf("%d reads to open a disk of one block", reads)
	}
	for i := range 10 {
		if _, err := open(t, o, cat, fmt.Sprintf("other%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	// Evicted meanwhile; who holds it reads on.
	if d, err := open(t, o, cat, "a"); err != nil || d == disks[0] {
		t.Errorf("the oldest of five disks stayed open beyond a limit of four: %v", err)
	}
	if f, err := disks[0].File(t.Context(), raw.Format); err != nil {
		t.Error(err)
	} else if len(render(t, f)) != 64<<10 {
		t.Error("an evicted disk is no longer readable")
	}
}

func TestTooLargeIsNotShown(t *testing.T) {
	qcow2, vhd := format(t, "qcow2"), format(t, "vhd")
	s := mem.New()
	put(t, s, "a.qcow2", stored(t, qcow2, codectest.Scattered(2041<<30, 3, 1)))
	o, cat := opener(t, s, 0)
	d, err := open(t, o, cat, "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.File(t.Context(), vhd); !errors.Is(err, image.ErrNotShown) || !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	im, err := cat.Lookup(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if !o.Hidden(im, im.Disks[0], vhd) || o.Hidden(im, im.Disks[0], raw.Format) {
		t.Error("Hidden disagrees")
	}
}

// TestViewsOfACopyAreTheSame: no byte of a view comes from an ETag, a time or
// the place of the store.
func TestViewsOfACopyAreTheSame(t *testing.T) {
	disk := codectest.Scattered(8<<20, 9, 3)
	qcow2 := format(t, "qcow2")
	b := stored(t, qcow2, disk)
	one, two := mem.New(), mem.New()
	put(t, one, "a.qcow2", b)
	put(t, two, "a.qcow2", []byte("an earlier version"))
	put(t, two, "a.qcow2", b)
	o1, c1 := opener(t, one, 0)
	o2, c2 := opener(t, two, 0)
	d1, err1 := open(t, o1, c1, "a")
	d2, err2 := open(t, o2, c2, "a")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for _, v := range o1.Views() {
		if _, ok := v.(codec.Reframing); ok {
			continue // see TestStreamsAreHandedOn
		}
		f1, err1 := d1.File(t.Context(), v)
		f2, err2 := d2.File(t.Context(), v)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(render(t, f1), render(t, f2)) {
			t.Errorf("%s differs in a copy of the store", v.Name())
		}
	}
}

// TestBlocksOfForgottenDisksAreGivenUp: what no handle and no list holds any
// more leaves the cache.
func TestBlocksOfForgottenDisksAreGivenUp(t *testing.T) {
	s := mem.New()
	for i := range 8 {
		put(t, s, fmt.Sprintf("i%d.raw", i), make([]byte, 1<<20))
	}
	o, cat, c := openerCache(t, s, 1)
	for i := range 8 {
		d, err := open(t, o, cat, fmt.Sprintf("i%d", i))
		if err != nil {
			t.Fatal(err)
		}
		f, err := d.File(t.Context(), raw.Format)
		if err != nil {
			t.Fatal(err)
		}
		render(t, f)
	}
	limit := time.Now().Add(30 * time.Second)
	for c.Stats().Bytes > 2<<20 {
		if time.Now().After(limit) {
			t.Fatalf("%d bytes stay cached for one open disk of 1 MiB", c.Stats().Bytes)
		}
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
}

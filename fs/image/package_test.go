package image_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/image"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

// kindOf is a kind of package by its name.
func kindOf(name string) codec.Package {
	return all.Packages[slices.IndexFunc(all.Packages, func(p codec.Package) bool { return p.Name() == name })]
}

// members are the names of the members of an archive.
func members(t *testing.T, b []byte) (names []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return names
		} else if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// TestPackageIsLaidOutOnce: who asks again gets the same, also the reason why
// there is none.
func TestPackageIsLaidOutOnce(t *testing.T) {
	s := mem.New()
	for _, key := range []string{"web-0.vdi", "web-1.vdi"} {
		put(t, s, key, stored(t, format(t, "vdi"), codectest.Scattered(4<<20, 10, 1)))
	}
	o, cat := opener(t, s, 0)
	im, err := cat.Lookup(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	first, err := o.Package(t.Context(), im, kindOf("ova"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := o.Package(t.Context(), im, kindOf("ova"))
	if err != nil || again.Disk != first.Disk || again.Ino != first.Ino || again.Blocks != first.Blocks {
		t.Errorf("again: %+v, %v, at first %+v", again, err, first)
	}
	var reasons []error
	for range 2 {
		_, err := o.Package(t.Context(), im, kindOf("oci"))
		if !errors.Is(err, image.ErrNotShown) || !strings.Contains(err.Error(), "one") {
			t.Errorf("an oci of two disks: %v", err)
		}
		reasons = append(reasons, err)
	}
	if reasons[0] != reasons[1] {
		t.Error("the reason is found twice")
	}
	if !o.HiddenPackage(im, kindOf("oci")) || o.HiddenPackage(im, kindOf("ova")) {
		t.Error("what is hidden is not what is not shown")
	}
}

// TestPackageFollowsTheName: a disk may have been opened before its image was
// renamed, and by another mount after.
func TestPackageFollowsTheName(t *testing.T) {
	s := mem.New()
	put(t, s, "disks/a", stored(t, format(t, "vdi"), codectest.Scattered(4<<20, 10, 1)))
	o, cat := opener(t, s, 0)
	if _, err := cat.PutDisk(t.Context(), "old", 0, catalog.EntryDisk{Key: "disks/a", Format: "vdi"}, ""); err != nil {
		t.Fatal(err)
	}
	pack := func(o *image.Opener, cat *catalog.Catalog, name string) ([]byte, uint64) {
		t.Helper()
		im, err := cat.Lookup(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := o.Package(t.Context(), im, kindOf("ova"))
		if err != nil {
			t.Fatal(err)
		}
		return render(t, p), p.Ino
	}
	before, ino := pack(o, cat, "old")
	if err := cat.Rename(t.Context(), "old", "new"); err != nil {
		t.Fatal(err)
	}
	here, after := pack(o, cat, "new")
	other, otherCat := opener(t, s, 0)
	there, otherIno := pack(other, otherCat, "new")
	if !bytes.Equal(here, there) || after != otherIno {
		t.Error("a mount that knew the image by its old name shows other bytes")
	}
	if after == ino || bytes.Equal(before, here) {
		t.Error("another name, and the same file")
	}
	if got := members(t, here); !slices.Equal(got, []string{"new.ovf", "new-disk0.vmdk"}) {
		t.Errorf("members %q", got)
	}
	if n := bytes.Count(here, []byte("old")); n > 0 {
		t.Errorf("the old name is in it %d times", n)
	}
}

// TestPackageKeepsItsDisks: the disks of an open package stay cached, however
// many others are opened since.
func TestPackageKeepsItsDisks(t *testing.T) {
	s := mem.New()
	for _, key := range []string{"web-0.qcow2", "web-1.qcow2", "other.qcow2"} {
		put(t, s, key, stored(t, format(t, "qcow2"), codectest.Full(2<<20, 1)))
	}
	o, cat, c := openerCache(t, s, 1)
	im, err := cat.Lookup(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.Package(t.Context(), im, kindOf("ova"))
	if err != nil {
		t.Fatal(err)
	}
	want := render(t, p)
	if _, err := open(t, o, cat, "other"); err != nil {
		t.Fatal(err)
	}
	for range 5 { // what nothing holds goes
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	fetched := c.Stats().Fetches
	if !bytes.Equal(render(t, p), want) {
		t.Error("other bytes")
	}
	if n := c.Stats().Fetches - fetched; n > 0 {
		t.Errorf("%d fetches of what was read before", n)
	}
	runtime.KeepAlive(p)
}

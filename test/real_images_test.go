package test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A realImage is a disk that others made, and what is taken out of a mount of it.
type realImage struct {
	name, raw string
	takes     map[string][]string // files per kind of source; nil for all of all kinds
}

// realKinds are the ways in which each is copied in.
var realKinds = []string{"raw", "qcow2_zlib", "qcow2_zstd"}

// realFiles are what a mount shows of every disk, and what it shows of each
// kind of source beside that.
var (
	realFiles = []string{
		"disk0.fixed.vhd", "disk0.qcow2", "disk0.raw", "disk0.sparse.vmdk", "disk0.vdi", "disk0.vhd", "disk0.vhdx",
		"disk0.vmdk", "disk0.zlib.zvhd2", "disk0.zvhd", "disk0.zvhd2", "vm.oci", "vm.ova",
	}
	realFlavours = map[string][]string{
		"raw": {"disk0.zstd.qcow2"}, "qcow2_zstd": {"disk0.zstd.qcow2"},
		"qcow2_zlib": {"disk0.deflate.vmdk", "disk0.zlib.qcow2"},
	}
)

// debianImages are the images in Debian packages.
func debianImages(t *testing.T) (images []realImage) {
	t.Helper()
	for pkg, suffixes := range map[string][]string{
		"grub-rescue-pc": {".img", ".iso"},
		"memtest86+":     {"x64.iso"},
	} {
		tool(t, "dpkg")
		out, err := try(t, "dpkg", "-L", pkg)
		if err != nil && !toolsDemanded() {
			t.Skipf("%s is not installed: run test/install", pkg)
		}
		found := len(images)
		for _, path := range strings.Fields(out) {
			ours := func(suffix string) bool { return strings.HasSuffix(path, suffix) }
			// A link is another name of an image that is found itself.
			if slices.ContainsFunc(suffixes, ours) && stat(t, path).Mode&syscall.S_IFMT == syscall.S_IFREG {
				images = append(images, realImage{name: filepath.Base(path), raw: path})
			}
		}
		if len(images) == found {
			t.Fatalf("%s has no images: %v", pkg, err)
		}
	}
	return images
}

// TestRealImages takes disks that others made through every view and package:
// what is copied out of one mount and into an empty one is the same guest.
func TestRealImages(t *testing.T) {
	needFUSE(t)
	tool(t, "qemu-img")
	t.Parallel()
	for _, im := range debianImages(t) {
		t.Run(im.name, func(t *testing.T) {
			t.Parallel()
			im.test(t)
		})
	}
	t.Run("debian", func(t *testing.T) { // which boots: see TestBoot
		t.Parallel()
		for _, name := range []string{"mmdebstrap", "mke2fs"} {
			tool(t, name)
		}
		if testing.Short() {
			t.Skip("at the first time builds the guest")
		}
		im := realImage{name: "debian", raw: filepath.Join(strings.TrimSpace(output(t, "bash", "guest")), "disk.raw")}
		if os.Getenv("IMAGEFS_HOSTILE_FLIPS") == "" { // it is large
			im.takes = map[string][]string{
				"raw":        {"disk0.zstd.qcow2", "disk0.vhdx"},
				"qcow2_zlib": {"disk0.deflate.vmdk", "vm.ova"},
			}
		}
		im.test(t)
	})
}

// test copies the disk into a mount in each kind, and what is shown of it into
// another.
func (im realImage) test(t *testing.T) {
	for _, kind := range realKinds {
		takes, ok := im.takes[kind]
		if im.takes != nil && !ok {
			continue
		}
		d, tmp := newDirDepot(t), t.TempDir()
		file, own := im.raw, "disk0.raw"
		if kind != "raw" {
			file, own = filepath.Join(tmp, "vm.qcow2"), "disk0.qcow2"
			storeAs(t, kind, im.raw, file)
		}
		m := d.mount(t)
		dir := m.Path("images", "vm")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		output(t, "cp", file, filepath.Join(dir, own))
		output(t, "cmp", file, filepath.Join(dir, own))
		shown := strings.Fields(output(t, "ls", "-I", "image.json", dir))
		want := slices.Sorted(slices.Values(slices.Concat(realFiles, realFlavours[kind])))
		if slices.Sort(shown); !slices.Equal(shown, want) {
			t.Errorf("%s of %s is shown as\n%q, want\n%q", kind, im.name, shown, want)
		}
		if !ok {
			takes = shown
		}
		im.moveAll(t, dir, takes, tmp)
		m.Stop(t)
	}
}

// moveAll copies files of an image's folder out to tmp and from there into an
// empty store, one image each, and compares the guests.
func (im realImage) moveAll(t *testing.T, dir string, files []string, tmp string) {
	t.Helper()
	d := newDirDepot(t)
	m := d.mount(t)
	for _, file := range files {
		// disk0.zlib.qcow2 becomes image zlib.qcow2, by a file zlib.qcow2.qcow2.
		image := strings.TrimPrefix(file, "disk0.")
		copied := filepath.Join(tmp, image+filepath.Ext(file))
		output(t, "cp", filepath.Join(dir, file), copied)
		output(t, "cp", copied, m.Path("images"))
		if err := os.Remove(copied); err != nil {
			t.Error(err)
		}
		im.compare(t, m.Path("images", image, "disk0.raw"))
	}
	if left := m.status(t, "uploads") + m.status(t, "errors"); left != "" {
		t.Errorf("%s: left: %s", im.name, left)
	}
	if n := len(d.objects(t)); n != len(files) {
		t.Errorf("%s: the store has %d disks of %d files", im.name, n, len(files))
	}
	m.Stop(t)
}

// compare holds a disk to the guest. A format may round its size up, with zeros.
func (im realImage) compare(t *testing.T, disk string) {
	t.Helper()
	size, got := stat(t, im.raw).Size, stat(t, disk).Size
	if got < size || got-size >= miB {
		t.Errorf("%s has %d bytes, the guest %d", disk, got, size)
		return
	}
	n := strconv.FormatInt(size, 10)
	if _, err := try(t, "cmp", "-n", n, disk, im.raw); err != nil {
		t.Errorf("%s: %v", im.name, err)
	}
	if got == size {
		return
	}
	if _, err := try(t, "cmp", "-n", strconv.FormatInt(got-size, 10), "-i", n+":0", disk, "/dev/zero"); err != nil {
		t.Errorf("%s: behind the guest: %v", im.name, err)
	}
}

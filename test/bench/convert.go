package main

import (
	"errors"
	"os"
	"path/filepath"
)

var streamOptimized = []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}

// A view is a format as imagefs, qemu-img and xmount call it.
type view struct {
	ext    string
	qemu   []string
	xmount string // "" where it has none
	goal   float64
}

var views = []view{
	{"sparse.vmdk", []string{"-O", "vmdk"}, "vmdk", 1.2},
	{"vdi", []string{"-O", "vdi"}, "vdi", 1.2},
	{"vhd", []string{"-O", "vpc"}, "vhd", 1.2},
	{"vhdx", []string{"-O", "vhdx"}, "", 1.2},
	{"raw", []string{"-O", "raw"}, "raw", 1.2},
}

// cpTwice copies a view in a new mount: first, when the kernel holds no page of
// it, and again, when it answers all itself. The source is in the page cache all
// the time.
func (b *bench) cpTwice(store, path string) func(t *turn) error {
	return func(t *turn) error {
		mnt, err := t.mount(store, "--read-only")
		if err != nil {
			return err
		}
		for _, lap := range []string{"first", "warm"} {
			if err := t.time(lap, func() error { return t.run("cp", filepath.Join(mnt, path), t.out()) }); err != nil {
				return err
			}
			if err := os.Remove(t.path("out")); err != nil {
				return err
			}
		}
		return nil
	}
}

var twoLaps = []string{"first", "warm"}

func viewPath(image, ext string) string { return filepath.Join("images", image, "disk0."+ext) }

// qemu converts a stored file with qemu-img.
func (b *bench) qemu(source string, args []string) func(t *turn) error {
	return func(t *turn) error {
		return t.time("", func() error { return t.convert(b.path("store", source), t.out(), args) })
	}
}

// copyOf copies a file: nothing can be faster.
func copyOf(path string) func(t *turn) error {
	return func(t *turn) error {
		return t.time("", func() error { return t.run("cp", path, t.out()) })
	}
}

// xmountCp copies what xmount makes of the raw disk.
func (b *bench) xmountCp(format string) func(t *turn) error {
	return func(t *turn) error {
		mnt, err := t.xmounted(b.raw(), format)
		if err != nil {
			return err
		}
		out := t.path("out.d")
		t.later(func() { _ = os.RemoveAll(out) })
		return t.time("", func() error { return t.run("cp", "-r", mnt, out) })
	}
}

func (b *bench) exportCp(source string) func(t *turn) error {
	return func(t *turn) error {
		file, err := t.exported(b.path("store", source))
		if err != nil {
			return err
		}
		return t.time("", func() error { return t.run("cp", file, t.out()) })
	}
}

// convert compares cp of views of a plain source with making the same.
func (b *bench) convert() error {
	head(b.out, "cp of a view of a plain qcow2 against qemu-img convert of the same file (goals: those of the warm cp; xmount has a raw disk as source)")
	guest := b.path("store", "guest.qcow2")
	limit := entrant{rival: plainCopy, run: copyOf(guest)}
	c := contest{part: "convert", laps: twoLaps, amount: float64(b.size >> 20), unit: "MiB/s"}
	var errs []error
	// The view that streams against what users make with the same name, and
	// against the same form, which takes qemu-img long.
	if err := b.tryQemu(guest, []string{"-O", "vmdk"}); err != nil {
		return err
	}
	c.name, c.ours = "plain qcow2 -> vmdk", b.cpTwice(b.path("store"), viewPath("guest", "vmdk"))
	c.entrants = []entrant{
		{rival: qemuImg, run: b.qemu("guest.qcow2", []string{"-O", "vmdk"}), goal: 1.5, lap: "warm"},
		{rival: xmount, run: b.xmountCp("vmdk"), goal: 1},
		limit,
	}
	errs = append(errs, b.hold(c))
	c.name, c.long = "plain qcow2 -> vmdk, the same form", true
	c.entrants = []entrant{{rival: qemuStream, run: b.qemu("guest.qcow2", streamOptimized), goal: 20, lap: "warm"}}
	errs = append(errs, b.hold(c))
	c.long = false
	for _, v := range views {
		if err := b.tryQemu(guest, v.qemu); err != nil {
			return err
		}
		c.name, c.ours = "plain qcow2 -> "+v.ext, b.cpTwice(b.path("store"), viewPath("guest", v.ext))
		c.entrants = []entrant{{rival: qemuImg, run: b.qemu("guest.qcow2", v.qemu), goal: v.goal, lap: "warm"}}
		if v.xmount != "" {
			c.entrants = append(c.entrants, entrant{rival: xmount, run: b.xmountCp(v.xmount), goal: 1})
		}
		if v.ext == "raw" {
			c.entrants = append(c.entrants, entrant{rival: storageD, run: b.exportCp("guest.qcow2"), goal: 1})
		}
		c.entrants = append(c.entrants, limit)
		errs = append(errs, b.hold(c))
	}
	// The qcow2 view is that of a source in another format.
	other := b.path("store", "other.vdi")
	defer os.Remove(other)
	qcow2 := []string{"-O", "qcow2"}
	if err := errors.Join(b.command("qemu-img", "convert", "-O", "vdi", guest, other), b.tryQemu(other, qcow2)); err != nil {
		return err
	}
	c.name, c.ours = "plain vdi -> qcow2", b.cpTwice(b.path("store"), viewPath("other", "qcow2"))
	c.entrants = []entrant{{rival: qemuImg, run: b.qemu("other.vdi", qcow2), goal: 1.2, lap: "warm"}, {rival: plainCopy, run: copyOf(other)}}
	return errors.Join(append(errs, b.hold(c))...)
}

// coded compares cp of views of a compressed source with making the same.
func (b *bench) coded() error {
	head(b.out, "cp of a view of a compressed qcow2 against qemu-img convert of the same file, its best -m and -W")
	var errs []error
	for _, image := range []string{"zlib", "zstd"} {
		file := image + ".qcow2"
		for _, v := range views {
			if v.ext != "raw" && v.ext != "vhdx" && v.ext != "sparse.vmdk" {
				continue
			}
			if err := b.tryQemu(b.path("store", file), v.qemu); err != nil {
				return err
			}
			entrants := []entrant{{rival: qemuImg, run: b.qemu(file, v.qemu), goal: 1.2}}
			if v.ext == "raw" {
				entrants = append(entrants, entrant{rival: storageD, run: b.exportCp(file), goal: 1})
			}
			errs = append(errs, b.hold(contest{
				part: "coded", name: image + " qcow2 -> " + v.ext, laps: twoLaps, amount: float64(b.size >> 20), unit: "MiB/s",
				ours: b.cpTwice(b.path("store"), viewPath(image, v.ext)), entrants: entrants,
			}))
		}
	}
	return errors.Join(errs...)
}

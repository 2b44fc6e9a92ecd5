package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// A flavour is a file of the mount that qemu-img makes in the time of a
// conversion.
type flavour struct {
	source string // of which it is a view, with its extension
	file   string
	args   []string // of qemu-img convert
	packed bool     // the file is a tar archive of the disk
}

var flavours = []flavour{
	{"zlib.qcow2", "disk0.zlib.qcow2", []string{"-c", "-O", "qcow2"}, false},
	{"zlib.qcow2", "disk0.deflate.vmdk", streamOptimized, false},
	{"stream.vmdk", "disk0.deflate.vmdk", streamOptimized, false},
	{"zstd.qcow2", "disk0.zstd.qcow2", []string{"-c", "-O", "qcow2", "-o", "compression_type=zstd"}, false},
	{"zlib.qcow2", "zlib.ova", streamOptimized, true},
	{"zlib.qcow2", "zlib.oci", []string{"-O", "qcow2"}, true},
}

// flavours compares cp of compressed views and of packages with making the same
// file today, and the sizes of both.
func (b *bench) flavours() error {
	store := b.path("imported")
	if err := os.Mkdir(store, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(store)
	stream := b.path("store", "stream.vmdk")
	defer os.Remove(stream)
	if err := b.command("qemu-img", slices.Concat([]string{"convert", "-W", "-m", "8"}, streamOptimized, []string{b.path("store", "zlib.qcow2"), stream})...); err != nil {
		return err
	}
	for _, source := range []string{"zlib.qcow2", "zstd.qcow2", "stream.vmdk"} { // an import makes the index that the views need
		if err := b.command(b.imagefs, "import", "-q", store, b.path("store", source)); err != nil {
			return err
		}
	}
	head(b.out, "cp of a compressed view or a package against making it")
	var errs []error
	for _, f := range flavours {
		rival := qemuImg
		if f.packed {
			rival = qemuTar
		}
		var theirs int64
		err := b.hold(contest{
			part: "flavours", name: f.source + " -> " + f.file, laps: twoLaps, long: true,
			ours: b.cpTwice(store, filepath.Join("images", stem(f.source), f.file)),
			entrants: []entrant{{rival: rival, run: func(t *turn) error {
				err := t.time("", func() error { return t.make(f, t.out()) })
				size, err2 := sizeOf(t.path("out"))
				theirs = size
				return errors.Join(err, err2)
			}}},
		})
		errs = append(errs, cmp.Or(err, b.sizes(store, f, theirs)))
	}
	return errors.Join(errs...)
}

// sizes prints how large a flavour is beside what the rival made.
func (b *bench) sizes(store string, f flavour, theirs int64) error {
	t := &turn{bench: b, ctx: b.ctx}
	defer t.end()
	mnt, err := t.mount(store, "--read-only")
	if err != nil {
		return err
	}
	ours, err := sizeOf(filepath.Join(mnt, "images", stem(f.source), f.file))
	if err == nil && theirs > 0 {
		fmt.Fprintf(b.out, "  %d bytes, the rival's %d: %+.2f %%\n", ours, theirs, 100*float64(ours-theirs)/float64(theirs))
	}
	return err
}

// make makes what a flavour is, as one does without imagefs.
func (t *turn) make(f flavour, out string) error {
	to := out
	if f.packed {
		to = t.path("disk")
		t.later(func() { _ = os.Remove(to) })
	}
	if err := t.convert(t.path("store", f.source), to, f.args); err != nil || !f.packed {
		return err
	}
	return t.run("tar", "-C", t.dir, "-cf", out, filepath.Base(to))
}

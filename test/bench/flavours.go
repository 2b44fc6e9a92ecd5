package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A flavour is a file of the mount that qemu-img makes in the time of a
// conversion.
type flavour struct {
	source string // of which it is a view, with its extension
	file   string
	args   []string // of qemu-img convert
	packed bool     // the file is a tar archive of the disk
}

var streamOptimized = []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}

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
	if err := command("qemu-img", slices.Concat([]string{"convert", "-W", "-m", "8"}, streamOptimized, []string{b.path("store", "zlib.qcow2"), stream})...); err != nil {
		return err
	}
	for _, source := range []string{"zlib.qcow2", "zstd.qcow2", "stream.vmdk"} { // an import makes the index that the views need
		if err := command(b.imagefs, "import", "-q", store, b.path("store", source)); err != nil {
			return err
		}
	}
	b.head("cp of a compressed view or a package against qemu-img convert -W -m 8 (and tar)", "cp", "qemu-img")
	var notes []string
	for _, f := range flavours {
		note, err := b.flavourOne(store, f)
		if err != nil {
			return err
		}
		notes = append(notes, note)
	}
	for _, n := range notes {
		fmt.Fprintln(b.out, "  "+n)
	}
	return nil
}

// flavourOne compares the first cp of a file, in a new mount, and one of which
// the kernel holds all pages with making it. The note tells of the sizes.
func (b *bench) flavourOne(store string, f flavour) (note string, err error) {
	out := b.path("out")
	var ours, theirs int64
	cp := func(path string) (time.Duration, error) {
		defer os.Remove(out)
		took, err := timed(func() error { return command("cp", path, out) })
		return took, errors.Join(err, sizeOf(out, &ours))
	}
	times, err := b.turns(func() ([]time.Duration, error) {
		mnt, done, err := b.mount(store, "--read-only")
		if err != nil {
			return nil, err
		}
		path := filepath.Join(mnt, "images", strings.TrimSuffix(f.source, filepath.Ext(f.source)), f.file)
		first, err1 := cp(path)
		warm, err2 := cp(path)
		done()
		defer os.Remove(out)
		made, err3 := timed(func() error { return b.make(f, out) })
		return []time.Duration{first, warm, made}, errors.Join(err1, err2, err3, sizeOf(out, &theirs))
	})
	if err != nil {
		return "", err
	}
	what := f.source + " -> " + f.file
	b.row(what+", first", times[0], times[2])
	b.row(what+", warm", times[1], times[2])
	return fmt.Sprintf("%-34s %12d bytes, qemu-img's %12d: %+.2f %%", what, ours, theirs, 100*float64(ours-theirs)/float64(theirs)), nil
}

// make makes what a flavour is, as one does without imagefs.
func (b *bench) make(f flavour, out string) error {
	disk := out
	if f.packed {
		disk = b.path("disk")
		defer os.Remove(disk)
	}
	args := slices.Concat([]string{"convert", "-W", "-m", "8"}, f.args, []string{b.path("store", f.source), disk})
	if err := command("qemu-img", args...); err != nil || !f.packed {
		return err
	}
	return command("tar", "-C", b.dir, "-cf", out, filepath.Base(disk))
}

func sizeOf(path string, size *int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	*size = info.Size()
	return nil
}

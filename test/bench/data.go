package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	usualSize = 1536 << 20
	smallSize = 512 << 20
	// A run holds this many times the size: the guest as raw disk, in three
	// stored forms and as objects, and what two rivals make of it.
	sizesHeld = 8
)

// sizeThatFits is the usual size of a guest, or a smaller one where the file
// system of dir, which may be memory, is too small for it.
func sizeThatFits(dir string) int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return smallSize
	}
	free := int64(st.Bavail) * st.Bsize
	var kib int64
	if _, err := fmt.Sscan(field("/proc/meminfo", "MemAvailable"), &kib); err == nil {
		free = min(free, kib<<10)
	}
	if free < sizesHeld*usualSize {
		return smallSize
	}
	return usualSize
}

// The epoch of all times in the guest.
const epoch = 1_700_000_000

// guest makes an ext4 file system of real files of this machine, the same at
// every run: as a raw disk and as a plain, a zlib and a zstd qcow2. It does
// nothing the second time.
func (b *bench) guest() error {
	if _, err := os.Stat(b.path("store")); err == nil {
		return nil
	}
	if err := errors.Join(os.Mkdir(b.path("store"), 0o755), os.Mkdir(b.path("raw"), 0o755)); err != nil {
		return err
	}
	raw, tree := b.raw(), b.path("tree")
	copied, err := b.copyTree(tree, b.size, "/usr/lib", "/usr/share", "/usr/bin")
	if err != nil {
		return err
	}
	b.size = copied &^ (1<<20 - 1)
	fmt.Fprintf(b.out, "a guest with %d MiB of real files\n", b.size>>20)
	const id = "5bd1e995-0000-4000-8000-000000000001"
	convert := func(name string, args ...string) error {
		return b.command("qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, b.path("store", name))...)
	}
	return errors.Join(
		b.command("truncate", "-s", strconv.FormatInt(2*b.size+64<<20, 10), raw), // half empty
		b.command("env", fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", int64(epoch)), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin",
			"mkfs.ext4", "-q", "-U", id, "-E", "hash_seed="+id, "-d", tree, raw),
		os.RemoveAll(tree),
		convert("guest.qcow2"),
		convert("zlib.qcow2", "-c", "-m", "8"),
		convert("zstd.qcow2", "-c", "-m", "8", "-o", "compression_type=zstd"),
	)
}

func (b *bench) raw() string { return b.path("raw", "guest.raw") }

// copyTree copies regular files below the folders from, up to n bytes of them,
// in the order of their names. It returns how many bytes it copied.
func (b *bench) copyTree(to string, n int64, from ...string) (copied int64, err error) {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return 0, err
	}
	stamp := time.Unix(epoch, 0)
	for _, root := range from {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			if err != nil || !d.Type().IsRegular() {
				return nil // what cannot be read is left out
			}
			if copied >= n {
				return filepath.SkipAll
			}
			info, err := d.Info()
			if err != nil || copied+info.Size() > n {
				return nil
			}
			dst := filepath.Join(to, path)
			n, err := copyFile(dst, path)
			copied += n
			return errors.Join(err, os.Chtimes(dst, stamp, stamp))
		})
		if err != nil {
			return copied, err
		}
	}
	// Folders last: a file in one changes its time.
	err = filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chtimes(path, stamp, stamp)
	})
	return copied, err
}

// copyFile copies a file without holding it: the peak memory of this program is
// the least that the kernel reports for its children.
func copyFile(dst, src string) (n int64, err error) {
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return 0, err
	}
	out, err := os.Create(dst)
	if err != nil {
		return 0, err
	}
	if in, err := os.Open(src); err == nil { // what cannot be read is empty
		defer in.Close()
		n, _ = io.Copy(out, in)
	}
	return n, out.Close()
}

// stem is a file's name without its extension: that of its image.
func stem(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) }

func sizeOf(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// dataOf is what a file holds beside its holes, in bytes.
func dataOf(file string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(file, &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

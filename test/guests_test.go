package test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	kiB = 1 << 10
	miB = 1 << 20
	giB = 1 << 30
	tiB = 1 << 40
)

// A guest is what a disk holds, made as a sparse raw file.
type guest struct {
	name string
	make func(t testing.TB, path string)
}

// guests are small and nasty: every boundary that a format draws is crossed
// by one of them.
var guests = []guest{
	{"empty", func(t testing.TB, path string) { sparse(t, path, 8*miB) }},
	{"files", makeExt4},
	{"random", func(t testing.TB, path string) {
		sparse(t, path, 3*miB, piece{0, 3 * miB})
	}},
	{"tail", func(t testing.TB, path string) {
		sparse(t, path, 40*miB, piece{40*miB - 512, 512})
	}},
	{"odd", func(t testing.TB, path string) { // a multiple of no cluster, grain or block
		sparse(t, path, 10*miB+512,
			piece{0, 512}, piece{64*kiB - 512, 1024}, piece{miB + 7*512, 512},
			piece{2*miB - 512, 1024}, piece{5 * miB, 300 * kiB}, piece{10*miB - 512, 1024})
	}},
}

// piece is a run of random bytes.
type piece struct{ off, n int64 }

// sparse makes a file of that size with the pieces filled in, the same bytes
// in every run.
func sparse(t testing.TB, path string, size int64, pieces ...piece) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	r := rand.NewChaCha8([32]byte{1, byte(size >> 9)})
	for _, p := range pieces {
		if _, err := io.CopyN(io.NewOffsetWriter(f, p.off), r, p.n); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// makeExt4 makes a file system with files, without mounting anything.
func makeExt4(t testing.TB, path string) {
	t.Helper()
	root := t.TempDir()
	for i := range 12 {
		dir := filepath.Join(root, fmt.Sprintf("dir%d", i%3))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat(fmt.Sprintf("line of file %d\n", i), 1+i*i*200)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d.txt", i)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sparse(t, filepath.Join(root, "random"), 700*kiB, piece{0, 700 * kiB})
	sparse(t, path, 24*miB)
	output(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", root, path)
}

// A source is a way to store a guest.
type source struct {
	kind   string
	ext    string
	format string // as qemu-img calls it
	opts   string
	flags  string // of qemu-img convert
}

// sources are all formats and sub-formats that qemu-img writes and imagefs reads.
var sources = []source{
	{"raw", "raw", "raw", "", ""},
	{"qcow2", "qcow2", "qcow2", "compat=1.1", ""},
	{"qcow2_old", "qcow2", "qcow2", "compat=0.10", ""},
	{"qcow2_old_zlib", "qcow2", "qcow2", "compat=0.10", "-c"},
	{"qcow2_zlib", "qcow2", "qcow2", "compression_type=zlib", "-c"},
	{"qcow2_zstd", "qcow2", "qcow2", "compression_type=zstd", "-c"},
	{"qcow2_extended", "qcow2", "qcow2", "extended_l2=on,cluster_size=128k", ""},
	{"qcow2_extended_small", "qcow2", "qcow2", "extended_l2=on,cluster_size=16k", ""},
	{"qcow2_extended_zstd", "qcow2", "qcow2", "extended_l2=on,cluster_size=64k,compression_type=zstd", "-c"},
	{"qcow2_cluster512", "qcow2", "qcow2", "cluster_size=512", ""},
	{"qcow2_cluster4k_zlib", "qcow2", "qcow2", "cluster_size=4k", "-c"},
	{"qcow2_cluster2m", "qcow2", "qcow2", "cluster_size=2M", ""},
	{"qcow2_cluster2m_zstd", "qcow2", "qcow2", "cluster_size=2M,compression_type=zstd", "-c"},
	{"qcow2_refcount1", "qcow2", "qcow2", "refcount_bits=1", ""},
	{"qcow2_preallocated", "qcow2", "qcow2", "preallocation=metadata", ""},
	{"vmdk_sparse", "vmdk", "vmdk", "subformat=monolithicSparse", ""},
	{"vmdk_sparse_zeroed", "vmdk", "vmdk", "subformat=monolithicSparse,zeroed_grain=on", ""},
	{"vmdk_stream", "vmdk", "vmdk", "subformat=streamOptimized", ""},
	{"vdi", "vdi", "vdi", "", ""},
	{"vdi_fixed", "vdi", "vdi", "static=on", ""},
	{"vhd", "vhd", "vpc", "subformat=dynamic", ""},
	{"vhd_exact", "vhd", "vpc", "subformat=dynamic,force_size=on", ""},
	{"vhd_fixed", "vhd", "vpc", "subformat=fixed", ""},
	{"vhd_fixed_exact", "vhd", "vpc", "subformat=fixed,force_size=on", ""},
	{"vhdx", "vhdx", "vhdx", "subformat=dynamic", ""},
	{"vhdx_block1m", "vhdx", "vhdx", "subformat=dynamic,block_size=1M", ""},
	{"vhdx_block32m", "vhdx", "vhdx", "subformat=dynamic,block_size=32M", ""},
	{"vhdx_fixed", "vhdx", "vhdx", "subformat=fixed", ""},
}

// store writes the guest at raw as a file of the source's format.
func (s source) store(t testing.TB, raw, path string) error {
	t.Helper()
	args := []string{"convert", "-f", "raw", "-O", s.format}
	if s.flags != "" {
		args = append(args, strings.Fields(s.flags)...)
	}
	if s.opts != "" {
		args = append(args, "-o", s.opts)
	}
	_, err := try(t, "qemu-img", append(args, raw, path)...)
	return err
}

// A view is a format that the mount shows, and how outside readers call it.
type view struct {
	ext    string
	qemu   string
	checks bool // qemu-img check knows the format
}

var views = []view{
	{"raw", "raw", false},
	{"qcow2", "qcow2", true},
	{"vmdk", "vmdk", true},
	{"sparse.vmdk", "vmdk", true},
	{"vdi", "vdi", true},
	{"vhd", "vpc", false},
	{"vhdx", "vhdx", true},
}

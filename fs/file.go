package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/codec"
	"imagefs/fs/image"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// blksize is the preferred size of a read that stat tells: as large as one
// request of the kernel, which cp and others take as their buffer's size.
const blksize = 1 << 20

// fixed is attributes that a node keeps, but for times that a client sets.
type fixed struct {
	mu   sync.Mutex
	attr fuse.Attr     // guarded by mu
	keep time.Duration // how long the kernel may believe them
}

// fixed returns the attributes of a node of size bytes, all of them data.
func (t *tree) fixed(kind uint32, ino uint64, size int64, mtime time.Time) fuse.Attr {
	perm := (0o444 | t.write(0o200)) &^ t.cfg.Umask
	if kind == syscall.S_IFLNK {
		perm = 0o777
	}
	a := fuse.Attr{
		Ino: ino, Size: uint64(size), Blocks: uint64(codec.Ceil(size, 512)),
		Blksize: 4096, Mode: kind | perm, Nlink: 1,
	}
	a.SetTimes(&mtime, &mtime, &mtime)
	t.owner(&a)
	return a
}

// Getattr implements [fs.NodeGetattrer].
func (f *fixed) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	out.Attr = f.attr
	out.SetTimeout(f.keep)
	return 0
}

func (f *fixed) set(a fuse.Attr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attr = a
}

func (f *fixed) child(n fs.InodeEmbedder) child { return child{node: n, attr: f.attr, keep: f.keep} }

// file is a disk in one format. It holds what names the version, not the
// opened disk: the kernel remembers more nodes than disks stay open.
type file struct {
	fs.Inode
	readOnly
	t    *tree
	im   *catalog.Image
	disk catalog.Disk
	view codec.View
	x    []xattr
	fixed
}

var (
	_ fs.NodeOpener      = (*file)(nil)
	_ fs.NodeGetattrer   = (*file)(nil)
	_ fs.NodeFsyncer     = (*file)(nil)
	_ fs.NodeGetxattrer  = (*file)(nil)
	_ fs.NodeListxattrer = (*file)(nil)
	_ fs.FileReader      = (*handle)(nil)
	_ fs.FileLseeker     = (*handle)(nil)
)

func (t *tree) file(im *catalog.Image, cd catalog.Disk, v codec.View, f *image.File) child {
	mtime := cd.Modified
	if mtime.IsZero() {
		mtime = f.ModTime
	}
	a := t.fixed(syscall.S_IFREG, f.Ino, f.Size(), mtime)
	a.Blocks, a.Blksize = f.Blocks, blksize
	n := &file{t: t, im: im, disk: cd, view: v, x: xattrs(f), fixed: fixed{attr: a, keep: fileTimeout}}
	return n.child(n)
}

func (n *file) path() string { return n.disk.Object.Key + " as " + n.view.Name() }

// Open opens the version that was looked up, whatever the name means by now.
// Asked to read and write, it answers EROFS, which clients that prefer to write
// take as the hint to open again for reading; see [file.replace] for writing.
//
// Every open keeps the kernel's pages: what is shown never changes, so that a
// second read does not reach the daemon. Direct I/O, without them, spares the first
// read a copy, which cp of 520 MiB does not feel (0.8 to 1.5 s against 0.8 to 1.3 s,
// in turn on a busy machine), while a program that reads 4 KiB at a time loses the
// kernel's reading ahead: 7 to 18 s for 200 MiB against 0.4 to 0.6 s. A program that
// wants none of it opens with O_DIRECT, and decides for itself.
func (n *file) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.replace(ctx, flags)
	}
	ctx = context.WithoutCancel(ctx)
	d, err := n.t.opener.Open(ctx, n.im, n.disk)
	if err != nil {
		return nil, 0, n.t.fail("open", n.path(), err)
	}
	f, err := d.File(ctx, n.view)
	if err != nil {
		return nil, 0, n.t.fail("open", n.path(), err)
	}
	return &handle{n.t, n.path(), f}, fuse.FOPEN_KEEP_CACHE, 0
}

// Fsync does nothing: all of a disk is stored, or it would not be shown.
func (n *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// handle is an open file.
type handle struct {
	t    *tree
	path string // for messages
	f    codec.Disk
}

// Read implements [fs.FileReader]; see the package comment for its context. What
// lies together in memory is answered from there.
func (h *handle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	b, err := codec.Slice(context.Background(), h.f, off, int(min(int64(len(dest)), h.f.Size()-off)))
	if b == nil && err == nil {
		var n int
		n, err = h.f.ReadAt(context.Background(), dest, off)
		b = dest[:n]
	}
	if err != nil && err != io.EOF {
		if errors.Is(err, iofs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", remote.ErrChanged, err) // it was there at open
		}
		return nil, h.t.fail("read", h.path, err)
	}
	return fuse.ReadResultData(b), 0
}

// Lseek finds data and holes for SEEK_DATA and SEEK_HOLE; the kernel answers
// the others itself.
func (h *handle) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	const seekData, seekHole = 3, 4
	size := h.f.Size()
	if whence != seekData && whence != seekHole {
		return 0, syscall.EINVAL
	}
	if off >= uint64(size) {
		return 0, syscall.ENXIO
	}
	for e, err := range h.f.Extents(context.WithoutCancel(ctx), int64(off), size-int64(off)) {
		if err != nil {
			return 0, h.t.fail("lseek", h.path, err)
		}
		if e.Zero == (whence == seekHole) {
			return uint64(e.Off), 0
		}
	}
	if whence == seekHole {
		return uint64(size), 0 // every file ends in a hole
	}
	return 0, syscall.ENXIO
}

// text is a small file whose bytes are fixed when it is looked up.
type text struct {
	fs.Inode
	readOnly
	data []byte
	fixed
}

func (t *tree) text(kind, name string, data []byte, mtime time.Time) child {
	a := t.fixed(syscall.S_IFREG, derive(kind, name, string(data)), int64(len(data)), mtime)
	n := &text{data: data, fixed: fixed{attr: a, keep: nameTimeout}}
	return n.child(n)
}

// Open implements [fs.NodeOpener].
func (n *text) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read implements [fs.NodeReader].
func (n *text) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(n.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, n.data[off:])]), 0
}

// link is a symbolic link.
type link struct {
	fs.Inode
	readOnly
	target string
	fixed
}

func (t *tree) link(name, target string, mtime time.Time) child {
	a := t.fixed(syscall.S_IFLNK, derive("id", name), int64(len(target)), mtime)
	n := &link{target: target, fixed: fixed{attr: a, keep: nameTimeout}}
	return n.child(n)
}

// Readlink implements [fs.NodeReadlinker].
func (n *link) Readlink(context.Context) ([]byte, syscall.Errno) { return []byte(n.target), 0 }

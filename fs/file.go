package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
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

// file is a disk in one format. It holds what names the version, not the
// opened disk: the kernel remembers more nodes than disks stay open.
type file struct {
	fs.Inode
	readOnly
	t    *tree
	im   *catalog.Image
	disk catalog.Disk
	view codec.View
	attr fuse.Attr
	x    []xattr
}

var (
	_ fs.NodeOpener      = (*file)(nil)
	_ fs.NodeGetattrer   = (*file)(nil)
	_ fs.NodeGetxattrer  = (*file)(nil)
	_ fs.NodeListxattrer = (*file)(nil)
	_ fs.FileReader      = (*handle)(nil)
	_ fs.FileLseeker     = (*handle)(nil)
)

func (t *tree) file(im *catalog.Image, cd catalog.Disk, v codec.View, f *image.File) child {
	n := &file{t: t, im: im, disk: cd, view: v, x: xattrs(f)}
	n.attr = fuse.Attr{
		Ino: f.Ino, Size: uint64(f.Size()), Blocks: f.Blocks, Blksize: blksize,
		Mode: syscall.S_IFREG | 0o444&^t.cfg.Umask, Nlink: 1,
	}
	n.attr.SetTimes(&f.ModTime, &f.ModTime, &f.ModTime)
	t.owner(&n.attr)
	return child{node: n, attr: n.attr, keep: fileTimeout}
}

// Getattr tells what the look-up told: the file never changes.
func (n *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Attr = n.attr
	out.SetTimeout(fileTimeout)
	return 0
}

func (n *file) path() string { return n.disk.Object.Key + " as " + n.view.Name() }

// Open opens the version that was looked up, whatever the name means by now.
// Asked to write, it answers EROFS, which clients that prefer to write take as
// the hint to open again for reading.
func (n *file) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	d, err := n.t.opener.Open(ctx, n.im, n.disk)
	if err != nil {
		return nil, 0, n.t.fail("open", n.path(), err)
	}
	f, err := d.File(ctx, n.view)
	if err != nil {
		return nil, 0, n.t.fail("open", n.path(), err)
	}
	return &handle{n, f}, fuse.FOPEN_KEEP_CACHE, 0
}

// handle is an open file.
type handle struct {
	n *file
	f *image.File
}

// Read implements [fs.FileReader]; see the package comment for its context.
func (h *handle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.f.ReadAt(context.Background(), dest, off)
	if err != nil && err != io.EOF {
		if errors.Is(err, iofs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", remote.ErrChanged, err) // it was there at open
		}
		return nil, h.n.t.fail("read", h.n.path(), err)
	}
	return fuse.ReadResultData(dest[:n]), 0
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
	for e, err := range h.f.Extents(ctx, int64(off), size-int64(off)) {
		if err != nil {
			return 0, h.n.t.fail("lseek", h.n.path(), err)
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
	attr fuse.Attr
}

func (t *tree) text(kind, name string, data []byte, mtime time.Time) child {
	n := &text{data: data}
	n.attr = fuse.Attr{
		Ino: derive(kind, name, string(data)), Size: uint64(len(data)), Blocks: uint64(codec.Ceil(int64(len(data)), 512)),
		Blksize: 4096, Mode: syscall.S_IFREG | 0o444&^t.cfg.Umask, Nlink: 1,
	}
	n.attr.SetTimes(&mtime, &mtime, &mtime)
	t.owner(&n.attr)
	return child{node: n, attr: n.attr, keep: nameTimeout}
}

// Getattr implements [fs.NodeGetattrer].
func (n *text) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Attr = n.attr
	out.SetTimeout(nameTimeout)
	return 0
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
	attr   fuse.Attr
}

func (t *tree) link(name, target string, mtime time.Time) child {
	n := &link{target: target}
	n.attr = fuse.Attr{
		Ino: derive("id", name), Size: uint64(len(target)), Blksize: 4096,
		Mode: syscall.S_IFLNK | 0o777, Nlink: 1,
	}
	n.attr.SetTimes(&mtime, &mtime, &mtime)
	t.owner(&n.attr)
	return child{node: n, attr: n.attr, keep: nameTimeout}
}

// Getattr implements [fs.NodeGetattrer].
func (n *link) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Attr = n.attr
	out.SetTimeout(nameTimeout)
	return 0
}

// Readlink implements [fs.NodeReadlinker].
func (n *link) Readlink(context.Context) ([]byte, syscall.Errno) { return []byte(n.target), 0 }

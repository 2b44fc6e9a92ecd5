package fs

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/fs/stage"
)

// staged is a file that is being copied in. The kernel believes nothing of it
// for longer than a moment: it becomes a disk, with another inode, when it is
// committed.
type staged struct {
	fs.Inode
	readOnly
	t *tree
	f *stage.File
}

var (
	_ fs.NodeOpener        = (*staged)(nil)
	_ fs.NodeGetattrer     = (*staged)(nil)
	_ fs.NodeSetattrer     = (*staged)(nil)
	_ fs.NodeAllocater     = (*staged)(nil)
	_ fs.NodeGetxattrer    = (*staged)(nil)
	_ fs.NodeSetxattrer    = (*staged)(nil)
	_ fs.NodeListxattrer   = (*staged)(nil)
	_ fs.NodeRemovexattrer = (*staged)(nil)
	_ fs.FileReader        = (*stagedHandle)(nil)
	_ fs.FileWriter        = (*stagedHandle)(nil)
	_ fs.FileFlusher       = (*stagedHandle)(nil)
	_ fs.FileReleaser      = (*stagedHandle)(nil)
	_ fs.FileFsyncer       = (*stagedHandle)(nil)
	_ fs.FileLseeker       = (*stagedHandle)(nil)
)

func (t *tree) staged(f *stage.File) (child, error) {
	c := child{node: &staged{t: t, f: f}}
	return c, t.stagedAttr(f, &c.attr)
}

func (t *tree) stagedAttr(f *stage.File, out *fuse.Attr) error {
	a, err := f.Attr()
	if err != nil {
		return err
	}
	*out = fuse.Attr{
		Ino: derive("staged", f.ID), Size: uint64(a.Size), Blocks: uint64(a.Blocks), Blksize: blksize,
		Mode: syscall.S_IFREG | a.Mode, Nlink: 1, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
	}
	out.SetTimes(&a.Modified, &a.Modified, &a.Modified)
	return nil
}

func (n *staged) path() string {
	s := n.f.Status()
	return strings.TrimSuffix("images/"+s.Folder, "/") + "/" + s.Name
}

func (n *staged) fail(op string, err error) syscall.Errno { return n.t.fail(op, n.path(), err) }

// Open implements [fs.NodeOpener].
func (n *staged) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, err := n.f.Open(ctx, int(flags))
	if err != nil {
		return nil, 0, n.fail("open", err)
	}
	return &stagedHandle{t: n.t, h: h}, 0, 0
}

// Getattr implements [fs.NodeGetattrer].
func (n *staged) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if err := n.t.stagedAttr(n.f, &out.Attr); err != nil {
		return n.fail("stat", err)
	}
	return 0
}

// Setattr implements [fs.NodeSetattrer].
func (n *staged) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		var err error
		if sh, ok := h.(*stagedHandle); ok {
			sh.w.add(ctx)
			err = sh.h.Truncate(ctx, int64(size))
		} else if err = n.f.Truncate(ctx, int64(size)); err == nil {
			n.f.Quiet()
		}
		if err != nil {
			return n.fail("truncate", err)
		}
	}
	if mode, ok := in.GetMode(); ok {
		n.f.SetMode(mode)
	}
	uid, okUID := in.GetUID()
	gid, okGID := in.GetGID()
	if okUID || okGID {
		a, err := n.f.Attr()
		if err != nil {
			return n.fail("chown", err)
		}
		if !okUID {
			uid = a.UID
		}
		if !okGID {
			gid = a.GID
		}
		n.f.SetOwner(uid, gid)
	}
	if mtime, ok := in.GetMTime(); ok {
		n.f.SetModified(mtime)
	}
	return n.Getattr(ctx, h, out)
}

// Getxattr implements [fs.NodeGetxattrer].
func (n *staged) Getxattr(_ context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	v, ok := n.f.Xattr(name)
	if !ok {
		return 0, syscall.ENODATA
	}
	return fill(dest, string(v))
}

// Setxattr keeps an attribute until the commit. Access lists are not.
func (n *staged) Setxattr(_ context.Context, name string, data []byte, _ uint32) syscall.Errno {
	if strings.HasPrefix(name, "system.") {
		return syscall.EOPNOTSUPP
	}
	if data == nil {
		data = []byte{}
	}
	if err := n.f.SetXattr(name, data); err != nil {
		return n.fail("setxattr", err)
	}
	return 0
}

// Listxattr implements [fs.NodeListxattrer].
func (n *staged) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	var names strings.Builder
	for _, name := range n.f.Xattrs() {
		names.WriteString(name + "\x00")
	}
	return fill(dest, names.String())
}

// Removexattr implements [fs.NodeRemovexattrer].
func (n *staged) Removexattr(_ context.Context, name string) syscall.Errno {
	if err := n.f.SetXattr(name, nil); err != nil {
		return syscall.ENODATA
	}
	return 0
}

// Allocate implements [fs.NodeAllocater], which is asked before the handle.
func (n *staged) Allocate(ctx context.Context, h fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if sh, ok := h.(*stagedHandle); ok {
		return sh.Allocate(ctx, off, size, mode)
	}
	return syscall.EBADF
}

// stagedHandle is an open staged file. Its operations do not end with the
// request's context, which programs interrupt without meaning it.
type stagedHandle struct {
	t *tree
	h *stage.Handle
	w writers
}

func (h *stagedHandle) fail(op string, err error) syscall.Errno {
	return (&staged{t: h.t, f: h.h.File()}).fail(op, err)
}

// Read implements [fs.FileReader].
func (h *stagedHandle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.h.ReadAt(context.Background(), dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, h.fail("read", err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// Write implements [fs.FileWriter].
func (h *stagedHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	h.w.add(ctx)
	n, err := h.h.WriteAt(context.Background(), data, off)
	if err != nil {
		return 0, h.fail("write", err)
	}
	return uint32(n), 0
}

// Flush is close(2): it carries the verdict on the file, in a process that
// wrote it.
func (h *stagedHandle) Flush(ctx context.Context) syscall.Errno {
	if h.w.others(ctx) {
		return 0
	}
	if err := h.h.Flush(context.Background()); err != nil {
		return h.fail("import", err)
	}
	return 0
}

// Release implements [fs.FileReleaser].
func (h *stagedHandle) Release(context.Context) syscall.Errno {
	h.h.Release()
	return 0
}

// Fsync makes what was written durable in the spool.
func (h *stagedHandle) Fsync(context.Context, uint32) syscall.Errno {
	if err := h.h.File().Sync(); err != nil {
		return h.fail("fsync", err)
	}
	return 0
}

// Allocate is fallocate(2).
func (h *stagedHandle) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	if off > 1<<62 || size > 1<<62 {
		return syscall.EFBIG
	}
	h.w.add(ctx)
	if err := h.h.Allocate(context.Background(), int64(off), int64(size), mode); err != nil {
		return h.fail("fallocate", err)
	}
	return 0
}

// Lseek finds data and holes.
func (h *stagedHandle) Lseek(_ context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	n, err := h.h.File().Seek(int64(off), int(whence))
	if err != nil {
		return 0, fs.ToErrno(err)
	}
	return uint64(n), 0
}

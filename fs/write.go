package fs

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/codec"
	"imagefs/fs/stage"
)

// What can be written: files into images/ and into the folders of images,
// which the spool holds until they are images, and the names of images. All
// else is refused with EPERM, and with EROFS where the whole mount is read-only.

var (
	_ fs.NodeFsyncer       = (*dir)(nil)
	_ fs.NodeSetattrer     = (*dir)(nil)
	_ fs.NodeSetxattrer    = (*dir)(nil)
	_ fs.NodeRemovexattrer = (*dir)(nil)
	_ fs.NodeSetattrer     = (*file)(nil)
	_ fs.NodeSetxattrer    = (*file)(nil)
	_ fs.NodeRemovexattrer = (*file)(nil)
)

// spool returns the spool and the folder of it that d is, or the number of the
// refusal.
func (d *dir) spool() (s *stage.Spool, folder string, e syscall.Errno) {
	name := d.name.Load()
	switch {
	case d.t.cfg.Spool == nil:
		return nil, "", syscall.EROFS
	case name != nil:
		return d.t.cfg.Spool, *name, 0
	case d.images:
		return d.t.cfg.Spool, "", 0
	}
	return nil, "", syscall.EPERM
}

// pid is the thread that asks.
func pid(ctx context.Context) uint32 {
	if c, ok := fuse.FromContext(ctx); ok {
		return c.Pid
	}
	return 0
}

// staged finds a file that is being copied in; no node without one.
func (d *dir) staged(ctx context.Context, name string) (child, error) {
	s, folder, e := d.spool()
	if e != 0 {
		return child{}, nil
	}
	f := s.Lookup(folder, name, pid(ctx))
	if f == nil {
		return child{}, nil
	}
	return d.t.staged(f)
}

// withStaged adds to a listing what only the spool has.
func (d *dir) withStaged(es []fuse.DirEntry) []fuse.DirEntry {
	s, folder, e := d.spool()
	if e != 0 {
		return es
	}
	seen := make(map[string]bool, len(es))
	for _, e := range es {
		seen[e.Name] = true
	}
	add := func(name string, mode uint32, ino uint64) {
		if !seen[name] {
			es = append(es, entry(name, mode, ino))
		}
		seen[name] = true
	}
	for _, name := range s.List(folder) {
		if f := s.Lookup(folder, name, 0); f != nil {
			add(name, syscall.S_IFREG, derive("staged", f.ID))
		}
	}
	if folder == "" {
		for _, name := range s.Folders() {
			add(name, syscall.S_IFDIR, derive("image", name))
		}
	}
	return es
}

// Create makes a staged file.
func (d *dir) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	s, folder, e := d.spool()
	if e != 0 {
		return nil, nil, 0, e
	}
	f, err := s.Create(folder, name)
	if err != nil {
		return nil, nil, 0, d.t.fail("create", d.path()+"/"+name, err)
	}
	f.SetMode(mode)
	if c, ok := fuse.FromContext(ctx); ok {
		f.SetOwner(c.Uid, c.Gid)
	}
	h, err := f.Open(ctx, int(flags)&^syscall.O_TRUNC)
	if err != nil {
		return nil, nil, 0, d.t.fail("create", d.path()+"/"+name, err)
	}
	c, err := d.t.staged(f)
	if err != nil {
		h.Release()
		return nil, nil, 0, d.t.fail("create", d.path()+"/"+name, err)
	}
	n := d.enter(ctx, c, out)
	return n, &stagedHandle{t: d.t, h: h}, 0, 0
}

// Mkdir makes a draft: an image without a disk.
func (d *dir) Mkdir(_ context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	s, folder, e := d.spool()
	if e != 0 {
		return nil, e
	}
	if folder != "" {
		return nil, syscall.EPERM
	}
	if err := s.Mkdir(name); err != nil {
		return nil, d.t.fail("mkdir", d.path()+"/"+name, err)
	}
	c, err := d.t.imageDir(name).asChild()
	if err != nil {
		return nil, d.t.fail("mkdir", d.path()+"/"+name, err)
	}
	return d.enter(context.Background(), c, out), 0
}

// Rmdir removes a draft; images are removed with a command.
func (d *dir) Rmdir(_ context.Context, name string) syscall.Errno {
	s, folder, e := d.spool()
	if e != 0 {
		return e
	}
	if folder != "" {
		return syscall.EPERM
	}
	if err := s.Rmdir(name); err != nil {
		return d.t.fail("rmdir", d.path()+"/"+name, err)
	}
	return 0
}

// Unlink removes a staged or refused file; disks are removed with a command.
func (d *dir) Unlink(_ context.Context, name string) syscall.Errno {
	s, folder, e := d.spool()
	if e != 0 {
		return e
	}
	if s.Lookup(folder, name, 0) == nil {
		return syscall.EPERM
	}
	if err := s.Unlink(folder, name); err != nil {
		return d.t.fail("unlink", d.path()+"/"+name, err)
	}
	return 0
}

// Rename moves staged files, and images within images/.
func (d *dir) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	s, folder, e := d.spool()
	if e != 0 {
		return e
	}
	to, ok := newParent.(*dir)
	if !ok {
		return syscall.EPERM
	}
	_, toFolder, e := to.spool()
	if e != 0 {
		return e
	}
	const noReplace = 1
	if flags&^noReplace != 0 {
		return syscall.EINVAL
	}
	if flags&noReplace != 0 {
		if c, err := to.staged(ctx, newName); err == nil && c.node != nil {
			return syscall.EEXIST
		}
		if _, err := to.find(ctx, newName); err == nil {
			return syscall.EEXIST
		}
	}
	var err error
	switch {
	case s.Lookup(folder, name, 0) != nil:
		err = s.Rename(context.WithoutCancel(ctx), folder, name, toFolder, newName)
	case folder == "" && toFolder == "" && (d.t.cat.Has(name) || s.HasFolder(name)):
		if err = s.RenameFolder(context.WithoutCancel(ctx), name, newName); err == nil {
			if n := d.GetChild(name); n != nil {
				if moved, ok := n.Operations().(*dir); ok && moved.name.Load() != nil {
					moved.name.Store(&newName)
				}
			}
		}
	default:
		return syscall.EPERM
	}
	if err != nil {
		return d.t.fail("rename", d.path()+"/"+name, err)
	}
	return 0
}

// Setattr of a folder is accepted and changes nothing: copying programs set
// owner, mode and times of what they copied.
func (d *dir) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if _, _, e := d.spool(); e != 0 {
		return e
	}
	if _, ok := in.GetSize(); ok {
		return syscall.EISDIR
	}
	return d.Getattr(ctx, h, out)
}

// Setxattr accepts what copying programs set, but for access lists, in whose
// place they then set the mode, and keeps nothing.
func (d *dir) Setxattr(_ context.Context, name string, _ []byte, _ uint32) syscall.Errno {
	if _, _, e := d.spool(); e != 0 {
		return e
	}
	if strings.HasPrefix(name, "system.") {
		return syscall.EOPNOTSUPP
	}
	return 0
}

// Removexattr accepts what Setxattr does.
func (d *dir) Removexattr(ctx context.Context, name string) syscall.Errno {
	return d.Setxattr(ctx, name, nil, 0)
}

// Fsync of a folder commits what waits in it for a quiet period.
func (d *dir) Fsync(ctx context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	s, folder, e := d.spool()
	if e != 0 {
		return 0 // nothing is ever left to be written
	}
	if err := s.CommitQuiet(context.WithoutCancel(ctx), folder); err != nil {
		return d.t.fail("fsync", d.path(), err)
	}
	return 0
}

// replace is the answer to opening a disk for writing. What is written is a
// new version with an inode of its own, since this one keeps its bytes for
// those who read it: ESTALE makes the kernel look the name up again, which then
// finds that inode for the thread that asked.
func (n *file) replace(ctx context.Context, flags uint32) syscall.Errno {
	s := n.t.cfg.Spool
	truncates := flags&syscall.O_TRUNC != 0
	if s == nil || !truncates && (flags&syscall.O_ACCMODE == syscall.O_RDWR || n.view.Name() != n.disk.Imported()) {
		return syscall.EROFS
	}
	name := fmt.Sprintf("disk%d.%s", n.disk.Number, n.view.Name())
	if s.Lookup(n.im.Name, name, pid(ctx)) != nil {
		return syscall.EROFS // looked up again and found nothing: not by a name in images/
	}
	var base codec.Disk // nil where nothing of it is kept
	if !truncates {
		d, err := n.t.opener.Open(ctx, n.im, n.disk)
		if err != nil {
			return n.t.fail("open", n.path(), err)
		}
		f, err := d.File(ctx, n.view)
		if err != nil {
			return n.t.fail("open", n.path(), err)
		}
		base = f.Disk
	}
	if _, err := s.Replace(n.im.Name, name, pid(ctx), base); err != nil {
		return n.t.fail("open", n.path(), err)
	}
	return syscall.ESTALE
}

// Setattr keeps the time of the last modification of an imported disk. Mode
// and owner are those of the mount: setting them is accepted, as copying
// programs do, and changes nothing.
func (n *file) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if n.t.cfg.Spool == nil {
		return syscall.EROFS
	}
	if _, ok := in.GetSize(); ok {
		return syscall.EPERM
	}
	if mtime, ok := in.GetMTime(); ok && n.view.Name() == n.disk.Imported() && !mtime.Equal(n.mtime()) {
		if err := n.t.cat.Touch(ctx, n.im.Name, n.disk.Number, mtime); err != nil {
			return n.t.fail("utimens", n.path(), err)
		}
		n.touch(mtime)
	}
	return n.Getattr(ctx, h, out)
}

func (n *file) mtime() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attr.ModTime()
}

func (n *file) touch(mtime time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attr.SetTimes(nil, &mtime, &mtime)
}

// Setxattr accepts the attributes that copying programs set, and keeps none:
// a disk's are what the catalog says of it.
func (n *file) Setxattr(context.Context, string, []byte, uint32) syscall.Errno {
	return n.t.xattrErrno()
}

// Removexattr accepts what Setxattr does.
func (n *file) Removexattr(context.Context, string) syscall.Errno { return n.t.xattrErrno() }

func (t *tree) xattrErrno() syscall.Errno {
	if t.cfg.Spool == nil {
		return syscall.EROFS
	}
	return 0
}

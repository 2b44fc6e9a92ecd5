package fs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/codec"
)

// dir is a folder: what differs between folders is how a child is found and
// listed, and both are functions.
type dir struct {
	fs.Inode
	readOnly
	t      *tree
	ino    uint64
	mtime  func() time.Time
	lookup func(ctx context.Context, name string) (child, error)
	list   func(ctx context.Context) ([]fuse.DirEntry, error)
	path   string
	whole  bool // list needs all images

	// stage tells the folder of the spool that files written here belong to;
	// nil where nothing can be written.
	stage   func() string
	renamed func(name string) // of the folder itself; nil if it cannot be
}

// child is what a look-up finds: a node and its attributes.
type child struct {
	node fs.InodeEmbedder
	attr fuse.Attr
	keep time.Duration // how long the kernel may believe attr
}

var (
	_ fs.NodeLookuper  = (*dir)(nil)
	_ fs.NodeReaddirer = (*dir)(nil)
	_ fs.NodeGetattrer = (*dir)(nil)
	_ fs.NodeStatfser  = (*dir)(nil)
)

func (d *dir) asChild() (child, error) {
	c := child{node: d, keep: nameTimeout}
	d.t.dirAttr(&c.attr, d.ino, d.mtime())
	return c, nil
}

// Lookup finds a child by name.
func (d *dir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx = context.WithoutCancel(ctx)
	c, err := d.staged(ctx, name)
	if err == nil && c.node == nil {
		c, err = d.lookup(ctx, name)
	}
	if err != nil {
		return nil, d.t.fail("lookup", d.path+"/"+name, err)
	}
	return d.enter(ctx, c, out), 0
}

// enter makes the inode of a child and tells the kernel of it.
func (d *dir) enter(ctx context.Context, c child, out *fuse.EntryOut) *fs.Inode {
	out.Attr = c.attr
	out.SetEntryTimeout(min(nameTimeout, c.keep))
	out.SetAttrTimeout(c.keep)
	n := d.NewInode(ctx, c.node, fs.StableAttr{Mode: c.attr.Mode & syscall.S_IFMT, Ino: c.attr.Ino})
	if f, ok := n.Operations().(*file); ok {
		f.set(c.attr) // an older node of the same version may know another time
	}
	return n
}

// Readdir lists the children. Who is killed does not wait for a first listing
// of the store, which may take long.
func (d *dir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	if d.whole {
		if err := d.t.cat.Ready(ctx); err != nil {
			return nil, d.t.fail("readdir", d.path, err)
		}
	}
	ctx = context.WithoutCancel(ctx)
	es, err := d.list(ctx)
	if err != nil {
		return nil, d.t.fail("readdir", d.path, err)
	}
	return fs.NewListDirStream(d.withStaged(es)), 0
}

// Getattr describes the folder.
func (d *dir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.t.dirAttr(&out.Attr, d.ino, d.mtime())
	out.SetTimeout(nameTimeout)
	return 0
}

// Statfs tells of the disk of the spool, where files lie until the store has
// them, or of a full file system of the size of the catalog.
func (d *dir) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, 255
	out.Blocks = uint64(codec.Ceil(d.t.cat.Bytes(), block))
	if s := d.t.cfg.Spool; s != nil {
		if size, free, err := s.Space(); err == nil {
			out.Blocks, out.Bfree, out.Bavail = uint64(size/block), uint64(free/block), uint64(free/block)
		}
	}
	out.Files = uint64(d.t.cat.Count())
	return 0
}

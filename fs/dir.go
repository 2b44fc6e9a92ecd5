package fs

import (
	"context"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/codec"
)

// dir is a folder: what differs between folders is how a child is found and
// listed, and both are functions. It is small, for the kernel may know that of
// every image.
type dir struct {
	fs.Inode
	readOnly
	t   *tree
	ino uint64

	// name is that of the image whose folder this is, which a rename changes;
	// nil for all other folders. The others have a path and functions.
	name   atomic.Pointer[string]
	at     string
	lookup func(ctx context.Context, name string) (child, error)
	list   func(ctx context.Context) ([]fuse.DirEntry, error)
	whole  bool // list needs all images
	images bool // this is the folder of all images
}

// path is where the folder is, from the mount on.
func (d *dir) path() string {
	if name := d.name.Load(); name != nil {
		return "images/" + *name
	}
	return d.at
}

// find finds a child that is no staged file.
func (d *dir) find(ctx context.Context, name string) (child, error) {
	if image := d.name.Load(); image != nil {
		return d.t.lookupFile(ctx, *image, name)
	}
	return d.lookup(ctx, name)
}

// children are those that are no staged files.
func (d *dir) children(ctx context.Context) ([]fuse.DirEntry, error) {
	image := d.name.Load()
	if image == nil {
		return d.list(ctx)
	}
	there, err := d.t.cat.Exists(ctx, *image)
	if err != nil || !there {
		return nil, err // a draft
	}
	return d.t.listFiles(ctx, *image)
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
	d.t.dirAttr(&c.attr, d.ino)
	return c, nil
}

// Lookup finds a child by name.
func (d *dir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx = context.WithoutCancel(ctx)
	c, err := d.staged(ctx, name)
	if err == nil && c.node == nil {
		c, err = d.find(ctx, name)
	}
	if err != nil {
		return nil, d.t.fail("lookup", d.path()+"/"+name, err)
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
			return nil, d.t.fail("readdir", d.path(), err)
		}
	}
	ctx = context.WithoutCancel(ctx)
	es, err := d.children(ctx)
	if err != nil {
		return nil, d.t.fail("readdir", d.path(), err)
	}
	return fs.NewListDirStream(d.withStaged(es)), 0
}

// Getattr describes the folder.
func (d *dir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.t.dirAttr(&out.Attr, d.ino)
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

package fs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/codec"
	"imagefs/fs/image"
	"imagefs/remote/catalog"
)

// pack is an image as one file. Like a [file] it holds what names the version,
// not what is open.
type pack struct {
	fs.Inode
	readOnly
	t    *tree
	im   *catalog.Image
	kind codec.Package
	fixed
}

var (
	_ fs.NodeOpener    = (*pack)(nil)
	_ fs.NodeGetattrer = (*pack)(nil)
)

func (t *tree) lookupPack(ctx context.Context, im *catalog.Image, kind codec.Package) (child, error) {
	p, err := t.opener.Package(ctx, im, kind)
	if errors.Is(err, image.ErrNotShown) {
		return child{}, errNoEntry
	} else if err != nil {
		return child{}, err
	}
	a := t.fixed(syscall.S_IFREG, p.Ino, p.Size(), p.ModTime)
	a.Blocks, a.Blksize = p.Blocks, blksize
	n := &pack{t: t, im: im, kind: kind, fixed: fixed{attr: a, keep: nameTimeout}}
	return n.child(n), nil
}

// packKind finds a kind of package by its name; nil for none.
func (t *tree) packKind(name string) codec.Package {
	for _, p := range t.cfg.Packages {
		if p.Name() == name {
			return p
		}
	}
	return nil
}

func (n *pack) path() string { return "images/" + n.im.Name + "/" + n.im.Name + "." + n.kind.Name() }

// Open opens the package of the version that was looked up.
func (n *pack) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	switch flags & syscall.O_ACCMODE {
	case syscall.O_RDONLY:
	case syscall.O_WRONLY:
		if n.t.cfg.Spool != nil {
			err := fmt.Errorf("image %q is there: remove it first (imagefs rm), or copy to another name: %w", n.im.Name, iofs.ErrExist)
			return nil, 0, n.t.fail("open", n.path(), err)
		}
		fallthrough
	default:
		return nil, 0, syscall.EROFS
	}
	p, err := n.t.opener.Package(context.WithoutCancel(ctx), n.im, n.kind)
	if err != nil {
		return nil, 0, n.t.fail("open", n.path(), err)
	}
	return &handle{n.t, n.path(), p}, fuse.FOPEN_KEEP_CACHE, 0
}

// Fsync does nothing: all of the image is stored.
func (n *pack) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// lookupPackFormat finds a package under by-format/.
func (t *tree) lookupPackFormat(kind codec.Package) (child, error) {
	suffix := "." + kind.Name()
	d := t.folder("by-format/"+kind.Name(), func(ctx context.Context, file string) (child, error) {
		name, ok := strings.CutSuffix(file, suffix)
		if !ok {
			return child{}, errNoEntry
		}
		im, err := t.cat.Lookup(ctx, name)
		if err != nil {
			return child{}, err
		}
		return t.lookupPack(ctx, im, kind)
	}, func(ctx context.Context) ([]fuse.DirEntry, error) {
		var es []fuse.DirEntry
		err := t.cat.All(ctx, func(im *catalog.Image) error {
			// An image that the package cannot hold is left out; one that
			// cannot be read is listed, so that a backup says so.
			if t.opener.HiddenPackage(im, kind) {
				return nil
			}
			file := im.Name + suffix
			es = append(es, entry(file, syscall.S_IFREG, derive("by-format", file)))
			return nil
		})
		return es, err
	})
	d.whole = true
	return d.asChild()
}

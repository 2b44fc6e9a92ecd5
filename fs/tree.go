package fs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	iofs "io/fs"
	"log/slog"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/codec"
	"imagefs/fs/image"
	"imagefs/remote/catalog"
)

const (
	nameTimeout = time.Second // how long the kernel believes a name
	fileTimeout = time.Hour   // how long it believes a file's attributes: they never change
)

// tree is what all nodes share.
type tree struct {
	cfg    Config
	cat    *catalog.Catalog
	opener *image.Opener
	log    *slog.Logger
	status *status
}

// view returns the view of that name among those that are shown.
func (t *tree) view(name string) codec.View {
	for _, v := range t.opener.Views() {
		if v.Name() == name {
			return v
		}
	}
	return nil
}

// fail logs err and returns its number. ENOENT is an answer, not a failure.
func (t *tree) fail(op, path string, err error) syscall.Errno {
	e, known := Errno(err)
	switch {
	case e == syscall.ENOENT || e == syscall.EINTR:
	case !known:
		t.log.Error("error without a number of its own", "op", op, "path", path, "err", err)
		t.status.record(op, path, err)
	default:
		t.log.Warn(op+" failed", "op", op, "path", path, "err", err)
		t.status.record(op, path, err)
	}
	return e
}

// derive makes an inode number of what a node stands for.
func derive(kind string, parts ...string) uint64 {
	var h hash.Hash = sha256.New()
	fmt.Fprintf(h, "%q %q", kind, parts)
	return image.Ino(h.Sum(nil))
}

func (t *tree) owner(a *fuse.Attr) {
	a.Owner = fuse.Owner{Uid: t.cfg.UID, Gid: t.cfg.GID}
}

func (t *tree) dirAttr(a *fuse.Attr, ino uint64, mtime time.Time) {
	a.Mode = syscall.S_IFDIR | 0o555&^t.cfg.Umask
	a.Ino = ino
	a.Nlink = 2
	a.Blksize = 4096
	a.SetTimes(&mtime, &mtime, &mtime)
	t.owner(a)
}

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
	c, err := d.lookup(ctx, name)
	if err != nil {
		return nil, d.t.fail("lookup", d.path+"/"+name, err)
	}
	out.Attr = c.attr
	out.SetEntryTimeout(nameTimeout)
	out.SetAttrTimeout(c.keep)
	return d.NewInode(ctx, c.node, fs.StableAttr{Mode: c.attr.Mode & syscall.S_IFMT, Ino: c.attr.Ino}), 0
}

// Readdir lists the children.
func (d *dir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	es, err := d.list(ctx)
	if err != nil {
		return nil, d.t.fail("readdir", d.path, err)
	}
	return fs.NewListDirStream(es), 0
}

// Getattr describes the folder.
func (d *dir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.t.dirAttr(&out.Attr, d.ino, d.mtime())
	out.SetTimeout(nameTimeout)
	return 0
}

// Statfs tells a full, read-only file system of the size of the catalog.
func (d *dir) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, 255
	out.Blocks = uint64(codec.Ceil(d.t.cat.Bytes(), block))
	out.Files = uint64(len(d.t.cat.Names()))
	return 0
}

var errNoEntry = iofs.ErrNotExist

func entry(name string, mode uint32, ino uint64) fuse.DirEntry {
	return fuse.DirEntry{Name: name, Mode: mode, Ino: ino}
}

// root is the top folder.
func (t *tree) root() *dir {
	images := t.folder("images", t.lookupImage, t.listImages)
	formats := t.folder("by-format", t.lookupFormat, t.listFormats)
	ids := t.folder("by-id", t.lookupID, t.listIDs)
	hidden := t.status.folder(t)
	return t.folder("", func(_ context.Context, name string) (child, error) {
		for _, d := range []*dir{images, formats, ids, hidden} {
			if d.path == name {
				return d.asChild()
			}
		}
		return child{}, errNoEntry
	}, func(context.Context) ([]fuse.DirEntry, error) {
		var es []fuse.DirEntry
		for _, d := range []*dir{images, formats, ids} {
			es = append(es, entry(d.path, syscall.S_IFDIR, d.ino))
		}
		return es, nil
	})
}

func (t *tree) folder(path string, lookup func(context.Context, string) (child, error), list func(context.Context) ([]fuse.DirEntry, error)) *dir {
	return &dir{t: t, path: path, ino: derive("folder", path), mtime: t.cat.ModTime, lookup: lookup, list: list}
}

// images/

func (t *tree) listImages(context.Context) ([]fuse.DirEntry, error) {
	names := t.cat.Names()
	es := make([]fuse.DirEntry, len(names))
	for i, name := range names {
		es[i] = entry(name, syscall.S_IFDIR, derive("image", name))
	}
	return es, nil
}

func (t *tree) lookupImage(_ context.Context, name string) (child, error) {
	if !t.cat.Has(name) {
		return child{}, errNoEntry
	}
	d := &dir{t: t, path: "images/" + name, ino: derive("image", name), mtime: t.cat.ModTime}
	d.lookup = func(ctx context.Context, file string) (child, error) { return t.lookupFile(ctx, name, file) }
	d.list = func(ctx context.Context) ([]fuse.DirEntry, error) { return t.listFiles(ctx, name) }
	return d.asChild()
}

// images/NAME/

func (t *tree) listFiles(ctx context.Context, name string) ([]fuse.DirEntry, error) {
	im, err := t.cat.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	var es []fuse.DirEntry
	broken := im.Err != nil
	for _, cd := range im.Disks {
		d, err := t.opener.Open(ctx, im, cd)
		if err != nil {
			if e := t.fail("open", "images/"+name, err); e == syscall.EINTR {
				return nil, err
			}
			broken = true
			continue
		}
		for _, v := range t.opener.Views() {
			f, err := d.File(ctx, v)
			if errors.Is(err, image.ErrNotShown) {
				continue
			} else if err != nil {
				return nil, err
			}
			es = append(es, entry(fmt.Sprintf("disk%d.%s", cd.Number, v.Name()), syscall.S_IFREG, f.Ino))
		}
	}
	if broken {
		es = append(es, entry("error", syscall.S_IFREG, derive("error", name)))
	}
	return append(es, entry("image.json", syscall.S_IFREG, derive("json", name))), nil
}

func (t *tree) lookupFile(ctx context.Context, name, file string) (child, error) {
	im, err := t.cat.Lookup(ctx, name)
	if err != nil {
		return child{}, err
	}
	switch file {
	case "image.json":
		return t.text("json", name, im.JSON, im.ModTime), nil
	case "error":
		msg := t.problems(ctx, im)
		if msg == "" {
			return child{}, errNoEntry
		}
		return t.text("error", name, []byte(msg), im.ModTime), nil
	}
	stem, ext, ok := strings.Cut(file, ".")
	number, isDisk := strings.CutPrefix(stem, "disk")
	n, err := strconv.Atoi(number)
	if !ok || !isDisk || err != nil || strconv.Itoa(n) != number {
		return child{}, errNoEntry
	}
	return t.lookupDisk(ctx, im, n, ext)
}

// problems says why an image is not shown whole, a line each; "" if it is.
func (t *tree) problems(ctx context.Context, im *catalog.Image) string {
	if im.Err != nil {
		return im.Err.Error() + "\n"
	}
	var b strings.Builder
	for _, cd := range im.Disks {
		if _, err := t.opener.Open(ctx, im, cd); err != nil {
			fmt.Fprintf(&b, "disk %d: %v\n", cd.Number, err)
		}
	}
	return b.String()
}

func (t *tree) lookupDisk(ctx context.Context, im *catalog.Image, n int, ext string) (child, error) {
	v := t.view(ext)
	cd, ok := im.Disk(n)
	if v == nil || !ok {
		return child{}, errNoEntry
	}
	d, err := t.opener.Open(ctx, im, cd)
	if err != nil {
		return child{}, err
	}
	f, err := d.File(ctx, v)
	if err != nil {
		return child{}, err
	}
	return t.file(im, cd, v, f), nil
}

// by-format/

func (t *tree) listFormats(context.Context) ([]fuse.DirEntry, error) {
	var es []fuse.DirEntry
	for _, v := range t.opener.Views() {
		es = append(es, entry(v.Name(), syscall.S_IFDIR, derive("folder", "by-format/"+v.Name())))
	}
	return es, nil
}

func (t *tree) lookupFormat(_ context.Context, name string) (child, error) {
	v := t.view(name)
	if v == nil {
		return child{}, errNoEntry
	}
	suffix := "." + v.Name()
	return t.folder("by-format/"+name, func(ctx context.Context, file string) (child, error) {
		stem, ok := strings.CutSuffix(file, suffix)
		dash := strings.LastIndexByte(stem, '-')
		if !ok || dash < 0 {
			return child{}, errNoEntry
		}
		n, err := strconv.Atoi(stem[dash+1:])
		if err != nil || strconv.Itoa(n) != stem[dash+1:] {
			return child{}, errNoEntry
		}
		im, err := t.cat.Lookup(ctx, stem[:dash])
		if err != nil {
			return child{}, err
		}
		return t.lookupDisk(ctx, im, n, name)
	}, func(ctx context.Context) ([]fuse.DirEntry, error) {
		var es []fuse.DirEntry
		err := t.cat.All(ctx, func(im *catalog.Image) error {
			for _, d := range im.Disks {
				// A disk known not to fit the format is left out; one that
				// cannot be read is listed, so that a backup says so.
				if im.Err == nil && t.opener.Hidden(im, d, v) {
					continue
				}
				file := fmt.Sprintf("%s-%d%s", im.Name, d.Number, suffix)
				es = append(es, entry(file, syscall.S_IFREG, derive("by-format", file)))
			}
			return nil
		})
		return es, err
	}).asChild()
}

// by-id/

func (t *tree) listIDs(ctx context.Context) ([]fuse.DirEntry, error) {
	var es []fuse.DirEntry
	err := t.cat.All(ctx, func(im *catalog.Image) error {
		id := catalog.FormatID(im.ID)
		es = append(es, entry(id, syscall.S_IFLNK, derive("id", id)))
		return nil
	})
	return es, err
}

func (t *tree) lookupID(ctx context.Context, name string) (child, error) {
	if _, err := catalog.ParseID(name); err != nil {
		return child{}, errNoEntry
	}
	var found *catalog.Image
	err := t.cat.All(ctx, func(im *catalog.Image) error {
		if catalog.FormatID(im.ID) == name && found == nil {
			found = im
		}
		return nil
	})
	if err != nil {
		return child{}, err
	}
	if found == nil {
		return child{}, errNoEntry
	}
	return t.link(name, "../images/"+found.Name, found.ModTime), nil
}

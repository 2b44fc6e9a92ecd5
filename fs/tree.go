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

	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/codec"
	"imagefs/fs/image"
	"imagefs/fs/stage"
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

// view returns the view of that name, nil if there is none.
func view(views []codec.View, name string) codec.View {
	for _, v := range views {
		if v.Name() == name {
			return v
		}
	}
	return nil
}

// fail logs err and returns its number. ENOENT is an answer, not a failure.
func (t *tree) fail(op, path string, err error) syscall.Errno {
	e, known := Errno(err)
	var reported *stage.Reported
	switch {
	case e == syscall.ENOENT || e == syscall.EINTR || errors.Is(err, stage.ErrGone) || errors.As(err, &reported):
	case !known:
		t.log.Error("error without a number of its own", "op", op, "path", path, "err", err)
		t.status.Record(op, path, err)
	default:
		t.log.Warn(op+" failed", "op", op, "path", path, "err", err)
		t.status.Record(op, path, err)
	}
	return e
}

// write is bit where the mount can be written to.
func (t *tree) write(bit uint32) uint32 {
	if t.cfg.Spool == nil {
		return 0
	}
	return bit
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

func (t *tree) dirAttr(a *fuse.Attr, ino uint64) {
	mtime := t.cat.ModTime()
	a.Mode = syscall.S_IFDIR | (0o555|t.write(0o200))&^t.cfg.Umask
	a.Ino = ino
	a.Nlink = 2
	a.Blksize = 4096
	a.SetTimes(&mtime, &mtime, &mtime)
	t.owner(a)
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
	images.images, images.whole, ids.whole = true, true, true
	hidden := t.status.folder(t)
	return t.folder("", func(_ context.Context, name string) (child, error) {
		for _, d := range []*dir{images, formats, ids, hidden} {
			if d.at == name {
				return d.asChild()
			}
		}
		return child{}, errNoEntry
	}, func(context.Context) ([]fuse.DirEntry, error) {
		var es []fuse.DirEntry
		for _, d := range []*dir{images, formats, ids} {
			es = append(es, entry(d.at, syscall.S_IFDIR, d.ino))
		}
		return es, nil
	})
}

func (t *tree) folder(path string, lookup func(context.Context, string) (child, error), list func(context.Context) ([]fuse.DirEntry, error)) *dir {
	return &dir{t: t, at: path, ino: derive("folder", path), lookup: lookup, list: list}
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

func (t *tree) lookupImage(ctx context.Context, name string) (child, error) {
	if t.cfg.Spool != nil && t.cfg.Spool.HasFolder(name) {
		return t.imageDir(name).asChild()
	}
	switch there, err := t.cat.Exists(ctx, name); {
	case err != nil:
		return child{}, err
	case there:
		return t.imageDir(name).asChild()
	}
	return t.lookupShort(ctx, name)
}

// imageDir is the folder of an image, also of one that has no disk yet.
func (t *tree) imageDir(name string) *dir {
	d := &dir{t: t, ino: derive("image", name)}
	d.name.Store(&name)
	return d
}

// lookupShort finds images/NAME.EXT, the short way of copying disk 0 of an
// image in, or a whole image, which is not listed.
func (t *tree) lookupShort(ctx context.Context, name string) (child, error) {
	target, err := stage.ParseName(t.cfg.Exts, "", name)
	if err != nil {
		return child{}, errNoEntry
	}
	im, err := t.cat.Lookup(ctx, target.Image)
	if err != nil {
		return child{}, err
	}
	if target.Package != "" {
		if kind := t.packKind(target.Package); kind != nil {
			return t.lookupPack(ctx, im, kind)
		}
		return child{}, errNoEntry
	}
	cd, ok := im.Disk(0)
	if !ok || cd.Imported() != target.Format {
		return child{}, errNoEntry
	}
	return t.lookupDisk(ctx, im, 0, target.Format)
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
		for _, v := range t.opener.ViewsOf(cd) {
			f, err := d.File(ctx, v)
			if errors.Is(err, image.ErrNotShown) {
				continue
			} else if err != nil {
				return nil, err
			}
			es = append(es, entry(fmt.Sprintf("disk%d.%s", cd.Number, v.Name()), syscall.S_IFREG, f.Ino))
		}
	}
	for _, kind := range t.cfg.Packages {
		if broken {
			break // the image is not whole
		}
		switch p, err := t.opener.Package(ctx, im, kind); {
		case errors.Is(err, image.ErrNotShown):
		case err != nil:
			return nil, err
		default:
			es = append(es, entry(im.Name+"."+kind.Name(), syscall.S_IFREG, p.Ino))
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
	if ext, ok := strings.CutPrefix(file, im.Name+"."); ok {
		if kind := t.packKind(ext); kind != nil {
			return t.lookupPack(ctx, im, kind)
		}
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
	cd, ok := im.Disk(n)
	if !ok {
		return child{}, errNoEntry
	}
	views := t.opener.ViewsOf(cd)
	v := view(views, ext)
	if v == nil {
		v = view(views, t.cfg.Exts.Disks[strings.ToLower(ext)]) // disk0.img, say: not listed
	}
	if v == nil {
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
	for _, p := range t.cfg.Packages {
		es = append(es, entry(p.Name(), syscall.S_IFDIR, derive("folder", "by-format/"+p.Name())))
	}
	return es, nil
}

func (t *tree) lookupFormat(_ context.Context, name string) (child, error) {
	if kind := t.packKind(name); kind != nil {
		return t.lookupPackFormat(kind)
	}
	v := view(t.opener.Views(), name)
	if v == nil {
		return child{}, errNoEntry
	}
	suffix := "." + v.Name()
	d := t.folder("by-format/"+name, func(ctx context.Context, file string) (child, error) {
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
	})
	d.whole = true
	return d.asChild()
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

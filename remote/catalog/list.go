package catalog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode/utf8"

	"imagefs/remote"
)

// deletedFolder holds the entries of deleted images, NAME~UUID.json each, and
// those that only hide adopted objects.
const deletedFolder = "deleted/"

func entryKey(name string) string { return Folder + name + suffix }

// deletedKey is where the entry of an image goes that is deleted.
func deletedKey(name string, id [16]byte) string {
	return deletedFolder + cut(name) + "~" + FormatID(id) + suffix
}

// hideKey is where an entry lies that keeps the objects at the top that make
// up an image of that name from being adopted.
func hideKey(name string) string { return deletedKey(name, adoptedID(name)) }

// cut shortens a name, where it must, so that it fits a deleted key.
func cut(name string) string {
	const most = 150
	if len(name) <= most {
		return name
	}
	end := most
	for !utf8.RuneStart(name[end]) {
		end--
	}
	return name[:end]
}

// isMark reports whether an object is what an entry that went away leaves: an
// empty object, which can be put conditionally where a removal cannot.
func isMark(o remote.Object) bool { return o.Size == 0 }

// listing is what a look at the store found.
type listing struct {
	records map[string]*record
	adopted map[string]*Image
	bytes   int64
	newest  time.Time
}

// list lists the store: the entries before the deleted ones before the top,
// so that no order of another's steps shows an object as adopted that is not.
func (c *Catalog) list(ctx context.Context) (*listing, error) {
	l := &listing{records: make(map[string]*record)}
	for o, err := range c.store.List(ctx, Folder) {
		if err != nil {
			return nil, fmt.Errorf("list the entries: %w", err)
		}
		name, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, Folder), suffix)
		if !ok || CheckName(name) != nil {
			continue
		}
		l.newest = later(l.newest, o.ModTime)
		if !isMark(o) {
			l.records[name] = &record{entry: o}
		}
	}
	deleted := make(map[string]remote.Object)
	for o, err := range c.store.List(ctx, deletedFolder) {
		if err != nil {
			return nil, fmt.Errorf("list the deleted entries: %w", err)
		}
		l.newest = later(l.newest, o.ModTime)
		deleted[o.Key] = o
	}
	cs, err := c.top(ctx, l)
	if err != nil {
		return nil, err
	}
	l.adopted = adopt(cs)
	for name, im := range l.adopted {
		if l.records[name] != nil {
			continue
		}
		hidden, err := c.hides(ctx, deleted[hideKey(name)], im)
		if err != nil {
			return nil, err
		}
		if hidden {
			continue
		}
		if o := deleted[hideKey(name)]; !isMark(o) {
			im.renew()
		}
		l.records[name] = &record{image: im}
	}
	return l, nil
}

// top lists the candidates for adoption.
func (c *Catalog) top(ctx context.Context, l *listing) ([]candidate, error) {
	var cs []candidate
	for o, err := range c.store.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("list the store: %w", err)
		}
		l.bytes += o.Size
		if cand, ok := parse(o, c.exts); ok {
			cs = append(cs, cand)
			l.newest = later(l.newest, o.ModTime)
		}
	}
	return cs, nil
}

// hides reports whether the deleted entry o, which may be none, hides an
// adopted image: unless objects of it were put since. Only if they may be newer
// is the entry read.
func (c *Catalog) hides(ctx context.Context, o remote.Object, im *Image) (bool, error) {
	if isMark(o) {
		return false, nil
	}
	if im.ModTime.Before(o.ModTime) {
		return true, nil
	}
	e, _, err := readEntry(ctx, c.store, o)
	switch {
	case errors.Is(err, errEntry) || errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the deleted entries: %w", err)
	}
	return e.adoptedFrom(im), nil
}

// renew gives an adopted image an identity of its objects: that of its name
// went with the image that was renamed or removed before.
func (im *Image) renew() {
	h := sha256.New()
	fmt.Fprintf(h, "imagefs adopted image 2\x00%s", im.Name)
	for _, d := range im.Disks {
		fmt.Fprintf(h, "\x00%s\x00%s\x00%d", d.Object.Key, d.Object.ETag, d.Object.ModTime.UnixNano())
	}
	im.ID = hashID(h.Sum(nil))
	b, err := format(describe(im))
	if im.JSON = b; im.Err == nil {
		im.Err = err
	}
}

// adoptedFrom reports whether every object of im is among those that e was
// adopted from.
func (e *Entry) adoptedFrom(im *Image) bool {
	for _, d := range im.Disks {
		if !e.hasAdopted(d.Object) {
			return false
		}
	}
	return true
}

func (e *Entry) hasAdopted(o remote.Object) bool {
	for _, a := range e.Adopted {
		if a.is(o) {
			return true
		}
	}
	return false
}

// errEntry says that an object was read and is no valid entry.
var errEntry = errors.New("not a valid entry")

// readEntry reads the entry of a version and the document it stands in.
func readEntry(ctx context.Context, store remote.Store, o remote.Object) (*Entry, []byte, error) {
	if o.Size > maxEntry {
		return nil, nil, fmt.Errorf("%w: %w", errEntry, tooLong(o))
	}
	doc := make([]byte, o.Size)
	if err := store.ReadRange(ctx, o, doc, 0); err != nil {
		return nil, nil, err
	}
	e, err := ParseEntry(doc)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %q: %w", errEntry, o.Key, err)
	}
	return e, doc, nil
}

// describe is the entry that an adopted image would have, for people and
// scripts: the same for the same objects.
func describe(im *Image) *Entry {
	e := &Entry{Version: 1, ID: FormatID(im.ID), Name: im.Name, Status: im.Status}
	for _, d := range im.Disks {
		e.Disks = append(e.Disks, EntryDisk{Number: d.Number, Key: d.Object.Key, Format: d.Format, Size: d.Object.Size})
	}
	return e
}

// generated is the entry that an adopted image gets when it is written.
func generated(im *Image) *Entry {
	e := describe(im)
	for _, d := range im.Disks {
		e.Adopted = append(e.Adopted, EntryObject{Key: d.Object.Key, ETag: d.Object.ETag, Size: d.Object.Size, Modified: d.Object.ModTime.UTC()})
	}
	return e
}

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
	records  map[string]*record
	adopted  map[string]*group
	verdicts map[string]verdict
	bytes    int64
	newest   time.Time
}

// list lists the store: the entries before the deleted ones before the top,
// so that no order of another's steps shows an object as adopted that is not.
// The caller holds refresh.
func (c *Catalog) list(ctx context.Context) (*listing, error) {
	l := &listing{records: make(map[string]*record), verdicts: make(map[string]verdict)}
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
	cs, err := c.top(ctx, "", l)
	if err != nil {
		return nil, err
	}
	l.adopted = adopt(cs)
	for name, g := range l.adopted {
		if l.records[name] != nil {
			continue
		}
		var o remote.Object
		if len(deleted) > 0 {
			o = deleted[hideKey(name)]
		}
		hidden, err := c.judge(ctx, l, name, o, g.disks)
		if err != nil {
			return nil, err
		}
		if !hidden {
			l.records[name] = &record{group: g.over(o)}
		}
	}
	return l, nil
}

// top lists the candidates for adoption whose keys begin with prefix.
func (c *Catalog) top(ctx context.Context, prefix string, l *listing) ([]candidate, error) {
	var cs []candidate
	for o, err := range c.store.List(ctx, prefix) {
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

// verdict is what was found out by reading a deleted entry.
type verdict struct {
	entry  remote.Object
	disks  []Disk
	hidden bool
}

// judge is hides for a listing, which reads no deleted entry a second time for
// the same objects.
func (c *Catalog) judge(ctx context.Context, l *listing, name string, o remote.Object, disks []Disk) (bool, error) {
	if isMark(o) || modified(disks).Before(o.ModTime) {
		return !isMark(o), nil
	}
	v, ok := c.verdicts[name]
	if !ok || !sameObject(v.entry, o) || !sameDisks(v.disks, disks, sameObject) {
		hidden, err := c.hides(ctx, o, disks)
		if err != nil {
			return false, err
		}
		v = verdict{o, disks, hidden}
	}
	l.verdicts[name] = v
	return v.hidden, nil
}

// hides reports whether the deleted entry o, which may be none, hides the
// adopted image of some disks: unless objects of it were put since. Only if
// they may be newer is the entry read.
func (c *Catalog) hides(ctx context.Context, o remote.Object, disks []Disk) (bool, error) {
	if isMark(o) {
		return false, nil
	}
	if modified(disks).Before(o.ModTime) {
		return true, nil
	}
	e, _, err := readEntry(ctx, c.store, o)
	switch {
	case errors.Is(err, errEntry) || errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the deleted entries: %w", err)
	}
	return e.adoptedFrom(disks), nil
}

// over is g as it is shown although there is a deleted entry o, if there is one.
func (g *group) over(o remote.Object) *group {
	if isMark(o) {
		return g
	}
	return &group{disks: g.disks, renewed: true}
}

// objectsID gives an adopted image an identity of its objects: that of its name
// went with the image that was renamed or removed before.
func objectsID(im *Image) [16]byte {
	h := sha256.New()
	fmt.Fprintf(h, "imagefs adopted image 2\x00%s", im.Name)
	for _, d := range im.Disks {
		fmt.Fprintf(h, "\x00%s\x00%s\x00%d", d.Object.Key, d.Object.ETag, d.Object.ModTime.UnixNano())
	}
	return hashID(h.Sum(nil))
}

// adoptedFrom reports whether every object of some disks is among those that e
// was adopted from.
func (e *Entry) adoptedFrom(disks []Disk) bool {
	for _, d := range disks {
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

package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"imagefs/remote"
)

// Deleted are the images that Restore can bring back, by name and the newest
// of a name first. They were not looked at beyond their entries: of their
// objects only key and size are known. One whose entry cannot be read has
// Image.Err set.
func (c *Catalog) Deleted(ctx context.Context) ([]*Image, error) {
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	var list []*Image
	for o, err := range c.store.List(ctx, deletedFolder) {
		if err != nil {
			return nil, fmt.Errorf("list the deleted entries: %w", err)
		}
		if isMark(o) || !strings.HasSuffix(o.Key, suffix) {
			continue
		}
		st, err := c.buried(ctx, o)
		switch {
		case errors.Is(err, errEntry):
			im := broken(deletedName(o.Key), o, nil, err)
			im.Deleted = o.ModTime
			list = append(list, im)
			continue
		case err != nil:
			return nil, fmt.Errorf("read the deleted entries: %w", err)
		case st.entry == nil || c.alive(ctx, st.entry):
			continue
		}
		im := described(st.entry.Name, st.entry, st.doc)
		im.Status = "deleted"
		if im.ModTime.IsZero() {
			im.ModTime = im.Deleted
		}
		list = append(list, im)
	}
	slices.SortFunc(list, func(a, b *Image) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), b.Deleted.Compare(a.Deleted), slices.Compare(a.ID[:], b.ID[:]))
	})
	return list, nil
}

// buried reads the deleted entry of a version; without an entry if it is none
// that Restore can bring back, or no longer there.
func (c *Catalog) buried(ctx context.Context, o remote.Object) (state, error) {
	e, doc, err := readEntry(ctx, c.store, o)
	switch {
	case errors.Is(err, remote.ErrChanged) || errors.Is(err, fs.ErrNotExist):
		return state{}, nil
	case err != nil:
		return state{}, err
	case e.Hidden || e.Purging || CheckName(e.Name) != nil:
		return state{}, nil
	}
	if e.Deleted.IsZero() {
		e.Deleted = o.ModTime
	}
	return state{object: o, entry: e, doc: doc}, nil
}

// alive reports whether the image of a deleted entry is there too: a removal
// or a restore was cut. Adopted images are not meant: new objects make them
// appear again.
func (c *Catalog) alive(ctx context.Context, e *Entry) bool {
	c.mu.Lock()
	r := c.records[e.Name]
	c.mu.Unlock()
	if r == nil || r.entry.Key == "" {
		return false
	}
	im, err := c.Lookup(ctx, e.Name)
	return err == nil && FormatID(im.ID) == e.ID
}

// grave is the deleted entry of a name that was deleted last.
func (c *Catalog) grave(ctx context.Context, name string) (state, error) {
	var newest state
	var bad error
	for o, err := range c.store.List(ctx, deletedFolder+cut(name)+"~") {
		if err != nil {
			return state{}, fmt.Errorf("list the deleted entries: %w", err)
		}
		if isMark(o) || deletedName(o.Key) != cut(name) {
			continue
		}
		st, err := c.buried(ctx, o)
		switch {
		case errors.Is(err, errEntry):
			bad = err
		case err != nil:
			return state{}, err
		case st.entry == nil || st.entry.Name != name:
		case newest.entry == nil || st.entry.Deleted.After(newest.entry.Deleted):
			newest = st
		}
	}
	if newest.entry == nil {
		return state{}, errors.Join(fs.ErrNotExist, bad)
	}
	return newest, nil
}

// deletedName returns the name, maybe cut, in the key of a deleted entry.
func deletedName(key string) string {
	name := strings.TrimSuffix(strings.TrimPrefix(key, deletedFolder), suffix)
	if i := strings.LastIndexByte(name, '~'); i >= 0 {
		name = name[:i]
	}
	return name
}

// supersede takes the record out that a rename to the image with entry e left
// over, if there is one.
func (c *Catalog) supersede(ctx context.Context, name string, e *Entry) error {
	from := e.RenamedFrom
	if from == name {
		return nil
	}
	r, err := c.find(ctx, from)
	if err != nil {
		return fmt.Errorf("image %q, which was renamed to %q: %w", from, name, err)
	}
	if r == nil || !c.leftOver(ctx, from, r, e) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records[from] == r {
		c.replace(map[string]*record{from: nil})
		c.superseded[from] = successor{name, r}
	}
	return nil
}

// leftOver reports whether r, of the name from, is what a rename to the image
// with entry e left over: the version that e is a copy of.
func (c *Catalog) leftOver(ctx context.Context, from string, r *record, e *Entry) bool {
	if r.group != nil {
		return FormatID(r.group.image(from).ID) == e.ID && e.adoptedFrom(r.group.disks)
	}
	if r.entry.ETag != e.RenamedETag {
		return false
	}
	old, _, err := readEntry(ctx, c.store, r.entry)
	return err == nil && old.ID == e.ID
}

// finish ends a rename to the image with entry e, if it was cut: what it left
// over would come back with the image's next step. It reports whether there
// was anything.
func (c *Catalog) finish(ctx context.Context, name string, e *Entry) (bool, error) {
	from := e.RenamedFrom
	if from == "" || from == name {
		return false, nil
	}
	if err := c.supersede(ctx, name, e); err != nil {
		return false, err
	}
	c.mu.Lock()
	s, ok := c.superseded[from]
	c.mu.Unlock()
	if !ok || s.by != name {
		return false, nil
	}
	st := state{object: s.record.entry, entry: e}
	if s.record.group != nil {
		st.adopted = s.record.group.image(from)
	}
	if err := c.leave(ctx, from, st); err != nil && !lost(err) {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.superseded[from] == s && c.records[from] == nil {
		c.replace(map[string]*record{from: nil})
	}
	return true, nil
}

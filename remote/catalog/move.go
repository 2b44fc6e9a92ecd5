package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"imagefs/remote"
)

// An entry goes away in two steps: what takes its place is written, then the
// entry itself is replaced by an empty object, a mark. That is conditional
// where a removal is not, so a change by another writer is never lost; GC
// removes old marks. A kill between the steps leaves both; the steps done
// again find the first one done and do the second.

// Rename gives an image another name and keeps its ID. The error is
// fs.ErrExist if there is an image of that name, fs.ErrNotExist if there is
// none to rename and ErrConflict if another writer renames or removes it.
func (c *Catalog) Rename(ctx context.Context, from, to string) error {
	if err := c.rename(ctx, from, to); err != nil {
		return fmt.Errorf("rename image %q to %q: %w", from, to, err)
	}
	return nil
}

func (c *Catalog) rename(ctx context.Context, from, to string) error {
	unlock, err := c.lock(ctx, from, to)
	if err != nil {
		return err
	}
	defer unlock()
	var ours *record // of the new entry, once it is written
	for range tries {
		src, err := c.live(ctx, from)
		if err != nil {
			return err
		}
		dst, err := c.live(ctx, to)
		if err != nil {
			return err
		}
		again := renamed(dst, from, src)
		switch {
		case from == to && src.entry != nil:
			return nil
		case ours != nil && !again:
			return c.withdraw(ctx, ours)
		case src.entry == nil && dst.entry != nil && dst.entry.RenamedFrom == from:
			finished, err := c.finish(ctx, to, dst.entry)
			if err != nil || finished {
				return err
			}
			return fs.ErrNotExist
		case src.entry == nil:
			return fs.ErrNotExist
		case dst.entry != nil && !again:
			return fs.ErrExist
		}
		if again && dst.entry.RenamedETag == src.etag() {
			im, err := c.image(ctx, to, dst.entry, dst.doc)
			if err != nil {
				return err
			}
			ours = &record{entry: dst.object, image: im}
		} else {
			e := *src.entry
			e.Name, e.RenamedFrom, e.RenamedETag, e.Updated = to, from, src.etag(), stamp(e.Updated)
			r, err := c.put(ctx, to, &e, dst)
			if lost(err) {
				continue
			}
			if err != nil {
				return err
			}
			ours = r
		}
		err = c.leave(ctx, from, src)
		if lost(err) {
			continue
		}
		if err != nil {
			return err
		}
		c.swap(map[string]*record{from: nil, to: ours})
		return nil
	}
	return fmt.Errorf("%w %d times", ErrConflict, tries)
}

// etag is the version of the entry, "" for an adopted image.
func (st state) etag() string {
	if st.adopted != nil {
		return ""
	}
	return st.object.ETag
}

// renamed reports whether dst is what a rename of src, of the name from, has
// written: a copy of it, maybe of an earlier version.
func renamed(dst state, from string, src state) bool {
	return dst.entry != nil && src.entry != nil && dst.adopted == nil &&
		dst.entry.RenamedFrom == from && dst.entry.ID == src.entry.ID
}

// withdraw takes back the entry of a rename that another writer came before.
func (c *Catalog) withdraw(ctx context.Context, r *record) error {
	if err := c.clear(ctx, r.entry); err != nil && !lost(err) {
		return errors.Join(ErrConflict, err)
	}
	return ErrConflict
}

// clear puts a mark in the place of the version of an entry.
func (c *Catalog) clear(ctx context.Context, o remote.Object) error {
	_, err := write(ctx, c.store, o.Key, nil, remote.Cond{ETag: o.ETag})
	return err
}

// leave takes away what shows an image under its name: the state that live
// found. Objects that would be adopted then are hidden first.
func (c *Catalog) leave(ctx context.Context, name string, st state) error {
	im := st.adopted
	if im == nil {
		g, err := c.beneath(ctx, name)
		if err != nil {
			return err
		}
		if g != nil {
			im = g.image(name)
		}
	}
	if im != nil {
		hid, err := c.hide(ctx, name, im)
		if err != nil {
			return err
		}
		if st.adopted != nil && !hid {
			return fs.ErrExist // another writer took it away just now
		}
	}
	if st.adopted != nil {
		return nil
	}
	return c.clear(ctx, st.object)
}

// beneath is what would be adopted under a name that has an entry, also if that
// is hidden; nil if there is nothing.
func (c *Catalog) beneath(ctx context.Context, name string) (*group, error) {
	c.mu.Lock()
	g, listed := c.adopted[name], c.listed
	c.mu.Unlock()
	if listed {
		return g, nil
	}
	return c.gather(ctx, name)
}

// hide sees to it that the objects at the top that make up the image name are
// not adopted, as they are. It reports whether it had to write.
func (c *Catalog) hide(ctx context.Context, name string, im *Image) (bool, error) {
	key := hideKey(name)
	st, err := c.current(ctx, key)
	if err != nil {
		return false, err
	}
	e := generated(im)
	if st.entry != nil {
		if hidden, err := c.hides(ctx, st.object, im.Disks); err != nil || hidden {
			return false, err
		}
		if !st.entry.Hidden {
			e = st.entry // can be restored, and is to stay what it is
		}
	}
	e.ID, e.Hidden = FormatID(adoptedID(name)), st.entry == nil || st.entry.Hidden
	e.Deleted = stamp(time.Time{})
	doc, err := FormatEntry(e)
	if err != nil {
		return false, err
	}
	_, err = write(ctx, c.store, key, doc, st.cond())
	return err == nil, err
}

// Remove moves an image to the deleted ones, from where Restore brings it back
// until GC removes it with its objects. The error is fs.ErrNotExist if there
// is no image of that name.
func (c *Catalog) Remove(ctx context.Context, name string) error {
	if err := c.remove(ctx, name); err != nil {
		return fmt.Errorf("remove image %q: %w", name, err)
	}
	return nil
}

func (c *Catalog) remove(ctx context.Context, name string) error {
	unlock, err := c.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	for range tries {
		st, err := c.live(ctx, name)
		if err != nil {
			return err
		}
		if st.entry == nil {
			return fs.ErrNotExist
		}
		if _, err := c.finish(ctx, name, st.entry); err != nil {
			return err
		}
		err = c.bury(ctx, name, st)
		if lost(err) {
			continue
		}
		if err != nil {
			return err
		}
		c.swap(map[string]*record{name: nil})
		return nil
	}
	return fmt.Errorf("%w %d times", ErrConflict, tries)
}

// bury writes the deleted entry of a live image and takes the live one away.
func (c *Catalog) bury(ctx context.Context, name string, st state) error {
	id, err := ParseID(st.entry.ID)
	if err != nil {
		return err
	}
	key := deletedKey(name, id)
	old, err := c.current(ctx, key)
	if err != nil {
		return err
	}
	e := *st.entry
	e.Name, e.Deleted = name, stamp(time.Time{})
	e.Hidden, e.Purging, e.RenamedFrom, e.RenamedETag = false, false, "", ""
	doc, err := FormatEntry(&e)
	if err != nil {
		return err
	}
	if _, err := write(ctx, c.store, key, doc, old.cond()); err != nil {
		return err
	}
	switch {
	case id != adoptedID(name):
		return c.leave(ctx, name, st)
	case st.adopted != nil:
		return nil // its deleted entry is what hides it
	}
	return c.clear(ctx, st.object)
}

// Restore brings the image of a name back that was deleted last. The error is
// fs.ErrExist if there is an image of that name, fs.ErrNotExist if none was
// deleted or its objects are gone, and ErrConflict if another writer restores
// or GC removes it.
func (c *Catalog) Restore(ctx context.Context, name string) (*Image, error) {
	im, err := c.restore(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("restore image %q: %w", name, err)
	}
	return im, nil
}

func (c *Catalog) restore(ctx context.Context, name string) (*Image, error) {
	unlock, err := c.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	st, err := c.live(ctx, name)
	if err != nil {
		return nil, err
	}
	if st.entry != nil {
		return c.restored(ctx, name, st)
	}
	g, err := c.grave(ctx, name)
	if err != nil {
		return nil, err
	}
	if im, err := c.image(ctx, name, g.entry, g.doc); err != nil {
		return nil, err
	} else if im.Err != nil {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, im.Err)
	}
	// Deleted now, so that GC, which may be about to remove it, does not.
	e := *g.entry
	e.Deleted = stamp(e.Deleted)
	doc, err := FormatEntry(&e)
	if err != nil {
		return nil, err
	}
	held, err := write(ctx, c.store, g.object.Key, doc, remote.Cond{ETag: g.object.ETag})
	if lost(err) {
		return nil, fmt.Errorf("%w: %w", ErrConflict, err)
	}
	if err != nil {
		return nil, err
	}
	e.Deleted, e.RenamedFrom, e.RenamedETag, e.Updated = time.Time{}, "", "", stamp(e.Updated)
	r, err := c.put(ctx, name, &e, st)
	if lost(err) {
		return nil, fmt.Errorf("%w: %w", fs.ErrExist, err)
	}
	if err != nil {
		return nil, err
	}
	c.swap(map[string]*record{name: r})
	if err := c.clear(ctx, held); lost(err) {
		return c.contested(ctx, name, held.Key, r)
	} else if err != nil {
		return nil, err
	}
	return r.image, nil
}

// contested says how a restore ended whose deleted entry another writer has
// changed: if that was GC, the image is taken back.
func (c *Catalog) contested(ctx context.Context, name, key string, r *record) (*Image, error) {
	g, err := c.current(ctx, key)
	if err != nil {
		return nil, err
	}
	if g.object.Key != "" && (g.entry == nil || !g.entry.Purging) {
		return r.image, nil // restored by another too, or deleted again
	}
	if err := c.clear(ctx, r.entry); err == nil {
		c.swap(map[string]*record{name: nil})
	} else if !lost(err) {
		return nil, err
	}
	return nil, fmt.Errorf("%w: it is being removed for good", ErrConflict)
}

// restored ends a restore, or takes back a removal, that was cut: the image is
// live and deleted.
func (c *Catalog) restored(ctx context.Context, name string, st state) (*Image, error) {
	id, err := ParseID(st.entry.ID)
	if err != nil {
		return nil, err
	}
	if st.adopted != nil {
		return nil, fs.ErrExist
	}
	g, err := c.current(ctx, deletedKey(name, id))
	if err != nil {
		return nil, err
	}
	if g.entry == nil || g.entry.Hidden || g.entry.Purging {
		return nil, fs.ErrExist
	}
	if err := c.clear(ctx, g.object); err != nil {
		return nil, err
	}
	return c.shown(ctx, name, st)
}

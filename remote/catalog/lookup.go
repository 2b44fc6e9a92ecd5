package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"imagefs/remote"
)

// Lookup returns the image of that name, fs.ErrNotExist without one. An image
// that cannot be used comes with Image.Err set; an error of the store, which
// may pass, is returned.
func (c *Catalog) Lookup(ctx context.Context, name string) (*Image, error) {
	r, err := c.find(ctx, name)
	if err == nil && r == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	im, e, err := c.lookup(ctx, name, r)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	if e != nil && e.RenamedFrom != "" {
		// Without success the other name is shown too, which is no harm.
		_ = c.supersede(ctx, name, e)
	}
	return im, nil
}

// lookup returns the image of r. e is its entry if that was looked at now.
func (c *Catalog) lookup(ctx context.Context, name string, r *record) (im *Image, e *Entry, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.image != nil {
		return r.image, nil, nil
	}
	if r.group != nil {
		r.image = r.group.image(name)
		return r.image, nil, nil
	}
	im, e, err = c.load(ctx, name, r)
	if err != nil {
		if r.kept != nil && errors.Is(err, remote.ErrUnavailable) {
			return r.kept, nil, nil // what was known serves while the store is away
		}
		return nil, nil, err
	}
	r.image, r.kept = im, nil
	return im, e, nil
}

// load reads the entry of r, or takes what is kept of it, and asks the store
// for the present versions of its disks.
func (c *Catalog) load(ctx context.Context, name string, r *record) (*Image, *Entry, error) {
	var doc []byte
	if r.kept != nil {
		doc = r.kept.JSON
	} else {
		if r.entry.Size > maxEntry {
			return broken(name, r.entry, nil, tooLong(r.entry)), nil, nil
		}
		doc = make([]byte, r.entry.Size)
		if err := c.store.ReadRange(ctx, r.entry, doc, 0); err != nil {
			return nil, nil, err
		}
	}
	e, err := ParseEntry(doc)
	if err != nil {
		return broken(name, r.entry, doc, fmt.Errorf("%q: %w", r.entry.Key, err)), nil, nil
	}
	im, err := c.image(ctx, name, e, doc)
	if err != nil {
		return nil, nil, err
	}
	if im.ModTime.IsZero() {
		im.ModTime = r.entry.ModTime
	}
	return im, e, nil
}

func broken(name string, entry remote.Object, doc []byte, err error) *Image {
	return &Image{Name: name, ID: adoptedID(name), Status: "error", ModTime: entry.ModTime, JSON: doc, Err: err}
}

func tooLong(entry remote.Object) error {
	return fmt.Errorf("entry %q has %d bytes, more than %d", entry.Key, entry.Size, maxEntry)
}

// image makes an image of an entry and asks the store for the present versions
// of its disks.
func (c *Catalog) image(ctx context.Context, name string, e *Entry, doc []byte) (*Image, error) {
	im := described(name, e, doc)
	for i := range im.Disks {
		d := &im.Disks[i]
		want := d.Object
		o, err := c.store.Stat(ctx, want.Key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			im.Err = fmt.Errorf("disk %d: the object %q is missing", d.Number, want.Key)
		case err != nil:
			return nil, err
		case want.Size != 0 && o.Size != want.Size:
			im.Err = fmt.Errorf("disk %d: the object %q has %d bytes, its entry says %d", d.Number, want.Key, o.Size, want.Size)
		}
		d.Object = o
	}
	if im.Err != nil {
		im.Status = "error"
	}
	return im, nil
}

// described makes an image of what an entry says. Of the objects of its disks
// it knows key and size.
func described(name string, e *Entry, doc []byte) *Image {
	im := &Image{
		Name: name, Status: cmp.Or(e.Status, "active"), Created: e.Created, ModTime: e.Updated, Deleted: e.Deleted,
		Tags: e.Tags, Props: e.Props, JSON: doc,
	}
	im.ID, _ = ParseID(e.ID)
	for _, d := range e.Disks {
		im.Disks = append(im.Disks, Disk{
			Number: d.Number, Format: d.Format, Object: remote.Object{Key: d.Key, Size: d.Size},
			VirtualSize: d.VirtualSize, SHA256: d.SHA256,
			Modified: d.Modified, Original: d.Original, Declared: d.Declared, Index: d.Index,
		})
	}
	return im
}

// All waits for the first listing, looks every image up, some at a time, and
// calls fn with each in the order of names. Images that vanished meanwhile are
// left out; any other error ends it.
func (c *Catalog) All(ctx context.Context, fn func(*Image) error) error {
	type result struct {
		im  *Image
		err error
	}
	if err := c.Ready(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Pending results in order; its capacity bounds the look-ups under way.
	pending := make(chan chan result, 32)
	go func() {
		defer close(pending)
		for _, name := range c.Names() {
			ch := make(chan result, 1)
			select {
			case pending <- ch:
			case <-ctx.Done():
				return
			}
			go func() {
				im, err := c.Lookup(ctx, name)
				ch <- result{im, err}
			}()
		}
	}()
	for ch := range pending {
		r := <-ch
		if errors.Is(r.err, fs.ErrNotExist) {
			continue
		}
		if r.err != nil {
			return r.err
		}
		if err := fn(r.im); err != nil {
			return err
		}
	}
	return ctx.Err()
}

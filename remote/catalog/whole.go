package catalog

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
)

// NewImage is an image that is made in one step.
type NewImage struct {
	Disks []EntryDisk // with their numbers; at least one
	Props map[string]string
}

// PutImage makes an image with all its disks in one conditional write of its
// entry, so that nobody ever sees a part of it. The error is fs.ErrExist where
// an image of that name has disks already. To put what is there already is no
// error, so a PutImage whose outcome is unknown can be repeated.
func (c *Catalog) PutImage(ctx context.Context, name string, n NewImage) (*Image, error) {
	im, err := c.putImage(ctx, name, n)
	if err != nil {
		return nil, fmt.Errorf("put image %q: %w", name, err)
	}
	return im, nil
}

func (c *Catalog) putImage(ctx context.Context, name string, n NewImage) (*Image, error) {
	if len(n.Disks) == 0 {
		return nil, fmt.Errorf("no disk")
	}
	for i := range n.Disks {
		if err := c.checkObject(ctx, &n.Disks[i]); err != nil {
			return nil, err
		}
	}
	return c.edit(ctx, name, true, func(e *Entry) (bool, error) {
		if len(e.Disks) > 0 {
			if e.holds(n.Disks) {
				return false, nil
			}
			return false, fmt.Errorf("%w: an image of that name has disks: remove it first (imagefs rm), or choose another name", fs.ErrExist)
		}
		e.Disks = append(e.Disks, n.Disks...)
		e.sort()
		if len(n.Props) > 0 && e.Props == nil {
			e.Props = make(map[string]string, len(n.Props))
		}
		maps.Copy(e.Props, n.Props)
		return true, nil
	})
}

// holds reports whether the disks of e are these objects, and no more.
func (e *Entry) holds(disks []EntryDisk) bool {
	for _, d := range disks {
		if old := e.disk(d.Number); old == nil || old.Key != d.Key {
			return false
		}
	}
	return len(e.Disks) == len(disks)
}

// PutIndex names an index for disk n of an image, as long as the disk is the
// object with a key; else the error is ErrConflict.
func (c *Catalog) PutIndex(ctx context.Context, name string, n int, key string, x Index) (*Image, error) {
	im, err := c.edit(ctx, name, false, func(e *Entry) (bool, error) {
		d := e.disk(n)
		switch {
		case d == nil:
			return false, fs.ErrNotExist
		case d.Key != key:
			return false, fmt.Errorf("%w: the disk is %q, not %q", ErrConflict, d.Key, key)
		case d.Index != nil && *d.Index == x:
			return false, nil
		}
		d.Index = &x
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("put an index for disk %d of image %q: %w", n, name, err)
	}
	return im, nil
}

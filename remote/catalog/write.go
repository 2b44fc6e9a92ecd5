package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"slices"
	"time"

	"imagefs/remote"
)

// ErrConflict says that another writer of the catalog was first: what was to
// be changed is no longer what the caller took it for.
var ErrConflict = errors.New("changed by another writer")

// tries bounds how often a write is begun anew because another came first.
const tries = 100

// PutDisk adds disk n of an image, or replaces it, in one conditional write of
// the entry, and returns the image. d.Key names the object, which has to be
// there; n counts, not d.Number. base is the key of the object that the disk
// has now, "" if there is no such disk; when that is not so, the error is
// ErrConflict: of several writers of one disk exactly one wins, while writers
// of different disks of an image all do. To put what is there already is no
// error, so a PutDisk whose outcome is unknown can be repeated.
//
// A new image gets a random ID. An adopted one gets an entry with the ID and
// the disks it has. A store that cannot write conditionally gives
// remote.ErrUnsupported.
func (c *Catalog) PutDisk(ctx context.Context, name string, n int, d EntryDisk, base string) (*Image, error) {
	d.Number = n
	im, err := c.putDisk(ctx, name, d, base)
	if err != nil {
		return nil, fmt.Errorf("put disk %d of image %q: %w", n, name, err)
	}
	return im, nil
}

func (c *Catalog) putDisk(ctx context.Context, name string, d EntryDisk, base string) (*Image, error) {
	if err := c.checkObject(ctx, &d); err != nil {
		return nil, err
	}
	return c.edit(ctx, name, true, func(e *Entry) (bool, error) {
		var present string
		old := e.disk(d.Number)
		if old != nil {
			present = old.Key
		}
		switch {
		case present != base && present != d.Key:
			return false, fmt.Errorf("%w: the disk is %q, not %q", ErrConflict, present, base)
		case present != base:
			return false, nil
		case old == nil:
			e.Disks = append(e.Disks, d)
			e.sort()
		default:
			if d.Key == old.Key {
				d.rest = old.rest // what is not known here describes the object
			}
			*old = d
		}
		return true, nil
	})
}

// checkObject holds what is to be written of a disk, and the store, together.
func (c *Catalog) checkObject(ctx context.Context, d *EntryDisk) error {
	if err := d.check(); err != nil {
		return err
	}
	o, err := c.store.Stat(ctx, d.Key)
	if err != nil {
		return err
	}
	if d.Size != 0 && o.Size != d.Size {
		return fmt.Errorf("the object %q has %d bytes, not %d", d.Key, o.Size, d.Size)
	}
	return nil
}

// Touch sets the time at which disk n of an image was modified.
func (c *Catalog) Touch(ctx context.Context, name string, n int, modified time.Time) error {
	_, err := c.edit(ctx, name, false, func(e *Entry) (bool, error) {
		d := e.disk(n)
		if d == nil {
			return false, fs.ErrNotExist
		}
		if d.Modified.Equal(modified) {
			return false, nil
		}
		d.Modified = modified.UTC()
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("touch disk %d of image %q: %w", n, name, err)
	}
	return nil
}

// edit changes the entry of an image; with create, also one that is not there
// yet. change reports whether it changed anything; it is called again for what
// another writer wrote meanwhile.
func (c *Catalog) edit(ctx context.Context, name string, create bool, change func(*Entry) (bool, error)) (*Image, error) {
	unlock, err := c.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for range tries {
		st, err := c.live(ctx, name)
		if err != nil {
			return nil, err
		}
		e := st.entry
		if e == nil {
			if !create {
				return nil, fs.ErrNotExist
			}
			now := stamp(time.Time{})
			e = &Entry{Version: 1, ID: FormatID(newID()), Status: "active", Created: now.Truncate(time.Second)}
		}
		changed, err := change(e)
		if err != nil {
			return nil, err
		}
		if !changed {
			return c.shown(ctx, name, st)
		}
		if _, err := c.finish(ctx, name, e); err != nil {
			return nil, err
		}
		e.Name, e.Updated, e.RenamedFrom, e.RenamedETag = name, stamp(e.Updated), "", ""
		r, err := c.put(ctx, name, e, st)
		if lost(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c.swap(map[string]*record{name: r})
		return r.image, nil
	}
	return nil, fmt.Errorf("%w %d times", ErrConflict, tries)
}

// shown returns the image of what live found, which it shows from now on.
func (c *Catalog) shown(ctx context.Context, name string, st state) (*Image, error) {
	im, err := c.image(ctx, name, st.entry, st.doc)
	if err != nil || st.adopted != nil {
		return im, err
	}
	if im.ModTime.IsZero() {
		im.ModTime = st.object.ModTime
	}
	c.swap(map[string]*record{name: {entry: st.object, image: im}})
	return im, nil
}

// state is what is found at the place of an entry.
type state struct {
	object  remote.Object // zero if there is none; may be a mark
	entry   *Entry        // nil if there is none
	doc     []byte        // what entry was read from
	adopted *Image        // what entry is generated from; nil if it is in the store
}

// cond asks that nothing changed since the state was seen.
func (st state) cond() remote.Cond {
	if st.object.Key == "" {
		return remote.Cond{Absent: true}
	}
	return remote.Cond{ETag: st.object.ETag}
}

// current reads what the store has at the place of an entry.
func (c *Catalog) current(ctx context.Context, key string) (state, error) {
	for range tries {
		o, err := c.store.Stat(ctx, key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return state{}, nil
		case err != nil:
			return state{}, err
		case isMark(o):
			return state{object: o}, nil
		case o.Size > maxEntry:
			return state{}, tooLong(o)
		}
		doc := make([]byte, o.Size)
		err = c.store.ReadRange(ctx, o, doc, 0)
		if errors.Is(err, remote.ErrChanged) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return state{}, err
		}
		e, err := ParseEntry(doc)
		if err != nil {
			return state{}, fmt.Errorf("%q: %w", key, err)
		}
		return state{object: o, entry: e, doc: doc}, nil
	}
	return state{}, fmt.Errorf("read %q: %w %d times", key, ErrConflict, tries)
}

// live is the present state of an image by its name: its entry, or one made
// for an image that is adopted.
func (c *Catalog) live(ctx context.Context, name string) (state, error) {
	if err := CheckName(name); err != nil {
		return state{}, err
	}
	st, err := c.current(ctx, entryKey(name))
	if err != nil {
		return state{}, err
	}
	c.mu.Lock()
	s, ok := c.superseded[name]
	adopted := c.adopted[name] != nil || !c.listed
	c.mu.Unlock()
	if ok && s.record.entry.ETag == st.object.ETag {
		return state{object: st.object}, nil
	}
	if st.entry != nil || !adopted {
		return st, nil
	}
	g, err := c.adoptable(ctx, name)
	if err != nil || g == nil {
		return st, err
	}
	im := g.image(name)
	if im.Err != nil {
		return state{}, im.Err
	}
	st.entry, st.doc, st.adopted = generated(im), im.JSON, im
	return st, nil
}

// put writes the entry of a live image over the state st and returns the
// record that shows it. The disks are looked up before, so that nothing can
// fail once it is written.
func (c *Catalog) put(ctx context.Context, name string, e *Entry, st state) (*record, error) {
	doc, err := FormatEntry(e)
	if err != nil {
		return nil, err
	}
	im, err := c.image(ctx, name, e, doc)
	if err != nil {
		return nil, err
	}
	o, err := write(ctx, c.store, entryKey(name), doc, st.cond())
	if err != nil {
		return nil, err
	}
	return &record{entry: o, image: im}, nil
}

// write puts a document, nil for a mark, under a condition; lost tells of its
// error whether another writer was first.
func write(ctx context.Context, store remote.Store, key string, doc []byte, cond remote.Cond) (remote.Object, error) {
	o, err := store.Put(ctx, key, bytes.NewReader(doc), int64(len(doc)), cond)
	if errors.Is(err, remote.ErrUnsupported) {
		err = fmt.Errorf("the catalog needs a store that can write conditionally, which this one cannot: %w", err)
	}
	return o, err
}

// lost reports whether a conditional write found something else than it asked for.
func lost(err error) bool {
	return errors.Is(err, remote.ErrChanged) || errors.Is(err, fs.ErrExist)
}

// swap shows other records of some names, nil for none, in one step.
func (c *Catalog) swap(set map[string]*record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replace(set)
}

// replace is swap for callers that hold mu.
func (c *Catalog) replace(set map[string]*record) {
	c.seq++
	for name, r := range set {
		c.changed[name] = c.seq
		delete(c.superseded, name)
		if (r == nil) != (c.records[name] == nil) {
			c.stale[name] = true
		}
		if r == nil {
			delete(c.records, name)
			continue
		}
		c.records[name] = r
		c.newest = later(c.newest, r.entry.ModTime)
	}
}

// stripes are locks for names: one name has one lock, several may share it.
type stripes struct {
	seed  maphash.Seed
	locks [64]chan struct{}
}

func newStripes() stripes {
	s := stripes{seed: maphash.MakeSeed()}
	for i := range s.locks {
		s.locks[i] = make(chan struct{}, 1)
	}
	return s
}

// lock admits one writer to each of some names.
func (c *Catalog) lock(ctx context.Context, names ...string) (unlock func(), err error) {
	var held []int
	unlock = func() {
		for _, i := range held {
			<-c.writing.locks[i]
		}
	}
	var want []int
	for _, name := range names {
		want = append(want, int(maphash.String(c.writing.seed, name)%uint64(len(c.writing.locks))))
	}
	slices.Sort(want)
	for _, i := range slices.Compact(want) {
		select {
		case c.writing.locks[i] <- struct{}{}:
			held = append(held, i)
		case <-ctx.Done():
			unlock()
			return nil, ctx.Err()
		}
	}
	return unlock, nil
}

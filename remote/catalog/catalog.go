package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"imagefs/remote"
)

// Image is one image as the catalog knows it: immutable.
type Image struct {
	Name    string
	ID      [16]byte
	Status  string
	Created time.Time // zero when unknown: adopted images
	ModTime time.Time // of the entry or the newest object
	Tags    []string
	Props   map[string]string
	Disks   []Disk // ascending by Number
	JSON    []byte // the entry as stored, or the one it would have
	Err     error  // why the image cannot be used, or nil
}

// Disk is one disk of an image: a version of an object.
type Disk struct {
	Number      int
	Format      string // as the entry or the extension says
	Object      remote.Object
	VirtualSize int64  // bytes; 0 when unknown before opening
	SHA256      string // of the object, hex; "" when unknown
}

// Disk returns the disk with a number.
func (im *Image) Disk(n int) (Disk, bool) {
	i, ok := slices.BinarySearchFunc(im.Disks, n, func(d Disk, n int) int { return d.Number - n })
	if !ok {
		return Disk{}, false
	}
	return im.Disks[i], true
}

// Catalog is the set of images of a store.
type Catalog struct {
	store remote.Store
	exts  map[string]string

	refresh sync.Mutex // held while a refresh runs: one at a time

	mu      sync.Mutex
	names   []string           // guarded by mu; sorted; replaced, never changed
	records map[string]*record // guarded by mu; replaced, never changed
	bytes   int64              // guarded by mu; of all objects listed
	newest  time.Time          // guarded by mu; of all objects listed
}

// record is what a listing knows of a name.
type record struct {
	entry remote.Object // zero for an adopted image

	mu    sync.Mutex
	image *Image // guarded by mu; nil until looked up, for entries
	kept  *Image // guarded by mu; from before the last refresh, may be reused
}

// Open lists the store. exts maps the extensions that are adopted, in lower
// case and without dot, to format names.
func Open(ctx context.Context, store remote.Store, exts map[string]string) (*Catalog, error) {
	c := &Catalog{store: store, exts: exts}
	_, err := c.Refresh(ctx)
	return c, err
}

// Refresh lists the store anew. It returns the names that are new, gone or of
// another version. After an error the catalog is what it was before.
func (c *Catalog) Refresh(ctx context.Context) (changed []string, err error) {
	c.refresh.Lock()
	defer c.refresh.Unlock()
	var cs []candidate
	var total int64
	var newest time.Time
	for o, err := range c.store.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("list the store: %w", err)
		}
		total += o.Size
		if cand, ok := parse(o, c.exts); ok {
			cs = append(cs, cand)
			newest = later(newest, o.ModTime)
		}
	}
	next := make(map[string]*record)
	for name, im := range adopt(cs) {
		next[name] = &record{image: im}
	}
	for o, err := range c.store.List(ctx, Folder) {
		if err != nil {
			return nil, fmt.Errorf("list the entries: %w", err)
		}
		name, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, Folder), suffix)
		if ok && CheckName(name) == nil {
			next[name] = &record{entry: o}
			newest = later(newest, o.ModTime)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, r := range next {
		old := c.records[name]
		switch {
		case old == nil:
			changed = append(changed, name)
		case r.entry.Key != "" && r.entry.Key == old.entry.Key && r.entry.ETag == old.entry.ETag:
			old.mu.Lock()
			if r.kept = old.image; r.kept == nil {
				r.kept = old.kept
			}
			old.mu.Unlock()
		case r.entry.Key != old.entry.Key || r.entry.ETag != old.entry.ETag || !sameDisks(r.image, old.image):
			changed = append(changed, name)
		}
	}
	for name := range c.records {
		if next[name] == nil {
			changed = append(changed, name)
		}
	}
	c.records, c.names, c.bytes, c.newest = next, slices.Sorted(maps.Keys(next)), total, newest
	slices.Sort(changed)
	return changed, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func sameDisks(a, b *Image) bool {
	return slices.EqualFunc(a.Disks, b.Disks, func(a, b Disk) bool {
		return a.Number == b.Number && a.Object.Key == b.Object.Key && a.Object.ETag == b.Object.ETag
	})
}

// Names are the names of all images, sorted. The slice is not to be changed.
func (c *Catalog) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names
}

// Bytes is the size of the objects that lie directly in the store's folder.
func (c *Catalog) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// ModTime is the time of the newest entry or adopted object: it stands still
// while the catalog does.
func (c *Catalog) ModTime() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest
}

// Has reports whether there is an image of that name. It does no I/O.
func (c *Catalog) Has(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.records[name] != nil
}

// Lookup returns the image of that name, fs.ErrNotExist without one. An image
// that cannot be used comes with Image.Err set; an error of the store, which
// may pass, is returned.
func (c *Catalog) Lookup(ctx context.Context, name string) (*Image, error) {
	c.mu.Lock()
	r := c.records[name]
	c.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("image %q: %w", name, fs.ErrNotExist)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.image != nil {
		return r.image, nil
	}
	im, err := c.load(ctx, name, r)
	if err != nil {
		if r.kept != nil && errors.Is(err, remote.ErrUnavailable) {
			return r.kept, nil // what was known serves while the store is away
		}
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	r.image, r.kept = im, nil
	return im, nil
}

// load reads the entry of r, or takes what is kept of it, and asks the store
// for the present versions of its disks.
func (c *Catalog) load(ctx context.Context, name string, r *record) (*Image, error) {
	var doc []byte
	if r.kept != nil {
		doc = r.kept.JSON
	} else {
		if r.entry.Size > maxEntry {
			return &Image{
				Name: name, ID: adoptedID(name), Status: "error", ModTime: r.entry.ModTime,
				Err: fmt.Errorf("entry %q has %d bytes, more than %d", r.entry.Key, r.entry.Size, maxEntry),
			}, nil
		}
		doc = make([]byte, r.entry.Size)
		if err := c.store.ReadRange(ctx, r.entry, doc, 0); err != nil {
			return nil, err
		}
	}
	im := &Image{Name: name, ID: adoptedID(name), Status: "error", ModTime: r.entry.ModTime, JSON: doc}
	e, err := ParseEntry(doc)
	if err != nil {
		im.Err = fmt.Errorf("%q: %w", r.entry.Key, err)
		return im, nil
	}
	im.ID, _ = ParseID(e.ID)
	im.Created, im.Tags, im.Props = e.Created, e.Tags, e.Props
	for i, d := range e.Disks {
		o, err := c.store.Stat(ctx, d.Key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			im.Err = fmt.Errorf("disk %d: the object %q is missing", i, d.Key)
		case err != nil:
			return nil, err
		case d.Size != 0 && o.Size != d.Size:
			im.Err = fmt.Errorf("disk %d: the object %q has %d bytes, its entry says %d", i, d.Key, o.Size, d.Size)
		}
		im.Disks = append(im.Disks, Disk{Number: i, Format: d.Format, Object: o, VirtualSize: d.VirtualSize, SHA256: d.SHA256})
	}
	if im.Err == nil {
		if im.Status = e.Status; im.Status == "" {
			im.Status = "active"
		}
	}
	return im, nil
}

// All looks every image up, some at a time, and calls fn with each in the
// order of names. Images that vanished meanwhile are left out; any other error
// ends it.
func (c *Catalog) All(ctx context.Context, fn func(*Image) error) error {
	type result struct {
		im  *Image
		err error
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

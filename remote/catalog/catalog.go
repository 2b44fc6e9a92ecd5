package catalog

import (
	"context"
	"maps"
	"slices"
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
	ModTime time.Time // of the last change of the entry, or of the newest object
	Deleted time.Time // zero but for images of Catalog.Deleted
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

	Modified time.Time // of the file that was imported; zero when unknown
	Original *Original // nil if the object is what was imported
	Declared bool      // the format was said on purpose; content was not probed
	Index    *Index    // nil if there is none
}

// Imported is the format that the disk was copied in as, and is shown in
// byte for byte.
func (d Disk) Imported() string {
	if d.Original != nil {
		return d.Original.Format
	}
	return d.Format
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

	// Locks are taken in this order: a stripe or two of writing, a record's
	// mu, mu. Nothing else is held with refresh but mu and a record's mu.
	refresh sync.Mutex // held while a refresh runs: one at a time
	writing stripes    // held while the image of a name is written

	mu         sync.Mutex
	names      []string             // guarded by mu; sorted; replaced, never changed
	records    map[string]*record   // guarded by mu; replaced, never changed
	adopted    map[string]*Image    // guarded by mu; what may be adopted, also what is hidden; never changed
	superseded map[string]successor // guarded by mu; left over by renames that were cut
	seq        uint64               // guarded by mu; counts the writes of this catalog
	changed    map[string]uint64    // guarded by mu; the writes that a listing may not show yet
	bytes      int64                // guarded by mu; of all objects listed
	newest     time.Time            // guarded by mu; of all objects listed
}

// successor says which image took the place of a record.
type successor struct {
	by     string
	record *record
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
	c := &Catalog{
		store: store, exts: exts, writing: newStripes(),
		superseded: make(map[string]successor), changed: make(map[string]uint64),
	}
	_, err := c.Refresh(ctx)
	return c, err
}

// Refresh lists the store anew. It returns the names that are new, gone or of
// another version, but for what this catalog changed itself. After an error
// the catalog is what it was before.
func (c *Catalog) Refresh(ctx context.Context) (changed []string, err error) {
	c.refresh.Lock()
	defer c.refresh.Unlock()
	c.mu.Lock()
	start := c.seq
	c.mu.Unlock()
	l, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	next := l.records
	for name, s := range c.superseded {
		if next[s.by] != nil && next[name] != nil && next[name].same(s.record) {
			delete(next, name)
		} else {
			delete(c.superseded, name)
		}
	}
	// What was written here since the listing began is newer than it.
	for name, seq := range c.changed {
		if seq <= start {
			delete(c.changed, name)
		} else if r := c.records[name]; r != nil {
			next[name] = r
		} else {
			delete(next, name)
		}
	}
	for name, r := range next {
		switch old := c.records[name]; {
		case old == r:
		case old == nil || !r.same(old):
			changed = append(changed, name)
		case r.entry.Key != "":
			r.keep(old)
		}
	}
	for name := range c.records {
		if next[name] == nil {
			changed = append(changed, name)
		}
	}
	c.records, c.names, c.adopted = next, slices.Sorted(maps.Keys(next)), l.adopted
	c.bytes, c.newest = l.bytes, l.newest
	slices.Sort(changed)
	return changed, nil
}

// same reports whether r and old are of one version.
func (r *record) same(old *record) bool {
	if r.entry.Key != old.entry.Key || r.entry.ETag != old.entry.ETag {
		return false
	}
	return r.entry.Key != "" || sameDisks(r.image, old.image)
}

// keep takes over what old, a record of the same entry, knew.
func (r *record) keep(old *record) {
	old.mu.Lock()
	defer old.mu.Unlock()
	if r.kept = old.image; r.kept == nil {
		r.kept = old.kept
	}
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

// ModTime is the time of the newest entry, live or deleted, or adopted object:
// it stands still while the catalog does.
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

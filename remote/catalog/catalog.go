package catalog

import (
	"context"
	"fmt"
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
	life  context.Context // ends the listings that nobody waits for

	patience time.Duration // see soon

	// Locks are taken in this order: a stripe or two of writing, a record's
	// mu, mu. Nothing else is held with refresh but mu and a record's mu.
	refresh  sync.Mutex         // held while a refresh runs: one at a time
	verdicts map[string]verdict // guarded by refresh; of the last listing
	writing  stripes            // held while the image of a name is written

	mu         sync.Mutex
	listed     bool                 // guarded by mu; records are all there are, not only those asked for
	first      *attempt             // guarded by mu; at the first listing, while it runs
	records    map[string]*record   // guarded by mu
	names      []string             // guarded by mu; sorted, but for stale; replaced, never changed
	stale      map[string]bool      // guarded by mu; names that came or went since names was made
	adopted    map[string]*group    // guarded by mu; what may be adopted, also what is hidden; never changed
	superseded map[string]successor // guarded by mu; left over by renames that were cut
	seq        uint64               // guarded by mu; counts the writes of this catalog
	changed    map[string]uint64    // guarded by mu; the writes that a listing may not show yet
	bytes      int64                // guarded by mu; of all objects listed
	newest     time.Time            // guarded by mu; of all objects listed
}

// attempt is a listing that others may wait for.
type attempt struct {
	begun time.Time
	done  chan struct{} // closed at the end
	err   error         // how it ended
}

// successor says which image took the place of a record.
type successor struct {
	by     string
	record *record
}

// record is what a listing knows of a name. It is small, for there is one of
// every image: the image itself is made when it is looked up.
type record struct {
	entry remote.Object // zero for an adopted image
	group *group        // nil for an image with an entry

	mu    sync.Mutex
	image *Image // guarded by mu; nil until looked up
	kept  *Image // guarded by mu; from before the last refresh, may be reused
}

// Open lists the store. exts maps the extensions that are adopted, in lower
// case and without dot, to format names.
func Open(ctx context.Context, store remote.Store, exts map[string]string) (*Catalog, error) {
	c := New(ctx, store, exts)
	_, err := c.Refresh(ctx)
	return c, err
}

// New is Open without a listing, so it does no I/O: until the store was listed
// once, by [Catalog.Ready] or a Refresh, one image is looked for by itself, and
// what needs all images waits. The end of ctx ends the listing of Ready.
func New(ctx context.Context, store remote.Store, exts map[string]string) *Catalog {
	return &Catalog{
		store: store, exts: exts, life: ctx, patience: patience, writing: newStripes(),
		records: make(map[string]*record), stale: make(map[string]bool),
		superseded: make(map[string]successor), changed: make(map[string]uint64),
	}
}

// Ready waits until the store was listed once. It begins the listing if none is
// under way, and returns its error: the next call tries again. The end of ctx
// ends the wait and not the listing.
func (c *Catalog) Ready(ctx context.Context) error {
	c.mu.Lock()
	if c.listed {
		c.mu.Unlock()
		return nil
	}
	a := c.first
	if a == nil {
		a = &attempt{begun: time.Now(), done: make(chan struct{})}
		c.first = a
		go c.listFirst(a)
	}
	c.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the list of all images: %w", ctx.Err())
	}
}

func (c *Catalog) listFirst(a *attempt) {
	_, a.err = c.Refresh(c.life)
	c.mu.Lock()
	c.first = nil
	c.mu.Unlock()
	close(a.done)
}

// Refresh lists the store anew. It returns the names that are new, gone or of
// another version, but for what this catalog changed itself; none if it was not
// listed before. After an error the catalog is what it was before.
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
	c.verdicts = l.verdicts
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
			if !r.keep(old) {
				next[name] = old
			}
		case r.group.equal(old.group):
			next[name], l.adopted[name] = old, old.group
		}
	}
	for name := range c.records {
		if next[name] == nil {
			changed = append(changed, name)
		}
	}
	if !c.listed {
		changed = nil
	}
	c.listed, c.records, c.adopted = true, next, l.adopted
	c.names = slices.Sorted(maps.Keys(next))
	clear(c.stale)
	c.bytes, c.newest = l.bytes, l.newest
	slices.Sort(changed)
	return changed, nil
}

// same reports whether r and old are of one version.
func (r *record) same(old *record) bool {
	if r.entry.Key != old.entry.Key || r.entry.ETag != old.entry.ETag {
		return false
	}
	return r.entry.Key != "" || sameDisks(r.group.disks, old.group.disks, sameVersion)
}

// equal reports whether g and old make the same image.
func (g *group) equal(old *group) bool {
	return g.renewed == old.renewed && sameDisks(g.disks, old.disks, sameObject)
}

// keep takes over what old, a record of the same entry, knew; false if that is
// being looked up just now, for which nobody waits here.
func (r *record) keep(old *record) bool {
	if !old.mu.TryLock() {
		return false
	}
	defer old.mu.Unlock()
	if r.kept = old.image; r.kept == nil {
		r.kept = old.kept
	}
	return true
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func sameDisks(a, b []Disk, same func(a, b remote.Object) bool) bool {
	return slices.EqualFunc(a, b, func(a, b Disk) bool { return a.Number == b.Number && same(a.Object, b.Object) })
}

// sameVersion reports whether two objects have the same bytes.
func sameVersion(a, b remote.Object) bool { return a.Key == b.Key && a.ETag == b.ETag }

// sameObject reports whether two objects were put at one time, too.
func sameObject(a, b remote.Object) bool { return sameVersion(a, b) && a.ModTime.Equal(b.ModTime) }

// Names are the names of all images, sorted; before the first listing, of those
// that were looked up or written. The slice is not to be changed.
func (c *Catalog) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.stale) == 0 {
		return c.names
	}
	var came []string
	for name := range c.stale {
		if c.records[name] != nil {
			came = append(came, name)
		}
	}
	slices.Sort(came)
	names := make([]string, 0, len(c.records))
	for _, name := range c.names {
		if c.stale[name] {
			continue
		}
		for len(came) > 0 && came[0] < name {
			names, came = append(names, came[0]), came[1:]
		}
		names = append(names, name)
	}
	c.names = append(names, came...)
	clear(c.stale)
	return c.names
}

// Count is how many names Names has.
func (c *Catalog) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.records)
}

// Bytes is the size of the objects that lie directly in the store's folder, 0
// before the first listing.
func (c *Catalog) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// ModTime is the time of the newest entry, live or deleted, or adopted object:
// it stands still while the catalog does. Before the first listing it is 1970.
func (c *Catalog) ModTime() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.listed {
		return time.Unix(0, 0)
	}
	return c.newest
}

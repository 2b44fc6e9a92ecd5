package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"imagefs/remote"
)

// diskFolder holds the objects of imported disks. What lies there belongs to
// the catalog; what lies elsewhere goes only with an image that names it.
const diskFolder = "disks/"

// GCOptions say what GC removes.
type GCOptions struct {
	// OlderThan is how old something has to be to be removed. It has to
	// exceed the longest import, whose object no entry names yet.
	OlderThan time.Duration
	DryRun    bool             // remove nothing, only report
	Now       func() time.Time // nil: the clock
	Report    func(GCItem)     // nil: nobody; called for each item after it is gone
}

// GCItem is something that GC removed, or would.
type GCItem struct {
	Kind  string // "object", "upload", "entry" of a deleted image, or "mark" of an entry that went away
	Key   string
	Size  int64     // bytes of an object or an entry; 0 when unknown
	Time  time.Time // since when it is there, or deleted
	Image string    // name of the deleted image it belongs to; "" if to none
}

// GC removes from a store what is older than a time and no longer of use:
// deleted images with their objects, objects of disks that no entry names,
// uploads that were not completed, and the marks of entries that went away, once
// there was no deleted image of that name. It reads all entries first, and stops
// before it removes anything if one cannot be read. What an entry names that is
// live, or deleted and not that old, is never removed; nor are objects outside the
// folder of disks that were put anew since their image was deleted. A GC that was
// cut goes on when called again. A store that cannot write conditionally gives remote.ErrUnsupported.
func GC(ctx context.Context, store remote.Store, o GCOptions) error {
	if o.OlderThan < 0 {
		return fmt.Errorf("gc: age %v is negative", o.OlderThan)
	}
	now := time.Now
	if o.Now != nil {
		now = o.Now
	}
	g := &gc{store: store, o: o, cutoff: now().Add(-o.OlderThan), keep: make(map[string]bool), gone: make(map[string]bool)}
	if err := g.run(ctx); err != nil {
		return fmt.Errorf("gc: %w", err)
	}
	return nil
}

// gc is one GC under way.
type gc struct {
	store  remote.Store
	o      GCOptions
	cutoff time.Time
	keep   map[string]bool // keys that must stay
	gone   map[string]bool // keys that were removed
}

func (g *gc) run(ctx context.Context) error {
	// Before the entries: what comes into being later is no garbage.
	uploads, err := g.uploads(ctx)
	if err != nil {
		return err
	}
	var objects []remote.Object
	for o, err := range g.store.List(ctx, diskFolder) {
		if err != nil {
			return err
		}
		objects = append(objects, o)
	}
	s, err := takeSnapshot(ctx, g.store)
	if err != nil {
		return err
	}
	var graves, hiding, marks []document
	named, buried := make(map[string]bool), make(map[string]bool)
	for _, d := range s {
		if d.entry != nil && !d.entry.Hidden && strings.HasPrefix(d.object.Key, deletedFolder) {
			buried[entryKey(d.entry.Name)] = true
		}
		if d.entry != nil {
			for _, key := range d.entry.keys() {
				named[key] = true
			}
		}
		switch {
		case d.entry == nil:
			if g.old(d.object.ModTime) {
				marks = append(marks, d)
			}
		case !strings.HasPrefix(d.object.Key, deletedFolder):
			g.hold(d.entry)
		case d.entry.Hidden:
			if g.old(d.time()) {
				hiding = append(hiding, d)
			}
		case d.entry.Purging || g.old(d.time()):
			graves = append(graves, d)
		default:
			g.hold(d.entry)
		}
	}
	for _, d := range graves {
		if err := g.purge(ctx, d); err != nil {
			return err
		}
	}
	for _, d := range hiding {
		if err := g.unhide(ctx, d); err != nil {
			return err
		}
	}
	for _, o := range objects {
		if !named[o.Key] && g.old(o.ModTime) {
			if err := g.remove(ctx, GCItem{Kind: "object", Key: o.Key, Size: o.Size, Time: o.ModTime}); err != nil {
				return err
			}
		}
	}
	for _, u := range uploads {
		if err := g.abort(ctx, u); err != nil {
			return err
		}
	}
	for _, d := range marks {
		if buried[d.object.Key] {
			continue // a restore may just be about to put its entry there
		}
		if err := g.removeVersion(ctx, d.object, GCItem{Kind: "mark", Time: d.object.ModTime}); err != nil {
			return err
		}
	}
	return nil
}

// old reports whether something of that time may go.
func (g *gc) old(t time.Time) bool { return !t.After(g.cutoff) }

// hold keeps what an entry names.
func (g *gc) hold(e *Entry) {
	for _, key := range e.keys() {
		g.keep[key] = true
	}
}

// keys are the keys of all objects that an entry names, each once.
func (e *Entry) keys() []string {
	var keys []string
	seen := make(map[string]bool)
	add := func(key string) {
		if !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	for _, d := range e.Disks {
		add(d.Key)
		if d.Index != nil {
			add(d.Index.Key)
		}
	}
	for _, a := range e.Adopted {
		add(a.Key)
	}
	return keys
}

// isTop reports whether an object lies where objects are adopted.
func isTop(key string) bool { return !strings.Contains(key, "/") }

// purge removes a deleted image with its objects.
func (g *gc) purge(ctx context.Context, d document) error {
	e := d.entry
	if d.object.Key == hideKey(e.Name) {
		// As long as such an object stays, it would be adopted again.
		for _, key := range e.keys() {
			if isTop(key) && g.keep[key] {
				return nil
			}
		}
	}
	entry := d.object
	if !g.o.DryRun && !e.Purging {
		claimed := *e
		claimed.Purging = true
		doc, err := FormatEntry(&claimed)
		if err != nil {
			return err
		}
		entry, err = write(ctx, g.store, d.object.Key, doc, remote.Cond{ETag: d.object.ETag})
		if lost(err) {
			return nil // it was restored, or deleted again
		}
		if err != nil {
			return err
		}
	}
	for _, key := range e.keys() {
		if err := g.removeOf(ctx, d, key); err != nil {
			return err
		}
	}
	return g.removeVersion(ctx, entry, GCItem{Kind: "entry", Time: d.time(), Image: e.Name})
}

// removeOf removes an object of a deleted image.
func (g *gc) removeOf(ctx context.Context, d document, key string) error {
	if g.keep[key] || g.gone[key] || remote.CheckKey(key) != nil {
		return nil
	}
	o, err := g.store.Stat(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !strings.HasPrefix(key, diskFolder) && !d.deleted(o) {
		return nil
	}
	return g.remove(ctx, GCItem{Kind: "object", Key: key, Size: o.Size, Time: o.ModTime, Image: d.entry.Name})
}

// deleted reports whether an object is the one that was deleted, rather than
// one that was put in its place.
func (d document) deleted(o remote.Object) bool {
	for _, a := range d.entry.Adopted {
		if a.Key == o.Key {
			return a.is(o)
		}
	}
	for _, disk := range d.entry.Disks {
		if disk.Key == o.Key && disk.Size != 0 && disk.Size != o.Size {
			return false
		}
	}
	return !o.ModTime.After(d.time())
}

// unhide removes an entry that hides objects, once they are all gone.
func (g *gc) unhide(ctx context.Context, d document) error {
	for _, key := range d.entry.keys() {
		if !isTop(key) || g.gone[key] || remote.CheckKey(key) != nil {
			continue
		}
		if _, err := g.store.Stat(ctx, key); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return g.removeVersion(ctx, d.object, GCItem{Kind: "entry", Time: d.time(), Image: d.entry.Name})
}

// removeVersion removes an object if it is still that version, as far as a
// look just before can tell.
func (g *gc) removeVersion(ctx context.Context, v remote.Object, item GCItem) error {
	o, err := g.store.Stat(ctx, v.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.ETag != v.ETag || o.Size != v.Size || isMark(v) && !g.old(o.ModTime) {
		return nil
	}
	item.Key, item.Size = o.Key, o.Size
	return g.remove(ctx, item)
}

// remove removes an object and reports it.
func (g *gc) remove(ctx context.Context, item GCItem) error {
	if !g.o.DryRun {
		if err := g.store.Delete(ctx, item.Key); err != nil {
			return err
		}
	}
	g.gone[item.Key] = true
	g.report(item)
	return nil
}

func (g *gc) report(item GCItem) {
	if g.o.Report != nil {
		g.o.Report(item)
	}
}

// uploads are the keys whose unfinished uploads are all old, as items.
func (g *gc) uploads(ctx context.Context) ([]GCItem, error) {
	up, ok := g.store.(remote.Uploader)
	if !ok {
		return nil, nil
	}
	var items []GCItem
	newest := make(map[string]time.Time)
	for u, err := range up.Uploads(ctx, diskFolder) {
		if errors.Is(err, remote.ErrUnsupported) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if _, ok := newest[u.Key]; !ok {
			items = append(items, GCItem{Kind: "upload", Key: u.Key})
		}
		newest[u.Key] = later(newest[u.Key], u.Started)
	}
	var old []GCItem
	for _, item := range items {
		if item.Time = newest[item.Key]; g.old(item.Time) {
			old = append(old, item)
		}
	}
	return old, nil
}

// abort ends the uploads of a key.
func (g *gc) abort(ctx context.Context, item GCItem) error {
	up, ok := g.store.(remote.Uploader)
	if ok && !g.o.DryRun {
		if err := up.AbortUploads(ctx, item.Key); err != nil {
			return err
		}
	}
	g.report(item)
	return nil
}

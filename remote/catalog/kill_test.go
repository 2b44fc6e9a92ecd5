package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/dir"
	"imagefs/remote/mem"
)

// seeds is a store with images of every kind: of an entry, adopted, adopted
// with an entry, of an entry that hides what would be adopted, and deleted.
func seeds(t *testing.T, s remote.Store) {
	t.Helper()
	c := open(t, s)
	for _, key := range []string{"adopted-0.vhd", "adopted-1.vhd", "mixed.raw", "own.raw"} {
		put(t, s, key, "bytes of "+key)
	}
	_, err := c.Refresh(t.Context())
	must(t, err)
	putDisk(t, s, c, "entry", 0, "disks/e0", "")
	putDisk(t, s, c, "entry", 4, "disks/e4", "")
	putDisk(t, s, c, "mixed", 0, "disks/m0", "mixed.raw")
	put(t, s, "catalog/own.json", strings.NewReplacer("disks/a.qcow2", "own.raw", "disks/b.raw", "disks/e0", `"virtual_size":3`, `"declared":true`).Replace(entry))
	putDisk(t, s, c, "gone", 0, "disks/g0", "")
	put(t, s, "gone2.raw", "bytes")
	_, err = c.Refresh(t.Context())
	must(t, err)
	must(t, c.Remove(t.Context(), "gone"))
	must(t, c.Remove(t.Context(), "gone2"))
	put(t, s, "disks/stray", "nobody names it")
	put(t, s, "disks/new", "nobody names it yet")
}

// view tells what a catalog opened now shows, and complains of what is broken.
func view(t *testing.T, s remote.Store) string {
	t.Helper()
	var list []string
	c := open(t, s)
	must(t, c.All(t.Context(), func(im *catalog.Image) error {
		if im.Err != nil {
			t.Errorf("image %q: %v", im.Name, im.Err)
		}
		list = append(list, im.Name+":"+disks(im))
		return nil
	}))
	list = slices.DeleteFunc(list, func(s string) bool { // left over, seen now that all are loaded
		name, _, _ := strings.Cut(s, ":")
		return !c.Has(name)
	})
	return fmt.Sprintf("live %q deleted %q", list, deleted(t, c))
}

// step is what is killed. It is called once more after that.
type step struct {
	name string
	run  func(ctx context.Context, s remote.Store, c *catalog.Catalog) error
}

func steps() []step {
	steps := []step{
		{"gc", func(ctx context.Context, s remote.Store, _ *catalog.Catalog) error {
			return catalog.GC(ctx, s, catalog.GCOptions{Now: inAnHour})
		}},
		{"restore gone", func(ctx context.Context, _ remote.Store, c *catalog.Catalog) error {
			_, err := c.Restore(ctx, "gone")
			return err
		}},
		{"restore gone2", func(ctx context.Context, _ remote.Store, c *catalog.Catalog) error {
			_, err := c.Restore(ctx, "gone2")
			return err
		}},
	}
	for name, base := range map[string]string{"entry": "disks/e0", "adopted": "adopted-0.vhd", "mixed": "disks/m0", "own": "own.raw", "fresh": ""} {
		steps = append(steps, step{"put " + name, func(ctx context.Context, _ remote.Store, c *catalog.Catalog) error {
			_, err := c.PutDisk(ctx, name, 0, catalog.EntryDisk{Key: "disks/new", Format: "raw"}, base)
			return err
		}})
		if base != "" {
			steps = append(steps, step{"remove " + name, func(ctx context.Context, _ remote.Store, c *catalog.Catalog) error {
				return c.Remove(ctx, name)
			}}, step{"rename " + name, func(ctx context.Context, _ remote.Store, c *catalog.Catalog) error {
				return c.Rename(ctx, name, "renamed")
			}})
		}
	}
	return steps
}

// unlisted makes steps of catalogs that have not listed their store yet.
func unlisted(steps []step) []step {
	var list []step
	for _, st := range steps[1:] { // gc lists by itself
		list = append(list, step{st.name + ", not listed", func(ctx context.Context, s remote.Store, _ *catalog.Catalog) error {
			return st.run(ctx, s, catalog.New(ctx, s, exts))
		}})
	}
	return list
}

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

// A process may be killed before any of its requests: the catalog opens, every
// image is whole, and the step done again ends as if nothing had been.
func TestKilledAtEveryRequest(t *testing.T) {
	stores := map[string]func(t *testing.T) remote.Store{
		"mem": func(*testing.T) remote.Store { return mem.New() },
		"dir": func(t *testing.T) remote.Store {
			s, err := dir.Open(t.TempDir())
			must(t, err)
			t.Cleanup(func() { s.Close() })
			return s
		},
	}
	for where, fresh := range stores {
		for _, st := range append(steps(), unlisted(steps())...) {
			if where == "dir" && !slices.Contains([]string{"restore gone2", "rename adopted"}, st.name) {
				continue // a directory syncs every write
			}
			t.Run(where+"/"+st.name, func(t *testing.T) {
				s := fresh(t)
				seeds(t, s)
				before := view(t, s)
				must(t, st.run(t.Context(), s, open(t, s)))
				after := view(t, s)
				for k := 0; ; k++ {
					s := fresh(t)
					seeds(t, s)
					d := &dying{Store: s, left: -1}
					c := open(t, d)
					d.left = k
					err := st.run(t.Context(), d, c)
					if err == nil {
						break
					}
					wantErr(t, "killed", err, errKilled)
					between := view(t, s)
					if err := st.run(t.Context(), s, open(t, s)); err != nil && !(between == after && errors.Is(err, fs.ErrNotExist)) {
						t.Errorf("after %d requests: again: %v\nbetween %s", k, err, between)
					}
					if got := view(t, s); got != after {
						t.Errorf("after %d requests:\nbefore  %s\nbetween %s\ngot     %s\nwant    %s", k, before, between, got, after)
					}
				}
			})
		}
	}
}

package catalog_test

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

// deleted tells the deleted images as "name:disks", in the order given.
func deleted(t *testing.T, c *catalog.Catalog) []string {
	t.Helper()
	list, err := c.Deleted(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, im := range list {
		if im.Status != "deleted" || im.Err != nil || im.Deleted.IsZero() || im.ModTime.IsZero() {
			t.Errorf("deleted image %+v", im)
		}
		got = append(got, im.Name+":"+disks(im))
	}
	return got
}

func wantDeleted(t *testing.T, c *catalog.Catalog, want ...string) {
	t.Helper()
	if got := deleted(t, c); !slices.Equal(got, want) {
		t.Errorf("deleted %q, want %q", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRename(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c := open(t, s)
		id := putDisk(t, s, c, "a", 0, "disks/a", "").ID
		putDisk(t, s, c, "taken", 0, "disks/t", "")
		put(t, s, "adopted.raw", "x")
		_, err := c.Refresh(t.Context())
		must(t, err)
		wantErr(t, "over an image", c.Rename(t.Context(), "a", "taken"), fs.ErrExist)
		wantErr(t, "over an adopted image", c.Rename(t.Context(), "a", "adopted"), fs.ErrExist)
		wantErr(t, "of none", c.Rename(t.Context(), "none", "b"), fs.ErrNotExist)
		must(t, c.Rename(t.Context(), "a", "a"))
		if err := c.Rename(t.Context(), "a", "b/c"); err == nil {
			t.Error("renamed to a name with a slash")
		}
		must(t, c.Rename(t.Context(), "a", "b"))
		wantNames(t, s, c, "adopted", "b", "taken")
		wantImage(t, s, c, "b", "0=disks/a")
		if got := lookup(t, c, "b").ID; got != id {
			t.Errorf("id %x, was %x", got, id)
		}
		must(t, c.Rename(t.Context(), "b", "a"))
		wantNames(t, s, c, "a", "adopted", "taken")
		must(t, c.Rename(t.Context(), "a", "b"))
		putDisk(t, s, c, "a", 0, "disks/other", "")
		wantImage(t, s, c, "b", "0=disks/a")
		wantImage(t, s, c, "a", "0=disks/other")
		if got := lookup(t, c, "a").ID; got == id {
			t.Error("a new image has the id of the one that had its name")
		}
	})
}

func TestRenameOfAnAdoptedImage(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		put(t, s, "web-0.vhd", "zero")
		put(t, s, "web-1.vhd", "one")
		c := open(t, s)
		id := lookup(t, c, "web").ID
		must(t, c.Rename(t.Context(), "web", "www"))
		wantNames(t, s, c, "www")
		wantImage(t, s, c, "www", "0=web-0.vhd 1=web-1.vhd")
		wantDeleted(t, c)
		_, err := c.Restore(t.Context(), "web")
		wantErr(t, "restore of the old name", err, fs.ErrNotExist)
		must(t, c.Rename(t.Context(), "www", "web"))
		wantNames(t, s, c, "web")
		must(t, c.Rename(t.Context(), "web", "www"))
		wantNames(t, s, c, "www")
		if got := lookup(t, c, "www").ID; got != id {
			t.Errorf("id %x, was %x", got, id)
		}
		must(t, c.Remove(t.Context(), "www"))
		wantNames(t, s, c)
		wantDeleted(t, c, "www:0=web-0.vhd 1=web-1.vhd")
	})
}

func TestRemoveAndRestore(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c := open(t, s)
		im := putDisk(t, s, c, "a", 3, "disks/a", "")
		must(t, c.Remove(t.Context(), "a"))
		wantNames(t, s, c)
		wantDeleted(t, c, "a:3=disks/a")
		wantErr(t, "remove again", c.Remove(t.Context(), "a"), fs.ErrNotExist)
		putDisk(t, s, c, "a", 0, "disks/b", "")
		_, err := c.Restore(t.Context(), "a")
		wantErr(t, "restore over an image", err, fs.ErrExist)
		must(t, c.Remove(t.Context(), "a"))
		wantDeleted(t, c, "a:0=disks/b", "a:3=disks/a")
		for _, want := range []string{"0=disks/b", "3=disks/a"} {
			got, err := c.Restore(t.Context(), "a")
			must(t, err)
			if disks(got) != want {
				t.Errorf("restored %q, want %q", disks(got), want)
			}
			wantImage(t, s, c, "a", want)
			must(t, c.Rename(t.Context(), "a", "a "+want[:1]))
		}
		if got := lookup(t, c, "a 3"); got.ID != im.ID || !got.Created.Equal(im.Created) || !got.Deleted.IsZero() {
			t.Errorf("restored %+v, was %+v", got, im)
		}
		wantDeleted(t, c)
		_, err = c.Restore(t.Context(), "a")
		wantErr(t, "restore of none", err, fs.ErrNotExist)
		must(t, c.Remove(t.Context(), "a 3"))
		must(t, s.Delete(t.Context(), "disks/a"))
		_, err = c.Restore(t.Context(), "a 3")
		wantErr(t, "restore without the object", err, fs.ErrNotExist)
		wantNames(t, s, c, "a 0")
	})
}

func TestRemoveOfAnAdoptedImage(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		put(t, s, "web-0.vhd", "zero")
		put(t, s, "web-1.vhd", "one")
		c := open(t, s)
		id := lookup(t, c, "web").ID
		must(t, c.Remove(t.Context(), "web"))
		wantNames(t, s, c)
		_, err := c.Refresh(t.Context())
		must(t, err)
		wantNames(t, s, c)
		wantDeleted(t, c, "web:0=web-0.vhd 1=web-1.vhd")
		im, err := c.Restore(t.Context(), "web")
		must(t, err)
		if im.ID != id {
			t.Errorf("id %x, was %x", im.ID, id)
		}
		wantImage(t, s, c, "web", "0=web-0.vhd 1=web-1.vhd")
		putDisk(t, s, c, "web", 0, "disks/a", "web-0.vhd")
		must(t, c.Remove(t.Context(), "web"))
		wantNames(t, s, c)
		wantDeleted(t, c, "web:0=disks/a 1=web-1.vhd")
	})
}

func TestObjectsPutAfterARemovalAreAdopted(t *testing.T) {
	s := mem.New()
	put(t, s, "x.raw", "old")
	put(t, s, "catalog/own.json", strings.Replace(entry, `"disks/a.qcow2"`, `"own.raw"`, 1))
	put(t, s, "disks/b.raw", "bbb")
	put(t, s, "own.raw", "named by an entry of its name")
	c := open(t, s)
	must(t, c.Remove(t.Context(), "x"))
	must(t, c.Remove(t.Context(), "own"))
	wantNames(t, s, c)
	put(t, s, "x.raw", "old") // the same bytes
	put(t, s, "own.raw", "new")
	_, err := c.Refresh(t.Context())
	must(t, err)
	wantNames(t, s, c, "own", "x")
	wantImage(t, s, c, "x", "0=x.raw")
	_, err = c.Restore(t.Context(), "x")
	wantErr(t, "restore", err, fs.ErrExist)
	must(t, c.Rename(t.Context(), "x", "y"))
	wantNames(t, s, c, "own", "y")
	must(t, c.Remove(t.Context(), "own"))
	wantNames(t, s, c, "y")
}

func TestObjectsOfATimeToComeAreRemovedToo(t *testing.T) {
	s := &aged{Store: mem.New(), times: map[string]time.Time{"x.raw": time.Now().AddDate(5, 0, 0).Round(0)}}
	put(t, s, "x.raw", "x")
	c := open(t, s)
	must(t, c.Remove(t.Context(), "x"))
	wantNames(t, s, c)
	wantDeleted(t, c, "x:0=x.raw")
}

func TestLongNamesCanBeDeleted(t *testing.T) {
	s := mem.New()
	c := open(t, s)
	a, b := strings.Repeat("ä", 96)+"a", strings.Repeat("ä", 96)+"b"
	putDisk(t, s, c, a, 0, "disks/a", "")
	putDisk(t, s, c, b, 0, "disks/b", "")
	must(t, c.Remove(t.Context(), a))
	must(t, c.Remove(t.Context(), b))
	wantDeleted(t, c, a+":0=disks/a", b+":0=disks/b")
	_, err := c.Restore(t.Context(), a)
	must(t, err)
	wantImage(t, s, c, a, "0=disks/a")
	wantDeleted(t, c, b+":0=disks/b")
}

func TestWhatIsUnreadableIsNotRemoved(t *testing.T) {
	s := mem.New()
	put(t, s, "catalog/x.json", "{")
	put(t, s, "deleted/y~6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11.json", "{")
	c := open(t, s)
	if err := c.Remove(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "catalog/x.json") {
		t.Errorf("got %v", err)
	}
	list, err := c.Deleted(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "y" || list[0].Err == nil {
		t.Errorf("deleted %+v (%v)", list, err)
	}
	if _, err := c.Restore(t.Context(), "y"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "not valid JSON") {
		t.Errorf("got %v", err)
	}
}

// A rename that was cut leaves both names; the new one wins once it is loaded.
func TestARenameThatWasCut(t *testing.T) {
	setup := func(t *testing.T) (*mem.Store, *catalog.Catalog) {
		s := mem.New()
		put(t, s, "disks/a.qcow2", "aaaa")
		put(t, s, "disks/b.raw", "bbb")
		old := put(t, s, "catalog/hadoop.json", entry)
		put(t, s, "catalog/new.json", strings.Replace(entry, `"name":"hadoop"`,
			fmt.Sprintf(`"name":"new","renamed_from":"hadoop","renamed_etag":%q`, old.ETag), 1))
		return s, open(t, s)
	}
	t.Run("the old name goes when the new one is loaded", func(t *testing.T) {
		_, c := setup(t)
		lookup(t, c, "new")
		for range 2 {
			if got := c.Names(); !slices.Equal(got, []string{"new"}) {
				t.Errorf("names %q", got)
			}
			changed, err := c.Refresh(t.Context())
			if err != nil || len(changed) != 0 {
				t.Errorf("changed %q (%v)", changed, err)
			}
		}
	})
	t.Run("the rename is done again", func(t *testing.T) {
		for _, load := range []bool{false, true} {
			s, c := setup(t)
			if load {
				lookup(t, c, "new")
			}
			must(t, c.Rename(t.Context(), "hadoop", "new"))
			wantNames(t, s, c, "new")
		}
	})
	t.Run("the old name was changed since", func(t *testing.T) {
		s, c := setup(t)
		putDisk(t, s, c, "hadoop", 2, "disks/c", "")
		lookup(t, c, "new")
		if !c.Has("hadoop") {
			t.Error("an image that was changed is gone")
		}
		must(t, c.Rename(t.Context(), "hadoop", "new"))
		wantNames(t, s, c, "new")
		wantImage(t, s, c, "new", "0=disks/a.qcow2 1=disks/b.raw 2=disks/c")
	})
	t.Run("the new name was changed since", func(t *testing.T) {
		s, c := setup(t)
		putDisk(t, s, c, "new", 2, "disks/c", "")
		wantNames(t, s, c, "new")
		wantImage(t, s, c, "new", "0=disks/a.qcow2 1=disks/b.raw 2=disks/c")
	})
	t.Run("the new name is removed", func(t *testing.T) {
		s, c := setup(t)
		must(t, c.Remove(t.Context(), "new"))
		wantNames(t, s, c)
		wantDeleted(t, c, "new:0=disks/a.qcow2 1=disks/b.raw")
	})
	t.Run("the old name is taken", func(t *testing.T) {
		s, c := setup(t)
		lookup(t, c, "new")
		putDisk(t, s, c, "hadoop", 0, "disks/d", "")
		wantImage(t, s, c, "hadoop", "0=disks/d")
		wantImage(t, s, c, "new", "0=disks/a.qcow2 1=disks/b.raw")
	})
	t.Run("an adopted image", func(t *testing.T) {
		s := mem.New()
		put(t, s, "x.raw", "x")
		for k := 0; !inStore(t, s, "catalog/y.json"); k++ {
			d := &dying{Store: s, left: -1}
			c := open(t, d)
			d.left = k
			wantErr(t, "rename", c.Rename(t.Context(), "x", "y"), errKilled)
		}
		c := open(t, s)
		wantNames(t, s, c, "x", "y")
		lookup(t, c, "y")
		if c.Has("x") {
			t.Error("the old name is still there")
		}
		must(t, c.Remove(t.Context(), "y"))
		wantNames(t, s, c)
	})
}

// Two writers that move one image: one wins, and nothing is lost or doubled.
func TestRacingMoves(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		for round := range 6 {
			name := fmt.Sprintf("r%d", round)
			first := open(t, s)
			putDisk(t, s, first, name, 0, "disks/"+name, "")
			a, b, d := open(t, s), open(t, s), disk(t, s, "disks/"+name+".1")
			errs := together(
				func() error { return a.Rename(t.Context(), name, name+"a") },
				func() error { return b.Rename(t.Context(), name, name+"b") },
				func() error { _, err := first.PutDisk(t.Context(), name, 1, d, ""); return err },
			)
			c := open(t, s)
			var shown []string
			for _, n := range c.Names() {
				if strings.HasPrefix(n, name) {
					shown = append(shown, n+" "+disks(lookup(t, c, n)))
				}
			}
			// The disk came before the rename, or made a new image after it.
			whole := "0=disks/" + name + " 1=disks/" + name + ".1"
			moved := func(s string) bool { return strings.HasSuffix(s, "a "+whole) || strings.HasSuffix(s, "b "+whole) }
			switch {
			case errs[2] != nil:
				t.Errorf("put: %v", errs[2])
			case errs[0] == nil && errs[1] == nil && len(shown) == 1: // the second renamed nothing
				t.Errorf("both renames won: %q", shown)
			case len(shown) == 1 && moved(shown[0]):
			case len(shown) == 2 && shown[0] == name+" 1=disks/"+name+".1" && strings.HasSuffix(shown[1], "0=disks/"+name):
			case len(shown) == 2 && errs[0] == nil && errs[1] == nil: // one the image, the other the new one
			default:
				t.Errorf("round %d: %q with %v", round, shown, errs)
			}
		}
	})
}

func TestTheSecondRenameOfAnAdoptedImageIsTakenBack(t *testing.T) {
	m := mem.New()
	put(t, m, "x.raw", "x")
	other := open(t, m)
	s := &hook{Store: m}
	c := open(t, s)
	s.put = func(string) {
		s.put = nil
		must(t, other.Rename(t.Context(), "x", "theirs"))
	}
	wantErr(t, "rename", c.Rename(t.Context(), "x", "ours"), catalog.ErrConflict)
	wantNames(t, m, other, "theirs")
}

func TestARestoreThatGCOvertakesIsTakenBack(t *testing.T) {
	m := mem.New()
	s := &hook{Store: m}
	c := open(t, s)
	putDisk(t, m, c, "x", 0, "disks/x", "")
	must(t, c.Remove(t.Context(), "x"))
	s.put = func(key string) {
		if key == "catalog/x.json" {
			s.put = nil
			must(t, catalog.GC(t.Context(), m, catalog.GCOptions{Now: inAnHour}))
		}
	}
	_, err := c.Restore(t.Context(), "x")
	if err == nil {
		t.Error("restored an image whose object is gone")
	}
	wantNames(t, m, c)
}

func TestRemovalAgainstAWriter(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		for round := range 6 {
			name := fmt.Sprintf("r%d", round)
			a, b := open(t, s), open(t, s)
			putDisk(t, s, a, name, 0, "disks/"+name, "")
			d := disk(t, s, "disks/"+name+".1")
			errs := together(
				func() error { return a.Remove(t.Context(), name) },
				func() error { _, err := b.PutDisk(t.Context(), name, 1, d, ""); return err },
			)
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			c := open(t, s)
			var found []string
			if c.Has(name) {
				found = append(found, disks(lookup(t, c, name)))
			}
			for _, im := range deleted(t, c) {
				if d, ok := strings.CutPrefix(im, name+":"); ok {
					found = append(found, d)
				}
			}
			got := strings.Join(found, " ")
			if !strings.Contains(got, "0=disks/"+name) || !strings.Contains(got, "1=disks/"+name+".1") {
				t.Errorf("round %d: only %q is left", round, got)
			}
		}
	})
}

func TestNoConditionalMoves(t *testing.T) {
	m := mem.New()
	put(t, m, "catalog/hadoop.json", entry)
	put(t, m, "disks/a.qcow2", "aaaa")
	put(t, m, "disks/b.raw", "bbb")
	s := &plain{m}
	c := open(t, s)
	wantErr(t, "rename", c.Rename(t.Context(), "hadoop", "b"), remote.ErrUnsupported)
	wantErr(t, "remove", c.Remove(t.Context(), "hadoop"), remote.ErrUnsupported)
	wantErr(t, "touch", c.Touch(t.Context(), "hadoop", 0, time.Unix(1, 0)), remote.ErrUnsupported)
	wantNames(t, s, c, "hadoop")
}

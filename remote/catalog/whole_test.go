package catalog_test

import (
	"io/fs"
	"slices"
	"strings"
	"testing"

	"imagefs/remote"
	"imagefs/remote/catalog"
)

// numbered describes stored disks, numbered in the order of their keys.
func numbered(t *testing.T, s remote.Store, keys ...string) []catalog.EntryDisk {
	t.Helper()
	var ds []catalog.EntryDisk
	for n, key := range keys {
		d := disk(t, s, key)
		d.Number = n
		ds = append(ds, d)
	}
	return ds
}

func TestPutImage(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c := open(t, s)
		whole := catalog.NewImage{
			Disks: numbered(t, s, "disks/a", "disks/b"),
			Props: map[string]string{"cpus": "2"},
		}
		for range 2 { // the second is a repeated write whose answer was lost
			im, err := c.PutImage(t.Context(), "web", whole)
			if err != nil {
				t.Fatal(err)
			}
			if im.Props["cpus"] != "2" {
				t.Errorf("properties %v, want cpus 2", im.Props)
			}
		}
		wantImage(t, s, c, "web", "0=disks/a 1=disks/b")
		// Nothing of a second image may mix with the first.
		_, err := c.PutImage(t.Context(), "web", catalog.NewImage{Disks: numbered(t, s, "disks/c")})
		wantErr(t, "another image of the name", err, fs.ErrExist)
		_, err = c.PutImage(t.Context(), "web", catalog.NewImage{Disks: numbered(t, s, "disks/a")})
		wantErr(t, "a part of the image", err, fs.ErrExist)
		wantImage(t, s, c, "web", "0=disks/a 1=disks/b")
	})
}

func TestPutImageRefusals(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c := open(t, s)
		put(t, s, "plain.raw", "adopted")
		if _, err := c.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		good := numbered(t, s, "disks/a", "disks/b")
		twice := slices.Clone(good)
		twice[1].Number = 0
		missing := append(slices.Clone(good), catalog.EntryDisk{Number: 2, Key: "disks/none", Format: "raw"})
		for what, n := range map[string]struct {
			name  string
			disks []catalog.EntryDisk
		}{
			"no disk":           {"web", nil},
			"two of one number": {"web", twice},
			"a missing object":  {"web", missing},
			"a bad name":        {".web", good},
			"an adopted image":  {"plain", good},
		} {
			if _, err := c.PutImage(t.Context(), n.name, catalog.NewImage{Disks: n.disks}); err == nil {
				t.Errorf("%s: no error", what)
			}
		}
		wantNames(t, s, c, "plain")
	})
}

// TestOneImageOfANameWins: of several whole images of one name exactly one is
// there in the end, and whole.
func TestOneImageOfANameWins(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c, d := open(t, s), open(t, s)
		var fns []func() error
		for i, by := range []*catalog.Catalog{c, d, c, d} {
			n := catalog.NewImage{Disks: numbered(t, s, "disks/"+string(rune('a'+i))+"0", "disks/"+string(rune('a'+i))+"1")}
			fns = append(fns, func() error { _, err := by.PutImage(t.Context(), "web", n); return err })
		}
		won := 0
		for _, err := range together(fns...) {
			if err == nil {
				won++
			} else {
				wantErr(t, "the loser", err, fs.ErrExist)
			}
		}
		if won != 1 {
			t.Errorf("%d writers won", won)
		}
		im, err := open(t, s).Lookup(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		if got := disks(im); len(im.Disks) != 2 || strings.Count(got, got[2:len("disks/a")+2]) != 2 {
			t.Errorf("disks of two images: %s", got)
		}
	})
}

func TestPutIndex(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c := open(t, s)
		putDisk(t, s, c, "web", 0, "disks/a", "")
		o := put(t, s, "disks/a.index", "an index")
		x := catalog.Index{Key: o.Key, Size: o.Size, SHA256: strings.Repeat("0f", 32)}
		for range 2 {
			im, err := c.PutIndex(t.Context(), "web", 0, "disks/a", x)
			if err != nil {
				t.Fatal(err)
			}
			if d, _ := im.Disk(0); d.Index == nil || *d.Index != x {
				t.Errorf("got %v, want %v", d.Index, x)
			}
		}
		_, err := c.PutIndex(t.Context(), "web", 0, "disks/b", x)
		wantErr(t, "another object", err, catalog.ErrConflict)
		_, err = c.PutIndex(t.Context(), "web", 1, "disks/a", x)
		wantErr(t, "no such disk", err, fs.ErrNotExist)
		_, err = c.PutIndex(t.Context(), "none", 0, "disks/a", x)
		wantErr(t, "no such image", err, fs.ErrNotExist)
		if _, err = c.PutIndex(t.Context(), "web", 0, "disks/a", catalog.Index{Key: "disks/a.index", Size: 8}); err == nil {
			t.Error("an index without a hash is taken")
		}
		// The index goes with the disk: it is kept with it, and of no use
		// for another.
		if gone := gc(t, s, catalog.GCOptions{}); len(gone) != 0 {
			t.Errorf("removed %q", gone)
		}
		im := putDisk(t, s, c, "web", 0, "disks/c", "disks/a")
		if d, _ := im.Disk(0); d.Index != nil {
			t.Errorf("the index of the disk before is %v", d.Index)
		}
		want := []string{"object disks/a", "object disks/a.index"}
		if gone := gc(t, s, catalog.GCOptions{}); !slices.Equal(gone, want) {
			t.Errorf("removed %q, want %q", gone, want)
		}
	})
}

package catalog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

var exts = map[string]string{"qcow2": "qcow2", "vhd": "vhd", "vmdk": "vmdk", "raw": "raw", "img": "raw"}

// put stores an object and returns its version.
func put(t *testing.T, s remote.Store, key, body string) remote.Object {
	t.Helper()
	o, err := s.Put(t.Context(), key, strings.NewReader(body), int64(len(body)), remote.Cond{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func open(t *testing.T, s remote.Store) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(t.Context(), s, exts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func lookup(t *testing.T, c *catalog.Catalog, name string) *catalog.Image {
	t.Helper()
	im, err := c.Lookup(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

const entry = `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11","name":"hadoop",
	"created":"2026-01-31T12:00:00Z","tags":["prod"],"properties":{"os":"linux"},"future":true,
	"disks":[{"key":"disks/a.qcow2","format":"qcow2"},{"key":"disks/b.raw","format":"raw","virtual_size":3}]}`

func TestAdoption(t *testing.T) {
	for _, tc := range []struct {
		name string
		keys []string
		want string // name:number=key ...
	}{
		{"a plain object is an image of its name", []string{"centos7.qcow2"}, "centos7:0=centos7.qcow2"},
		{"img is raw, and case does not count in an extension", []string{"a.IMG"}, "a:0=a.IMG"},
		{"numbered objects are disks of one image", []string{"web-0.vhd", "web-1.vhd", "web-10.vhd"}, "web:0=web-0.vhd web:1=web-1.vhd web:10=web-10.vhd"},
		{"a number without a disk 0 is part of a name", []string{"debian-12.qcow2", "debian-13.qcow2"}, "debian-12:0=debian-12.qcow2 debian-13:0=debian-13.qcow2"},
		{"leading zeros are part of a name", []string{"a-0.vhd", "a-01.vhd"}, "a:0=a-0.vhd a-01:0=a-01.vhd"},
		{"a date is part of a name", []string{"a-0.vhd", "a-20260131.vhd"}, "a:0=a-0.vhd a-20260131:0=a-20260131.vhd"},
		{"a dot inside a name stays", []string{"ubuntu-24.04.qcow2"}, "ubuntu-24.04:0=ubuntu-24.04.qcow2"},
		{"other files and folders are left alone", []string{"README.md", "sub/x.qcow2", "noext", ".hidden.qcow2"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := mem.New()
			for _, k := range tc.keys {
				put(t, s, k, "x")
			}
			c := open(t, s)
			var got []string
			for _, name := range c.Names() {
				im := lookup(t, c, name)
				if im.Err != nil {
					t.Errorf("%s: %v", name, im.Err)
				}
				for _, d := range im.Disks {
					got = append(got, fmt.Sprintf("%s:%d=%s", name, d.Number, d.Object.Key))
				}
			}
			slices.Sort(got)
			want := strings.Fields(tc.want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestTwoObjectsForOneDiskAreAnError(t *testing.T) {
	s := mem.New()
	put(t, s, "a.qcow2", "x")
	put(t, s, "a.vmdk", "x")
	put(t, s, "b.raw", "x")
	c := open(t, s)
	im := lookup(t, c, "a")
	if im.Err == nil || !strings.Contains(im.Err.Error(), "a.qcow2") || !strings.Contains(im.Err.Error(), "a.vmdk") {
		t.Errorf("error names not both objects: %v", im.Err)
	}
	if lookup(t, c, "b").Err != nil {
		t.Error("a broken image hides another")
	}
}

func TestEntry(t *testing.T) {
	s := mem.New()
	put(t, s, "catalog/hadoop.json", entry)
	put(t, s, "disks/a.qcow2", "aaaa")
	put(t, s, "disks/b.raw", "bbb")
	put(t, s, "hadoop.vhd", "hidden by the entry of its name")
	c := open(t, s)
	if got := c.Names(); !slices.Equal(got, []string{"hadoop"}) {
		t.Fatalf("names %q", got)
	}
	im := lookup(t, c, "hadoop")
	if im.Err != nil || im.Status != "active" || len(im.Disks) != 2 || im.Props["os"] != "linux" || string(im.JSON) != entry {
		t.Errorf("image %+v", im)
	}
	if catalog.FormatID(im.ID) != "6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11" {
		t.Errorf("id %x", im.ID)
	}
	if d, ok := im.Disk(1); !ok || d.Object.Key != "disks/b.raw" || d.VirtualSize != 3 || d.Object.Size != 3 {
		t.Errorf("disk 1: %+v", d)
	}
	if _, ok := im.Disk(2); ok {
		t.Error("a disk 2 out of nowhere")
	}
}

func TestBrokenEntriesSayWhy(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"not JSON", "{", "not valid JSON"},
		{"another version", `{"version":2}`, "version 2"},
		{"no id", `{"version":1,"disks":[{"key":"a","format":"raw"}]}`, "not a UUID"},
		{"no disk", `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11"}`, "no disk"},
		{"a key that climbs", `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11","disks":[{"key":"../a","format":"raw"}]}`, `".."`},
		{"no format", `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11","disks":[{"key":"a"}]}`, "no format"},
		{"a short hash", `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11","disks":[{"key":"a","format":"raw","sha256":"ab"}]}`, "sha256"},
		{"a missing object", `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11","disks":[{"key":"gone","format":"raw"}]}`, `"gone" is missing`},
		{"another size", `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11","disks":[{"key":"ok.raw","format":"raw","size":9}]}`, "its entry says 9"},
		{"too long", strings.Repeat(" ", 1<<20+1), "more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := mem.New()
			put(t, s, "catalog/x.json", tc.doc)
			put(t, s, "ok.raw", "ok")
			c := open(t, s)
			im := lookup(t, c, "x")
			if im.Err == nil || !strings.Contains(im.Err.Error(), tc.want) {
				t.Errorf("got %v, want it to say %q", im.Err, tc.want)
			}
			if im.Status != "error" {
				t.Errorf("status %q", im.Status)
			}
			if lookup(t, c, "ok").Err != nil {
				t.Error("a broken entry hides another image")
			}
		})
	}
}

func TestRefresh(t *testing.T) {
	s := mem.New()
	put(t, s, "stays.raw", "1")
	put(t, s, "replaced.raw", "1")
	put(t, s, "removed.raw", "1")
	put(t, s, "catalog/hadoop.json", entry)
	put(t, s, "disks/a.qcow2", "aaaa")
	put(t, s, "disks/b.raw", "bbb")
	c := open(t, s)
	before := lookup(t, c, "replaced").Disks[0].Object
	lookup(t, c, "hadoop")

	put(t, s, "replaced.raw", "22")
	put(t, s, "new.raw", "1")
	put(t, s, "disks/b.raw", "BBB") // behind the entry's back
	if err := s.Delete(t.Context(), "removed.raw"); err != nil {
		t.Fatal(err)
	}
	old := lookup(t, c, "hadoop").Disks[1].Object.ETag
	changed, err := c.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"new", "removed", "replaced"}; !slices.Equal(changed, want) {
		t.Errorf("changed %q, want %q", changed, want)
	}
	if after := lookup(t, c, "replaced").Disks[0].Object; after.ETag == before.ETag {
		t.Error("a replaced object kept its version")
	}
	if _, err := c.Lookup(t.Context(), "removed"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	if got := lookup(t, c, "hadoop").Disks[1].Object.ETag; got == old {
		t.Error("an object replaced behind an entry kept its version after a refresh")
	}
}

// flaky fails on demand.
type flaky struct {
	remote.Store
	err error
}

func (f *flaky) Stat(ctx context.Context, key string) (remote.Object, error) {
	if f.err != nil {
		return remote.Object{}, f.err
	}
	return f.Store.Stat(ctx, key)
}

func TestAwayStoreServesWhatWasKnown(t *testing.T) {
	s := &flaky{Store: mem.New()}
	put(t, s, "catalog/hadoop.json", entry)
	put(t, s, "disks/a.qcow2", "aaaa")
	put(t, s, "disks/b.raw", "bbb")
	c := open(t, s)
	lookup(t, c, "hadoop")
	if _, err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.err = fmt.Errorf("stat: %w", remote.ErrUnavailable)
	if im := lookup(t, c, "hadoop"); im.Err != nil || len(im.Disks) != 2 {
		t.Errorf("image %+v", im)
	}
	s.err = fs.ErrPermission
	if _, err := c.Lookup(t.Context(), "hadoop"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("refused credentials: %v", err)
	}
}

func TestListingOpensNothing(t *testing.T) {
	m := mem.New()
	for i := range 10000 {
		put(t, m, fmt.Sprintf("image-%05d.qcow2", i), "x")
	}
	put(t, m, "catalog/entry.json", entry)
	s := remote.Observe(m)
	c := open(t, s)
	if n := len(c.Names()); n != 10001 {
		t.Errorf("%d names", n)
	}
	if got := s.Counts(); got.Reads != 0 || got.Stats != 0 || got.Lists != 3 {
		t.Errorf("listing asked the store for %+v, want three lists", got)
	}
}

func TestAllKeepsOrder(t *testing.T) {
	m := mem.New()
	for i := range 100 {
		put(t, m, fmt.Sprintf("i%03d.raw", i), "x")
	}
	var got []string
	c := open(t, m)
	if err := c.All(t.Context(), func(im *catalog.Image) error {
		got = append(got, im.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, c.Names()) {
		t.Errorf("got %q", got)
	}
	stop := errors.New("stop")
	if err := c.All(t.Context(), func(*catalog.Image) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func TestAdoptedImageIsTheSameInACopy(t *testing.T) {
	a, b := mem.New(), mem.New()
	put(t, a, "x.raw", "1")
	put(t, b, "other.raw", "2")
	put(t, b, "x.raw", "1")
	ia, ib := lookup(t, open(t, a), "x"), lookup(t, open(t, b), "x")
	if ia.ID != ib.ID || string(ia.JSON) != string(ib.JSON) {
		t.Error("identity or document differ")
	}
	if ia.ID == lookup(t, open(t, b), "other").ID {
		t.Error("two images share an identity")
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(entry))
	f.Add([]byte(`{"version":1,"disks":[{}]}`))
	f.Add([]byte(full))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := catalog.ParseEntry(b)
		if err != nil {
			return
		}
		for _, d := range e.Disks {
			if remote.CheckKey(d.Key) != nil {
				t.Errorf("key %q passed", d.Key)
			}
		}
		once, err := catalog.FormatEntry(e)
		if err != nil {
			return // too long indented, or of a year that cannot be written
		}
		again, err := catalog.ParseEntry(once)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, once)
		}
		if twice, err := catalog.FormatEntry(again); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("written as\n%s\nand then as\n%s (%v)", once, twice, err)
		}
	})
}

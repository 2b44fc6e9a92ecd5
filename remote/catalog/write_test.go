package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/dir"
	"imagefs/remote/mem"
	"imagefs/remote/remotetest"
	"imagefs/remote/s3"
)

// everyStore runs a test over a store in memory, one in a directory and one
// behind the S3 protocol.
func everyStore(t *testing.T, test func(t *testing.T, s remote.Store)) {
	t.Run("mem", func(t *testing.T) { test(t, mem.New()) })
	t.Run("dir", func(t *testing.T) {
		s, err := dir.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		test(t, s)
	})
	t.Run("s3", func(t *testing.T) { test(t, bucket(t, remotetest.NewServer(t))) })
}

// bucket opens the bucket of a server.
func bucket(t *testing.T, srv *remotetest.Server) remote.Store {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, "credentials"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, "config"))
	for _, name := range []string{"AWS_PROFILE", "HTTP_PROXY", "http_proxy"} {
		t.Setenv(name, "")
	}
	s, err := s3.Open(t.Context(), s3.Config{
		Bucket: srv.Bucket, Endpoint: srv.Endpoint, Region: "us-east-1",
		AccessKey: srv.Key, SecretKey: s3.Secret(srv.Secret),
		Budget: 20 * time.Second, Stall: 10 * time.Second, // much, for busy machines
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// disk stores an object of a disk and describes it.
func disk(t *testing.T, s remote.Store, key string) catalog.EntryDisk {
	t.Helper()
	o := put(t, s, key, "bytes of "+key)
	return catalog.EntryDisk{Key: key, Format: "raw", Size: o.Size}
}

// putDisk is PutDisk of an object that is stored for it.
func putDisk(t *testing.T, s remote.Store, c *catalog.Catalog, name string, n int, key, base string) *catalog.Image {
	t.Helper()
	im, err := c.PutDisk(t.Context(), name, n, disk(t, s, key), base)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// disks tells an image's disks as number=key.
func disks(im *catalog.Image) string {
	var list []string
	for _, d := range im.Disks {
		list = append(list, fmt.Sprintf("%d=%s", d.Number, d.Object.Key))
	}
	return strings.Join(list, " ")
}

// wantImage asks that c, and a catalog opened now, show an image with disks.
func wantImage(t *testing.T, s remote.Store, c *catalog.Catalog, name, want string) {
	t.Helper()
	for _, c := range []*catalog.Catalog{c, open(t, s)} {
		im := lookup(t, c, name)
		if got := disks(im); im.Err != nil || got != want || im.Name != name {
			t.Errorf("image %q: %q has the disks %q (%v), want %q", name, im.Name, got, im.Err, want)
		}
		if !c.Has(name) || !slices.Contains(c.Names(), name) || !slices.IsSorted(c.Names()) {
			t.Errorf("image %q is not among %q", name, c.Names())
		}
	}
}

// wantNames asks that c, and a catalog opened now, show exactly these images.
func wantNames(t *testing.T, s remote.Store, c *catalog.Catalog, want ...string) {
	t.Helper()
	slices.Sort(want)
	for i, c := range []*catalog.Catalog{c, open(t, s)} {
		if got := c.Names(); !slices.Equal(got, want) {
			t.Errorf("catalog %d: names %q, want %q", i, got, want)
		}
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func TestPutDisk(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c := open(t, s)
		im := putDisk(t, s, c, "web", 1, "disks/web.1.a.raw", "")
		if im.Status != "active" || im.Created.IsZero() || im.ID[6]>>4 != 4 || im.ModTime.IsZero() {
			t.Errorf("image %+v", im)
		}
		wantImage(t, s, c, "web", "1=disks/web.1.a.raw")
		putDisk(t, s, c, "web", 0, "disks/web.0.a.raw", "")
		after := putDisk(t, s, c, "web", 1, "disks/web.1.b.raw", "disks/web.1.a.raw")
		wantImage(t, s, c, "web", "0=disks/web.0.a.raw 1=disks/web.1.b.raw")
		if after.ID != im.ID || !after.Created.Equal(im.Created) || !after.ModTime.After(im.ModTime) {
			t.Errorf("was %+v, is %+v", im, after)
		}
		if again := lookup(t, open(t, s), "web"); !again.ModTime.Equal(after.ModTime) || string(again.JSON) != string(after.JSON) {
			t.Errorf("shown as\n%s\nstored as\n%s", after.JSON, again.JSON)
		}
		changed, err := c.Refresh(t.Context())
		if err != nil || len(changed) != 0 {
			t.Errorf("a refresh found %q changed (%v)", changed, err)
		}
	})
}

func TestPutDiskRefusals(t *testing.T) {
	s := mem.New()
	c := open(t, s)
	putDisk(t, s, c, "web", 0, "disks/a", "")
	d := disk(t, s, "disks/b")
	wrong := d
	wrong.Size++
	put(t, s, "catalog/broken.json", "{")
	put(t, s, "two.raw", "1")
	put(t, s, "two.vhd", "1")
	if _, err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, image string
		n           int
		d           catalog.EntryDisk
		base        string
		want        error // nil: any
	}{
		{"a disk that is there", "web", 0, d, "", catalog.ErrConflict},
		{"over another base", "web", 0, d, "disks/x", catalog.ErrConflict},
		{"a disk that is gone", "web", 1, d, "disks/a", catalog.ErrConflict},
		{"an image that is gone", "new", 0, d, "disks/a", catalog.ErrConflict},
		{"an object that is missing", "web", 1, catalog.EntryDisk{Key: "disks/none", Format: "raw"}, "", fs.ErrNotExist},
		{"an object of another size", "web", 1, wrong, "", nil},
		{"no format", "web", 1, catalog.EntryDisk{Key: "disks/b"}, "", nil},
		{"a key that climbs", "web", 1, catalog.EntryDisk{Key: "../b", Format: "raw"}, "", nil},
		{"a negative number", "web", -1, d, "", nil},
		{"a large number", "web", 256, d, "", nil},
		{"a name with a slash", "a/b", 0, d, "", nil},
		{"a hidden name", ".a", 0, d, "", nil},
		{"no name", "", 0, d, "", nil},
		{"a long name", strings.Repeat("x", 196), 0, d, "", nil},
		{"an entry that cannot be read", "broken", 0, d, "", nil},
		{"an adopted image that contradicts itself", "two", 1, d, "", nil},
	} {
		_, err := c.PutDisk(t.Context(), tc.image, tc.n, tc.d, tc.base)
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	wantNames(t, s, c, "broken", "two", "web")
	wantImage(t, s, c, "web", "0=disks/a")
}

func TestPutDiskAgainIsNoError(t *testing.T) {
	m := mem.New()
	s := remote.Observe(m)
	c := open(t, s)
	d := disk(t, m, "disks/a")
	if _, err := c.PutDisk(t.Context(), "web", 0, d, ""); err != nil {
		t.Fatal(err)
	}
	other := open(t, m)
	for _, c := range []*catalog.Catalog{c, other} {
		if _, err := c.PutDisk(t.Context(), "web", 0, d, ""); err != nil {
			t.Error(err)
		}
	}
	if n := s.Counts().Puts; n != 1 {
		t.Errorf("%d puts, want 1", n)
	}
	wantImage(t, m, other, "web", "0=disks/a")
}

func TestPutDiskOverAnAdoptedImage(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		put(t, s, "web-0.vhd", "zero")
		put(t, s, "web-5.vhd", "five")
		c := open(t, s)
		put(t, s, "web-7.vhd", "came after the listing")
		id := lookup(t, c, "web").ID
		_, err := c.PutDisk(t.Context(), "web", 0, disk(t, s, "disks/x"), "")
		wantErr(t, "over an adopted disk", err, catalog.ErrConflict)
		putDisk(t, s, c, "web", 0, "disks/a", "web-0.vhd")
		wantImage(t, s, c, "web", "0=disks/a 5=web-5.vhd 7=web-7.vhd")
		putDisk(t, s, c, "web", 1, "disks/b", "")
		wantImage(t, s, c, "web", "0=disks/a 1=disks/b 5=web-5.vhd 7=web-7.vhd")
		if got := lookup(t, c, "web").ID; got != id {
			t.Errorf("id %x, was %x", got, id)
		}
	})
}

func TestUnknownFieldsSurvive(t *testing.T) {
	s := mem.New()
	put(t, s, "disks/a.qcow2", "aaaa")
	put(t, s, "disks/b.raw", "bbb")
	put(t, s, "catalog/hadoop.json", strings.Replace(entry, `"key":"disks/a.qcow2"`, `"key":"disks/a.qcow2","note":"<mine>"`, 1))
	c := open(t, s)
	putDisk(t, s, c, "hadoop", 1, "disks/c.raw", "disks/b.raw")
	if err := c.Touch(t.Context(), "hadoop", 1, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	im := lookup(t, c, "hadoop")
	for _, want := range []string{`"future": true`, `"note": "<mine>"`, `"os": "linux"`} {
		if !strings.Contains(string(im.JSON), want) {
			t.Errorf("no %s in\n%s", want, im.JSON)
		}
	}
	if d, _ := im.Disk(1); !d.Modified.Equal(time.Unix(1, 0)) {
		t.Errorf("disk 1: %+v", d)
	}
}

func TestTouch(t *testing.T) {
	s := remote.Observe(mem.New())
	put(t, s, "x.raw", "x")
	c := open(t, s)
	putDisk(t, s, c, "web", 0, "disks/a", "")
	when := time.Date(2020, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	for range 2 { // the second time changes nothing
		if err := c.Touch(t.Context(), "web", 0, when); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Counts().Puts; n != 4 {
		t.Errorf("%d puts, want 4: two objects and two entries", n)
	}
	if d, _ := lookup(t, open(t, s), "web").Disk(0); !d.Modified.Equal(when) {
		t.Errorf("modified %v, want %v", d.Modified, when)
	}
	wantErr(t, "no image", c.Touch(t.Context(), "none", 0, when), fs.ErrNotExist)
	wantErr(t, "no disk", c.Touch(t.Context(), "web", 1, when), fs.ErrNotExist)
	if err := c.Touch(t.Context(), "web", 0, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)); err == nil {
		t.Error("a year that JSON cannot hold was written")
	}
	if err := c.Touch(t.Context(), "x", 0, when); err != nil {
		t.Fatal(err)
	}
	wantImage(t, s, c, "x", "0=x.raw")
}

// together runs some functions at once and returns their errors.
func together(fns ...func() error) []error {
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() { errs[i] = fn() })
	}
	wg.Wait()
	return errs
}

func TestOneWriterOfADiskWins(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		base := ""
		for round := range 8 {
			var fns []func() error
			var keys []string
			for i := range 4 {
				c, d := open(t, s), disk(t, s, fmt.Sprintf("disks/web.%d.%d", round, i))
				keys = append(keys, d.Key)
				fns = append(fns, func() error {
					_, err := c.PutDisk(t.Context(), "web", 0, d, base)
					return err
				})
			}
			won := ""
			for i, err := range together(fns...) {
				switch {
				case err == nil && won == "":
					won = keys[i]
				case !errors.Is(err, catalog.ErrConflict):
					t.Errorf("round %d: got %v after %q won, want ErrConflict", round, err, won)
				}
			}
			c := open(t, s)
			wantImage(t, s, c, "web", "0="+won)
			base = won
		}
	})
}

func TestEveryWriterOfAnotherDiskWins(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		for round := range 4 {
			name := fmt.Sprintf("web%d", round)
			var fns []func() error
			var want []string
			for i := range 5 {
				c, d := open(t, s), disk(t, s, fmt.Sprintf("disks/%s.%d", name, i))
				want = append(want, fmt.Sprintf("%d=%s", i, d.Key))
				fns = append(fns, func() error {
					_, err := c.PutDisk(t.Context(), name, i, d, "")
					return err
				})
			}
			if err := errors.Join(together(fns...)...); err != nil {
				t.Error(err)
			}
			wantImage(t, s, open(t, s), name, strings.Join(want, " "))
		}
	})
}

func TestOneCatalogWritesFromManyGoroutines(t *testing.T) {
	s := mem.New()
	c := open(t, s)
	var fns []func() error
	for i := range 32 {
		d := disk(t, s, fmt.Sprintf("disks/%d", i))
		fns = append(fns, func() error {
			_, err := c.PutDisk(t.Context(), fmt.Sprintf("web%d", i%4), i/4, d, "")
			return err
		}, func() error {
			_, err := c.Refresh(t.Context())
			return err
		})
	}
	if err := errors.Join(together(fns...)...); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if im := lookup(t, c, fmt.Sprintf("web%d", i)); len(im.Disks) != 8 {
			t.Errorf("%s has the disks %q", im.Name, disks(im))
		}
	}
}

func TestNoConditionalWrites(t *testing.T) {
	srv := remotetest.NewServer(t)
	srv.Set(func(f *remotetest.Faults) { f.NoConditions = true })
	s := bucket(t, srv)
	put(t, s, "x.raw", "x")
	c := open(t, s)
	d := disk(t, s, "disks/a")
	_, err := c.PutDisk(t.Context(), "web", 0, d, "")
	wantErr(t, "put", err, remote.ErrUnsupported)
	if err == nil || !strings.Contains(err.Error(), "needs a store that can write conditionally") {
		t.Errorf("got %v", err)
	}
	wantNames(t, s, c, "x")
}

// gate lets a test act in the middle of a listing.
type gate struct {
	remote.Store
	during func(folder string)
}

// List calls during after a folder was listed and before anyone hears of it.
func (g *gate) List(ctx context.Context, folder string) iter.Seq2[remote.Object, error] {
	return func(yield func(remote.Object, error) bool) {
		type result struct {
			o   remote.Object
			err error
		}
		var list []result
		for o, err := range g.Store.List(ctx, folder) {
			list = append(list, result{o, err})
		}
		if g.during != nil {
			g.during(folder)
		}
		for _, r := range list {
			if !yield(r.o, r.err) {
				return
			}
		}
	}
}

func TestARefreshThatBeganBeforeUndoesNothing(t *testing.T) {
	m := mem.New()
	g := &gate{Store: m}
	c := open(t, g)
	putDisk(t, m, c, "stays", 0, "disks/a", "")
	for _, folder := range []string{catalog.Folder, "deleted/", ""} {
		name := "new " + folder[:min(1, len(folder))]
		g.during = func(f string) {
			if f == folder {
				g.during = nil
				putDisk(t, m, c, name, 0, "disks/b"+name, "")
			}
		}
		changed, err := c.Refresh(t.Context())
		if err != nil || len(changed) != 0 {
			t.Errorf("changed %q (%v)", changed, err)
		}
		wantImage(t, m, c, name, "0=disks/b"+name)
	}
	if changed, err := c.Refresh(context.Background()); err != nil || len(changed) != 0 {
		t.Errorf("changed %q (%v)", changed, err)
	}
}

package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

// lists is a store that notes which prefixes are listed.
type lists struct {
	remote.Store
	mu       sync.Mutex
	prefixes []string // guarded by mu
}

func (s *lists) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	s.mu.Lock()
	s.prefixes = append(s.prefixes, prefix)
	s.mu.Unlock()
	return s.Store.List(ctx, prefix)
}

// whole reports whether a folder was listed that has something of every image.
func (s *lists) whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.prefixes, func(p string) bool { return p == "" || strings.HasSuffix(p, "/") })
}

// told is all that a catalog says of an image.
func told(t *testing.T, c *catalog.Catalog, name string) string {
	t.Helper()
	im, err := c.Lookup(t.Context(), name)
	if errors.Is(err, fs.ErrNotExist) {
		if c.Has(name) {
			t.Errorf("there is an image %q, which cannot be looked up: %v", name, err)
		}
		return "none"
	}
	must(t, err)
	if !c.Has(name) {
		t.Errorf("there is no image %q, which can be looked up", name)
	}
	return fmt.Sprintf("%s %s %s %v %v\n%s", catalog.FormatID(im.ID), im.Status, disks(im), im.ModTime.UTC(), im.Err, im.JSON)
}

// odd makes images that are hard to tell by their names, and returns all names
// that may be taken for one.
func odd(t *testing.T, s remote.Store) []string {
	t.Helper()
	seeds(t, s)
	for _, key := range []string{
		"web-0.vhd", "web-1.vhd", "web-10.vhd", "web-x.vhd", "web.raw", // two disks 0
		"debian-12.qcow2", "debian-13.qcow2", "debian-12.1.qcow2",
		"a-0.vhd", "a-01.vhd", "a-1-0.vhd", "a-1-1.vhd", "a-1.raw", "a-256.raw",
		"ubuntu-24.04.IMG", "ubuntu-24.raw", "README.md", "dash-.raw", "-0.raw",
		"gone-2.raw", "back.raw", "moved.raw", "sub/x.raw",
	} {
		put(t, s, key, "bytes of "+key)
	}
	c := open(t, s)
	must(t, c.Remove(t.Context(), "debian-13"))
	must(t, c.Remove(t.Context(), "back"))
	put(t, s, "back.raw", "put anew after it was removed")
	must(t, c.Rename(t.Context(), "moved", "there"))
	putDisk(t, s, c, "other", 0, "disks/o0", "")
	must(t, c.Rename(t.Context(), "other", "there2"))
	put(t, s, "catalog/broken.json", "{")
	names := []string{
		"adopted", "adopted-0", "mixed", "own", "entry", "gone", "gone2", "fresh", "web", "web-0", "web-1", "web-10",
		"web-x", "debian", "debian-12", "debian-12.1", "debian-13", "a", "a-0", "a-01", "a-1", "a-1-0", "a-1-1", "a-256", "ubuntu-24.04",
		"ubuntu-24", "README", "dash-", "-0", "gone-2", "back", "moved", "there", "other", "there2", "sub", "x", "broken",
		"", ".", "a/b", strings.Repeat("n", 300),
	}
	for _, name := range open(t, s).Names() {
		if !slices.Contains(names, name) {
			t.Errorf("%q is an image that is not tried", name)
		}
	}
	return names
}

// gated is a store whose listings wait, and then fail or not.
type gated struct {
	remote.Store
	begun chan struct{} // told of the first
	gate  chan error
}

func (s *gated) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	if prefix != catalog.Folder {
		return s.Store.List(ctx, prefix)
	}
	close(s.begun)
	if err := <-s.gate; err != nil {
		return func(yield func(remote.Object, error) bool) { yield(remote.Object{}, err) }
	}
	return s.Store.List(ctx, prefix)
}

// A name waits a moment for a listing that has just begun, which answers sooner
// than four questions do.
func TestOneNameWaitsForAListingThatIsSoonThrough(t *testing.T) {
	s := mem.New()
	put(t, s, "a.raw", "bytes")
	for _, failure := range []error{nil, remote.ErrUnavailable} {
		count := remote.Observe(s)
		g := &gated{Store: count, begun: make(chan struct{}), gate: make(chan error, 1)}
		c := catalog.New(t.Context(), g, exts)
		c.SetPatience(time.Hour)
		listed := make(chan error, 1)
		go func() { listed <- c.Ready(t.Context()) }()
		<-g.begun
		found := make(chan error, 1)
		go func() {
			ok, err := c.Exists(t.Context(), "a")
			if err == nil && !ok {
				err = fs.ErrNotExist
			}
			found <- err
		}()
		g.gate <- failure
		if err := <-listed; !errors.Is(err, failure) {
			t.Errorf("list: %v, want %v", err, failure)
		}
		must(t, <-found)
		if n := count.Counts(); (n.Stats > 0) != (failure != nil) {
			t.Errorf("listing that ends with %v: %+v", failure, n)
		}
	}
}

func TestOneNameIsFoundBeforeTheListing(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		names := odd(t, s)
		listed := open(t, s)
		for _, name := range names {
			count := remote.Observe(s)
			l := &lists{Store: count}
			c := catalog.New(t.Context(), l, exts)
			if got, want := told(t, c, name), told(t, listed, name); got != want {
				t.Errorf("%q before the listing: %s\nafter: %s", name, got, want)
			}
			if l.whole() {
				t.Errorf("%q was found by listing %q", name, l.prefixes)
			}
			// Twice where there is none, and with the disks of an entry.
			if n := count.Counts(); n.Stats+n.Lists+n.Reads > 14 {
				t.Errorf("%q: %d requests for looking it up: %+v", name, n.Stats+n.Lists+n.Reads, n)
			}
			must(t, c.Ready(t.Context()))
			if got, want := c.Names(), listed.Names(); !slices.Equal(got, want) {
				t.Errorf("%q: then listed as %q, want %q", name, got, want)
			}
			if got, want := told(t, c, name), told(t, listed, name); got != want {
				t.Errorf("%q once listed: %s\nwant: %s", name, got, want)
			}
		}
	})
}

// What the catalog is asked for before the listing is kept, and no request is
// made again for it.
func TestFoundNamesAreKept(t *testing.T) {
	m := mem.New()
	put(t, m, "a.raw", "x")
	s := remote.Observe(m)
	c := catalog.New(t.Context(), s, exts)
	lookup(t, c, "a")
	before := s.Counts()
	if lookup(t, c, "a"); !c.Has("a") || s.Counts() != before {
		t.Errorf("asked again: %+v, then %+v", before, s.Counts())
	}
	if n := c.Count(); n != 1 || !slices.Equal(c.Names(), []string{"a"}) {
		t.Errorf("%d images: %q", n, c.Names())
	}
}

// A rename that was cut after it wrote the new entry leaves the old one, which
// is not shown once the new one was looked at.
func TestLeftOverNameBeforeTheListing(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		m := mem.New()
		c := open(t, m)
		if adopted {
			put(t, m, "old.raw", "x")
			_, err := c.Refresh(t.Context())
			must(t, err)
		} else {
			putDisk(t, m, c, "old", 0, "disks/a", "")
		}
		for left := 0; ; left++ {
			d := &dying{Store: m, left: left}
			err := c2(t, d, m).Rename(t.Context(), "old", "new")
			if inStore(t, m, "catalog/new.json") {
				break
			}
			wantErr(t, "rename", err, errKilled)
		}
		c = catalog.New(t.Context(), m, exts)
		if !c.Has("old") {
			t.Fatal("nothing is left over")
		}
		for _, c := range []*catalog.Catalog{c, catalog.New(t.Context(), m, exts)} {
			lookup(t, c, "new")
			if _, err := c.Lookup(t.Context(), "old"); !errors.Is(err, fs.ErrNotExist) || c.Has("old") {
				t.Errorf("adopted %v: what a rename left over is shown (%v)", adopted, err)
			}
			must(t, c.Ready(t.Context()))
			if got := c.Names(); !slices.Equal(got, []string{"new"}) {
				t.Errorf("adopted %v: then listed as %q", adopted, got)
			}
		}
		c = catalog.New(t.Context(), m, exts)
		must(t, c.Touch(t.Context(), "new", 0, time.Unix(1, 0)))
		wantNames(t, m, open(t, m), "new")
	}
}

// c2 is a catalog of d that was opened while nothing was killed.
func c2(t *testing.T, d *dying, m remote.Store) *catalog.Catalog {
	t.Helper()
	left := d.left
	d.left = -1
	c := open(t, d)
	d.left = left
	return c
}

func TestReadyWaitsAndTriesAgain(t *testing.T) {
	m := mem.New()
	put(t, m, "a.raw", "x")
	d := &dying{Store: m}
	c := catalog.New(t.Context(), d, exts)
	wantErr(t, "listing", c.Ready(t.Context()), errKilled)
	wantErr(t, "all", c.All(t.Context(), func(*catalog.Image) error { return nil }), errKilled)
	_, err := c.Deleted(t.Context())
	wantErr(t, "deleted", err, errKilled)
	_, err = c.Exists(t.Context(), "a")
	wantErr(t, "exists", err, errKilled)
	if !c.Has("never") {
		t.Error("what the store does not tell is taken for free")
	}
	d.left = -1

	// One listing serves all who wait, and ends without them.
	held, release := make(chan struct{}), make(chan struct{})
	g := &gate{Store: m}
	n := 0
	g.during = func(string) {
		if n++; n == 1 {
			close(held)
			<-release
		}
	}
	count := &lists{Store: g}
	c = catalog.New(t.Context(), count, exts)
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error, 3)
	go func() { waits <- c.Ready(ctx) }()
	<-held
	if _, err := c.Lookup(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a look-up while the listing stands: %v", err)
	}
	cancel()
	wantErr(t, "cancelled", <-waits, context.Canceled)
	for range 3 {
		go func() { waits <- c.Ready(t.Context()) }()
	}
	close(release)
	for range 3 {
		must(t, <-waits)
	}
	must(t, c.Ready(ctx)) // nothing to wait for
	n = 0
	for _, p := range count.prefixes {
		if p == catalog.Folder {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d listings, want one", n)
	}
}

func TestTheEndOfTheCatalogEndsItsListing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := catalog.New(ctx, mem.New(), exts)
	cancel()
	wantErr(t, "listing", c.Ready(t.Context()), context.Canceled)
}

// Writes while the first listing runs are neither lost nor made twice.
func TestWritesDuringTheFirstListing(t *testing.T) {
	for _, folder := range []string{catalog.Folder, "deleted/", ""} {
		t.Run("while "+folder+" is listed", func(t *testing.T) {
			m := mem.New()
			seeds(t, m)
			put(t, m, "late.raw", "x")
			g := &gate{Store: m}
			c := catalog.New(t.Context(), g, exts)
			g.during = func(f string) {
				if f != folder {
					return
				}
				g.during = nil
				putDisk(t, m, c, "new", 0, "disks/n0", "")
				putDisk(t, m, c, "entry", 0, "disks/n1", "disks/e0")
				must(t, c.Rename(t.Context(), "adopted", "renamed"))
				must(t, c.Remove(t.Context(), "late"))
				must(t, c.Remove(t.Context(), "mixed"))
				_, err := c.Restore(t.Context(), "gone")
				must(t, err)
			}
			must(t, c.Ready(t.Context()))
			if g.during != nil {
				t.Fatal("nothing was written")
			}
			wantNames(t, m, c, "entry", "gone", "new", "own", "renamed")
			wantImage(t, m, c, "entry", "0=disks/n1 4=disks/e4")
			wantImage(t, m, c, "renamed", "0=adopted-0.vhd 1=adopted-1.vhd")
			wantDeleted(t, c, "gone2:0=gone2.raw", "late:0=late.raw", "mixed:0=disks/m0")
		})
	}
}

// What is asked for while the same name is written does not undo the write.
func TestAnAnswerOlderThanAWrite(t *testing.T) {
	m := mem.New()
	putDisk(t, m, open(t, m), "web", 0, "disks/a", "")
	s := &hookStat{Store: m}
	c := catalog.New(t.Context(), s, exts)
	s.after = func(key string) {
		if key == "catalog/web.json" {
			s.after = nil
			putDisk(t, m, c, "web", 0, "disks/b", "disks/a")
		}
	}
	if got := disks(lookup(t, c, "web")); got != "0=disks/b" {
		t.Errorf("disks %q, want those written last", got)
	}
	c = catalog.New(t.Context(), s, exts)
	s.after = func(key string) {
		if key == "catalog/web.json" {
			s.after = nil
			must(t, c.Remove(t.Context(), "web"))
		}
	}
	if _, err := c.Lookup(t.Context(), "web"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("shown after it was removed: %v", err)
	}
}

// hookStat is a store that calls after each Stat, before the answer is heard.
type hookStat struct {
	remote.Store
	after func(key string)
}

func (s *hookStat) Stat(ctx context.Context, key string) (remote.Object, error) {
	o, err := s.Store.Stat(ctx, key)
	if s.after != nil {
		s.after(key)
	}
	return o, err
}

// A refresh waits for no look-up whose store is slow.
func TestARefreshPassesASlowLookup(t *testing.T) {
	m := mem.New()
	putDisk(t, m, open(t, m), "web", 0, "disks/a", "")
	put(t, m, "other.raw", "x")
	s := &hookStat{Store: m}
	c := open(t, s)
	held, release := make(chan struct{}), make(chan struct{})
	s.after = func(string) {
		close(held)
		<-release
	}
	done := make(chan error)
	go func() {
		_, err := c.Lookup(t.Context(), "web")
		done <- err
	}()
	<-held
	_, err := c.Refresh(t.Context())
	must(t, err)
	lookup(t, c, "other")
	close(release)
	must(t, <-done)
	wantImage(t, m, c, "web", "0=disks/a")
}

package catalog_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/dir"
	"imagefs/remote/mem"
)

// gc runs GC and returns what it reported, as "kind key", sorted.
func gc(t *testing.T, s remote.Store, o catalog.GCOptions) []string {
	t.Helper()
	var got []string
	o.Report = func(i catalog.GCItem) {
		if i.Time.IsZero() {
			t.Errorf("item %+v has no time", i)
		}
		got = append(got, i.Kind+" "+i.Key)
	}
	must(t, catalog.GC(t.Context(), s, o))
	slices.Sort(got)
	return got
}

// keys are the keys of all objects of a store.
func keys(t *testing.T, s remote.Store) []string {
	t.Helper()
	var list []string
	for _, folder := range []string{"", "catalog/", "deleted/", "disks/", "other/"} {
		for o, err := range s.List(t.Context(), folder) {
			must(t, err)
			list = append(list, o.Key)
		}
	}
	slices.Sort(list)
	return list
}

func TestGC(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		c := open(t, s)
		for _, key := range []string{"adopted.raw", "moved.raw", "mixed.raw", "shared.raw", "other/x"} {
			put(t, s, key, "bytes of "+key)
		}
		_, err := c.Refresh(t.Context())
		must(t, err)
		putDisk(t, s, c, "live", 0, "disks/old", "")
		putDisk(t, s, c, "live", 0, "disks/live", "disks/old")
		putDisk(t, s, c, "dead", 0, "disks/dead", "")
		putDisk(t, s, c, "mixed", 0, "disks/mixed", "mixed.raw")
		_, err = c.PutDisk(t.Context(), "sharing", 0, catalog.EntryDisk{Key: "shared.raw", Format: "raw"}, "")
		must(t, err)
		must(t, c.Rename(t.Context(), "moved", "away"))
		for _, name := range []string{"adopted", "dead", "mixed", "away", "shared"} {
			must(t, c.Remove(t.Context(), name))
		}
		all := keys(t, s)
		if got := gc(t, s, catalog.GCOptions{OlderThan: 2 * time.Hour, Now: inAnHour}); got != nil {
			t.Errorf("removed %q, which is not that old", got)
		}
		would := gc(t, s, catalog.GCOptions{DryRun: true, Now: inAnHour})
		if got := keys(t, s); !slices.Equal(got, all) {
			t.Errorf("a dry run left %q of %q", got, all)
		}
		did := gc(t, s, catalog.GCOptions{Now: inAnHour})
		if !slices.Equal(would, did) {
			t.Errorf("would remove %q, removed %q", would, did)
		}
		// The marks of what could be restored until then go with the next one.
		next := gc(t, s, catalog.GCOptions{Now: inAnHour})
		if len(next) == 0 || slices.ContainsFunc(next, func(g string) bool { return !strings.HasPrefix(g, "mark ") }) {
			t.Errorf("then removed %q", next)
		}
		want := []string{"catalog/live.json", "catalog/sharing.json", "disks/live", "other/x", "shared.raw"}
		got := slices.DeleteFunc(keys(t, s), func(key string) bool { return strings.HasPrefix(key, "deleted/shared~") })
		if !slices.Equal(got, want) {
			t.Errorf("left %q, want %q", got, want)
		}
		wantNames(t, s, open(t, s), "live", "sharing")
		if again := gc(t, s, catalog.GCOptions{Now: inAnHour}); again != nil {
			t.Errorf("removed only now: %q", again)
		}
		must(t, c.Remove(t.Context(), "sharing"))
		gc(t, s, catalog.GCOptions{Now: inAnHour})
		gc(t, s, catalog.GCOptions{Now: inAnHour})
		if got := keys(t, s); !slices.Equal(got, []string{"catalog/live.json", "disks/live", "other/x"}) {
			t.Errorf("left %q", got)
		}
	})
}

func TestGCLeavesWhatWasPutAnew(t *testing.T) {
	s := mem.New()
	put(t, s, "x.raw", "same bytes")
	put(t, s, "other/own.raw", "first")
	put(t, s, "catalog/own.json", strings.NewReplacer("disks/a.qcow2", "other/own.raw", "disks/b.raw", "x.raw").Replace(entry))
	c := open(t, s)
	must(t, c.Remove(t.Context(), "own"))
	must(t, c.Remove(t.Context(), "x"))
	put(t, s, "x.raw", "same bytes")
	put(t, s, "other/own.raw", "later")
	gc(t, s, catalog.GCOptions{Now: inAnHour})
	gc(t, s, catalog.GCOptions{Now: inAnHour}) // the marks
	if got := keys(t, s); !slices.Equal(got, []string{"other/own.raw", "x.raw"}) {
		t.Errorf("left %q", got)
	}
	wantNames(t, s, open(t, s), "x")
}

func TestGCStopsAtAnEntryThatCannotBeRead(t *testing.T) {
	for _, key := range []string{"catalog/bad.json", "deleted/bad~x.json", "catalog/.hidden.json"} {
		for _, doc := range []string{"{", `{"version":2}`, strings.Repeat(" ", 1<<20+1)} {
			s := mem.New()
			c := open(t, s)
			putDisk(t, s, c, "a", 0, "disks/a", "")
			must(t, c.Remove(t.Context(), "a"))
			put(t, s, "disks/stray", "x")
			put(t, s, key, doc)
			before := keys(t, s)
			err := catalog.GC(t.Context(), s, catalog.GCOptions{Now: inAnHour})
			if err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("%s: got %v", key, err)
			}
			if got := keys(t, s); !slices.Equal(got, before) {
				t.Errorf("%s: left %q of %q", key, got, before)
			}
		}
	}
	if err := catalog.GC(t.Context(), mem.New(), catalog.GCOptions{OlderThan: -1}); err == nil {
		t.Error("a negative age is no error")
	}
}

func TestGCEndsUploads(t *testing.T) {
	d, err := dir.Open(t.TempDir())
	must(t, err)
	t.Cleanup(func() { d.Close() })
	for name, s := range map[string]remote.Store{"mem": mem.New(), "dir": d} {
		up, ok := s.(remote.Uploader)
		if !ok {
			t.Fatalf("%s takes no uploads", name)
		}
		for _, key := range []string{"disks/a", "disks/a", "disks/b", "elsewhere"} {
			u, err := up.Upload(t.Context(), key)
			must(t, err)
			must(t, u.Part(t.Context(), 1, io.NewSectionReader(bytes.NewReader([]byte("x")), 0, 1)))
		}
		if got := gc(t, s, catalog.GCOptions{OlderThan: time.Hour}); got != nil {
			t.Errorf("%s: ended %q, which are not that old", name, got)
		}
		for _, dry := range []bool{true, false} {
			got := gc(t, s, catalog.GCOptions{Now: inAnHour, DryRun: dry})
			if !slices.Equal(got, []string{"upload disks/a", "upload disks/b"}) {
				t.Errorf("%s: ended %q", name, got)
			}
		}
		var left []string
		for u, err := range up.Uploads(t.Context(), "") {
			must(t, err)
			left = append(left, u.Key)
		}
		if !slices.Equal(left, []string{"elsewhere"}) {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

// A restore while GC works wins or loses whole.
func TestRestoreAgainstGC(t *testing.T) {
	everyStore(t, func(t *testing.T, s remote.Store) {
		for round := range 8 {
			name := fmt.Sprintf("r%d", round)
			c := open(t, s)
			putDisk(t, s, c, name, 0, "disks/"+name, "")
			must(t, c.Remove(t.Context(), name))
			errs := together(
				func() error { _, err := c.Restore(t.Context(), name); return err },
				func() error { return catalog.GC(t.Context(), s, catalog.GCOptions{Now: inAnHour}) },
			)
			must(t, errs[1])
			if errs[0] == nil {
				wantImage(t, s, c, name, "0=disks/"+name)
				must(t, c.Remove(t.Context(), name))
			} else if c := open(t, s); c.Has(name) {
				t.Errorf("shown, after %v", errs[0])
			}
		}
	})
}

// Random catalogs: GC removes everything that no entry needs and nothing that
// one does.
func TestGCOfRandomCatalogs(t *testing.T) {
	now := time.Now().Round(0)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := &aged{Store: mem.New(), times: make(map[string]time.Time)}
		age := func(key string) time.Time {
			at := now.Add(-time.Duration(1+r.IntN(48)) * time.Hour)
			s.times[key] = at
			return at
		}
		old := func(at time.Time) bool { return now.Sub(at) >= 24*time.Hour }
		var pool []string
		for i := range 12 {
			key := fmt.Sprintf([]string{"disks/%d", "top%d.raw", "other/%d"}[r.IntN(3)], i)
			pool = append(pool, key)
			put(t, s, key, key)
			age(key)
		}
		needed, deletedOnes := make(map[string]bool), make(map[string]bool)
		for i := range r.IntN(10) {
			e := &catalog.Entry{Version: 1, ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Name: fmt.Sprintf("i%d", i)}
			for n := range 1 + r.IntN(3) {
				e.Disks = append(e.Disks, catalog.EntryDisk{Number: n * 2, Key: pool[r.IntN(len(pool))], Format: "raw"})
			}
			key := "catalog/" + e.Name + ".json"
			live := r.IntN(2) == 0
			if !live {
				key = "deleted/" + e.Name + "~" + e.ID + ".json"
				e.Deleted = age(key)
			}
			doc, err := catalog.FormatEntry(e)
			must(t, err)
			put(t, s, key, string(doc))
			for _, d := range e.Disks {
				if live || !old(e.Deleted) {
					needed[d.Key] = true
				} else if !strings.HasPrefix(d.Key, "disks/") && !s.times[d.Key].After(e.Deleted) {
					deletedOnes[d.Key] = true
				} else if strings.HasPrefix(d.Key, "disks/") {
					deletedOnes[d.Key] = true
				}
			}
		}
		would := gc(t, s, catalog.GCOptions{OlderThan: 24 * time.Hour, Now: func() time.Time { return now }, DryRun: true})
		did := gc(t, s, catalog.GCOptions{OlderThan: 24 * time.Hour, Now: func() time.Time { return now }})
		if !slices.Equal(would, did) {
			t.Errorf("seed %d: would remove %q, removed %q", seed, would, did)
		}
		left := keys(t, s)
		for _, key := range pool {
			want := needed[key] || !deletedOnes[key] && !(strings.HasPrefix(key, "disks/") && old(s.times[key]))
			if got := slices.Contains(left, key); got != want {
				t.Errorf("seed %d: %q is there: %v, want %v", seed, key, got, want)
			}
		}
		for _, key := range left {
			if strings.HasPrefix(key, "deleted/") && old(s.times[key]) {
				t.Errorf("seed %d: %q is still there", seed, key)
			}
		}
	}
}

// Random steps with GC between them: whatever is live stays whole.
func TestGCBetweenRandomSteps(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := mem.New()
		c := open(t, s)
		names := []string{"a", "b", "c", "t0", "t1"}
		name := func() string { return names[r.IntN(len(names))] }
		var log []string
		for i := range 60 {
			n, m := name(), name()
			var err error
			what := ""
			switch r.IntN(8) {
			case 0, 1:
				base := ""
				if im, err := c.Lookup(t.Context(), n); err == nil && len(im.Disks) > 0 {
					base = im.Disks[0].Object.Key
				}
				what = "put " + n
				d := disk(t, s, fmt.Sprintf("disks/%d", i))
				number := 0
				if im, lerr := c.Lookup(t.Context(), n); lerr == nil {
					number = im.Disks[0].Number
				}
				_, err = c.PutDisk(t.Context(), n, number, d, base)
			case 2:
				what, err = "rename "+n+" "+m, c.Rename(t.Context(), n, m)
			case 3:
				what, err = "remove "+n, c.Remove(t.Context(), n)
			case 4:
				what = "restore " + n
				_, err = c.Restore(t.Context(), n)
			case 5:
				what = fmt.Sprintf("top t%d", i%2)
				put(t, s, fmt.Sprintf("t%d.raw", i%2), fmt.Sprint(i))
			case 6:
				what = "refresh"
				_, err = c.Refresh(t.Context())
			case 7:
				what = "gc"
				err = catalog.GC(t.Context(), s, catalog.GCOptions{Now: inAnHour})
			}
			log = append(log, fmt.Sprintf("%s: %v", what, err))
			_, err = c.Refresh(t.Context())
			must(t, err)
			ids := make(map[[16]byte]string)
			for _, n := range c.Names() {
				im := lookup(t, c, n)
				// An object at the top that was replaced has another size than its entry says.
				if im.Err != nil && !strings.Contains(im.Err.Error(), "its entry says") {
					t.Fatalf("seed %d: image %q: %v\n%s", seed, n, im.Err, strings.Join(log, "\n"))
				}
				if other, ok := ids[im.ID]; ok && !strings.HasPrefix(n, "t") && !strings.HasPrefix(other, "t") {
					t.Fatalf("seed %d: %q and %q have one id\n%s", seed, n, other, strings.Join(log, "\n"))
				}
				ids[im.ID] = n
			}
			fresh := open(t, s)
			if !slices.Equal(fresh.Names(), c.Names()) {
				t.Fatalf("seed %d: names %q, a new catalog has %q\n%s", seed, c.Names(), fresh.Names(), strings.Join(log, "\n"))
			}
		}
	}
}

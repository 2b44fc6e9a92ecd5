package catalog_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
	"imagefs/remote/remotetest"
)

// adopted fills a server with n objects that are adopted, and returns its store.
func adopted(t *testing.T, n int) (*remotetest.Server, remote.Store) {
	t.Helper()
	srv := remotetest.NewServer(t)
	for i := range n {
		srv.Put(fmt.Sprintf("image-%06d.qcow2", i), []byte("x"))
	}
	return srv, bucket(t, srv)
}

// live is the size of the heap that is in use.
func live() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers let go
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// An image that nobody opened takes less than a kilobyte.
func TestMemoryOfAnImage(t *testing.T) {
	for _, tc := range []struct {
		name string
		key  string
	}{
		{"adopted", "image-%06d.qcow2"},
		{"with an entry", "catalog/image-%06d.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := remotetest.NewServer(t)
			for i := range many {
				srv.Put(fmt.Sprintf(tc.key, i), []byte(entry))
			}
			s := bucket(t, srv)
			before := live()
			c := open(t, s)
			first := live() - before
			for range 3 {
				if changed, err := c.Refresh(t.Context()); err != nil || len(changed) > 0 {
					t.Fatalf("%d changed, %v", len(changed), err)
				}
			}
			after := live() - before
			t.Logf("%d images: %d bytes each, %d after refreshes", c.Count(), first/many, after/many)
			if n := len(c.Names()); n != many || max(first, after)/many >= 1024 {
				t.Errorf("%d images take %d bytes each, and %d after refreshes; want less than 1024", n, first/many, after/many)
			}
			runtime.KeepAlive(c)
		})
	}
}

// A write costs the same however many images there are.
func TestMemoryOfAWrite(t *testing.T) {
	m := mem.New()
	for i := range many {
		put(t, m, fmt.Sprintf("image-%06d.qcow2", i), "x")
	}
	small := mem.New()
	cost := func(s remote.Store) uint64 {
		d := disk(t, s, "disks/a")
		c := open(t, s)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const writes = 10
		for i := range writes {
			if _, err := c.PutDisk(t.Context(), fmt.Sprintf("new-%d", i), 0, d, ""); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if n := c.Count(); len(c.Names()) != n {
			t.Errorf("%d names of %d", len(c.Names()), n)
		}
		return (after.TotalAlloc - before.TotalAlloc) / writes
	}
	few, lots := cost(small), cost(m)
	t.Logf("a write allocates %d bytes among 0 images and %d among %d", few, lots, many)
	if lots > few+64<<10 {
		t.Errorf("a write allocates %d bytes among %d images and %d among none", lots, many, few)
	}
}

// A refresh costs one LIST for each thousand keys, and looks at nothing that it
// knows: not at entries, nor at what hides objects or once did.
func TestRequestsOfARefresh(t *testing.T) {
	srv, s := adopted(t, 4500)
	for i := range 2500 {
		srv.Put(fmt.Sprintf("catalog/entry-%06d.json", i), []byte(entry))
	}
	srv.Put("disks/a.qcow2", []byte("aaaa"))
	srv.Put("disks/b.raw", []byte("bbb"))
	c := open(t, s)
	for i := range 10 {
		// In the second in which it was put: the time does not tell which was first.
		name := fmt.Sprintf("image-%06d", i)
		srv.Put(name+".qcow2", []byte("x"))
		must(t, c.Remove(t.Context(), name))
		if i%2 == 0 {
			srv.Put(name+".qcow2", []byte("put anew"))
		}
	}
	lookup(t, c, "entry-000001")
	for range 2 {
		_, err := c.Refresh(t.Context())
		must(t, err)
	}
	if n := c.Count(); n != 4500+2500-5 {
		t.Errorf("%d images", n)
	}
	srv.Take()
	changed, err := c.Refresh(t.Context())
	must(t, err)
	requests := srv.Take()
	for _, r := range requests {
		if r.Method != "GET" || r.Key != "" || !strings.Contains(r.Query, "list-type") {
			t.Errorf("a refresh asks %s %q ?%s", r.Method, r.Key, r.Query)
		}
	}
	// 4,500 keys and two folders at the top, 2,500 entries, 10 deleted ones.
	if len(changed) > 0 || len(requests) != 5+3+1 {
		t.Errorf("%d requests, want 9: one for each thousand keys of each folder; changed: %q", len(requests), changed)
	}
	t.Logf("%d requests for a refresh of 7000 images", len(requests))
}

// The first listing costs no more, and mounting waits for none of it.
func TestRequestsBeforeTheListing(t *testing.T) {
	srv, s := adopted(t, 5000)
	srv.Put("catalog/entry.json", []byte(entry))
	srv.Put("disks/a.qcow2", []byte("aaaa"))
	srv.Put("disks/b.raw", []byte("bbb"))
	srv.Take()
	// To find nothing at a key takes two requests.
	for name, want := range map[string]int{"entry": 4, "image-000123": 6, "none": 6} {
		c := catalog.New(t.Context(), s, exts)
		if n := len(srv.Take()); n > 0 {
			t.Errorf("%d requests for nothing", n)
		}
		_, _ = c.Lookup(t.Context(), name)
		requests := srv.Take()
		if len(requests) != want {
			t.Errorf("%d requests for %q, want %d", len(requests), name, want)
			for _, r := range requests {
				t.Logf("%s %q ?%s", r.Method, r.Key, r.Query)
			}
		}
		must(t, c.Ready(t.Context()))
		if n := len(srv.Take()); n != 6+1+1 {
			t.Errorf("%d requests for the first listing, want 8", n)
		}
	}
}

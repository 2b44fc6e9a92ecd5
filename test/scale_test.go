package test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagefs/remote/remotetest"
)

// manyImages is how many images TestManyImages makes: IMAGEFS_IMAGES, which
// "make soak" sets to 100,000.
func manyImages(t *testing.T) int {
	t.Helper()
	return int(countOf(t, "IMAGEFS_IMAGES", 10_000))
}

// thin is the entry of an image whose disk is an object that many share.
const thin = `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11","name":"x","disks":[{"key":"disks/shared.raw","format":"raw"}]}`

// crowd makes n images by put, every other adopted, and returns the name of one
// of each kind.
func crowd(n int, put func(key string, b []byte)) []string {
	disk := remotetest.Bytes(1, 4096)
	put("disks/shared.raw", disk)
	for i := range n {
		if i%2 == 0 {
			put(fmt.Sprintf("image-%06d.raw", i), disk)
		} else {
			put(fmt.Sprintf("catalog/image-%06d.json", i), []byte(thin))
		}
	}
	return []string{fmt.Sprintf("image-%06d", n/2/2*2), fmt.Sprintf("image-%06d", n/2/2*2+1)}
}

// resident is the memory of a process now, in bytes.
func resident(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// TestManyImages: what is done with one image of very many costs what it does
// with few, and what is done with all costs one listing.
func TestManyImages(t *testing.T) {
	needFUSE(t)
	program(t, buildImagefs) // now, for times are told
	n := manyImages(t)
	t.Run("dir", func(t *testing.T) {
		store := t.TempDir()
		for _, dir := range []string{"catalog", "disks"} {
			if err := os.Mkdir(filepath.Join(store, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		some := crowd(n, func(key string, b []byte) {
			if err := os.WriteFile(filepath.Join(store, key), b, 0o644); err != nil {
				t.Fatal(err)
			}
		})
		start := time.Now()
		m := MountUnlisted(t, nil, store, "--refresh", "0")
		checkCrowd(t, m, n, some, start)
	})
	t.Run("s3", func(t *testing.T) {
		s, env, flags, url := fakeS3(t)
		some := crowd(n, s.Put)
		start := time.Now()
		m := MountUnlisted(t, env, url, append(flags, "--refresh", "0", "--timeout", "60s")...)
		checkCrowd(t, m, n, some, start)

		// A refresh costs a LIST for each thousand keys, of half the images
		// at the top and half in a folder, and no other request.
		s.Take()
		if err := syscall.Kill(m.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		pages := func(keys int) int { return (keys + 999) / 1000 }
		want := pages((n+1)/2+2) + pages(n/2) + 1
		var requests []remotetest.Request
		start = time.Now()
		waitFor(t, "the refresh", func() bool {
			requests = append(requests, s.Take()...)
			return len(requests) >= want
		})
		t.Logf("%d requests for a refresh, in %v", len(requests), time.Since(start))
		before := m.Stats(t)
		for _, r := range requests {
			if r.Key != "" {
				t.Errorf("a refresh asks for %q", r.Key)
			}
		}
		if requests = append(requests, s.Take()...); len(requests) != want {
			t.Errorf("%d requests for a refresh, want %d", len(requests), want)
		}
		if before["images"] != int64(n) {
			t.Errorf("%d images after it", before["images"])
		}
	})
}

// checkCrowd uses a mount of n images that began at a time. It tells how long
// things take and asserts what they ask of the store.
func checkCrowd(t *testing.T, m *Mounted, n int, some []string, start time.Time) {
	t.Helper()
	ready := time.Since(start)
	requests := func() int64 {
		s := m.Stats(t)
		return s["store.stats"] + s["store.reads"] + s["store.lists"]
	}
	for _, name := range some {
		if es, err := os.ReadDir(m.Path("images", name)); err != nil || len(es) < 6 {
			t.Fatalf("%s: %d files, %v", name, len(es), err)
		}
	}
	t.Logf("%d images: mounted after %v, two images listed after %v", n, ready, time.Since(start))
	if asked := requests(); asked > 50 {
		t.Errorf("%d requests for mounting and listing two images, want at most 50", asked)
	}
	for _, name := range some {
		b, err := os.ReadFile(m.Path("images", name, "disk0.raw"))
		if err != nil || !bytes.Equal(b, remotetest.Bytes(1, 4096)) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if _, err := os.Stat(m.Path("images", "image-none")); !os.IsNotExist(err) {
		t.Errorf("an image that is not there: %v", err)
	}
	es, err := os.ReadDir(m.Path("images"))
	if err != nil || len(es) != n {
		t.Fatalf("%d images listed, %v", len(es), err)
	}
	listed, asked, memory := time.Since(start), requests(), resident(t, m.Pid())
	find := time.Now()
	out := output(t, "find", m.Path("images"), "-maxdepth", "1")
	if lines := strings.Count(out, "\n"); lines != n+1 {
		t.Errorf("find tells %d names, want %d", lines, n+1)
	}
	found := time.Since(find)
	t.Logf("all names listed after %v, with %d MiB in memory; find took %v, with %d MiB then",
		listed, memory/miB, found, resident(t, m.Pid())/miB)
	output(t, "find", m.Path("images"), "-maxdepth", "1", "-newer", m.Path(".imagefs", "version"))
	t.Logf("find that asks for times too: %d MiB in memory then", resident(t, m.Pid())/miB)
	if now := requests(); now != asked {
		t.Errorf("find made %d requests of the store", now-asked)
	}
}

// isListing reports whether a request lists all images, or a part of them.
func isListing(path, prefix string) bool {
	return strings.Count(strings.Trim(path, "/"), "/") == 0 && prefix == "catalog/"
}

// TestMountBeforeTheListing: a mount is used while its store is listed, and
// while it cannot be.
func TestMountBeforeTheListing(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	s, env, flags, url := fakeS3(t)
	some := crowd(20, s.Put)
	release := make(chan struct{})
	s.Set(func(f *remotetest.Faults) {
		f.Hold = release
		f.Only = func(r *http.Request) bool { return isListing(r.URL.Path, r.URL.Query().Get("prefix")) }
	})
	m := MountUnlisted(t, env, url, append(flags, "--timeout", "120s")...)
	m.Expect("failed")
	for _, name := range some {
		b, err := os.ReadFile(m.Path("images", name, "disk0.raw"))
		if err != nil || !bytes.Equal(b, remotetest.Bytes(1, 4096)) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for _, path := range []string{"images/none", "images/none.raw", "images/" + some[0] + "/disk1.raw", "by-format/raw/none-0.raw"} {
		if _, err := os.Stat(m.Path(path)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Stat(m.Path("images", some[0]+".raw")); err != nil {
		t.Error(err)
	}
	// What is written is there, and an image that is there is not made anew.
	if err := os.WriteFile(m.Path("images", "new.raw"), remotetest.Bytes(2, 4096), 0o644); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(m.Path("images", some[1]), 0o755); !os.IsExist(err) {
		t.Errorf("mkdir of an image that is there: %v", err)
	}
	if err := os.Rename(m.Path("images", some[0]), m.Path("images", some[1])); !os.IsExist(err) {
		t.Errorf("rename over an image that is there: %v", err)
	}
	if err := os.Rename(m.Path("images", some[0]), m.Path("images", "renamed")); err != nil {
		t.Error(err)
	}

	// Who lists all waits; who is killed does not.
	ls := exec.Command("ls", m.Path("images"))
	if err := start(ls, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "ls to wait", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", ls.Process.Pid))
		return err == nil && strings.Contains(string(b), "fuse") || strings.Contains(string(b), "request_wait")
	})
	if err := ls.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := ls.Wait(); err == nil {
		t.Error("ls did not wait for the listing")
	}
	done := make(chan error, 1)
	var names []string
	go func() {
		es, err := os.ReadDir(m.Path("images"))
		for _, e := range es {
			names = append(names, e.Name())
		}
		done <- err
	}()
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(names) != 21 || !slices.Contains(names, "new") || !slices.Contains(names, "renamed") || slices.Contains(names, some[0]) {
		t.Errorf("listed: %q", names)
	}
	b, err := os.ReadFile(m.Path("images", "new", "disk0.raw"))
	if err != nil || !bytes.Equal(b, remotetest.Bytes(2, 4096)) {
		t.Errorf("what was written while the store was listed: %d bytes, %v", len(b), err)
	}
}

// TestMountWhoseListingFails: the listing is tried again, and tells why.
func TestMountWhoseListingFails(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	s, env, flags, url := fakeS3(t)
	some := crowd(20, s.Put)
	s.Set(func(f *remotetest.Faults) {
		f.Fail, f.FailStatus, f.FailCode = 1<<30, 503, "SlowDown"
		f.Only = func(r *http.Request) bool { return isListing(r.URL.Path, r.URL.Query().Get("prefix")) }
	})
	m := MountUnlisted(t, env, url, append(flags, "--timeout", "1s", "--refresh", "0")...)
	m.Expect("failed")
	_, err := os.ReadDir(m.Path("images"))
	wantErrno(t, err, syscall.EIO)
	if _, err := os.ReadFile(m.Path("images", some[0], "disk0.raw")); err != nil {
		t.Error(err)
	}
	waitFor(t, "the error to show", func() bool {
		b, err := os.ReadFile(m.Path(".imagefs", "errors"))
		return err == nil && strings.Contains(string(b), "list the entries")
	})
	s.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
	waitFor(t, "the listing", func() bool { return strings.Contains(m.Log.String(), "catalog listed") })
	if es, err := os.ReadDir(m.Path("images")); err != nil || len(es) != 20 {
		t.Errorf("%d images, %v", len(es), err)
	}
}

// TestLargestDisks shows a sparse disk of 8 TiB in every format that can hold
// it: tables and sizes are exact, and nothing is read but what is asked for.
func TestLargestDisks(t *testing.T) {
	needFUSE(t)
	tool(t, "qemu-img")
	tool(t, "qemu-io")
	t.Parallel()
	const size = 8 * tiB
	store := t.TempDir()
	stored := filepath.Join(store, "huge.qcow2")
	output(t, "qemu-img", "create", "-q", "-f", "qcow2", stored, fmt.Sprint(size))
	pieces := []piece{{0, 64 * kiB}, {3*tiB + 512, 4096}, {size - 64*kiB, 64 * kiB}}
	for i, p := range pieces {
		output(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %d %d", 0x11*(i+1), p.off, p.n), stored)
	}
	limits := map[string]bool{"vhd": true} // formats that end before
	m := Mount(t, store, "--formats", "all", "--read-only")
	shown := 0
	for _, v := range views {
		path := m.Path("images", "huge", "disk0."+v.ext)
		st, err := os.Stat(path)
		if limits[v.ext] {
			if !os.IsNotExist(err) {
				t.Errorf("%s: %v, want that it is not shown", v.ext, err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		shown++
		if got := virtualSize(t, v.qemu, path); got != size {
			t.Errorf("%s is a disk of %d bytes, want %d", v.ext, got, int64(size))
		}
		for i, p := range pieces {
			verify := fmt.Sprintf("read -P %d %d %d", 0x11*(i+1), p.off, p.n)
			if out := output(t, "qemu-io", "-r", "-f", v.qemu, "-c", verify, path); strings.Contains(out, "fail") || !strings.Contains(out, "ops") {
				t.Errorf("%s: %s: %s", v.ext, verify, out)
			}
		}
		checkEnds(t, path, st.Size())
		if v.ext == "raw" && st.Size() != size {
			t.Errorf("the raw view has %d bytes", st.Size())
		}
		t.Logf("%s: %d bytes, %d of them stored", v.ext, st.Size(), st.Sys().(*syscall.Stat_t).Blocks*512)
	}
	if want := len(views) - len(limits); shown != want {
		t.Errorf("%d views, want %d", shown, want)
	}
	peak := peakMemory(t, m.Pid())
	t.Logf("the daemon had at most %d MiB", peak/miB)
	if peak > 512*miB {
		t.Errorf("the daemon had %d bytes, want at most 512 MiB", peak)
	}
}

// checkEnds reads both ends of a file, and one byte too far.
func checkEnds(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	b := make([]byte, 4096)
	for _, off := range []int64{0, size - 4096} {
		if n, err := f.ReadAt(b, off); n != len(b) {
			t.Errorf("%s: %d bytes at %d, %v", path, n, off, err)
		}
	}
	if n, _ := f.ReadAt(b, size); n != 0 {
		t.Errorf("%s: %d bytes after its end at %d", path, n, size)
	}
}

// TestThousandOpenViews keeps 1,000 views of 1,000 disks open at once, and reads
// all of them, then all again.
func TestThousandOpenViews(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	const open = 1000
	guest := func(i int) []byte { return remotetest.Bytes(uint64(i), 256*kiB) }
	t.Run("dir", func(t *testing.T) {
		store := t.TempDir()
		for i := range open {
			if err := os.WriteFile(filepath.Join(store, fmt.Sprintf("vm%d.raw", i)), guest(i), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		openViews(t, Mount(t, store, "--formats", "all"), open, guest)
	})
	t.Run("s3", func(t *testing.T) {
		s, env, flags, url := fakeS3(t)
		for i := range open {
			s.Put(fmt.Sprintf("vm%d.raw", i), guest(i))
		}
		openViews(t, MountEnv(t, env, url, append(flags, "--timeout", "60s", "--cache-size", "64M", "--formats", "all")...), open, guest)
	})
}

func openViews(t *testing.T, m *Mounted, open int, guest func(int) []byte) {
	t.Helper()
	shown := []string{"raw", "qcow2", "sparse.vmdk", "vdi", "vhd", "vhdx"}
	files := make([]*os.File, open)
	at := make([]int64, open) // of the guest's second half in a view
	half := func(i int) []byte { return guest(i)[192*kiB:] }
	for i := range files {
		f, err := os.Open(m.Path("images", fmt.Sprintf("vm%d", i), "disk0."+shown[i%len(shown)]))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	// Every view is read whole, by some at once; a stored block is in it as it is.
	each(open, func(i int) {
		b, err := os.ReadFile(files[i].Name())
		if at[i] = int64(bytes.Index(b, half(i))); at[i] < 0 {
			t.Errorf("%s: its disk is not in its %d bytes (%v)", files[i].Name(), len(b), err)
		}
	})
	each(open, func(i int) {
		b := make([]byte, 64*kiB)
		if _, err := files[i].ReadAt(b, max(at[i], 0)); err != nil || !bytes.Equal(b, half(i)) {
			t.Errorf("%s: other bytes at %d, or %v", files[i].Name(), at[i], err)
		}
	})
	peak := peakMemory(t, m.Pid())
	t.Logf("%d views open at once: the daemon had at most %d MiB", open, peak/miB)
	if peak > 512*miB {
		t.Errorf("the daemon had %d bytes, want at most 512 MiB", peak)
	}
}

// each calls fn for 0 to n, several at a time.
func each(n int, fn func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			fn(i)
			<-slots
		})
	}
	wg.Wait()
}

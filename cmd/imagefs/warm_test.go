package main

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagefs/cache/disk"
	"imagefs/codec"
	"imagefs/remote/remotetest"
)

func TestByteRange(t *testing.T) {
	const kib64, mib = 64 << 10, 1 << 20
	for _, tc := range []struct {
		in       string
		total    int64
		from, to int64
	}{
		{"0-1", 10 * mib, 0, kib64},
		{"1M-1M", 10 * mib, mib, 2 * mib},
		{"1500K-1M", 10 * mib, 23 * kib64, 40 * kib64},
		{"8M-1T", 10*mib + 5, 8 * mib, 10*mib + 5},
		{"1T-1T", 10*mib + 5, 10 * mib, 10*mib + 5},
	} {
		var r byteRange
		if err := r.Set(tc.in); err != nil {
			t.Errorf("%q: %v", tc.in, err)
		}
		if from, to := r.of(tc.total); from != tc.from || to != tc.to {
			t.Errorf("%q of %d: from %d to %d, want %d to %d", tc.in, tc.total, from, to, tc.from, tc.to)
		}
	}
	for _, bad := range []string{"", "5", "-5", "5-", "5-0", "-1-5", "a-b", "1-2-3"} {
		if new(byteRange).Set(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// fetched is what a server sent of an object since it was last asked, in bytes.
func fetched(srv *remotetest.Server, key string) (requests int, bytes int64) {
	for _, r := range srv.Take() {
		if r.Method == "GET" && r.Key == key {
			requests++
			bytes += r.Bytes
		}
	}
	return requests, bytes
}

func TestWarm(t *testing.T) {
	srv := serveS3(t)
	const size = 40<<20 + 512
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
	srv.Put("a-0.raw", data)
	srv.Put("a-1.raw", data[:5<<20])
	store := "s3://" + srv.Bucket
	dir := filepath.Join(t.TempDir(), "cache")
	warm := func(args ...string) result {
		return run(t, append([]string{"warm", "--path-style", "path", "--cache-dir", dir}, args...)...)
	}

	warm("--disk", "0", "--range", "3M-2M", store, "a").want(t, 0, "fetching", "2.0 MiB were fetched")
	if n, bytes := fetched(srv, "a-0.raw"); n != 1 || bytes != 2<<20 {
		t.Errorf("a range: %d bytes in %d requests", bytes, n)
	}
	r := warm("--json", store, "a")
	r.want(t, 0)
	list := r.events(t)
	last := list[len(list)-1]
	if last.Event != "warmed" || last.Source != "a-1.raw" || last.Bytes != 5<<20 || last.Got != 5<<20 {
		t.Errorf("the last event is %+v", last)
	}
	// The span of the range is fetched in one piece, with what was there.
	if n, bytes := fetched(srv, "a-0.raw"); n != 6 || bytes != size {
		t.Errorf("all: %d bytes of %d in %d requests", bytes, size, n)
	}
	warm(store, "a").want(t, 0, "0 B were fetched")
	if n, _ := fetched(srv, "a-0.raw"); n != 0 {
		t.Errorf("again: %d requests", n)
	}

	// A reader finds every block.
	var f storeFlags
	f.pathStyle, f.timeout = "path", 1e9
	s, err := start(t.Context(), &f, store, "", defaultCache)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	d := diskFlags{dir: dir, size: defaultDiskCache}
	if err := d.open(s, func(err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
	warm(store, "a").want(t, 1, dir, "end that one first")
	im, err := s.cat.Lookup(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	disk0, err := s.opener.Open(t.Context(), im, im.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	isRaw := func(v codec.View) bool { return v.Name() == "raw" }
	file, err := disk0.File(t.Context(), s.opener.Views()[slices.IndexFunc(s.opener.Views(), isRaw)])
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := file.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	same(t, "what is read", got, data)
	if n, _ := fetched(srv, "a-0.raw"); n != 0 {
		t.Errorf("a reader: %d requests", n)
	}
}

func TestWarmRefuses(t *testing.T) {
	srv := serveS3(t)
	srv.Put("a-0.raw", make([]byte, 20<<20))
	srv.Put("a-1.raw", make([]byte, 20<<20))
	store := "s3://" + srv.Bucket
	dir := t.TempDir()
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"STORE a", 2, "needs --cache-dir"},
		{"--cache-dir DIR STORE", 2, "takes STORE IMAGE"},
		{"--cache-dir DIR STORE none", 4, "none"},
		{"--cache-dir DIR --disk 7 STORE a", 4, "no disk 7"},
		{"--cache-dir DIR --range 0-1M STORE a", 2, "say --disk too"},
		{"--cache-dir DIR --disk 0 --range 1G-1M STORE a", 2, "lies beyond"},
		{"--cache-dir DIR --range 5 STORE a", 2, "1G-512M"},
		{"--cache-dir DIR --disk-cache-size 32M STORE a", 1, "larger --disk-cache-size"},
		{"--cache-dir DIR " + dir + " a", 2, "is a folder"},
	} {
		args := strings.NewReplacer("STORE", store, "DIR", dir).Replace(tc.args)
		run(t, append([]string{"warm", "--path-style", "path"}, strings.Fields(args)...)...).want(t, tc.code, tc.says)
	}
	srv.Set(func(f *remotetest.Faults) { f.Fail, f.FailStatus, f.FailCode = 1000, 403, "AccessDenied" })
	run(t, "warm", "--path-style", "path", "--cache-dir", dir, store, "a").want(t, 3)
}

// TestFootprint: what is said to fit does.
func TestFootprint(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct{ from, to, want int64 }{
		{0, 0, 0},
		{0, 20 * mib, 20 * (mib + 4096)},
		{0, 20*mib + 1, 20*(mib+4096) + 64<<10 + 4096},
		{mib - 64<<10, mib + 64<<10, 2 * (64<<10 + 4096)},
	} {
		if got := disk.Footprint(tc.from, tc.to); got != tc.want {
			t.Errorf("from %d to %d: got %d, want %d", tc.from, tc.to, got, tc.want)
		}
	}
}

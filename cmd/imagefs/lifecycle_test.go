package main

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagefs/remote/remotetest"
)

func TestAgeFlag(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		in, out string
		want    time.Duration
	}{
		{"7d", "7d", 7 * day},
		{"2w", "14d", 14 * day},
		{"1w1d12h", "204h0m0s", 8*day + 12*time.Hour},
		{"36h", "36h0m0s", 36 * time.Hour},
		{"90m", "1h30m0s", 90 * time.Minute},
		{"0", "0s", 0},
		{"0d", "0s", 0},
	} {
		var a age
		if err := a.Set(tc.in); err != nil || time.Duration(a) != tc.want || a.String() != tc.out {
			t.Errorf("%q: got %v (%s), %v; want %v (%s)", tc.in, time.Duration(a), &a, err, tc.want, tc.out)
		}
	}
	for _, bad := range []string{"", "d", "7", "-7d", "7d-1h", "1d1w", "7days", "1.5d", "99999d", "soon", "1d106751d", "999w2562047h"} {
		var a age
		if err := a.Set(bad); err == nil || !strings.Contains(err.Error(), "7d") {
			t.Errorf("%q: got %v, %v", bad, time.Duration(a), err)
		}
	}
}

func TestImagesAreDeletedRestoredAndCollected(t *testing.T) {
	w := newWorld(t)
	a, b := w.file(t, "a.vdi", sample(t, "vdi", 1)), w.file(t, "b.vdi", sample(t, "vdi", 2))
	run(t, "import", w.store, a, b).want(t, exitOK)
	run(t, "import", w.store, b).want(t, exitOK)
	adopted := filepath.Join(w.store, "c.vdi")
	if err := os.WriteFile(adopted, sample(t, "vdi", 3), 0o600); err != nil {
		t.Fatal(err)
	}
	names := func(flags ...string) string {
		var list []string
		for _, r := range parse[[]lsRow](t, run(t, append([]string{"ls", "--json", w.store}, flags...)...)) {
			list = append(list, r.Name)
			if (r.Deleted != nil) != slices.Contains(flags, "--deleted") || r.Size == 0 {
				t.Errorf("row: %+v", r)
			}
		}
		return strings.Join(list, " ")
	}
	expect := func(live, deleted string) {
		t.Helper()
		if l, d := names(), names("--deleted"); l != live || d != deleted {
			t.Errorf("live %q and deleted %q, want %q and %q", l, d, live, deleted)
		}
	}
	run(t, "rm", w.store).want(t, exitUsage, "STORE IMAGE")
	run(t, "rm", w.store, "a", "none", "c").want(t, exitNotFound, `deleted image "a"`, `"none"`, `deleted image "c"`, "restore", "gc")
	expect("b", "a c")
	run(t, "ls", "--deleted", w.store).want(t, exitOK, "Deleted", "a ", time.Now().UTC().Format("2006-"))
	run(t, "ls", "--deleted", "--open", w.store).want(t, exitUsage, "--deleted")
	run(t, "gc", w.store).want(t, exitOK, "removed: 0 things")
	run(t, "check", w.store).want(t, exitOK, "1 image checked: 0 damaged\n")

	run(t, "restore", w.store, "a").want(t, exitOK, `restored image "a" with 2 disks`)
	run(t, "restore", w.store, "a").want(t, exitFailure, "is there")
	run(t, "restore", w.store, "none").want(t, exitNotFound, "ls --deleted")
	expect("a b", "c")

	run(t, "rm", w.store, "a").want(t, exitOK)
	garbage := filepath.Join(w.store, "disks", "lost.0.x.vdi")
	if err := os.WriteFile(garbage, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "check", w.store).want(t, exitOK, "garbage", "lost.0.x.vdi", "4.9 KiB of garbage")
	before := w.objects(t)
	run(t, "gc", "--older-than", "0s", "--dry-run", w.store).want(t, exitOK, "to be removed", "lost.0.x.vdi", "c.vdi", "Image")
	if now := w.objects(t); !slices.Equal(now, before) {
		t.Errorf("a dry run changed\n%q to\n%q", before, now)
	}
	out := parse[gcReport](t, run(t, "gc", "--older-than", "0s", "--json", w.store))
	var sum int64
	objects := 0
	for _, i := range out.Removed {
		sum += i.Size
		if i.Kind == "object" {
			objects++
		}
	}
	if out.DryRun || out.Bytes != sum || objects != 4 {
		t.Errorf("collected %d objects: %+v", objects, out)
	}
	expect("b", "")
	run(t, "check", "--full", w.store).want(t, exitOK, "1 image checked: 0 damaged\n")
	for _, path := range []string{garbage, adopted} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestGCStopsAtAnEntryItCannotRead(t *testing.T) {
	w := newWorld(t)
	run(t, "import", w.store, w.file(t, "a.vdi", sample(t, "vdi", 1))).want(t, exitOK)
	run(t, "rm", w.store, "a").want(t, exitOK)
	bad := filepath.Join(w.store, "catalog", "bad.json")
	if err := os.WriteFile(bad, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.objects(t)
	run(t, "gc", "--older-than", "0s", w.store).want(t, exitFailure, "bad.json", "removed: 0 things")
	out := parse[gcReport](t, run(t, "gc", "--older-than", "0s", "--json", w.store))
	if !strings.Contains(out.Error, "bad.json") || len(out.Removed) > 0 {
		t.Errorf("report: %+v", out)
	}
	if now := w.objects(t); !slices.Equal(now, before) {
		t.Errorf("it changed\n%q to\n%q", before, now)
	}
	run(t, "gc", "--older-than", "never", w.store).want(t, exitUsage, "never")
	run(t, "gc", filepath.Join(w.store, "none")).want(t, exitStore, "none")
}

func TestCheckFindsDamage(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, w *world, vdi, raw string) // of the objects of disks 0 and 1
		full   bool                                          // only all bytes tell
		status string                                        // of the disk or image
		word   string
	}{
		{name: "a missing object", damage: func(t *testing.T, w *world, vdi, _ string) {
			must(t, os.Remove(vdi))
		}, word: "is missing"},
		{name: "a cut object", damage: func(t *testing.T, w *world, vdi, _ string) {
			must(t, os.Truncate(vdi, 1000))
		}, word: "1000 bytes, its entry says"},
		{name: "a table", damage: func(t *testing.T, w *world, vdi, _ string) {
			patch(t, vdi, 1<<20, "\xff\xff\xff\x7f") // of blocks
		}, word: "damaged image"},
		{name: "another format", damage: func(t *testing.T, w *world, vdi, _ string) {
			patch(t, vdi, 64, "\x00")
		}, word: "not vdi"},
		{name: "a guest's byte", damage: func(t *testing.T, w *world, vdi, _ string) {
			patch(t, vdi, 2<<20, "another")
		}, full: true, word: "SHA-256 of the object"},
		{name: "a compressed cluster", damage: func(t *testing.T, w *world, _, raw string) {
			info, err := os.Stat(raw)
			must(t, err)
			patch(t, raw, info.Size()-70_000, strings.Repeat("x", 100))
		}, full: true, word: "SHA-256 of the object"},
		{name: "the sum of the original", damage: func(t *testing.T, w *world, _, _ string) {
			replace(t, w, hash(content(1<<20+1, 4)), hash(nil))
		}, full: true, word: "of the raw that was copied in"},
		{name: "the size of the original", damage: func(t *testing.T, w *world, _, _ string) {
			replace(t, w, `"size": 1048577`, `"size": 1040000`)
		}, word: "copied in as 1040000 bytes"},
		{name: "the virtual size", damage: func(t *testing.T, w *world, _, _ string) {
			replace(t, w, `"virtual_size": 3145728`, `"virtual_size": 3145729`)
		}, word: "its entry says 3145729"},
		{name: "the entry", damage: func(t *testing.T, w *world, _, _ string) {
			must(t, os.WriteFile(filepath.Join(w.store, "catalog", "a.json"), []byte("{"), 0o600))
		}, word: "not valid JSON"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			run(t, "import", w.store, w.file(t, "a.vdi", sample(t, "vdi", 1)), w.file(t, "a.raw", content(1<<20+1, 4))).want(t, exitOK)
			run(t, "import", w.store, w.file(t, "b.vdi", sample(t, "vdi", 2))).want(t, exitOK)
			im := parse[showImage](t, run(t, "show", "--json", w.store, "a"))
			tc.damage(t, w, filepath.Join(w.store, im.Disks[0].Object), filepath.Join(w.store, im.Disks[1].Object))
			if tc.full {
				run(t, "check", w.store).want(t, exitOK, "0 damaged")
			}
			r := run(t, "check", "--full", w.store)
			r.want(t, exitBadImages, "damaged", tc.word, "ok       b disk 0", "2 images checked: 1 damaged")
			if strings.Contains(r.out, "garbage") {
				t.Errorf("what an image names, or may name, is garbage:\n%s", r.out)
			}
			run(t, "check", "--full", w.store, "b").want(t, exitOK, "1 image checked: 0 damaged")
			r = run(t, "check", "--full", "--json", w.store, "a", "a")
			r.want(t, exitBadImages)
			if out := parse[checkReport](t, r); out.Damaged != 1 || len(out.Images) != 1 || out.Images[0].Status != statusDamaged {
				t.Errorf("report: %s", r.out)
			}
		})
	}
}

func TestCheckTellsDamageFromAnAbsentStore(t *testing.T) {
	w := newWorld(t)
	srv := serveS3(t)
	run(t, "import", "s3://bucket/p", w.file(t, "a.vdi", sample(t, "vdi", 1))).want(t, exitOK)
	srv.Set(func(f *remotetest.Faults) {
		f.Only = func(r *http.Request) bool { return r.Method == "GET" && strings.Contains(r.URL.Path, "/disks/a.0.") }
		f.Fail, f.FailStatus, f.FailCode = 1<<20, 503, "SlowDown"
	})
	r := run(t, "check", "--timeout", "1s", "--json", "s3://bucket/p")
	r.want(t, exitStore, "could not be checked")
	if out := parse[checkReport](t, r); out.Damaged != 0 || out.Unknown != 1 || out.Images[0].Disks[0].Status != statusUnknown {
		t.Errorf("report: %s", r.out)
	}
	run(t, "check", "s3://bucket/p", "none").want(t, exitNotFound, "none")
	run(t, "check").want(t, exitUsage, "STORE")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patch writes bytes into a file.
func patch(t *testing.T, path string, off int64, b string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(b), off)
	must(t, err)
	must(t, f.Close())
}

// replace changes the entry of image a.
func replace(t *testing.T, w *world, old, text string) {
	t.Helper()
	path := filepath.Join(w.store, "catalog", "a.json")
	b, err := os.ReadFile(path)
	must(t, err)
	if !strings.Contains(string(b), old) {
		t.Fatalf("no %q in %s", old, b)
	}
	must(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(b), old, text)), 0o600))
}

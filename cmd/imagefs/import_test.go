package main

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imagefs/remote/remotetest"
)

func hash(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func TestSourcesAreNamed(t *testing.T) {
	f := &storeFlags{}
	for _, tc := range []struct{ arg, label, base, stem, format string }{
		{"dir/centos7.qcow2", "dir/centos7.qcow2", "centos7.qcow2", "centos7", "qcow2"},
		{"debian-12.5", "debian-12.5", "debian-12.5", "debian-12.5", ""},
		{"disk.IMG", "disk.IMG", "disk.IMG", "disk", "raw"},
		{"disk.dd", "disk.dd", "disk.dd", "disk", ""},
		{"file:///a/b.vdi", "/a/b.vdi", "b.vdi", "b", "vdi"},
		{"-", "standard input", "", "", ""},
		{"https://user:secret@h.example:8/a%20b/c%3Fd.vmdk?sig=secret&x=/y.raw#secret", "https://h.example:8/a%20b/c%3Fd.vmdk", "c?d.vmdk", "c?d", "vmdk"},
		{"HTTP://h.example?sig=secret", "HTTP://h.example", "", "", ""},
		{"s3://bucket/a/b.vhd", "s3://bucket/a/b.vhd", "b.vhd", "b", "vhd"},
	} {
		s, err := parseSource(tc.arg, f)
		if err != nil {
			t.Errorf("%q: %v", tc.arg, err)
			continue
		}
		if s.label != tc.label || s.base != tc.base || s.stem() != tc.stem || s.promise() != tc.format {
			t.Errorf("%q: label %q, base %q, stem %q, format %q; want %+v", tc.arg, s.label, s.base, s.stem(), s.promise(), tc)
		}
	}
	for _, bad := range []string{
		"ftp://u:secret@h/x?secret", "https://?secret", "https:///path?secret", "http://[::1?secret", "https://h/%zz?secret",
		"s3://", "s3://bucket", "s3://bucket/", "s3://bucket/a/", "s3://bucket/a//b",
	} {
		_, err := parseSource(bad, f)
		if exitCode(err) != exitUsage || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v, want a usage error without what is secret", bad, err)
		}
	}
}

func TestImportCommandLine(t *testing.T) {
	w := newWorld(t)
	disk := w.file(t, "disk.raw", content(5000, 1))
	for _, tc := range []struct {
		args []string
		word string
	}{
		{[]string{w.store}, "STORE SOURCE"},
		{[]string{w.store, "-"}, "--disk-format"},
		{[]string{"--name", "x", w.store, "-"}, "--disk-format"},
		{[]string{"--name", "x", "--disk-format", "raw", w.store, "-", "-"}, "only one"},
		{[]string{"--disk-format", "floppy", w.store, disk}, "vhdx"},
		{[]string{"--name", "a/b", w.store, disk}, "slash"},
		{[]string{"--disk", "-1", w.store, disk}, "--disk -1"},
		{[]string{"--disk", "255", w.store, disk, disk}, "--disk 255"},
		{[]string{w.store, "http://h.example/?secret"}, "--name"},
	} {
		r := run(t, append([]string{"import", "--json"}, tc.args...)...)
		r.want(t, exitUsage, tc.word)
		if list := r.events(t); len(tc.args) > 1 && (len(list) != 1 || list[0].Event != "error" || !strings.Contains(r.err, list[0].Error)) {
			t.Errorf("%q: events %+v, message %s", tc.args, list, r.err)
		}
	}
	if got := w.objects(t); len(got) > 0 {
		t.Errorf("stored: %q", got)
	}
}

func TestImportOfFiles(t *testing.T) {
	w := newWorld(t)
	raw, vdi := content(100_001, 1), sample(t, "vdi", 1)
	rawPath, vdiPath := w.file(t, "web.img", raw), w.file(t, "data.vdi", vdi)
	when := time.Date(2020, 5, 1, 2, 3, 4, 123456789, time.UTC)
	if err := os.Chtimes(rawPath, when, when); err != nil {
		t.Fatal(err)
	}
	r := run(t, "import", "--json", w.store, rawPath, vdiPath)
	r.want(t, exitOK)
	var done []event
	var steps []string
	for _, e := range r.events(t) {
		if e.Event != "progress" {
			steps = append(steps, e.Event)
		}
		if e.Event == "done" {
			done = append(done, e)
		}
	}
	if got := strings.Join(steps, " "); got != "checking checking encoding storing done storing done" {
		t.Errorf("steps: %s", got)
	}
	for n, want := range []struct {
		path, format string
		data         []byte
	}{{rawPath, "raw", raw}, {vdiPath, "vdi", vdi}} {
		e := done[n]
		if e.Image != "web" || *e.Disk != n || e.Source != want.path || e.Format != want.format || e.Bytes != int64(len(want.data)) || e.SHA256 != hash(want.data) {
			t.Errorf("disk %d: %+v", n, e)
		}
	}
	im := parse[showImage](t, run(t, "show", "--json", w.store, "web"))
	if len(im.Disks) != 2 || im.Disks[0].Format != "raw" || im.Disks[0].Stored != "qcow2" || im.Disks[1].SHA256 != hash(vdi) || im.Status != "active" {
		t.Errorf("image: %+v", im)
	}
	stored, err := os.ReadFile(filepath.Join(w.store, im.Disks[1].Object))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the object of the VDI", stored, vdi)
	entry, err := os.ReadFile(filepath.Join(w.store, "catalog/web.json"))
	if err != nil || !strings.Contains(string(entry), "2020-05-01T02:03:04.123456789Z") {
		t.Errorf("the entry does not have the time of the file: %v %s", err, entry)
	}
	run(t, "check", "--full", w.store).want(t, exitOK, "ok", "0 damaged")

	// What is there is not replaced unasked, and the rest of the image stays.
	run(t, "import", "--name", "web", "--disk", "1", w.store, vdiPath).want(t, exitFailure, `image "web" has a disk 1`, "--replace")
	run(t, "import", "--name", "web", "--disk", "5", w.store, vdiPath).want(t, exitOK, `disk 5 of image "web"`)
	other := w.file(t, "other.vdi", sample(t, "vdi", 2))
	run(t, "import", "--name", "web", "--disk", "1", "--replace", "--quiet", w.store, other).want(t, exitOK)
	im2 := parse[showImage](t, run(t, "show", "--json", w.store, "web"))
	if len(im2.Disks) != 3 || im2.ID != im.ID || im2.Disks[1].SHA256 == im.Disks[1].SHA256 || im2.Disks[0].Object != im.Disks[0].Object {
		t.Errorf("after the replacement: %+v", im2)
	}
}

func TestImportTellsFormats(t *testing.T) {
	w := newWorld(t)
	vdi := sample(t, "vdi", 1)
	for _, tc := range []struct {
		name, flag string
		data       []byte
		code       int
		word       string
	}{
		{"a.vdi", "", vdi, exitOK, "vdi"},
		{"b", "", vdi, exitOK, "vdi"},
		{"c.bin", "vdi", vdi, exitOK, "vdi"},
		{"d.qcow2", "vdi", vdi, exitOK, "vdi"},
		{"e.bin", "", content(5000, 1), exitBadImages, "--disk-format raw"},
		{"f.bin", "raw", content(5000, 1), exitOK, "raw"},
		{"g.vdi", "RAW", vdi, exitOK, "raw"},
		{"h.raw", "", vdi, exitBadImages, "the content is vdi"},
		{"i.vmdk", "", vdi, exitBadImages, "the content is vdi"},
		{"j.vdi", "vhd", vdi, exitBadImages, "--disk-format vhd in place"},
		{"k.vdi", "", vdi[:600], exitBadImages, "damaged"},
		{"l.gz", "", []byte("\x1f\x8b and so on"), exitBadImages, "gzip"},
		{"m.raw", "", nil, exitOK, "raw"},
	} {
		args := []string{"import", "--disk-format=" + tc.flag, w.store, w.file(t, tc.name, tc.data)}
		t.Run(tc.name, func(t *testing.T) { run(t, args...).want(t, tc.code, tc.word) })
	}
	entry, err := os.ReadFile(filepath.Join(w.store, "catalog/g.json"))
	if err != nil || !strings.Contains(string(entry), `"declared": true`) {
		t.Errorf("a declared raw disk: %v %s", err, entry)
	}
}

func TestImportOfSeveralIsCheckedFirst(t *testing.T) {
	w := newWorld(t)
	good := w.file(t, "good.vdi", sample(t, "vdi", 1))
	bad := w.file(t, "bad.vdi", sample(t, "vdi", 1)[:700])
	r := run(t, "import", "--json", w.store, good, bad)
	r.want(t, exitBadImages, "bad.vdi", "nothing was imported")
	events := r.events(t)
	if last := events[len(events)-1]; last.Event != "error" || *last.Disk != 1 || !strings.Contains(last.Error, "damaged") {
		t.Errorf("last event: %+v", last)
	}
	for _, missing := range []string{filepath.Join(w.files, "none.vdi"), w.files} {
		r := run(t, "import", w.store, good, missing)
		if r.code == exitOK || !strings.Contains(r.err, missing) {
			t.Errorf("%q: %+v", missing, r)
		}
	}
	if got := w.objects(t); len(got) > 0 {
		t.Errorf("stored: %q", got)
	}
}

func TestImportTellsWhatIsThereWhenALaterOneFails(t *testing.T) {
	w := newWorld(t)
	srv := serveS3(t)
	a, b := w.file(t, "a.vdi", sample(t, "vdi", 1)), w.file(t, "b.vdi", sample(t, "vdi", 2))
	// The second object fails to be completed, and the first does not.
	completed := 0
	srv.Set(func(f *remotetest.Faults) {
		f.Only = func(r *http.Request) bool {
			if r.Method == "POST" && r.URL.Query().Has("uploadId") {
				completed++
			}
			return completed > 1
		}
		f.Fail, f.FailStatus, f.FailCode = 1<<20, 403, "AccessDenied"
	})
	run(t, "import", "s3://bucket/p", a, b).want(t, exitFailure, "disks 0 to 0 of image \"a\" are stored, 1 to 1 are not")
	srv.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
	if im := parse[showImage](t, run(t, "show", "--json", "s3://bucket/p", "a")); len(im.Disks) != 1 {
		t.Errorf("disks: %+v", im.Disks)
	}
	run(t, "import", "--name", "a", "--disk", "1", "s3://bucket/p", b).want(t, exitOK)
}

func TestImportFromStandardInputAndPipes(t *testing.T) {
	w := newWorld(t)
	data := content(3<<20+1, 3)
	path := w.file(t, "stdin", data)
	stdin := os.Stdin
	defer func() { os.Stdin = stdin }()
	var err error
	if os.Stdin, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	run(t, "import", "--name", "piped", "--disk-format", "raw", w.store, "-").want(t, exitOK, "standard input", hash(data))

	fifo := filepath.Join(w.files, "pipe.vdi")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	vdi := sample(t, "vdi", 1)
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(fifo, vdi, 0) }()
	run(t, "import", w.store, fifo).want(t, exitOK, `image "pipe"`, hash(vdi))
	if err := <-written; err != nil {
		t.Error(err)
	}
	run(t, "import", w.store, "/dev/zero").want(t, exitFailure, "character device")
	run(t, "check", "--full", w.store).want(t, exitOK, "2 images checked: 0 damaged")
}

func TestFileThatChangesIsNotImported(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(path string) error
	}{
		{"longer", func(path string) error { return os.Truncate(path, 5<<20) }},
		{"shorter", func(path string) error { return os.Truncate(path, 10) }},
		{"touched", func(path string) error { return os.Chtimes(path, time.Now(), time.Unix(1, 0)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			srv := serveS3(t)
			path := w.file(t, "disk.vdi", sample(t, "vdi", 1))
			srv.Set(func(f *remotetest.Faults) {
				f.Only = func(r *http.Request) bool {
					if r.Method == "PUT" { // a part: its bytes are read already
						if err := tc.change(path); err != nil {
							t.Error(err)
						}
					}
					return false
				}
			})
			run(t, "import", "s3://bucket/p", path).want(t, exitFailure, "changed while it was imported", path)
			if keys := srv.Keys(); len(keys) > 0 || srv.Uploads() > 0 {
				t.Errorf("left: %q and %d uploads", keys, srv.Uploads())
			}
		})
	}
}

func TestScratchFolders(t *testing.T) {
	root := t.TempDir()
	a := newScratch(root)
	f, err := a.file()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dead := filepath.Join(root, "import", "dead")
	if err := os.MkdirAll(filepath.Join(dead, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := newScratch(root)
	if _, err := b.folder(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.Name()); err != nil {
		t.Errorf("the file of one that lives: %v", err)
	}
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("the folder of one that is dead: %v", err)
	}
	a.remove()
	b.remove()
	if list, err := os.ReadDir(filepath.Join(root, "import")); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if runtime.GOOS == "linux" && os.Getuid() != 0 {
		s := newScratch("/proc/nowhere")
		if _, err := s.folder(); err == nil || !strings.Contains(err.Error(), "--spool") {
			t.Errorf("a folder that cannot be: %v", err)
		}
	}
}

func TestProgressLine(t *testing.T) {
	for _, tc := range []struct {
		done, total int64
		took        time.Duration
		width       int
		want        string
	}{
		{0, 100e6, 0, 80, "storing x  [....................]   0%  0.0 MB/s  ETA -:--"},
		{50e6, 100e6, 2 * time.Second, 80, "storing x  [##########..........]  50%  25.0 MB/s  ETA 0:02"},
		{100e6, 100e6, time.Second, 80, "storing x  [####################] 100%  100.0 MB/s  ETA 0:00"},
		{120e6, 100e6, time.Second, 80, "storing x  [####################] 100%  120.0 MB/s  ETA 0:00"},
		{3 << 20, -1, time.Second, 80, "storing x  3.0 MiB  3.1 MB/s"},
		{50e6, 100e6, time.Second, 12, "storing x  …"},
	} {
		if got := bar("storing x", tc.done, tc.total, tc.took, tc.width); got != tc.want {
			t.Errorf("%d of %d in %v: got %q, want %q", tc.done, tc.total, tc.took, got, tc.want)
		}
	}
	if got := clock(3725); got != "1:02:05" {
		t.Errorf("clock: %s", got)
	}
}

func TestProgressIsNotTooOften(t *testing.T) {
	now := time.Unix(0, 0)
	var b strings.Builder
	r := &reporter{lines: &b, width: 80, every: 100 * time.Millisecond, now: func() time.Time { return now }, last: now}
	step := r.step("storing", event{Source: "a\x1b[2Jb"})
	for i := range 1000 {
		now = now.Add(time.Millisecond)
		step(int64(i+1), 1000)
	}
	step(5, 1000) // a late one
	if got := strings.Count(b.String(), "%"); got != 10 {
		t.Errorf("%d lines of progress in a second: %q", got, b.String())
	}
	if strings.Contains(b.String(), "\x1b[2J") {
		t.Errorf("a name reaches the terminal as it is: %q", b.String())
	}
}

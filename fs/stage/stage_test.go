package stage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

// env is a spool over a catalog over a store.
type env struct {
	*testing.T
	dir   string
	store remote.Store
	cat   *catalog.Catalog
	spool *stage.Spool

	mu       sync.Mutex
	problems []string // guarded by mu; what was reported
}

func newEnv(t *testing.T, store remote.Store, set ...func(*stage.Config)) *env {
	t.Helper()
	e := &env{T: t, dir: t.TempDir(), store: store}
	e.open(set...)
	return e
}

// open opens catalog and spool as a new process would.
func (e *env) open(set ...func(*stage.Config)) {
	e.Helper()
	var err error
	if e.cat, err = catalog.Open(e.Context(), e.store, all.Extensions); err != nil {
		e.Fatal(err)
	}
	im, err := stage.NewImporter(e.store, e.cat, all.Formats)
	if err != nil {
		e.Fatal(err)
	}
	cfg := stage.Config{
		Dir: e.dir, Importer: im, Catalog: e.cat, Exts: all.Extensions, Quiet: time.Millisecond,
		Report: func(op, path string, err error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.problems = append(e.problems, op+" "+path+": "+err.Error())
		},
	}
	for _, s := range set {
		s(&cfg)
	}
	s, err := stage.Open(e.Context(), cfg)
	if err != nil {
		e.Fatal(err)
	}
	e.spool = s
	e.Cleanup(func() { s.Close(context.Background()) })
}

// image is the bytes of a disk in a format.
func image(t *testing.T, format string, d codec.Disk) []byte {
	t.Helper()
	for _, f := range all.Formats {
		if f.Name() == format {
			file, err := f.Layout(t.Context(), d, codec.Facts{Name: "disk0"})
			if err != nil {
				t.Fatal(err)
			}
			b, err := codectest.ReadAll(file)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("no format %q", format)
	return nil
}

// create opens a new file for writing only, as cp does.
func (e *env) create(folder, name string) *stage.Handle {
	e.Helper()
	f, err := e.spool.Create(folder, name)
	if err != nil {
		e.Fatal(err)
	}
	return e.reopen(f, os.O_WRONLY)
}

func (e *env) reopen(f *stage.File, flags int) *stage.Handle {
	e.Helper()
	h, err := f.Open(e.Context(), flags)
	if err != nil {
		e.Fatal(err)
	}
	return h
}

// fill writes b from the start on, a piece at a time.
func fill(t *testing.T, h *stage.Handle, b []byte) {
	t.Helper()
	for off := 0; off < len(b); off += 100_000 {
		p := b[off:min(len(b), off+100_000)]
		if _, err := h.WriteAt(t.Context(), p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

// copyIn is cp: it returns what close says.
func (e *env) copyIn(folder, name string, b []byte) error {
	e.Helper()
	h := e.create(folder, name)
	defer h.Release()
	fill(e.T, h, b)
	return h.Flush(e.Context())
}

// object returns the bytes of a disk's object, and what the catalog says of it.
func (e *env) object(name string, n int) ([]byte, catalog.Disk) {
	e.Helper()
	im, err := e.cat.Lookup(e.Context(), name)
	if err != nil {
		e.Fatal(err)
	}
	d, ok := im.Disk(n)
	if !ok {
		e.Fatalf("%s has no disk %d", name, n)
	}
	b := make([]byte, d.Object.Size)
	if err := e.store.ReadRange(e.Context(), d.Object, b, 0); err != nil {
		e.Fatal(err)
	}
	return b, d
}

// keys are all objects in the store that imports make.
func (e *env) keys() (keys []string) {
	e.Helper()
	for _, folder := range []string{"", stage.Object, "catalog/"} {
		for o, err := range e.store.List(e.Context(), folder) {
			if err != nil {
				e.Fatal(err)
			}
			keys = append(keys, o.Key)
		}
	}
	return keys
}

func (e *env) uploads() (keys []string) {
	e.Helper()
	for p, err := range e.store.(remote.Uploader).Uploads(e.Context(), "") {
		if err != nil {
			e.Fatal(err)
		}
		keys = append(keys, p.Key)
	}
	return keys
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

func TestCloseCommits(t *testing.T) {
	d := codectest.Scattered(8<<20, 20, 1)
	for _, f := range all.Formats {
		t.Run(f.Name(), func(t *testing.T) {
			e := newEnv(t, mem.New())
			b := image(t, f.Name(), d)
			if f.Name() == "raw" {
				b = append(b, 1, 2, 3) // no multiple of a sector
			}
			if err := e.spool.Mkdir("web"); err != nil {
				t.Fatal(err)
			}
			h := e.create("web", "disk0."+f.Name())
			fill(t, h, b)
			mtime := time.Date(2020, 2, 3, 4, 5, 6, 789, time.UTC)
			h.File().SetModified(mtime)
			if err := h.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, cd := e.object("web", 0)
			h.Release()
			if sum(got) != cd.SHA256 || !cd.Modified.Equal(mtime) {
				t.Errorf("entry: sha256 %s, modified %v; want %s, %v", cd.SHA256, cd.Modified, sum(got), mtime)
			}
			if f.Name() != "raw" {
				if !bytes.Equal(got, b) {
					t.Error("the object is not what was copied in")
				}
			} else if o := cd.Original; o == nil || o.Size != int64(len(b)) || o.SHA256 != sum(b) || cd.Format != "qcow2" || len(got) > len(b) {
				t.Errorf("raw: original %+v stored as %s of %d bytes, want %d bytes with sha256 %s", o, cd.Format, len(got), len(b), sum(b))
			}
			if st := e.spool.Status(); len(st) != 0 {
				t.Errorf("left in the spool: %+v", st)
			}
			if names := e.spool.Folders(); len(names) != 0 {
				t.Errorf("left drafts: %q", names)
			}
		})
	}
}

func TestRefusedFilesLeaveNothing(t *testing.T) {
	d := codectest.Scattered(4<<20, 10, 1)
	qcow := image(t, "qcow2", d)
	for _, tc := range []struct {
		name string
		b    []byte
		want error
		say  string
	}{
		{"disk0.vmdk", qcow, codec.ErrFormat, "the content is qcow2"},
		{"disk0.raw", qcow, codec.ErrFormat, "--disk-format raw"},
		{"disk0.img", qcow, codec.ErrFormat, "name it .qcow2"},
		{"disk0.qcow2", qcow[:len(qcow)-70<<10], codec.ErrCorrupt, "past the end"},
		{"disk0.vhdx", noise(5000), codec.ErrFormat, "no signature"},
		{"disk0.raw", append([]byte("LUKS\xba\xbe"), noise(5000)...), codec.ErrUnsupported, "LUKS"},
	} {
		t.Run(tc.name+" "+tc.say, func(t *testing.T) {
			e := newEnv(t, mem.New())
			err := e.copyIn("web", tc.name, tc.b)
			if !errors.Is(err, stage.ErrRefused) || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("got %v, want %v that says %q", err, tc.want, tc.say)
			}
			if keys, ups := e.keys(), e.uploads(); len(keys)+len(ups) > 0 || e.cat.Has("web") {
				t.Errorf("left in the store: %q, uploads %q", keys, ups)
			}
			if len(e.problems) != 1 || !strings.Contains(e.problems[0], "images/web/"+tc.name) {
				t.Errorf("reported: %q", e.problems)
			}
			if names := e.spool.List("web"); !slices.Equal(names, []string{tc.name}) {
				t.Errorf("shown: %q", names)
			}
			if err := e.spool.Unlink("web", tc.name); err != nil {
				t.Error(err)
			}
			if st := e.spool.Status(); len(st) != 0 {
				t.Errorf("left in the spool: %+v", st)
			}
		})
	}
}

func TestNamesThatCannotBecomeDisks(t *testing.T) {
	e := newEnv(t, mem.New())
	for _, p := range [][2]string{
		{"web", "notes.txt"},
		{"web", "disk.raw"},
		{"web", "disk00.raw"},
		{"web", "disk-1.raw"},
		{"web", "disk256.raw"},
		{"web", "image.json"},
		{"", "web"},
		{"", "web.txt"},
		{"", "x\x01.raw"},
		{"web", "disk0.sparse.vmdk"},
	} {
		if _, err := e.spool.Create(p[0], p[1]); !errors.Is(err, stage.ErrName) {
			t.Errorf("create %q: %v", p, err)
		}
	}
	for _, p := range [][2]string{{"web", ".disk0.raw.x7Yz"}, {"web", "disk0.raw.part"}, {"", "a.tmp"}} {
		if err := e.copyIn(p[0], p[1], []byte("anything")); err != nil {
			t.Errorf("create %q: %v", p, err)
		}
	}
	if keys := e.keys(); len(keys) > 0 {
		t.Errorf("stored: %q", keys)
	}
}

func TestRenameCommits(t *testing.T) {
	e := newEnv(t, mem.New())
	good := image(t, "vdi", codectest.Scattered(4<<20, 10, 1))
	if err := e.copyIn("web", ".disk0.vdi.Ab12", good); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rename(t.Context(), "web", ".disk0.vdi.Ab12", "web", "disk0.vdi"); err != nil {
		t.Fatal(err)
	}
	if got, _ := e.object("web", 0); !bytes.Equal(got, good) {
		t.Error("the object differs")
	}
	// A bad one keeps its name, and the disk its version.
	if err := e.copyIn("web", ".disk0.vdi.Cd34", good[:1000]); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rename(t.Context(), "web", ".disk0.vdi.Cd34", "web", "disk0.vdi"); !errors.Is(err, stage.ErrRefused) {
		t.Errorf("rename of a bad file: %v", err)
	}
	if names := e.spool.List("web"); !slices.Equal(names, []string{".disk0.vdi.Cd34"}) {
		t.Errorf("shown: %q", names)
	}
	// A better one replaces it.
	better := image(t, "vdi", codectest.Scattered(4<<20, 10, 2))
	if err := e.copyIn("web", ".disk0.vdi.Ef56", better); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rename(t.Context(), "web", ".disk0.vdi.Ef56", "web", "disk0.vdi"); err != nil {
		t.Fatal(err)
	}
	if got, _ := e.object("web", 0); !bytes.Equal(got, better) {
		t.Error("the object differs after it was replaced")
	}
}

func TestQuietCommitsWhatIsReadAndWritten(t *testing.T) {
	e := newEnv(t, mem.New())
	b := image(t, "qcow2", codectest.Scattered(4<<20, 10, 1))
	f, err := e.spool.Create("vm", "disk0.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	h := e.reopen(f, os.O_RDWR)
	fill(t, h, b)
	got := make([]byte, 1000)
	if _, err := h.ReadAt(t.Context(), got, 300); err != nil || !bytes.Equal(got, b[300:1300]) {
		t.Errorf("read back while staged: %v", err)
	}
	if err := h.Flush(t.Context()); err != nil || e.cat.Has("vm") {
		t.Errorf("flush of a handle that reads: %v, committed: %v", err, e.cat.Has("vm"))
	}
	h.Release()
	wait(t, "the quiet period to end", func() bool { return e.cat.Has("vm") })
	if got, _ := e.object("vm", 0); !bytes.Equal(got, b) {
		t.Error("the object differs")
	}
}

func TestFsyncOfTheFolderCommits(t *testing.T) {
	e := newEnv(t, mem.New(), func(c *stage.Config) { c.Quiet = time.Hour })
	b := image(t, "qcow2", codectest.Scattered(4<<20, 10, 1))
	for name, data := range map[string][]byte{"disk0.qcow2": b, "disk1.qcow2": b[:5000]} {
		f, err := e.spool.Create("vm", name)
		if err != nil {
			t.Fatal(err)
		}
		h := e.reopen(f, os.O_RDWR)
		fill(t, h, data)
		h.Release()
	}
	if err := e.spool.CommitQuiet(t.Context(), "other"); err != nil || e.cat.Has("vm") {
		t.Errorf("fsync of another folder: %v, committed: %v", err, e.cat.Has("vm"))
	}
	if err := e.spool.CommitQuiet(t.Context(), "vm"); !errors.Is(err, stage.ErrRefused) {
		t.Errorf("fsync of a folder with a bad file: %v", err)
	}
	if got, _ := e.object("vm", 0); !bytes.Equal(got, b) {
		t.Error("the good one differs")
	}
	if names := e.spool.List("vm"); !slices.Equal(names, []string{"disk1.qcow2"}) {
		t.Errorf("shown: %q", names)
	}
}

// wait polls until done says so.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestShortNamesReplaceNothingUnseen(t *testing.T) {
	e := newEnv(t, mem.New())
	old := noise(10_000)
	if err := e.copyIn("", "web.raw", old); err != nil {
		t.Fatal(err)
	}
	if _, err := e.spool.Create("", "web.vdi"); !errors.Is(err, iofs.ErrExist) || !strings.Contains(err.Error(), "images/web/disk0.vdi") {
		t.Errorf("a short name in another format: %v", err)
	}
	if err := e.copyIn("", ".web.vdi.Ab12", image(t, "vdi", codectest.Empty(1<<20))); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rename(t.Context(), "", ".web.vdi.Ab12", "", "web.vdi"); !errors.Is(err, iofs.ErrExist) {
		t.Errorf("a rename to it: %v", err)
	}
	if err := e.spool.Rename(t.Context(), "", ".web.vdi.Ab12", "web", "disk0.vdi"); err != nil {
		t.Errorf("the long name: %v", err)
	}
}

func TestTwoWritersOfOneName(t *testing.T) {
	e := newEnv(t, mem.New())
	h := e.create("web", "disk0.raw")
	defer h.Release()
	fill(t, h, noise(10_000))
	if _, err := e.spool.Create("web", "disk0.raw"); !errors.Is(err, iofs.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := h.File().Open(t.Context(), os.O_WRONLY|os.O_TRUNC); !errors.Is(err, stage.ErrBusy) {
		t.Errorf("cut while it is written: %v", err)
	}
	if a, err := h.File().Attr(); err != nil || a.Size != 10_000 {
		t.Errorf("size %d, %v", a.Size, err)
	}
}

func TestTwoDaemonsOneName(t *testing.T) {
	store := mem.New()
	one, two := newEnv(t, store), newEnv(t, store)
	a, b := noise(300_000), noise(300_001)
	h1, h2 := one.create("web", "disk0.raw"), two.create("web", "disk0.raw")
	defer h1.Release()
	defer h2.Release()
	fill(t, h1, a)
	fill(t, h2, b)
	var errs [2]error
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = h1.Flush(t.Context()) })
	wg.Go(func() { errs[1] = h2.Flush(t.Context()) })
	wg.Wait()
	won, lost, data := errs[0], errs[1], a
	loser := two
	if won != nil {
		won, lost, data, loser = lost, won, b, one
	}
	if won != nil || !errors.Is(lost, catalog.ErrConflict) {
		t.Fatalf("one must win: %v, %v", errs[0], errs[1])
	}
	for _, e := range []*env{one, two} { // the loser sees it without waiting
		wait(t, "the winner's disk", func() bool { return e.cat.Has("web") })
		if _, cd := e.object("web", 0); cd.Original.SHA256 != sum(data) {
			t.Error("the disk is not the winner's")
		}
	}
	if names := loser.spool.List("web"); !slices.Equal(names, []string{"disk0.raw.refused"}) {
		t.Errorf("the loser shows %q", names)
	}
	if st := loser.spool.Status(); len(st) != 1 || st[0].State != stage.Refused || st[0].Error == "" {
		t.Errorf("the loser's spool: %+v", st)
	}
	var objects int
	for _, k := range one.keys() {
		if strings.HasPrefix(k, stage.Object) {
			objects++
		}
	}
	if objects != 1 {
		t.Errorf("%d objects are left of one disk", objects)
	}
}

func TestReplaceByClaim(t *testing.T) {
	e := newEnv(t, mem.New())
	old, fresh := noise(200_000), noise(300_000)
	if err := e.copyIn("web", "disk0.raw", old); err != nil {
		t.Fatal(err)
	}
	f, err := e.spool.Replace("web", "disk0.raw", 7, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e.spool.Lookup("web", "disk0.raw", 7) != f || e.spool.Lookup("web", "disk0.raw", 8) != nil {
		t.Error("the claim is not its thread's alone")
	}
	h := e.reopen(f, os.O_WRONLY|os.O_TRUNC)
	if e.spool.Lookup("web", "disk0.raw", 7) != nil {
		t.Error("the claim outlives its opening")
	}
	fill(t, h, fresh)
	if _, cd := e.object("web", 0); cd.Original.SHA256 != sum(old) {
		t.Error("the disk changed before the close")
	}
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, cd := e.object("web", 0); cd.Original.SHA256 != sum(fresh) {
		t.Error("the disk was not replaced")
	}
	// The handle is still open: what it writes now is a further version.
	more := append(slices.Clone(fresh), 1)
	if _, err := h.WriteAt(t.Context(), more[len(fresh):], int64(len(fresh))); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Release()
	if _, cd := e.object("web", 0); cd.Original.SHA256 != sum(more) {
		t.Error("what was written after the first close is lost")
	}
	if st := e.spool.Status(); len(st) != 0 {
		t.Errorf("left in the spool: %+v", st)
	}
}

func TestChangeInPlaceBeginsWithTheOldBytes(t *testing.T) {
	e := newEnv(t, mem.New())
	d := codectest.Scattered(1<<20, 5, 1)
	old := image(t, "raw", d)
	if err := e.copyIn("web", "disk0.raw", old); err != nil {
		t.Fatal(err)
	}
	f, err := e.spool.Replace("web", "disk0.raw", 7, &stage.Base{Disk: d})
	if err != nil {
		t.Fatal(err)
	}
	h := e.reopen(f, os.O_WRONLY)
	if a, _ := f.Attr(); a.Size != 1<<20 {
		t.Errorf("size %d before the first write", a.Size)
	}
	if _, err := h.WriteAt(t.Context(), []byte("new"), 5000); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Release()
	want := slices.Clone(old)
	copy(want[5000:], "new")
	if _, cd := e.object("web", 0); cd.Original.SHA256 != sum(want) {
		t.Error("not the old bytes with the change")
	}
	// Opened and left alone, it changes nothing and leaves nothing.
	if f, err = e.spool.Replace("web", "disk0.raw", 7, &stage.Base{Disk: d}); err != nil {
		t.Fatal(err)
	}
	h = e.reopen(f, os.O_WRONLY)
	when := time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC)
	f.SetModified(when)
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Release()
	if _, cd := e.object("web", 0); !cd.Modified.Equal(when) || cd.Original.SHA256 != sum(want) {
		t.Errorf("touched: modified %v", cd.Modified)
	}
	if st := e.spool.Status(); len(st) != 0 {
		t.Errorf("left in the spool: %+v", st)
	}
}

func TestPartsAreSentWhileTheFileIsWritten(t *testing.T) {
	// A plain image larger than two parts, without holes.
	b := image(t, "qcow2", codectest.Full(40<<20, 1))
	for _, tc := range []struct {
		name  string
		again func(h *stage.Handle) error // what the writer does at the end
		ahead bool
	}{
		{"in order", func(*stage.Handle) error { return nil }, true},
		{"first bytes again", func(h *stage.Handle) error {
			_, err := h.WriteAt(t.Context(), b[:10], 0)
			return err
		}, false},
		{"cut and written again", func(h *stage.Handle) error {
			if err := h.Truncate(t.Context(), 1000); err != nil {
				return err
			}
			_, err := h.WriteAt(t.Context(), b[1000:], 1000)
			return err
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := remote.Observe(mem.New())
			e := newEnv(t, store)
			h := e.create("web", "disk0.qcow2")
			defer h.Release()
			fill(t, h, b)
			wait(t, "parts to be sent behind the writer", func() bool { return store.Counts().Parts >= 2 })
			if err := tc.again(h); err != nil {
				t.Fatal(err)
			}
			if err := h.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, cd := e.object("web", 0)
			if !bytes.Equal(got, b) || cd.SHA256 != sum(b) {
				t.Error("the object is not what was written")
			}
			if ups := e.uploads(); len(ups) > 0 {
				t.Errorf("unfinished uploads: %q", ups)
			}
			if n := store.Counts().Parts; tc.ahead != (n == 3) {
				t.Errorf("%d parts were sent", n)
			}
		})
	}
}

func TestSparseFilesStaySparse(t *testing.T) {
	e := newEnv(t, mem.New())
	h := e.create("web", "disk0.raw")
	defer h.Release()
	if err := h.Truncate(t.Context(), 8<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(t.Context(), noise(100_000), 5<<30); err != nil {
		t.Fatal(err)
	}
	if err := h.Allocate(t.Context(), 5<<30, 50_000, 0x3); err != nil { // punch a hole
		t.Fatal(err)
	}
	a, err := h.File().Attr()
	if err != nil || a.Size != 8<<30 || a.Blocks > 4096 {
		t.Errorf("size %d, %d blocks, %v", a.Size, a.Blocks, err)
	}
	if at, err := h.File().Seek(0, 3); err != nil || at < 5<<30 || at > 5<<30+50_000 {
		t.Errorf("first data at %d, %v", at, err)
	}
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, cd := e.object("web", 0); cd.VirtualSize != 8<<30 || len(got) > 1<<20 {
		t.Errorf("stored %d bytes of a disk of %d", len(got), cd.VirtualSize)
	}
	if err := h.Allocate(t.Context(), 0, 100, 0x20); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("insert range: %v", err)
	}
}

func TestGoneFilesSaySo(t *testing.T) {
	e := newEnv(t, mem.New())
	h := e.create("web", "disk0.raw")
	fill(t, h, noise(1000))
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := h.File()
	h.Release()
	_, openErr := f.Open(t.Context(), os.O_RDONLY)
	_, attrErr := f.Attr()
	for what, err := range map[string]error{"open": openErr, "stat": attrErr, "truncate": f.Truncate(t.Context(), 0)} {
		if !errors.Is(err, stage.ErrGone) {
			t.Errorf("%s after the commit: %v", what, err)
		}
	}
}

func TestDrafts(t *testing.T) {
	e := newEnv(t, mem.New())
	if err := e.spool.Mkdir("a"); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Mkdir("a"); !errors.Is(err, iofs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	if err := e.spool.Mkdir(".a"); !errors.Is(err, stage.ErrName) {
		t.Errorf("a hidden image: %v", err)
	}
	if err := e.copyIn("a", ".half", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rmdir("a"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("removed with a file in it: %v", err)
	}
	if err := e.spool.RenameFolder(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	if got := e.spool.Folders(); !slices.Equal(got, []string{"b"}) || !slices.Equal(e.spool.List("b"), []string{".half"}) {
		t.Errorf("after the rename: %q", got)
	}
	if err := e.copyIn("b", "disk0.raw", noise(1000)); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rmdir("b"); err == nil {
		t.Error("an image was removed like a draft")
	}
	if err := e.spool.RenameFolder(t.Context(), "b", "c"); err != nil {
		t.Fatal(err)
	}
	if !e.cat.Has("c") || e.cat.Has("b") || !slices.Equal(e.spool.List("c"), []string{".half"}) {
		t.Errorf("after the rename of an image: %q", e.spool.List("c"))
	}
}

func TestSpoolSurvives(t *testing.T) {
	store := mem.New()
	e := newEnv(t, store)
	if err := e.spool.Mkdir("draft"); err != nil {
		t.Fatal(err)
	}
	h := e.create("web", "disk0.raw")
	fill(t, h, noise(50_000))
	first := e.spool
	// A second daemon beside it takes nothing over.
	e.open()
	if len(e.spool.Status()) != 0 || e.spool.HasFolder("draft") {
		t.Error("the files of a living process were taken over")
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.open()
	st := e.spool.Status()
	if len(st) != 1 || st[0].State != stage.Writing || st[0].Size != 50_000 || !e.spool.HasFolder("draft") {
		t.Errorf("taken over: %+v, folders %q", st, e.spool.Folders())
	}
	if b, err := os.ReadFile(st[0].Path); err != nil || !bytes.Equal(b, noise(50_000)) {
		t.Errorf("the bytes: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(st[0].Path))); err != nil {
		t.Error(err)
	}
}

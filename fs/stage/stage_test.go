package stage_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/mem"
)

func TestCloseCommits(t *testing.T) {
	d := codectest.Scattered(8<<20, 20, 1)
	for _, f := range all.Written {
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

// Who looks at a file that a dead process left does not say that it is whole.
func TestReadingWhatIsUnfinishedCommitsNothing(t *testing.T) {
	e := newEnv(t, mem.New())
	b := image(t, "qcow2", codectest.Scattered(4<<20, 10, 1))
	fill(t, e.create("vm", "disk0.qcow2"), b)
	if err := e.spool.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.open(func(c *stage.Config) { c.Quiet = time.Hour })
	f := e.spool.Lookup("vm", "disk0.qcow2", 0)
	if f == nil {
		t.Fatal("it is gone")
	}
	h := e.reopen(f, os.O_RDONLY)
	got := make([]byte, len(b))
	if _, err := h.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
		t.Errorf("read: %v", err)
	}
	h.Release()
	if err := e.spool.CommitQuiet(t.Context(), "vm"); err != nil || e.cat.Has("vm") {
		t.Errorf("after it was read: %v, committed: %v", err, e.cat.Has("vm"))
	}
	e.reopen(f, os.O_RDWR).Release()
	if err := e.spool.CommitQuiet(t.Context(), "vm"); err != nil || !e.cat.Has("vm") {
		t.Errorf("after it was open for writing: %v, committed: %v", err, e.cat.Has("vm"))
	}
}

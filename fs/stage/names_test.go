package stage_test

import (
	"bytes"
	"errors"
	iofs "io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

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
	var objects []string // the disk and its index
	for _, k := range one.keys() {
		if strings.HasPrefix(k, stage.Object) {
			objects = append(objects, k)
		}
	}
	_, cd := one.object("web", 0)
	if want := []string{cd.Index.Key, cd.Object.Key}; len(objects) != 2 || !slices.Contains(objects, want[0]) || !slices.Contains(objects, want[1]) {
		t.Errorf("%q are left of one disk, want %q", objects, want)
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
	f, err := e.spool.Replace("web", "disk0.raw", 7, d)
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
	if f, err = e.spool.Replace("web", "disk0.raw", 7, d); err != nil {
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

func TestRefusedRenameKeepsWhatItWouldReplace(t *testing.T) {
	e := newEnv(t, mem.New())
	first, second := noise(6000), noise(5000) // no VDI, both
	if err := e.copyIn("web", "disk0.vdi", first); !errors.Is(err, stage.ErrRefused) {
		t.Fatal(err)
	}
	if err := e.copyIn("web", ".disk0.vdi.Ab12", second); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rename(t.Context(), "web", ".disk0.vdi.Ab12", "web", "disk0.vdi"); !errors.Is(err, stage.ErrRefused) {
		t.Errorf("rename of a bad file: %v", err)
	}
	for name, want := range map[string][]byte{"disk0.vdi": first, ".disk0.vdi.Ab12": second} {
		f := e.spool.Lookup("web", name, 0)
		if f == nil {
			t.Errorf("%s is gone", name)
			continue
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has other bytes: %v", name, err)
		}
	}
	// A good one takes the place.
	good := image(t, "vdi", codectest.Empty(1<<20))
	if err := e.copyIn("web", ".disk0.vdi.Cd34", good); err != nil {
		t.Fatal(err)
	}
	if err := e.spool.Rename(t.Context(), "web", ".disk0.vdi.Cd34", "web", "disk0.vdi"); err != nil {
		t.Fatal(err)
	}
	if names := e.spool.List("web"); !slices.Equal(names, []string{".disk0.vdi.Ab12"}) {
		t.Errorf("shown: %q", names)
	}
}

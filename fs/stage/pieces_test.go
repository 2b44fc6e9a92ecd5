package stage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"imagefs/codec/codectest"
	"imagefs/codec/qcow2"
	"imagefs/fs/stage"
	"imagefs/remote/mem"
)

// flatText is the descriptor of a disk of flat files, of so many bytes each.
func flatText(size int, names ...string) []byte {
	var b strings.Builder
	b.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n")
	for _, name := range names {
		fmt.Fprintf(&b, "RW %d FLAT %q 0\n", size/512, name)
	}
	return []byte(b.String())
}

// wantRaw asks that disk 0 of an image reads as raw bytes.
func (e *env) wantRaw(name string, want []byte) {
	e.Helper()
	b, d := e.object(name, 0)
	if d.Format != "qcow2" || d.Original == nil || d.Original.Format != "raw" || d.Original.SHA256 != sum(want) {
		e.Errorf("stored as %+v", d)
	}
	got, err := codectest.ReadAll(codectest.Open(e.T, qcow2.Format, codectest.Bytes(b)))
	if err != nil || !bytes.Equal(got, want) {
		e.Errorf("the disk differs (%v)", err)
	}
}

// end closes the spool without waiting for anything.
func (e *env) end() {
	e.Helper()
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	if err := e.spool.Close(ctx); !errors.Is(err, context.Canceled) {
		e.Errorf("close with files that wait: %v", err)
	}
}

// TestPieces: a descriptor and its files come in any order, and are one disk
// with the close of the last of them.
func TestPieces(t *testing.T) {
	const size = 1 << 20
	disk := noise(2 * size)
	for _, folder := range []string{"", "vm"} {
		text := "vm.vmdk"
		if folder != "" {
			text = "disk0.vmdk"
		}
		files := map[string][]byte{
			text: flatText(size, "vm-f001.vmdk", "vm-f002.vmdk"), "vm-f001.vmdk": disk[:size], "vm-f002.vmdk": disk[size:],
		}
		orders := [][]string{
			{text, "vm-f001.vmdk", "vm-f002.vmdk"},
			{"vm-f002.vmdk", text, "vm-f001.vmdk"},
			{"vm-f001.vmdk", "vm-f002.vmdk", text},
		}
		for _, order := range orders {
			t.Run(folder+"/"+strings.Join(order, ","), func(t *testing.T) {
				e := newEnv(t, mem.New())
				for n, name := range order {
					if e.cat.Has("vm") {
						t.Fatalf("an image after %d files", n)
					}
					if err := e.copyIn(folder, name, files[name]); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
				}
				e.wantRaw("vm", disk)
				if left := e.spool.Status(); len(left) > 0 {
					t.Errorf("left: %+v", left)
				}
				if names := e.spool.List(folder); len(names) > 0 {
					t.Errorf("shown: %q", names)
				}
			})
		}
	}
}

// TestLoneDescriptor: it is kept, and what it waits for can be read.
func TestLoneDescriptor(t *testing.T) {
	e := newEnv(t, mem.New())
	if err := e.copyIn("", "vm.vmdk", flatText(4096, "vm-f001.vmdk", "other.vmdk")); err != nil {
		t.Fatal(err)
	}
	st := e.spool.Status()
	if len(st) != 1 || !strings.Contains(st[0].Error, `"vm-f001.vmdk" "other.vmdk"`) {
		t.Fatalf("status %+v", st)
	}
	if len(e.problems) != 1 || !strings.Contains(e.problems[0], "images/vm.vmdk") || !strings.Contains(e.problems[0], "vm-f001.vmdk") {
		t.Errorf("reported: %q", e.problems)
	}
	// A piece is as complete as its last close says.
	h := e.create("", "vm-f001.vmdk")
	fill(t, h, noise(4096))
	if err := e.copyIn("", "vm-f002.vmdk", noise(4096)); err != nil {
		t.Fatal(err)
	}
	if st := e.spool.Status(); len(st) != 3 || e.cat.Has("vm") {
		t.Errorf("status %+v", st)
	}
	h.Release()
	for _, name := range []string{"vm.vmdk", "vm-f001.vmdk", "vm-f002.vmdk"} {
		// What was closed without a flush is looked at after a while.
		wait(t, "the look at "+name+" to end", func() bool { return e.spool.Unlink("", name) == nil })
	}
}

// TestPiecesAreNoPath: a descriptor reads nothing but what was copied in.
func TestPiecesAreNoPath(t *testing.T) {
	for _, name := range []string{"/etc/passwd", "../vm-f001.vmdk", "..\\\\x.vmdk", "a/b.vmdk"} {
		e := newEnv(t, mem.New())
		text := strings.ReplaceAll(string(flatText(4096, "NAME")), "NAME", name)
		if err := e.copyIn("", "vm.vmdk", []byte(text)); !errors.Is(err, stage.ErrRefused) {
			t.Errorf("%q: %v", name, err)
		}
		if keys := e.keys(); len(keys) > 0 {
			t.Errorf("%q: stored %q", name, keys)
		}
	}
}

// TestDamagedPieces: pieces that do not fit refuse the disk, and stay.
func TestDamagedPieces(t *testing.T) {
	e := newEnv(t, mem.New())
	if err := e.copyIn("", "vm-flat.vmdk", noise(4096)); err != nil {
		t.Fatal(err)
	}
	err := e.copyIn("", "vm.vmdk", flatText(8192, "vm-flat.vmdk"))
	if !errors.Is(err, stage.ErrRefused) || !strings.Contains(err.Error(), "vm-flat.vmdk") {
		t.Errorf("got %v", err)
	}
	if e.cat.Has("vm") || len(e.keys()) > 0 {
		t.Errorf("stored %q", e.keys())
	}
	if names := e.spool.List(""); !slices.Equal(names, []string{"vm-flat.vmdk", "vm.vmdk"}) {
		t.Errorf("left %q", names)
	}
	// Both can be mended.
	h := e.reopen(e.spool.Lookup("", "vm-flat.vmdk", 0), 1)
	defer h.Release()
	whole := noise(8192)
	fill(t, h, whole)
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = e.reopen(e.spool.Lookup("", "vm.vmdk", 0), 1)
	defer h.Release()
	fill(t, h, flatText(8192, "vm-flat.vmdk"))
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.wantRaw("vm", whole)
}

// TestPiecesAfterTheEnd: what waits when a process ends goes on in the next,
// and what was sealed is stored by it.
func TestPiecesAfterTheEnd(t *testing.T) {
	disk := noise(1 << 20)
	g := &gated{Store: mem.New()}
	e := newEnv(t, g, writeBack)
	if err := e.copyIn("", "vm.vmdk", flatText(1<<20, "vm-flat.vmdk")); err != nil {
		t.Fatal(err)
	}
	e.end()
	e.open(writeBack)
	if err := e.copyIn("", "vm-flat.vmdk", disk); err != nil {
		t.Fatal(err)
	}
	wait(t, "the first attempt", func() bool { return g.asked.Load() > 0 })
	e.end()
	if e.cat.Has("vm") {
		t.Fatal("stored in a store that is away")
	}
	g.open.Store(true)
	e.open(writeBack)
	if err := e.spool.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.wantRaw("vm", disk)
}

// TestAnImageNamedLikeAPiece: a whole image is one, whatever its name.
func TestAnImageNamedLikeAPiece(t *testing.T) {
	e := newEnv(t, mem.New())
	b := image(t, "vmdk", codectest.Scattered(4<<20, 10, 1))
	if err := e.copyIn("", "vm-flat.vmdk", b); err != nil {
		t.Fatal(err)
	}
	if got, _ := e.object("vm-flat", 0); !bytes.Equal(got, b) {
		t.Error("the object differs")
	}
}

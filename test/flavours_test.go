package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A reframing is a view that hands stored streams on.
type reframing struct {
	view
	kinds []string // of sources
}

// reframed are all of them, and the sources that they show: those whose blocks
// are compressed so.
var reframed = []reframing{
	{view{"zlib.qcow2", "qcow2", true}, []string{"qcow2_zlib", "qcow2_old_zlib", "qcow2_cluster4k_zlib", "vmdk_stream"}},
	{view{"zstd.qcow2", "qcow2", true}, []string{"qcow2_zstd", "qcow2_cluster2m_zstd", "raw"}},
	{view{"deflate.vmdk", "vmdk", true}, []string{"qcow2_zlib", "qcow2_old_zlib", "vmdk_stream"}},
}

// compressible makes a guest of text, as real ones mostly are, with a piece that
// does not shrink.
func compressible(t *testing.T, path string) {
	t.Helper()
	sparse(t, path, 24*miB+512, piece{3 * miB, miB}) // noise
	var text strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&text, "%d Jan %02d %02d:%02d host daemon[%d]: session %x opened\n", i, i%28, i%24, i%60, i*7%32768, i*i)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{0, 8 * miB, 20*miB + 512 - 64*kiB} {
		if _, err := f.WriteAt([]byte(text.String())[:4*miB], off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlavours reads the views that are shown when asked for, of every source
// that they show, through real mounts.
func TestFlavours(t *testing.T) {
	needFUSE(t)
	tool(t, "qemu-img")
	t.Parallel()
	raw := filepath.Join(t.TempDir(), "raw")
	compressible(t, raw)
	inEachStore(t, func(t *testing.T, d *depot) {
		dir := t.TempDir()
		var kinds []string
		for _, s := range sources {
			shown := slices.ContainsFunc(reframed, func(r reframing) bool { return slices.Contains(r.kinds, s.kind) })
			if !shown && s.kind != "vhdx" {
				continue
			}
			path := filepath.Join(dir, s.kind+"."+s.ext)
			storeAs(t, s.kind, raw, path)
			args := append(append([]string{"import", "-q"}, d.flags...), "--name", s.kind, d.url, path)
			if _, stderr, code := imagefsEnv(t, d.env, args...); code != 0 {
				t.Fatalf("import %s: exit code %d: %s", s.kind, code, stderr)
			}
			kinds = append(kinds, s.kind)
		}
		m, other := d.mount(t), d.mount(t, "--cache-size", "16MiB")
		for _, kind := range kinds {
			checkFlavours(t, m, other, kind, raw)
		}
		for _, kind := range []string{"vhdx", "qcow2_zstd"} {
			show, _, _ := imagefsEnv(t, d.env, append(append([]string{"show"}, d.flags...), d.url, kind)...)
			if !strings.Contains(show, "disk0.zlib.qcow2") || !strings.Contains(show, "not stored as zlib") {
				t.Errorf("show %s does not say why there is no zlib.qcow2:\n%s", kind, show)
			}
		}
	})
}

// checkFlavours compares the flavours of an image with its guest.
func checkFlavours(t *testing.T, m, other *Mounted, kind, raw string) {
	t.Helper()
	fixed := m.Path("images", kind, "disk0.fixed.vhd")
	sameGuest(t, "vpc", fixed, "raw", raw)
	if size := stat(t, fixed).Size; size != 25*miB+512 {
		t.Errorf("%s has %d bytes, want whole MiB and a footer", fixed, size)
	}
	for _, r := range reframed {
		path := m.Path("images", kind, "disk0."+r.ext)
		_, err := os.Stat(path)
		if !slices.Contains(r.kinds, kind) {
			if !os.IsNotExist(err) {
				t.Errorf("%s: %v, want none", path, err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		sameGuest(t, r.qemu, path, "raw", raw)
		output(t, "qemu-img", "check", "-f", r.qemu, path)
		if _, err := try(t, "cmp", path, other.Path("images", kind, "disk0."+r.ext)); err != nil {
			t.Errorf("two mounts differ: %v", err)
		}
		if r.ext != "zstd.qcow2" { // which only QEMU reads
			got := filepath.Join(t.TempDir(), "guest")
			mustSh(t, `7zz e -so "$1" >"$2" 2>/dev/null`, path, got)
			sameGuest(t, "raw", got, "raw", raw)
		}
		checkSize(t, path, r.ext, kind, raw)
		// Back in: the guest is the same, and so are its views.
		d := newDirDepot(t)
		back := d.mount(t)
		ext := r.ext[strings.LastIndexByte(r.ext, '.')+1:]
		mustSh(t, `cp "$1" "$2"`, path, back.Path("images", "back."+ext))
		for _, v := range views {
			sameGuest(t, v.qemu, back.Path("images", "back", "disk0."+v.ext), "raw", raw)
		}
		sameGuest(t, r.qemu, back.Path("images", "back", "disk0."+r.ext), "raw", raw)
		back.Stop(t)
	}
}

// checkSize compares a compressed view with what qemu-img makes of the guest in
// the same way; a source of other blocks is another matter.
func checkSize(t *testing.T, path, ext, kind, raw string) {
	t.Helper()
	var args []string
	switch {
	case ext == "zlib.qcow2" && kind == "qcow2_zlib":
		args = []string{"-O", "qcow2", "-c"}
	case ext == "zstd.qcow2" && kind == "qcow2_zstd":
		args = []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}
	case ext == "deflate.vmdk" && kind == "vmdk_stream":
		args = []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}
	default:
		return
	}
	want := filepath.Join(t.TempDir(), "want")
	output(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), raw, want)...)
	a, b := stat(t, path).Size, stat(t, want).Size
	// The disk is so small that a table more counts.
	if diff := max(a-b, b-a); diff*100 > 2*b+100*64*kiB {
		t.Errorf("%s has %d bytes, qemu-img's has %d", path, a, b)
	}
	t.Logf("%s of %s: %d bytes, qemu-img's %d", ext, kind, a, b)
}

// TestIndexOfAnAdoptedImage: an object that was put there in another way gets
// its index by a command.
func TestIndexOfAnAdoptedImage(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	raw := filepath.Join(t.TempDir(), "raw")
	compressible(t, raw)
	inEachStore(t, func(t *testing.T, d *depot) {
		file := filepath.Join(t.TempDir(), "vm.qcow2")
		storeAs(t, "qcow2_zlib", raw, file)
		d.put(t, "vm.qcow2", file)
		m := d.mount(t)
		path := m.Path("images", "vm", "disk0.zlib.qcow2")
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("without an index: %v", err)
		}
		run := func(name string, args ...string) string {
			stdout, stderr, code := imagefsEnv(t, d.env, append(append([]string{name}, d.flags...), args...)...)
			if code != 0 {
				t.Errorf("%s: exit code %d: %s", name, code, stderr)
			}
			return stdout + stderr
		}
		if out := run("show", d.url, "vm"); !strings.Contains(out, "imagefs index") {
			t.Errorf("show does not say what is missing:\n%s", out)
		}
		if out := run("index", d.url, "vm"); !strings.Contains(out, "has an index of") {
			t.Errorf("index says %q", out)
		}
		if err := syscall.Kill(m.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the view", func() bool { _, err := os.Stat(path); return err == nil })
		sameGuest(t, "qcow2", path, "raw", raw)
		output(t, "qemu-img", "check", "-f", "qcow2", path)
		if out := run("check", "--full", d.url); !strings.Contains(out, " 0 damaged") || strings.Contains(out, "garbage") {
			t.Errorf("check says %q", out)
		}
		// A damaged index costs the view, and nothing else.
		keys, err := filepath.Glob(d.object("disks/*.index"))
		if err != nil || len(keys) != 1 {
			t.Fatalf("indexes %q %v", keys, err)
		}
		mustSh(t, `printf x | dd of="$1" bs=1 seek=200 conv=notrunc status=none`, keys[0])
		again := d.mount(t)
		again.Expect("index")
		if _, err := os.Stat(again.Path("images", "vm", "disk0.zlib.qcow2")); err == nil {
			t.Error("a view of a damaged index")
		}
		sameGuest(t, "vmdk", again.Path("images", "vm", "disk0.vmdk"), "raw", raw)
		if out, _, code := imagefsEnv(t, d.env, append(append([]string{"check", "--full"}, d.flags...), d.url)...); code != 5 || !strings.Contains(out, "imagefs index --again") {
			t.Errorf("check of a damaged index: exit code %d: %s", code, out)
		}
		run("index", "--again", d.url, "vm")
		run("check", "--full", d.url)
	})
}

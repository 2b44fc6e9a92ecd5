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

// splitVMDK makes a VMDK of several files in a new folder and returns their
// names, the descriptor first.
func splitVMDK(t *testing.T, raw, subformat string) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	output(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat="+subformat, raw, filepath.Join(dir, "vm.vmdk"))
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names = []string{"vm.vmdk"}
	for _, e := range es {
		if e.Name() != "vm.vmdk" {
			names = append(names, e.Name())
		}
	}
	if len(names) < 2 {
		t.Fatalf("%s is only %q", subformat, names)
	}
	return dir, names
}

// TestPiecesCopiedIn copies VMDKs of several files in with real programs: they
// are one disk with the last file, whichever that is.
func TestPiecesCopiedIn(t *testing.T) {
	needFUSE(t)
	tool(t, "qemu-img")
	t.Parallel()
	raws := t.TempDir()
	small, large := filepath.Join(raws, "small"), filepath.Join(raws, "large")
	sparse(t, small, 5*miB, piece{0, 512}, piece{3 * miB, 70 * kiB}, piece{5*miB - 512, 512})
	// Files of at most 2 GiB: three of them.
	sparse(t, large, 5*giB, piece{0, 512}, piece{2*giB - 4096, 8192}, piece{4 * giB, 64 * kiB}, piece{5*giB - 512, 512})
	d := newDirDepot(t)
	m := d.mount(t)
	for _, c := range []struct{ subformat, raw string }{
		{"monolithicFlat", small},
		{"monolithicFlat", large},
		{"twoGbMaxExtentFlat", small},
		{"twoGbMaxExtentFlat", large},
		{"twoGbMaxExtentSparse", small},
		{"twoGbMaxExtentSparse", large},
	} {
		dir, names := splitVMDK(t, c.raw, c.subformat)
		last := slices.Clone(names)
		slices.Reverse(last)
		for _, order := range [][]string{names, last} {
			for _, inside := range []bool{false, true} {
				image := "vm" // by the descriptor's name
				folder := m.Path("images")
				if inside {
					image = fmt.Sprintf("in-%s-%s-%s", c.subformat, filepath.Base(c.raw), order[0])
					folder = m.Path("images", image)
					mustSh(t, `mkdir "$1"`, folder)
				}
				for _, name := range order {
					to := name
					if inside && name == "vm.vmdk" {
						to = "disk0.vmdk"
					}
					mustSh(t, `cp --sparse=always "$1" "$2"`, filepath.Join(dir, name), filepath.Join(folder, to))
				}
				what := fmt.Sprintf("%s of %s, %s first", c.subformat, filepath.Base(c.raw), order[0])
				checkJoined(t, m, what, image, c.raw)
				if left := m.status(t, "uploads"); left != "" {
					t.Errorf("%s: left: %s", what, left)
				}
				if _, stderr, code := imagefs(t, "rm", d.url, image); code != 0 {
					t.Errorf("rm: exit code %d: %s", code, stderr)
				}
				if err := syscall.Kill(m.Pid(), syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
				waitFor(t, image+" to be gone", func() bool { _, err := os.Stat(m.Path("images", image)); return err != nil })
			}
		}
		args := []string{"import", "-q", "--name", "told-" + c.subformat + "-" + filepath.Base(c.raw), d.url}
		for _, name := range last {
			args = append(args, filepath.Join(dir, name))
		}
		if _, stderr, code := imagefs(t, args...); code != 0 {
			t.Errorf("import of %q: exit code %d: %s", last, code, stderr)
		}
		again := d.mount(t)
		checkJoined(t, again, strings.Join(args, " "), args[3], c.raw)
		again.Stop(t)
	}
}

// checkJoined compares an image that came in pieces with its guest.
func checkJoined(t *testing.T, m *Mounted, what, image, raw string) {
	t.Helper()
	got, err := diskOf(m, image, 0)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if got.format != "qcow2" {
		t.Errorf("%s: stored as %s", what, got.format)
	}
	sameGuest(t, "raw", m.Path("images", image, "disk0.raw"), "raw", raw)
	if small := stat(t, raw).Size < giB; small {
		if _, err := try(t, "cmp", m.Path("images", image, "disk0.raw"), raw); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		sameGuest(t, "vmdk", m.Path("images", image, "disk0.vmdk"), "raw", raw)
	}
}

// TestLoneDescriptorCopiedIn: what it waits for is said where people look.
func TestLoneDescriptorCopiedIn(t *testing.T) {
	needFUSE(t)
	tool(t, "qemu-img")
	t.Parallel()
	raw := filepath.Join(t.TempDir(), "raw")
	sparse(t, raw, miB, piece{0, 512})
	dir, names := splitVMDK(t, raw, "monolithicFlat")
	d := newDirDepot(t)
	spool := t.TempDir()
	m := d.mount(t, "--spool", spool)
	mustSh(t, `cp "$1" "$2"`, filepath.Join(dir, "vm.vmdk"), m.Path("images"))
	for _, status := range []string{"errors", "uploads"} {
		if s := m.status(t, status); !strings.Contains(s, names[1]) || !strings.Contains(s, "vm.vmdk") {
			t.Errorf(".imagefs/%s: %q", status, s)
		}
	}
	if _, err := diskOf(m, "vm", 0); err == nil {
		t.Error("an image of a descriptor alone")
	}
	output(t, "cmp", filepath.Join(dir, "vm.vmdk"), m.Path("images", "vm.vmdk"))
	_, stderr, code := imagefs(t, "import", d.url, filepath.Join(dir, "vm.vmdk"))
	if code != 5 || !strings.Contains(stderr, names[1]) {
		t.Errorf("import: exit code %d: %s", code, stderr)
	}
	// The piece comes to the next mount.
	m.Stop(t)
	m = d.mount(t, "--spool", spool)
	mustSh(t, `cp "$1" "$2"`, filepath.Join(dir, names[1]), m.Path("images"))
	checkJoined(t, m, "after another mount", "vm", raw)
}

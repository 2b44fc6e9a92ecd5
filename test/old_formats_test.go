package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOldFormats copies in what is only read: it is shown as it is, and as every
// view.
func TestOldFormats(t *testing.T) {
	needFUSE(t)
	tool(t, "qemu-img")
	t.Parallel()
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	sparse(t, raw, 9*miB, piece{0, 512}, piece{3*miB - 512, 70 * kiB}, piece{9*miB - 512, 512})
	inEachStore(t, func(t *testing.T, d *depot) {
		m := d.mount(t)
		m.Expect("import failed")
		for _, c := range []struct{ qemu, ext, format string }{
			{"qcow", "qcow", "qcow1"}, {"qed", "qed", "qed"}, {"parallels", "hdd", "parallels"}, {"parallels", "parallels", "parallels"},
		} {
			file := filepath.Join(t.TempDir(), "vm."+c.ext)
			output(t, "qemu-img", "convert", "-f", "raw", "-O", c.qemu, raw, file)
			image := "from-" + c.ext
			mustSh(t, `cp "$1" "$2"`, file, m.Path("images", image+"."+c.ext))
			own := m.Path("images", image, "disk0."+c.format)
			if _, err := try(t, "cmp", file, own); err != nil {
				t.Error(err)
			}
			sameGuest(t, c.qemu, own, "raw", raw)
			for _, v := range views {
				sameGuest(t, v.qemu, m.Path("images", image, "disk0."+v.ext), "raw", raw)
			}
			if _, err := os.Stat(m.Path("by-format", c.format)); !os.IsNotExist(err) {
				t.Errorf("by-format/%s: %v: no other disk is shown so", c.format, err)
			}
		}
		// A name that promises another format.
		file := filepath.Join(t.TempDir(), "vm.qcow2")
		output(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow", raw, file)
		if out, err := sh(t, `cp "$1" "$2"`, file, m.Path("images")); err == nil {
			t.Errorf("a qcow1 named qcow2 is taken: %s", out)
		}
		if errs := m.status(t, "errors"); !strings.Contains(errs, "the content is qcow1: name it .qcow") {
			t.Errorf(".imagefs/errors: %q", errs)
		}
	})
}

package stage_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote/mem"
)

// TestFormatsThatAreOnlyRead: an image in one is imported as it is, under any of
// its extensions, and under no other.
func TestFormatsThatAreOnlyRead(t *testing.T) {
	raw := codectest.RawFile(t, codectest.Scattered(8<<20, 20, 1))
	for _, f := range []struct {
		format, qemu string
		exts         []string
	}{
		{"qcow1", "qcow", []string{"qcow", "qcow1"}},
		{"qed", "qed", []string{"qed"}},
		{"parallels", "parallels", []string{"hdd", "hds", "parallels"}},
	} {
		b, err := os.ReadFile(codectest.Convert(t, f.qemu, raw))
		if err != nil {
			t.Fatal(err)
		}
		for _, ext := range f.exts {
			e := newEnv(t, mem.New())
			if err := e.copyIn("web", "disk0."+ext, b); err != nil {
				t.Fatalf("%s: %v", ext, err)
			}
			if got, cd := e.object("web", 0); !bytes.Equal(got, b) || cd.Format != f.format || cd.Original != nil {
				t.Errorf("%s: stored as %s, of %d bytes, want %d", ext, cd.Format, len(got), len(b))
			}
		}
		for _, ext := range []string{"qcow2", "img", "vmdk"} {
			e := newEnv(t, mem.New())
			err := e.copyIn("web", "disk0."+ext, b)
			if !errors.Is(err, stage.ErrRefused) || !errors.Is(err, codec.ErrFormat) || !strings.Contains(err.Error(), "the content is "+f.format+": name it ."+f.format) {
				t.Errorf("%s as %s: %v", f.format, ext, err)
			}
		}
	}
}

package image_test

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/remote/mem"
)

// TestFormatsThatAreOnlyRead: an image in one is adopted, shown as itself and in
// all views; an image in another is not shown in it.
func TestFormatsThatAreOnlyRead(t *testing.T) {
	disk := codectest.Scattered(24<<20+512, 20, 7)
	raw := codectest.RawFile(t, disk)
	want := render(t, disk)
	s := mem.New()
	put(t, s, "other.raw", want)
	stored := map[string][]byte{}
	for _, f := range []struct{ format, qemu, ext string }{{"qcow1", "qcow", "qcow"}, {"qed", "qed", "qed"}, {"parallels", "parallels", "hdd"}} {
		b, err := os.ReadFile(codectest.Convert(t, f.qemu, raw))
		if err != nil {
			t.Fatal(err)
		}
		stored[f.format] = b
		put(t, s, f.format+"."+f.ext, b)
	}
	if len(stored) != len(all.ReadOnly) {
		t.Errorf("%d formats are only read, %d are tried", len(all.ReadOnly), len(stored))
	}
	o, cat := opener(t, s, 0)
	for _, f := range all.ReadOnly {
		im, err := cat.Lookup(t.Context(), f.Name())
		if err != nil {
			t.Fatal(err)
		}
		cd, _ := im.Disk(0)
		d, err := o.Open(t.Context(), im, cd)
		if err != nil {
			t.Fatal(err)
		}
		views := o.ViewsOf(cd)
		if !slices.ContainsFunc(views, func(v codec.View) bool { return v.Name() == f.Name() }) || len(views) != len(o.Views())+1 {
			t.Errorf("%s: not shown in its own format", f.Name())
		}
		file, err := d.File(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if !file.Stored() || !bytes.Equal(render(t, file), stored[f.Name()]) {
			t.Errorf("%s: the stored bytes are not what is read back", f.Name())
		}
		for _, name := range []string{"raw", "qcow2"} {
			v := format(t, name)
			file, err := d.File(t.Context(), v)
			if err != nil {
				t.Fatal(err)
			}
			if got := render(t, codectest.Open(t, v, file)); !bytes.Equal(got, want) {
				t.Errorf("%s as %s: another disk", f.Name(), name)
			}
		}
		im, err = cat.Lookup(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		cd, _ = im.Disk(0)
		for _, v := range o.ViewsOf(cd) {
			if v.Name() == f.Name() {
				t.Errorf("a raw disk is shown as %s", f.Name())
			}
		}
	}
}

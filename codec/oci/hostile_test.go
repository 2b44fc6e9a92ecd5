package oci

import (
	"archive/tar"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// samples are files of several writers.
func samples(t testing.TB) [][]byte {
	t.Helper()
	ours, err := codectest.ReadAll(layout(t, full(), codectest.Empty(512)))
	if err != nil {
		t.Fatal(err)
	}
	long := codectest.Member{strings.Repeat("long-", 25), []byte("KDMV")}
	meta := codectest.Member{metadataName, []byte(`{"version":2,"x":[1,{"y":"\u00e9"}],"operatingSystem":"A","additionalMetadata":{"shapeCompatibilities":[{"internalShapeName":"VM.Standard.A1.Flex"}]}}`)}
	return [][]byte{ours, codectest.Archive(t, tar.FormatGNU, long, meta), codectest.Archive(t, tar.FormatPAX, meta, long)}
}

// TestDamagedPackages: whatever is wrong with a file, it is refused or its disk
// lies inside it.
func TestDamagedPackages(t *testing.T) { codectest.DamagePackages(t, Package, samples(t)...) }

// FuzzOpen opens bytes of any origin.
func FuzzOpen(f *testing.F) {
	for _, b := range samples(f)[1:] { // the small ones
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := codectest.OpenHostilePackage(Package, b); err != nil {
			t.Error(err)
		}
	})
}

// FuzzMetadata reads JSON of any origin: what is kept is written as it was read,
// and read again the same.
func FuzzMetadata(f *testing.F) {
	f.Add([]byte(least))
	f.Add([]byte(ampere))
	f.Add([]byte(`{"version":2,"a":[true,false,null,-1.5e3,"\u2028\ud800 \u0000"],"":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := machine(b)
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("%v is no clean refusal", err)
			}
			return
		}
		again, err := machine([]byte(m.Extra[extra]))
		if err != nil || again.Extra[extra] != m.Extra[extra] {
			t.Errorf("%q is read as %q, then %q, %v", b, m.Extra[extra], again.Extra[extra], err)
		}
		o, _ := parseObject(b)
		if text := metadata(&codec.Machine{Extra: m.Extra}); o.vals["version"] == must(least).vals["version"] && text != m.Extra[extra] {
			t.Errorf("%q is written as %q", m.Extra[extra], text)
		}
	})
}

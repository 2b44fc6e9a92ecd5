package ova

import (
	"archive/tar"
	"strings"
	"testing"

	"imagefs/codec/codectest"
)

// samples are packages of several writers.
func samples(t testing.TB) [][]byte {
	t.Helper()
	ours, err := codectest.ReadAll(layout(t, full(), codectest.Full(512, 1), codectest.Empty(512)))
	if err != nil {
		t.Fatal(err)
	}
	d := vmdkOf(t, 1)
	vb := []codectest.Member{{"box.ovf", []byte(virtualBox)}, {"box-disk001.vmdk", d}, {"box-disk002.vmdk", d}}
	long := strings.Repeat("long-", 25) + ".vmdk"
	plain := []codectest.Member{{"v.ovf", []byte(strings.Replace(plainOVF, "d.vmdk", long, 1))}, {long, d}}
	return [][]byte{
		ours,
		codectest.Archive(t, tar.FormatUSTAR, append(vb, codectest.Member{"box.mf", manifest("SHA256 (%s) = %x\n", vb...)})...),
		codectest.Archive(t, tar.FormatPAX, plain...),
		codectest.Archive(t, tar.FormatGNU, plain...),
	}
}

// TestDamagedPackages: whatever is wrong with a package, it is refused or its
// disks lie inside it.
func TestDamagedPackages(t *testing.T) { codectest.DamagePackages(t, Package, samples(t)...) }

// FuzzOpen opens bytes of any origin.
func FuzzOpen(f *testing.F) {
	// Small ones: a fuzzer changes bytes that matter.
	small := []codectest.Member{{"v.ovf", []byte(plainOVF)}, {"d.vmdk", []byte("KDMV")}}
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX} {
		f.Add(codectest.Archive(f, format, append(small, codectest.Member{"v.mf", manifest("SHA1(%s)= %x\n", small...)})...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := codectest.OpenHostilePackage(Package, b); err != nil {
			t.Error(err)
		}
	})
}

// FuzzDescriptor reads descriptors of any origin, without the archive around
// them: what is read is within its bounds.
func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(plainOVF))
	f.Add([]byte(virtualBox))
	f.Add([]byte(vmware))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEnvelope(b)
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("%v is no clean refusal", err)
			}
			return
		}
		if len(e.disks) == 0 || e.machine.CPUs < 0 || e.machine.MemoryMiB < 0 {
			t.Errorf("%+v", e)
		}
		for _, d := range e.disks {
			if d.capacity < 0 || d.id == "" || d.fileRef == "" {
				t.Errorf("disk %+v", d)
			}
		}
	})
}

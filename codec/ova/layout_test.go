package ova

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/vmdk"
)

const mib = 1 << 20

// full is a machine of which everything is known.
func full() codec.Machine {
	return codec.Machine{
		Name: "web server", ID: [16]byte{1, 2, 3}, Created: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), CPUs: 3, MemoryMiB: 2500,
		Firmware: "uefi", OS: "Debian", OSVersion: "12", Arch: "x86_64", Description: "one\n\ttwo & <three> \"é\"",
	}
}

func layout(t testing.TB, m codec.Machine, disks ...codec.Disk) *codec.File {
	t.Helper()
	return codectest.Pack(t, Package, m, disks...)
}

func open(t testing.TB, src codec.Source) (codec.Machine, []codec.Part) {
	t.Helper()
	m, parts, err := Package.Open(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	return m, parts
}

// TestLayout: sizes are exact, no byte of a disk is read, any range is the same
// as of the whole, and the bytes are those of all releases.
func TestLayout(t *testing.T) {
	m := full()
	a, b := codectest.Example(), codectest.Full(3*mib+512, 2)
	f := layout(t, m, a, b)
	if a.Reads() != 0 || b.Reads() != 0 {
		t.Errorf("the layout read %d and %d times", a.Reads(), b.Reads())
	}
	want := int64(512+1024) + codec.Up(int64(len(descriptor(t, f))), 512)
	for _, d := range codectest.PackDisks(t, Package, m, a, b) {
		want += 512 + codec.Up(d.File.Size(), 512)
	}
	if f.Size() != want {
		t.Errorf("%d bytes, want %d", f.Size(), want)
	}
	all, err := codectest.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	codectest.CheckRandom(t, f)
	for e, err := range f.Extents(context.Background(), 0, f.Size()) {
		if err != nil || e.Zero && !codec.Empty(all[e.Off:e.Off+e.Len]) {
			t.Errorf("extent %+v: %v, or not zeros", e, err)
		}
	}
	for what, c := range map[string]struct {
		f    *codec.File
		want string
	}{
		"full": {f, "c280886c584ab8698f8390182c8738cebbe1f7434f8ebc1a13c37426ee92c4f2"},
		"bare": {layout(t, codec.Machine{}, codectest.Empty(mib)), "2cd1f8842819784965e5c1013f504ab89dd9751b7d7106af54745866ff670e5a"},
	} {
		if got, err := codectest.Sum(c.f); got != c.want || err != nil {
			t.Errorf("%s: sum %q, %v, want %q: a change is a release note", what, got, err, c.want)
		}
	}
}

// descriptor is the text of the first member.
func descriptor(t testing.TB, f codec.Source) string {
	t.Helper()
	a, err := list(context.Background(), f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.text(context.Background(), f, a.ovf)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// carried is what an OVA says again of a machine: all but the image's id.
func carried(m codec.Machine) codec.Machine {
	m.ID = [16]byte{}
	return m
}

// TestRoundTrip: what a machine says is read again, and written again as it was.
func TestRoundTrip(t *testing.T) {
	change := func(f func(m *codec.Machine)) codec.Machine {
		m := full()
		f(&m)
		return m
	}
	for what, m := range map[string]codec.Machine{
		"full":      full(),
		"bios":      change(func(m *codec.Machine) { m.Firmware = "bios" }),
		"no firm":   change(func(m *codec.Machine) { m.Firmware = "" }),
		"32 bits":   change(func(m *codec.Machine) { m.Arch = "i386" }),
		"unknown":   change(func(m *codec.Machine) { m.OS, m.OSVersion = "Talos", "" }),
		"no system": change(func(m *codec.Machine) { m.OS, m.OSVersion = "", "" }),
		"no text":   change(func(m *codec.Machine) { m.Description = "" }),
		"no time":   change(func(m *codec.Machine) { m.Created = time.Time{} }),
		"large":     change(func(m *codec.Machine) { m.CPUs, m.MemoryMiB = codec.MaxCPUs, codec.MaxMemoryMiB }),
		"long name": change(func(m *codec.Machine) { m.Name = strings.Repeat("ä", 127) }),
		"odd name":  change(func(m *codec.Machine) { m.Name = `-a"'<>&%20/..\ü]]>` }),
		"kept": change(func(m *codec.Machine) {
			m.Extra = map[string]string{"ova.os_id": "1", "ova.os_type": "debian12_64Guest"}
		}),
		"kept alone": change(func(m *codec.Machine) { m.Extra = map[string]string{"ova.os_id": "100"} }),
	} {
		f := layout(t, m, codectest.Full(70_000, 1), codectest.Empty(mib))
		got, parts := open(t, f)
		want := carried(m)
		for k, v := range m.Extra {
			if got.Extra[k] != v {
				t.Errorf("%s: %s is %q, want %q", what, k, got.Extra[k], v)
			}
		}
		got2 := got
		got.Extra, want.Extra = nil, nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", what, got, want)
		}
		for i, p := range parts {
			if p.Number != i || p.Name != Package.DiskName(m.Name, i)+".vmdk" || p.Format != "vmdk" {
				t.Errorf("%s: part %+v", what, p)
			}
		}
		if len(parts) != 2 || parts[0].Size != 70_144 || parts[1].Size != mib {
			t.Errorf("%s: parts %+v", what, parts)
		}
		got2.ID = m.ID
		a, _ := codectest.ReadAll(f)
		b, _ := codectest.ReadAll(layout(t, got2, codectest.Full(70_000, 1), codectest.Empty(mib)))
		if !bytes.Equal(a, b) {
			t.Errorf("%s: what was read is written otherwise", what)
		}
	}
}

// TestDefaults: what nobody said, as the package's doc says.
func TestDefaults(t *testing.T) {
	m, _ := open(t, layout(t, codec.Machine{Name: "a"}, codectest.Empty(512)))
	want := codec.Machine{Name: "a", CPUs: 1, MemoryMiB: 1024, Arch: "x86_64", Extra: map[string]string{"ova.os_id": "101", "ova.os_type": "otherLinux64Guest"}}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("%+v, want %+v", m, want)
	}
}

// TestGuests: names of systems, and what is kept of a package read before.
func TestGuests(t *testing.T) {
	kept := map[string]string{"ova.os_id": "96", "ova.os_type": "debian12_64Guest"}
	for _, c := range []struct {
		os, arch string
		extra    map[string]string
		id       int
		osType   string
	}{
		{"", "", nil, 101, "otherLinux64Guest"},
		{"Debian GNU/Linux", "amd64", nil, 96, "debian7_64Guest"},
		{"debian", "i686", nil, 95, "debian7Guest"},
		{"Ubuntu", "x64", nil, 94, "ubuntu64Guest"},
		{"CentOS Stream", "", nil, 107, "centos64Guest"},
		{"Oracle Linux", "", nil, 109, "oracleLinux64Guest"},
		{"RHEL", "", nil, 80, "rhel7_64Guest"},
		{"SLES", "", nil, 85, "sles12_64Guest"},
		{"openSUSE Leap", "", nil, 83, "opensuse64Guest"},
		{"FreeBSD", "x86_64", nil, 78, "freebsd64Guest"},
		{"Windows", "", nil, 112, "windows8Server64Guest"},
		{"Debian", "", kept, 96, "debian12_64Guest"},
		{"", "", kept, 96, "debian12_64Guest"},
		{"Ubuntu", "", kept, 94, "ubuntu64Guest"},
		{"Debian", "i386", kept, 95, "debian7Guest"},
		{"Debian", "", map[string]string{"ova.os_id": "x"}, 96, "debian7_64Guest"},
		{"Debian", "", map[string]string{"ova.os_id": "95"}, 96, "debian7_64Guest"},
	} {
		id, osType, err := system(&codec.Machine{OS: c.os, Arch: c.arch, Extra: c.extra})
		if id != c.id || osType != c.osType || err != nil {
			t.Errorf("%+v: %d, %s, %v", c, id, osType, err)
		}
	}
	seen := map[int]bool{}
	for _, g := range append(guests, other) {
		for k, id := range g.id {
			if id == 0 {
				continue
			}
			if h, wide := byID(id); seen[id] || h.name != g.name || wide != (k == 1) {
				t.Errorf("id %d stands twice, or is of %q", id, h.name)
			}
			seen[id] = true
		}
	}
}

// TestNotPossible: images that an OVA cannot say.
func TestNotPossible(t *testing.T) {
	one := codectest.PackDisks(t, Package, full(), codectest.Empty(512))
	many := make([]codec.PackDisk, 61)
	for i := range many {
		many[i] = one[0]
		many[i].Number = i
	}
	arm := full()
	arm.Arch = "arm64"
	for what, c := range map[string]struct {
		m     codec.Machine
		disks []codec.PackDisk
		text  string
	}{
		"no disk":    {full(), nil, "0 disks"},
		"many disks": {full(), many, "61 disks"},
		"arm":        {arm, one, "aarch64"},
	} {
		if _, err := Package.Layout(c.m, c.disks); !errors.Is(err, codec.ErrNotPossible) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Package.Layout(full(), append(one, one[0])); err == nil {
		t.Error("two disks of one number laid out")
	}
	huge := codec.PackDisk{Size: 512, File: codectest.Empty(codec.MaxSize)}
	if _, err := Package.Layout(full(), []codec.PackDisk{huge}); !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("a disk of the largest size: %v", err)
	}
	bad := full()
	bad.Name = "a\x01"
	if _, err := Package.Layout(bad, one); err == nil {
		t.Error("a control character laid out")
	}
}

// TestManyDisks: as many as fit, in their order, and one of 8 GiB and more.
func TestManyDisks(t *testing.T) {
	disks := make([]codec.Disk, maxDisks)
	for i := range disks {
		disks[i] = codectest.Empty(int64(i+1) * 512)
	}
	f := layout(t, full(), disks...)
	checkStructure(t, descriptor(t, f))
	_, parts := open(t, f)
	for i, p := range parts {
		if p.Number != i || p.Size != int64(i+1)*512 {
			t.Errorf("part %d: %+v", i, p)
		}
	}
	big := codectest.Full(9<<30, 1)
	f = layout(t, full(), big, codectest.Full(512, 2))
	if _, parts := open(t, f); parts[0].Len < 9<<30 || parts[1].Off < 9<<30 {
		t.Errorf("parts %+v", parts)
	}
	// The second disk, by its own range.
	_, parts = open(t, f)
	d, err := vmdk.Format.Open(context.Background(), parts[1].Open(f))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := codectest.ReadAll(d)
	want, _ := codectest.ReadAll(codectest.Full(512, 2))
	if !bytes.Equal(got, want) {
		t.Error("the second disk has other bytes")
	}
}

// TestTools: tar and bsdtar list and unpack the archive, xmllint reads the
// descriptor, qemu-img the disks.
func TestTools(t *testing.T) {
	disks := []*codectest.Disk{codectest.Example(), codectest.Full(5*mib+512, 3)}
	m := full()
	m.Name = `odd <name> & "more" ü`
	f := layout(t, m, disks[0], disks[1])
	dir := t.TempDir()
	path := filepath.Join(dir, "a.ova")
	codectest.WriteFile(t, path, f)
	_, parts := open(t, f)
	ovf := portable(m.Name) + ".ovf"
	for _, tool := range []string{"tar", "bsdtar"} {
		t.Run(tool, func(t *testing.T) {
			want := ovf + "\n" + parts[0].Name + "\n" + parts[1].Name + "\n"
			if got := codectest.Exec(t, tool, "-tf", path); got != want {
				t.Errorf("lists %q, want %q", got, want)
			}
			out := t.TempDir()
			codectest.Exec(t, tool, "-C", out, "-xf", path)
			if b, err := os.ReadFile(filepath.Join(out, ovf)); string(b) != descriptor(t, f) || err != nil {
				t.Errorf("another descriptor: %v", err)
			}
			for i, p := range parts {
				codectest.Compare(t, "vmdk", filepath.Join(out, p.Name), codectest.RawFile(t, disks[i]))
			}
		})
	}
	t.Run("xmllint", func(t *testing.T) {
		file := filepath.Join(dir, "a.ovf")
		if err := os.WriteFile(file, []byte(descriptor(t, f)), 0o666); err != nil {
			t.Fatal(err)
		}
		codectest.Exec(t, "xmllint", "--noout", "--nonet", file)
		for xpath, want := range map[string]string{
			"string(//*[local-name()='VirtualSystem']/*[local-name()='Name'])": m.Name,
			"string(//*[local-name()='Annotation'])":                           m.Description,
			"count(//*[local-name()='Item'])":                                  "6",
		} {
			if got := codectest.Exec(t, "xmllint", "--nonet", "--xpath", xpath, file); strings.TrimSuffix(got, "\n") != want {
				t.Errorf("%s: %q, want %q", xpath, got, want)
			}
		}
	})
}

// TestPortable: names of members need no escaping anywhere.
func TestPortable(t *testing.T) {
	for name, want := range map[string]string{
		"":                        "_",
		".":                       "_",
		"..":                      "_.",
		"-x":                      "_x",
		"a b/ü":                   "a_b__",
		"Web-1.2_x":               "Web-1.2_x",
		strings.Repeat("a", 1000): strings.Repeat("a", maxBase),
	} {
		if got := portable(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if n := len(Package.DiskName(strings.Repeat("a", 99), 1<<31)) + len(".vmdk"); n > 100 {
		t.Errorf("a name of %d bytes", n)
	}
}

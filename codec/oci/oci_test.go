package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/qcow2"
)

const mib = 1 << 20

func full() codec.Machine {
	return codec.Machine{Created: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), Firmware: "uefi", OS: "Oracle <Linux>\u2028", OSVersion: "9.4", Arch: "x86_64"}
}

func layout(t testing.TB, m codec.Machine, d codec.Disk) *codec.File {
	t.Helper()
	return codectest.Pack(t, Package, m, d)
}

// TestLayout: sizes are exact, no byte of the disk is read, any range is the same
// as of the whole, and the bytes are those of all releases.
func TestLayout(t *testing.T) {
	d := codectest.Example()
	f := layout(t, full(), d)
	if d.Reads() != 0 {
		t.Errorf("the layout read %d times", d.Reads())
	}
	m := full()
	want := 512 + codec.Up(int64(len(metadata(&m))), 512) + 512 + codec.Up(codectest.PackDisks(t, Package, m, d)[0].File.Size(), 512) + 1024
	if want = codec.Up(want, 10240); f.Size() != want {
		t.Errorf("%d bytes, want %d", f.Size(), want)
	}
	codectest.CheckRandom(t, f)
	for what, c := range map[string]struct {
		f    *codec.File
		want string
	}{
		"full": {f, "5fe84b6122ae8f713612c55343b907c5270cba47cd07b5bae4510b600a196d02"},
		"bare": {layout(t, codec.Machine{}, codectest.Empty(mib)), "ec8d871b5cfacd17b76e531cf3d76f055ed1fc87dbef93567dd705c0ab80c400"},
		"arm":  {layout(t, codec.Machine{Arch: "arm64"}, codectest.Empty(mib)), "6f59ed2b05d480e5325b72d6eef37f41bfa212543e544e2ffe5127eaf4cffba7"},
	} {
		if got, err := codectest.Sum(c.f); got != c.want || err != nil {
			t.Errorf("%s: sum %q, %v, want %q: a change is a release note", what, got, err, c.want)
		}
	}
}

// TestRoundTrip: what the metadata carries is read again.
func TestRoundTrip(t *testing.T) {
	for what, m := range map[string]codec.Machine{
		"full":     full(),
		"bios":     {Firmware: "bios", Arch: "x86_64"},
		"arm":      {Firmware: "uefi", Arch: "aarch64", OS: "Debian"},
		"arm bios": {Firmware: "bios", Arch: "aarch64"},
	} {
		f := layout(t, m, codectest.Full(70_000, 1))
		got, parts, err := Package.Open(context.Background(), f)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		again := layout(t, got, codectest.Full(70_000, 1))
		a, _ := codectest.ReadAll(f)
		b, _ := codectest.ReadAll(again)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: what was read is written otherwise", what)
		}
		if got.Extra = nil; !reflect.DeepEqual(got, m) {
			t.Errorf("%s:\n%+v, want\n%+v", what, got, m)
		}
		if len(parts) != 1 || parts[0].Name != "output.QCOW2" || parts[0].Format != "qcow2" {
			t.Errorf("%s: parts %+v", what, parts)
			continue
		}
		d, err := qcow2.Format.Open(context.Background(), parts[0].Open(f))
		if err != nil {
			t.Fatal(err)
		}
		x, _ := codectest.ReadAll(d)
		y, _ := codectest.ReadAll(codectest.Full(70_000, 1))
		if !bytes.Equal(x[:len(y)], y) {
			t.Errorf("%s: another disk", what)
		}
	}
}

// TestMetadata: what is kept of metadata that was read, and what the machine
// sets otherwise.
func TestMetadata(t *testing.T) {
	const caps = `"imageCapabilityData":"{\"capabilities\":{}}","imageCapsFormatVersion":"23cfd738"`
	const kept = `{"x":[1.50,{"y":null}],"version":2,"externalLaunchOptions":{"networkType":"VFIO","firmware":"BIOS"},` + caps +
		`,"operatingSystem":"FreeBSD","operatingSystemVersion":"14","additionalMetadata":{"shapeCompatibilities":[],"z":true}}`
	set := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(kept) }
	shapes := strings.TrimSuffix(strings.TrimPrefix(ampere, `{"all":`), "}")
	for what, c := range map[string]struct {
		m    codec.Machine
		old  string
		want string
	}{
		"nothing":      {codec.Machine{}, "", least},
		"kept":         {codec.Machine{}, kept, kept},
		"agrees":       {codec.Machine{Firmware: "bios", OS: "FreeBSD", OSVersion: "14", Arch: "amd64"}, kept, kept},
		"system":       {codec.Machine{OS: "NetBSD", OSVersion: "10"}, kept, set("FreeBSD", "NetBSD", `"14"`, `"10"`)},
		"firmware":     {codec.Machine{Firmware: "uefi"}, kept, set(`"BIOS"`, `"UEFI_64"`, caps, `"imageCapabilityData":null,"imageCapsFormatVersion":null`)},
		"arm":          {codec.Machine{Arch: "arm64"}, kept, set(`"shapeCompatibilities":[]`, `"shapeCompatibilities":`+shapes)},
		"old version":  {codec.Machine{}, strings.Replace(kept, `"version":2`, `"version":"1.0"`, 1), least},
		"no JSON":      {codec.Machine{}, "{", least},
		"no object":    {codec.Machine{}, "[]", least},
		"parts absent": {codec.Machine{Firmware: "bios", Arch: "aarch64"}, `{"version":2}`, `{"version":2,"externalLaunchOptions":{"firmware":"BIOS"},"additionalMetadata":{"shapeCompatibilities":` + shapes + `}}`},
		"new arm":      {codec.Machine{Arch: "aarch64"}, "", strings.NewReplacer("[]", shapes, "BIOS", "UEFI_64").Replace(least)},
	} {
		if c.old != "" {
			c.m.Extra = map[string]string{extra: c.old}
		}
		got := metadata(&c.m)
		if got != c.want {
			t.Errorf("%s:\n%s, want\n%s", what, got, c.want)
		}
		if !json.Valid([]byte(got)) {
			t.Errorf("%s: %s is no JSON", what, got)
		}
	}
}

// TestNotPossible: one disk, and a sound machine.
func TestNotPossible(t *testing.T) {
	one := codectest.PackDisks(t, Package, codec.Machine{}, codectest.Empty(512))
	for _, disks := range [][]codec.PackDisk{nil, {one[0], one[0]}} {
		if _, err := Package.Layout(full(), disks); !errors.Is(err, codec.ErrNotPossible) || !strings.Contains(err.Error(), fmt.Sprint(len(disks), " disks")) {
			t.Errorf("%d disks: %v", len(disks), err)
		}
	}
	m := full()
	m.OS = "a\n"
	if _, err := Package.Layout(m, one); err == nil {
		t.Error("a control character laid out")
	}
	if _, err := Package.Layout(full(), []codec.PackDisk{{Size: 512, File: codectest.Empty(codec.MaxSize)}}); !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("a disk of the largest size: %v", err)
	}
}

// TestTools: tar and bsdtar unpack the archive, qemu-img reads the disk.
func TestTools(t *testing.T) {
	d := codectest.Example()
	path := filepath.Join(t.TempDir(), "a.oci")
	codectest.WriteFile(t, path, layout(t, full(), d))
	for _, tool := range []string{"tar", "bsdtar"} {
		t.Run(tool, func(t *testing.T) {
			if got := codectest.Exec(t, tool, "-tf", path); got != "image_metadata.json\noutput.QCOW2\n" {
				t.Errorf("lists %q", got)
			}
			out := t.TempDir()
			codectest.Exec(t, tool, "-C", out, "-xf", path)
			m := full()
			if b, err := os.ReadFile(filepath.Join(out, metadataName)); string(b) != metadata(&m) || err != nil {
				t.Errorf("other metadata: %v", err)
			}
			codectest.Compare(t, "qcow2", filepath.Join(out, "output.QCOW2"), codectest.RawFile(t, d))
			codectest.Check(t, "qcow2", filepath.Join(out, "output.QCOW2"))
		})
	}
}

func disk(t testing.TB) []byte {
	b, err := codectest.ReadAll(codectest.PackDisks(t, Package, codec.Machine{}, codectest.Full(512, 1))[0].File)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestOtherWriters: names and orders of other writers, and their metadata.
func TestOtherWriters(t *testing.T) {
	const meta = "{\n  \"version\": 2,\n  \"externalLaunchOptions\": {\"firmware\": \"UEFI_64\"},\n \"operatingSystem\": \"Talos\", \"imageCapabilityData\": {\"capabilities\": {}}," +
		" \"additionalMetadata\": {\"shapeCompatibilities\": [{\"internalShapeName\": \"VM.Standard.A1.Flex\"}]}}\n"
	for _, f := range []tar.Format{tar.FormatGNU, tar.FormatPAX, tar.FormatUSTAR} {
		b := codectest.Archive(t, f, codectest.Member{"oracle-arm64.qcow2", disk(t)}, codectest.Member{metadataName, []byte(meta)})
		m, parts, err := Package.Open(context.Background(), codectest.Bytes(b))
		if err != nil {
			t.Fatal(err)
		}
		if m.Firmware != "uefi" || m.OS != "Talos" || m.Arch != "aarch64" || len(parts) != 1 || parts[0].Name != "oracle-arm64.qcow2" {
			t.Errorf("%v: %+v, %+v", f, m, parts)
		}
	}
}

// TestRefused: what is no such file, or is damaged.
func TestRefused(t *testing.T) {
	d := codectest.Member{"output.QCOW2", disk(t)}
	meta := func(text string) codectest.Member { return codectest.Member{metadataName, []byte(text)} }
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(codectest.Archive(t, tar.FormatGNU, meta(least), d))
	w.Close()
	good := codectest.Archive(t, tar.FormatGNU, meta(least), d)
	for what, c := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"gzip":          {z.Bytes(), codec.ErrUnsupported, "unpack the gzip first"},
		"no tar":        {make([]byte, 5000), codec.ErrFormat, "no tar"},
		"nothing":       {nil, codec.ErrFormat, "no tar"},
		"no metadata":   {codectest.Archive(t, tar.FormatGNU, d), codec.ErrFormat, "without image_metadata.json"},
		"no disk":       {codectest.Archive(t, tar.FormatGNU, meta(least)), codec.ErrUnsupported, "1 members"},
		"two disks":     {codectest.Archive(t, tar.FormatGNU, meta(least), d, codectest.Member{"b", d.Data}), codec.ErrUnsupported, "3 members"},
		"raw disk":      {codectest.Archive(t, tar.FormatGNU, meta(least), codectest.Member{"b", make([]byte, 5000)}), codec.ErrUnsupported, "no qcow2 or vmdk"},
		"other disk":    {codectest.Archive(t, tar.FormatGNU, meta(least), codectest.Member{"b", []byte("vhdxfile")}), codec.ErrUnsupported, "vhdx"},
		"large JSON":    {codectest.Archive(t, tar.FormatGNU, meta(least+strings.Repeat(" ", mib)), d), codec.ErrUnsupported, "longest"},
		"much to keep":  {codectest.Archive(t, tar.FormatGNU, meta(`{"a":"`+strings.Repeat("b", 300<<10)+`"}`), d), codec.ErrUnsupported, "longest"},
		"no JSON":       {codectest.Archive(t, tar.FormatGNU, meta("{"), d), codec.ErrCorrupt, "JSON at byte 1"},
		"no object":     {codectest.Archive(t, tar.FormatGNU, meta("[]"), d), codec.ErrCorrupt, "no JSON object"},
		"more JSON":     {codectest.Archive(t, tar.FormatGNU, meta("{}{}"), d), codec.ErrCorrupt, "behind its end"},
		"twice":         {codectest.Archive(t, tar.FormatGNU, meta(`{"a":1,"a":2}`), d), codec.ErrCorrupt, "twice"},
		"number as key": {codectest.Archive(t, tar.FormatGNU, meta(`{1:2}`), d), codec.ErrCorrupt, "JSON"},
		"no UTF-8":      {codectest.Archive(t, tar.FormatGNU, meta("{\"a\":\"\xff\"}"), d), codec.ErrCorrupt, "UTF-8"},
		"deep":          {codectest.Archive(t, tar.FormatGNU, meta(`{"a":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+"}"), d), codec.ErrUnsupported, "deeper"},
		"control":       {codectest.Archive(t, tar.FormatGNU, meta(`{"operatingSystem":"a\u0000"}`), d), codec.ErrCorrupt, "control character"},
		"truncated":     {good[:len(good)-2000], codec.ErrCorrupt, "past the end"},
	} {
		_, _, err := Package.Open(context.Background(), codectest.Bytes(c.b))
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: %v, want %v and %q", what, err, c.want, c.text)
		}
	}
	for n := range int64(40) {
		_, _, err := Package.Open(context.Background(), codectest.Faulty(codectest.Bytes(good), codectest.ErrBoom, n))
		if err == nil {
			break
		}
		if !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("a store that fails after %d reads: %v", n, err)
		}
	}
}

// TestNames: the key of Extra, which the catalog keeps, and the file's name.
func TestNames(t *testing.T) {
	if Package.Name() != "oci" || extra != "oci.image_metadata" || Package.View().Name() != "qcow2" {
		t.Error("other names")
	}
}

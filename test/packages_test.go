package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// packageStore has image one, of one disk, and image two, of two, the second of
// which was a raw disk of an odd length; raws are the guests in that order.
func packageStore(t *testing.T, d *depot) (raws []string) {
	t.Helper()
	src := importSources(t)
	for _, args := range [][]string{
		{"--name", "one", d.url, src + "/vm.qcow2"},
		{"--name", "two", d.url, src + "/vm.vdi", src + "/vm.raw"},
	} {
		if _, stderr, code := imagefsEnv(t, d.env, append(append([]string{"import", "-q"}, d.flags...), args...)...); code != 0 {
			t.Fatalf("import %q: exit code %d: %s", args, code, stderr)
		}
	}
	return []string{src + "/guest.raw", src + "/vm.raw"}
}

// props are the properties of an image.
func props(t *testing.T, m *Mounted, image string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(m.Path("images", image, "image.json"))
	if err != nil {
		t.Fatal(err)
	}
	var j struct{ Properties map[string]string }
	if err := json.Unmarshal(b, &j); err != nil {
		t.Fatal(err)
	}
	return j.Properties
}

// TestPackages takes whole images out of a mount with the programs that people
// unpack with, and back into an empty store.
func TestPackages(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	inEachStore(t, func(t *testing.T, d *depot) {
		raws := packageStore(t, d)
		m := d.mount(t)
		m.Expect("open failed.*two.ova")
		for _, c := range []struct {
			image, kind string
			members     []string
		}{
			{"one", "ova", []string{"one.ovf", "one-disk0.vmdk"}},
			{"two", "ova", []string{"two.ovf", "two-disk0.vmdk", "two-disk1.vmdk"}},
			{"one", "oci", []string{"image_metadata.json", "output.QCOW2"}},
		} {
			file := c.image + "." + c.kind
			path := m.Path("images", c.image, file)
			if by := m.Path("by-format", c.kind, file); output(t, "cmp", path, by) != "" {
				t.Errorf("%s is not %s", by, path)
			}
			for _, unpack := range []string{"tar", "bsdtar"} {
				tool(t, unpack)
				if got := strings.Fields(output(t, unpack, "-tf", path)); !slices.Equal(got, c.members) {
					t.Errorf("%s -t %s: %q, want %q", unpack, file, got, c.members)
				}
				dir := t.TempDir()
				output(t, unpack, "-C", dir, "-xf", path)
				n := 0
				for _, name := range c.members {
					switch ext := strings.ToLower(filepath.Ext(name)); ext {
					case ".vmdk", ".qcow2":
						sameGuest(t, ext[1:], filepath.Join(dir, name), "raw", raws[n])
						output(t, "qemu-img", "check", "-f", ext[1:], filepath.Join(dir, name))
						n++
					}
				}
				if c.kind == "ova" {
					output(t, "xmllint", "--noout", filepath.Join(dir, c.image+".ovf"))
					output(t, "vmdkinfo", filepath.Join(dir, c.image+"-disk0.vmdk"))
				}
			}
		}
		if _, err := os.Stat(m.Path("images", "two", "two.oci")); !os.IsNotExist(err) {
			t.Errorf("an oci of two disks: %v", err)
		}
		if got := strings.TrimSpace(output(t, "ls", m.Path("by-format", "oci"))); got != "one.oci" {
			t.Errorf("by-format/oci has %q", got)
		}
		show, _, _ := imagefsEnv(t, d.env, append(append([]string{"show"}, d.flags...), d.url, "two")...)
		if !strings.Contains(show, "two.oci") || !strings.Contains(show, "an oci holds one") {
			t.Errorf("show does not say why there is no two.oci:\n%s", show)
		}
		if out, err := sh(t, `cp "$1" "$2"`, m.Path("images", "one", "one.ova"), m.Path("images", "two.ova")); err == nil || !strings.Contains(out, people(syscall.EEXIST)) {
			t.Errorf("a package over an image that is there: %v, %s", err, out)
		}
		// A backup by packages, twice.
		backup := t.TempDir()
		for range 2 {
			output(t, "rsync", "-a", m.Path("by-format", "ova")+"/", backup)
		}
		if got := output(t, "rsync", "-ai", m.Path("by-format", "ova")+"/", backup); got != "" {
			t.Errorf("the second rsync moves %s", got)
		}
		importPackages(t, m, raws)
	})
}

// importPackages copies the packages of a mount into an empty store, every way.
func importPackages(t *testing.T, from *Mounted, raws []string) {
	t.Helper()
	d := newDirDepot(t)
	m := d.mount(t)
	for _, c := range []struct{ script, image, kind, source string }{
		{`cp "$1" "$2/$3.$4"`, "copied", "ova", "two"},
		{`cp "$1" "$2/$3.$4"`, "cloud", "oci", "one"},
		{`mkdir "$2/$3"; cp "$1" "$2/$3/$3.$4"`, "inside", "ova", "two"},
		{`rsync -a "$1" "$2/$3.$4"`, "synced", "ova", "one"},
		{`dd if="$1" of="$2/$3.$4" bs=77777 status=none`, "dd", "oci", "one"},
	} {
		mustSh(t, c.script, from.Path("images", c.source, c.source+"."+c.kind), m.Path("images"), c.image, c.kind)
		checkPackage(t, m, c.image, c.kind, raws[:map[string]int{"one": 1, "two": 2}[c.source]])
	}
	_, stderr, code := imagefs(t, "import", "--name", "told", d.url, from.Path("images", "two", "two.ova"))
	if code != 0 {
		t.Errorf("import: exit code %d: %s", code, stderr)
	}
	m.Stop(t)
	m = d.mount(t)
	checkPackage(t, m, "told", "ova", raws)
	if _, stderr, code = imagefs(t, "import", "--name", "told", d.url, from.Path("images", "one", "one.ova")); code == 0 || !strings.Contains(stderr, "is there") {
		t.Errorf("import over an image: exit code %d: %s", code, stderr)
	}
	if left := m.status(t, "uploads"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// checkPackage holds an image that was a package to the guests, and to what it
// is as a package again.
func checkPackage(t *testing.T, m *Mounted, image, kind string, raws []string) {
	t.Helper()
	for n, raw := range raws {
		for _, v := range views {
			sameGuest(t, v.qemu, m.Path("images", image, fmt.Sprintf("disk%d.%s", n, v.ext)), "raw", raw)
		}
	}
	if _, err := os.Stat(m.Path("images", image, fmt.Sprintf("disk%d.raw", len(raws)))); !os.IsNotExist(err) {
		t.Errorf("%s has more than %d disks: %v", image, len(raws), err)
	}
	p := props(t, m, image)
	if kind == "ova" && (p["cpus"] != "1" || p["memory_mib"] != "1024") || kind == "oci" && p["firmware"] != "bios" {
		t.Errorf("%s: properties %v", image, p)
	}
	if kind == "oci" {
		again := strings.TrimSpace(output(t, "tar", "-xOf", m.Path("images", image, image+".oci"), "image_metadata.json"))
		if again != p["oci.image_metadata"] {
			t.Errorf("%s: the metadata is\n%s\nthe package had\n%s", image, again, p["oci.image_metadata"])
		}
	}
}

// TestPackageRefusals: what is no package, or a bad one, leaves nothing.
func TestPackageRefusals(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	d := newDirDepot(t)
	packageStore(t, d)
	from := d.mount(t)
	to := newDirDepot(t)
	m := to.mount(t)
	m.Expect("import failed|create failed")
	dir := t.TempDir()
	for _, c := range []struct{ name, make, says string }{
		{"cut.ova", `head -c 100000 "$1/one/one.ova" >"$2"`, "past the end|truncated|cut"},
		{"other.ova", `cp "$1/one/one.oci" "$2"`, "content is oci"},
		{"other.oci", `cp "$1/two/two.ova" "$2"`, "content is ova"},
		{"disk.ova", `cp "$1/one/disk0.vmdk" "$2"`, "no known package|not a tar|tar"},
		{"gzip.ova", `gzip -1 <"$1/one/one.ova" >"$2"`, "gzip"},
		{"dots.ova", `mkdir x; cp "$1/one/disk0.vmdk" x/; tar -xOf "$1/one/one.ova" one.ovf >x/one.ovf; tar -C x --transform 's,disk0,../disk0,' -P -cf "$2" one.ovf disk0.vmdk`, `\.\.|".*disk0`},
		{"link.ova", `mkdir x; tar -C x -xf "$1/one/one.ova"; ln -s one-disk0.vmdk x/a; tar -C x -cf "$2" one.ovf one-disk0.vmdk a`, "link"},
		{"raw.ova", `mkdir x; tar -C x -xf "$1/one/one.ova"; head -c 65536 /dev/zero >x/one-disk0.vmdk; tar -C x -cf "$2" one.ovf one-disk0.vmdk`, "one-disk0.vmdk"},
	} {
		bad := filepath.Join(dir, c.name)
		mustSh(t, `cd "$(mktemp -d -p "$3")"; `+c.make, from.Path("images"), bad, dir)
		out, err := sh(t, `cp "$1" "$2"`, bad, m.Path("images", c.name))
		if err == nil {
			t.Errorf("%s: taken", c.name)
			continue
		}
		errs := m.status(t, "errors")
		line := errs[strings.LastIndexByte(strings.TrimSpace(errs), '\n')+1:]
		if _, err := sh(t, `grep -Eq "$1" <<<"$2"`, c.says, line); err != nil || !strings.Contains(line, "images/"+c.name) {
			t.Errorf("%s: cp says %q, .imagefs/errors %q, want %q", c.name, out, line, c.says)
		}
		if err := os.Remove(m.Path("images", c.name)); err != nil {
			t.Error(err)
		}
	}
	if got := output(t, "ls", "-A", m.Path("images")); got != "" {
		t.Errorf("left in the mount: %s", got)
	}
	if keys := to.everything(t); len(keys) > 0 {
		t.Errorf("left in the store: %q", keys)
	}
}

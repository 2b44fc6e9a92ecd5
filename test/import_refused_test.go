package test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// A refusal is a file that is not taken.
type refusal struct {
	name string
	make string // script; $1 holds the sources, $2 is the file to make
	to   string // the file's name in the image's folder, or in images/ where it holds NAME
	want syscall.Errno
	says string // in .imagefs/errors
}

const cutShort = `(past the end of the file|cut by the end)`

// refusals are held against a program's close and against a rename.
var refusals = []refusal{
	{"cut-qcow2", `head -c 700 "$1/vm.qcow2" >"$2"`, "disk0.qcow2", syscall.EINVAL, `l1 table at 0x[0-9a-f]+.*past the end of the file \(700 bytes\)`},
	{"cut-qcow2-late", `head -c -100000 "$1/vm.qcow2" >"$2"`, "disk0.qcow2", syscall.EINVAL, `l2 entry 0x[0-9a-f]+ at 0x[0-9a-f]+`},
	{"cut-vmdk", `head -c 66000 "$1/vm.vmdk" >"$2"`, "disk0.vmdk", syscall.EINVAL, `vmdk: .*0x[0-9a-f]+.*`},
	{"cut-vdi", `head -c 700 "$1/vm.vdi" >"$2"`, "disk0.vdi", syscall.EINVAL, `vdi: .*block 0 at 0x[0-9a-f]+.*` + cutShort},
	{"cut-vdi-late", `head -c -1100000 "$1/vm.vdi" >"$2"`, "disk0.vdi", syscall.EINVAL, `vdi: .*block \d+ at 0x[0-9a-f]+.*` + cutShort},
	{"cut-vhd", `head -c 700 "$1/vm.vhd" >"$2"`, "disk0.vhd", syscall.EINVAL, `vhd: .*dynamic header at 0x200.*` + cutShort},
	{"cut-vhdx", `head -c 1000 "$1/vm.vhdx" >"$2"`, "disk0.vhdx", syscall.EINVAL, `vhdx: .*headers at 0x0.*` + cutShort},
	{"cut-vhdx-late", `head -c -1100000 "$1/vm.vhdx" >"$2"`, "disk0.vhdx", syscall.EINVAL, `vhdx: .*at 0x[0-9a-f]+.*` + cutShort},
	{"zeroed", `cp "$1/vm.qcow2" "$2"; printf 'x%.0s' {1..4096} | dd status=none of="$2" bs=4096 seek=80 conv=notrunc`, "disk0.qcow2", syscall.EINVAL, `disk0.qcow2: .* 0x[0-9a-f]+`},
	{"qcow2-as-vmdk", `cp "$1/vm.qcow2" "$2"`, "disk0.vmdk", syscall.EINVAL, `name says vmdk, but the content is qcow2`},
	{"vmdk-as-raw", `cp "$1/vm.vmdk" "$2"`, "disk0.raw", syscall.EINVAL, `name says raw, but the content is vmdk`},
	{"vdi-as-img", `cp "$1/vm.vdi" "$2"`, "disk0.img", syscall.EINVAL, `name says raw, but the content is vdi`},
	{"raw-as-qcow2", `cp "$1/vm.raw" "$2"`, "disk0.qcow2", syscall.EINVAL, `name says qcow2, but the content has no signature`},
	{"short-way", `cp "$1/vm.vdi" "$2"`, "NAME.vhdx", syscall.EINVAL, `name says vhdx, but the content is vdi`},
	{"backing-qcow2", `qemu-img create -q -f qcow2 -b "$1/guest.raw" -F raw "$2"`, "disk0.qcow2", syscall.EOPNOTSUPP, `backing file ".*guest.raw"`},
	{"backing-vmdk", `qemu-img create -q -f vmdk -b "$1/vm.vmdk" -F vmdk "$2"`, "disk0.vmdk", syscall.EOPNOTSUPP, `vmdk: .*parentCID`},
	// qemu-img times its key derivation, and gives up where the clock of the
	// processor did not move meanwhile.
	{"encrypted", `for i in {1..50}; do
		! qemu-img create -q --object secret,id=s,data=x -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 "$2" 1M || exit 0
	done; exit 1`, "disk0.qcow2", syscall.EOPNOTSUPP, `LUKS encryption`},
	{"data-file", `qemu-img create -q -f qcow2 -o data_file="$2.data" "$2" 1M`, "disk0.qcow2", syscall.EOPNOTSUPP, `data file`},
	{"version", `qemu-img create -q -f qcow2 "$2" 1M; printf '\x00\x00\x00\x09' | dd status=none of="$2" bs=1 seek=4 conv=notrunc`, "disk0.qcow2", syscall.EOPNOTSUPP, `unknown version`},
}

// TestImportRefusals copies in what must not be taken: the program learns it,
// the store stays as it was, and .imagefs/errors says what is wrong and where.
func TestImportRefusals(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	src := importSources(t)
	inEachStore(t, func(t *testing.T, d *depot) {
		m := d.mount(t)
		m.Expect("import failed")
		dir := t.TempDir()
		for _, c := range refusals {
			bad := filepath.Join(dir, c.name)
			mustSh(t, c.make, src, bad)
			folder := m.Path("images", c.name)
			path := filepath.Join(folder, c.to)
			if strings.HasPrefix(c.to, "NAME") {
				path = m.Path("images", strings.Replace(c.to, "NAME", c.name, 1))
			}
			mustSh(t, `mkdir "$1"`, folder)
			out, err := sh(t, `cp "$1" "$2"`, bad, path)
			if err == nil || !strings.Contains(out, "close") || !strings.Contains(out, people(c.want)) {
				t.Errorf("%s: cp says %q, want %v at close", c.name, out, c.want)
			}
			line := regexp.MustCompile(`(?m)^.* import ` + regexp.QuoteMeta(strings.TrimPrefix(path, m.Dir+"/")) + `: .*$`).FindString(m.status(t, "errors"))
			if !regexp.MustCompile(c.says).MatchString(line) {
				t.Errorf("%s: .imagefs/errors says %q, want %q", c.name, line, c.says)
			}
			// The file stays to be looked at, and may be removed.
			output(t, "cmp", bad, path)
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: after its removal the file is %v", c.name, err)
			}

			hidden := filepath.Join(filepath.Dir(path), ".hidden.x1y2z3")
			output(t, "cp", bad, hidden)
			wantErrno(t, syscall.Rename(hidden, path), c.want)
			output(t, "cmp", bad, hidden)
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: after the refused rename there is %s: %v", c.name, path, err)
			}
			if err := os.Remove(hidden); err != nil {
				t.Error(err)
			}
			if err := os.Remove(folder); err != nil {
				t.Error(err)
			}
		}
		if names := output(t, "ls", "-A", m.Path("images")); names != "" || m.status(t, "uploads") != "" {
			t.Errorf("left in the mount: %s %s", names, m.status(t, "uploads"))
		}
		if keys := d.objects(t); len(keys) > 0 {
			t.Errorf("left in the store: %v", keys)
		}
		if es, err := os.ReadDir(d.object("catalog")); err == nil && len(es) > 0 {
			t.Errorf("left in the catalog: %v", es)
		}
	})
}

// people is how programs print a number.
func people(e syscall.Errno) string {
	switch e {
	case syscall.EOPNOTSUPP:
		return "Operation not supported"
	case syscall.EBUSY:
		return "Device or resource busy"
	}
	s := e.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// TestImportNames: what can never become a disk is refused before a byte is
// copied.
func TestImportNames(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	m := newDirDepot(t).mount(t)
	m.Expect("create failed|rename failed|mkdir failed")
	output(t, "mkdir", m.Path("images", "vm"))
	for name, want := range map[string]syscall.Errno{
		"images/vm/foo.raw": syscall.EINVAL, "images/vm/disk0.txt": syscall.EINVAL, "images/vm/disk01.raw": syscall.EINVAL,
		"images/vm/disk256.raw": syscall.EINVAL, "images/vm/image.json": syscall.EINVAL, "images/vm/disk0": syscall.EINVAL,
		"images/foo": syscall.EINVAL, "images/foo.iso": syscall.EINVAL, "foo.raw": syscall.EPERM,
		"by-id/foo.raw": syscall.EPERM, "by-format/raw/foo-0.raw": syscall.EPERM,
	} {
		f, err := os.OpenFile(m.Path(name), os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	mustSh(t, `echo x >"$1"`, m.Path("images", "vm", ".x"))
	wantErrno(t, os.Rename(m.Path("images", "vm", ".x"), m.Path("images", "vm", "foo.raw")), syscall.EINVAL)
	output(t, "rm", m.Path("images", "vm", ".x"))
}

// TestImportRefusedVersion: a bad new version of a disk leaves the disk as it
// is, and lies beside it.
func TestImportRefusedVersion(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	src := importSources(t)
	inEachStore(t, func(t *testing.T, d *depot) {
		m := d.mount(t)
		m.Expect("import failed")
		path, bad := m.Path("images", "vm", "disk0.qcow2"), filepath.Join(t.TempDir(), "bad")
		mustSh(t, `mkdir "$(dirname "$2")"; cp "$1" "$2"; head -c 700 "$1" >"$3"`, filepath.Join(src, "vm.qcow2"), path, bad)
		before := d.objects(t)
		if out, err := sh(t, `cp "$1" "$2"`, bad, path); err == nil || !strings.Contains(out, people(syscall.EINVAL)) {
			t.Errorf("cp says %q", out)
		}
		imported{image: "vm", ext: "qcow2", file: filepath.Join(src, "vm.qcow2")}.check(t, d, m)
		output(t, "cmp", bad, path+".refused")
		if after := d.objects(t); len(after) != 1 || after[0] != before[0] {
			t.Errorf("the store has %v, before %v", after, before)
		}
		output(t, "rm", path+".refused")
		if names := output(t, "ls", m.Path("images", "vm")); strings.Contains(names, "refused") {
			t.Errorf("after the removal there are %s", names)
		}
	})
}

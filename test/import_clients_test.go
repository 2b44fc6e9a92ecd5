package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// A copying is a way in which people copy images in.
type copying struct {
	name   string
	needs  string // programs, separated by spaces
	script string // $1 holds the sources, $2 is images/, $3 an empty folder, $4 the sources by HTTP, $5 the name
	want   []imported
}

// disk0 is what most of them leave: disk 0 of the image that is called as the
// case is, of the source of that extension.
func disk0(ext string) []imported { return []imported{{ext: ext, file: "vm." + ext}} }

// keepsTime says that the time of the file is kept.
func keepsTime(is []imported) []imported {
	for i := range is {
		is[i].timed = true
	}
	return is
}

var copyings = []copying{
	{"cp", "", `mkdir "$2/$5"; cp "$1/vm.vmdk" "$2/$5/disk0.vmdk"`, disk0("vmdk")},
	{"cp-multipart", "", `mkdir "$2/$5"; cp "$1/big.qcow2" "$2/$5/disk0.qcow2"`, []imported{{ext: "qcow2", file: "big.qcow2"}}},
	{"cp-sparse", "", `mkdir "$2/$5"; cp --sparse=always "$1/vm.vhdx" "$2/$5/disk0.vhdx"`, disk0("vhdx")},
	{"cp-sparse-raw", "", `mkdir "$2/$5"; cp --sparse=always "$1/vm.raw" "$2/$5/disk0.raw"`, disk0("raw")},
	{"cp-reflink", "", `mkdir "$2/$5"; cp --reflink=auto "$1/vm.raw" "$2/$5/disk0.raw"`, disk0("raw")},
	{"cp-a", "", `mkdir "$2/$5"; cp -a "$1/vm.vdi" "$2/$5/disk0.vdi"`, keepsTime(disk0("vdi"))},
	{
		"cp-r", "", `mkdir -p "$3/$5-1" "$3/$5-2"; cp -p "$1/vm.qcow2" "$3/$5-1/disk0.qcow2"; cp -p "$1/vm.vmdk" "$3/$5-1/disk1.vmdk"
		cp -p "$1/vm.raw" "$3/$5-2/disk3.raw"; cp -r "$3/." "$2"`,
		[]imported{{"cp-r-1", 0, "qcow2", "vm.qcow2", false, false}, {"cp-r-1", 1, "vmdk", "vm.vmdk", false, false}, {"cp-r-2", 3, "raw", "vm.raw", false, false}},
	},
	{
		"cp-ar", "", `mkdir -p "$3/$5-1" "$3/$5-2"; cp -p "$1/vm.qcow2" "$3/$5-1/disk0.qcow2"; cp -p "$1/vm.vhd" "$3/$5-2/disk0.vhd"
		cp -a "$3/$5-1" "$3/$5-2" "$2"`,
		[]imported{{"cp-ar-1", 0, "qcow2", "vm.qcow2", false, true}, {"cp-ar-2", 0, "vhd", "vm.vhd", false, true}},
	},
	{"cp-short", "", `cp "$1/vm.qcow2" "$3/$5.qcow2"; cp "$3/$5.qcow2" "$2/"; cmp "$2/$5.qcow2" "$1/vm.qcow2"`, disk0("qcow2")},
	{"cp-img", "", `mkdir "$2/$5"; cp "$1/vm.raw" "$2/$5/disk0.img"; cmp "$2/$5/disk0.img" "$1/vm.raw"`, disk0("raw")},
	{"mv", "", `mkdir "$2/$5"; cp -p "$1/vm.vhd" "$3/x"; mv "$3/x" "$2/$5/disk0.vhd"; test ! -e "$3/x"`, keepsTime(disk0("vhd"))},
	{
		"mv-folder", "", `mkdir "$3/$5"; cp -p "$1/vm.raw" "$3/$5/disk0.raw"; mv "$3/$5" "$2"; test ! -e "$3/$5"`,
		keepsTime(disk0("raw")),
	},
	{"install", "", `install -D -m 600 "$1/vm.vdi" "$2/$5/disk0.vdi"`, disk0("vdi")},
	{"dd", "", `mkdir "$2/$5"; dd status=none if="$1/vm.vmdk" of="$2/$5/disk0.vmdk" bs=77777`, disk0("vmdk")},
	{"dd-fsync", "", `mkdir "$2/$5"; dd status=none if="$1/vm.qcow2" of="$2/$5/disk0.qcow2" bs=1M conv=fsync`, disk0("qcow2")},
	{"dd-direct", "", `mkdir "$2/$5"; dd status=none if="$1/vm.vdi" of="$2/$5/disk0.vdi" bs=64k oflag=direct`, disk0("vdi")},
	{"dd-sparse", "", `mkdir "$2/$5"; dd status=none if="$1/vm.raw" of="$2/$5/disk0.raw" bs=513 conv=sparse`, disk0("raw")},
	{
		"dd-notrunc", "", `mkdir "$2/$5"; cp "$1/vm.raw" "$1/$5.raw"; cp "$1/vm.raw" "$2/$5/disk0.raw"
		for to in "$1/$5.raw" "$2/$5/disk0.raw"; do
			printf '%0300000d' 7 | dd status=none of="$to" bs=1000 seek=1500 conv=notrunc iflag=fullblock
		done`, []imported{{ext: "raw", file: "dd-notrunc.raw"}},
	},
	{
		"dd-halves", "", `mkdir "$2/$5"; dd status=none if="$1/vm.raw" of="$2/$5/disk0.raw" bs=1M count=2
		dd status=none if="$1/vm.raw" of="$2/$5/disk0.raw" bs=1M skip=2 seek=2`, disk0("raw"),
	},
	{"cat", "", `mkdir "$2/$5"; cat "$1/vm.vhdx" >"$2/$5/disk0.vhdx"`, disk0("vhdx")},
	{
		"head-tail", "", `mkdir "$2/$5"; { head -c 2000001 "$1/vm.raw"; tail -c +2000002 "$1/vm.raw"; } >"$2/$5/disk0.raw"`,
		disk0("raw"),
	},
	{
		"append", "", `mkdir "$2/$5"; head -c 2000001 "$1/vm.raw" >"$2/$5/disk0.raw"; tail -c +2000002 "$1/vm.raw" >>"$2/$5/disk0.raw"`,
		disk0("raw"),
	},
	{"gzip", "gzip", `mkdir "$2/$5"; gzip -c "$1/vm.vmdk" >"$3/x.gz"; gzip -dc "$3/x.gz" >"$2/$5/disk0.vmdk"`, disk0("vmdk")},
	{"rsync", "rsync", `mkdir "$2/$5"; rsync "$1/vm.vmdk" "$2/$5/disk0.vmdk"`, disk0("vmdk")},
	{"rsync-inplace", "rsync", `mkdir "$2/$5"; rsync --inplace "$1/vm.qcow2" "$2/$5/disk0.qcow2"`, disk0("qcow2")},
	{"rsync-partial", "rsync", `mkdir "$2/$5"; rsync --partial "$1/vm.vhd" "$2/$5/disk0.vhd"`, disk0("vhd")},
	{"rsync-sparse", "rsync", `mkdir "$2/$5"; rsync -tS "$1/vm.raw" "$2/$5/disk0.raw"`, keepsTime(disk0("raw"))},
	{"rsync-aX", "rsync", `mkdir "$2/$5"; rsync -aX "$1/vm.vdi" "$2/$5/disk0.vdi"`, keepsTime(disk0("vdi"))},
	{"rsync-append", "rsync", `mkdir "$2/$5"; rsync --append-verify "$1/vm.vhdx" "$2/$5/disk0.vhdx"`, disk0("vhdx")},
	{
		"rsync-appends", "rsync", `mkdir "$2/$5"; head -c 2000001 "$1/vm.raw" >"$2/$5/disk0.raw"
		rsync --append-verify "$1/vm.raw" "$2/$5/disk0.raw"`, disk0("raw"),
	},
	{
		"rsync-delta", "rsync", `mkdir "$2/$5"; head -c 3000001 "$1/vm.raw" >"$2/$5/disk0.raw"
		rsync --no-whole-file "$1/vm.raw" "$2/$5/disk0.raw"`, disk0("raw"),
	},
	{
		"tar", "tar", `mkdir "$3/$5"; cp -p "$1/vm.vhd" "$3/$5/disk0.vhd"; cp -p "$1/vm.raw" "$3/$5/disk1.raw"
		tar -C "$3" -cf - "$5" | tar -C "$2" -xf -`,
		[]imported{{"tar", 0, "vhd", "vm.vhd", false, true}, {"tar", 1, "raw", "vm.raw", false, true}},
	},
	{
		"tar-sparse", "tar", `mkdir "$3/$5"; cp -p "$1/vm.raw" "$3/$5/disk0.raw"
		tar -C "$3" -cSf - "$5" | tar -C "$2" -xf -`, keepsTime(disk0("raw")),
	},
	{
		"7z", "7zz", `mkdir "$3/$5"; cp -p "$1/vm.vmdk" "$3/$5/disk0.vmdk"; cp -p "$1/vm.raw" "$3/$5/disk1.raw"
		cd "$3"; 7zz a -bd -mx1 x.7z "$5"; 7zz x -bd -o"$2" x.7z`,
		[]imported{{"7z", 0, "vmdk", "vm.vmdk", false, true}, {"7z", 1, "raw", "vm.raw", false, true}},
	},
	{"curl", "curl", `mkdir "$2/$5"; curl -sS -o "$2/$5/disk0.vdi" "$4/vm.vdi"`, disk0("vdi")},
	{"curl-time", "curl", `curl -sSR --create-dirs -o "$2/$5/disk0.raw" "$4/vm.raw"`, keepsTime(disk0("raw"))},
	{"python-copy", "python3", python(`os.mkdir(dst); shutil.copy(src + "/vm.qcow2", dst + "/disk0.qcow2")`), disk0("qcow2")},
	{"python-copy2", "python3", python(`os.mkdir(dst); shutil.copy2(src + "/vm.vhdx", dst + "/disk0.vhdx")`), keepsTime(disk0("vhdx"))},
	{
		"python-copytree", "python3", python(`os.mkdir(tmp + "/x")
shutil.copy2(src + "/vm.vmdk", tmp + "/x/disk0.vmdk"); shutil.copy2(src + "/vm.raw", tmp + "/x/disk1.raw")
shutil.copytree(tmp + "/x", dst)`),
		[]imported{{"python-copytree", 0, "vmdk", "vm.vmdk", false, true}, {"python-copytree", 1, "raw", "vm.raw", false, true}},
	},
	{
		"python-copytree-into", "python3", python(`os.mkdir(tmp + "/x"); os.mkdir(dst)
shutil.copy2(src + "/vm.vmdk", tmp + "/x/disk0.vmdk")
shutil.copytree(tmp + "/x", dst, dirs_exist_ok=True)`), keepsTime(disk0("vmdk")),
	},
}

// python is a script of Python with the folders src, tmp and the image's dst.
func python(script string) string {
	return "python3 - \"$1\" \"$2/$5\" \"$3\" <<'END'\nimport os, shutil, sys\nsrc, dst, tmp = sys.argv[1:]\n" + script + "\nEND\n"
}

// qemuCopyings are qemu-img's ways to write each format. The files it makes
// differ from one version to the next, the guest does not.
func qemuCopyings() (cs []copying) {
	add := func(name, script string, i imported) {
		cs = append(cs, copying{name, "qemu-img", `mkdir "$2/$5"; ` + script, []imported{i}})
	}
	for _, ext := range importExts {
		q := qemuName(ext)
		add("qemu-convert-"+ext, fmt.Sprintf(`qemu-img convert -f qcow2 -O %s "$1/vm.qcow2" "$2/$5/disk0.%s"`, q, ext),
			imported{ext: ext, file: "guest.raw", guest: true})
		add("qemu-dd-"+ext, fmt.Sprintf(`qemu-img dd -f raw -O %s bs=64k if="$1/guest.raw" of="$2/$5/disk0.%s"`, q, ext),
			imported{ext: ext, file: "guest.raw", guest: true})
		add("qemu-create-"+ext, fmt.Sprintf(`truncate -s 4M "$1/empty-%s.raw"; qemu-img create -q -f %s "$2/$5/disk0.%s" 4M`, ext, q, ext),
			imported{ext: ext, file: "empty-" + ext + ".raw", guest: true})
	}
	add("qemu-stream", `qemu-img convert -f raw -O vmdk -o subformat=streamOptimized "$1/guest.raw" "$2/$5/disk0.vmdk"`,
		imported{ext: "vmdk", file: "guest.raw", guest: true})
	add("qemu-zstd", `qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd "$1/guest.raw" "$2/$5/disk0.qcow2"`,
		imported{ext: "qcow2", file: "guest.raw", guest: true})
	add("qemu-direct", `qemu-img convert -t none -T none -f raw -O qcow2 "$1/guest.raw" "$2/$5/disk0.qcow2"`,
		imported{ext: "qcow2", file: "guest.raw", guest: true})
	return cs
}

// TestImportClients copies images in with the programs that people copy with,
// all at once, and looks at them through the same mount and another.
func TestImportClients(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	src := importSources(t)
	storeAs(t, "qcow2", bigGuest(t), filepath.Join(src, "big.qcow2"))
	inEachStore(t, func(t *testing.T, d *depot) {
		src := copyOf(t, src) // some scripts write there
		web := httptest.NewServer(http.FileServer(http.Dir(src)))
		t.Cleanup(web.Close)
		m := d.mount(t)
		cases := append(qemuCopyings(), copyings...)
		in := func(c copying) (is []imported) {
			for _, i := range c.want {
				if i.image == "" {
					i.image = c.name
				}
				i.file = filepath.Join(src, i.file)
				is = append(is, i)
			}
			return is
		}
		t.Run("copy", func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					for _, name := range strings.Fields(c.needs) {
						tool(t, name)
					}
					mustSh(t, c.script, src, m.Path("images"), t.TempDir(), web.URL, c.name)
					for _, i := range in(c) {
						if !i.guest {
							i.check(t, d, m)
						}
					}
				})
			}
		})
		m.committed(t) // qemu-img's files, after a quiet period
		t.Run("quiet", func(t *testing.T) {
			for _, c := range cases {
				for _, i := range in(c) {
					if i.guest {
						t.Run(c.name, func(t *testing.T) {
							t.Parallel()
							i.check(t, d, m)
						})
					}
				}
			}
		})
		if s := m.status(t, "errors"); s != "" {
			t.Errorf("problems are left:\n%s", s)
		}
		m.Stop(t)
		if t.Failed() {
			return
		}
		m = d.mount(t, "--read-only")
		for _, c := range cases {
			for _, i := range in(c) {
				i.checkBytes(t, m)
			}
		}
	})
}

// bigGuest is one that takes several parts of an upload.
func bigGuest(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "big.raw")
	sparse(t, path, 48*miB, piece{miB, 42 * miB})
	return path
}

// copyOf is a folder with the same files and times.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	output(t, "cp", "-a", dir+"/.", to)
	return to
}

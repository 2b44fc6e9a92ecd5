package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A depot is a store that images are copied into, with a way to look at its
// objects that does not lead through the program.
type depot struct {
	url   string
	env   []string
	flags []string
	dir   string // in which each object is a file

	put func(t testing.TB, key, file string) // stores a file past the program
}

// inEachStore runs a test on a directory and on a real S3 server.
func inEachStore(t *testing.T, test func(t *testing.T, d *depot)) {
	t.Run("dir", func(t *testing.T) {
		t.Parallel()
		test(t, newDirDepot(t))
	})
	t.Run("s3", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		s := StartS3(t, "-dir", dir)
		test(t, &depot{s.URL(), s.Env, s.Flags(), filepath.Join(dir, s.Bucket), s.Put})
	})
}

func newDirDepot(t testing.TB) *depot {
	dir := t.TempDir()
	return &depot{url: dir, dir: dir, put: func(t testing.TB, key, file string) {
		t.Helper()
		mustSh(t, `cp "$1" "$2"`, file, filepath.Join(dir, key))
	}}
}

// mount mounts the depot with a spool of its own.
func (d *depot) mount(t testing.TB, flags ...string) *Mounted {
	t.Helper()
	return MountEnv(t, d.env, d.url, append(append([]string{"--formats", "all"}, d.flags...), flags...)...)
}

// object is the local file of an object.
func (d *depot) object(key string) string { return filepath.Join(d.dir, filepath.FromSlash(key)) }

// objects are the keys of all disks in the store.
func (d *depot) objects(t testing.TB) (keys []string) {
	t.Helper()
	return slices.DeleteFunc(d.everything(t), func(key string) bool { return strings.HasSuffix(key, ".index") })
}

// everything are the keys of all disks in the store, and of their indexes.
func (d *depot) everything(t testing.TB) (keys []string) {
	t.Helper()
	es, err := os.ReadDir(d.object("disks"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range es {
		if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			keys = append(keys, "disks/"+e.Name())
		}
	}
	return keys
}

// imageJSON is what these tests read of an entry.
type imageJSON struct {
	Name  string
	Disks []struct {
		Key      string
		Number   *int
		Format   string
		Size     int64
		SHA256   string
		Index    struct{ Key string }
		Original *struct {
			Format string
			Size   int64
			SHA256 string
		}
	}
}

// disk is a disk of an image as image.json tells of it.
type disk struct {
	key, format, sha256 string
	index               string // key of its index, "" without one
	size                int64
	raw                 string // SHA-256 of a raw disk's own bytes, "" for others
}

// diskOf reads what image.json says of a disk; the error wraps
// [os.ErrNotExist] where there is none.
func diskOf(m *Mounted, image string, n int) (disk, error) {
	b, err := os.ReadFile(m.Path("images", image, "image.json"))
	if err != nil {
		return disk{}, err
	}
	var j imageJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return disk{}, fmt.Errorf("image.json of %s: %w", image, err)
	}
	for i, d := range j.Disks {
		if d.Number != nil {
			i = *d.Number
		}
		if i != n {
			continue
		}
		out := disk{key: d.Key, format: d.Format, sha256: d.SHA256, index: d.Index.Key, size: d.Size}
		if d.Original != nil {
			out.raw = d.Original.SHA256
		}
		return out, nil
	}
	return disk{}, fmt.Errorf("image.json of %s has no disk %d: %w", image, n, os.ErrNotExist)
}

// An imported disk is a file that was copied in.
type imported struct {
	image  string
	number int
	ext    string
	file   string // what was copied in
	guest  bool   // a program wrote it there: its guest is that of file, which is raw
	timed  bool   // it has the time of file
}

func (i imported) path(m *Mounted) string {
	return m.Path("images", i.image, fmt.Sprintf("disk%d.%s", i.number, i.ext))
}

// qemuName is what qemu-img calls the format of an extension.
func qemuName(ext string) string {
	switch ext {
	case "vhd":
		return "vpc"
	case "img":
		return "raw"
	}
	return ext
}

// check holds a committed import against what was copied in: the bytes, the
// guest, the object in the store, and what image.json says of it.
func (i imported) check(t testing.TB, d *depot, m *Mounted) {
	t.Helper()
	i.checkBytes(t, m)
	path := i.path(m)
	fileExt := strings.TrimPrefix(filepath.Ext(i.file), ".")
	if !i.guest {
		sameGuest(t, qemuName(i.ext), path, qemuName(fileExt), i.file)
	}
	got, err := diskOf(m, i.image, i.number)
	if err != nil {
		t.Error(err)
		return
	}
	object := d.object(got.key)
	if sum := sum256(t, object); sum != got.sha256 {
		t.Errorf("image.json says sha256 %s of %s, it is %s", got.sha256, got.key, sum)
	}
	if st := stat(t, object); st.Size != got.size {
		t.Errorf("image.json says %d bytes of %s, it has %d", got.size, got.key, st.Size)
	}
	if raw := i.ext == "raw" || i.ext == "img"; !raw {
		if _, err := try(t, "cmp", path, object); err != nil {
			t.Errorf("the object is not what was copied in: %v", err)
		}
	} else if sum := sum256(t, path); sum != got.raw || got.format != "qcow2" {
		t.Errorf("image.json says sha256 %q of the raw disk in a %s object, it is %s", got.raw, got.format, sum)
	}
	sameGuest(t, qemuName(got.format), object, qemuName(fileExt), i.file)
	if i.timed {
		if a, b := stat(t, path).Mtim, stat(t, i.file).Mtim; a.Sec != b.Sec {
			t.Errorf("%s is of %d, what was copied of %d", path, a.Sec, b.Sec)
		}
	}
}

// checkBytes compares the import with what was copied in.
func (i imported) checkBytes(t testing.TB, m *Mounted) {
	t.Helper()
	if i.guest {
		sameGuest(t, qemuName(i.ext), i.path(m), "raw", i.file)
	} else if _, err := try(t, "cmp", i.path(m), i.file); err != nil {
		t.Error(err)
	}
}

func sameGuest(t testing.TB, aFormat, a, bFormat, b string) {
	t.Helper()
	if out, err := try(t, "qemu-img", "compare", "-f", aFormat, "-F", bFormat, a, b); err != nil {
		t.Error(err)
	} else if !strings.Contains(out, "identical") {
		t.Errorf("qemu-img compare %s %s: %s", a, b, out)
	}
}

func sum256(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// status reads a file of .imagefs.
func (m *Mounted) status(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(m.Path(".imagefs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// committed waits until nothing is on its way any more.
func (m *Mounted) committed(t testing.TB) {
	t.Helper()
	waitFor(t, "the uploads to end", func() bool { return m.status(t, "uploads") == "" })
}

// sources of imports: one guest in each format.
var importExts = []string{"qcow2", "vmdk", "vdi", "vhd", "vhdx", "raw"}

// importSources makes a folder with vm.EXT for each format, of which vm.raw is
// of an odd length; guest.raw is the guest of the others.
func importSources(t testing.TB) string {
	t.Helper()
	tool(t, "qemu-img")
	dir := t.TempDir()
	raw := filepath.Join(dir, "guest.raw")
	sparse(t, raw, 4*miB+512, piece{0, 512}, piece{64*kiB - 512, 1024}, piece{2*miB - 512, 300 * kiB}, piece{4*miB - 512, 1024})
	for ext, kind := range map[string]string{"qcow2": "qcow2_zlib", "vmdk": "vmdk_stream", "vdi": "vdi", "vhd": "vhd_exact", "vhdx": "vhdx_block1m"} {
		storeAs(t, kind, raw, filepath.Join(dir, "vm."+ext))
	}
	sparse(t, filepath.Join(dir, "vm.raw"), 5*miB+123, piece{miB + 100, 70_000}, piece{5*miB - 1, 124})
	// Times that no clock shows by chance.
	for i, ext := range append(importExts, "guest.raw") {
		if ext != "guest.raw" {
			ext = "vm." + ext
		}
		at := syscall.Timeval{Sec: 1_500_000_000 + int64(i)}
		if err := syscall.Utimes(filepath.Join(dir, ext), []syscall.Timeval{at, at}); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sh runs a script of bash with arguments and returns all it printed.
func sh(t testing.TB, script string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, "bash"), append([]string{"-euo", "pipefail", "-c", script, "script"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// mustSh is sh of what has to succeed.
func mustSh(t testing.TB, script string, args ...string) string {
	t.Helper()
	out, err := sh(t, script, args...)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, strings.TrimSpace(script), out)
	}
	return out
}

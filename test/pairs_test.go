package test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPairs reads every view of every source through a real mount with
// qemu-img: the guest is identical, and the format is sound.
func TestPairs(t *testing.T) {
	tool(t, "qemu-img")
	store, raws := t.TempDir(), t.TempDir()
	type image struct {
		guest string
		source
	}
	var images []image
	for _, g := range guests {
		g.make(t, filepath.Join(raws, g.name))
		for _, s := range sources {
			im := image{g.name, s}
			if err := s.store(t, filepath.Join(raws, g.name), filepath.Join(store, im.name(g.name))); err != nil {
				t.Fatal(err)
			}
			images = append(images, im)
		}
	}
	m := Mount(t, store, "--formats", "all")
	t.Run("all", func(t *testing.T) {
		for _, im := range images {
			name := strings.TrimSuffix(im.name(im.guest), "."+im.ext)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				stored := filepath.Join(store, im.name(im.guest))
				checkViews(t, m.Path("images", name), stored, im.source, filepath.Join(raws, im.guest))
			})
		}
	})
}

// name is the file name of a guest stored so.
func (s source) name(guest string) string { return guest + "_" + s.kind + "." + s.ext }

// checkViews compares the files in dir, an image's folder, with the guest.
func checkViews(t *testing.T, dir, stored string, s source, raw string) {
	t.Helper()
	// A format may round the size up, and then that is the disk's size.
	size := virtualSize(t, s.format, stored)
	for _, v := range views {
		path := filepath.Join(dir, "disk0."+v.ext)
		st, err := os.Stat(path)
		if err != nil {
			t.Error(err)
			continue
		}
		if out, err := try(t, "qemu-img", "compare", "-f", v.qemu, "-F", "raw", path, raw); err != nil {
			t.Error(err)
		} else if !strings.Contains(out, "identical") {
			t.Errorf("qemu-img compare %s: %s", path, out)
		}
		if v.checks {
			if _, err := try(t, "qemu-img", "check", "-f", v.qemu, path); err != nil {
				t.Error(err)
			}
		}
		switch {
		case v.ext == s.ext:
			if _, err := try(t, "cmp", path, stored); err != nil {
				t.Errorf("the view in the stored format is not the stored file: %v", err)
			}
		case v.ext == "raw" && st.Size() != size:
			t.Errorf("%s has %d bytes, the stored disk %d", path, st.Size(), size)
		}
		if got := virtualSize(t, v.qemu, path); got != size {
			t.Errorf("%s is a disk of %d bytes, the stored one of %d", path, got, size)
		}
	}
}

func virtualSize(t testing.TB, format, path string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(output(t, "qemu-img", "info", "-f", format, "--output=json", path)), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// TestPairsLarge does the same for a disk of 2 TiB with a handful of blocks,
// where every table is at its largest.
func TestPairsLarge(t *testing.T) {
	tool(t, "qemu-img")
	store, raws := t.TempDir(), t.TempDir()
	raw := filepath.Join(raws, "raw")
	pieces := []piece{{0, 4096}, {300*giB + 512, 64 * kiB}, {tiB, 512}, {2*tiB - 512, 512}}
	sparse(t, raw, 2*tiB, pieces...)
	// A stored raw file has no map, so it would be read whole; and qemu-img
	// asks VDI and VMDK block by block, which takes minutes.
	stored := []source{
		{"qcow2", "qcow2", "qcow2", "", ""},
		{"qcow2_extended", "qcow2", "qcow2", "extended_l2=on,cluster_size=2M", ""},
		{"vhdx", "vhdx", "vhdx", "", ""},
	}
	for _, s := range stored {
		if err := s.store(t, raw, filepath.Join(store, s.name("large"))); err != nil {
			t.Fatal(err)
		}
	}
	m := Mount(t, store, "--formats", "all")
	t.Run("all", func(t *testing.T) {
		for _, s := range stored {
			name := strings.TrimSuffix(s.name("large"), "."+s.ext)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				for _, v := range views {
					path := m.Path("images", name, "disk0."+v.ext)
					if v.ext == "vhd" { // at most 2040 GiB
						if _, err := os.Stat(path); !os.IsNotExist(err) {
							t.Errorf("stat %s: %v, want that it does not exist: the disk is over the format's limit", path, err)
						}
						continue
					}
					if v.qemu == "raw" || v.qemu == "qcow2" {
						if _, err := try(t, "qemu-img", "compare", "-f", v.qemu, "-F", "raw", path, raw); err != nil {
							t.Error(err)
						}
					}
					if got := virtualSize(t, v.qemu, path); got != 2*tiB {
						t.Errorf("%s is a disk of %d bytes", path, got)
					}
					for _, p := range pieces {
						if got, want := readGuest(t, v.qemu, path, p), readGuest(t, "raw", raw, p); got != want {
							t.Errorf("%s: the %d guest bytes at %d differ", path, p.n, p.off)
						}
					}
				}
				out, stderr, code := imagefs(t, "show", store, name)
				if code != 0 || !strings.Contains(out, "vhd") || !strings.Contains(out, "2040 GiB") && !strings.Contains(strings.ToLower(out), "large") {
					t.Errorf("show does not say why there is no vhd (exit %d):\n%s%s", code, out, stderr)
				}
			})
		}
	})
}

// readGuest returns a dump of guest bytes and of one sector on either side.
func readGuest(t testing.TB, format, path string, p piece) string {
	t.Helper()
	off := max(p.off-512, 0)
	n := min(p.off+p.n+512, 2*tiB) - off
	out := output(t, "qemu-io", "-f", format, "-r", "-c", "read -v "+strconv.FormatInt(off, 10)+" "+strconv.FormatInt(n, 10), path)
	lines := strings.Split(out, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { // times and rates
		return strings.Contains(l, "ops;")
	}), "\n")
}

// TestOutsideReaders opens views with programs that share no code with qemu.
func TestOutsideReaders(t *testing.T) {
	tool(t, "qemu-img")
	store, raws := t.TempDir(), t.TempDir()
	var names []string
	for _, g := range guests {
		g.make(t, filepath.Join(raws, g.name))
		for _, s := range sources {
			if s.kind != "qcow2_zstd" && s.kind != "vhdx" && s.kind != "raw" {
				continue
			}
			if err := s.store(t, filepath.Join(raws, g.name), filepath.Join(store, s.name(g.name))); err != nil {
				t.Fatal(err)
			}
			names = append(names, strings.TrimSuffix(s.name(g.name), "."+s.ext))
		}
	}
	m := Mount(t, store, "--formats", "all")

	// Stored files are their writer's matter: these are about views.
	isView := func(name, ext string) bool {
		stored := strings.Split(name, "_")[1]
		return stored != strings.TrimPrefix(ext, "sparse.")
	}
	guestOf := func(name string) string { return filepath.Join(raws, strings.Split(name, "_")[0]) }

	t.Run("7zz", func(t *testing.T) {
		tool(t, "7zz")
		for _, name := range names {
			for ext, typ := range map[string]string{"qcow2": "qcow", "vmdk": "vmdk", "sparse.vmdk": "vmdk", "vdi": "vdi", "vhd": "vhd", "vhdx": "vhdx"} {
				if ext == "vhdx" && strings.HasPrefix(name, "odd") {
					continue // 7-Zip refuses an odd number of sectors
				}
				if !isView(name, ext) {
					continue
				}
				t.Run(name+"."+ext, func(t *testing.T) {
					t.Parallel()
					samePrefix(t, guestOf(name), "7zz", "e", "-so", "-t"+typ, m.Path("images", name, "disk0."+ext))
				})
			}
		}
	})

	for _, l := range []struct{ info, mount, file string }{
		{"qcowinfo", "qcowmount", "qcow1"},
		{"vmdkinfo", "vmdkmount", "vmdk1"},
		{"vhdiinfo", "vhdimount", "vhdi1"},
	} {
		t.Run(l.mount, func(t *testing.T) {
			exts := map[string][]string{"qcowinfo": {"qcow2"}, "vmdkinfo": {"vmdk", "sparse.vmdk"}, "vhdiinfo": {"vhd", "vhdx"}}[l.info]
			for _, name := range names {
				for _, ext := range exts {
					if !isView(name, ext) {
						continue
					}
					t.Run(name+"."+ext, func(t *testing.T) {
						path := m.Path("images", name, "disk0."+ext)
						if _, err := try(t, l.info, path); err != nil {
							t.Error(err)
						}
						dir := t.TempDir()
						// With -v it stays in the foreground.
						cmd := exec.Command(tool(t, l.mount), "-v", "-X", "ro", path, dir)
						log := &logBuffer{}
						cmd.Stdout, cmd.Stderr = log, log
						if err := start(cmd, syscall.SIGTERM); err != nil {
							t.Fatal(err)
						}
						exited := make(chan error, 1)
						go func() { exited <- cmd.Wait() }()
						t.Cleanup(func() {
							unmountLazily(dir)
							select {
							case <-exited:
							case <-time.After(patience):
								_ = cmd.Process.Kill()
								t.Errorf("%s does not end", l.mount)
							}
						})
						waitFor(t, "the mount of "+l.mount, func() bool {
							select {
							case err := <-exited:
								exited <- err
								t.Fatalf("%s %s: %v\n%s", l.mount, path, err, log)
							default:
							}
							_, err := os.Stat(filepath.Join(dir, l.file))
							return err == nil
						})
						samePrefix(t, guestOf(name), "cat", filepath.Join(dir, l.file))
					})
				}
			}
		})
	}
}

// samePrefix compares what a program prints with a file: equal, then zeros
// where the format had to round up.
func samePrefix(t testing.TB, file, name string, args ...string) {
	t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	var stderr logBuffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	n, differs := compareStreams(out, want)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, &stderr)
	}
	if differs >= 0 {
		t.Errorf("%s: differs from the guest at %d", strings.Join(cmd.Args, " "), differs)
	}
	if n < st.Size() {
		t.Errorf("%s: %d bytes of %d", strings.Join(cmd.Args, " "), n, st.Size())
	}
}

// compareStreams reads got to its end; what it has beyond want must be zeros.
// It returns the length of got and the first difference, or -1.
func compareStreams(got, want io.Reader) (n, differs int64) {
	differs = -1
	a, b := make([]byte, 256*kiB), make([]byte, 256*kiB)
	for {
		na, err := io.ReadFull(got, a)
		nb, _ := io.ReadFull(want, b[:na])
		clear(b[nb:na])
		if differs < 0 && !bytes.Equal(a[:na], b[:na]) {
			i := 0
			for a[i] == b[i] {
				i++
			}
			differs = n + int64(i)
		}
		n += int64(na)
		if err != nil {
			return n, differs
		}
	}
}

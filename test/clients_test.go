package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// smallStore has one image, "disk", of 10 MiB and a sector with holes in it.
func smallStore(t testing.TB) (store, raw string) {
	t.Helper()
	tool(t, "qemu-img")
	store, raw = t.TempDir(), filepath.Join(t.TempDir(), "raw")
	guests[slices.IndexFunc(guests, func(g guest) bool { return g.name == "odd" })].make(t, raw)
	storeAs(t, "qcow2_zlib", raw, filepath.Join(store, "disk.qcow2"))
	return store, raw
}

func storeAs(t testing.TB, kind, raw, path string) {
	t.Helper()
	s := sources[slices.IndexFunc(sources, func(s source) bool { return s.kind == kind })]
	if err := s.store(t, raw, path); err != nil {
		t.Fatal(err)
	}
}

// TestCopies restores views with the programs that people copy with.
func TestCopies(t *testing.T) {
	store, raw := smallStore(t)
	m := Mount(t, store, "--formats", "all")
	for _, v := range views {
		src := m.Path("images", "disk", "disk0."+v.ext)
		for _, c := range []struct {
			name   string
			script string // $1 is the view, $2 an empty folder that must then hold "copy"
		}{
			{"cp", `cp "$1" "$2/copy"`},
			{"cp sparse", `cp --sparse=always "$1" "$2/copy"`},
			{"cp preserving", `cp -a "$1" "$2/copy"`},
			{"cat", `cat "$1" >"$2/copy"`},
			{"dd", `dd if="$1" of="$2/copy" bs=100000 status=none`},
			{"dd direct", `dd if="$1" of="$2/copy" bs=1M iflag=direct status=none`},
			{"tar", `tar -C "$(dirname "$1")" -cf - "$(basename "$1")" | tar -C "$2" -xf - --transform 's/.*/copy/'`},
			{"tar sparse", `tar -C "$(dirname "$1")" -cSf - "$(basename "$1")" | tar -C "$2" -xf - --transform 's/.*/copy/'`},
			{"rsync", `rsync -a "$1" "$2/copy"`},
			{"rsync sparse", `rsync -aS "$1" "$2/copy"`},
		} {
			t.Run(v.ext+" "+c.name, func(t *testing.T) {
				t.Parallel()
				if strings.HasPrefix(c.name, "rsync") {
					tool(t, "rsync")
				}
				dir := t.TempDir()
				output(t, "bash", "-euo", "pipefail", "-c", c.script, "copy", src, dir)
				dst := filepath.Join(dir, "copy")
				output(t, "cmp", src, dst)
				output(t, "qemu-img", "compare", "-f", v.qemu, "-F", "raw", dst, raw)
			})
		}
	}
}

// TestSecondRsyncMovesNothing is the promise that a backup of an unchanged
// catalog costs nothing, by time and size and by checksum.
func TestSecondRsyncMovesNothing(t *testing.T) {
	tool(t, "rsync")
	store, raw := smallStore(t)
	storeAs(t, "vhdx", raw, filepath.Join(store, "other.vhdx"))
	backup := t.TempDir()
	sync := func(m *Mounted, flags ...string) (files, bytes string) {
		args := append([]string{"-a", "--stats", "--no-human-readable"}, flags...)
		out := output(t, "rsync", append(args, m.Path("by-format")+"/", backup)...)
		field := func(name string) string {
			f := regexp.MustCompile(name + `: (\d+)`).FindStringSubmatch(out)
			if f == nil {
				t.Fatalf("rsync prints no %q:\n%s", name, out)
			}
			return f[1]
		}
		return field("Number of regular files transferred"), field("Total transferred file size")
	}
	m := Mount(t, store)
	if files, _ := sync(m); files == "0" {
		t.Fatal("the first rsync transferred nothing")
	}
	if files, n := sync(m); files != "0" || n != "0" {
		t.Errorf("the second rsync transferred %s files, %s bytes", files, n)
	}
	m.Stop(t)
	m = Mount(t, store)
	if files, n := sync(m); files != "0" || n != "0" {
		t.Errorf("rsync of another mount transferred %s files, %s bytes", files, n)
	}
	if files, n := sync(m, "--checksum"); files != "0" || n != "0" {
		t.Errorf("rsync by checksum transferred %s files, %s bytes", files, n)
	}
}

// TestOddReads reads through mmap and at random offsets.
func TestOddReads(t *testing.T) {
	store, _ := smallStore(t)
	m := Mount(t, store, "--formats", "all")
	for _, v := range views {
		t.Run(v.ext, func(t *testing.T) {
			t.Parallel()
			path := m.Path("images", "disk", "disk0."+v.ext)
			// The mapping lives in another process than this one's
			// readers would wish: cat is the reference.
			want := []byte(output(t, "cat", path))
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			mem, err := syscall.Mmap(int(f.Fd()), 0, len(want), syscall.PROT_READ, syscall.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Munmap(mem)
			if !bytes.Equal(mem, want) {
				t.Error("the mapped file differs from what cat reads")
			}

			r := rand.New(rand.NewPCG(1, 2))
			buf := make([]byte, 300*kiB)
			for range 200 {
				off := r.Int64N(int64(len(want)) + 4096)
				p := buf[:1+r.IntN(1<<r.IntN(18))]
				n, err := f.ReadAt(p, off)
				wantN := min(len(p), max(len(want)-int(off), 0))
				if n != wantN || err != nil && !errors.Is(err, io.EOF) || err == nil && n < len(p) {
					t.Fatalf("read of %d bytes at %d of %d: %d, %v", len(p), off, len(want), n, err)
				}
				if n > 0 && !bytes.Equal(p[:n], want[off:off+int64(n)]) {
					t.Fatalf("read of %d bytes at %d differs", len(p), off)
				}
			}
		})
	}
}

const (
	seekData = 3
	seekHole = 4
)

// extents walks a file with SEEK_DATA and SEEK_HOLE.
func extents(t testing.TB, path string) (data []piece) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off := int64(0); ; {
		off, err = syscall.Seek(int(f.Fd()), off, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return data
		} else if err != nil {
			t.Fatalf("SEEK_DATA: %v", err)
		}
		end, err := syscall.Seek(int(f.Fd()), off, seekHole)
		if err != nil || end <= off {
			t.Fatalf("SEEK_HOLE at %d: %d, %v", off, end, err)
		}
		data = append(data, piece{off, end - off})
		off = end
	}
}

// TestHoles walks each view with hole seeks: holes are zeros, they agree with
// st_blocks, and data is not hidden.
func TestHoles(t *testing.T) {
	store, raw := smallStore(t)
	m := Mount(t, store, "--formats", "all")
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		t.Run(v.ext, func(t *testing.T) {
			t.Parallel()
			path := m.Path("images", "disk", "disk0."+v.ext)
			all := []byte(output(t, "cat", path))
			var sum, end int64
			for _, p := range append(extents(t, path), piece{int64(len(all)), 0}) {
				if i := slices.IndexFunc(all[end:p.off], func(b byte) bool { return b != 0 }); i >= 0 {
					t.Errorf("byte %d is in a hole and not zero", end+int64(i))
				}
				sum, end = sum+p.n, p.off+p.n
			}
			st := stat(t, path)
			if got, want := st.Blocks*512, (sum+511)/512*512; got != want {
				t.Errorf("st_blocks say %d bytes, the hole seeks %d", got, want)
			}
			if v.ext == "raw" {
				// The guest has 7 pieces of at most 5 blocks of 64 KiB.
				if sum == 0 || sum > 20*64*kiB || bytes.Equal(all, make([]byte, len(all))) || !bytes.Equal(all, want) {
					t.Errorf("%d bytes of data", sum)
				}
			}
		})
	}
}

func stat(t testing.TB, path string) syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

// TestAttributes are true before the first read and the same on every mount:
// cp takes a file whose inode number changes for another file.
func TestAttributes(t *testing.T) {
	store, raw := smallStore(t)
	mtime := stat(t, filepath.Join(store, "disk.qcow2")).Mtim
	seen := map[string]syscall.Stat_t{}
	inodes := map[uint64]string{}
	for round := range 2 {
		m := Mount(t, store, "--formats", "all", "--read-only")
		for _, v := range views {
			for _, name := range []string{filepath.Join("images", "disk", "disk0."+v.ext), filepath.Join("by-format", v.ext, "disk-0."+v.ext)} {
				st := stat(t, m.Path(name))
				if old, ok := seen[name]; ok && (old.Ino != st.Ino || old.Size != st.Size || old.Blocks != st.Blocks || old.Mtim != st.Mtim || old.Mode != st.Mode) {
					t.Errorf("%s changed from one mount to the next:\n%+v\n%+v", name, old, st)
				}
				seen[name] = st
				if st.Mtim.Sec != mtime.Sec {
					t.Errorf("%s is of %d, the stored object of %d", name, st.Mtim.Sec, mtime.Sec)
				}
				if st.Mode&0o222 != 0 || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
					t.Errorf("%s has mode %o", name, st.Mode)
				}
				if n := int64(len(output(t, "cat", m.Path(name)))); n != st.Size {
					t.Errorf("%s: stat says %d bytes, cat reads %d", name, st.Size, n)
				}
				if other, ok := inodes[st.Ino]; round == 0 && ok && !strings.HasSuffix(other, "."+v.ext) {
					t.Errorf("%s and %s have one inode number", name, other)
				}
				inodes[st.Ino] = name
			}
		}
		if st := stat(t, m.Path("images", "disk", "disk0.raw")); st.Size != stat(t, raw).Size {
			t.Errorf("the raw view has %d bytes", st.Size)
		}
		m.Stop(t)
	}
}

func getxattr(path, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := syscall.Getxattr(path, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func TestXattrs(t *testing.T) {
	store, raw := smallStore(t)
	m := Mount(t, store)
	path := m.Path("images", "disk", "disk0.vmdk")
	for name, want := range map[string]string{
		"format":       "^vmdk$",
		"virtual_size": fmt.Sprintf("^%d$", stat(t, raw).Size),
		"image_id":     "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
		"source":       `^disk\.qcow2$`,
		"etag":         ".",
	} {
		got, err := getxattr(path, "user.imagefs."+name)
		if err != nil || !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("user.imagefs.%s is %q, %v; want %s", name, got, err, want)
		}
	}
	id, _ := getxattr(path, "user.imagefs.image_id")
	if to, err := os.Readlink(m.Path("by-id", id)); err != nil || to != "../images/disk" {
		t.Errorf("by-id/%s points to %q, %v", id, to, err)
	}
	buf := make([]byte, 4096)
	n, err := syscall.Listxattr(path, buf)
	if err != nil || !strings.Contains(string(buf[:max(n, 0)]), "user.imagefs.format\x00") {
		t.Errorf("the list of attributes is %q, %v", buf[:max(n, 0)], err)
	}
	for _, p := range []string{path, m.Dir, m.Path("images"), m.Path("images", "disk", "image.json")} {
		for _, name := range []string{"security.selinux", "security.capability", "system.posix_acl_access", "user.other"} {
			if v, err := getxattr(p, name); !errors.Is(err, syscall.ENODATA) && !errors.Is(err, syscall.EOPNOTSUPP) {
				t.Errorf("attribute %s of %s is %q, %v; want ENODATA", name, p, v, err)
			}
		}
	}
}

// TestReadOnly tries, on a mount that is only read, all that would change something. The kernel and programs
// know EROFS; VirtualBox falls back to read-only on it.
func TestReadOnly(t *testing.T) {
	store, _ := smallStore(t)
	m := Mount(t, store, "--read-only")
	path := m.Path("images", "disk", "disk0.qcow2")
	open := func(path string, flags int) error {
		f, err := os.OpenFile(path, flags, 0o644)
		if err == nil {
			f.Close()
		}
		return err
	}
	for name, err := range map[string]error{
		"open read-write":   open(path, os.O_RDWR),
		"open write-only":   open(path, os.O_WRONLY),
		"open truncating":   open(path, os.O_RDWR|os.O_TRUNC),
		"create":            open(m.Path("images", "disk", "new.qcow2"), os.O_CREATE|os.O_EXCL|os.O_WRONLY),
		"create image":      open(m.Path("images", "new.qcow2"), os.O_CREATE|os.O_EXCL|os.O_WRONLY),
		"mkdir":             os.Mkdir(m.Path("images", "new"), 0o755),
		"mkdir at the top":  os.Mkdir(m.Path("new"), 0o755),
		"rm":                os.Remove(path),
		"rmdir":             syscall.Rmdir(m.Path("images", "disk")),
		"mv":                os.Rename(path, m.Path("images", "disk", "other")),
		"ln":                os.Link(path, m.Path("images", "disk", "other")),
		"ln -s":             os.Symlink("x", m.Path("images", "disk", "other")),
		"truncate":          os.Truncate(path, 0),
		"chmod":             os.Chmod(path, 0o600),
		"touch":             syscall.Utimes(path, []syscall.Timeval{{Sec: 1}, {Sec: 1}}),
		"setfattr":          syscall.Setxattr(path, "user.x", []byte("y"), 0),
		"mknod":             syscall.Mknod(m.Path("images", "node"), syscall.S_IFIFO|0o644, 0),
		"write stats":       open(m.Path(".imagefs", "stats"), os.O_WRONLY),
		"create in .images": open(m.Path(".imagefs", "new"), os.O_CREATE|os.O_EXCL|os.O_WRONLY),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", name, err)
		}
	}
	if _, err := os.Stat(m.Path("images", "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat of what is not there: %v", err)
	}
	if got := output(t, "cat", filepath.Join(store, "disk.qcow2")); got != output(t, "cat", path) {
		t.Error("the stored file changed")
	}
}

// TestStatsKeys: all counters are named in one way.
func TestStatsKeys(t *testing.T) {
	snake := regexp.MustCompile(`^[a-z0-9]+([._][a-z0-9]+)*$`)
	check := func(t *testing.T, m *Mounted, names ...string) {
		stats := m.Stats(t)
		for name := range stats {
			if !snake.MatchString(name) {
				t.Errorf("a counter is named %q", name)
			}
		}
		for _, name := range names {
			if _, ok := stats[name]; !ok {
				t.Errorf("there is no %q in %v", name, stats)
			}
		}
	}
	t.Run("a directory", func(t *testing.T) {
		store, _ := smallStore(t)
		check(t, Mount(t, store), "images", "store.read_bytes", "cache.hits", "cache.fetched_bytes", "memory.heap_bytes")
	})
	t.Run("s3", func(t *testing.T) {
		_, env, flags, url := fakeS3(t)
		check(t, MountEnv(t, env, url, flags...), "s3.requests", "s3.bytes", "s3.bytes_uploaded", "s3.retries", "s3.errors")
	})
}

func TestStatfs(t *testing.T) {
	store, _ := smallStore(t)
	m := Mount(t, store, "--read-only")
	var st syscall.Statfs_t
	if err := syscall.Statfs(m.Dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Bsize < 512 || st.Namelen < 255 || st.Blocks == 0 || st.Bavail != 0 || st.Bfree > st.Blocks {
		t.Errorf("statfs says %+v", st)
	}
	output(t, "df", m.Dir)
}

// TestSparseCopyMovesOnlyData copies a view of 8 GiB that holds 64 MiB.
func TestSparseCopyMovesOnlyData(t *testing.T) {
	tool(t, "qemu-img")
	store, raw := t.TempDir(), filepath.Join(t.TempDir(), "raw")
	sparse(t, raw, 8*giB, piece{miB, 32 * miB}, piece{7*giB + 4096, 32*miB - 8192})
	storeAs(t, "qcow2", raw, filepath.Join(store, "disk.qcow2"))
	m := Mount(t, store, "--cache-size", "64MiB")
	before := m.Stats(t)
	dst := filepath.Join(t.TempDir(), "copy")
	output(t, "cp", m.Path("images", "disk", "disk0.raw"), dst)
	after := m.Stats(t)
	const counter = "store.read_bytes"
	if n := after[counter] - before[counter]; n < 60*miB || n > 72*miB {
		t.Errorf("%s rose by %d bytes, want 64 MiB: %v", counter, n, after)
	}
	for _, flag := range []string{"--sparse=auto", "--sparse=always"} {
		output(t, "cp", flag, m.Path("images", "disk", "disk0.raw"), dst)
		// Unlike cmp, this looks at data only.
		output(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", "-s", raw, dst)
		if n := stat(t, dst).Blocks * 512; n > 66*miB {
			t.Errorf("cp %s: the copy takes %d bytes", flag, n)
		}
	}
}

// TestSizesForPeople asks du, which believes st_blocks.
func TestSizesForPeople(t *testing.T) {
	store, _ := smallStore(t)
	m := Mount(t, store)
	path := m.Path("images", "disk", "disk0.raw")
	du, err := strconv.ParseInt(strings.Fields(output(t, "du", "--block-size=1", path))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	var data int64
	for _, p := range extents(t, path) {
		data += p.n
	}
	if du < data || du > data+4096 {
		t.Errorf("du says %d, the hole seeks %d", du, data)
	}
	apparent := strings.Fields(output(t, "du", "--apparent-size", "--block-size=1", path))[0]
	if apparent != strconv.FormatInt(10*miB+512, 10) {
		t.Errorf("du --apparent-size says %s", apparent)
	}
}

// TestDirectIO reads into aligned memory with O_DIRECT, as virtual machine
// monitors do, at the end of the file too.
func TestDirectIO(t *testing.T) {
	store, raw := smallStore(t)
	m := Mount(t, store)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Open(m.Path("images", "disk", "disk0.raw"), syscall.O_RDONLY|syscall.O_DIRECT|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	buf := aligned(miB)
	for _, off := range []int64{0, 512, 64 * kiB, 5 * miB, 10*miB - 4096, 10 * miB, 10*miB + 512} {
		n, err := syscall.Pread(fd, buf, off)
		end := min(off+int64(len(buf)), int64(len(want)))
		if err != nil || !bytes.Equal(buf[:n], want[off:end]) {
			t.Errorf("direct read at %d: %d bytes, %v; want %d", off, n, err, end-off)
		}
	}
}

// aligned returns n bytes at a page boundary.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 4095
	return b[skip:][:n]
}

// TestUnmountWays ends the daemon by umount, by fusermount3 and by signals.
func TestUnmountWays(t *testing.T) {
	store, _ := smallStore(t)
	for name, end := range map[string]func(m *Mounted) error{
		"umount":      func(m *Mounted) error { return exec.Command("umount", m.Dir).Run() },
		"fusermount3": func(m *Mounted) error { return exec.Command("fusermount3", "-u", m.Dir).Run() },
		"SIGINT":      func(m *Mounted) error { return syscall.Kill(m.Pid(), syscall.SIGINT) },
		"SIGTERM":     func(m *Mounted) error { return syscall.Kill(m.Pid(), syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "umount" && os.Getuid() != 0 {
				t.Skip("umount(8) needs root")
			}
			m := Mount(t, store)
			output(t, "cat", m.Path("images", "disk", "disk0.vmdk"))
			if err := end(m); err != nil {
				t.Error(err)
			}
			m.Unmounted(t)
		})
	}
}

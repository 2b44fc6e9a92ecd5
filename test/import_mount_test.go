package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// vmIn mounts a depot with image vm, disk 0 copied from vm.qcow2.
func vmIn(t testing.TB, d *depot, src string, flags ...string) (m *Mounted, disk string) {
	t.Helper()
	m = d.mount(t, flags...)
	disk = m.Path("images", "vm", "disk0.qcow2")
	mustSh(t, `mkdir "$(dirname "$2")"; cp "$1/vm.qcow2" "$2"`, src, disk)
	return m, disk
}

// TestImportKeepsDisks: what is in the catalog cannot be removed, renamed away
// or written over in place. VirtualBox reads on when writing is EROFS.
func TestImportKeepsDisks(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	src := importSources(t)
	inEachStore(t, func(t *testing.T, d *depot) {
		m, disk := vmIn(t, d, src)
		m.Expect("(rmdir|unlink|rename|open) failed")
		open := func(path string, flags int) error {
			f, err := os.OpenFile(path, flags, 0o644)
			if err == nil {
				f.Close()
			}
			return err
		}
		view, entry := m.Path("images", "vm", "disk0.vdi"), m.Path("images", "vm", "image.json")
		for _, c := range []struct {
			what string
			err  error
			want syscall.Errno
		}{
			{"unlink the disk", syscall.Unlink(disk), syscall.EPERM},
			{"unlink a view", syscall.Unlink(view), syscall.EPERM},
			{"unlink image.json", syscall.Unlink(entry), syscall.EPERM},
			{"unlink in by-format", syscall.Unlink(m.Path("by-format", "vdi", "vm-0.vdi")), syscall.EPERM},
			{"rmdir the image", syscall.Rmdir(m.Path("images", "vm")), syscall.EPERM},
			{"rmdir images", syscall.Rmdir(m.Path("images")), syscall.EPERM},
			{"rename the disk", os.Rename(disk, m.Path("images", "vm", "disk1.qcow2")), syscall.EPERM},
			{"rename a view", os.Rename(view, m.Path("images", "vm", ".x")), syscall.EPERM},
			{"rename image.json", os.Rename(entry, m.Path("images", "vm", ".x")), syscall.EPERM},
			{"mkdir in an image", os.Mkdir(m.Path("images", "vm", "x"), 0o755), syscall.EPERM},
			{"mkdir at the top", os.Mkdir(m.Path("x"), 0o755), syscall.EPERM},
			{"open the disk for both", open(disk, os.O_RDWR), syscall.EROFS},
			{"open a view for both", open(view, os.O_RDWR), syscall.EROFS},
			{"open a view for writing", open(view, os.O_WRONLY), syscall.EROFS},
			{"open image.json for both", open(entry, os.O_RDWR), syscall.EROFS},
			{"open by-format for both", open(m.Path("by-format", "vdi", "vm-0.vdi"), os.O_RDWR), syscall.EROFS},
			{"open the status", open(m.Path(".imagefs", "stats"), os.O_WRONLY), syscall.EROFS},
		} {
			if !errors.Is(c.err, c.want) {
				t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
			}
		}
		if out, err := sh(t, `rm -rf "$1"`, m.Path("images", "vm")); err == nil || !strings.Contains(out, people(syscall.EPERM)) {
			t.Errorf("rm -rf: %v, %s", err, out)
		}
		// Emptied and closed, or not even written, is no new version.
		mustSh(t, `: >"$1"; : >>"$1"`, disk)
		imported{image: "vm", ext: "qcow2", file: filepath.Join(src, "vm.qcow2")}.check(t, d, m)
		if keys := d.objects(t); len(keys) != 1 {
			t.Errorf("the store has %v", keys)
		}
	})
}

// TestImportMetadata sets what copying programs set. The time is kept, and all
// else is accepted.
func TestImportMetadata(t *testing.T) {
	needFUSE(t)
	tool(t, "setfattr")
	t.Parallel()
	src := importSources(t)
	inEachStore(t, func(t *testing.T, d *depot) {
		m, disk := vmIn(t, d, src)
		staged := m.Path("images", "vm", ".disk1.qcow2.x1")
		mustSh(t, `cp "$1/vm.qcow2" "$2"`, src, staged)
		owner := fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
		for _, path := range []string{disk, staged, filepath.Dir(disk)} {
			mustSh(t, `chmod 600 "$1"; chown "$2" "$1"; setfattr -n user.note -v text "$1"
				touch -d 2020-02-03T04:05:06.789Z "$1"; touch -a "$1"; sync "$1"`, path, owner)
		}
		if got := mustSh(t, `stat -c %a "$1"; getfattr --absolute-names --only-values -n user.note "$1"`, staged); got != "600\ntext" {
			t.Errorf("a staged file keeps mode and attribute as %q", got)
		}
		if err := os.Rename(staged, m.Path("images", "vm", "disk1.qcow2")); err != nil {
			t.Fatal(err)
		}
		want := time.Date(2020, 2, 3, 4, 5, 6, 789e6, time.UTC)
		check := func(m *Mounted) {
			t.Helper()
			for n := range 2 {
				i := imported{image: "vm", number: n, ext: "qcow2", file: filepath.Join(src, "vm.qcow2")}
				i.check(t, d, m)
				st, err := os.Stat(i.path(m))
				if err != nil || !st.ModTime().Equal(want) {
					t.Errorf("disk %d is of %v, %v; want %v", n, st, err, want)
				}
			}
		}
		check(m)
		m.Stop(t)
		check(d.mount(t))
	})
}

// TestImportReadOnly: a mount that is only read refuses all with EROFS.
func TestImportReadOnly(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	src := importSources(t)
	inEachStore(t, func(t *testing.T, d *depot) {
		m, _ := vmIn(t, d, src)
		m.Stop(t)
		m = d.mount(t, "--read-only")
		for _, script := range []string{
			`cp "$1/vm.vdi" "$2"`, `cp "$1/vm.qcow2" "$2/vm/disk0.qcow2"`, `cp "$1/vm.vdi" "$2/vm/disk1.vdi"`, `mkdir "$2/new"`,
			`mv "$2/vm" "$2/vm-2026"`, `rm "$2/vm/disk0.qcow2"`, `touch "$2/vm/disk0.qcow2"`, `echo >>"$2/vm/disk0.qcow2"`,
		} {
			if out, err := sh(t, script, src, m.Path("images")); err == nil || !strings.Contains(out, people(syscall.EROFS)) {
				t.Errorf("%s: %v, %s", script, err, out)
			}
		}
		imported{image: "vm", ext: "qcow2", file: filepath.Join(src, "vm.qcow2")}.check(t, d, m)
	})
}

// TestImportWriteBack: the copy is complete when the spool has it, while the
// store cannot be reached; the queue can be seen, and the daemon ends when the
// store has everything.
func TestImportWriteBack(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	src := importSources(t)
	s, env, flags, url := fakeS3(t)
	m := MountEnv(t, env, url, append(flags, "--write-back", "--refresh", "0")...)
	m.Expect("failed|waits")
	s.Stop()
	mustSh(t, `mkdir "$2/vm"; cp "$1/vm.qcow2" "$2/vm/disk0.qcow2"; cp "$1/vm.raw" "$2/vm/disk1.raw"
		cmp "$1/vm.qcow2" "$2/vm/disk0.qcow2"; cmp "$1/vm.raw" "$2/vm/disk1.raw"`, src, m.Path("images"))
	queue := m.status(t, "uploads")
	for _, name := range []string{`"vm/disk0.qcow2"`, `"vm/disk1.raw"`} {
		if !strings.Contains(queue, "sealed "+name) && !strings.Contains(queue, "uploading "+name) {
			t.Errorf(".imagefs/uploads does not show %s:\n%s", name, queue)
		}
	}
	// A bad file is known before the store is asked.
	if out, err := sh(t, `head -c 700 "$1/vm.qcow2" >"$2/bad.qcow2"`, src, m.Path("images")); err == nil {
		t.Errorf("a file cut short: %s", out)
	}
	output(t, "rm", m.Path("images", "bad.qcow2"))
	output(t, "fusermount3", "-u", m.Dir)
	select {
	case <-m.exited:
		t.Errorf("the daemon ended before the store had all: %v\n%s", m.err, m.Log)
	default:
	}
	s.Start()
	m.Unmounted(t)
	m = MountEnv(t, env, url, append(flags, "--read-only")...)
	mustSh(t, `cmp "$1/vm.qcow2" "$2/vm/disk0.qcow2"; cmp "$1/vm.raw" "$2/vm/disk1.raw"`, src, m.Path("images"))
}

// TestImportSpoolFull: when the disk of the spool is full, the writer learns it.
func TestImportSpoolFull(t *testing.T) {
	needFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("takes a file system of its own")
	}
	t.Parallel()
	const size = 72 // MiB; the spool wants 64 to begin with
	spool := t.TempDir()
	output(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm,mode=700", size), "imagefs-test", spool)
	t.Cleanup(func() {
		if err := syscall.Unmount(spool, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := newDirDepot(t)
	m := d.mount(t, "--spool", spool)
	m.Expect("(write|create|import|fallocate) failed|staged file.*no space left")
	folder := m.Path("images", "vm")
	mustSh(t, `mkdir "$1"`, folder)
	out, err := sh(t, `dd if=/dev/urandom of="$1/disk0.raw" bs=1M count="$2" conv=notrunc`, folder, fmt.Sprint(size+8))
	if err == nil || !strings.Contains(out, people(syscall.ENOSPC)) {
		t.Errorf("dd: %v, %s", err, out)
	}
	// Now there is less than it wants to begin with.
	if out, err := sh(t, `echo x >"$1/disk1.raw"`, folder); err == nil || !strings.Contains(out, people(syscall.ENOSPC)) {
		t.Errorf("a second file: %v, %s", err, out)
	}
	if s := m.status(t, "errors"); !strings.Contains(s, "no space left") {
		t.Errorf(".imagefs/errors says %q", s)
	}
	mustSh(t, `rm -f "$1/disk0.raw"; mkdir -p "$1"; echo x >"$1/disk1.raw"; test "$(cat "$1/disk1.raw")" = x`, folder)
}

// TestImportAsUser copies in as a user without privilege: into a mount of that
// user, and into one of root that shows files of that user to others.
func TestImportAsUser(t *testing.T) {
	needFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("every mount of these tests is a user's already")
	}
	t.Parallel()
	home, src := userHome(t), importSources(t)
	output(t, "cp", filepath.Join(src, "vm.vmdk"), filepath.Join(src, "vm.raw"), home)
	if out, err := asUser(t, home, `
		"$HOME/imagefs" mount "$HOME/store" "$HOME/mnt"
		trap 'fusermount3 -uz "$HOME/mnt"' EXIT
		mkdir "$HOME/mnt/images/vm"
		cp "$HOME/vm.vmdk" "$HOME/mnt/images/vm/disk0.vmdk"
		mv "$HOME/vm.raw" "$HOME/mnt/images/plain.raw"
		cmp "$HOME/mnt/images/vm/disk0.vmdk" "$HOME/vm.vmdk"
		mv "$HOME/mnt/images/vm" "$HOME/mnt/images/vm-2026"
		test "$(<"$HOME/mnt/.imagefs/errors")" = ""
		trap - EXIT
		"$HOME/imagefs" unmount "$HOME/mnt"`); err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
	d := &depot{url: filepath.Join(home, "store"), dir: filepath.Join(home, "store")}
	m := d.mount(t, "--allow-other", "--uid", fmt.Sprint(nobody), "--gid", fmt.Sprint(nobody), "--umask", "022")
	imported{image: "vm-2026", ext: "vmdk", file: filepath.Join(src, "vm.vmdk")}.check(t, d, m)
	if out, err := sh(t, `exec setpriv --reuid="$1" --regid="$1" --clear-groups cp "$2/vm.vmdk" "$3/images/other.vmdk"`,
		fmt.Sprint(nobody), home, m.Dir); err != nil {
		t.Errorf("a user in the mount of root: %v\n%s", err, out)
	}
	imported{image: "other", ext: "vmdk", file: filepath.Join(src, "vm.vmdk")}.check(t, d, m)
	// Another user may look, and not write.
	if out, err := sh(t, `exec setpriv --reuid=65533 --regid=65533 --clear-groups cp "$1/vm.vmdk" "$2/images/third.vmdk"`,
		home, m.Dir); err == nil || !strings.Contains(out, people(syscall.EACCES)) {
		t.Errorf("a third user: %v\n%s", err, out)
	}
}

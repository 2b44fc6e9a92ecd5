package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nobody is the user of Debian who owns nothing.
const nobody = 65534

// TestUserMounts mounts as a user without privilege, which takes the helper
// program fusermount3, and reads and unmounts as that user.
func TestUserMounts(t *testing.T) {
	needFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("every mount of these tests is a user's already")
	}
	home := userHome(t)
	store, mnt := filepath.Join(home, "store"), filepath.Join(home, "mnt")
	image := strings.Repeat("imagefs!", 100_000)
	if err := os.WriteFile(filepath.Join(store, "a.raw"), []byte(image), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := asUser(t, home, `
		"$HOME/imagefs" mount "$HOME/store" "$HOME/mnt"
		trap 'fusermount3 -uz "$HOME/mnt"' EXIT
		cmp "$HOME/mnt/images/a/disk0.raw" "$HOME/store/a.raw"
		test "$(stat -c %u:%g "$HOME/mnt/images/a/disk0.vmdk")" = "$(id -u):$(id -g)"
		grep -q " $HOME/mnt r[ow],nosuid,nodev" /proc/self/mountinfo
		test "$(<"$HOME/mnt/.imagefs/errors")" = ""
		pid=$(sed -n 's/.*"pid": //p' "$HOME/mnt/.imagefs/config")
		trap - EXIT
		fusermount3 -u "$HOME/mnt"
		tail --pid="$pid" -s 0.05 -f /dev/null
		! grep " $HOME/mnt " /proc/self/mountinfo`)
	if err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
	if isMountPoint(mnt) {
		t.Errorf("%s is still mounted", mnt)
	}
}

// TestUserMayNotMount: in a folder of somebody else the helper program refuses,
// and its reason reaches the user in the background too.
func TestUserMayNotMount(t *testing.T) {
	needFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("takes the folder of another user")
	}
	home := userHome(t)
	if err := os.Chown(filepath.Join(home, "mnt"), 0, 0); err != nil {
		t.Fatal(err)
	}
	out, err := asUser(t, home, `exec "$HOME/imagefs" mount "$HOME/store" "$HOME/mnt"`)
	if err == nil || strings.Count(out, "imagefs: mount on ") != 1 || !strings.Contains(out, "fusermount3: ") || strings.Count(out, "\n") > 3 {
		t.Errorf("%v, with this said:\n%s", err, out)
	}
}

// userHome is a folder of nobody's with the program and the folders store and
// mnt, on a path that all users may walk.
func userHome(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	for dir := home; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	output(t, "cp", program(t, buildImagefs), filepath.Join(home, "imagefs"))
	for _, dir := range []string{".", "store", "mnt"} {
		dir = filepath.Join(home, dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return home
}

// asUser runs a script of bash as nobody, and returns all it printed. It sees
// mounts of its own, in which /dev/fuse may be opened by all: on a desktop it
// may, and in some containers and virtual machines by root alone.
func asUser(t *testing.T, home, script string) (string, error) {
	t.Helper()
	const private = `
		set -eu
		mount -t tmpfs -o mode=755 tmpfs "$1"
		mknod -m 666 "$1/fuse" c 10 229
		mount --bind "$1/fuse" /dev/fuse
		umount -l "$1"
		cd /
		exec env HOME="$2" setpriv --reuid="$3" --regid="$3" --clear-groups bash -euo pipefail -c "$4"`
	cmd := exec.CommandContext(t.Context(), tool(t, "unshare"), "--mount", "bash", "-c", private, "bash",
		t.TempDir(), home, fmt.Sprint(nobody), script)
	var log logBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	return log.String(), err
}

package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// How daemons end, by signals of any kind and at any moment.

// TestKilledDaemon: readers of a dead mount get an error, and the next mount on
// the same folder clears it.
func TestKilledDaemon(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	store, mnt := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(store, "a.raw"), []byte("disk"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountLazily(mnt) })
	pid := background(t, store, mnt)
	f, err := os.Open(filepath.Join(mnt, "images/a/disk0.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the mount to be dead", func() bool { _, err := os.Stat(mnt); return errors.Is(err, syscall.ENOTCONN) })
	if _, err := f.Read(make([]byte, 4)); err == nil {
		t.Error("a read through a dead daemon succeeded")
	}
	f.Close()
	pid = background(t, store, mnt)
	if b, err := os.ReadFile(filepath.Join(mnt, "images/a/disk0.raw")); err != nil || string(b) != "disk" {
		t.Errorf("after the second mount: %q %v", b, err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the unmount", func() bool { return !isMountPoint(mnt) })
}

// TestEndRightAfterTheMountAnswers: a SIGTERM that comes as soon as the mount
// can be seen is not lost.
func TestEndRightAfterTheMountAnswers(t *testing.T) {
	needFUSE(t)
	store := t.TempDir()
	for range 15 {
		m := Mount(t, store)
		m.Stop(t)
		if t.Failed() {
			return
		}
	}
}

// TestKilledAsItMounts kills the daemon in the first moments of its mount: the
// mount is dead then, and says so, but must not make anyone wait for it.
func TestKilledAsItMounts(t *testing.T) {
	needFUSE(t)
	store, mnt := t.TempDir(), t.TempDir()
	t.Cleanup(func() { unmountLazily(mnt) })
	for i := range 60 {
		cmd := exec.Command(program(t, buildImagefs), "mount", "-f", "--spool", t.TempDir(), store, mnt)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the mount", func() bool {
			b, err := os.ReadFile("/proc/self/mountinfo")
			return err == nil && strings.Contains(string(b), " "+mnt+" ")
		})
		time.Sleep(time.Duration(i) * 100 * time.Microsecond) // another moment each time, no proof
		_ = cmd.Process.Kill()
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatalf("killed %d00 µs after the mount appeared, the daemon does not end", i)
		}
		if out, err := exec.Command("timeout", "-s", "KILL", "60", "stat", mnt+"/images").CombinedOutput(); err == nil || !strings.Contains(string(out), "not connected") {
			t.Fatalf("the mount of a killed daemon: %v: %s", err, out)
		}
		unmountLazily(mnt)
	}
}

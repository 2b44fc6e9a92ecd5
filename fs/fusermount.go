package fs

import (
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Unmount unmounts path, with lazy also while it is in use.
func Unmount(path string, lazy bool) error {
	flags := 0
	if lazy {
		flags = unix.MNT_DETACH
	}
	err := unix.Unmount(path, flags)
	if err == unix.EPERM {
		return fusermount(path, lazy)
	}
	return err
}

// fusermount unmounts path by the helper that users without privilege have.
func fusermount(path string, lazy bool) error {
	args := []string{"-u", "--", path}
	if lazy {
		args[0] = "-uz"
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

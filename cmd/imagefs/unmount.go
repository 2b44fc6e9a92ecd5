package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"imagefs/fs"
)

// unmountCommand is umount that waits for the daemon; installed under the name
// umount.fuse.imagefs it is what umount(8) runs.
func unmountCommand() *command {
	var lazy bool
	var ignored []string
	c := &command{
		name: "unmount", args: "MOUNTPOINT", summary: "unmount, and wait until all that was copied in is stored",
		help: `umount and fusermount3 -u return at once, and the daemon goes on behind them
until the store has everything (see mount --unmount-timeout). This waits for it.
Linked as /sbin/umount.fuse.imagefs, it makes umount wait.

Example: imagefs unmount /mnt/imagefs
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		set.BoolVarP(&lazy, "lazy", "l", false, "take the mount out of the tree now, and end it when nobody uses it")
		for _, name := range []string{"f", "n", "r", "v"} { // of umount(8): they say nothing here
			set.BoolP("of-umount-"+name, name, false, "")
			_ = set.MarkHidden("of-umount-" + name)
		}
		set.StringArrayVarP(&ignored, "types", "t", nil, "")
		set.StringArrayVarP(&ignored, "namespace", "N", nil, "")
		_ = set.MarkHidden("types")
		_ = set.MarkHidden("namespace")
	}
	c.run = func(ctx context.Context, args []string) error {
		if err := c.need(args, 1); err != nil {
			return err
		}
		path, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		daemon, err := daemonOf(path)
		if err != nil {
			return err
		}
		defer daemon.Close()
		if err := fs.Unmount(path, lazy); err != nil {
			return fmt.Errorf("unmount %q: %w", path, err)
		}
		if lazy || daemon == nil {
			return nil
		}
		return waitFor(ctx, daemon, time.Second, func() {
			fmt.Fprintln(os.Stderr, "imagefs: waiting until what was copied in is stored")
		})
	}
	return c
}

// daemonOf returns the process that serves a mount, as a descriptor of it; nil
// if it is dead.
func daemonOf(path string) (*os.File, error) {
	b, err := os.ReadFile(filepath.Join(path, ".imagefs", "config"))
	if errors.Is(err, syscall.ENOTCONN) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%q is not a mount of imagefs: %w", path, err)
	}
	var config struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(b, &config); err != nil || config.PID <= 0 {
		return nil, fmt.Errorf("%q is not a mount of imagefs: its .imagefs/config names no process", path)
	}
	fd, err := unix.PidfdOpen(config.PID, 0)
	if errors.Is(err, syscall.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", config.PID, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitFor returns when a process has ended. slow is called once if that takes
// longer than patience.
func waitFor(ctx context.Context, process *os.File, patience time.Duration, slow func()) error {
	late := time.Now().Add(patience)
	for {
		fds := []unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100) // milliseconds
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("wait for the daemon: %w", err)
		case ctx.Err() != nil:
			return fmt.Errorf("the daemon still stores what was copied in, and goes on: %w", ctx.Err())
		case slow != nil && time.Now().After(late):
			slow()
			slow = nil
		}
	}
}

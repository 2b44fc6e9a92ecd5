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
		pid, err := daemonOf(path)
		if err != nil {
			return err
		}
		if err := fs.Unmount(path, lazy); err != nil {
			return fmt.Errorf("unmount %q: %w", path, err)
		}
		if lazy || pid == 0 {
			return nil
		}
		return waitFor(ctx, pid, time.Second, func() {
			fmt.Fprintln(os.Stderr, "imagefs: waiting until what was copied in is stored")
		})
	}
	return c
}

// daemonOf returns the process that serves a mount, 0 if it is dead.
func daemonOf(path string) (int, error) {
	b, err := os.ReadFile(filepath.Join(path, ".imagefs", "config"))
	if errors.Is(err, syscall.ENOTCONN) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a mount of imagefs: %w", path, err)
	}
	var config struct {
		Mountpoint string `json:"mountpoint"`
		PID        int    `json:"pid"`
	}
	if err := json.Unmarshal(b, &config); err != nil || config.PID <= 0 {
		return 0, fmt.Errorf("%q is not a mount of imagefs: %q says no process", path, ".imagefs/config")
	}
	return config.PID, nil
}

// waitFor returns when a process has ended. slow is called once if that takes
// longer than patience.
func waitFor(ctx context.Context, pid int, patience time.Duration, slow func()) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return nil
		}
		select {
		case <-tick.C:
		case <-late:
			slow()
		case <-ctx.Done():
			return fmt.Errorf("process %d still stores what was copied in; it goes on: %w", pid, ctx.Err())
		}
	}
}

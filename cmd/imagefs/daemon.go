package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A mount in the background is this program run once more, in a session of its
// own. It inherits a pipe and writes one verdict into it: mounted, or why not.
// The command that the user typed waits for that, prints it and exits.

// daemonEnv names the descriptor of the pipe in the daemon.
const daemonEnv = "IMAGEFS_DAEMON_FD"

// verdict is what the daemon tells.
type verdict struct {
	Code  int
	Error string
}

// failed is a verdict as an error: the daemon's message, and its exit code.
type failed struct{ verdict }

func (f failed) Error() string { return f.verdict.Error }

// isDaemon says that a command waits for this process to tell its verdict.
func isDaemon() bool { return os.Getenv(daemonEnv) != "" }

// startDaemon runs the same command line as a daemon and waits for its verdict.
func startDaemon() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Args[0] = os.Args[0] // "mount.imagefs" stays it
	cmd.Env = append(os.Environ(), daemonEnv+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr // until it detaches: fusermount prints why it refuses
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	w.Close()
	var v verdict
	if err := json.NewDecoder(r).Decode(&v); err != nil {
		state, _ := cmd.Process.Wait()
		return fmt.Errorf("the daemon ended before it had mounted: %v", state)
	}
	if v.Code != exitOK {
		cmd.Process.Wait()
		return failed{v}
	}
	return cmd.Process.Release()
}

func tell(v verdict) error {
	fd, err := strconv.Atoi(os.Getenv(daemonEnv))
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(fd), "verdict")
	return errors.Join(json.NewEncoder(w).Encode(v), w.Close())
}

// reportFailure tells the waiting command why there is no mount.
func reportFailure(err error) { tell(verdict{exitCode(err), err.Error()}) }

// openLog opens what a daemon logs to: the file, or nothing for no name.
func openLog(name string) (*os.File, error) {
	if name == "" {
		return os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	out, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	return out, nil
}

// detach lets go of the terminal and the folder, then tells that the mount
// answers. What would be printed, a panic included, goes to out from here on.
func detach(out *os.File) error {
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(out.Fd()), fd, 0); err != nil {
			return err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := tell(verdict{Code: exitOK}); err != nil {
		return err
	}
	return os.Unsetenv(daemonEnv) // the pipe is closed: nobody waits
}

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// apart keeps a child from the signals of the terminal: this program ends its
// children itself, after it has unmounted what they serve.
var apart = &syscall.SysProcAttr{Setpgid: true}

// usage is the processor time of this process or of its children that ended.
func usage(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf is the processor time of a process that runs, of all its threads, or 0.
func cpuOf(pid int) time.Duration {
	// The kernel's clock of a process: clock_getcpuclockid(3). /proc/PID/stat
	// says the same in steps of 10 ms.
	const schedulerClock = 2
	clock := int32(^pid<<3 | schedulerClock)
	var ts syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0
	}
	return time.Duration(ts.Nano())
}

// peakOf is the most memory that a process has held, in bytes, or 0.
func peakOf(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// processOf finds the process that has an argument on its command line, beside
// this one: a daemon that went to the background, by its mount point.
func processOf(arg string) (pid int, ok bool) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return 0, false
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if err != nil {
			continue
		}
		for a := range bytes.SplitSeq(line, []byte{0}) {
			if string(a) == arg {
				return pid, true
			}
		}
	}
	return 0, false
}

// mounted says whether something is mounted at a path.
func mounted(path string) bool {
	_, ok := deviceOf(path)
	return ok
}

// deviceOf is the device number, MAJOR:MINOR, of what is mounted at a path.
func deviceOf(path string) (string, bool) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			return f[2], true
		}
	}
	return "", false
}

// unmount unmounts what is mounted at a path, at last even if it is in use.
func unmount(path string) {
	for range 100 {
		if !mounted(path) {
			return
		}
		if exec.Command("umount", path).Run() == nil || exec.Command("fusermount3", "-u", path).Run() == nil {
			return
		}
		time.Sleep(20 * time.Millisecond) // something was about to close a file
	}
	if exec.Command("umount", "-l", path).Run() != nil {
		_ = exec.Command("fusermount3", "-u", "-z", path).Run()
	}
}

// gone waits until a process has ended, so that its last work is not in the time
// of the next rival.
func gone(pid int) {
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// A turn is one go of an entrant: it sets up, does the work that is timed, and
// is undone, also when it failed or the run was interrupted.
type turn struct {
	*bench
	ctx     context.Context
	store   *s3peer // whose bytes are counted, or nil
	laps    map[string]lap
	daemons []int // processes that work for the entrant beside its children
	largest int64 // bytes: peak of the commands that were run
	undo    []func()
}

// A lap is a piece of a turn that is timed.
type lap struct {
	seconds float64
	cpu     float64 // seconds, user and system, of all processes of the entrant
	rss     int64   // bytes: peak of its daemons, and of its largest command beside them
	fetched int64   // bytes that the store sent meanwhile
	needed  int64   // bytes that the work was about, where the turn found out
}

// later does f when the turn is over, the last one first.
func (t *turn) later(f func()) { t.undo = append(t.undo, f) }

// end undoes what the turn set up.
func (t *turn) end() {
	for len(t.undo) > 0 {
		last := len(t.undo) - 1
		f := t.undo[last]
		t.undo = t.undo[:last]
		f()
	}
}

// time times f as the lap with a name. Daemons that f starts count whole.
func (t *turn) time(name string, f func() error) error {
	sent, err := t.sent()
	if err != nil {
		return err
	}
	cpu, start := t.cpu(), time.Now()
	err = f()
	l := lap{seconds: time.Since(start).Seconds(), cpu: t.cpu() - cpu}
	if err = errors.Join(err, t.ctx.Err()); err != nil {
		return err
	}
	now, err := t.sent()
	l.fetched = now - sent
	l.rss = t.largest
	for _, pid := range t.daemons {
		l.rss += peakOf(pid)
	}
	if t.laps == nil {
		t.laps = map[string]lap{}
	}
	t.laps[name] = l
	return err
}

func (t *turn) sent() (int64, error) {
	if t.store == nil {
		return 0, nil
	}
	return t.store.sent()
}

// cpu is the processor time of this process, of its children that ended, and of
// the daemons of the turn.
func (t *turn) cpu() float64 {
	total := usage(syscall.RUSAGE_SELF) + usage(syscall.RUSAGE_CHILDREN)
	for _, pid := range t.daemons {
		total += cpuOf(pid)
	}
	return total.Seconds()
}

// run runs a program to its end and returns its error with what it printed. An
// interrupt of the whole run ends it.
func (t *turn) run(name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(t.ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = apart
	cmd.WaitDelay = time.Second // a daemon that it leaves behind may hold the pipe
	err := cmd.Run()
	if cmd.ProcessState != nil {
		if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			t.largest = max(t.largest, u.Maxrss<<10)
		}
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// background starts a program that serves until the turn is over.
func (t *turn) background(ready func() bool, name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = apart
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	t.daemons = append(t.daemons, cmd.Process.Pid)
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.later(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	for limit := time.Now().Add(30 * time.Second); !ready(); {
		select {
		case <-ended:
			return fmt.Errorf("%s ended: %s", name, bytes.TrimSpace(out.Bytes()))
		case <-t.ctx.Done():
			return t.ctx.Err()
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s is not ready after 30 seconds", name)
		}
	}
	return nil
}

// folder makes an empty folder for the turn.
func (t *turn) folder(name string) (string, error) {
	dir, err := os.MkdirTemp(t.dir, name)
	if err == nil {
		t.later(func() { _ = os.RemoveAll(dir) })
	}
	return dir, err
}

// mountpoint makes a folder that is unmounted when the turn is over.
func (t *turn) mountpoint(name string) (string, error) {
	dir, err := os.MkdirTemp(t.dir, name)
	if err == nil {
		t.later(func() { unmount(dir); _ = os.Remove(dir) }) // never RemoveAll: it may still be mounted
	}
	return dir, err
}

// out is where a turn puts what it makes, gone when it is over.
func (t *turn) out() string {
	path := t.path("out")
	t.later(func() { _ = os.Remove(path) })
	return path
}

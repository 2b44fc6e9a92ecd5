package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for a condition. It is no assertion on speed: a
// busy machine takes long, and a hang must end.
const patience = 60 * time.Second

// program returns the path of a program of this repository: the one that the
// environment names, or one built now, so that a stale one is never tested.
func program(t testing.TB, build func() (string, error)) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	buildImagefs  = sync.OnceValues(func() (string, error) { return buildProgram("IMAGEFS_BIN", "..", "./cmd/imagefs", "imagefs") })
	buildS3server = sync.OnceValues(func() (string, error) { return buildProgram("IMAGEFS_S3SERVER", "s3server", ".", "s3server") })
)

func buildProgram(env, dir, pkg, name string) (string, error) {
	if p := os.Getenv(env); p != "" {
		return p, nil
	}
	out, err := filepath.Abs(filepath.Join("..", "bin", name))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, b)
	}
	return out, nil
}

// toolsDemanded says whether a missing tool is a failure: under CI and in
// "make test", which installs them. A skip that nobody sees is a hole.
func toolsDemanded() bool {
	return os.Getenv("CI") != "" || os.Getenv("IMAGEFS_REQUIRE_TOOLS") != ""
}

// countOf is how much of something a test does: what the environment says, or so
// many.
func countOf(t testing.TB, variable string, otherwise int64) int64 {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: %v", variable, s, err)
	}
	return n
}

// tool returns the path of an outside program. A missing one skips the test,
// or fails it where tools were demanded.
func tool(t testing.TB, name string) string {
	t.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	if toolsDemanded() {
		t.Fatalf("%s is not installed: run test/install", name)
	}
	t.Skipf("%s is not installed: run test/install", name)
	return ""
}

// output runs a program and returns what it printed on standard output. A
// failure ends the test.
func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs a program and returns its standard output; the error holds all it
// printed.
func try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), nil
}

// start starts a child that is sent sig when this process dies, be it of a
// time-out or a kill: nothing outlives a test run. The kernel ties that signal
// to the thread that started the child, so one thread starts them all.
func start(cmd *exec.Cmd, sig syscall.Signal) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: sig}
	starter.once.Do(func() {
		starter.work = make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range starter.work {
				f()
			}
		}()
	})
	done := make(chan error)
	starter.work <- func() { done <- cmd.Start() }
	return <-done
}

var starter struct {
	once sync.Once
	work chan func()
}

// waitFor polls until ok, or fails the test saying what did not come.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(limit) {
			t.Fatalf("waited %v for %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A logBuffer collects what a child prints.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// imagefs runs a command of the program and returns what it printed.
func imagefs(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return imagefsEnv(t, nil, args...)
}

// imagefsEnv is imagefs with additions to the environment.
func imagefsEnv(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, buildImagefs), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), env...)
	// A daemon that stays in the background holds these pipes open.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
		return out.String(), errs.String(), ee.ExitCode()
	} else if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("imagefs %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), 0
}

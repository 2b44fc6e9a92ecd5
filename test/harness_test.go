package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
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

// needFUSE skips where nothing can be mounted, or fails there.
func needFUSE(t testing.TB) {
	t.Helper()
	tool(t, "fusermount3")
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	if toolsDemanded() {
		t.Fatalf("FUSE is needed: %v", err)
	}
	t.Skipf("FUSE is needed: %v", err)
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

// A Mounted is a daemon in the foreground with its mount.
type Mounted struct {
	Dir string // the mount point
	Log *logBuffer

	cmd      *exec.Cmd
	exited   chan struct{} // closed when the daemon ended
	err      error         // of the daemon; valid once exited is closed
	expected []*regexp.Regexp
	stopped  bool
}

// Mount mounts a store, and unmounts it when the test ends. Then it asks what
// every test wants to know: did the daemon end cleanly, is the mount gone, and
// did it warn of anything that the test did not announce with Expect?
func Mount(t testing.TB, store string, flags ...string) *Mounted {
	t.Helper()
	return MountEnv(t, nil, store, flags...)
}

// MountEnv is Mount with additions to the environment of the daemon.
func MountEnv(t testing.TB, env []string, store string, flags ...string) *Mounted {
	t.Helper()
	needFUSE(t)
	m := &Mounted{Dir: t.TempDir(), Log: &logBuffer{}, exited: make(chan struct{})}
	args := append([]string{"mount", "-f"}, flags...)
	m.cmd = exec.Command(program(t, buildImagefs), append(args, store, m.Dir)...)
	m.cmd.Stdout, m.cmd.Stderr = m.Log, m.Log
	m.cmd.Env = append(os.Environ(), env...)
	if err := start(m.cmd, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.exited)
	}()
	t.Cleanup(func() { m.Stop(t) })
	waitFor(t, "the mount of "+store, func() bool {
		select {
		case <-m.exited:
			m.stopped = true
			t.Fatalf("imagefs %s: %v\n%s", strings.Join(m.cmd.Args[1:], " "), m.err, m.Log)
		default:
		}
		return isFUSE(m.Dir)
	})
	if _, err := os.ReadFile(filepath.Join(m.Dir, ".imagefs", "version")); err != nil {
		t.Fatalf("the mount does not answer: %v\n%s", err, m.Log)
	}
	return m
}

// Path returns the path of a file in the mount.
func (m *Mounted) Path(elem ...string) string {
	return filepath.Join(append([]string{m.Dir}, elem...)...)
}

// Pid is the daemon's process.
func (m *Mounted) Pid() int { return m.cmd.Process.Pid }

// Expect announces warnings: log lines that match are no failure.
func (m *Mounted) Expect(pattern string) {
	m.expected = append(m.expected, regexp.MustCompile(pattern))
}

// Stats reads the counters of the daemon: names are the path in the document,
// joined by dots.
func (m *Mounted) Stats(t testing.TB) map[string]int64 {
	t.Helper()
	b, err := os.ReadFile(m.Path(".imagefs", "stats"))
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatalf(".imagefs/stats: %v\n%s", err, b)
	}
	stats := map[string]int64{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				walk(strings.TrimPrefix(path+"."+k, "."), e)
			}
		case float64:
			stats[path] = int64(v)
		}
	}
	walk("", doc)
	return stats
}

// Stop ends the daemon as a user would, with SIGTERM, and checks that nothing
// is left. Calling it again does nothing.
func (m *Mounted) Stop(t testing.TB) {
	t.Helper()
	if m.stopped {
		return
	}
	m.stopped = true
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	if !m.waitExit() {
		t.Errorf("the daemon did not end within %v of SIGTERM\n%s", patience, m.Log)
		_ = m.cmd.Process.Signal(syscall.SIGQUIT) // so that the log says where it hangs
		if !m.waitExit() {
			_ = m.cmd.Process.Kill()
			<-m.exited
		}
		t.Logf("%s", m.Log)
	}
	m.afterExit(t)
}

// Kill ends the daemon as a crash would. The mount is dead, and still there.
func (m *Mounted) Kill(t testing.TB) {
	t.Helper()
	m.stopped = true
	_ = m.cmd.Process.Kill()
	<-m.exited
	t.Cleanup(func() { unmountLazily(m.Dir) })
}

// Unmounted waits for the daemon to end after something else unmounted it.
func (m *Mounted) Unmounted(t testing.TB) {
	t.Helper()
	if !m.waitExit() {
		t.Errorf("the daemon did not end within %v of the unmount", patience)
		m.Stop(t)
		return
	}
	m.stopped = true
	m.afterExit(t)
}

func (m *Mounted) waitExit() bool {
	select {
	case <-m.exited:
		return true
	case <-time.After(patience):
		return false
	}
}

func (m *Mounted) afterExit(t testing.TB) {
	t.Helper()
	if m.err != nil {
		t.Errorf("the daemon ended with %v\n%s", m.err, m.Log)
	}
	if isMountPoint(m.Dir) {
		t.Errorf("%s is still mounted", m.Dir)
		unmountLazily(m.Dir)
	}
	m.checkLog(t)
}

var warning = regexp.MustCompile(`(?i)level=(warn|error)|^panic:|^fatal error:|DATA RACE|"level":"(WARN|ERROR)"`)

func (m *Mounted) checkLog(t testing.TB) {
	t.Helper()
lines:
	for line := range strings.Lines(m.Log.String()) {
		if !warning.MatchString(line) {
			continue
		}
		for _, e := range m.expected {
			if e.MatchString(line) {
				continue lines
			}
		}
		t.Errorf("the daemon logged what the test did not announce: %s", strings.TrimSpace(line))
	}
}

func unmountLazily(dir string) {
	_ = exec.Command("fusermount3", "-uz", dir).Run()
}

// isFUSE reports whether a FUSE file system answers at dir.
func isFUSE(dir string) bool {
	const fuseMagic = 0x65735546
	var st syscall.Statfs_t
	return syscall.Statfs(dir, &st) == nil && st.Type == fuseMagic
}

// isMountPoint reports whether anything is mounted on dir, alive or dead.
func isMountPoint(dir string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			return true
		}
	}
	return false
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

// An S3 is a running S3 server with one bucket.
type S3 struct {
	Endpoint string // URL
	Bucket   string
	Env      []string // credentials, for the environment of a client

	stdin   io.WriteCloser
	answers chan string
}

// StartS3 runs a real S3 server until the test ends. Further flags of
// test/s3server may follow.
func StartS3(t testing.TB, flags ...string) *S3 {
	t.Helper()
	const bucket, key, secret = "images", "testkey", "testsecret"
	log := &logBuffer{}
	args := append([]string{"-dir", t.TempDir(), "-bucket", bucket, "-access", key, "-secret", secret}, flags...)
	cmd := exec.Command(program(t, buildS3server), args...)
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := &S3{
		Bucket: bucket, stdin: stdin, answers: make(chan string, 16),
		Env: []string{"AWS_ACCESS_KEY_ID=" + key, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_REGION=us-east-1"},
	}
	go func() {
		defer close(s.answers)
		var line []byte
		for b := make([]byte, 1); ; {
			if _, err := stdout.Read(b); err != nil {
				return
			}
			if b[0] != '\n' {
				line = append(line, b[0])
				continue
			}
			s.answers <- string(line)
			line = nil
		}
	}()
	t.Cleanup(func() {
		stdin.Close() // it ends by itself
		done := make(chan struct{})
		go func() {
			for range s.answers { // until the pipe is closed
			}
			_ = cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-done
			t.Errorf("the S3 server did not end\n%s", log)
		}
	})
	addr, ok := strings.CutPrefix(s.answer(t), "listening on ")
	if !ok {
		t.Fatalf("the S3 server did not start\n%s", log)
	}
	s.Endpoint = "http://" + addr
	return s
}

// URL is the name of the bucket as a store.
func (s *S3) URL() string { return "s3://" + s.Bucket }

// Flags point a client at the server.
func (s *S3) Flags() []string { return []string{"--endpoint", s.Endpoint, "--path-style", "path"} }

// Put stores a local file as an object.
func (s *S3) Put(t testing.TB, key, file string) {
	t.Helper()
	abs, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	s.Command(t, "put", s.Bucket, key, abs)
}

// Command runs a command of test/s3server.
func (s *S3) Command(t testing.TB, fields ...string) {
	t.Helper()
	if _, err := fmt.Fprintln(s.stdin, strings.Join(fields, "\t")); err != nil {
		t.Fatal(err)
	}
	if a := s.answer(t); a != "ok" {
		t.Fatalf("s3server %s: %s", strings.Join(fields, " "), a)
	}
}

func (s *S3) answer(t testing.TB) string {
	t.Helper()
	select {
	case a := <-s.answers:
		return a
	case <-time.After(patience):
		t.Fatal("the S3 server does not answer")
		return ""
	}
}

package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

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
	m := MountUnlisted(t, env, store, flags...)
	waitFor(t, "the listing of "+store, func() bool { return strings.Contains(m.Log.String(), "catalog listed") })
	return m
}

// MountUnlisted is MountEnv as soon as the mount answers, while the store is
// still listed behind it.
func MountUnlisted(t testing.TB, env []string, store string, flags ...string) *Mounted {
	t.Helper()
	needFUSE(t)
	m := &Mounted{Dir: t.TempDir(), Log: &logBuffer{}, exited: make(chan struct{})}
	args := append([]string{"mount", "-f"}, flags...)
	m.cmd = exec.Command(program(t, buildImagefs), append(args, store, m.Dir)...)
	m.cmd.Stdout, m.cmd.Stderr = m.Log, m.Log
	// A spool of its own, unless the test says which.
	m.cmd.Env = append(append(os.Environ(), "XDG_STATE_HOME="+t.TempDir()), env...)
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

package test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagefs/remote/remotetest"
)

// A faultyDepot is a server in this process whose faults can be switched on,
// and a daemon on it.
type faultyDepot struct {
	*testing.T
	s    *remotetest.Server
	m    *Mounted
	seed uint64
}

func newFaultyDepot(t *testing.T, flags ...string) *faultyDepot {
	t.Helper()
	needFUSE(t)
	s, env, sflags, url := fakeS3(t)
	d := &faultyDepot{T: t, s: s, seed: uint64(time.Now().UnixNano())}
	t.Logf("seed %d", d.seed)
	d.m = MountEnv(t, env, url, append(append(sflags, "--formats", "all"), flags...)...)
	return d
}

// sometimes is a choice of one request in n, and always the same choice for a
// seed and an order of requests.
func (d *faultyDepot) sometimes(n int) func(*http.Request) bool {
	r := rand.New(rand.NewPCG(d.seed, 0))
	return func(*http.Request) bool { return r.IntN(n) == 0 }
}

// copyIn is cp into images/, as NAME.EXT; the error is a number, or wraps what
// cp printed where that is none.
func (d *faultyDepot) copyIn(name, file string) error {
	d.Helper()
	to := d.m.Path("images", name+filepath.Ext(file))
	out, err := exec.CommandContext(d.Context(), "cp", file, to).CombinedOutput()
	if err == nil {
		return nil
	}
	for _, e := range []syscall.Errno{syscall.EIO, syscall.EACCES, syscall.ETIMEDOUT} {
		if strings.Contains(strings.ToLower(string(out)), e.Error()) {
			return e
		}
	}
	return fmt.Errorf("%w: %s", err, out)
}

// stored looks for an image in the store and holds it to a file.
func (d *faultyDepot) stored(name, file string) {
	d.Helper()
	ext := strings.TrimPrefix(filepath.Ext(file), ".")
	im, err := diskOf(d.m, name, 0)
	if err != nil {
		d.Error(err)
		return
	}
	if got, want := sum256(d, d.m.Path("images", name, "disk0."+ext)), sum256(d, file); got != want {
		d.Errorf("%s has sha256 %s, what was copied in %s", name, got, want)
	}
	object, ok := d.s.Get(im.key)
	if !ok || int64(len(object)) != im.size {
		d.Errorf("%s names %s of %d bytes, there are %d", name, im.key, im.size, len(object))
	}
	want, err := os.ReadFile(file)
	if err != nil {
		d.Fatal(err)
	}
	if ext != "raw" && !bytes.Equal(object, want) {
		d.Errorf("%s is not what was copied in", im.key)
	}
}

// notStored is what a failed import is held to: no entry, and the file's bytes
// in the spool.
func (d *faultyDepot) notStored(name, file string) {
	d.Helper()
	if _, err := diskOf(d.m, name, 0); !errors.Is(err, os.ErrNotExist) {
		d.Errorf("%s is there after an error: %v", name, err)
	}
	if _, ok := d.s.Get("catalog/" + name + ".json"); ok {
		d.Errorf("%s has an entry after an error", name)
	}
	for line := range strings.Lines(d.m.status(d, "uploads")) {
		f := uploadLine.FindStringSubmatch(strings.TrimSpace(line))
		if f == nil || f[2] != name+filepath.Ext(file) {
			continue
		}
		if got, want := sum256(d, f[4]), sum256(d, file); got != want {
			d.Errorf("the spool keeps %s with sha256 %s, what was copied in has %s", name, got, want)
		}
		return
	}
	d.Errorf("the spool does not tell of %s:\n%s", name, d.m.status(d, "uploads"))
}

// nothingUnfinished waits until the server has no upload.
func (d *faultyDepot) nothingUnfinished() {
	d.Helper()
	waitFor(d, "unfinished uploads to be aborted", func() bool { return d.s.Uploads() == 0 })
}

// TestImportsSurviveFaults imports files in every format into a server that
// misbehaves now and then: each is stored as it is, or fails with a number and
// is not there.
func TestImportsSurviveFaults(t *testing.T) {
	t.Parallel()
	files := killSources(t)[:len(importExts)+1]
	for _, tc := range []struct {
		name  string
		fault func(f *remotetest.Faults)
	}{
		{"503 SlowDown", func(f *remotetest.Faults) { f.Fail, f.FailStatus, f.FailCode = 1<<30, 503, "SlowDown" }},
		{"done, and answered with 500", func(f *remotetest.Faults) { f.Late, f.FailStatus, f.FailCode = 1<<30, 500, "InternalError" }},
		{"bodies cut short on the way there", func(f *remotetest.Faults) { f.Hangup = 1 << 30 }},
		{"bodies cut short on the way back", func(f *remotetest.Faults) { f.Cut, f.CutAfter = 1<<30, 1000 }},
		{"answers lost", func(f *remotetest.Faults) { f.Lose = 1 << 30 }},
		{"bytes changed on the way", func(f *remotetest.Faults) { f.Corrupt = 1 << 30 }},
		{"slow, and 503", func(f *remotetest.Faults) {
			f.Delay, f.Fail, f.FailStatus, f.FailCode = 200*time.Millisecond, 1<<30, 503, "SlowDown"
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := newFaultyDepot(t, "--timeout", "20s")
			d.m.Expect("failed|waits")
			d.s.Set(func(f *remotetest.Faults) {
				tc.fault(f)
				f.Only = d.sometimes(10)
			})
			failed := make([]error, len(files))
			var all sync.WaitGroup
			for i, file := range files {
				all.Go(func() { failed[i] = d.copyIn("vm"+strconv.Itoa(i), file) })
			}
			all.Wait()
			d.s.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
			for i, file := range files {
				name := "vm" + strconv.Itoa(i)
				if failed[i] == nil {
					d.stored(name, file)
					continue
				}
				if !errors.As(failed[i], new(syscall.Errno)) {
					t.Errorf("import of %s: %v", file, failed[i])
				}
				t.Logf("import of %s: %v", file, failed[i])
				d.notStored(name, file)
				if err := d.copyIn(name, file); err != nil {
					t.Errorf("import of %s to a server that is well again: %v", file, err)
				}
				d.stored(name, file)
			}
			d.m.committed(t)
			d.nothingUnfinished()
		})
	}
}

// TestImportWithoutServer: close says EIO when the store stays away for
// --timeout, the bytes stay, and the next copy makes it.
func TestImportWithoutServer(t *testing.T) {
	t.Parallel()
	dir := importSources(t)
	d := newFaultyDepot(t)
	d.m.Expect("failed|waits")
	for _, ext := range importExts {
		file := filepath.Join(dir, "vm."+ext)
		d.s.Stop()
		wantErrno(t, d.copyIn("a"+ext, file), syscall.EIO)
		d.s.Start()
		d.notStored("a"+ext, file)
		if err := d.copyIn("a"+ext, file); err != nil {
			t.Errorf("import of %s after the server is back: %v", file, err)
		}
		d.stored("a"+ext, file)
	}
	d.m.committed(t)
	d.nothingUnfinished()
}

// TestWriteBackWithoutServer: in write-back mode close does not need the
// store, and the upload goes on when it is back.
func TestWriteBackWithoutServer(t *testing.T) {
	t.Parallel()
	files := killSources(t)[:len(importExts)+1]
	d := newFaultyDepot(t, "--write-back", "--timeout", "10s")
	d.m.Expect("failed|waits")
	d.s.Stop()
	for i, file := range files {
		if err := d.copyIn("vm"+strconv.Itoa(i), file); err != nil {
			t.Errorf("import of %s: %v", file, err)
		}
	}
	waitFor(t, "the store to be missed", func() bool { return d.m.status(t, "errors") != "" })
	if n := strings.Count(d.m.status(t, "uploads"), "\n"); n != len(files) {
		t.Errorf("%d files wait, want %d:\n%s", n, len(files), d.m.status(t, "uploads"))
	}
	d.s.Start()
	d.m.committed(t)
	for i, file := range files {
		d.stored("vm"+strconv.Itoa(i), file)
	}
	d.nothingUnfinished()
}

// TestCredentialsRevokedDuringImport: the close that needed them says EACCES,
// nothing shows, and with credentials again the next copy leaves nothing of
// the first.
func TestCredentialsRevokedDuringImport(t *testing.T) {
	t.Parallel()
	files := killSources(t)
	big := files[len(files)-1]
	d := newFaultyDepot(t)
	d.m.Expect("failed|waits")
	var once sync.Once
	d.s.Set(func(f *remotetest.Faults) {
		f.Only = func(r *http.Request) bool { // the server is locked
			if r.URL.Query().Get("partNumber") == "1" {
				once.Do(func() { go d.s.SetKey("other", "secret") })
			}
			return false
		}
	})
	wantErrno(t, d.copyIn("vm", big), syscall.EACCES)
	d.notStored("vm", big)
	d.s.SetKey(d.s.Key, d.s.Secret)
	if err := d.copyIn("vm", big); err != nil {
		t.Error(err)
	}
	d.stored("vm", big)
	d.m.committed(t)
	d.nothingUnfinished()
}

// TestImportMemory holds the daemon to its formula while it imports a file
// larger than that, of IMAGEFS_IMPORT_MIB: the cache and 200 MiB.
func TestImportMemory(t *testing.T) {
	needFUSE(t)
	size := countOf(t, "IMAGEFS_IMPORT_MIB", 320)
	const cache = 64 * miB
	raw := filepath.Join(t.TempDir(), "vm.raw")
	sparse(t, raw, size*miB, piece{0, size * miB})
	qcow2 := filepath.Join(t.TempDir(), "vm.qcow2")
	storeAs(t, "qcow2", raw, qcow2)
	s := StartS3(t)
	for _, file := range []string{raw, qcow2} {
		ext := filepath.Ext(file)
		m := MountEnv(t, s.Env, s.URL(), append(s.Flags(), "--cache-size", fmt.Sprint(cache))...)
		output(t, "cp", file, m.Path("images", "a"+ext[1:]+ext))
		peak := peakMemory(t, m.Pid())
		t.Logf("%d MiB of %s: the daemon had at most %d MiB", size, ext, peak/miB)
		if peak > cache+200*miB {
			t.Errorf("the daemon had %d bytes, want at most %d", peak, cache+200*miB)
		}
		m.Stop(t)
	}
}

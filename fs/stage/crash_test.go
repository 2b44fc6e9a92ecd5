package stage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/dir"
)

// The environment of the child that kills itself.
const (
	crashDir  = "IMAGEFS_TEST_CRASH_DIR"  // holds store/, spool/ and the file to import
	crashFile = "IMAGEFS_TEST_CRASH_FILE" // its path; "" only takes up what is there
	crashAt   = "IMAGEFS_TEST_CRASH_AT"   // the step of the store at which the child dies, from 1
	crashBack = "IMAGEFS_TEST_CRASH_BACK" // set in write-back mode
)

// mortal is a store that kills its process at a step: before each operation,
// in the midst of those that take bytes, and after each.
type mortal struct {
	remote.Store
	up    remote.Uploader
	at    int64
	steps atomic.Int64
}

func (m *mortal) step() {
	if m.steps.Add(1) == m.at {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (m *mortal) Stat(ctx context.Context, key string) (remote.Object, error) {
	m.step()
	defer m.step()
	return m.Store.Stat(ctx, key)
}

func (m *mortal) ReadRange(ctx context.Context, o remote.Object, p []byte, off int64) error {
	m.step()
	defer m.step()
	return m.Store.ReadRange(ctx, o, p, off)
}

func (m *mortal) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	m.step()
	defer m.step()
	return m.Store.Put(ctx, key, io.MultiReader(io.LimitReader(r, size/2), stepReader{m}, r), size, c)
}

func (m *mortal) List(ctx context.Context, folder string) iter.Seq2[remote.Object, error] {
	m.step()
	return m.Store.List(ctx, folder)
}

func (m *mortal) Delete(ctx context.Context, key string) error {
	m.step()
	defer m.step()
	return m.Store.Delete(ctx, key)
}

func (m *mortal) Upload(ctx context.Context, key string) (remote.Upload, error) {
	m.step()
	defer m.step()
	u, err := m.up.Upload(ctx, key)
	return &mortalUpload{u, m}, err
}

func (m *mortal) AbortUploads(ctx context.Context, key string) error {
	m.step()
	defer m.step()
	return m.up.AbortUploads(ctx, key)
}

func (m *mortal) Uploads(ctx context.Context, prefix string) iter.Seq2[remote.PendingUpload, error] {
	m.step()
	return m.up.Uploads(ctx, prefix)
}

type mortalUpload struct {
	remote.Upload
	m *mortal
}

func (u *mortalUpload) Part(ctx context.Context, n int, r *io.SectionReader) error {
	u.m.step()
	defer u.m.step()
	half := &halfReader{r, u.m, r.Size() / 2, atomic.Bool{}}
	return u.Upload.Part(ctx, n, io.NewSectionReader(half, 0, r.Size()))
}

func (u *mortalUpload) Complete(ctx context.Context) (remote.Object, error) {
	u.m.step()
	defer u.m.step()
	return u.Upload.Complete(ctx)
}

func (u *mortalUpload) Abort(ctx context.Context) error {
	u.m.step()
	defer u.m.step()
	return u.Upload.Abort(ctx)
}

// stepReader is a step and no bytes.
type stepReader struct{ m *mortal }

func (r stepReader) Read([]byte) (int, error) {
	r.m.step()
	return 0, io.EOF
}

// halfReader is a step when the second half is read first.
type halfReader struct {
	io.ReaderAt
	m    *mortal
	half int64
	past atomic.Bool
}

func (r *halfReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= r.half && !r.past.Swap(true) {
		r.m.step()
	}
	return r.ReaderAt.ReadAt(p, off)
}

// TestCrashChild is the process that the tests of crashes start. It imports a
// file as disk 0 of web beside one that stays unfinished, and tells on standard
// output how far it is.
func TestCrashChild(t *testing.T) {
	root := os.Getenv(crashDir)
	if root == "" {
		t.Skip("started by TestKilledAtEveryStep only")
	}
	at, err := strconv.ParseInt(os.Getenv(crashAt), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dir.Open(filepath.Join(root, "store"))
	if err != nil {
		t.Fatal(err)
	}
	e := &env{T: t, dir: filepath.Join(root, "spool"), store: &mortal{Store: d, up: d, at: at}}
	e.open(func(c *stage.Config) { c.WriteBack = os.Getenv(crashBack) != "" })
	if file := os.Getenv(crashFile); file != "" {
		e.crashImport(file)
	}
	if err := e.spool.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Println("through")
}

func (e *env) crashImport(file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		e.Fatal(err)
	}
	left := e.create("web", "disk1.raw")
	fill(e.T, left, b[:crashLeft])
	h := e.create("web", "disk0"+filepath.Ext(file))
	hole := make([]byte, 64<<10)
	for off := 0; off < len(b); off += len(hole) {
		p := b[off:min(off+len(hole), len(b))]
		if bytes.Equal(p, hole) && off+len(p) < len(b) {
			continue // a hole, as cp leaves it
		}
		if _, err := h.WriteAt(e.Context(), p, int64(off)); err != nil {
			e.Fatal(err)
		}
		fmt.Println("wrote", off+len(p))
	}
	if err := h.Flush(e.Context()); err != nil {
		e.Fatal(err)
	}
	fmt.Println("imported")
	h.Release()
}

// crashLeft is the size of the file that is never closed.
const crashLeft = 200_000

// hollow is a disk that has data everywhere, most of it zeros: files of many
// bytes that cost a disk little.
type hollow struct{ codec.Disk }

func (h hollow) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := h.Disk.ReadAt(ctx, p, off)
	for i := range p[:n] {
		if (off+int64(i))%(1<<20) >= 64<<10 {
			p[i] = 0
		}
	}
	return n, err
}

// TestKilledAtEveryStep imports a file in a process that is killed at the k-th
// step of the store, for every k until it gets through; kills the next process,
// which takes up what is left, at some step too, every other time; and looks at
// what the last one makes of it.
func TestKilledAtEveryStep(t *testing.T) {
	for _, tc := range []struct {
		name, ext string
		size      int64
		back      bool
	}{
		{"raw", ".raw", 300<<10 + 77, false},
		{"qcow2 of two parts", ".qcow2", 17 << 20, false},
		{"qcow2 of two parts, write-back", ".qcow2", 17 << 20, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "file"+tc.ext)
			b := noise(int(tc.size))
			if tc.ext == ".qcow2" {
				b = image(t, "qcow2", hollow{codectest.Full(tc.size, 1)})
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			for at := 1; ; at++ {
				c := &crash{T: t, root: t.TempDir(), back: tc.back}
				through := c.run(file, b, at)
				if t.Failed() {
					t.Fatalf("killed at step %d", at)
				}
				if err := os.RemoveAll(c.root); err != nil {
					t.Fatal(err)
				}
				if through {
					t.Logf("%d steps", at-1)
					if at < 10 {
						t.Error("the store was hardly used")
					}
					return
				}
			}
		})
	}
}

// crash is one life of a store and a spool.
type crash struct {
	*testing.T
	root string
	back bool

	wrote    int  // bytes that were written before the kill
	imported bool // the close had returned
}

// run reports whether the importing process got through.
func (c *crash) run(file string, b []byte, at int) bool {
	c.Helper()
	if err := os.MkdirAll(filepath.Join(c.root, "store"), 0o700); err != nil {
		c.Fatal(err)
	}
	through := c.child(file, at)
	sealed := c.sealed()
	if !through && at%2 == 0 {
		c.child("", 1+at/2%9)
	}
	c.check(b, sealed)
	return through
}

// child runs a process that dies at a step, and reports whether it did not.
func (c *crash) child(file string, at int) (through bool) {
	c.Helper()
	cmd := exec.CommandContext(c.Context(), os.Args[0], "-test.run=^TestCrashChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashDir+"="+c.root, crashFile+"="+file, crashAt+"="+strconv.Itoa(at))
	if c.back {
		cmd.Env = append(cmd.Env, crashBack+"=1")
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	for line := range strings.Lines(out.String()) {
		switch strings.TrimSpace(line) {
		case "imported":
			c.imported = true
		case "through":
			through = true
		default:
			_, _ = fmt.Sscanf(line, "wrote %d", &c.wrote)
		}
	}
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
		if st, ok := ee.Sys().(syscall.WaitStatus); ok && st.Signal() == syscall.SIGKILL {
			return false
		}
	}
	if err != nil || !through {
		c.Fatalf("the child ended with %v, and was to kill itself\n%s", err, out.Bytes())
	}
	return true
}

// sealed reports whether the spool promises to store the file.
func (c *crash) sealed() (sealed bool) {
	for _, f := range glob(c.T, c.root, "spool/*/files/*/state.json") {
		b, err := os.ReadFile(f)
		if err != nil {
			c.Fatal(err)
		}
		sealed = sealed || bytes.Contains(b, []byte(`"state":"sealed"`)) || bytes.Contains(b, []byte(`"state":"uploading"`))
	}
	return sealed
}

func glob(t *testing.T, root, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// check takes up what the dead left, and holds it to what is promised.
func (c *crash) check(b []byte, sealed bool) {
	c.Helper()
	d, err := dir.Open(filepath.Join(c.root, "store"))
	if err != nil {
		c.Fatal(err)
	}
	defer d.Close()
	e := &env{T: c.T, dir: filepath.Join(c.root, "spool"), store: d}
	e.open()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	if err := e.spool.Close(ctx); err != nil { // waits for all that is sealed
		c.Errorf("what was sealed is not stored: %v; %v", err, e.problems)
	}
	if len(e.problems) > 0 {
		c.Errorf("reported: %v", e.problems)
	}
	stored := e.cat.Has("web")
	if !stored && (sealed || c.imported) {
		c.Errorf("there is no image; sealed %v, close had returned %v", sealed, c.imported)
	}
	if stored {
		c.checkImage(e, b)
	}
	if up := e.uploads(); len(up) > 0 {
		c.Errorf("unfinished uploads in the store: %q", up)
	}
	c.tidy()
	if temp := glob(c.T, c.root, "store/*/.*"); len(temp) > 0 {
		c.Errorf("left in the store: %q", temp)
	}
	c.checkSpool(b, stored)
}

// tidy does what the next import does a day later: it sweeps the temporary
// files of puts.
func (c *crash) tidy() {
	for _, f := range glob(c.T, c.root, "store/*/.imagefs-put-*") {
		old := time.Now().Add(-25 * time.Hour)
		if err := os.Chtimes(f, old, old); err != nil {
			c.Fatal(err)
		}
	}
	d, err := dir.Open(filepath.Join(c.root, "store"))
	if err != nil {
		c.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Put(c.Context(), "catalog/later.json", strings.NewReader("{}"), 2, remote.Cond{}); err != nil {
		c.Error(err)
	}
}

// checkImage holds the image to the file that was imported.
func (c *crash) checkImage(e *env, b []byte) {
	c.Helper()
	o, d := e.object("web", 0)
	if d.Object.Size != int64(len(o)) || sum(o) != d.SHA256 {
		c.Errorf("the object of %d bytes has sha256 %s, the entry says %d and %s", len(o), sum(o), d.Object.Size, d.SHA256)
	}
	if d.Original == nil {
		if !bytes.Equal(o, b) {
			c.Error("the object is not the file")
		}
		return
	}
	if d.Original.Size != int64(len(b)) || d.Original.SHA256 != sum(b) {
		c.Errorf("the entry says %+v of a file of %d bytes", *d.Original, len(b))
	}
	for _, f := range all.Formats {
		if f.Name() != d.Format {
			continue
		}
		disk, err := f.Open(c.Context(), codectest.Bytes(o))
		if err != nil {
			c.Fatal(err)
		}
		got, err := codectest.ReadAll(disk)
		if err != nil {
			c.Fatal(err)
		}
		if len(got) < len(b) || !bytes.Equal(got[:len(b)], b) || len(bytes.Trim(got[len(b):], "\x00")) > 0 {
			c.Error("the disk is not the file")
		}
	}
}

// checkSpool looks for the bytes of the unfinished file, and of the other one
// unless it was stored.
func (c *crash) checkSpool(b []byte, stored bool) {
	c.Helper()
	left := 0
	for _, f := range glob(c.T, c.root, "spool/*/files/*") {
		state, err := os.ReadFile(filepath.Join(f, "state.json"))
		if err != nil {
			c.Error(err)
			continue
		}
		data, err := os.ReadFile(filepath.Join(f, "data"))
		if err != nil {
			c.Error(err)
			continue
		}
		want := c.wrote
		if bytes.Contains(state, []byte("disk1")) {
			want = crashLeft
		} else if stored {
			c.Errorf("stored, and still in the spool: %s", state)
		}
		left++
		if len(data) < want || len(data) > len(b) || !bytes.Equal(data, b[:len(data)]) {
			c.Errorf("%d bytes in the spool, not the first %d that were written: %s", len(data), want, state)
		}
	}
	want := 0
	if c.wrote > 0 {
		want++
		if !stored {
			want++
		}
	}
	if left < want {
		c.Errorf("%d files in the spool, want %d", left, want)
	}
}

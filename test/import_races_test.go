package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"imagefs/remote/remotetest"
)

// A writer holds a file open as cp does.
type writer struct {
	*os.File
	data []byte
	off  int
}

func openWriter(t testing.TB, path string, data []byte) (*writer, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { f.Close() })
	return &writer{f, data, 0}, nil
}

// write writes the next n bytes, all that is left if n is negative.
func (w *writer) write(t testing.TB, n int) {
	t.Helper()
	if n < 0 {
		n = len(w.data) - w.off
	}
	if _, err := w.WriteAt(w.data[w.off:w.off+n], int64(w.off)); err != nil {
		t.Fatal(err)
	}
	w.off += n
}

func wantBytes(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s holds other bytes: %d, want %d", path, len(got), len(want))
	}
}

func writeTemp(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestImportWhileWritten: a file that is being written is there for this mount
// and for no other, and can be read under its name.
func TestImportWhileWritten(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	inEachStore(t, func(t *testing.T, d *depot) {
		m, other := d.mount(t), d.mount(t, "--refresh", "20ms")
		data := remotetest.Bytes(1, 3*miB+77)
		if err := os.Mkdir(m.Path("images", "vm"), 0o755); err != nil {
			t.Fatal(err)
		}
		path := m.Path("images", "vm", "disk0.raw")
		w, err := openWriter(t, path, data)
		if err != nil {
			t.Fatal(err)
		}
		w.write(t, miB)
		wantBytes(t, path, data[:miB])
		w.write(t, 5)
		wantBytes(t, path, data[:miB+5])
		// Each program that is started here has the file open until it runs,
		// and closes it then: that must not pass for the end of the copy.
		if names := strings.Fields(output(t, "ls", m.Path("images", "vm"))); !slices.Equal(names, []string{"disk0.raw"}) {
			t.Errorf("the draft shows %v", names)
		}
		if s := m.status(t, "uploads"); !strings.Contains(s, `writing "vm/disk0.raw"`) {
			t.Errorf(".imagefs/uploads says %q", s)
		}
		// The other mount lists the store anew, and still sees nothing.
		if err := syscall.Kill(other.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if names := output(t, "ls", other.Path("images")); names != "" {
			t.Errorf("another mount shows %q", names)
		}
		w.write(t, -1)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, path, data)
		waitFor(t, "the other mount to see the image", func() bool {
			_, err := os.Stat(other.Path("images", "vm", "disk0.raw"))
			return err == nil
		})
		wantBytes(t, other.Path("images", "vm", "disk0.raw"), data)
	})
}

// TestImportNewVersion: who has a disk open reads on in it, every byte, when
// it is replaced by another; who opens it anew has the new one.
func TestImportNewVersion(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	inEachStore(t, func(t *testing.T, d *depot) {
		m, other := d.mount(t, "--cache-size", "16MiB"), d.mount(t, "--refresh", "20ms")
		before, after := remotetest.Bytes(1, 20*miB+1), remotetest.Bytes(2, 19*miB)
		path := m.Path("images", "vm", "disk0.raw")
		mustSh(t, `mkdir "$(dirname "$2")"; cp "$1" "$2"`, writeTemp(t, before), path)
		open := func(m *Mounted) *os.File {
			p := m.Path("images", "vm", "disk0.raw")
			waitFor(t, p, func() bool { _, err := os.Stat(p); return err == nil })
			f, err := os.Open(p)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}
		readers := []*os.File{open(m), open(other)}
		for _, f := range readers {
			if _, err := io.CopyN(io.Discard, f, miB); err != nil {
				t.Fatal(err)
			}
		}
		mustSh(t, `cp "$1" "$2"`, writeTemp(t, after), path)
		wantBytes(t, path, after)
		waitFor(t, "the new version in the other mount", func() bool {
			st, err := os.Stat(other.Path("images", "vm", "disk0.raw"))
			return err == nil && st.Size() == int64(len(after))
		})
		wantBytes(t, other.Path("images", "vm", "disk0.raw"), after)
		for _, f := range readers {
			if got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40)); err != nil || !bytes.Equal(got, before) {
				t.Errorf("%s: a reader of the old version gets %d bytes, %v", f.Name(), len(got), err)
			}
		}
	})
}

// TestImportSameName: of two programs in one mount, the second is refused while
// the first writes, and the disk is never a mixture.
func TestImportSameName(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	inEachStore(t, func(t *testing.T, d *depot) {
		m := d.mount(t)
		m.Expect("open failed|create failed|import failed")
		a, b := remotetest.Bytes(1, 6*miB), remotetest.Bytes(2, 5*miB+3)
		fileA, fileB := writeTemp(t, a), writeTemp(t, b)
		path := m.Path("images", "vm", "disk0.raw")
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		w, err := openWriter(t, path, a)
		if err != nil {
			t.Fatal(err)
		}
		w.write(t, 3*miB)
		if out, err := sh(t, `cp "$1" "$2"`, fileB, path); err == nil || !strings.Contains(out, people(syscall.EBUSY)) {
			t.Errorf("cp over what is being written: %v, %q", err, out)
		}
		w.write(t, -1)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		wantBytes(t, path, a)

		for round := range 6 {
			path := m.Path("images", fmt.Sprintf("race%d", round/2), "disk0.raw") // new, then replaced
			mustSh(t, `mkdir -p "$1"`, filepath.Dir(path))
			var wg sync.WaitGroup
			var won atomic.Int32
			for _, file := range []string{fileA, fileB} {
				wg.Go(func() {
					out, err := sh(t, `cp "$1" "$2"`, file, path)
					switch {
					case err == nil:
						won.Add(1)
					case !strings.Contains(out, people(syscall.EBUSY)) && !strings.Contains(out, "File exists"):
						t.Errorf("cp: %v, %s", err, out)
					}
				})
			}
			wg.Wait()
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, a) && !bytes.Equal(got, b) {
				t.Errorf("round %d: the disk is neither of the two: %d bytes, %v", round, len(got), err)
			}
			if won.Load() == 0 {
				t.Errorf("round %d: no copy succeeded", round)
			}
		}
	})
}

// TestImportTwoDaemons: of two daemons that import the same disk, one wins,
// and what the other has is kept beside it.
func TestImportTwoDaemons(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	inEachStore(t, func(t *testing.T, d *depot) {
		first, second := d.mount(t), d.mount(t)
		second.Expect("import failed")
		a, b := remotetest.Bytes(1, 3*miB), remotetest.Bytes(2, 2*miB+3)
		for _, version := range []string{"new", "replaced"} {
			var ws []*writer
			for i, m := range []*Mounted{first, second} {
				mustSh(t, `mkdir -p "$1"`, m.Path("images", "vm"))
				w, err := openWriter(t, m.Path("images", "vm", "disk0.raw"), [][]byte{a, b}[i])
				if err != nil {
					t.Fatal(err)
				}
				w.write(t, -1)
				ws = append(ws, w)
			}
			if err := ws[0].Close(); err != nil {
				t.Errorf("%s: the first: %v", version, err)
			}
			wantErrno(t, ws[1].Close(), syscall.EBUSY)
			wantBytes(t, first.Path("images", "vm", "disk0.raw"), a)
			refused := second.Path("images", "vm", "disk0.raw.refused")
			wantBytes(t, refused, b)
			waitFor(t, "the second to show who was first", func() bool {
				got, err := os.ReadFile(second.Path("images", "vm", "disk0.raw"))
				return err == nil && bytes.Equal(got, a)
			})
			if err := os.Remove(refused); err != nil {
				t.Error(err)
			}
			if keys := d.objects(t); version == "new" && len(keys) != 1 {
				t.Errorf("the store has %v", keys)
			}
			a, b = b, a
		}
	})
}

// TestImportRenameImage: while an image gets one name after another, it has one
// at every instant, and its disk can be read under it.
func TestImportRenameImage(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	inEachStore(t, func(t *testing.T, d *depot) {
		m := d.mount(t)
		data := remotetest.Bytes(1, 2*miB)
		const rounds = 5
		name := func(i int) string { return m.Path("images", "vm-"+fmt.Sprint(2020+i)) }
		mustSh(t, `mkdir "$2"; cp "$1" "$2/disk0.raw"`, writeTemp(t, data), name(0))
		held, err := os.Open(filepath.Join(name(0), "disk0.raw"))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		done := make(chan struct{})
		var wg sync.WaitGroup
		var looks atomic.Int64
		for range 3 {
			wg.Go(func() {
				buf := make([]byte, 4096)
				for at := 0; ; looks.Add(1) {
					select {
					case <-done:
						return
					default:
					}
					if f, err := os.Open(filepath.Join(name(at), "disk0.raw")); err == nil {
						_, err = f.ReadAt(buf, miB)
						f.Close()
						if err != nil || !bytes.Equal(buf, data[miB:miB+4096]) {
							t.Errorf("%s: %v", name(at), err)
							return
						}
					} else if !errors.Is(err, os.ErrNotExist) {
						t.Errorf("%s: %v", name(at), err)
						return
					} else if _, err := os.Stat(name(at)); err == nil {
						t.Errorf("%s is there, without its disk", name(at))
						return
					} else if _, err := os.Stat(name(at + 1)); err != nil {
						// The old name was gone before this look.
						if _, err2 := os.Stat(name(at + 2)); err2 != nil {
							t.Errorf("neither %s nor the next name is there: %v", name(at), err)
							return
						}
						at += 2
					} else {
						at++
					}
				}
			})
		}
		for i := range rounds {
			before := looks.Load()
			waitFor(t, "readers to look", func() bool { return looks.Load() > before+30 || t.Failed() })
			mustSh(t, `mv "$1" "$2"`, name(i), name(i+1))
		}
		close(done)
		wg.Wait()
		if names := strings.Fields(output(t, "ls", m.Path("images"))); !slices.Equal(names, []string{filepath.Base(name(rounds))}) {
			t.Errorf("there are %v", names)
		}
		if got, err := io.ReadAll(io.NewSectionReader(held, 0, 1<<40)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("who had the disk open reads %d bytes, %v", len(got), err)
		}
		held.Close()
		m.Stop(t)
		m = d.mount(t)
		wantBytes(t, filepath.Join(name(rounds), "disk0.raw"), data)
	})
}

// TestImportRsync copies a tree of images in, twice: the second run moves
// nothing, --delete removes nothing, and a changed disk is moved alone.
func TestImportRsync(t *testing.T) {
	needFUSE(t)
	tool(t, "rsync")
	t.Parallel()
	src := importSources(t)
	inEachStore(t, func(t *testing.T, d *depot) {
		m := d.mount(t)
		tree := t.TempDir()
		mustSh(t, `cd "$2"; mkdir one two; cp -p "$1/vm.qcow2" one/disk0.qcow2; cp -p "$1/vm.raw" one/disk1.raw
			cp -p "$1/vm.vhdx" two/disk0.vhdx; mkdir "$3/images/own"; cp "$1/vm.vdi" "$3/images/own/disk0.vdi"`, src, tree, m.Dir)
		sync := func(want int, flags ...string) {
			t.Helper()
			args := append(append([]string{"-a", "--stats", "--no-human-readable"}, flags...), tree+"/", m.Path("images")+"/")
			cmd := exec.CommandContext(t.Context(), tool(t, "rsync"), args...)
			out, err := cmd.CombinedOutput()
			if slices.Contains(flags, "--delete") {
				// 23: some was not done, 25: not all was deleted.
				if ee := (*exec.ExitError)(nil); errors.As(err, &ee) && (ee.ExitCode() == 23 || ee.ExitCode() == 25) {
					err = nil
				} else {
					t.Errorf("rsync --delete says nothing of what it could not remove: %v\n%s", err, out)
				}
			}
			if err != nil || !strings.Contains(string(out), fmt.Sprintf("Number of regular files transferred: %d\n", want)) {
				t.Errorf("rsync %v: %v, want %d files transferred\n%s", flags, err, want, out)
			}
		}
		all := []imported{
			{"one", 0, "qcow2", filepath.Join(tree, "one/disk0.qcow2"), false, true},
			{"one", 1, "raw", filepath.Join(tree, "one/disk1.raw"), false, true},
			{"two", 0, "vhdx", filepath.Join(tree, "two/disk0.vhdx"), false, true},
		}
		own := imported{"own", 0, "vdi", filepath.Join(src, "vm.vdi"), false, false}
		sync(3)
		sync(0)
		sync(0, "--checksum")
		for _, i := range append(all, own) {
			i.check(t, d, m)
		}
		before := output(t, "find", m.Path("images"))
		sync(0, "--delete")
		if after := output(t, "find", m.Path("images")); after != before {
			t.Errorf("rsync --delete left\n%s, before\n%s", after, before)
		}
		mustSh(t, `cp "$1/vm.vdi" "$1/x"; cp -f "$1/vm.vhdx" "$2/two/disk0.vhdx"; qemu-img resize -q -f raw "$2/one/disk1.raw" 6M`, src, tree)
		sync(2)
		sync(0)
		m.Stop(t)
		m = d.mount(t)
		sync(0)
		for _, i := range append(all, own) {
			i.check(t, d, m)
		}
	})
}

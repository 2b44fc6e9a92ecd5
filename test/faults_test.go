package test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagefs/remote/remotetest"
)

// fakeS3 is a server in this process whose faults can be switched on, with the
// environment and flags that make a daemon use it.
func fakeS3(t *testing.T) (s *remotetest.Server, env, flags []string, url string) {
	s = remotetest.NewServer(t)
	env = []string{"AWS_ACCESS_KEY_ID=" + s.Key, "AWS_SECRET_ACCESS_KEY=" + s.Secret, "AWS_REGION=us-east-1"}
	// Short for those that stay away, long for those that wait for a processor.
	flags = []string{"--endpoint", s.Endpoint, "--path-style", "path", "--timeout", "5s"}
	return s, env, flags, "s3://" + s.Bucket
}

// direct reads n bytes of a file at off past the kernel's cache.
func direct(path string, off int64, n int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, n)
	m, err := f.ReadAt(buf, off)
	if err == io.EOF {
		err = nil
	}
	return buf[:m], err
}

func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// TestMountFailuresSayWhich holds every failure to one line that names the
// cause, an exit code that is not 0, and nothing left mounted, in the
// background as in the foreground.
func TestMountFailuresSayWhich(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	type setup struct {
		store string
		env   []string
		flags []string
	}
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T) setup
		code  int
		says  string
	}{
		{"missing directory", func(t *testing.T) setup {
			return setup{store: filepath.Join(t.TempDir(), "nowhere")}
		}, 3, "nowhere"},
		{"missing bucket", func(t *testing.T) setup {
			_, env, flags, _ := fakeS3(t)
			return setup{"s3://no-such-bucket", env, flags}
		}, 3, "no such bucket"},
		{"wrong secret", func(t *testing.T) setup {
			_, env, flags, url := fakeS3(t)
			return setup{url, append(env, "AWS_SECRET_ACCESS_KEY=wrong"), flags}
		}, 3, "credentials"},
		{"unknown key", func(t *testing.T) setup {
			_, env, flags, url := fakeS3(t)
			return setup{url, append(env, "AWS_ACCESS_KEY_ID=nobody"), flags}
		}, 3, "credentials"},
		{"no permission", func(t *testing.T) setup {
			s, env, flags, url := fakeS3(t)
			s.Set(func(f *remotetest.Faults) { f.Refuse = "AccessDenied" })
			return setup{url, env, flags}
		}, 3, "permission"},
		{"unreachable endpoint", func(t *testing.T) setup {
			s, env, flags, url := fakeS3(t)
			s.Stop()
			return setup{url, env, flags}
		}, 3, "unavailable"},
		{"a scheme that is no store", func(*testing.T) setup {
			return setup{store: "ftp://x/y"}
		}, 2, "ftp"},
		{"unknown format", func(t *testing.T) setup {
			return setup{store: t.TempDir(), flags: []string{"--formats", "vmdk,floppy"}}
		}, 2, "floppy"},
		{"unknown mount option", func(t *testing.T) setup {
			return setup{store: t.TempDir(), flags: []string{"-o", "ro,colour=red"}}
		}, 2, "colour=red"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := tc.setup(t)
			for _, where := range [][]string{nil, {"-f"}} {
				mnt := t.TempDir()
				args := append(append([]string{"mount"}, where...), s.flags...)
				_, stderr, code := imagefsEnv(t, s.env, append(args, s.store, mnt)...)
				if code != tc.code {
					t.Errorf("%v: exit code %d, want %d: %s", where, code, tc.code, stderr)
				}
				first, rest, _ := strings.Cut(stderr, "\n")
				if !strings.HasPrefix(first, "imagefs: ") || !strings.Contains(first, tc.says) || tc.code == 3 && rest != "" {
					t.Errorf("%v: the message is not one line that says %q:\n%s", where, tc.says, stderr)
				}
				if isMountPoint(mnt) {
					t.Errorf("%v: %s is mounted", where, mnt)
					unmountLazily(mnt)
				}
			}
		})
	}
}

func TestMountPointMistakes(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	store := t.TempDir()
	if _, stderr, code := imagefs(t, "mount", store, filepath.Join(store, "absent")); code != 1 || !strings.Contains(stderr, "does not exist") {
		t.Errorf("absent mount point: %d %s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := imagefs(t, "mount", store, file); code != 1 || !strings.Contains(stderr, "not a folder") {
		t.Errorf("a file as mount point: %d %s", code, stderr)
	}
}

// TestReadsSurviveFaults reads a raw image from a server that misbehaves: the
// reader gets the right bytes or the right errno, and reading goes on once the
// server is well again.
func TestReadsSurviveFaults(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	const size = 24 << 20
	image := remotetest.Bytes(1, size)
	for _, tc := range []struct {
		name  string
		fault func(s *remotetest.Server)
		want  syscall.Errno // 0: the bytes come all the same
		mend  func(s *remotetest.Server)
	}{
		{"bodies cut short", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.Cut, f.CutAfter = 3, 100_000 })
		}, 0, nil},
		{"connections reset", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.Reset = 3 })
		}, 0, nil},
		{"503 SlowDown", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.Fail, f.FailStatus, f.FailCode = 3, 503, "SlowDown" })
		}, 0, nil},
		{"503 for longer than the limit", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.Fail, f.FailStatus, f.FailCode = 1<<30, 503, "SlowDown" })
		}, syscall.EIO, nil},
		{"a server that dies", (*remotetest.Server).Stop, syscall.EIO, (*remotetest.Server).Start},
		{"a flipped etag", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.FreshETags, f.IgnoreIfMatch = true, true })
		}, syscall.ESTALE, nil},
		{"credentials revoked", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.Refuse = "InvalidAccessKeyId" })
		}, syscall.EACCES, nil},
		{"permission taken away", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.Refuse = "AccessDenied" })
		}, syscall.EACCES, nil},
		{"ranges that are shifted", func(s *remotetest.Server) {
			s.Set(func(f *remotetest.Faults) { f.ShiftRange = true })
		}, syscall.EIO, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s, env, flags, url := fakeS3(t)
			s.Put("a.raw", image)
			m := MountEnv(t, env, url, flags...)
			m.Expect(`failed`)
			path := m.Path("images", "a", "disk0.raw")
			if got, err := direct(path, 0, 4096); err != nil || !bytes.Equal(got, image[:4096]) {
				t.Fatalf("before the fault: %v", err)
			}
			tc.fault(s)
			const at, n = 12 << 20, 1 << 20
			got, err := direct(path, at, n)
			if tc.want != 0 {
				wantErrno(t, err, tc.want)
			} else if err != nil {
				t.Errorf("got %v, want the bytes", err)
			}
			if len(got) > 0 && !bytes.Equal(got, image[at:at+len(got)]) {
				t.Fatal("wrong bytes")
			}
			if tc.mend != nil {
				tc.mend(s)
			}
			s.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
			got, err = direct(path, at, n)
			if err != nil || !bytes.Equal(got, image[at:at+n]) {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

// TestReplacedObject: an open file never mixes two versions, and the name shows
// the new one after a refresh.
func TestReplacedObject(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	s, env, flags, url := fakeS3(t)
	before, after := remotetest.Bytes(1, 8<<20), remotetest.Bytes(2, 8<<20)
	s.Put("a.raw", before)
	m := MountEnv(t, env, url, flags...)
	m.Expect("object changed")
	path := m.Path("images", "a", "disk0.raw")
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inode := ino(t, path)
	s.Put("a.raw", after)
	buf := make([]byte, 4096)
	for off := int64(0); off < int64(len(before)); off += 1 << 20 {
		if _, err := f.ReadAt(buf, off); err == nil && !bytes.Equal(buf, before[off:off+4096]) {
			t.Fatalf("at %d: bytes of another version", off)
		} else if err != nil && !errors.Is(err, syscall.ESTALE) {
			t.Errorf("at %d: %v, want ESTALE", off, err)
		}
	}
	if err := syscall.Kill(m.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new version", func() bool {
		got, err := direct(path, 0, 4096)
		return err == nil && bytes.Equal(got, after[:4096])
	})
	if ino(t, path) == inode {
		t.Error("a replaced image kept its inode number")
	}
}

func ino(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestRefreshFollowsTheStore: what appears, goes or breaks shows, and one
// broken image hides no other.
func TestRefreshFollowsTheStore(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	store := t.TempDir()
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(store, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("good.raw", bytes.Repeat([]byte("good"), 1024))
	write("goes.raw", []byte("goes"))
	write("bad.qcow2", []byte("QFI\xfb\x00\x00\x00\x03 and nothing behind"))
	m := Mount(t, store, "--refresh", "20ms")
	m.Expect("bad.qcow2")
	text, err := os.ReadFile(m.Path("images", "bad", "error"))
	if err != nil || !strings.Contains(string(text), "bad.qcow2") {
		t.Errorf("error file: %q %v", text, err)
	}
	if _, err := os.Stat(m.Path("images", "good", "error")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a good image has an error file: %v", err)
	}
	if _, err := os.Stat(m.Path("images", "bad", "disk0.vmdk")); !errors.Is(err, syscall.EIO) {
		t.Errorf("stat of a broken image's view: %v", err)
	}
	write("new-0.vhd", []byte("x"))
	if err := os.Remove(filepath.Join(store, "goes.raw")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new image", func() bool { _, err := os.Stat(m.Path("images", "new")); return err == nil })
	waitFor(t, "the removed image to go", func() bool { _, err := os.Stat(m.Path("images", "goes")); return err != nil })
	if b, err := os.ReadFile(m.Path("images", "good", "disk0.raw")); err != nil || len(b) != 4096 {
		t.Errorf("the good image: %d bytes, %v", len(b), err)
	}
}

// background mounts as a user does, and returns the daemon's process.
func background(t *testing.T, store, mnt string, flags ...string) (pid int) {
	t.Helper()
	args := append([]string{"mount"}, flags...)
	if _, stderr, code := imagefs(t, append(args, store, mnt)...); code != 0 || stderr != "" {
		t.Fatalf("mount: exit code %d: %s", code, stderr)
	}
	b, err := os.ReadFile(filepath.Join(mnt, ".imagefs", "config"))
	if err != nil {
		t.Fatalf("the command returned before the mount answers: %v", err)
	}
	_, rest, _ := strings.Cut(string(b), `"pid": `)
	if _, err := fmt.Sscan(rest, &pid); err != nil || pid <= 1 {
		t.Fatalf("no pid in %s", b)
	}
	return pid
}

// TestMountHelper: what mount(8) calls, with its arguments behind, and umount.
func TestMountHelper(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	store, mnt := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(store, "a.raw"), make([]byte, 512), 0o644); err != nil {
		t.Fatal(err)
	}
	helper := filepath.Join(t.TempDir(), "mount.imagefs")
	if err := os.Symlink(program(t, buildImagefs), helper); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountLazily(mnt) })
	output(t, helper, store, mnt, "-o", "ro,noauto,uid=12,gid=34,umask=0027,formats=vdi+raw,x-systemd.automount,cache_size=32M")
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(mnt, "images/a/disk0.vdi"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 12 || st.Gid != 34 || st.Mode&0o777 != 0o440 {
		t.Errorf("owner %d:%d mode %o", st.Uid, st.Gid, st.Mode&0o777)
	}
	if _, err := os.Stat(filepath.Join(mnt, "images/a/disk0.vmdk")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a format that was not chosen: %v", err)
	}
	output(t, "umount", mnt)
	waitFor(t, "the unmount", func() bool { return !isMountPoint(mnt) })
}

// TestEachByteIsFetchedOnce reads a disk larger than the cache from end to end,
// by one reader and then by four at a time, each another format.
func TestEachByteIsFetchedOnce(t *testing.T) {
	needFUSE(t)
	s, env, flags, url := fakeS3(t)
	image := remotetest.Bytes(3, 160<<20)
	s.Put("a.raw", image)
	m := MountEnv(t, env, url, append(flags, "--cache-size", "32M", "--timeout", "60s")...)
	s.Take()
	h := sha256.New()
	f, err := os.Open(m.Path("images", "a", "disk0.vdi"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(2<<20, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(image); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("the view does not hold the disk")
	}
	var sent int64
	for _, r := range s.Take() {
		if r.Method == "GET" && r.Key != "" {
			sent += r.Bytes
		}
	}
	// What opening reads for detection is a part of it, and not read again.
	if limit := int64(len(image)); sent > limit {
		t.Errorf("the server sent %d bytes for a disk of %d", sent, len(image))
	}
	if got := m.Stats(t)["store.read_bytes"]; got != sent {
		t.Errorf("stats say %d bytes read, the server sent %d", got, sent)
	}
}

// TestTenThousandImages: listing costs listings, not openings.
func TestTenThousandImages(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	s, env, flags, url := fakeS3(t)
	for i := range 10_000 {
		s.Put(fmt.Sprintf("image%05d.qcow2", i), []byte("x"))
	}
	flags = append(flags, "--timeout", "60s")
	m := MountEnv(t, env, url, append(flags, "--refresh", "0")...)
	if _, err := os.ReadDir(m.Path("images")); err != nil { // waits for the listing
		t.Fatal(err)
	}
	s.Take()
	for _, dir := range []string{"images", "by-id", "by-format/vmdk"} {
		es, err := os.ReadDir(m.Path(dir))
		if err != nil || len(es) != 10_000 {
			t.Errorf("%s: %d entries, %v", dir, len(es), err)
		}
	}
	if got := len(s.Take()); got != 0 {
		t.Errorf("listing the mount made %d requests", got)
	}
	out, stderr, code := imagefsEnv(t, env, append(append([]string{"ls"}, flags...), url)...)
	if code != 0 || strings.Count(out, "\n") != 10_001 {
		t.Errorf("ls: exit code %d, %d lines, %s", code, strings.Count(out, "\n"), stderr)
	}
	for _, r := range s.Take() {
		if r.Key != "" {
			t.Fatalf("ls opened %s", r.Key)
		}
	}
}

// TestStalledServerEndsInTime: the longest that a read waits is the limit it
// was given, with room for a loaded machine.
func TestStalledServerEndsInTime(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	s, env, flags, url := fakeS3(t)
	s.Put("a.raw", remotetest.Bytes(1, 8<<20))
	m := MountEnv(t, env, url, flags...)
	m.Expect("failed")
	s.Set(func(f *remotetest.Faults) { f.Stall, f.StallAfter = 1<<30, 1000 })
	done := make(chan error, 1)
	go func() {
		_, err := direct(m.Path("images", "a", "disk0.raw"), 4<<20, 4096)
		done <- err
	}()
	select {
	case err := <-done:
		wantErrno(t, err, syscall.EIO)
	case <-time.After(patience):
		t.Errorf("a read of a stalled server hangs for more than %v", patience)
	}
}

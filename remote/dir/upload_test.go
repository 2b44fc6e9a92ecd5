package dir_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"imagefs/remote/remotetest"
)

func part(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

func TestUploadKeepsZerosAHole(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	u, err := s.Upload(t.Context(), "sparse")
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 8<<20)
	copy(data[3<<20:], remotetest.Bytes(1, 10_000))
	if err := u.Part(t.Context(), 1, part(data)); err != nil {
		t.Fatal(err)
	}
	o, err := u.Complete(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, s, o); err != nil || !bytes.Equal(got, data) {
		t.Errorf("wrong bytes or error %v", err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(path, "sparse"), &st); err != nil {
		t.Fatal(err)
	}
	if space := st.Blocks * 512; space > 1<<20 {
		t.Errorf("8 MiB with 10,000 bytes of data take %d bytes of space", space)
	}
}

func TestUploadOfAnotherProcess(t *testing.T) {
	path := t.TempDir()
	theirs, ours := open(t, path), open(t, path)
	u, err := theirs.Upload(t.Context(), "disks/k")
	if err != nil {
		t.Fatal(err)
	}
	// However old it is, only AbortUploads removes it.
	files, err := filepath.Glob(filepath.Join(path, "disks", ".imagefs-upload-*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("got files %q, error %v; want one", files, err)
	}
	old := time.Now().Add(-1000 * time.Hour)
	if err := os.Chtimes(files[0], old, old); err != nil {
		t.Fatal(err)
	}
	put(t, ours, "disks/other", []byte("x"))
	for p, err := range ours.Uploads(t.Context(), "disks/") {
		if err != nil || p.Key != "disks/k" || !p.Started.Equal(old) {
			t.Errorf("got upload %+v, error %v; want disks/k of %v", p, err, old)
		}
	}
	if err := u.Part(t.Context(), 1, part([]byte("text"))); err != nil {
		t.Errorf("part: %v", err)
	}
	if err := ours.AbortUploads(t.Context(), "disks/k"); err != nil {
		t.Fatal(err)
	}
	if err := u.Part(t.Context(), 1, part([]byte("text"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("part after abort: got error %v, want ErrNotExist", err)
	}
	if err := u.Abort(t.Context()); err != nil {
		t.Errorf("abort: %v", err)
	}
	put(t, ours, "disks/k", []byte("x")) // nothing is in the way
	if _, err := ours.Stat(t.Context(), "disks/k"); err != nil {
		t.Error(err)
	}
}

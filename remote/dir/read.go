package dir

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"imagefs/remote"
)

// maxOpen bounds the files kept open for reading. A daemon may hold a
// thousand descriptors by default; a mount rarely reads more disks at once.
const maxOpen = 128

// version names one version of one object.
type version struct{ key, etag string }

// file is an open version. It is closed by whoever takes the last reference
// away after it left Store.files.
type file struct {
	*os.File
	fd    int
	size  int64
	mtime unix.Timespec

	// Guarded by Store.mu.
	refs    int
	used    uint64
	dropped bool
}

// ReadRange reads from the version o. If that is not open yet, it has to be
// the current one.
func (s *Store) ReadRange(ctx context.Context, o remote.Object, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read %q: %w", o.Key, err)
	}
	if off < 0 || off > o.Size-int64(len(p)) {
		return fmt.Errorf("read %q: %d bytes at %d of %d: %w", o.Key, len(p), off, o.Size, io.ErrUnexpectedEOF)
	}
	f, err := s.acquire(version{o.Key, o.ETag})
	if err != nil {
		return fmt.Errorf("read %q: %w", o.Key, err)
	}
	err = f.read(p, off)
	s.release(f)
	if err != nil {
		return fmt.Errorf("read %q: %d bytes at %d: %w", o.Key, len(p), off, err)
	}
	return nil
}

// read fills p, then looks whether the bytes are still those of the version.
func (f *file) read(p []byte, off int64) error {
	_, err := f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return reason(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if st.Size != f.size || st.Mtim != f.mtime {
		return fmt.Errorf("modified in place: %w", remote.ErrChanged)
	}
	if err != nil {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// acquire returns the open file of v with a reference to be released.
func (s *Store) acquire(v version) (*file, error) {
	s.mu.Lock()
	if f := s.files[v]; f != nil {
		s.use(f)
		s.mu.Unlock()
		return f, nil
	}
	s.mu.Unlock()

	f, err := s.open(v)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		f.Close()
		return nil, fs.ErrClosed
	}
	spare := f
	if won := s.files[v]; won != nil { // another reader opened it meanwhile
		f = won
	} else {
		spare = s.evict()
		s.files[v] = f
	}
	s.use(f)
	s.mu.Unlock()
	if spare != nil {
		spare.Close()
	}
	return f, nil
}

// use notes a use of f and takes a reference. The caller holds s.mu.
func (s *Store) use(f *file) {
	s.clock++
	f.used = s.clock
	f.refs++
}

func (s *Store) release(f *file) {
	s.mu.Lock()
	f.refs--
	last := f.dropped && f.refs == 0
	s.mu.Unlock()
	if last {
		f.Close()
	}
}

// evict makes room for one file. It returns the one that left if the caller
// has to close it. The caller holds s.mu.
func (s *Store) evict() *file {
	if len(s.files) < maxOpen {
		return nil
	}
	var oldest *file
	var at version
	for v, f := range s.files {
		if oldest == nil || f.used < oldest.used {
			oldest, at = f, v
		}
	}
	if s.drop(at, oldest) {
		return oldest
	}
	return nil
}

// drop takes f out of the set and reports whether nobody reads from it, so
// that the caller closes it. The caller holds s.mu.
func (s *Store) drop(v version, f *file) bool {
	delete(s.files, v)
	f.dropped = true
	return f.refs == 0
}

// open opens the current version of v.key, which has to be v.
func (s *Store) open(v version) (*file, error) {
	if err := remote.CheckKey(v.key); err != nil {
		return nil, err
	}
	// Without O_NONBLOCK a named pipe would wait here for a writer.
	f, err := s.root.OpenFile(v.key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, reason(err)
	}
	of, err := admit(f, v)
	if err != nil {
		f.Close()
		return nil, err
	}
	return of, nil
}

// admit makes a file of f, if f is a regular file and the version v.
func admit(f *os.File, v version) (*file, error) {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fs.ErrNotExist
	}
	if etag(st.Size, st.Mtim.Nano(), st.Ino) != v.etag {
		return nil, remote.ErrChanged
	}
	return &file{File: f, fd: fd, size: st.Size, mtime: st.Mtim}, nil
}

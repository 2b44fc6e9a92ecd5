package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imagefs/remote"
)

const (
	lockName   = reserved + "lock"
	tempPrefix = reserved + "put-"

	// copyStep is how much is copied between two looks at the context.
	copyStep = 4 << 20
	// staleAge is how long a temporary file lies unmodified before it is
	// taken for one of a killed process.
	staleAge = 24 * time.Hour
)

// Put stores size bytes of r under key. See the package documentation for
// the steps; an error before the last one leaves nothing behind but, where
// they were missing, the key's folders.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if err := check(ctx, key); err != nil {
		return remote.Object{}, fmt.Errorf("put: %w", err)
	}
	if size < 0 || c.Absent && c.ETag != "" {
		return remote.Object{}, fmt.Errorf("put %q: %d bytes with condition %+v is not possible", key, size, c)
	}
	o, err := s.put(ctx, key, r, size, c)
	if err != nil {
		return remote.Object{}, fmt.Errorf("put %q: %w", key, err)
	}
	return o, nil
}

func (s *Store) put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	// Look before writing: the condition is cheap to refuse now. What
	// decides is the step that makes the object visible.
	if err := s.meets(key, c); err != nil {
		return remote.Object{}, err
	}
	dir := path.Dir(key)
	if err := s.mkdir(dir); err != nil {
		return remote.Object{}, err
	}
	s.sweep(dir)
	temp := path.Join(dir, tempPrefix+rand.Text())
	fi, err := s.write(ctx, temp, r, size)
	if err == nil {
		err = s.publish(ctx, temp, key, c)
	}
	if err != nil {
		if rerr := s.root.Remove(temp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove temporary file: %w", rerr))
		}
		return remote.Object{}, err
	}
	return object(key, fi), s.sync(dir)
}

// meets reports why the current state of key does not meet c.
func (s *Store) meets(key string, c remote.Cond) error {
	if c == (remote.Cond{}) {
		return nil
	}
	if c.Absent {
		if _, err := s.root.Lstat(key); err == nil {
			return fs.ErrExist
		}
		return nil // what is wrong, if anything, the link will say
	}
	o, err := s.stat(key)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it is gone", remote.ErrChanged)
	}
	if err == nil && o.ETag != c.ETag {
		return remote.ErrChanged
	}
	return err
}

// write writes and syncs the file temp and describes it.
func (s *Store) write(ctx context.Context, temp string, r io.Reader, size int64) (fs.FileInfo, error) {
	f, err := s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := io.CopyN(f, r, min(left, copyStep))
		left -= n
		if err == io.EOF {
			return nil, fmt.Errorf("%d of %d bytes: %w", size-left, size, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return nil, reason(err)
		}
	}
	fi, err := s.seal(f, temp)
	if err != nil {
		return nil, reason(err)
	}
	if err := f.Close(); err != nil {
		return nil, reason(err)
	}
	return fi, ctx.Err()
}

// seal gives the file temp, open as f, the time that makes it a version, syncs
// and describes it.
func (s *Store) seal(f *os.File, temp string) (fs.FileInfo, error) {
	now := s.now()
	if err := s.root.Chtimes(temp, now, now); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return f.Stat()
}

// now returns a time later than any it returned before. The kernel stamps
// files in steps of some milliseconds, in which an inode number can be used
// twice.
func (s *Store) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !now.After(s.last) {
		now = s.last.Add(1)
	}
	s.last = now
	return now
}

// publish makes temp visible as key, in one step.
func (s *Store) publish(ctx context.Context, temp, key string, c remote.Cond) error {
	if c.Absent {
		if err := s.root.Link(temp, key); err != nil {
			return reason(err)
		}
		// The object is there; a second name of it is only untidy.
		_ = s.root.Remove(temp)
		return nil
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.meets(key, c); err != nil {
		return err
	}
	return reason(s.root.Rename(temp, key))
}

// lock waits for the right to replace or remove objects.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case s.replace <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f, err := s.flock(ctx)
	if err != nil {
		<-s.replace
		return nil, fmt.Errorf("lock file %q: %w", lockName, err)
	}
	return func() {
		f.Close()
		<-s.replace
	}, nil
}

// flock holds the lock until the file it returns is closed. It polls, since a
// blocked flock(2) cannot be cancelled; others hold it for two system calls.
func (s *Store) flock(ctx context.Context) (*os.File, error) {
	f, err := s.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, reason(err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		}
	}
}

// mkdir makes the folder dir and those above it, durably.
func (s *Store) mkdir(dir string) error {
	if _, err := s.root.Stat(dir); err == nil {
		return nil
	}
	if err := s.root.MkdirAll(dir, 0o755); err != nil {
		if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("folder %q: %w", dir, syscall.ENOTDIR)
		}
		return reason(err)
	}
	for dir != "." {
		dir = path.Dir(dir)
		if err := s.sync(dir); err != nil {
			return err
		}
	}
	return nil
}

// sync makes the entries of the folder dir durable.
func (s *Store) sync(dir string) error {
	f, err := s.root.Open(dir)
	if err != nil {
		return reason(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync folder %q: %w", dir, reason(err))
	}
	return nil
}

// sweep removes what killed processes left in the folder dir, the first time
// it is asked to. It is a courtesy: errors are left for the next time.
func (s *Store) sweep(dir string) {
	s.mu.Lock()
	done := s.swept[dir]
	s.swept[dir] = true
	s.mu.Unlock()
	if done {
		return
	}
	f, err := s.root.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		if !strings.HasPrefix(name, tempPrefix) {
			continue
		}
		name = path.Join(dir, name)
		if fi, err := s.root.Lstat(name); err == nil && time.Since(fi.ModTime()) > staleAge {
			_ = s.root.Remove(name)
		}
	}
}

package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"imagefs/remote"
)

var _ remote.Store = (*Store)(nil)

// reserved starts the names of the store's own files: hidden, and refused as
// the last segment of a key.
const reserved = ".imagefs-"

// Store is a directory seen as an object store. All methods may be called
// concurrently.
type Store struct {
	root *os.Root

	// replace admits one replacing step of this process at a time; the
	// lock file does the same between processes.
	replace chan struct{}

	mu     sync.Mutex // guards the fields below, never held during I/O
	files  map[version]*file
	clock  uint64          // counts uses of files, for eviction
	swept  map[string]bool // folders cleared of stale temporary files
	last   time.Time       // newest modification time given out
	closed bool
}

// Open opens the directory at name as a store. A missing directory is
// remote.ErrNoBucket.
func Open(name string) (*Store, error) {
	root, err := os.OpenRoot(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open store directory %q: %w", name, remote.ErrNoBucket)
	case errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("open store directory %q: not a directory", name)
	case err != nil:
		return nil, fmt.Errorf("open store directory %q: %w", name, reason(err))
	}
	return &Store{
		root:    root,
		replace: make(chan struct{}, 1),
		files:   make(map[version]*file),
		swept:   make(map[string]bool),
	}, nil
}

// Local reports that reading from the store is reading this machine's page
// cache, so that a cache of blocks in front of it gains nothing.
func (s *Store) Local() bool { return true }

// Close closes every file the store holds open. Reads under way finish; later
// calls fail with fs.ErrClosed. Calling it again does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	var idle []*file
	for v, f := range s.files {
		if s.drop(v, f) {
			idle = append(idle, f)
		}
	}
	s.mu.Unlock()
	for _, f := range idle {
		f.Close()
	}
	return s.root.Close()
}

// Stat describes the regular file at key; fs.ErrNotExist for anything else.
func (s *Store) Stat(ctx context.Context, key string) (remote.Object, error) {
	if err := check(ctx, key); err != nil {
		return remote.Object{}, fmt.Errorf("stat: %w", err)
	}
	o, err := s.stat(key)
	if err != nil {
		return remote.Object{}, fmt.Errorf("stat %q: %w", key, err)
	}
	return o, nil
}

func (s *Store) stat(key string) (remote.Object, error) {
	fi, err := s.root.Stat(key)
	if err != nil {
		return remote.Object{}, reason(err)
	}
	if !fi.Mode().IsRegular() {
		return remote.Object{}, fs.ErrNotExist
	}
	return object(key, fi), nil
}

// List yields the regular files whose keys begin with prefix and have no "/"
// after it, in byte order. A folder that does not exist is empty.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	return func(yield func(remote.Object, error) bool) {
		folder, stem := path.Split(prefix)
		names, err := s.names(ctx, folder, stem)
		if err != nil {
			yield(remote.Object{}, fmt.Errorf("list %q: %w", prefix, err))
			return
		}
		for _, name := range names {
			key := folder + name
			err := ctx.Err()
			if err != nil {
				yield(remote.Object{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			// What cannot be described is no object: a link out of the
			// directory, or a file removed since its name was read.
			o, err := s.stat(key)
			if err == nil && !yield(o, nil) {
				return
			}
		}
	}
}

// names returns, in byte order, the names in folder that begin with stem and
// may belong to objects.
func (s *Store) names(ctx context.Context, folder, stem string) ([]string, error) {
	if err := remote.CheckPrefix(folder + stem); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := s.root.OpenFile(path.Clean(folder), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		var names []string
		for err == nil {
			var entries []fs.DirEntry
			entries, err = f.ReadDir(1024)
			names = append(names, objectNames(folder, stem, entries)...)
		}
		if err == io.EOF {
			slices.Sort(names)
			return names, nil
		}
	}
	if err = reason(err); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}

func objectNames(folder, stem string, entries []fs.DirEntry) []string {
	var names []string
	for _, e := range entries {
		name := e.Name()
		// Some file systems do not tell types while listing; stat decides.
		file := e.Type().IsRegular() || e.Type()&(fs.ModeSymlink|fs.ModeIrregular) != 0
		if file && name[0] != '.' && strings.HasPrefix(name, stem) && remote.CheckKey(folder+name) == nil {
			names = append(names, name)
		}
	}
	return names
}

// Delete removes key. A version of it that is open stays readable.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if err := s.delete(ctx, key); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}

func (s *Store) delete(ctx context.Context, key string) error {
	fi, err := s.root.Lstat(key)
	if err == nil && fi.IsDir() {
		return nil // a folder is no object
	}
	if err != nil {
		if err = reason(err); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	err = s.root.Remove(key)
	unlock()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return reason(err)
	}
	return s.sync(path.Dir(key))
}

// check refuses keys that no object may have and calls that are cancelled.
func check(ctx context.Context, key string) error {
	if err := remote.CheckKey(key); err != nil {
		return err
	}
	if strings.HasPrefix(path.Base(key), reserved) {
		return fmt.Errorf("key %q: names that begin with %q are the store's own", key, reserved)
	}
	return ctx.Err()
}

func object(key string, fi fs.FileInfo) remote.Object {
	var ino uint64
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		ino = st.Ino
	}
	return remote.Object{
		Key:     key,
		ETag:    etag(fi.Size(), fi.ModTime().UnixNano(), ino),
		Size:    fi.Size(),
		ModTime: fi.ModTime(),
	}
}

// etag names a version: size in bytes, modification time in nanoseconds since
// 1970 and inode number, in hexadecimal.
func etag(size, mtime int64, ino uint64) string {
	b := make([]byte, 0, 48)
	b = strconv.AppendInt(b, size, 16)
	b = append(b, '-')
	b = strconv.AppendInt(b, mtime, 16)
	b = append(b, '-')
	b = strconv.AppendUint(b, ino, 16)
	return string(b)
}

// reason strips the call and path that the os package adds, which the caller
// says in its own words. A path through a regular file leads nowhere.
func reason(err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		err = pe.Err
	case errors.As(err, &le):
		err = le.Err
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return fs.ErrNotExist
	}
	return err
}

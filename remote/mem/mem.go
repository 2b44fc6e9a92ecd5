// Package mem is an object store in memory, for tests. It keeps the current
// version of each key and forgets it on replacement, as a bucket without
// versions does, so that a pinned read of an old version is
// remote.ErrChanged.
package mem

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"imagefs/remote"
)

var _ remote.Store = (*Store)(nil)

// Store holds objects in memory. All methods may be called concurrently.
type Store struct {
	mu      sync.RWMutex // guards the fields below
	objects map[string]object
	puts    uint64 // numbers versions
	uploads map[*upload]bool
	begun   uint64 // numbers uploads
}

// object is one version; its data is never written again.
type object struct {
	remote.Object
	data []byte
}

// New returns an empty store.
func New() *Store {
	return &Store{objects: make(map[string]object), uploads: make(map[*upload]bool)}
}

// Stat describes the current version of key.
func (s *Store) Stat(ctx context.Context, key string) (remote.Object, error) {
	if err := check(ctx, key); err != nil {
		return remote.Object{}, fmt.Errorf("stat: %w", err)
	}
	o, ok := s.get(key)
	if !ok {
		return remote.Object{}, fmt.Errorf("stat %q: %w", key, fs.ErrNotExist)
	}
	return o.Object, nil
}

// ReadRange copies from the version o while it is the current one.
func (s *Store) ReadRange(ctx context.Context, o remote.Object, p []byte, off int64) error {
	if err := check(ctx, o.Key); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if off < 0 || off > o.Size-int64(len(p)) {
		return fmt.Errorf("read %q: %d bytes at %d of %d: %w", o.Key, len(p), off, o.Size, io.ErrUnexpectedEOF)
	}
	cur, ok := s.get(o.Key)
	switch {
	case !ok:
		return fmt.Errorf("read %q: %w", o.Key, fs.ErrNotExist)
	case cur.ETag != o.ETag || cur.Size != o.Size:
		return fmt.Errorf("read %q: %w", o.Key, remote.ErrChanged)
	}
	copy(p, cur.data[off:])
	return nil
}

// Put stores size bytes of r under key.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if err := check(ctx, key); err != nil {
		return remote.Object{}, fmt.Errorf("put: %w", err)
	}
	if size < 0 || c.Absent && c.ETag != "" {
		return remote.Object{}, fmt.Errorf("put %q: %d bytes with condition %+v is not possible", key, size, c)
	}
	data := make([]byte, size)
	if n, err := io.ReadFull(r, data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return remote.Object{}, fmt.Errorf("put %q: %d of %d bytes: %w", key, n, size, err)
	}
	if err := ctx.Err(); err != nil {
		return remote.Object{}, fmt.Errorf("put %q: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	cur, ok := s.objects[key]
	switch {
	case c.Absent && ok:
		return remote.Object{}, fmt.Errorf("put %q: %w", key, fs.ErrExist)
	case c.ETag != "" && cur.ETag != c.ETag:
		return remote.Object{}, fmt.Errorf("put %q: %w", key, remote.ErrChanged)
	}
	return s.set(key, data), nil
}

// set makes data the current version of key. The caller holds s.mu.
func (s *Store) set(key string, data []byte) remote.Object {
	s.puts++
	o := remote.Object{Key: key, ETag: strconv.FormatUint(s.puts, 16), Size: int64(len(data)), ModTime: time.Now()}
	s.objects[key] = object{o, data}
	return o
}

// List yields the objects whose keys begin with prefix and have no "/" after it.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	return func(yield func(remote.Object, error) bool) {
		err := ctx.Err()
		if err == nil {
			err = remote.CheckPrefix(prefix)
		}
		if err != nil {
			yield(remote.Object{}, fmt.Errorf("list %q: %w", prefix, err))
			return
		}
		for _, o := range s.in(prefix) {
			if err := ctx.Err(); err != nil {
				yield(remote.Object{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (s *Store) in(prefix string) []remote.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var objects []remote.Object
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		name, ok := strings.CutPrefix(key, prefix)
		if ok && !strings.Contains(name, "/") {
			objects = append(objects, s.objects[key].Object)
		}
	}
	return objects
}

// Delete removes key.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, key)
	return nil
}

func (s *Store) get(key string) (object, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.objects[key]
	return o, ok
}

func check(ctx context.Context, key string) error {
	if err := remote.CheckKey(key); err != nil {
		return err
	}
	return ctx.Err()
}

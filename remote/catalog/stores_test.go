package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync"
	"testing"
	"time"

	"imagefs/remote"
)

// inStore reports whether there is an object that is no mark.
func inStore(t *testing.T, s remote.Store, key string) bool {
	t.Helper()
	o, err := s.Stat(t.Context(), key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil && o.Size > 0
}

// plain is a store that cannot write conditionally.
type plain struct{ remote.Store }

func (s *plain) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if c != (remote.Cond{}) {
		return remote.Object{}, fmt.Errorf("put %q: %w", key, remote.ErrUnsupported)
	}
	return s.Store.Put(ctx, key, r, size, c)
}

// aged is a store that says of some objects that they are of another time.
type aged struct {
	remote.Store
	times map[string]time.Time
}

func (s *aged) age(o remote.Object) remote.Object {
	if t, ok := s.times[o.Key]; ok {
		o.ModTime = t
	}
	return o
}

func (s *aged) Stat(ctx context.Context, key string) (remote.Object, error) {
	o, err := s.Store.Stat(ctx, key)
	return s.age(o), err
}

func (s *aged) List(ctx context.Context, folder string) iter.Seq2[remote.Object, error] {
	return func(yield func(remote.Object, error) bool) {
		for o, err := range s.Store.List(ctx, folder) {
			if !yield(s.age(o), err) {
				return
			}
		}
	}
}

// dying is a store as a process sees it that is killed after some more
// operations.
type dying struct {
	remote.Store
	mu   sync.Mutex // guards left
	left int        // operations; -1 for no end
}

var errKilled = errors.New("killed")

func (s *dying) step() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return errKilled
	}
	if s.left > 0 {
		s.left--
	}
	return nil
}

func (s *dying) Stat(ctx context.Context, key string) (remote.Object, error) {
	if err := s.step(); err != nil {
		return remote.Object{}, err
	}
	return s.Store.Stat(ctx, key)
}

func (s *dying) ReadRange(ctx context.Context, o remote.Object, p []byte, off int64) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.Store.ReadRange(ctx, o, p, off)
}

func (s *dying) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if err := s.step(); err != nil {
		return remote.Object{}, err
	}
	return s.Store.Put(ctx, key, r, size, c)
}

func (s *dying) Delete(ctx context.Context, key string) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.Store.Delete(ctx, key)
}

func (s *dying) List(ctx context.Context, folder string) iter.Seq2[remote.Object, error] {
	if err := s.step(); err != nil {
		return func(yield func(remote.Object, error) bool) { yield(remote.Object{}, err) }
	}
	return s.Store.List(ctx, folder)
}

// hook is a store that calls before each Put.
type hook struct {
	remote.Store
	put func(key string)
}

func (s *hook) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if s.put != nil {
		s.put(key)
	}
	return s.Store.Put(ctx, key, r, size, c)
}

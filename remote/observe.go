package remote

import (
	"context"
	"io"
	"iter"
	"sync/atomic"
)

// IsLocal reports whether s, or the store it wraps, keeps its bytes on this
// machine, where the kernel's page cache serves reads: a store says so with a
// method Local() bool.
func IsLocal(s Store) bool {
	for s != nil {
		if l, ok := s.(interface{ Local() bool }); ok {
			return l.Local()
		}
		u, ok := s.(interface{ Unwrap() Store })
		if !ok {
			return false
		}
		s = u.Unwrap()
	}
	return false
}

// Counts is what was asked of a store since it was opened.
type Counts struct {
	Stats  uint64 `json:"stats"`
	Lists  uint64 `json:"lists"`
	Reads  uint64 `json:"reads"`
	Bytes  uint64 `json:"read_bytes"` // asked for by reads that succeeded
	Puts   uint64 `json:"puts"`
	Errors uint64 `json:"errors"` // calls that failed
}

// Observed is a store that counts.
type Observed struct {
	Store
	stats, lists, reads, bytes, puts, errors atomic.Uint64
}

// Observe wraps s so that what is asked of it is counted.
func Observe(s Store) *Observed { return &Observed{Store: s} }

// Unwrap returns the store inside.
func (s *Observed) Unwrap() Store { return s.Store }

// Counts returns the counters.
func (s *Observed) Counts() Counts {
	return Counts{
		Stats: s.stats.Load(), Lists: s.lists.Load(), Reads: s.reads.Load(),
		Bytes: s.bytes.Load(), Puts: s.puts.Load(), Errors: s.errors.Load(),
	}
}

func (s *Observed) count(n *atomic.Uint64, err error) {
	n.Add(1)
	if err != nil {
		s.errors.Add(1)
	}
}

// Stat implements [Store].
func (s *Observed) Stat(ctx context.Context, key string) (Object, error) {
	o, err := s.Store.Stat(ctx, key)
	s.count(&s.stats, err)
	return o, err
}

// ReadRange implements [Store].
func (s *Observed) ReadRange(ctx context.Context, o Object, p []byte, off int64) error {
	err := s.Store.ReadRange(ctx, o, p, off)
	s.count(&s.reads, err)
	if err == nil {
		s.bytes.Add(uint64(len(p)))
	}
	return err
}

// Put implements [Store].
func (s *Observed) Put(ctx context.Context, key string, r io.Reader, size int64, c Cond) (Object, error) {
	o, err := s.Store.Put(ctx, key, r, size, c)
	s.count(&s.puts, err)
	return o, err
}

// List implements [Store].
func (s *Observed) List(ctx context.Context, folder string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		s.lists.Add(1)
		for o, err := range s.Store.List(ctx, folder) {
			if err != nil {
				s.errors.Add(1)
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

package remote

import (
	"context"
	"fmt"
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
	Stats uint64 `json:"stats"`
	Lists uint64 `json:"lists"`
	Reads uint64 `json:"reads"`
	Bytes uint64 `json:"read_bytes"` // asked for by reads that succeeded
	Puts  uint64 `json:"puts"`

	Uploads  uint64 `json:"uploads"` // begun
	Parts    uint64 `json:"parts"`
	Uploaded uint64 `json:"uploaded_bytes"` // of parts that were stored

	Errors uint64 `json:"errors"` // calls that failed
}

// Observed is a store that counts.
type Observed struct {
	Store
	stats, lists, reads, bytes, puts, errors atomic.Uint64
	uploads, parts, uploaded                 atomic.Uint64
}

var _ Uploader = (*Observed)(nil)

// Observe wraps s so that what is asked of it is counted.
func Observe(s Store) *Observed { return &Observed{Store: s} }

// Unwrap returns the store inside.
func (s *Observed) Unwrap() Store { return s.Store }

// Counts returns the counters.
func (s *Observed) Counts() Counts {
	return Counts{
		Stats: s.stats.Load(), Lists: s.lists.Load(), Reads: s.reads.Load(),
		Bytes: s.bytes.Load(), Puts: s.puts.Load(), Errors: s.errors.Load(),
		Uploads: s.uploads.Load(), Parts: s.parts.Load(), Uploaded: s.uploaded.Load(),
	}
}

func (s *Observed) count(n *atomic.Uint64, err error) {
	n.Add(1)
	s.failed(err)
}

func (s *Observed) failed(err error) {
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
func (s *Observed) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		s.lists.Add(1)
		for o, err := range s.Store.List(ctx, prefix) {
			s.failed(err)
			if !yield(o, err) {
				return
			}
		}
	}
}

// uploader returns the store inside as an Uploader, or ErrUnsupported.
func (s *Observed) uploader() (Uploader, error) {
	u, ok := s.Store.(Uploader)
	if !ok {
		return nil, fmt.Errorf("uploads in parts: %w", ErrUnsupported)
	}
	return u, nil
}

// Upload implements [Uploader]. It is ErrUnsupported if the store inside does
// not take parts.
func (s *Observed) Upload(ctx context.Context, key string) (Upload, error) {
	inner, err := s.uploader()
	if err != nil {
		return nil, err
	}
	u, err := inner.Upload(ctx, key)
	s.count(&s.uploads, err)
	if err != nil {
		return nil, err
	}
	return &observedUpload{Upload: u, s: s}, nil
}

// AbortUploads implements [Uploader].
func (s *Observed) AbortUploads(ctx context.Context, key string) error {
	inner, err := s.uploader()
	if err != nil {
		return err
	}
	err = inner.AbortUploads(ctx, key)
	s.failed(err)
	return err
}

// Uploads implements [Uploader].
func (s *Observed) Uploads(ctx context.Context, prefix string) iter.Seq2[PendingUpload, error] {
	return func(yield func(PendingUpload, error) bool) {
		inner, err := s.uploader()
		if err != nil {
			yield(PendingUpload{}, err)
			return
		}
		s.lists.Add(1)
		for u, err := range inner.Uploads(ctx, prefix) {
			s.failed(err)
			if !yield(u, err) {
				return
			}
		}
	}
}

// observedUpload is an upload that counts.
type observedUpload struct {
	Upload
	s *Observed
}

// Part implements [Upload].
func (u *observedUpload) Part(ctx context.Context, number int, r *io.SectionReader) error {
	err := u.Upload.Part(ctx, number, r)
	u.s.count(&u.s.parts, err)
	if err == nil {
		u.s.uploaded.Add(uint64(r.Size()))
	}
	return err
}

// Complete implements [Upload].
func (u *observedUpload) Complete(ctx context.Context) (Object, error) {
	o, err := u.Upload.Complete(ctx)
	u.s.failed(err)
	return o, err
}

// Abort implements [Upload].
func (u *observedUpload) Abort(ctx context.Context) error {
	err := u.Upload.Abort(ctx)
	u.s.failed(err)
	return err
}

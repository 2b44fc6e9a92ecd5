package mem

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"imagefs/remote"
)

var _ remote.Uploader = (*Store)(nil)

// upload is an upload under way. Its maps are guarded by Store.mu.
type upload struct {
	s       *Store
	pending remote.PendingUpload
	parts   map[int][]byte // what they hold is never written again
	sizes   map[int]int64
	done    *remote.Object // nil until completed
}

// Upload begins an upload, whose parts are held in memory.
func (s *Store) Upload(ctx context.Context, key string) (remote.Upload, error) {
	if err := check(ctx, key); err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	u := &upload{
		s:       s,
		pending: remote.PendingUpload{Key: key, ID: strconv.FormatUint(s.begun, 16), Started: time.Now()},
		parts:   make(map[int][]byte),
		sizes:   make(map[int]int64),
	}
	s.uploads[u] = true
	return u, nil
}

// AbortUploads ends the uploads of key.
func (s *Store) AbortUploads(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("abort uploads: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for u := range s.uploads {
		if u.pending.Key == key {
			delete(s.uploads, u)
		}
	}
	return nil
}

// Uploads yields the unfinished uploads of keys that begin with prefix.
func (s *Store) Uploads(ctx context.Context, prefix string) iter.Seq2[remote.PendingUpload, error] {
	return func(yield func(remote.PendingUpload, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(remote.PendingUpload{}, fmt.Errorf("list uploads of %q: %w", prefix, err))
			return
		}
		for _, u := range s.pending(prefix) {
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (s *Store) pending(prefix string) []remote.PendingUpload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var pending []remote.PendingUpload
	for u := range s.uploads {
		if strings.HasPrefix(u.pending.Key, prefix) {
			pending = append(pending, u.pending)
		}
	}
	slices.SortFunc(pending, func(a, b remote.PendingUpload) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.ID, b.ID))
	})
	return pending
}

// Part stores a part.
func (u *upload) Part(ctx context.Context, number int, r *io.SectionReader) error {
	if err := remote.CheckPart(number, r.Size()); err != nil {
		return fmt.Errorf("upload %q: %w", u.pending.Key, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("upload %q: part %d: %w", u.pending.Key, number, err)
	}
	data := make([]byte, r.Size())
	if n, err := r.ReadAt(data, 0); n < len(data) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("upload %q: part %d: %d of %d bytes: %w", u.pending.Key, number, n, len(data), err)
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if !u.s.uploads[u] {
		return fmt.Errorf("upload %q: part %d: %w", u.pending.Key, number, fs.ErrNotExist)
	}
	u.parts[number], u.sizes[number] = data, int64(len(data))
	return nil
}

// Complete makes the object.
func (u *upload) Complete(ctx context.Context) (remote.Object, error) {
	o, err := u.complete(ctx)
	if err != nil {
		return remote.Object{}, fmt.Errorf("complete upload %q: %w", u.pending.Key, err)
	}
	return o, nil
}

func (u *upload) complete(ctx context.Context) (remote.Object, error) {
	if err := ctx.Err(); err != nil {
		return remote.Object{}, err
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	switch {
	case u.done != nil:
		return *u.done, nil
	case !u.s.uploads[u]:
		return remote.Object{}, fs.ErrNotExist
	}
	total, err := remote.CheckParts(u.sizes)
	if err != nil {
		return remote.Object{}, err
	}
	if _, ok := u.s.objects[u.pending.Key]; ok {
		return remote.Object{}, fs.ErrExist
	}
	data := bytes.NewBuffer(make([]byte, 0, total))
	for n := 1; n <= len(u.parts); n++ {
		data.Write(u.parts[n])
	}
	o := u.s.set(u.pending.Key, data.Bytes())
	delete(u.s.uploads, u)
	u.parts, u.done = nil, &o
	return o, nil
}

// Abort forgets the parts.
func (u *upload) Abort(context.Context) error {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	delete(u.s.uploads, u)
	u.parts = nil
	return nil
}

package s3

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/minio/minio-go/v7"

	"imagefs/remote"
)

var _ remote.Uploader = (*Store)(nil)

// upload is an upload for a caller who cuts the parts.
type upload struct {
	m *multipart

	mu    sync.Mutex     // guards the fields below, held while completing
	ended bool           // the server has no parts any more
	done  *remote.Object // nil until completed
}

// Upload begins a multipart upload.
func (s *Store) Upload(ctx context.Context, key string) (remote.Upload, error) {
	if err := remote.CheckKey(key); err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	p := &put{s: s, key: key, mark: rand.Text(), alone: true}
	m, err := p.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("upload %q: %w", key, err)
	}
	return &upload{m: m}, nil
}

// Part stores a part.
func (u *upload) Part(ctx context.Context, number int, r *io.SectionReader) error {
	err := remote.CheckPart(number, r.Size())
	if err == nil {
		err = u.m.part(ctx, number, io.NewSectionReader(r, 0, r.Size()), r.Size())
	}
	if err != nil {
		return fmt.Errorf("upload %q: part %d: %w", u.m.p.key, number, err)
	}
	return nil
}

// Complete has the server put the parts together. That the key is free is
// looked at before: servers tend to ignore conditions here.
func (u *upload) Complete(ctx context.Context) (remote.Object, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.done == nil {
		o, err := u.complete(ctx)
		if err != nil {
			return remote.Object{}, fmt.Errorf("complete upload %q: %w", u.m.p.key, err)
		}
		u.done = &o
	}
	return *u.done, nil
}

func (u *upload) complete(ctx context.Context) (remote.Object, error) {
	p := u.m.p
	var err error
	if p.size, err = remote.CheckParts(u.m.sizes()); err != nil {
		return remote.Object{}, err
	}
	info, err := p.s.head(ctx, p.key)
	switch {
	case err == nil && !u.m.ours(info):
		return remote.Object{}, fs.ErrExist
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return remote.Object{}, err
	case p.size == 0:
		return u.empty(ctx)
	}
	return u.m.complete(ctx)
}

// empty stores an object of no bytes, which no part can make up.
func (u *upload) empty(ctx context.Context) (remote.Object, error) {
	p := u.m.p
	if !u.ended {
		if err := p.s.abort(ctx, p.key, u.m.id); err != nil {
			return remote.Object{}, err
		}
		u.ended = true
	}
	etag, err := p.single(ctx, new(bytes.Reader))
	if err != nil {
		return remote.Object{}, err
	}
	return p.stored(ctx, etag)
}

// Abort ends the upload.
func (u *upload) Abort(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.done != nil || u.ended {
		return nil
	}
	if err := u.m.p.s.abort(ctx, u.m.p.key, u.m.id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("abort upload %q: %w", u.m.p.key, err)
	}
	return nil
}

// sizes returns the sizes of the parts by their numbers.
func (m *multipart) sizes() map[int]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	sizes := make(map[int]int64, len(m.parts))
	for n, p := range m.parts {
		sizes[n] = p.size
	}
	return sizes
}

// abort ends an upload; fs.ErrNotExist if there is none.
func (s *Store) abort(ctx context.Context, key, id string) error {
	return s.do(ctx, func(ctx context.Context, t *try) error {
		err := s.client.AbortMultipartUpload(ctx, s.bucket, s.prefix+key, id)
		if code(err) == "NoSuchUpload" && t.attempts > 1 {
			return nil // the answer of an attempt before was lost
		}
		return err
	})
}

// errListed says that a listing does not keep up.
var errListed = errors.New("the server lists unfinished uploads that were ended")

// AbortUploads ends the uploads that the server lists for key, and looks again:
// parts that were on their way can outlive the first time.
func (s *Store) AbortUploads(ctx context.Context, key string) error {
	if err := remote.CheckKey(key); err != nil {
		return fmt.Errorf("abort uploads: %w", err)
	}
	err := s.do(ctx, func(ctx context.Context, t *try) error {
		if n, err := s.abortListed(ctx, t, key, ""); err != nil || n == 0 {
			return err
		}
		n, err := s.abortListed(ctx, t, key, "")
		if err == nil && n > 0 {
			err = errListed
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("abort uploads of %q: %w", key, err)
	}
	return nil
}

// abortListed ends the uploads of key but for the one with the id keep, and
// returns how many were listed.
func (s *Store) abortListed(ctx context.Context, t *try, key, keep string) (listed int, err error) {
	l := &uploadListing{s: s, prefix: key}
	for !l.done {
		page, err := l.next(ctx)
		if err != nil {
			return listed, err
		}
		for _, u := range page {
			if u.Key != key || u.ID == keep {
				continue
			}
			listed++
			t.alive()
			err := s.client.AbortMultipartUpload(ctx, s.bucket, s.prefix+key, u.ID)
			if err != nil && code(err) != "NoSuchUpload" {
				return listed, err
			}
		}
		t.alive()
	}
	return listed, nil
}

// Uploads yields the unfinished uploads that the server lists. Some servers
// (MinIO) list none unless prefix is the whole of a key. The whole listing is
// fetched before the first is yielded.
func (s *Store) Uploads(ctx context.Context, prefix string) iter.Seq2[remote.PendingUpload, error] {
	return func(yield func(remote.PendingUpload, error) bool) {
		uploads, err := s.pending(ctx, prefix)
		if err != nil {
			yield(remote.PendingUpload{}, fmt.Errorf("list uploads of %q: %w", prefix, err))
			return
		}
		for _, u := range uploads {
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (s *Store) pending(ctx context.Context, prefix string) ([]remote.PendingUpload, error) {
	var uploads []remote.PendingUpload
	l := &uploadListing{s: s, prefix: prefix}
	for !l.done {
		err := s.do(ctx, func(ctx context.Context, _ *try) error {
			page, err := l.next(ctx)
			uploads = append(uploads, page...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(uploads, func(a, b remote.PendingUpload) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.ID, b.ID))
	})
	return uploads, nil
}

// uploadListing is a listing of uploads under way.
type uploadListing struct {
	s      *Store
	prefix string // of keys of the store
	at     minio.ListMultipartUploadsResult
	done   bool
}

// next asks for the next page. After an error the same page can be asked for
// again. Keys that remote.CheckKey refuses are left out.
func (l *uploadListing) next(ctx context.Context) ([]remote.PendingUpload, error) {
	const wanted = "the server does not list unfinished uploads"
	s := l.s
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	page, err := s.client.ListMultipartUploads(ctx, s.bucket, s.prefix+l.prefix, l.at.NextKeyMarker, l.at.NextUploadIDMarker, "", 1000)
	switch {
	case err != nil && judge(err).err == remote.ErrUnsupported:
		return nil, final{fmt.Errorf("%s: %w: %w", wanted, remote.ErrUnsupported, plain(err))}
	case err != nil:
		return nil, err
	case page.Bucket == "": // a listing of something else
		return nil, final{fmt.Errorf("%s: %w", wanted, remote.ErrUnsupported)}
	case page.IsTruncated && cmp.Or(
		cmp.Compare(page.NextKeyMarker, l.at.NextKeyMarker),
		cmp.Compare(page.NextUploadIDMarker, l.at.NextUploadIDMarker)) == 0:
		return nil, final{fmt.Errorf("%s: a page ends where it began, at %q", wanted, page.NextKeyMarker)}
	}
	l.at, l.done = page, !page.IsTruncated
	var uploads []remote.PendingUpload
	for _, u := range page.Uploads {
		key, ok := strings.CutPrefix(u.Key, s.prefix)
		if ok && remote.CheckKey(key) == nil {
			uploads = append(uploads, remote.PendingUpload{Key: key, ID: u.UploadID, Started: u.Initiated})
		}
	}
	return uploads, nil
}

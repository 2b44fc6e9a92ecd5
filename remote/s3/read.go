package s3

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/minio/minio-go/v7"

	"imagefs/remote"
)

// ReadRange reads from the version o.
func (s *Store) ReadRange(ctx context.Context, o remote.Object, p []byte, off int64) error {
	if err := remote.CheckKey(o.Key); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if off < 0 || off > o.Size-int64(len(p)) {
		return fmt.Errorf("read %q: %d bytes at %d of %d: %w", o.Key, len(p), off, o.Size, io.ErrUnexpectedEOF)
	}
	if len(p) == 0 {
		return ctx.Err()
	}
	got := 0
	err := s.do(ctx, func(ctx context.Context, t *try) error {
		n, err := s.fetch(ctx, t, o, p[got:], off+int64(got))
		got += n
		s.stats.bytes.Add(uint64(n))
		return err
	})
	if err != nil {
		return fmt.Errorf("read %q: %d bytes at %d: %w", o.Key, len(p), off, err)
	}
	return nil
}

// fetch makes one request and returns how much of p it filled.
func (s *Store) fetch(ctx context.Context, t *try, o remote.Object, p []byte, off int64) (int, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, final{err}
	}
	if err := opts.SetMatchETag(o.ETag); err != nil {
		return 0, final{err}
	}
	body, info, header, err := s.client.GetObject(ctx, s.bucket, s.prefix+o.Key, opts)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	if info.ETag != o.ETag {
		return 0, final{fmt.Errorf("%w: the server sent version %q", remote.ErrChanged, info.ETag)}
	}
	if err := checkRange(header, o, off, len(p)); err != nil {
		return 0, final{err}
	}
	t.alive()
	got, mark := 0, 0
	for got < len(p) {
		n, err := body.Read(p[got:])
		got += n
		switch {
		case got == len(p) || got-mark >= progress:
			mark = got
			t.progressed()
		case n > 0:
			t.alive()
		}
		if err != nil && got < len(p) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return got, fmt.Errorf("body ends after %d of %d bytes: %w", got, len(p), err)
		}
	}
	return got, nil
}

// checkRange compares what the server says it sends with what was asked for.
func checkRange(h http.Header, o remote.Object, off int64, n int) error {
	cr := h.Get("Content-Range")
	if cr == "" {
		// A server that knows no ranges sends everything.
		if off == 0 && int64(n) == o.Size && h.Get("Content-Length") == fmt.Sprint(n) {
			return nil
		}
		return fmt.Errorf("%w: the server ignores ranges", remote.ErrUnsupported)
	}
	var from, to, size int64
	if _, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &from, &to, &size); err != nil {
		return fmt.Errorf("%w: content range %q", remote.ErrUnavailable, cr)
	}
	if size != o.Size {
		return fmt.Errorf("%w: its size is %d, not %d", remote.ErrChanged, size, o.Size)
	}
	if from != off || to != off+int64(n)-1 {
		return fmt.Errorf("%w: the server sent content range %q", remote.ErrUnavailable, cr)
	}
	return nil
}

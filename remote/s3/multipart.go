package s3

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

const (
	minPart       = 16 << 20
	maxParts      = 10_000 // the protocol's limit
	parallelParts = 4

	abortTimeout = 10 * time.Second
)

// partSize returns the size of all parts but the last, which is least if that
// makes not too many of them.
func partSize(size, least int64) int64 {
	const unit = 1 << 20
	need := (size + maxParts - 1) / maxParts
	return max(least, (need+unit-1)/unit*unit)
}

// multipart stores the object in parts. An upload that fails is aborted, as
// far as the server can be reached.
func (p *put) multipart(ctx context.Context, r io.Reader) (etag string, err error) {
	s := p.s
	opts := p.options()
	var id string
	err = s.do(ctx, func(ctx context.Context, _ *try) error {
		var err error
		id, err = s.client.NewMultipartUpload(ctx, s.bucket, s.prefix+p.key, opts)
		return err
	})
	if err != nil {
		return "", err
	}
	parts, err := p.parts(ctx, id, r)
	if err == nil {
		etag, err = p.complete(ctx, id, parts, opts)
	}
	if err != nil {
		// The caller may be gone, the parts are still paid for.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		_ = s.client.AbortMultipartUpload(ctx, s.bucket, s.prefix+p.key, id)
		return "", err
	}
	return etag, nil
}

// parts uploads r, some parts at a time, and returns them in order. The first
// error ends it.
func (p *put) parts(ctx context.Context, id string, r io.Reader) ([]minio.CompletePart, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := partReader(r)
	size := partSize(p.size, p.s.minPart)
	parts := make([]minio.CompletePart, (p.size+size-1)/size)
	room := make(chan struct{}, parallelParts)
	var wg sync.WaitGroup
	for i := range parts {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		n := min(size, p.size-int64(i)*size)
		rd, err := next(n)
		if err != nil {
			cancel(err)
			break
		}
		wg.Go(func() {
			defer func() { <-room }()
			etag, err := p.part(ctx, id, i+1, rd, n)
			if err != nil {
				cancel(err)
			}
			parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: etag}
		})
	}
	wg.Wait()
	return parts, context.Cause(ctx)
}

// partReader returns a function that returns the next n bytes of r. They are
// read into memory if r cannot be read at offsets.
func partReader(r io.Reader) func(n int64) (io.Reader, error) {
	at, okAt := r.(io.ReaderAt)
	seek, okSeek := r.(io.Seeker)
	if okAt && okSeek {
		if off, err := seek.Seek(0, io.SeekCurrent); err == nil {
			return func(n int64) (io.Reader, error) {
				sr := io.NewSectionReader(at, off, n)
				off += n
				return sr, nil
			}
		}
	}
	return func(n int64) (io.Reader, error) {
		b, err := readPart(r, n)
		return bytes.NewReader(b), err
	}
}

func (p *put) part(ctx context.Context, id string, number int, r io.Reader, n int64) (etag string, err error) {
	body, err := newBody(r, n)
	if err != nil {
		return "", err
	}
	s := p.s
	err = s.do(ctx, func(ctx context.Context, t *try) error {
		rd, err := body.start(t, &s.stats)
		if err != nil {
			return err
		}
		defer rd.stop()
		part, err := s.client.PutObjectPart(ctx, s.bucket, s.prefix+p.key, id, number, rd, n,
			minio.PutObjectPartOptions{DisableContentSha256: true})
		if broken := rd.broken(); err != nil && broken != nil {
			return broken
		}
		etag = part.ETag
		return err
	})
	return etag, err
}

func (p *put) complete(ctx context.Context, id string, parts []minio.CompletePart, opts minio.PutObjectOptions) (etag string, err error) {
	s := p.s
	err = s.do(ctx, func(ctx context.Context, t *try) error {
		t.patient() // servers put the parts together now
		info, err := s.client.CompleteMultipartUpload(ctx, s.bucket, s.prefix+p.key, id, slices.Clone(parts), opts)
		if err == nil {
			etag = info.ETag
			return nil
		}
		// An attempt whose answer was lost has ended the upload.
		if t.attempts > 1 && (code(err) == "NoSuchUpload" || code(err) == "NoSuchKey") {
			info, serr := s.client.StatObject(ctx, s.bucket, s.prefix+p.key, minio.StatObjectOptions{})
			if serr == nil && p.marked(info) {
				etag = info.ETag
				return nil
			}
		}
		return err
	})
	return etag, err
}

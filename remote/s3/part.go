package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
)

// mostOthers is how often a part is sent that arrives as something else.
const mostOthers = 3

// sender sends one part until the server has confirmed its MD5: by an ETag
// that is the MD5 or, where ETags are something else, as those of encrypted
// parts, by having checked the Content-MD5 it was sent.
type sender struct {
	m      *multipart
	number int
	body   *body

	sum    *[md5.Size]byte // nil until read for Content-MD5
	others int             // attempts that were not confirmed
}

// send makes one attempt.
func (p *sender) send(ctx context.Context, t *try) (part, error) {
	s := p.m.p.s
	digest := false
	if p.others > 0 || s.opaque.Load() {
		var err error
		if digest, err = p.checked(ctx, t); err != nil {
			return part{}, err
		}
	}
	opts := minio.PutObjectPartOptions{DisableContentSha256: true}
	if digest {
		if err := p.read(t); err != nil {
			return part{}, err
		}
		opts.Md5Base64 = base64.StdEncoding.EncodeToString(p.sum[:])
	}
	got, err := p.try(ctx, t, opts)
	switch {
	case code(err) == "BadDigest":
		return part{}, p.other(err)
	case err != nil || got.plain():
		return got, err
	case digest && got.md5 == *p.sum:
		s.opaque.Store(true) // from now on, at the first attempt
		return got, nil
	}
	return part{}, p.other(fmt.Errorf("etag %q, md5 %x", got.etag, got.md5))
}

// try sends the part and reads its MD5 on the way.
func (p *sender) try(ctx context.Context, t *try, opts minio.PutObjectPartOptions) (part, error) {
	s := p.m.p.s
	rd, err := p.body.start(t, &s.stats)
	if err != nil {
		return part{}, err
	}
	rd.hash = md5.New()
	defer rd.stop()
	t.alive()
	info, err := s.client.PutObjectPart(ctx, s.bucket, s.prefix+p.m.p.key, p.m.id, p.number, rd, p.body.size, opts)
	if broken := rd.broken(); err != nil && broken != nil {
		return part{}, broken
	}
	return part{size: p.body.size, etag: info.ETag, md5: rd.sum()}, err
}

// other counts an attempt whose bytes were not confirmed.
func (p *sender) other(why error) error {
	err := fmt.Errorf("%w: %w", errOther, plain(why))
	if p.others++; p.others == mostOthers {
		return final{err}
	}
	return err
}

// read reads the body for its MD5.
func (p *sender) read(t *try) error {
	if p.sum != nil {
		return nil
	}
	rd, err := p.body.start(t, new(counters))
	if err != nil {
		return err
	}
	rd.hash = md5.New()
	defer rd.stop()
	if _, err := io.Copy(io.Discard, rd); err != nil {
		return final{err}
	}
	sum := rd.sum()
	p.sum = &sum
	return nil
}

// checking is what is known of a server's care for Content-MD5.
type checking struct{ atomic.Int32 }

const (
	unknown int32 = iota
	checks
	ignores
)

// checked reports whether the server refuses a part that does not match its
// Content-MD5. To find out, it is sent one, which the part to come replaces.
func (p *sender) checked(ctx context.Context, t *try) (bool, error) {
	s := p.m.p.s
	if known := s.digests.Load(); known != unknown {
		return known == checks, nil
	}
	sum := md5.Sum([]byte("other"))
	_, err := s.client.PutObjectPart(ctx, s.bucket, s.prefix+p.m.p.key, p.m.id, p.number, strings.NewReader("probe"), 5,
		minio.PutObjectPartOptions{DisableContentSha256: true, Md5Base64: base64.StdEncoding.EncodeToString(sum[:])})
	switch {
	case err == nil:
		s.digests.Store(ignores)
	case status(err) == http.StatusBadRequest && (code(err) == "BadDigest" || code(err) == "InvalidDigest"):
		s.digests.Store(checks)
	default:
		return false, err
	}
	t.alive()
	return s.digests.Load() == checks, nil
}

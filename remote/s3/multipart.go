package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"imagefs/remote"
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
func (p *put) multipart(ctx context.Context, r io.Reader) (remote.Object, error) {
	m, err := p.begin(ctx)
	if err != nil {
		return remote.Object{}, err
	}
	err = m.send(ctx, r)
	var o remote.Object
	if err == nil {
		o, err = m.complete(ctx)
	}
	if err != nil {
		// The caller may be gone, the parts are still paid for.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		_ = p.s.client.AbortMultipartUpload(ctx, p.s.bucket, p.s.prefix+p.key, m.id)
		return remote.Object{}, err
	}
	return o, nil
}

// multipart is a multipart upload that was begun.
type multipart struct {
	p      *put
	id     string
	summed bool // the server was asked to take a CRC-32C of every part

	mu    sync.Mutex // guards parts
	parts map[int]part
}

// part is a part that was stored.
type part struct {
	size int64
	etag string
	md5  string // in hexadecimal, "" if the CRC-32C told enough
	crc  string // as headers have it, "" if the server did not confirm it
}

// plain reports whether the part's ETag is its MD5.
func (p part) plain() bool { return p.md5 != "" && strings.EqualFold(p.etag, p.md5) }

// begin asks for a CRC-32C of every part, unless the server is known not to
// compare it, or refuses to be asked. An upload whose beginning was not answered
// is ended where the key is nobody else's.
func (p *put) begin(ctx context.Context) (*multipart, error) {
	m := &multipart{p: p, parts: make(map[int]part)}
	s := p.s
	lost := false
	err := s.do(ctx, func(ctx context.Context, t *try) error {
		opts := p.options()
		m.summed = s.sums.Load() != ignores
		if m.summed {
			opts.UserMetadata[sumAlgorithm] = algorithmName
		}
		var err error
		m.id, err = s.client.NewMultipartUpload(ctx, s.bucket, s.prefix+p.key, opts)
		if !m.summed || !unknownSum(err) {
			lost = lost || err != nil && (status(err) == 0 || status(err) >= 500)
			return err
		}
		t.alive()
		m.summed = false
		if m.id, err = s.client.NewMultipartUpload(ctx, s.bucket, s.prefix+p.key, p.options()); err == nil {
			s.sums.Store(ignores)
		}
		return err
	})
	if err == nil && lost && p.alone {
		// What remains in spite of this is for the collector of garbage.
		_ = s.do(ctx, func(ctx context.Context, t *try) error {
			_, err := s.abortListed(ctx, t, p.key, m.id)
			return err
		})
	}
	return m, err
}

// send stores all of r, some parts at a time. The first error ends it.
func (m *multipart) send(ctx context.Context, r io.Reader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := partReader(r)
	size := partSize(m.p.size, m.p.s.minPart)
	room := make(chan struct{}, parallelParts)
	var wg sync.WaitGroup
	for off := int64(0); off < m.p.size; off += size {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		n := min(size, m.p.size-off)
		rd, err := next(n)
		if err != nil {
			cancel(err)
			break
		}
		wg.Go(func() {
			defer func() { <-room }()
			number := int(off/size) + 1
			if err := m.part(ctx, number, rd, n); err != nil {
				cancel(fmt.Errorf("part %d: %w", number, err))
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
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

// part stores n bytes of r as a part.
func (m *multipart) part(ctx context.Context, number int, r io.Reader, n int64) error {
	body, err := newBody(r, n)
	if err != nil {
		return err
	}
	s := &sender{m: m, number: number, body: body}
	var stored part
	err = m.p.s.do(ctx, func(ctx context.Context, t *try) error {
		var err error
		stored, err = s.send(ctx, t)
		return err
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parts[number] = stored
	return nil
}

// complete puts the parts together and looks at what came of it. That an
// attempt before had done it is no error, whatever the server says now.
func (m *multipart) complete(ctx context.Context) (remote.Object, error) {
	s := m.p.s
	parts := m.completed()
	etag, crc := "", ""
	err := s.do(ctx, func(ctx context.Context, t *try) error {
		t.patient() // servers put the parts together now
		info, err := s.client.CompleteMultipartUpload(ctx, s.bucket, s.prefix+m.p.key, m.id, slices.Clone(parts), m.p.options())
		etag, crc = info.ETag, info.ChecksumCRC32C
		return err
	})
	if err != nil && ctx.Err() == nil {
		if info, herr := s.headWithin(ctx, min(s.budget, probeBudget), m.p.key); herr == nil && m.ours(info) {
			etag, err = info.ETag, nil
		}
	}
	if err != nil {
		return remote.Object{}, err
	}
	o, err := m.p.stored(ctx, etag)
	if err != nil {
		return remote.Object{}, err
	}
	if err := m.compare(o.ETag, crc); err != nil {
		return remote.Object{}, err
	}
	return o, nil
}

// compare compares what the server says of the whole, where that has the usual
// form, with what it said of the parts.
func (m *multipart) compare(etag, crc string) error {
	n := len(m.completed())
	if want := m.crc(); want != "" && strings.HasSuffix(crc, fmt.Sprintf("-%d", n)) {
		if crc != want {
			return fmt.Errorf("%w: crc-32c %q, want %q", errOther, crc, want)
		}
		return nil // even if ETags are made in a way of the server's own
	}
	if want := m.etag(); want != "" && composite(etag, n) && !strings.EqualFold(etag, want) {
		return fmt.Errorf("%w: etag %q, want %q", errOther, etag, want)
	}
	return nil
}

// completed returns the parts in order.
func (m *multipart) completed() []minio.CompletePart {
	m.mu.Lock()
	defer m.mu.Unlock()
	var parts []minio.CompletePart
	for _, n := range slices.Sorted(maps.Keys(m.parts)) {
		parts = append(parts, minio.CompletePart{PartNumber: n, ETag: m.parts[n].etag, ChecksumCRC32C: m.parts[n].crc})
	}
	return parts
}

// ours reports whether an object is what this upload made.
func (m *multipart) ours(info minio.ObjectInfo) bool {
	want := m.etag()
	return m.p.marked(info) || want != "" && strings.EqualFold(info.ETag, want)
}

// etag returns the ETag that the whole has at most servers: the MD5 of the
// parts' MD5s, and their number. It is "" where the parts have other ETags,
// which are made in ways of the server's own.
func (m *multipart) etag() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	sums := md5.New()
	for _, n := range slices.Sorted(maps.Keys(m.parts)) {
		p := m.parts[n]
		sum, err := hex.DecodeString(p.etag)
		if err != nil || len(sum) != md5.Size || p.crc == "" && !p.plain() {
			return ""
		}
		sums.Write(sum)
	}
	return fmt.Sprintf("%x-%d", sums.Sum(nil), len(m.parts))
}

// crc returns the composite CRC-32C of the whole: the CRC of the parts' CRCs,
// and their number. It is "" if that of a part was not confirmed.
func (m *multipart) crc() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	sums := crc32.New(castagnoli)
	for _, n := range slices.Sorted(maps.Keys(m.parts)) {
		sum, err := base64.StdEncoding.DecodeString(m.parts[n].crc)
		if err != nil || len(sum) != crc32.Size {
			return ""
		}
		sums.Write(sum)
	}
	return fmt.Sprintf("%s-%d", encodeCRC(sums.Sum32()), len(m.parts))
}

// composite reports whether an ETag has the form of multipart.etag.
func composite(etag string, parts int) bool {
	sum, n, _ := strings.Cut(etag, "-")
	_, err := hex.DecodeString(sum)
	return err == nil && len(sum) == 2*md5.Size && n == fmt.Sprint(parts)
}

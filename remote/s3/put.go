package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"imagefs/remote"
)

const (
	maxSingle = 64 << 20 // above it, unconditional puts go in parts
	maxPut    = 5 << 30  // the protocol's limit for one request

	// markName is the user metadata that tells one put from another.
	markName = "Imagefs-Put"
)

// Put stores size bytes of r under key.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if err := remote.CheckKey(key); err != nil {
		return remote.Object{}, fmt.Errorf("put: %w", err)
	}
	if size < 0 || c.Absent && c.ETag != "" {
		return remote.Object{}, fmt.Errorf("put %q: %d bytes with condition %+v is not possible", key, size, c)
	}
	o, err := s.put(ctx, key, r, size, c)
	if err != nil {
		return remote.Object{}, fmt.Errorf("put %q: %w", key, err)
	}
	return o, nil
}

func (s *Store) put(ctx context.Context, key string, r io.Reader, size int64, c remote.Cond) (remote.Object, error) {
	if err := ctx.Err(); err != nil {
		return remote.Object{}, err
	}
	p := &put{s: s, key: key, size: size, cond: c, mark: rand.Text()}
	switch {
	case c == (remote.Cond{}) && size > s.maxSingle:
		return p.multipart(ctx, r)
	case size > maxPut:
		return remote.Object{}, fmt.Errorf("%w: a conditional put of more than %d bytes", remote.ErrUnsupported, int64(maxPut))
	}
	etag, err := p.single(ctx, r)
	if err != nil {
		return remote.Object{}, err
	}
	return p.stored(ctx, etag)
}

// stored looks at what was stored, which was answered by etag.
func (p *put) stored(ctx context.Context, etag string) (remote.Object, error) {
	info, err := p.s.head(ctx, p.key)
	ours := err == nil && (info.ETag == etag || p.marked(info))
	switch {
	case err != nil && (p.alone || !errors.Is(err, fs.ErrNotExist)):
		return remote.Object{}, fmt.Errorf("look at what was stored: %w", err)
	case !ours && p.alone:
		return remote.Object{}, fmt.Errorf("look at what was stored: %w: etag %q, want %q", remote.ErrChanged, info.ETag, etag)
	case !ours:
		// Another writer came after, but what this one wrote was there.
		return remote.Object{Key: p.key, ETag: etag, Size: p.size, ModTime: time.Now().Truncate(time.Second)}, nil
	case info.Size != p.size:
		return remote.Object{}, fmt.Errorf("the server stored %d bytes of %d", info.Size, p.size)
	}
	return object(p.key, info), nil
}

// put is one Put or upload under way.
type put struct {
	s    *Store
	key  string
	size int64
	cond remote.Cond
	mark string

	alone bool // nobody else writes to the key

	unsure bool // an earlier attempt may have been carried out
	bare   bool // to be tried with a bare If-Match

	crc      string // of the body, "" until read or if it is sent without
	unsummed bool   // to be tried without a CRC-32C
	others   others
}

func (p *put) options() minio.PutObjectOptions {
	opts := minio.PutObjectOptions{
		// Signed chunks are refused by some servers, and stored as part
		// of the object by others.
		DisableContentSha256: true,
		UserMetadata:         map[string]string{markName: p.mark},
	}
	if strings.HasSuffix(p.key, ".json") {
		opts.ContentType = "application/json"
	}
	if p.cond.Absent {
		opts.SetMatchETagExcept("*")
	}
	if p.cond.ETag != "" {
		opts.SetMatchETag(p.cond.ETag)
	}
	return opts
}

// single stores the object in one request. Its CRC-32C goes with it, for
// servers that compare it, if the source can be read twice.
func (p *put) single(ctx context.Context, r io.Reader) (etag string, err error) {
	body, err := newBody(r, p.size)
	if err != nil {
		return "", err
	}
	err = p.s.do(ctx, func(ctx context.Context, t *try) error {
		if p.bare || p.s.bare.Load() {
			ctx = withBareMatch(ctx)
		}
		if err := p.sum(t, body); err != nil {
			return err
		}
		etag, err = p.send(ctx, t, body)
		return err
	})
	return etag, err
}

// sum reads the body for its CRC-32C, where it is of use.
func (p *put) sum(t *try, b *body) (err error) {
	switch {
	case b.again == nil || p.size == 0 || p.unsummed || p.s.sums.Load() == ignores:
		p.crc = ""
	case p.crc == "":
		p.crc, err = b.crc(t)
	}
	return err
}

// send makes one attempt.
func (p *put) send(ctx context.Context, t *try, b *body) (etag string, err error) {
	rd, err := b.start(t, &p.s.stats)
	if err != nil {
		return "", err
	}
	defer rd.stop()
	t.alive()
	opts := p.options()
	if p.crc != "" {
		opts.UserMetadata[crcHeader] = p.crc
	}
	info, err := p.s.client.PutObject(context.WithValue(ctx, bodyOf{}, rd), p.s.bucket, p.s.prefix+p.key, rd, p.size, "", "", opts)
	if err == nil {
		return p.taken(info)
	}
	if broken := rd.broken(); broken != nil {
		return "", broken
	}
	t.alive()
	switch {
	case p.crc == "":
	case mismatch(err):
		p.crc = "" // to be read anew: the source may have changed
		return "", p.others.add(err)
	case unknownSum(err) && p.s.sums.Load() == unknown:
		p.unsummed = true
		return "", fmt.Errorf("with a crc-32c: %w", errSum)
	}
	return p.refused(ctx, err)
}

// taken remembers of a put that was answered what its server is like.
func (p *put) taken(info minio.UploadInfo) (etag string, _ error) {
	if got := info.ChecksumCRC32C; p.crc != "" && got != "" && got != p.crc {
		return "", final{fmt.Errorf("%w: crc-32c %q, want %q", errOther, got, p.crc)}
	}
	if p.bare {
		p.s.bare.Store(true)
	}
	if p.unsummed {
		p.s.sums.Store(ignores)
	}
	return info.ETag, nil
}

// errSum asks for another attempt without a CRC-32C.
var errSum = errors.New("the server does not take it")

// refused says what the error of a put means, given its condition. If it means
// that an attempt before had won, there is none, but the ETag of what it wrote.
func (p *put) refused(ctx context.Context, err error) (etag string, _ error) {
	st := status(err)
	lost := st == http.StatusPreconditionFailed || p.cond.ETag != "" && code(err) == "NoSuchKey"
	switch {
	case p.cond == (remote.Cond{}):
		return "", err
	case !lost:
		// What has no status was cut on the way there or on the way back.
		p.unsure = p.unsure || st == 0 || st >= 500
		return "", err
	case p.unsure || !p.cond.Absent && !p.bare && !p.s.bare.Load():
		info, serr := p.s.client.StatObject(ctx, p.s.bucket, p.s.prefix+p.key, minio.StatObjectOptions{})
		switch {
		case serr != nil && status(serr) != http.StatusNotFound:
			return "", serr
		case serr == nil && p.unsure && p.marked(info):
			return info.ETag, nil
		case serr == nil && !p.cond.Absent && !p.bare && info.ETag == p.cond.ETag:
			// The version is there: the refusal is about the quotes.
			p.bare = true
			return "", errQuotes
		}
	}
	if p.cond.Absent {
		return "", final{fmt.Errorf("%w: %w", fs.ErrExist, plain(err))}
	}
	return "", final{fmt.Errorf("%w: %w", remote.ErrChanged, plain(err))}
}

// errQuotes asks for another attempt without quotes.
var errQuotes = errors.New("the server does not match a quoted etag")

// marked reports whether an object was written by this put.
func (p *put) marked(info minio.ObjectInfo) bool {
	return info.Metadata.Get("X-Amz-Meta-"+markName) == p.mark
}

package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/minio/minio-go/v7"
)

// sender sends one part until the server has confirmed its bytes: by the
// CRC-32C that it compares and answers with, by an ETag that is the part's MD5
// or, where ETags are something else, as those of encrypted parts, by having
// checked the Content-MD5 it was sent.
type sender struct {
	m      *multipart
	number int
	body   *body

	crc    string // "" until read
	md5    string // in hexadecimal, "" until read for Content-MD5
	opaque bool   // an ETag was not the MD5
	others others
}

// send makes one attempt.
func (p *sender) send(ctx context.Context, t *try) (part, error) {
	if p.m.summed {
		known, err := p.checked(ctx, t, &p.m.p.s.sums, otherCRC())
		if err != nil {
			return part{}, err
		}
		if known {
			return p.sendCRC(ctx, t)
		}
	}
	return p.sendMD5(ctx, t)
}

// sendCRC makes an attempt that the part's CRC-32C confirms. What the server
// finds different was changed on its way, or in the source since it was read
// for the CRC: the next attempt reads it anew.
func (p *sender) sendCRC(ctx context.Context, t *try) (part, error) {
	if p.crc == "" {
		var err error
		if p.crc, err = p.body.crc(t); err != nil {
			return part{}, err
		}
	}
	got, err := p.try(ctx, t, nil, minio.PutObjectPartOptions{CustomHeader: withCRC(p.crc)})
	switch {
	case mismatch(err):
		p.crc = ""
		return part{}, p.others.add(err)
	case err != nil || got.crc == p.crc:
		return got, err
	case got.crc == "":
		// Another server answers than did before.
		p.m.p.s.sums.Store(ignores)
	}
	return part{}, p.others.add(fmt.Errorf("crc-32c %q, want %q", got.crc, p.crc))
}

// sendMD5 makes an attempt that the part's MD5 confirms.
func (p *sender) sendMD5(ctx context.Context, t *try) (part, error) {
	s := p.m.p.s
	digest := false
	if p.opaque || s.opaque.Load() {
		var err error
		if digest, err = p.checked(ctx, t, &s.digests, otherMD5()); err != nil {
			return part{}, err
		}
	}
	var opts minio.PutObjectPartOptions
	if digest {
		if err := p.readMD5(t); err != nil {
			return part{}, err
		}
		opts.Md5Base64 = p.md5Base64()
	}
	h := md5.New()
	got, err := p.try(ctx, t, h, opts)
	if mismatch(err) {
		p.opaque = true
		return part{}, p.others.add(err)
	}
	if err != nil {
		return part{}, err
	}
	got.crc = "" // of what was not compared
	got.md5 = hex.EncodeToString(h.Sum(nil))
	switch {
	case got.plain():
		return got, nil
	case digest && got.md5 == p.md5:
		s.opaque.Store(true) // from now on, at the first attempt
		return got, nil
	}
	p.opaque = true
	return part{}, p.others.add(fmt.Errorf("etag %q, md5 %s", got.etag, got.md5))
}

// try sends the part. Its bytes are added to h on the way, if not nil.
func (p *sender) try(ctx context.Context, t *try, h hash.Hash, opts minio.PutObjectPartOptions) (part, error) {
	s := p.m.p.s
	rd, err := p.body.start(t, &s.stats)
	if err != nil {
		return part{}, err
	}
	rd.hash = h
	defer rd.stop()
	t.alive()
	opts.DisableContentSha256 = true
	ctx = context.WithValue(ctx, bodyOf{}, rd)
	info, err := s.client.PutObjectPart(ctx, s.bucket, s.prefix+p.m.p.key, p.m.id, p.number, rd, p.body.size, opts)
	if broken := rd.broken(); err != nil && broken != nil {
		return part{}, broken
	}
	return part{size: p.body.size, etag: info.ETag, crc: info.ChecksumCRC32C}, err
}

// readMD5 reads the body for its MD5.
func (p *sender) readMD5(t *try) error {
	if p.md5 != "" {
		return nil
	}
	h := md5.New()
	if err := p.body.sum(t, h); err != nil {
		return err
	}
	p.md5 = hex.EncodeToString(h.Sum(nil))
	return nil
}

func (p *sender) md5Base64() string {
	sum, _ := hex.DecodeString(p.md5)
	return base64.StdEncoding.EncodeToString(sum)
}

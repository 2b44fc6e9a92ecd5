package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
)

// The headers of a CRC-32C, and of the wish for one of every part.
const (
	crcHeader     = "X-Amz-Checksum-Crc32c"
	sumAlgorithm  = "X-Amz-Checksum-Algorithm"
	algorithmName = "CRC32C"
)

// castagnoli is the polynomial of CRC-32C, which processors compute: ten times
// as fast as MD5.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeCRC returns a CRC as headers have it.
func encodeCRC(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// crc reads the body for its CRC-32C.
func (b *body) crc(t *try) (string, error) {
	h := crc32.New(castagnoli)
	if err := b.sum(t, h); err != nil {
		return "", err
	}
	return encodeCRC(h.Sum32()), nil
}

// withCRC returns the header that has the server compare a CRC-32C.
func withCRC(crc string) http.Header { return http.Header{crcHeader: {crc}} }

// others counts the attempts to send the same bytes whose arrival was not
// confirmed.
type others int

// mostOthers is how often bytes are sent that arrive as something else.
const mostOthers = 3

// add counts an attempt. Its error is final if it was the last.
func (o *others) add(why error) error {
	err := fmt.Errorf("%w: %w", errOther, plain(why))
	if *o++; *o == mostOthers {
		return final{err}
	}
	return err
}

// errOther says that the server confirms other bytes than were sent.
var errOther = errors.New("the server stored other bytes")

// mismatch reports whether err is a server's refusal of bytes that do not match
// the digest they were sent with. Each family of servers has its own code.
func mismatch(err error) bool {
	codes := []string{"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"}
	return status(err) == http.StatusBadRequest && slices.Contains(codes, code(err))
}

// unknownSum reports whether err may be the refusal of a server that does not
// know CRC-32C, or not there.
func unknownSum(err error) bool {
	switch status(err) {
	case http.StatusNotImplemented:
		return true
	case http.StatusBadRequest:
		return slices.Contains([]string{"InvalidRequest", "InvalidArgument", "NotImplemented"}, code(err))
	}
	return false
}

// checking is what is known of a server's care for one kind of digest.
type checking struct{ atomic.Int32 }

const (
	unknown int32 = iota
	checks
	ignores
)

// probe is what a part is sent as whose digest is to be found wrong.
const probe = "probe"

func otherMD5() minio.PutObjectPartOptions {
	sum := md5.Sum([]byte("other"))
	return minio.PutObjectPartOptions{Md5Base64: base64.StdEncoding.EncodeToString(sum[:])}
}

func otherCRC() minio.PutObjectPartOptions {
	return minio.PutObjectPartOptions{CustomHeader: withCRC(encodeCRC(crc32.Checksum([]byte("other"), castagnoli)))}
}

// checked reports whether the server refuses a part that does not match its
// digest. To find out, it is sent one, with the digest in opts, which the part
// to come replaces.
func (p *sender) checked(ctx context.Context, t *try, c *checking, opts minio.PutObjectPartOptions) (bool, error) {
	s := p.m.p.s
	if known := c.Load(); known != unknown {
		return known == checks, nil
	}
	opts.DisableContentSha256 = true
	_, err := s.client.PutObjectPart(ctx, s.bucket, s.prefix+p.m.p.key, p.m.id, p.number, strings.NewReader(probe), int64(len(probe)), opts)
	switch {
	case err == nil || unknownSum(err):
		c.Store(ignores)
	case mismatch(err):
		c.Store(checks)
	default:
		return false, err
	}
	t.alive()
	return c.Load() == checks, nil
}

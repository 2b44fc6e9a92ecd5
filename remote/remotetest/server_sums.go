package remotetest

import (
	"cmp"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/http"
)

// The headers of a CRC-32C, and of the wish for one of every part.
const (
	crcHeader    = "X-Amz-Checksum-Crc32c"
	sumAlgorithm = "X-Amz-Checksum-Algorithm"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c returns the CRC-32C of b as headers have it.
func crc32c(b []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)))
}

// compositeCRC returns the CRC-32C of an object from those of its parts.
func compositeCRC(sums []string) string {
	var all []byte
	for _, s := range sums {
		b, _ := base64.StdEncoding.DecodeString(s)
		all = append(all, b...)
	}
	return fmt.Sprintf("%s-%d", crc32c(all), len(sums))
}

// digests compares a body with the digests it was sent with. It returns the
// CRC-32C to answer with, "" for none, and the status and code of an error.
func (c *call) digests(body []byte) (crc string, status int, code string) {
	sum := md5.Sum(body)
	if want := c.r.Header.Get("Content-Md5"); want != "" && want != base64.StdEncoding.EncodeToString(sum[:]) && !c.f.IgnoreMD5 {
		return "", http.StatusBadRequest, "BadDigest"
	}
	want := c.r.Header.Get(crcHeader)
	switch got := crc32c(body); {
	case want == "" || c.f.IgnoreCRC:
		return "", 0, ""
	case c.f.RefuseCRC != 0:
		return "", c.f.RefuseCRC, "InvalidRequest"
	case c.f.EchoCRC:
		return want, 0, ""
	case want != got:
		return "", http.StatusBadRequest, cmp.Or(c.f.MismatchCode, "BadDigest")
	default:
		return got, 0, ""
	}
}

// strict reports whether parts have to have the CRC-32Cs that were asked for.
func (c *call) strict() bool { return !c.f.IgnoreCRC && !c.f.EchoCRC }

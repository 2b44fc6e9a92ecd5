package remotetest

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// minPart is the least size of a part that is not the last.
const minPart = 5 << 20

// upload is a multipart upload.
type upload struct {
	id, key string
	started time.Time
	parts   map[int]stored
	meta    http.Header
	summed  bool // every part has to have a CRC-32C
}

// upload returns an unfinished upload of the call's key, or nil. The caller
// holds c.s.mu.
func (c *call) upload(id string) *upload {
	u := c.s.uploads[id]
	if u != nil && u.key != c.key {
		return nil
	}
	return u
}

// end forgets an upload but for its name. The caller holds s.mu.
func (s *Server) end(u *upload) {
	delete(s.uploads, u.id)
	u.parts = nil
	s.ended = append(s.ended, u)
}

func (c *call) initiate() {
	asked := c.r.Header.Get(sumAlgorithm) != "" && !c.f.IgnoreCRC
	if asked && c.f.RefuseCRC != 0 {
		c.fail(c.f.RefuseCRC, "InvalidRequest")
		return
	}
	c.s.mu.Lock()
	c.s.serial++
	id := fmt.Sprintf("upload-%d", c.s.serial)
	c.s.uploads[id] = &upload{
		id: id, key: c.key, started: time.Now(), parts: make(map[int]stored), meta: metadata(c.r.Header),
		summed: asked,
	}
	c.s.mu.Unlock()
	c.xml(struct {
		XMLName     xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket, Key string
		UploadID    string `xml:"UploadId"`
	}{Bucket: c.s.Bucket, Key: c.key, UploadID: id})
}

func (c *call) part(id, number string, body []byte, crc string) {
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 10_000 {
		c.fail(http.StatusBadRequest, "InvalidArgument")
		return
	}
	p := newStored(body, nil)
	p.crc = crc
	if c.f.OpaqueETags {
		p.etag = fmt.Sprintf("%x", sha256.Sum256(body))
	}
	c.s.mu.Lock()
	u := c.upload(id)
	bare := u != nil && u.summed && crc == "" && c.strict()
	if u != nil && !bare {
		u.parts[n] = p
	}
	c.s.mu.Unlock()
	switch {
	case u == nil:
		c.fail(http.StatusNotFound, "NoSuchUpload")
		return
	case bare:
		c.fail(http.StatusBadRequest, "InvalidRequest")
		return
	}
	if crc != "" {
		c.w.Header().Set(crcHeader, crc)
	}
	c.w.Header().Set("ETag", `"`+p.etag+`"`)
	c.send(http.StatusOK, nil)
}

func (c *call) complete(id string, body []byte) {
	var in struct {
		Part []struct {
			PartNumber     int
			ETag           string
			ChecksumCRC32C string
		}
	}
	if err := xml.Unmarshal(body, &in); err != nil || len(in.Part) == 0 {
		c.fail(http.StatusBadRequest, "MalformedXML")
		return
	}
	c.s.mu.Lock()
	u := c.upload(id)
	var datas, sums [][]byte
	var crcs []string
	code := ""
	if u == nil {
		code = "NoSuchUpload"
	}
	for i, p := range in.Part {
		if code != "" {
			break
		}
		part, ok := u.parts[p.PartNumber]
		switch {
		case ok && u.summed && p.ChecksumCRC32C == "" && c.strict():
			code = "InvalidRequest"
		case !ok || part.etag != strings.Trim(p.ETag, `"`) || p.ChecksumCRC32C != "" && p.ChecksumCRC32C != part.crc:
			code = "InvalidPart"
		case i > 0 && p.PartNumber <= in.Part[i-1].PartNumber:
			code = "InvalidPartOrder"
		case i < len(in.Part)-1 && len(part.data) < minPart:
			code = "EntityTooSmall"
		}
		sum, _ := hex.DecodeString(part.etag)
		datas, sums, crcs = append(datas, part.data), append(sums, sum), append(crcs, part.crc)
	}
	if code == "" {
		c.s.end(u)
	}
	c.s.mu.Unlock()
	switch code {
	case "":
		if c.f.Muddle {
			slices.Reverse(datas)
			slices.Reverse(sums)
			slices.Reverse(crcs)
		}
		data := bytes.Join(datas, nil)
		if c.f.Drop {
			data = data[:len(data)-1]
		}
		o := newStored(data, u.meta)
		o.etag = fmt.Sprintf("%x-%d", md5.Sum(bytes.Join(sums, nil)), len(in.Part))
		if u.summed && c.strict() {
			o.crc = compositeCRC(crcs)
		}
		c.put(o)
	case "NoSuchUpload":
		c.fail(http.StatusNotFound, code)
	default:
		c.fail(http.StatusBadRequest, code)
	}
}

func (c *call) abort(id string) {
	c.s.mu.Lock()
	u := c.upload(id)
	if u != nil {
		c.s.end(u)
	}
	c.s.mu.Unlock()
	if u == nil {
		c.fail(http.StatusNotFound, "NoSuchUpload")
		return
	}
	c.send(http.StatusNoContent, nil)
}

type uploadListing struct {
	XMLName                      xml.Name `xml:"ListMultipartUploadsResult"`
	Bucket, Prefix, EncodingType string
	KeyMarker, NextKeyMarker     string
	UploadIDMarker               string `xml:"UploadIdMarker"`
	NextUploadIDMarker           string `xml:"NextUploadIdMarker"`
	MaxUploads                   int
	IsTruncated                  bool
	Upload                       []listedUpload
}

type listedUpload struct {
	Key          string
	UploadID     string `xml:"UploadId"`
	Initiated    string
	StorageClass string
}

// listUploads answers ListMultipartUploads, without a delimiter.
func (c *call) listUploads() {
	q := c.r.URL.Query()
	limit := c.f.PageSize
	if n, err := strconv.Atoi(q.Get("max-uploads")); err == nil && n > 0 {
		limit = min(limit, n)
	}
	name := func(s string) string { return s }
	if q.Get("encoding-type") == "url" {
		name = func(s string) string { return escape(s, "/") }
	}
	out := uploadListing{
		Bucket: c.s.Bucket, Prefix: name(q.Get("prefix")), EncodingType: q.Get("encoding-type"), MaxUploads: limit,
		KeyMarker: name(q.Get("key-marker")), UploadIDMarker: q.Get("upload-id-marker"),
	}
	for _, u := range c.listable() {
		after := cmp.Or(cmp.Compare(u.key, q.Get("key-marker")), cmp.Compare(u.id, q.Get("upload-id-marker"))) > 0
		if q.Get("upload-id-marker") == "" {
			after = u.key > q.Get("key-marker")
		}
		if !after || !strings.HasPrefix(u.key, q.Get("prefix")) {
			continue
		}
		if len(out.Upload) == limit {
			last := out.Upload[limit-1]
			out.IsTruncated, out.NextKeyMarker, out.NextUploadIDMarker = true, last.Key, last.UploadID
			break
		}
		out.Upload = append(out.Upload, listedUpload{
			Key: name(u.key), UploadID: u.id, StorageClass: "STANDARD",
			Initiated: u.started.UTC().Format("2006-01-02T15:04:05.000Z"),
		})
	}
	c.xml(out)
}

// listable returns the uploads that a listing may show, in its order.
func (c *call) listable() []*upload {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	var all []*upload
	for _, u := range c.s.uploads {
		all = append(all, u)
	}
	if c.f.StaleUploads {
		all = append(all, c.s.ended...)
	}
	slices.SortFunc(all, func(a, b *upload) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.id, b.id))
	})
	return all
}

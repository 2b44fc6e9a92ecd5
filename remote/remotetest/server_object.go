package remotetest

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// bucket answers requests that name no object: its location and listings.
func (c *call) bucket() {
	q := c.r.URL.Query()
	switch {
	case c.r.Method == http.MethodHead:
		c.send(http.StatusOK, nil)
	case c.r.Method != http.MethodGet:
		c.fail(http.StatusMethodNotAllowed, "MethodNotAllowed")
	case q.Has("location"):
		c.xml(struct {
			XMLName xml.Name `xml:"LocationConstraint"`
		}{})
	case q.Get("list-type") == "2":
		c.list()
	case q.Has("uploads") && !c.f.NoUploadList:
		c.listUploads()
	default:
		c.fail(http.StatusNotImplemented, "NotImplemented")
	}
}

type listing struct {
	XMLName                                  xml.Name `xml:"ListBucketResult"`
	Name, Prefix, Delimiter, EncodingType    string
	KeyCount, MaxKeys                        int
	IsTruncated                              bool
	ContinuationToken, NextContinuationToken string
	Contents                                 []listed
	CommonPrefixes                           []struct{ Prefix string }
}

type listed struct {
	Key, LastModified, ETag, StorageClass string
	Size                                  int
}

// list answers ListObjectsV2. Its continuation token is the last key or
// prefix of the page before.
func (c *call) list() {
	q := c.r.URL.Query()
	prefix, delimiter := q.Get("prefix"), q.Get("delimiter")
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	limit := c.f.PageSize
	if n, err := strconv.Atoi(q.Get("max-keys")); err == nil {
		limit = min(limit, n)
	}
	name := func(s string) string { return s }
	if q.Get("encoding-type") == "url" {
		name = func(s string) string { return escape(s, "/") }
	}
	out := listing{
		Name: c.s.Bucket, Prefix: name(prefix), Delimiter: name(delimiter), EncodingType: q.Get("encoding-type"),
		MaxKeys: limit, ContinuationToken: q.Get("continuation-token"),
	}
	last := ""
	keys := c.s.Keys()
	// After a folder come keys in it, which begin with it.
	first, _ := slices.BinarySearch(keys, max(prefix, after))
	for _, key := range keys[first:] {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok {
			break
		}
		entry, folder := key, false
		if i := strings.Index(rest, delimiter); delimiter != "" && i >= 0 {
			entry, folder = key[:len(prefix)+i+len(delimiter)], true
		}
		if entry <= after || entry == last {
			continue
		}
		if out.KeyCount == limit {
			out.IsTruncated, out.NextContinuationToken = true, last
			break
		}
		last = entry
		out.KeyCount++
		if folder {
			out.CommonPrefixes = append(out.CommonPrefixes, struct{ Prefix string }{name(entry)})
			continue
		}
		c.s.mu.Lock()
		o := c.s.objects[key]
		c.s.mu.Unlock()
		out.Contents = append(out.Contents, listed{
			Key: name(key), LastModified: o.time.UTC().Format("2006-01-02T15:04:05.000Z"),
			ETag: `"` + o.etag + `"`, Size: len(o.data), StorageClass: "STANDARD",
		})
	}
	c.xml(out)
}

// object answers requests that name an object.
func (c *call) object(body []byte) {
	q := c.r.URL.Query()
	switch c.r.Method {
	case http.MethodGet, http.MethodHead:
		c.get()
	case http.MethodPut:
		if c.f.Corrupt > 0 {
			body[len(body)/2] ^= 1
		}
		crc, status, code := c.digests(body)
		if code != "" {
			c.fail(status, code)
			return
		}
		if q.Has("uploadId") {
			c.part(q.Get("uploadId"), q.Get("partNumber"), body, crc)
			return
		}
		o := newStored(body, metadata(c.r.Header))
		o.crc = crc
		c.put(o)
	case http.MethodDelete:
		if q.Has("uploadId") {
			c.abort(q.Get("uploadId"))
			return
		}
		c.s.mu.Lock()
		delete(c.s.objects, c.key)
		c.s.sorted = nil
		c.s.mu.Unlock()
		c.send(http.StatusNoContent, nil)
	case http.MethodPost:
		if q.Has("uploadId") {
			c.complete(q.Get("uploadId"), body)
			return
		}
		c.initiate()
	default:
		c.fail(http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

func metadata(h http.Header) http.Header {
	meta := make(http.Header)
	for name, values := range h {
		if name == "Content-Type" || strings.HasPrefix(name, "X-Amz-Meta-") {
			meta[name] = values
		}
	}
	return meta
}

// get answers GET and HEAD.
func (c *call) get() {
	c.s.mu.Lock()
	o, ok := c.s.objects[c.key]
	if c.f.FreshETags {
		c.s.serial++
		o.etag = fmt.Sprintf("%032x", c.s.serial)
	}
	c.s.mu.Unlock()
	if !ok {
		c.fail(http.StatusNotFound, "NoSuchKey")
		return
	}
	if m := c.r.Header.Get("If-Match"); m != "" && strings.Trim(m, `"`) != o.etag && !c.f.IgnoreIfMatch {
		c.fail(http.StatusPreconditionFailed, "PreconditionFailed")
		return
	}
	h := c.w.Header()
	for name, values := range o.meta {
		h[name] = values
	}
	h.Set("ETag", `"`+o.etag+`"`)
	h.Set("Last-Modified", o.time.UTC().Format(http.TimeFormat))
	h.Set("Accept-Ranges", "bytes")
	if m := c.r.Header.Get("If-None-Match"); m != "" && strings.Trim(m, `"`) == o.etag {
		c.status = http.StatusNotModified
		c.w.WriteHeader(c.status)
		return
	}
	data, status := o.data, http.StatusOK
	if spec := c.r.Header.Get("Range"); spec != "" && !c.f.IgnoreRange {
		from, to, ok := parseRange(spec, len(data))
		if !ok {
			c.fail(http.StatusRequestedRangeNotSatisfiable, "InvalidRange")
			return
		}
		if c.f.ShiftRange {
			from, to = from+1, to+1
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
		data, status = data[from:min(to, len(data))], http.StatusPartialContent
	}
	c.deliver(status, data)
}

// parseRange returns the half-open range that one range of bytes asks for.
func parseRange(spec string, size int) (from, to int, ok bool) {
	first, last, _ := strings.Cut(strings.TrimPrefix(spec, "bytes="), "-")
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(last)
	switch {
	case errA != nil && errB == nil: // the last b bytes
		return max(size-b, 0), size, b > 0 && size > 0
	case errA != nil || a >= size:
		return 0, 0, false
	case errB != nil:
		return a, size, last == ""
	default:
		return a, min(b+1, size), a <= b
	}
}

// deliver sends the bytes of an object, as far as faults allow.
func (c *call) deliver(status int, data []byte) {
	limit := int64(len(data))
	switch {
	case c.r.Method == http.MethodHead:
	case c.f.Cut > 0:
		limit = min(limit, c.f.CutAfter)
	case c.f.Stall > 0:
		limit = min(limit, c.f.StallAfter)
	}
	if limit == int64(len(data)) {
		c.send(status, data)
		return
	}
	c.status, c.bytes = status, limit
	c.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	c.w.WriteHeader(status)
	_, _ = io.Copy(c.w, bytes.NewReader(data[:limit]))
	_ = http.NewResponseController(c.w).Flush()
	if c.f.Cut == 0 {
		c.wait(time.Hour) // until the client or the server gives up
	}
	panic(http.ErrAbortHandler)
}

// put stores an object if the request's conditions hold.
func (c *call) put(o stored) {
	absent, match := c.r.Header.Get("If-None-Match") == "*", c.r.Header.Get("If-Match")
	if c.f.NoConditions && (absent || match != "") {
		c.fail(http.StatusNotImplemented, "NotImplemented")
		return
	}
	c.s.mu.Lock()
	cur, ok := c.s.objects[c.key]
	want := `"` + cur.etag + `"`
	if c.f.BareIfMatch {
		want = cur.etag
	}
	code := ""
	switch {
	case absent && ok:
		code = "PreconditionFailed"
	case match != "" && !ok:
		code = "NoSuchKey"
	case match != "" && match != want:
		code = "PreconditionFailed"
	default:
		c.s.set(c.key, o)
	}
	c.s.mu.Unlock()
	switch code {
	case "NoSuchKey":
		c.fail(http.StatusNotFound, code)
	case "PreconditionFailed":
		c.fail(http.StatusPreconditionFailed, code)
	default:
		c.w.Header().Set("ETag", `"`+o.etag+`"`)
		if c.r.Method == http.MethodPost {
			c.xml(struct {
				XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
				Bucket, Key, ETag string
				ChecksumCRC32C    string `xml:",omitempty"`
			}{Bucket: c.s.Bucket, Key: c.key, ETag: `"` + o.etag + `"`, ChecksumCRC32C: o.crc})
			return
		}
		if o.crc != "" {
			c.w.Header().Set(crcHeader, o.crc)
		}
		c.send(http.StatusOK, nil)
	}
}

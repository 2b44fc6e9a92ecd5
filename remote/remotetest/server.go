package remotetest

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is an S3 server inside the test process: path-style requests, one
// bucket in memory, real signatures (version 4), conditional reads and writes
// that are atomic, paged listings and multipart uploads, MD5s and CRC-32Cs that
// are compared. Its faults are switched with [Server.Set]. All methods may be
// called concurrently.
//
// It refuses what careful clients avoid: payloads in signed chunks get 501.
type Server struct {
	Endpoint    string // http://127.0.0.1:port
	Bucket      string
	Key, Secret string // an access key and its secret; SetKey does not change them

	tb   testing.TB
	addr string

	mu       sync.Mutex // guards the fields below
	keys     [2]string  // the access key and secret in force
	objects  map[string]stored
	sorted   []string // keys of objects; nil after one came or went
	uploads  map[string]*upload
	ended    []*upload // completed or aborted
	faults   Faults
	requests []Request
	serial   int // numbers uploads and fresh etags
	http     *http.Server
	stopped  chan struct{} // closed by Stop
}

// stored is one version of an object; its fields are never written again.
type stored struct {
	data []byte
	etag string // without quotes
	crc  string // CRC-32C as headers have it, "" if none was sent
	time time.Time
	meta http.Header // Content-Type and x-amz-meta-*
}

// Faults are what goes wrong at a server. The zero value is a server that
// works. Counted faults use themselves up, one request each; of several, the
// one named first here strikes first.
type Faults struct {
	// Only limits the counted faults, and Hold, to requests it returns true for.
	Only func(*http.Request) bool

	Delay time.Duration   // before every answer
	Hold  <-chan struct{} // answers wait until it is closed, if not nil

	Reset  int // that many connections are reset before the request is acted on
	Hangup int // that many connections are reset when half of the request's body was read
	Lose   int // that many requests are acted on and never answered

	Late       int    // that many requests are acted on and answered with the error that Fail has
	Fail       int    // that many requests are answered with an error:
	FailStatus int    // its HTTP status
	FailCode   string // its S3 code

	Corrupt int // that many objects and parts arrive with another byte in the middle

	Cut      int   // that many objects are sent incompletely:
	CutAfter int64 // bytes of the body sent before the connection closes

	Stall      int   // that many objects are sent incompletely:
	StallAfter int64 // bytes of the body sent before nothing more comes

	// Refuse is the S3 code of the error that every request gets; revoked
	// keys are InvalidAccessKeyId. RefuseStatus is its HTTP status, 403 if 0.
	Refuse       string
	RefuseStatus int

	FreshETags    bool // every object is sent under an ETag never seen before
	IgnoreIfMatch bool // conditions of reads are ignored
	IgnoreRange   bool // objects are sent whole, with status 200
	ShiftRange    bool // ranges are sent one byte further on than asked
	BareIfMatch   bool // a quoted If-Match of a write never matches
	NoConditions  bool // conditional writes get 501
	OpaqueETags   bool // ETags of parts are not MD5s, as those of encrypted ones
	IgnoreMD5     bool // Content-MD5 is not compared
	IgnoreCRC     bool // CRC-32Cs are neither compared nor answered
	EchoCRC       bool // CRC-32Cs are answered and not compared
	RefuseCRC     int  // what asks for or has a CRC-32C gets that status, if not 0, and InvalidRequest
	Muddle        bool // parts are put together in reverse order
	Drop          bool // the last byte is left out when parts are put together
	NoUploadList  bool // listings of uploads get 501
	StaleUploads  bool // uploads that have ended are listed still
	PageSize      int  // most entries of a page of a listing; 0 is 1000

	MismatchCode string // S3 code for a CRC-32C that is not that of the body, BadDigest if ""
}

// Request is what the server remembers of one request.
type Request struct {
	Method string
	Key    string // of the object; empty for the bucket
	Query  string
	Header http.Header
	Status int   // 0 if it was never answered
	Bytes  int64 // of the answer's body
}

// NewServer starts a server that stops when the test ends. It has an empty
// bucket.
func NewServer(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{
		Bucket: "bucket", Key: "testkey", Secret: "testsecret",
		tb: tb, addr: "127.0.0.1:0",
		objects: make(map[string]stored),
		uploads: make(map[string]*upload),
	}
	s.keys = [2]string{s.Key, s.Secret}
	s.Start()
	s.Endpoint = "http://" + s.addr
	tb.Cleanup(s.Stop)
	return s
}

// Start makes a stopped server listen again, at the same address.
func (s *Server) Start() {
	s.tb.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.tb.Fatalf("start server: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = l.Addr().String()
	s.stopped = make(chan struct{})
	s.http = &http.Server{Handler: s}
	go s.http.Serve(l) // ends with Close
}

// Stop closes the listener and every connection. Objects stay.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http == nil {
		return
	}
	close(s.stopped)
	s.http.Close()
	s.http = nil
}

// Set changes faults: f gets the present ones to modify.
func (s *Server) Set(f func(*Faults)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.faults)
}

// SetKey replaces the access key and the secret: those before are revoked.
func (s *Server) SetKey(key, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = [2]string{key, secret}
}

// Take returns the requests since the last call, in the order they were
// finished, and forgets them.
func (s *Server) Take() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests
	s.requests = nil
	return r
}

// Put stores an object, as another client would.
func (s *Server) Put(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(key, newStored(bytes.Clone(data), nil))
}

// Get returns the bytes of an object, and whether there is one. They are not
// to be modified.
func (s *Server) Get(key string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	return o.data, ok
}

// Keys returns the keys of all objects, in byte order. They are not to be
// modified.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sorted == nil {
		s.sorted = slices.Sorted(maps.Keys(s.objects))
	}
	return s.sorted
}

// set makes o the current version of key. The caller holds s.mu.
func (s *Server) set(key string, o stored) {
	if _, ok := s.objects[key]; !ok {
		s.sorted = nil
	}
	s.objects[key] = o
}

// Uploads returns the number of multipart uploads neither completed nor aborted.
func (s *Server) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

func newStored(data []byte, meta http.Header) stored {
	sum := md5.Sum(data)
	return stored{data: data, etag: hex.EncodeToString(sum[:]), time: time.Now(), meta: meta}
}

// ServeHTTP answers one request. Faults strike before the request is looked
// at, but for those of object bodies.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, w: w, r: r}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	c.key = key
	defer c.record()

	f := s.strike(r)
	c.f = f
	if f.Delay > 0 && !c.wait(f.Delay) {
		return
	}
	if f.Hold != nil && (f.Only == nil || f.Only(r)) && !c.hold(f.Hold) {
		return
	}
	switch {
	case f.Reset > 0:
		c.reset()
		return
	case f.Hangup > 0:
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		c.reset()
		return
	case f.Fail > 0:
		c.fail(f.FailStatus, f.FailCode)
		return
	case f.Refuse != "":
		c.fail(f.RefuseStatus, f.Refuse)
		return
	}
	if r.ContentLength < 0 {
		c.fail(http.StatusLengthRequired, "MissingContentLength")
		return
	}
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, body); err != nil {
		c.fail(http.StatusBadRequest, "IncompleteBody")
		return
	}
	if status, code := s.authorize(r, body); code != "" {
		c.fail(status, code)
		return
	}
	if bucket != s.Bucket {
		c.fail(http.StatusNotFound, "NoSuchBucket")
		return
	}
	answer := c.bucket
	if key != "" {
		answer = func() { c.object(body) }
	}
	if f.Lose == 0 && f.Late == 0 {
		answer()
		return
	}
	c.w = &nowhere{header: make(http.Header)}
	answer()
	c.w, c.status = w, 0
	if f.Lose > 0 {
		c.reset()
		return
	}
	c.fail(f.FailStatus, f.FailCode)
}

// strike returns the faults of one request and counts them down.
func (s *Server) strike(r *http.Request) Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.faults
	f.RefuseStatus = cmp.Or(f.RefuseStatus, http.StatusForbidden)
	f.PageSize = cmp.Or(f.PageSize, 1000)
	object := r.Method == http.MethodGet && strings.Count(r.URL.Path, "/") > 1 && r.URL.Path[len(r.URL.Path)-1] != '/'
	counts := []struct {
		left   *int
		struck *int
		may    bool
	}{
		{&s.faults.Reset, &f.Reset, true},
		{&s.faults.Hangup, &f.Hangup, r.ContentLength > 0},
		{&s.faults.Lose, &f.Lose, true},
		{&s.faults.Late, &f.Late, true},
		{&s.faults.Fail, &f.Fail, true},
		{&s.faults.Corrupt, &f.Corrupt, r.Method == http.MethodPut && r.ContentLength > 0},
		{&s.faults.Cut, &f.Cut, object},
		{&s.faults.Stall, &f.Stall, object},
	}
	done := f.Only != nil && !f.Only(r)
	for _, c := range counts {
		if done || !c.may || *c.left == 0 {
			*c.struck = 0
			continue
		}
		*c.left--
		done = true
	}
	return f
}

// call is one request under way.
type call struct {
	s      *Server
	w      http.ResponseWriter
	r      *http.Request
	f      Faults
	key    string
	status int
	bytes  int64
}

func (c *call) record() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.requests = append(c.s.requests, Request{
		Method: c.r.Method, Key: c.key, Query: c.r.URL.RawQuery, Header: c.r.Header.Clone(),
		Status: c.status, Bytes: c.bytes,
	})
}

// wait waits and reports whether anybody is still there to be answered.
func (c *call) wait(d time.Duration) bool {
	end := make(chan struct{})
	defer time.AfterFunc(d, func() { close(end) }).Stop()
	return c.hold(end)
}

// hold waits for the end of something, as wait does.
func (c *call) hold(end <-chan struct{}) bool {
	c.s.mu.Lock()
	stopped := c.s.stopped
	c.s.mu.Unlock()
	select {
	case <-end:
		return true
	case <-c.r.Context().Done():
	case <-stopped:
	}
	return false
}

// reset closes the connection so that the client sees it reset.
func (c *call) reset() {
	conn, _, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// send answers with a whole body.
func (c *call) send(status int, body []byte) {
	c.status = status
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(status)
	if c.r.Method == http.MethodHead {
		return
	}
	n, _ := c.w.Write(body)
	c.bytes = int64(n)
}

func (c *call) xml(v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("remotetest: %v", err))
	}
	c.w.Header().Set("Content-Type", "application/xml")
	c.send(http.StatusOK, append([]byte(xml.Header), b...))
}

func (c *call) fail(status int, code string) {
	b, _ := xml.Marshal(struct {
		XMLName                 xml.Name `xml:"Error"`
		Code, Message, Resource string
	}{Code: code, Message: "the test server says " + code, Resource: c.r.URL.Path})
	c.w.Header().Set("Content-Type", "application/xml")
	c.send(status, b)
}

// nowhere is where answers go that are lost.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(int)             {}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imagefs/remote/remotetest"
)

// web is a web server of one file, whose answers a test may spoil.
type web struct {
	*httptest.Server
	data []byte

	mu       sync.Mutex
	requests []*http.Request // guarded by mu
}

// spoil is what a test does to answer n, from 0 on; it may answer itself and
// return nil.
type spoil func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter

func serveWeb(t *testing.T, data []byte, f spoil) *web {
	t.Helper()
	s := &web{data: data}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		n := len(s.requests)
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		w.Header().Set("ETag", `"one"`)
		if f != nil {
			if w = f(n, w, r); w == nil {
				return
			}
		}
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(s.data))
	}))
	t.Cleanup(s.Close)
	return s
}

// seen are the Range headers of all requests.
func (s *web) seen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, r := range s.requests {
		list = append(list, r.Header.Get("Range")+r.Header.Get("If-Range"))
	}
	return strings.Join(list, ",")
}

// cut is an answer whose connection breaks after some bytes.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 && err == nil {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// noRange answers with the whole file.
func noRange(r *http.Request) { r.Header.Del("Range") }

// raw answers with bytes as they are and closes the connection.
func rawAnswer(t *testing.T, w http.ResponseWriter, answer string) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	fmt.Fprint(conn, answer)
	conn.Close()
}

func TestImportFromTheWeb(t *testing.T) {
	w := newWorld(t)
	data := sample(t, "vdi", 1)
	for _, tc := range []struct {
		name  string
		spoil spoil
		code  int
		words []string
		seen  string // Range and If-Range of the requests; "" for any
	}{
		{name: "plain", seen: ""},
		{name: "cut twice and resumed", spoil: func(n int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
			if n < 2 {
				return &cut{w, 100_000}
			}
			return w
		}, seen: `,bytes=100000-"one",bytes=200000-"one"`},
		{name: "cut by a server without ranges", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			noRange(r)
			if n == 0 {
				return &cut{w, 100_000}
			}
			return w
		}},
		{name: "cut, and no version is named", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("ETag", `W/"weak"`)
			if n == 0 {
				rawAnswer(t, w, "HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(data))+"\r\n\r\n"+string(data[:50_000]))
				return nil
			}
			return w
		}, seen: ","},
		{name: "cut and resumed by date", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Del("ETag")
			if n == 0 {
				return &cut{w, 70_000}
			}
			return w
		}, seen: ",bytes=70000-Sun, 09 Sep 2001 01:46:40 GMT"},
		{name: "busy at first", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			if n < 2 {
				http.Error(w, "later", http.StatusServiceUnavailable)
				return nil
			}
			return w
		}},
		{name: "stalled and resumed", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			if n == 0 {
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
				w.Write(data[:1000])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return nil
			}
			return w
		}, seen: `,bytes=1000-"one"`},
		{name: "without a length, in chunks", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Write(data[:10])
			w.(http.Flusher).Flush()
			w.Write(data[10:])
			return nil
		}},
		{name: "replaced after a cut", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			if n == 0 {
				return &cut{w, 100_000}
			}
			w.Header().Set("ETag", `"two"`)
			return w
		}, code: exitFailure, words: []string{"changed while it was fetched"}},
		{name: "resumed somewhere else", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			if n == 0 {
				return &cut{w, 100_000}
			}
			r.Header.Set("Range", "bytes=99999-")
			return w
		}, code: exitFailure, words: []string{"bytes 99999-"}},
		{name: "a length that is too large", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			if n == 0 {
				rawAnswer(t, w, "HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: "+strconv.Itoa(len(data)+1000)+"\r\n\r\n"+string(data))
				return nil
			}
			return w
		}, code: exitFailure, words: []string{fmt.Sprintf("said that the file has %d bytes, and has no more than %d", len(data)+1000, len(data))}},
		{name: "a length that is too small", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Content-Length", "1000")
			w.Write(data[:1000])
			return nil
		}, code: exitBadImages, words: []string{"damaged"}},
		{name: "no length at all", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			rawAnswer(t, w, "HTTP/1.0 200 OK\r\n\r\n"+string(data))
			return nil
		}, code: exitFailure, words: []string{"does not say how long"}},
		{name: "encoded", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte("\x1f\x8b"))
			return nil
		}, code: exitFailure, words: []string{`encoded as "gzip"`}},
		{name: "not there", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			http.NotFound(w, r)
			return nil
		}, code: exitNotFound, words: []string{"404 Not Found"}, seen: ""},
		{name: "refused", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			http.Error(w, "no", http.StatusForbidden)
			return nil
		}, code: exitFailure, words: []string{"403 Forbidden", "presigned"}},
		{name: "no answer of use", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}, code: exitFailure, words: []string{"204 No Content"}},
		{name: "always cut", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			noRange(r)
			return &cut{w, 1000}
		}, code: exitStore, words: []string{"no more than 1000 bytes", "broke after 1000 bytes"}},
		{name: "always down", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			panic(http.ErrAbortHandler)
		}, code: exitStore},
		{name: "a redirect loop", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			http.Redirect(w, r, "/again?secret", http.StatusFound)
			return nil
		}, code: exitFailure, words: []string{"redirects more than 10 times"}},
		{name: "a redirect to a file", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusMovedPermanently)
			return nil
		}, code: exitFailure, words: []string{`kind "file"`}},
		{name: "a redirect to nowhere", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Location", "http://%zz/?secret")
			w.WriteHeader(http.StatusSeeOther)
			return nil
		}, code: exitFailure, words: []string{"no URL"}},
		{name: "a redirect within the server", spoil: func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			if r.URL.Path != "/moved" {
				http.Redirect(w, r, "/moved", http.StatusTemporaryRedirect)
				return nil
			}
			if n == 1 {
				return &cut{w, 5000}
			}
			return w
		}, seen: `,,bytes=5000-"one",bytes=5000-"one"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serveWeb(t, data, tc.spoil)
			name := strings.ReplaceAll(tc.name, " ", "-")
			u := strings.Replace(s.URL, "http://", "http://user:secret@", 1) + "/a/" + name + ".vdi?sig=secret#secret"
			r := run(t, "import", "--timeout", "1500ms", w.store, u)
			r.want(t, tc.code, tc.words...)
			if tc.code == exitOK {
				r.want(t, exitOK, fmt.Sprintf("image %q", name), hash(data))
			}
			if strings.Contains(r.out+r.err, "secret") {
				t.Errorf("it tells what is secret:\n%s", r.err)
			}
			if tc.seen != "" && s.seen() != tc.seen {
				t.Errorf("ranges asked for: got %s, want %s", s.seen(), tc.seen)
			}
		})
	}
	run(t, "check", "--full", w.store).want(t, exitOK, "0 damaged")
}

func TestWebRequests(t *testing.T) {
	w := newWorld(t)
	data := sample(t, "vdi", 1)
	other := serveWeb(t, data, nil)
	s := serveWeb(t, data, func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		http.Redirect(w, r, strings.Replace(other.URL, "http://", "http://evil:word@", 1)+"/other.vmdk?b=2", http.StatusFound)
		return nil
	})
	u := strings.Replace(s.URL, "http://", "http://user:pass@", 1) + "/a%20disk.vdi?sig=a%2Fb&x"
	run(t, "import", w.store, u).want(t, exitOK, `image "a disk"`)
	first, second := s.requests[0], other.requests[0]
	if user, pass, ok := first.BasicAuth(); !ok || user != "user" || pass != "pass" || first.URL.RawQuery != "sig=a%2Fb&x" {
		t.Errorf("first request: %v with %v", first.URL, first.Header)
	}
	if second.Header.Get("Authorization") != "" || second.Header.Get("Referer") != "" || second.URL.RawQuery != "b=2" {
		t.Errorf("the other server got %v with %v", second.URL, second.Header)
	}
	if enc := first.Header.Get("Accept-Encoding"); enc != "" {
		t.Errorf("asked for encoding %q", enc)
	}
}

func TestRedirects(t *testing.T) {
	for _, tc := range []struct{ from, to, want string }{
		{"https://a/x/y", "z?q", "https://a/x/z?q"},
		{"http://a/x", "https://b/", "https://b/"},
		{"http://a/x", "//c/d", "http://c/d"},
		{"https://a/x", "http://b/y?secret", ""},
		{"http://a/x", "ftp://b/y", ""},
		{"http://a/x", "", ""},
		{"http://a/x", "http:///y", ""},
	} {
		from, err := url.Parse(tc.from)
		if err != nil {
			t.Fatal(err)
		}
		to, err := redirect(from, tc.to)
		switch {
		case tc.want == "" && (err == nil || strings.Contains(err.Error(), "secret")):
			t.Errorf("%s to %s: got %v, %v", tc.from, tc.to, to, err)
		case tc.want != "" && (err != nil || to.String() != tc.want):
			t.Errorf("%s to %s: got %v, %v; want %s", tc.from, tc.to, to, err, tc.want)
		}
	}
}

func TestWebServerThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	run(t, "import", "--timeout", "1h", w.store, "http://"+l.Addr().String()+"/x.vdi?secret").want(t, exitStore, "refused")
}

func TestInterruptedImportLeavesNothing(t *testing.T) {
	w := newWorld(t) // looks into the spool at the end
	ctx, cancel := context.WithCancel(t.Context())
	s := serveWeb(t, sample(t, "vdi", 1), func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		w.Header().Set("Content-Length", "5000")
		w.Write(make([]byte, 1000))
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return nil
	})
	err := dispatch(ctx, []string{"import", "-q", w.store, s.URL + "/x.vdi"})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("got %v", err)
	}
	if got := w.objects(t); len(got) > 0 {
		t.Errorf("stored: %q", got)
	}
}

func TestImportOfObjects(t *testing.T) {
	w := newWorld(t)
	srv := serveS3(t)
	data := content(2*objectPiece+12345, 5)
	srv.Put("folder/sub/big.raw", data)
	srv.Put("top.vdi", sample(t, "vdi", 1))
	srv.Set(func(f *remotetest.Faults) {
		f.Only = func(r *http.Request) bool { return r.Method == "GET" && r.Header.Get("Range") != "" }
		f.Cut, f.CutAfter = 2, 1<<20
	})
	r := run(t, "import", w.store, "s3://bucket/folder/sub/big.raw", "s3://bucket/top.vdi")
	r.want(t, exitOK, "fetching", `disk 0 of image "big"`, hash(data), `disk 1 of image "big"`)
	for _, req := range srv.Take() {
		if req.Method == "GET" && req.Key != "" && req.Header.Get("If-Match") == "" {
			t.Errorf("a read that is not pinned to a version: %+v", req)
		}
	}
	run(t, "check", "--full", w.store).want(t, exitOK, "0 damaged")
	run(t, "import", w.store, "s3://bucket/folder/none.vdi").want(t, exitNotFound, "none.vdi")
	run(t, "import", "--timeout", "2s", w.store, "s3://nowhere/none.vdi").want(t, exitStore, "nowhere")

	// The same service may be source and store.
	run(t, "import", "--name", "copy", "s3://bucket/store", "s3://bucket/top.vdi").want(t, exitOK)
	run(t, "check", "--full", "s3://bucket/store").want(t, exitOK, "ok", "0 damaged")

	// An object that is replaced meanwhile is no mixture.
	srv.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{FreshETags: true} })
	run(t, "import", "--name", "mixture", w.store, "s3://bucket/folder/sub/big.raw").want(t, exitFailure, "changed")
}

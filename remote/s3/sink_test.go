package s3_test

import (
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"imagefs/remote"
	"imagefs/remote/s3"
)

// sink is a server that takes objects and keeps nothing of them but sizes and
// CRCs, of which it makes ETags, so that memory and time of a test are mostly
// the client's.
type sink struct {
	mu    sync.Mutex // guards the fields below
	parts map[int][md5.Size]byte
	sizes map[int]int64
	size  int64
	etag  string
	meta  string
}

// openSink opens a store over a sink, whose only object is key.
func openSink(tb testing.TB) *s3.Store {
	tb.Helper()
	srv := httptest.NewServer(&sink{parts: make(map[int][md5.Size]byte), sizes: make(map[int]int64)})
	tb.Cleanup(srv.Close)
	s, err := s3.Open(tb.Context(), s3.Config{
		Bucket: "bucket", Endpoint: srv.URL, Region: "us-east-1", AccessKey: "k", SecretKey: "s",
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func (k *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	n, _ := io.CopyBuffer(h, r.Body, make([]byte, 64<<10))
	sum := md5.Sum(h.Sum(nil))
	crc := base64.StdEncoding.EncodeToString(h.Sum(nil))
	q := r.URL.Query()
	k.mu.Lock()
	defer k.mu.Unlock()
	switch want := r.Header.Get("X-Amz-Checksum-Crc32c"); {
	case want != "" && want != crc:
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `<Error><Code>BadDigest</Code></Error>`)
	case r.Method == http.MethodPut:
		w.Header().Set("X-Amz-Checksum-Crc32c", want)
		if q.Has("partNumber") {
			number, _ := strconv.Atoi(q.Get("partNumber"))
			k.parts[number] = sum
			k.size += n - k.sizes[number]
			k.sizes[number] = n
		} else {
			k.size, k.etag, k.meta = n, fmt.Sprintf("%x", sum), r.Header.Get("X-Amz-Meta-Imagefs-Put")
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sum))
	case q.Has("uploads"):
		clear(k.parts)
		clear(k.sizes)
		k.size, k.etag, k.meta = 0, "", r.Header.Get("X-Amz-Meta-Imagefs-Put")
		io.WriteString(w, `<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>`)
	case q.Has("uploadId"):
		all := md5.New()
		for i := range len(k.parts) {
			sum := k.parts[i+1]
			all.Write(sum[:])
		}
		k.etag = fmt.Sprintf("%x-%d", all.Sum(nil), len(k.parts))
		fmt.Fprintf(w, `<CompleteMultipartUploadResult><Bucket>bucket</Bucket><ETag>%s</ETag></CompleteMultipartUploadResult>`, k.etag)
	case r.Method == http.MethodHead && k.etag != "":
		w.Header().Set("ETag", `"`+k.etag+`"`)
		w.Header().Set("Content-Length", strconv.FormatInt(k.size, 10))
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		w.Header().Set("X-Amz-Meta-Imagefs-Put", k.meta)
	case q.Has("list-type"):
		io.WriteString(w, `<ListBucketResult><Name>bucket</Name></ListBucketResult>`)
	default:
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `<Error><Code>NoSuchKey</Code></Error>`)
	}
}

// sparse returns a file of size bytes that takes no space.
func sparse(tb testing.TB, size int64) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "sparse"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	return f
}

// send stores the parts of size bytes of r, some at a time.
func send(tb testing.TB, s *s3.Store, r io.ReaderAt, size int64) {
	tb.Helper()
	u, err := s.Upload(tb.Context(), "k")
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	room := make(chan struct{}, 4)
	for n := 1; remote.PartOffset(n) < size; n++ {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			off := remote.PartOffset(n)
			if err := u.Part(tb.Context(), n, io.NewSectionReader(r, off, min(remote.PartSize(n), size-off))); err != nil {
				tb.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := u.Complete(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

func TestFilesAreNotReadIntoMemory(t *testing.T) {
	const size = 96 << 20
	f := sparse(t, size)
	for name, store := range map[string]func(*s3.Store) error{
		"put in parts": func(s *s3.Store) error {
			_, err := s.Put(t.Context(), "k", f, size, remote.Cond{})
			return err
		},
		"put in one request": func(s *s3.Store) error {
			s.SetPartSizes(size, 16<<20)
			_, err := s.Put(t.Context(), "k", f, size, remote.Cond{})
			return err
		},
		"upload": func(s *s3.Store) error {
			send(t, s, f, size)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openSink(t)
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := store(s); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			// All that was ever allocated, by the server too.
			if got := after.TotalAlloc - before.TotalAlloc; got > 12<<20 {
				t.Errorf("%d bytes of a file took %d bytes of memory", size, got)
			} else {
				t.Logf("%d KiB", got>>10)
			}
		})
	}
}

// BenchmarkUpload is the bandwidth of an upload to a server on the same
// processors, which computes CRCs as the client does.
func BenchmarkUpload(b *testing.B) {
	const size = 256 << 20
	f := sparse(b, size)
	s := openSink(b)
	b.SetBytes(size)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		send(b, s, f, size)
	}
}

func BenchmarkMD5(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		md5.Sum(p)
	}
}

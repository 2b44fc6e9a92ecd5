package s3_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"imagefs/remote/remotetest"
)

// TestETagsAndDigestsThatTellNothing: without a fault it is not known whether
// there is one.
func TestETagsAndDigestsThatTellNothing(t *testing.T) {
	srv := remotetest.NewServer(t)
	srv.Set(func(f *remotetest.Faults) { f.OpaqueETags, f.IgnoreMD5, f.IgnoreCRC = true, true, true })
	if _, err := upload(t.Context(), open(t, config(srv)), "k", []byte("text")); err == nil {
		t.Error("no error")
	}
}

// TestDigestsOfParts: a server is asked once what it compares; after that
// parts take one request each, and are read for MD5s only where they have to be.
func TestDigestsOfParts(t *testing.T) {
	for _, v := range []struct {
		name     string
		faults   remotetest.Faults
		first    int // requests for two parts of a first upload
		then     int // and of the next
		crc, md5 bool
	}{
		{"crcs compared", remotetest.Faults{}, 3, 2, true, false}, // with a probe
		{"crcs compared, etags that are not md5s", remotetest.Faults{OpaqueETags: true}, 3, 2, true, false},
		{"crcs ignored", remotetest.Faults{IgnoreCRC: true}, 3, 2, false, false},
		{"crcs refused", remotetest.Faults{RefuseCRC: 501}, 2, 2, false, false},
		// The probe, one not confirmed, the probe, two with their digests.
		{"crcs ignored, etags that are not md5s", remotetest.Faults{IgnoreCRC: true, OpaqueETags: true}, 5, 2, false, true},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			srv := remotetest.NewServer(t)
			srv.Set(func(f *remotetest.Faults) { *f = v.faults })
			s := open(t, config(srv))
			b := remotetest.Bytes(1, 17<<20)
			for i, want := range []int{v.first, v.then} {
				key := fmt.Sprint(i)
				srv.Take()
				o, err := upload(t.Context(), s, key, b)
				if err != nil {
					t.Fatal(err)
				}
				n, last := 0, http.Header{}
				for _, r := range srv.Take() {
					if r.Method == http.MethodPut {
						n, last = n+1, r.Header
					}
				}
				if n != want {
					t.Errorf("upload %d: 2 parts took %d requests, want %d", i, n, want)
				}
				if crc, md5 := last.Get("X-Amz-Checksum-Crc32c") != "", last.Get("Content-Md5") != ""; crc != v.crc || md5 != v.md5 {
					t.Errorf("upload %d: parts have a crc: %v, an md5: %v", i, crc, md5)
				}
				if got, err := read(t, s, o); err != nil || !bytes.Equal(got, b) {
					t.Errorf("wrong bytes or error %v", err)
				}
			}
		})
	}
}

// TestServerThatStopsComparing: what one server of several promised is not
// believed of another.
func TestServerThatStopsComparing(t *testing.T) {
	srv := remotetest.NewServer(t)
	s := open(t, config(srv))
	want := remotetest.Bytes(1, 300_000)
	for _, key := range []string{"before", "after"} {
		o, err := upload(t.Context(), s, key, want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(t, s, o); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: wrong bytes or error %v", key, err)
		}
		srv.Set(func(f *remotetest.Faults) { f.IgnoreCRC, f.Corrupt, f.Only = true, 2, parting })
	}
}

// changing is a source whose bytes become others after they were read a number
// of times.
type changing struct {
	b     []byte
	reads atomic.Int64
	after int64
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, c.b[off:])
	if c.reads.Add(1) > c.after && n > 0 {
		p[0] ^= 1
	}
	return n, nil
}

func TestSourceThatChangesIsNeverMixed(t *testing.T) {
	const size = 1 << 20
	b := remotetest.Bytes(1, size)
	for after := range int64(12) {
		srv := remotetest.NewServer(t)
		s := open(t, config(srv))
		u, err := s.Upload(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		src := &changing{b: b, after: after}
		if err := u.Part(t.Context(), 1, io.NewSectionReader(src, 0, size)); err != nil {
			continue
		}
		if _, err := u.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		// What was stored is one reading, which may have begun before.
		got, _ := srv.Get("k")
		if n := src.reads.Load(); after > 0 && n <= after && !bytes.Equal(got, b) {
			t.Errorf("after %d of %d reads: other bytes", after, n)
		}
		if len(got) != size {
			t.Errorf("after %d reads: %d bytes", after, len(got))
		}
	}
}

// TestFilesAreSentWhole: the kernel sends files, which goes another way than
// what is read.
func TestFilesAreSentWhole(t *testing.T) {
	const size, before = 3 << 20, 12345
	for name, faults := range map[string]remotetest.Faults{
		"no fault":                     {},
		"crcs ignored":                 {IgnoreCRC: true},
		"cut":                          {Hangup: 2},
		"stored wrongly":               {Corrupt: 2},
		"answer lost":                  {Lose: 1},
		"refused unread":               {Fail: 2, FailStatus: 503, FailCode: "SlowDown"},
		"reset from the first byte on": {Reset: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := remotetest.Bytes(1, before+size+100)
			f := fileOf(t, b)
			srv := remotetest.NewServer(t)
			s := open(t, config(srv))
			faults.Only = parting
			srv.Set(func(f *remotetest.Faults) { *f = faults })
			u, err := s.Upload(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			inner := io.NewSectionReader(f, 345, before+size)
			if err := u.Part(t.Context(), 1, io.NewSectionReader(inner, before-345, size)); err != nil {
				t.Fatal(err)
			}
			if _, err := u.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, _ := srv.Get("k"); !bytes.Equal(got, b[before:before+size]) {
				t.Error("other bytes")
			}
		})
	}
}

// fileOf returns an open file that holds b.
func fileOf(t *testing.T, b []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFileThatChangesWhileItIsSent changes it when the server has the header of
// the request, and perhaps some of the body.
func TestFileThatChangesWhileItIsSent(t *testing.T) {
	const size = 16 << 20
	b := remotetest.Bytes(1, size)
	for name, change := range map[string]func(*os.File) error{
		"written": func(f *os.File) error {
			_, err := f.WriteAt([]byte("others"), size-6)
			return err
		},
		"cut":    func(f *os.File) error { return f.Truncate(size - 1) },
		"closed": func(f *os.File) error { return f.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fileOf(t, b)
			srv := remotetest.NewServer(t)
			s := open(t, config(srv))
			u, err := s.Upload(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			changed := false
			srv.Set(func(faults *remotetest.Faults) {
				faults.Only = func(r *http.Request) bool {
					if !changed && parting(r) {
						changed = true
						if err := change(f); err != nil {
							t.Error(err)
						}
					}
					return false
				}
			})
			if err := u.Part(t.Context(), 1, io.NewSectionReader(f, 0, size)); err != nil {
				t.Log(err)
				return
			}
			if _, err := u.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			// All may have been on its way, or it was sent anew.
			after := append(bytes.Clone(b[:size-6]), "others"...)
			if got, _ := srv.Get("k"); !bytes.Equal(got, b) && (name != "written" || !bytes.Equal(got, after)) {
				t.Error("neither the bytes before nor those after")
			}
		})
	}
}

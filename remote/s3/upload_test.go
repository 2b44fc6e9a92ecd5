package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/remotetest"
	"imagefs/remote/s3"
)

// section returns the part of b that has that number.
func section(b []byte, number int) *io.SectionReader {
	off := remote.PartOffset(number)
	return io.NewSectionReader(bytes.NewReader(b), off, min(int64(len(b))-off, remote.PartSize(number)))
}

// upload stores b in parts, one after another.
func upload(ctx context.Context, s remote.Uploader, key string, b []byte) (remote.Object, error) {
	u, err := s.Upload(ctx, key)
	if err != nil {
		return remote.Object{}, err
	}
	for n := 1; remote.PartOffset(n) < int64(len(b)); n++ {
		if err := u.Part(ctx, n, section(b, n)); err != nil {
			return remote.Object{}, errors.Join(err, u.Abort(context.WithoutCancel(ctx)))
		}
	}
	o, err := u.Complete(ctx)
	if err != nil {
		return remote.Object{}, errors.Join(err, u.Abort(context.WithoutCancel(ctx)))
	}
	return o, nil
}

// The requests of an upload.
var (
	initiating = func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploads") }
	parting    = func(r *http.Request) bool { return sendsPart(r) && r.ContentLength > 100 }
	probing    = func(r *http.Request) bool { return sendsPart(r) && r.ContentLength < 100 }
	sendsPart  = func(r *http.Request) bool { return r.Method == http.MethodPut && r.URL.Query().Has("partNumber") }
	completing = func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }
	aborting   = func(r *http.Request) bool { return r.Method == http.MethodDelete }
)

func TestUploadUnderFaults(t *testing.T) {
	busy := func(n int) remotetest.Faults {
		return remotetest.Faults{Fail: n, FailStatus: 503, FailCode: "SlowDown"}
	}
	late := func(n, status int, code string) remotetest.Faults {
		return remotetest.Faults{Late: n, FailStatus: status, FailCode: code}
	}
	const ever = 1000
	for _, v := range []struct {
		name   string
		at     func(*http.Request) bool
		faults remotetest.Faults
		want   error // nil: the right bytes
	}{
		{"busy at the beginning", initiating, busy(2), nil},
		{"begun and the answer lost", initiating, remotetest.Faults{Lose: 2}, nil},
		{"begun and busy", initiating, late(2, 503, "SlowDown"), nil},
		{"busy during a part", parting, busy(2), nil},
		{"busy at the end", completing, busy(2), nil},
		{"busy during the probe of a part", probing, busy(2), nil},
		{"probe of a part and its answer lost", probing, remotetest.Faults{Lose: 1}, nil},
		{"reset during a part", parting, remotetest.Faults{Reset: 2}, nil},
		{"part cut", parting, remotetest.Faults{Hangup: 2}, nil},
		{"part stored and its answer lost", parting, remotetest.Faults{Lose: 1}, nil},
		{"part stored wrongly once", parting, remotetest.Faults{Corrupt: 1}, nil},
		{"part stored wrongly once, crcs ignored", nil, remotetest.Faults{Corrupt: 1, IgnoreCRC: true}, nil},
		{"part stored wrongly once, digests ignored", nil, remotetest.Faults{Corrupt: 1, IgnoreCRC: true, IgnoreMD5: true}, nil},
		{"etags that are not md5s", nil, remotetest.Faults{OpaqueETags: true}, nil},
		{"etags that are not md5s, crcs ignored", nil, remotetest.Faults{OpaqueETags: true, IgnoreCRC: true}, nil},
		{"crcs ignored from the first part on", parting, remotetest.Faults{IgnoreCRC: true}, nil},
		{"crcs answered and not compared", nil, remotetest.Faults{EchoCRC: true, Corrupt: 2}, nil},
		{"crcs refused as a bad request", nil, remotetest.Faults{RefuseCRC: 400}, nil},
		{"crcs refused as not implemented", nil, remotetest.Faults{RefuseCRC: 501}, nil},
		{"crcs refused of parts", probing, remotetest.Faults{RefuseCRC: 400}, nil},
		{"crcs refused with a code of its own", nil, remotetest.Faults{Corrupt: 2, MismatchCode: "XAmzContentChecksumMismatch"}, nil},
		{"completed and the answer lost", completing, remotetest.Faults{Lose: 1}, nil},
		{"completed and busy", completing, late(1, 503, "SlowDown"), nil},
		{"completed and an error of status 200", completing, late(1, 200, "InternalError"), nil},
		{"not completed and an error of status 200", completing, remotetest.Faults{Fail: 1, FailStatus: 200, FailCode: "InternalError"}, nil},
		{"completed and refused", completing, late(ever, 400, "InvalidPart"), nil},
		{"completed and busy for ever", completing, late(ever, 503, "SlowDown"), nil},
		{"completed and busy for ever, etags that are not md5s", completing, remotetest.Faults{Late: ever, FailStatus: 503, FailCode: "SlowDown", OpaqueETags: true}, nil},

		{"busy for ever at the beginning", initiating, busy(ever), remote.ErrUnavailable},
		{"busy for ever during a part", parting, busy(ever), remote.ErrUnavailable},
		{"busy for ever at the end", completing, busy(ever), remote.ErrUnavailable},
		{"no permission for parts", parting, remotetest.Faults{Fail: 1, FailStatus: 403, FailCode: "AccessDenied"}, fs.ErrPermission},
		{"no permission to complete", completing, remotetest.Faults{Fail: 1, FailStatus: 403, FailCode: "AccessDenied"}, fs.ErrPermission},
		{"ended by another", parting, remotetest.Faults{Fail: 1, FailStatus: 404, FailCode: "NoSuchUpload"}, fs.ErrNotExist},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			srv := remotetest.NewServer(t)
			c := config(srv)
			if v.faults.Fail+v.faults.Late >= ever {
				c.Budget = 400 * time.Millisecond
			}
			s := open(t, c)
			if v.faults.Only = v.at; v.at == nil {
				v.faults.Only = parting
			}
			srv.Set(func(f *remotetest.Faults) { *f = v.faults })
			want := remotetest.Bytes(1, 300_000)
			o, err := upload(t.Context(), s, "k", want)
			srv.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
			if !errors.Is(err, v.want) || v.want == nil && err != nil {
				t.Fatalf("got error %v, want %v", err, v.want)
			}
			if n := srv.Uploads(); n != 0 {
				t.Errorf("%d uploads are left", n)
			}
			if v.want != nil {
				if _, ok := srv.Get("k"); ok {
					t.Error("the object is there")
				}
				return
			}
			if got, err := read(t, s, o); err != nil || !bytes.Equal(got, want) {
				t.Errorf("wrong bytes or error %v", err)
			}
		})
	}
}

func TestBytesThatArriveWrongAreNeverAccepted(t *testing.T) {
	for name, faults := range map[string]remotetest.Faults{
		"every part":                     {Corrupt: 1000},
		"every part, digests ignored":    {Corrupt: 1000, IgnoreMD5: true},
		"etags and digests tell nothing": {Corrupt: 1000, OpaqueETags: true, IgnoreMD5: true},
		"parts in another order":         {Muddle: true},
		"an end that is missing":         {Drop: true},
	} {
		for care, crc := range map[string]remotetest.Faults{
			"compared":                  {},
			"compared, another code":    {MismatchCode: "InvalidDigest"},
			"compared, an unknown code": {MismatchCode: "InvalidRequest"},
			"ignored":                   {IgnoreCRC: true},
			"answered and not compared": {EchoCRC: true},
			"refused":                   {RefuseCRC: 400},
		} {
			t.Run(name+", crcs "+care, func(t *testing.T) {
				t.Parallel()
				faults := faults
				faults.IgnoreCRC, faults.EchoCRC, faults.RefuseCRC, faults.MismatchCode = crc.IgnoreCRC, crc.EchoCRC, crc.RefuseCRC, crc.MismatchCode
				testNeverAccepted(t, faults)
			})
		}
	}
}

func testNeverAccepted(t *testing.T, faults remotetest.Faults) {
	srv := remotetest.NewServer(t)
	s := open(t, config(srv))
	s.SetPartSizes(5<<20, 5<<20)
	faults.Only = parting
	srv.Set(func(f *remotetest.Faults) { *f = faults })
	b := remotetest.Bytes(1, 6<<20)
	if faults.Muddle {
		b = remotetest.Bytes(1, 17<<20) // two parts of an upload
	}
	if _, err := upload(t.Context(), s, "uploaded", b); err == nil {
		t.Error("upload: no error")
	} else {
		t.Log(err)
	}
	if _, err := s.Put(t.Context(), "put", bytes.NewReader(b), int64(len(b)), remote.Cond{}); err == nil {
		t.Error("put in parts: no error")
	}
	if n := srv.Uploads(); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}

func TestCompleteAfterTheServerCameBack(t *testing.T) {
	srv := remotetest.NewServer(t)
	c := config(srv)
	c.Budget = 300 * time.Millisecond
	s := open(t, c)
	for name, faults := range map[string]remotetest.Faults{
		"had not completed": {Reset: 1000},
		"had completed":     {Lose: 1000},
	} {
		u, err := s.Upload(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Part(t.Context(), 1, section([]byte("text"), 1)); err != nil {
			t.Fatal(err)
		}
		// From then on nothing is answered, not even what is there.
		srv.Set(func(f *remotetest.Faults) {
			*f = faults
			began := false
			f.Only = func(r *http.Request) bool {
				began = began || completing(r)
				return began
			}
		})
		_, err = u.Complete(t.Context())
		wantErr(t, name+": complete", err, remote.ErrUnavailable)
		srv.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
		o, err := u.Complete(t.Context())
		if err != nil {
			t.Fatalf("%s: complete again: %v", name, err)
		}
		if got, err := read(t, s, o); err != nil || string(got) != "text" {
			t.Errorf("%s: got %q, error %v", name, got, err)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAbortUploads(t *testing.T) {
	begin := func(t *testing.T, s *s3.Store, n int) {
		t.Helper()
		for range n {
			if _, err := s.Upload(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, v := range []struct {
		name   string
		faults remotetest.Faults
		want   error
		says   string
	}{
		{name: "many pages", faults: remotetest.Faults{PageSize: 2}},
		{name: "busy", faults: remotetest.Faults{PageSize: 2, Fail: 3, FailStatus: 503, FailCode: "SlowDown"}},
		{name: "answers lost", faults: remotetest.Faults{Lose: 2, Only: aborting}},
		{"no listing", remotetest.Faults{NoUploadList: true}, remote.ErrUnsupported, "does not list unfinished uploads"},
		{"a listing that is late", remotetest.Faults{StaleUploads: true}, remote.ErrUnavailable, "that were ended"},
		{"no permission", remotetest.Faults{Fail: 1, FailStatus: 403, FailCode: "AccessDenied"}, fs.ErrPermission, ""},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			srv := remotetest.NewServer(t)
			c := config(srv)
			if v.faults.StaleUploads {
				c.Budget = 300 * time.Millisecond
			}
			s := open(t, c)
			begin(t, s, 5)
			srv.Set(func(f *remotetest.Faults) { *f = v.faults })
			err := s.AbortUploads(t.Context(), "k")
			if !errors.Is(err, v.want) || v.want == nil && err != nil {
				t.Fatalf("got error %v, want %v", err, v.want)
			}
			if err != nil && !strings.Contains(err.Error(), v.says) {
				t.Errorf("error %q does not say %q", err, v.says)
			}
			if n := srv.Uploads(); err == nil && n != 0 {
				t.Errorf("%d uploads are left", n)
			}
		})
	}
}

func TestListingOfUploadsEnds(t *testing.T) {
	page := `<ListMultipartUploadsResult><Bucket>bucket</Bucket><IsTruncated>true</IsTruncated>` +
		`<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>1</NextUploadIdMarker></ListMultipartUploadsResult>`
	for name, answer := range map[string]string{
		"pages without end":   page,
		"a list of keys":      `<ListBucketResult><Name>bucket</Name></ListBucketResult>`,
		"what is not a list":  `hello`,
		"nothing":             ``,
		"a page cut short":    page[:40],
		"a bad name in pages": strings.Replace(page, "<NextKeyMarker>k", "<EncodingType>url</EncodingType><NextKeyMarker>%zz", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Has("uploads") {
					io.WriteString(w, answer)
					return
				}
				io.WriteString(w, `<ListBucketResult><Name>bucket</Name></ListBucketResult>`)
			})
			s := open(t, s3.Config{
				Bucket: "bucket", Endpoint: "http://" + addr, Region: "us-east-1", AccessKey: "k", SecretKey: "s",
				Budget: 300 * time.Millisecond,
			})
			n, last := 0, error(nil)
			for _, err := range s.Uploads(t.Context(), "") {
				n, last = n+1, err
			}
			if n != 1 || last == nil {
				t.Errorf("%d results, last error %v; want one error", n, last)
			}
			if err := s.AbortUploads(t.Context(), "k"); err == nil {
				t.Error("abort uploads: no error")
			}
		})
	}
}

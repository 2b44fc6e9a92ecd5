package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/remotetest"
	"imagefs/remote/s3"
)

// serve answers requests with h until the test ends and returns its address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return strings.TrimPrefix(s.URL, "http://")
}

// countConnections returns a context for requests and the number of
// connections they opened so far.
func countConnections(ctx context.Context) (context.Context, func() int64) {
	var n atomic.Int64
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			if !i.Reused {
				n.Add(1)
			}
		},
	}), n.Load
}

func TestReadUnderFaults(t *testing.T) {
	const size = 300_000
	data := remotetest.Bytes(1, size)
	for _, v := range []struct {
		name   string
		faults remotetest.Faults
		want   error // nil: the right bytes
		budget time.Duration
		most   int // requests, if not 0
	}{
		{name: "no fault", most: 1},
		{name: "slow answers", faults: remotetest.Faults{Delay: 20 * time.Millisecond}, most: 1},
		{name: "body cut three times", faults: remotetest.Faults{Cut: 3, CutAfter: 50_000}, most: 4},
		{name: "body cut before its first byte", faults: remotetest.Faults{Cut: 2}, most: 3},
		{name: "body stalls", faults: remotetest.Faults{Stall: 2, StallAfter: 100_000}},
		{name: "connection reset", faults: remotetest.Faults{Reset: 3}},
		{name: "answer lost", faults: remotetest.Faults{Lose: 2}},
		{name: "slow down", faults: remotetest.Faults{Fail: 3, FailStatus: 503, FailCode: "SlowDown"}, most: 4},
		{name: "too many requests", faults: remotetest.Faults{Fail: 1, FailStatus: 429, FailCode: "TooManyRequests"}, most: 2},
		{name: "internal error", faults: remotetest.Faults{Fail: 2, FailStatus: 500, FailCode: "InternalError"}, most: 3},

		{name: "slow down for ever", faults: remotetest.Faults{Fail: 1000, FailStatus: 503, FailCode: "SlowDown"}, want: remote.ErrUnavailable, budget: 300 * time.Millisecond},
		{name: "reset for ever", faults: remotetest.Faults{Reset: 1000}, want: remote.ErrUnavailable, budget: 300 * time.Millisecond},
		{name: "stalls for ever", faults: remotetest.Faults{Stall: 1000}, want: remote.ErrUnavailable, budget: 400 * time.Millisecond},
		{name: "a trickle for ever", faults: remotetest.Faults{Cut: 100_000, CutAfter: 1}, want: remote.ErrUnavailable, budget: 400 * time.Millisecond},
		{name: "silent for ever", faults: remotetest.Faults{Delay: time.Minute}, want: remote.ErrUnavailable, budget: 400 * time.Millisecond},

		{name: "no permission", faults: remotetest.Faults{Fail: 1, FailStatus: 403, FailCode: "AccessDenied"}, want: fs.ErrPermission, most: 1},
		{name: "key revoked", faults: remotetest.Faults{Refuse: "InvalidAccessKeyId"}, want: remote.ErrCredentials, most: 1},
		{name: "key revoked, status 404", faults: remotetest.Faults{Refuse: "InvalidAccessKeyId", RefuseStatus: 404}, want: remote.ErrCredentials, most: 1},
		{name: "bucket gone", faults: remotetest.Faults{Refuse: "NoSuchBucket", RefuseStatus: 404}, want: remote.ErrNoBucket, most: 1},
		{name: "etag changes", faults: remotetest.Faults{FreshETags: true}, want: remote.ErrChanged, most: 1},
		{name: "etag changes and If-Match is ignored", faults: remotetest.Faults{FreshETags: true, IgnoreIfMatch: true}, want: remote.ErrChanged, most: 1},
		{name: "range ignored", faults: remotetest.Faults{IgnoreRange: true}, want: remote.ErrUnsupported, most: 1},
		{name: "another range", faults: remotetest.Faults{ShiftRange: true}, want: remote.ErrUnavailable, most: 1},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			srv := remotetest.NewServer(t)
			c := config(srv)
			if v.faults.Stall > 0 || v.faults.Delay > time.Second {
				c.Stall = 300 * time.Millisecond
			}
			if v.budget > 0 {
				c.Budget = v.budget
			}
			srv.Put("k", data)
			s := open(t, c)
			o, err := s.Stat(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			srv.Take()
			srv.Set(func(f *remotetest.Faults) { *f = v.faults })
			p := make([]byte, size-2)
			start := time.Now()
			err = s.ReadRange(t.Context(), o, p, 1)
			if d := time.Since(start); d > c.Budget+10*time.Second {
				t.Errorf("took %v with a budget of %v", d, c.Budget)
			}
			if !errors.Is(err, v.want) {
				t.Errorf("got error %v, want %v", err, v.want)
			}
			if err == nil && !bytes.Equal(p, data[1:size-1]) {
				t.Error("wrong bytes")
			}
			if n := len(srv.Take()); v.most > 0 && n > v.most {
				t.Errorf("took %d requests, want at most %d", n, v.most)
			}
		})
	}
}

func TestCutBodyIsResumedAtTheMissingByte(t *testing.T) {
	srv := remotetest.NewServer(t)
	srv.Put("k", remotetest.Bytes(1, 10_000))
	s := open(t, config(srv))
	o, err := s.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	srv.Take()
	srv.Set(func(f *remotetest.Faults) { f.Cut, f.CutAfter = 1, 4000 })
	if _, err := read(t, s, o); err != nil {
		t.Fatal(err)
	}
	var ranges []string
	for _, r := range srv.Take() {
		ranges = append(ranges, r.Header.Get("Range"))
		if r.Header.Get("If-Match") != `"`+o.ETag+`"` {
			t.Errorf("request without its version: %v", r.Header)
		}
	}
	if got, want := strings.Join(ranges, " "), "bytes=0-9999 bytes=4000-9999"; got != want {
		t.Errorf("got ranges %q, want %q", got, want)
	}
}

func TestObjectReplacedWhileItIsReadIsNoMixture(t *testing.T) {
	srv := remotetest.NewServer(t)
	srv.Put("k", make([]byte, 10_000))
	s := open(t, config(srv))
	o, err := s.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	srv.Set(func(f *remotetest.Faults) {
		f.Cut, f.CutAfter = 1, 4000
		n := 0
		f.Only = func(*http.Request) bool {
			if n++; n == 1 {
				return true
			}
			return false
		}
	})
	go func() {
		for len(srv.Take()) == 0 {
			time.Sleep(time.Millisecond)
		}
		srv.Put("k", bytes.Repeat([]byte{1}, 10_000))
	}()
	p, err := read(t, s, o)
	if err == nil && bytes.ContainsRune(p, 1) {
		t.Error("the read mixes two versions")
	} else if err != nil {
		wantErr(t, "read", err, remote.ErrChanged)
	}
}

func TestStatTellsRefusalsApart(t *testing.T) {
	srv := remotetest.NewServer(t)
	s := open(t, config(srv))
	srv.Put("empty", nil)
	for _, v := range []struct {
		code   string
		status int
		want   error
	}{
		{"InvalidAccessKeyId", 404, remote.ErrCredentials},
		{"InvalidAccessKeyId", 403, remote.ErrCredentials},
		{"SignatureDoesNotMatch", 403, remote.ErrCredentials},
		{"ExpiredToken", 400, remote.ErrCredentials},
		{"AccessDenied", 403, fs.ErrPermission},
		{"NoSuchBucket", 404, remote.ErrNoBucket},
		{"NoSuchKey", 404, fs.ErrNotExist},
	} {
		srv.Set(func(f *remotetest.Faults) { f.Refuse, f.RefuseStatus = v.code, v.status })
		_, err := s.Stat(t.Context(), "empty")
		wantErr(t, v.code, err, v.want)
	}
	srv.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
	// HEAD alone is refused once: the object is there all the same.
	srv.Set(func(f *remotetest.Faults) { f.Fail, f.FailStatus, f.FailCode = 1, 404, "NoSuchKey" })
	if _, err := s.Stat(t.Context(), "empty"); err != nil {
		t.Errorf("object that appears between two requests: %v", err)
	}
}

func TestPutUnderFaults(t *testing.T) {
	for _, v := range []struct {
		name   string
		faults remotetest.Faults
		absent error // of a create-only put
		swap   error // of a swap of the current version
	}{
		{name: "connection reset", faults: remotetest.Faults{Reset: 1}},
		{name: "answer lost: the put had won", faults: remotetest.Faults{Lose: 1}},
		{name: "slow down", faults: remotetest.Faults{Fail: 2, FailStatus: 503, FailCode: "SlowDown"}},
		{name: "conflict of writers", faults: remotetest.Faults{Fail: 1, FailStatus: 409, FailCode: "ConditionalRequestConflict"}},
		{name: "bare If-Match", faults: remotetest.Faults{BareIfMatch: true}},
		{name: "stored wrongly once", faults: remotetest.Faults{Corrupt: 1}},
		{name: "stored wrongly for ever", faults: remotetest.Faults{Corrupt: 1000}, absent: errAny, swap: errAny},
		{name: "crcs ignored", faults: remotetest.Faults{IgnoreCRC: true}},
		{name: "crcs refused as a bad request", faults: remotetest.Faults{RefuseCRC: 400}},
		{name: "crcs refused as not implemented", faults: remotetest.Faults{RefuseCRC: 501, BareIfMatch: true}},
		{name: "crcs and conditions refused", faults: remotetest.Faults{RefuseCRC: 501, NoConditions: true}, absent: remote.ErrUnsupported, swap: remote.ErrUnsupported},
		{name: "no conditions", faults: remotetest.Faults{NoConditions: true}, absent: remote.ErrUnsupported, swap: remote.ErrUnsupported},
		{name: "no permission", faults: remotetest.Faults{Fail: 1, FailStatus: 403, FailCode: "AccessDenied"}, absent: fs.ErrPermission, swap: fs.ErrPermission},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			srv := remotetest.NewServer(t)
			s := open(t, config(srv))
			faults := v.faults
			faults.Only = func(r *http.Request) bool { return r.Method == http.MethodPut }
			try := func(key, text string, c remote.Cond) error {
				srv.Set(func(f *remotetest.Faults) { *f = faults })
				o, err := s.Put(t.Context(), key, strings.NewReader(text), int64(len(text)), c)
				srv.Set(func(f *remotetest.Faults) { *f = remotetest.Faults{} })
				if err == nil {
					if got, err := read(t, s, o); err != nil || string(got) != text {
						t.Errorf("%q holds %q, error %v", key, got, err)
					}
				}
				return err
			}
			wantErr := func(t *testing.T, what string, got, want error) {
				t.Helper()
				if want != errAny {
					wantErr(t, what, got, want)
				} else if got == nil {
					t.Errorf("%s: no error", what)
				}
			}
			wantErr(t, "create", try("created", "text", remote.Cond{Absent: true}), v.absent)
			o := put(t, s, "swapped", []byte("before"), remote.Cond{})
			wantErr(t, "swap", try("swapped", "after", remote.Cond{ETag: o.ETag}), v.swap)
			if v.swap == nil {
				wantErr(t, "swap of the old version", try("swapped", "never", remote.Cond{ETag: o.ETag}), remote.ErrChanged)
			}
			put(t, s, "taken", []byte("theirs"), remote.Cond{})
			if v.absent == nil {
				wantErr(t, "create what exists", try("taken", "ours", remote.Cond{Absent: true}), fs.ErrExist)
			}
		})
	}
}

// errAny stands for errors without a sentinel.
var errAny = errors.New("any")

func TestServerComesBack(t *testing.T) {
	srv := remotetest.NewServer(t)
	s := open(t, config(srv))
	o := put(t, s, "k", []byte("text"), remote.Cond{})
	srv.Stop()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := read(t, s, o); err != nil || string(got) != "text" {
				t.Errorf("read across a restart: %q, %v", got, err)
			}
		})
	}
	for s.Stats().Retries == 0 {
		time.Sleep(time.Millisecond)
	}
	srv.Start()
	wg.Wait()
}

func TestCancelledReadEndsAtOnce(t *testing.T) {
	srv := remotetest.NewServer(t)
	c := config(srv)
	c.Stall, c.Budget = time.Minute, time.Minute
	s := open(t, c)
	o := put(t, s, "k", make([]byte, 1000), remote.Cond{})
	srv.Set(func(f *remotetest.Faults) { f.Stall, f.StallAfter = 1000, 10 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	wantErr(t, "read", s.ReadRange(ctx, o, make([]byte, 1000), 0), context.DeadlineExceeded)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestCredentialsAreReadAgainWhenRefused(t *testing.T) {
	isolate(t)
	srv := remotetest.NewServer(t)
	t.Setenv("AWS_ACCESS_KEY_ID", srv.Key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", srv.Secret)
	c := config(srv)
	c.AccessKey, c.SecretKey = "", s3.Secret("")
	s := open(t, c)
	o := put(t, s, "k", []byte("text"), remote.Cond{})
	srv.SetKey("rotated", "rotatedsecret")
	_, err := read(t, s, o)
	wantErr(t, "read with an old key", err, remote.ErrCredentials)
	t.Setenv("AWS_ACCESS_KEY_ID", "rotated")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "rotatedsecret")
	if got, err := read(t, s, o); err != nil || string(got) != "text" {
		t.Errorf("read with the new key: %q, %v", got, err)
	}
}

func TestCredentialsAreRenewedBeforeARequestNeedsThem(t *testing.T) {
	isolate(t)
	srv := remotetest.NewServer(t)
	var key atomic.Value // of what the container hands out; "" is an error
	key.Store(srv.Key)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://"+serve(t, func(w http.ResponseWriter, _ *http.Request) {
		k := key.Load().(string)
		if k == "" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		// They are over as soon as they are had: every request needs new ones.
		fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":%q,"SecretAccessKey":%q,"Token":"t","Expiration":%q}`,
			k, srv.Secret, time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	})+"/container")
	c := config(srv)
	c.AccessKey, c.SecretKey, c.Budget = "", "", 2*time.Second
	s := open(t, c)
	o := put(t, s, "k", []byte("text"), remote.Cond{})

	srv.SetKey("second", srv.Secret)
	key.Store("second")
	if got, err := read(t, s, o); err != nil || string(got) != "text" {
		t.Errorf("read with the second key: %q, %v", got, err)
	}
	if n := s.Stats().Errors; n != 0 {
		t.Errorf("%d attempts failed, want none: the old key was used once more", n)
	}
	key.Store("")
	_, err := read(t, s, o)
	wantErr(t, "read without credentials", err, remote.ErrUnavailable)
	key.Store("second")
	if got, err := read(t, s, o); err != nil || string(got) != "text" {
		t.Errorf("read when they are back: %q, %v", got, err)
	}
}

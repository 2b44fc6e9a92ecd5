// Package remotetest tests object stores. [Run] is the suite that every
// implementation of remote.Store passes; a new one starts with it. [Server] is
// an S3 server inside the test process whose faults tests switch on and off.
package remotetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"imagefs/remote"
)

// Run checks that a store keeps the promises of remote.Store, and those of
// remote.Uploader if it makes them. Each check gets
// a store from open, which is empty and is closed by open's own clean-up.
// Checks run one after another; several go through the store in parallel.
func Run(t *testing.T, open func(t *testing.T) remote.Store) {
	for _, c := range []struct {
		name  string
		check func(*testing.T, remote.Store)
	}{
		{"put then read", putThenRead},
		{"zero bytes", zeroBytes},
		{"range edges", rangeEdges},
		{"parallel ranges", parallelRanges},
		{"missing keys", missingKeys},
		{"replace", replace},
		{"pinned read after replace", pinnedRead},
		{"delete", deletes},
		{"create only", createOnly},
		{"create only race", createOnlyRace},
		{"compare and swap", compareAndSwap},
		{"compare and swap race", compareAndSwapRace},
		{"impossible puts", impossiblePuts},
		{"short reader leaves no trace", shortReader},
		{"list one level in byte order", listLevel},
		{"list many", listMany},
		{"refused keys", refusedKeys},
		{"cancelled context", cancelled},
		{"upload in parts", uploading(uploadInParts)},
		{"upload of little", uploading(uploadOfLittle)},
		{"upload replaces parts", uploading(uploadReplacesParts)},
		{"upload refusals", uploading(uploadRefusals)},
		{"upload over an object", uploading(uploadOverAnObject)},
		{"upload aborted", uploading(uploadAborted)},
		{"uploads listed", uploading(uploadsListed)},
		{"upload cancelled", uploading(uploadCancelled)},
	} {
		t.Run(c.name, func(t *testing.T) { c.check(t, open(t)) })
	}
}

// Bytes returns n bytes that are the same in every run and differ with seed.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	_, _ = r.Read(b)
	return b
}

func mustPut(t *testing.T, s remote.Store, key string, b []byte, c remote.Cond) remote.Object {
	t.Helper()
	o, err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), c)
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	if o.Key != key || o.Size != int64(len(b)) || o.ETag == "" || o.ModTime.IsZero() {
		t.Fatalf("put %q returned %+v", key, o)
	}
	return o
}

func read(t *testing.T, s remote.Store, o remote.Object) ([]byte, error) {
	p := make([]byte, o.Size)
	return p, s.ReadRange(t.Context(), o, p, 0)
}

func mustHold(t *testing.T, s remote.Store, key string, want []byte) {
	t.Helper()
	o, err := s.Stat(t.Context(), key)
	if err != nil {
		t.Fatalf("stat %q: %v", key, err)
	}
	got, err := read(t, s, o)
	if err != nil {
		t.Fatalf("read %q: %v", key, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%q holds other bytes: %d of them, want %d", key, len(got), len(want))
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func putThenRead(t *testing.T, s remote.Store) {
	for _, key := range oddKeys {
		want := Bytes(uint64(len(key)), 1000+len(key))
		o := mustPut(t, s, key, want, remote.Cond{})
		st, err := s.Stat(t.Context(), key)
		if err != nil {
			t.Fatalf("stat %q: %v", key, err)
		}
		if st.Key != o.Key || st.ETag != o.ETag || st.Size != o.Size {
			t.Errorf("stat %q is %+v, put returned %+v", key, st, o)
		}
		if strings.Contains(st.ETag, `"`) {
			t.Errorf("stat %q: etag %s has quotes", key, st.ETag)
		}
		got, err := read(t, s, o)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %q: wrong bytes or error %v", key, err)
		}
	}
}

func zeroBytes(t *testing.T, s remote.Store) {
	o := mustPut(t, s, "empty", nil, remote.Cond{Absent: true})
	if err := s.ReadRange(t.Context(), o, nil, 0); err != nil {
		t.Errorf("read of nothing at 0: %v", err)
	}
	wantErr(t, "read of one byte", s.ReadRange(t.Context(), o, make([]byte, 1), 0), io.ErrUnexpectedEOF)
}

func rangeEdges(t *testing.T, s remote.Store) {
	data := Bytes(1, 10_000)
	o := mustPut(t, s, "ranges", data, remote.Cond{})
	for _, r := range []struct{ off, n int }{
		{0, 0}, {0, 1}, {0, 10_000}, {9_999, 1}, {10_000, 0}, {4_095, 2}, {1, 9_998},
	} {
		p := make([]byte, r.n)
		if err := s.ReadRange(t.Context(), o, p, int64(r.off)); err != nil {
			t.Errorf("%d bytes at %d: %v", r.n, r.off, err)
		} else if !bytes.Equal(p, data[r.off:r.off+r.n]) {
			t.Errorf("%d bytes at %d: wrong bytes", r.n, r.off)
		}
	}
	for _, r := range []struct{ off, n int64 }{
		{10_000, 1}, {9_999, 2}, {0, 10_001}, {20_000, 1}, {1<<63 - 1, 1}, {-1, 1}, {-5, 10},
	} {
		err := s.ReadRange(t.Context(), o, make([]byte, r.n), r.off)
		wantErr(t, fmt.Sprintf("%d bytes at %d", r.n, r.off), err, io.ErrUnexpectedEOF)
	}
}

func parallelRanges(t *testing.T, s remote.Store) {
	data := Bytes(2, 1<<20)
	o := mustPut(t, s, "parallel", data, remote.Cond{})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			p := make([]byte, 1<<15)
			off := i << 15
			if err := s.ReadRange(t.Context(), o, p, int64(off)); err != nil {
				t.Errorf("read at %d: %v", off, err)
			} else if !bytes.Equal(p, data[off:off+len(p)]) {
				t.Errorf("read at %d: wrong bytes", off)
			}
		})
	}
	wg.Wait()
}

func missingKeys(t *testing.T, s remote.Store) {
	mustPut(t, s, "file", []byte("x"), remote.Cond{})
	mustPut(t, s, "folder/file", []byte("x"), remote.Cond{})
	for _, key := range []string{"missing", "no/such/folder", "folder", "folder/missing", "file/below"} {
		_, err := s.Stat(t.Context(), key)
		wantErr(t, "stat "+key, err, fs.ErrNotExist)
		gone := remote.Object{Key: key, ETag: "0123", Size: 10}
		wantErr(t, "read "+key, s.ReadRange(t.Context(), gone, make([]byte, 1), 0), fs.ErrNotExist)
	}
	for _, err := range s.List(t.Context(), "no/such/folder/") {
		t.Errorf("list of a missing folder yields something, error %v", err)
	}
}

func replace(t *testing.T, s remote.Store) {
	a := mustPut(t, s, "k", []byte("first"), remote.Cond{})
	b := mustPut(t, s, "k", []byte("later"), remote.Cond{})
	if a.ETag == b.ETag {
		t.Errorf("other bytes of the same size have the same etag %q", a.ETag)
	}
	mustHold(t, s, "k", []byte("later"))
}

func pinnedRead(t *testing.T, s remote.Store) {
	for _, opened := range []bool{true, false} {
		key := fmt.Sprintf("pinned-%v", opened)
		old := Bytes(3, 5000)
		o := mustPut(t, s, key, old, remote.Cond{})
		if opened {
			if _, err := read(t, s, o); err != nil {
				t.Fatal(err)
			}
		}
		mustPut(t, s, key, Bytes(4, 5000), remote.Cond{})
		// A version is its bytes or an error, never other bytes.
		got, err := read(t, s, o)
		if err == nil && !bytes.Equal(got, old) {
			t.Errorf("read before replacement %v: the old version reads as new bytes", opened)
		} else if err != nil {
			wantErr(t, "read of the old version", err, remote.ErrChanged)
		}
		forged := o
		forged.ETag = "00000000000000000000000000000000"
		_, err = read(t, s, forged)
		wantErr(t, "read of a version that never was", err, remote.ErrChanged)
	}
}

func deletes(t *testing.T, s remote.Store) {
	if err := s.Delete(t.Context(), "a/never/was"); err != nil {
		t.Errorf("delete of a missing key: %v", err)
	}
	o := mustPut(t, s, "a/k", []byte("x"), remote.Cond{})
	mustPut(t, s, "a/l", []byte("y"), remote.Cond{})
	for range 2 {
		if err := s.Delete(t.Context(), "a/k"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	_, err := s.Stat(t.Context(), "a/k")
	wantErr(t, "stat after delete", err, fs.ErrNotExist)
	_, err = read(t, s, o)
	wantErr(t, "read after delete", err, fs.ErrNotExist)
	if got, want := list(t, s, "a/"), []string{"a/l"}; !slices.Equal(got, want) {
		t.Errorf("list after delete: got %q, want %q", got, want)
	}
	mustPut(t, s, "a/k", []byte("again"), remote.Cond{Absent: true})
}

func impossiblePuts(t *testing.T, s remote.Store) {
	if _, err := s.Put(t.Context(), "k", strings.NewReader("x"), 1, remote.Cond{Absent: true, ETag: "e"}); err == nil {
		t.Error("put with two conditions: no error")
	}
	if _, err := s.Put(t.Context(), "k", strings.NewReader("x"), -1, remote.Cond{}); err == nil {
		t.Error("put of -1 bytes: no error")
	}
}

func shortReader(t *testing.T, s remote.Store) {
	for _, c := range []remote.Cond{{}, {Absent: true}} {
		_, err := s.Put(t.Context(), "short", strings.NewReader("only this"), 1000, c)
		wantErr(t, "put", err, io.ErrUnexpectedEOF)
		_, err = s.Stat(t.Context(), "short")
		wantErr(t, "stat", err, fs.ErrNotExist)
	}
	broken := errors.New("broken reader")
	_, err := s.Put(t.Context(), "short", io.MultiReader(strings.NewReader("only"), errReader{broken}), 1000, remote.Cond{})
	wantErr(t, "put from a broken reader", err, broken)
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("failed puts left %q", got)
	}
	o, err := s.Put(t.Context(), "long", strings.NewReader("0123456789"), 4, remote.Cond{})
	if err != nil || o.Size != 4 {
		t.Fatalf("put of 4 bytes of 10: %+v, %v", o, err)
	}
	mustHold(t, s, "long", []byte("0123"))
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func refusedKeys(t *testing.T, s remote.Store) {
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\x00b", "a\nb", "a\xffb",
		strings.Repeat("s", 201), strings.Repeat("long/", 205) + "x",
	} {
		if _, err := s.Stat(t.Context(), key); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat %q: got error %v, want a refusal", key, err)
		}
		if _, err := s.Put(t.Context(), key, strings.NewReader("x"), 1, remote.Cond{}); err == nil {
			t.Errorf("put %q: no error", key)
		}
		if err := s.Delete(t.Context(), key); err == nil {
			t.Errorf("delete %q: no error", key)
		}
		o := remote.Object{Key: key, ETag: "0", Size: 1}
		if err := s.ReadRange(t.Context(), o, make([]byte, 1), 0); err == nil {
			t.Errorf("read %q: no error", key)
		}
	}
	for _, prefix := range []string{"/", "../", "a//", "./", "a/../", "a//b", "\x00"} {
		n := 0
		var last error
		for _, err := range s.List(t.Context(), prefix) {
			n, last = n+1, err
		}
		if n != 1 || last == nil {
			t.Errorf("list %q: %d results, last error %v; want one error", prefix, n, last)
		}
	}
}

func cancelled(t *testing.T, s remote.Store) {
	o := mustPut(t, s, "k", []byte("x"), remote.Cond{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Stat(ctx, "k")
	wantErr(t, "stat", err, context.Canceled)
	wantErr(t, "read", s.ReadRange(ctx, o, make([]byte, 1), 0), context.Canceled)
	_, err = s.Put(ctx, "l", strings.NewReader("x"), 1, remote.Cond{})
	wantErr(t, "put", err, context.Canceled)
	wantErr(t, "delete", s.Delete(ctx, "k"), context.Canceled)
	err = nil
	for _, err = range s.List(ctx, "") {
	}
	wantErr(t, "list", err, context.Canceled)

	// Cancelled on the way: what was read so far is not stored.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	r := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), cancelReader(cancel), bytes.NewReader(make([]byte, 9<<20)))
	_, err = s.Put(ctx, "m", r, 10<<20, remote.Cond{})
	wantErr(t, "put cancelled on the way", err, context.Canceled)
	if got, want := list(t, s, ""), []string{"k"}; !slices.Equal(got, want) {
		t.Errorf("list: got %q, want %q", got, want)
	}
}

// cancelReader ends at once and calls itself.
type cancelReader func()

func (c cancelReader) Read([]byte) (int, error) {
	c()
	return 0, io.EOF
}

// race runs n writers at once and returns how many were without error. Every
// error has to be lost.
func race(t *testing.T, n int, lost error, write func(i int) error) int {
	var wins atomic.Int64
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			switch err := write(i); {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, lost):
				t.Errorf("writer %d: got error %v, want nil or %v", i, err, lost)
			}
		})
	}
	close(start)
	wg.Wait()
	return int(wins.Load())
}

package remotetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"imagefs/remote"
)

// uploading makes a check of one that needs a store that takes parts.
func uploading(check func(*testing.T, remote.Store, remote.Uploader)) func(*testing.T, remote.Store) {
	return func(t *testing.T, s remote.Store) {
		u, ok := s.(remote.Uploader)
		if !ok {
			t.Fatal("the store takes no parts, which every import needs")
		}
		check(t, s, u)
	}
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

func mustUpload(t *testing.T, s remote.Uploader, key string) remote.Upload {
	t.Helper()
	u, err := s.Upload(t.Context(), key)
	if err != nil {
		t.Fatalf("upload %q: %v", key, err)
	}
	t.Cleanup(func() {
		if err := u.Abort(context.Background()); err != nil {
			t.Errorf("abort upload of %q: %v", key, err)
		}
	})
	return u
}

func mustPart(t *testing.T, u remote.Upload, number int, b []byte) {
	t.Helper()
	if err := u.Part(t.Context(), number, section(b)); err != nil {
		t.Fatalf("part %d: %v", number, err)
	}
}

// mustComplete completes u and checks that its object is key, with size bytes.
func mustComplete(t *testing.T, s remote.Store, u remote.Upload, key string, size int) {
	t.Helper()
	o, err := u.Complete(t.Context())
	if err != nil {
		t.Fatalf("complete %q: %v", key, err)
	}
	st, err := s.Stat(t.Context(), key)
	if err != nil {
		t.Fatalf("stat %q: %v", key, err)
	}
	if o.Key != key || o.Size != int64(size) || o.ETag != st.ETag || st.Size != o.Size || o.ModTime.IsZero() {
		t.Fatalf("complete %q returned %+v, want %d bytes; stat says %+v", key, o, size, st)
	}
}

// pending returns the keys of the unfinished uploads below prefix.
func pending(t *testing.T, s remote.Uploader, prefix string) []string {
	t.Helper()
	var keys []string
	for u, err := range s.Uploads(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("uploads of %q: %v", prefix, err)
		}
		if u.ID == "" || u.Started.IsZero() {
			t.Errorf("unfinished upload without id or time: %+v", u)
		}
		keys = append(keys, u.Key)
	}
	return keys
}

func uploadInParts(t *testing.T, s remote.Store, up remote.Uploader) {
	const size = 16<<20 + 12_345
	data := Bytes(7, size)
	clear(data[1<<20 : 5<<20]) // what a store may keep as a hole
	clear(data[size-100:])
	u := mustUpload(t, up, "disks/large")
	var wg sync.WaitGroup
	for n := 2; n >= 1; n-- {
		wg.Go(func() {
			off := remote.PartOffset(n)
			r := io.NewSectionReader(bytes.NewReader(data), off, min(remote.PartSize(n), size-off))
			if _, err := r.Seek(5, io.SeekStart); err != nil { // where it stands does not matter
				t.Error(err)
			}
			if err := u.Part(t.Context(), n, r); err != nil {
				t.Errorf("part %d: %v", n, err)
			}
		})
	}
	wg.Wait()
	_, err := s.Stat(t.Context(), "disks/large")
	wantErr(t, "stat before completion", err, fs.ErrNotExist)
	if got := list(t, s, "disks/"); len(got) != 0 {
		t.Errorf("list before completion: got %q", got)
	}
	mustComplete(t, s, u, "disks/large", size)
	mustHold(t, s, "disks/large", data)
	mustComplete(t, s, u, "disks/large", size) // again
	if err := u.Abort(t.Context()); err != nil {
		t.Errorf("abort after completion: %v", err)
	}
	mustHold(t, s, "disks/large", data)
	if got := pending(t, up, "disks/"); len(got) != 0 {
		t.Errorf("uploads after completion: got %q", got)
	}
}

func uploadOfLittle(t *testing.T, s remote.Store, up remote.Uploader) {
	for _, size := range []int{0, 1, 5000} {
		key := fmt.Sprintf("little-%d", size)
		u := mustUpload(t, up, key)
		if size > 0 {
			mustPart(t, u, 1, Bytes(8, size))
		}
		mustComplete(t, s, u, key, size)
		mustHold(t, s, key, Bytes(8, size))
	}
	for _, key := range oddKeys {
		u := mustUpload(t, up, key)
		mustPart(t, u, 1, []byte(key))
		mustComplete(t, s, u, key, len(key))
		mustHold(t, s, key, []byte(key))
	}
	if got := pending(t, up, ""); len(got) != 0 {
		t.Errorf("uploads after completion: got %q", got)
	}
}

func uploadReplacesParts(t *testing.T, s remote.Store, up remote.Uploader) {
	u := mustUpload(t, up, "k")
	mustPart(t, u, 1, Bytes(9, 300_000))
	mustPart(t, u, 1, make([]byte, 200_000))
	mustComplete(t, s, u, "k", 200_000)
	mustHold(t, s, "k", make([]byte, 200_000))
}

func uploadRefusals(t *testing.T, s remote.Store, up remote.Uploader) {
	u := mustUpload(t, up, "k")
	for _, n := range []int{-1, 0, remote.MaxParts + 1} {
		if err := u.Part(t.Context(), n, section([]byte("x"))); err == nil {
			t.Errorf("part %d: no error", n)
		}
	}
	if err := u.Part(t.Context(), 1, section(nil)); err == nil {
		t.Error("part of no bytes: no error")
	}
	if err := u.Part(t.Context(), 1, io.NewSectionReader(bytes.NewReader(nil), 0, remote.PartSize(1)+1)); err == nil {
		t.Error("part of too many bytes: no error")
	}
	err := u.Part(t.Context(), 1, io.NewSectionReader(bytes.NewReader([]byte("short")), 0, 6))
	wantErr(t, "part of a source that is too short", err, io.ErrUnexpectedEOF)

	mustPart(t, u, 2, []byte("x"))
	if _, err := u.Complete(t.Context()); err == nil {
		t.Error("complete with part 1 missing: no error")
	}
	mustPart(t, u, 1, []byte("x"))
	if _, err := u.Complete(t.Context()); err == nil {
		t.Error("complete with part 1 of 2 not full: no error")
	}
	_, err = s.Stat(t.Context(), "k")
	wantErr(t, "stat after refusals", err, fs.ErrNotExist)

	for _, key := range []string{"", "a/../b", "a/", "a\nb"} {
		if _, err := up.Upload(t.Context(), key); err == nil {
			t.Errorf("upload %q: no error", key)
		}
		if err := up.AbortUploads(t.Context(), key); err == nil {
			t.Errorf("abort uploads of %q: no error", key)
		}
	}
}

func uploadOverAnObject(t *testing.T, s remote.Store, up remote.Uploader) {
	for _, theirs := range []string{"theirs", "as long"} {
		u := mustUpload(t, up, theirs)
		mustPart(t, u, 1, []byte("ours---"))
		mustPut(t, s, theirs, []byte(theirs), remote.Cond{})
		_, err := u.Complete(t.Context())
		wantErr(t, "complete over an object", err, fs.ErrExist)
		mustHold(t, s, theirs, []byte(theirs))
	}
	u := mustUpload(t, up, "empty")
	mustPut(t, s, "empty", []byte("theirs"), remote.Cond{})
	_, err := u.Complete(t.Context())
	wantErr(t, "complete nothing over an object", err, fs.ErrExist)
	mustHold(t, s, "empty", []byte("theirs"))
}

func uploadAborted(t *testing.T, s remote.Store, up remote.Uploader) {
	ended := func(how string, u remote.Upload) {
		t.Helper()
		wantErr(t, "part after "+how, u.Part(t.Context(), 1, section([]byte("x"))), fs.ErrNotExist)
		_, err := u.Complete(t.Context())
		wantErr(t, "complete after "+how, err, fs.ErrNotExist)
		for range 2 {
			if err := u.Abort(t.Context()); err != nil {
				t.Errorf("abort after %s: %v", how, err)
			}
		}
	}
	u := mustUpload(t, up, "a/k")
	mustPart(t, u, 1, []byte("x"))
	if err := u.Abort(t.Context()); err != nil {
		t.Fatalf("abort: %v", err)
	}
	ended("abort", u)

	one, two := mustUpload(t, up, "a/k"), mustUpload(t, up, "a/k")
	others := []remote.Upload{mustUpload(t, up, "a/k2"), mustUpload(t, up, "k"), mustUpload(t, up, "a/k/l")}
	mustPart(t, one, 1, []byte("x"))
	for range 2 {
		if err := up.AbortUploads(t.Context(), "a/k"); err != nil {
			t.Fatalf("abort uploads: %v", err)
		}
	}
	ended("abort of all uploads", one)
	ended("abort of all uploads, without a part", two)
	for i, key := range []string{"a/k2", "k", "a/k/l"} {
		mustPart(t, others[i], 1, []byte(key))
		mustComplete(t, s, others[i], key, len(key))
	}
	if err := up.AbortUploads(t.Context(), "no/such/folder"); err != nil {
		t.Errorf("abort of no uploads: %v", err)
	}
	_, err := s.Stat(t.Context(), "a/k")
	wantErr(t, "stat after abort", err, fs.ErrNotExist)
}

func uploadsListed(t *testing.T, _ remote.Store, up remote.Uploader) {
	var want []string
	for _, key := range oddKeys {
		mustUpload(t, up, "disks/"+key)
		want = append(want, "disks/"+key)
	}
	mustUpload(t, up, "disks/twice")
	mustUpload(t, up, "disks/twice")
	mustUpload(t, up, "disks.json")
	want = append(want, "disks/twice", "disks/twice")
	slices.Sort(want)
	if got := pending(t, up, "disks/"); !slices.Equal(got, want) {
		t.Errorf("uploads of a folder:\ngot  %q\nwant %q", got, want)
	}
	if got, want := pending(t, up, "disks/tw"), []string{"disks/twice", "disks/twice"}; !slices.Equal(got, want) {
		t.Errorf("uploads of a prefix: got %q, want %q", got, want)
	}
	if got := pending(t, up, ""); len(got) != len(want)+1 {
		t.Errorf("all uploads: got %d, want %d", len(got), len(want)+1)
	}
	if got := pending(t, up, "missing/"); len(got) != 0 {
		t.Errorf("uploads of a folder that is not there: got %q", got)
	}
	for range up.Uploads(t.Context(), "disks/") {
		break // leaving early is allowed
	}
}

func uploadCancelled(t *testing.T, _ remote.Store, up remote.Uploader) {
	u := mustUpload(t, up, "k")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := up.Upload(ctx, "l")
	wantErr(t, "upload", err, context.Canceled)
	wantErr(t, "part", u.Part(ctx, 1, section([]byte("x"))), context.Canceled)
	_, err = u.Complete(ctx)
	wantErr(t, "complete", err, context.Canceled)
	wantErr(t, "abort uploads", up.AbortUploads(ctx, "k"), context.Canceled)
	err = nil
	for _, err = range up.Uploads(ctx, "") {
	}
	wantErr(t, "uploads", err, context.Canceled)

	broken := errors.New("broken reader")
	err = u.Part(t.Context(), 1, io.NewSectionReader(brokenAt{broken}, 0, 1<<20))
	wantErr(t, "part of a broken source", err, broken)
}

type brokenAt struct{ err error }

func (b brokenAt) ReadAt([]byte, int64) (int, error) { return 0, b.err }

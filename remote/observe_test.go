package remote_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"imagefs/remote"
	"imagefs/remote/mem"
	"imagefs/remote/remotetest"
)

func TestObservedStore(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store { return remote.Observe(mem.New()) })
}

func TestObservedCountsUploads(t *testing.T) {
	s := remote.Observe(mem.New())
	u, err := s.Upload(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 1, 0} { // the last fails
		_ = u.Part(t.Context(), n, io.NewSectionReader(strings.NewReader("text"), 0, 4))
	}
	if _, err := u.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, want := s.Counts(), remote.Counts{Uploads: 1, Parts: 3, Uploaded: 8, Errors: 1}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestObservedStoreWithoutPartsSaysSo(t *testing.T) {
	s := remote.Observe(struct{ remote.Store }{mem.New()})
	_, err := s.Upload(t.Context(), "k")
	errs := []error{err, s.AbortUploads(t.Context(), "k"), nil}
	for _, errs[2] = range s.Uploads(t.Context(), "") {
	}
	for i, err := range errs {
		if !errors.Is(err, remote.ErrUnsupported) {
			t.Errorf("call %d: got error %v, want ErrUnsupported", i, err)
		}
	}
}

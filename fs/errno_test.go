package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"syscall"
	"testing"

	"imagefs/codec"
	"imagefs/fs/image"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

func TestErrno(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{iofs.ErrNotExist, syscall.ENOENT},
		{iofs.ErrExist, syscall.EEXIST},
		{iofs.ErrPermission, syscall.EACCES},
		{remote.ErrCredentials, syscall.EACCES},
		{remote.ErrChanged, syscall.ESTALE},
		{remote.ErrUnavailable, syscall.EIO},
		{remote.ErrNoBucket, syscall.EIO},
		{io.ErrUnexpectedEOF, syscall.EIO},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{codec.ErrCorrupt, syscall.EIO},
		{codec.ErrFormat, syscall.EIO},
		{codec.ErrUnsupported, syscall.EOPNOTSUPP},
		{codec.ErrTooLarge, syscall.EFBIG},
		{image.ErrNotShown, syscall.ENOENT},
		{syscall.ENOSPC, syscall.ENOSPC},
		{syscall.EDQUOT, syscall.EDQUOT},
		{syscall.EFBIG, syscall.EFBIG},
		{syscall.EPERM, syscall.EPERM},
		{syscall.ENOTEMPTY, syscall.ENOTEMPTY},
		{catalog.ErrConflict, syscall.EBUSY},
		{stage.ErrBusy, syscall.EBUSY},
		{stage.ErrGone, syscall.ESTALE},
		{stage.ErrName, syscall.EINVAL},
		{fmt.Errorf("%w: %w", stage.ErrRefused, codec.ErrCorrupt), syscall.EINVAL},
		{fmt.Errorf("%w: %w", stage.ErrRefused, codec.ErrFormat), syscall.EINVAL},
		{fmt.Errorf("%w: %w", stage.ErrRefused, codec.ErrUnsupported), syscall.EOPNOTSUPP},
	} {
		if got, known := Errno(tc.err); got != tc.want || !known {
			t.Errorf("%v: got %v (known %v), want %v", tc.err, got, known, tc.want)
		}
		if tc.err == nil {
			continue
		}
		wrapped := fmt.Errorf("read %q: %w", "a.qcow2", tc.err)
		if got, _ := Errno(wrapped); got != tc.want {
			t.Errorf("wrapped %v: got %v, want %v", tc.err, got, tc.want)
		}
	}
	if got, known := Errno(errors.New("new kind")); got != syscall.EIO || known {
		t.Errorf("an unknown error: %v (known %v), want EIO, unknown", got, known)
	}
	// An object that vanished under an open file is stale, however it was reported.
	if got, _ := Errno(fmt.Errorf("%w: %w", remote.ErrChanged, iofs.ErrNotExist)); got != syscall.ESTALE {
		t.Errorf("vanished: %v", got)
	}
}

func TestErrorsAreCountedNotRepeated(t *testing.T) {
	var s Problems
	for range 3 {
		s.Record("read", "a", errors.New("broken"))
	}
	for i := range maxErrors + 10 {
		s.Record("read", fmt.Sprint(i), errors.New("broken"))
	}
	if len(s.errors) != maxErrors {
		t.Errorf("%d problems kept", len(s.errors))
	}
	s.errors = nil
	for range 3 {
		s.Record("read", "a", errors.New("broken"))
	}
	if got := string(s.render()); len(s.errors) != 1 || got[len(got)-len("read a: broken (3 times)\n"):] != "read a: broken (3 times)\n" {
		t.Errorf("rendered %q", got)
	}
}

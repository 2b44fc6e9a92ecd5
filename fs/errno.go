package fs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"syscall"

	"imagefs/codec"
	"imagefs/fs/image"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// errnos is the one table that turns an error into a number; the first row
// that matches with errors.Is decides.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{image.ErrNotShown, syscall.ENOENT},
	// Before the sentinels that they also are.
	{syscall.EPERM, syscall.EPERM},
	{syscall.ENOTEMPTY, syscall.ENOTEMPTY},
	{catalog.ErrConflict, syscall.EBUSY},
	{stage.ErrBusy, syscall.EBUSY},
	{stage.ErrName, syscall.EINVAL},
	{remote.ErrChanged, syscall.ESTALE},
	{stage.ErrGone, syscall.ESTALE}, // the kernel looks the name up again
	{remote.ErrCredentials, syscall.EACCES},
	{fs.ErrPermission, syscall.EACCES},
	{remote.ErrNoBucket, syscall.EIO},
	{fs.ErrNotExist, syscall.ENOENT},
	{fs.ErrExist, syscall.EEXIST},
	{codec.ErrUnsupported, syscall.EOPNOTSUPP},
	{codec.ErrTooLarge, syscall.EFBIG},
	{stage.ErrRefused, syscall.EINVAL},
	{codec.ErrCorrupt, syscall.EIO},
	{codec.ErrFormat, syscall.EIO},
	{remote.ErrUnavailable, syscall.EIO},
	{io.ErrUnexpectedEOF, syscall.EIO},
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{syscall.ENOSPC, syscall.ENOSPC},
	{syscall.EDQUOT, syscall.EDQUOT},
	{syscall.EFBIG, syscall.EFBIG},
	{syscall.EOPNOTSUPP, syscall.EOPNOTSUPP},
	{syscall.EINVAL, syscall.EINVAL},
	{remote.ErrUnsupported, syscall.EOPNOTSUPP},
}

// Errno returns the number that stands for err, and whether the table knew it;
// EIO where it did not.
func Errno(err error) (e syscall.Errno, known bool) {
	if err == nil {
		return 0, true
	}
	for _, row := range errnos {
		if errors.Is(err, row.err) {
			return row.errno, true
		}
	}
	return syscall.EIO, false
}

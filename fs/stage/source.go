package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"imagefs/codec"
)

// local is a file of this machine, or a part of one, as a raw disk that knows
// its holes. Its size is fixed when it is made: nobody writes to it meanwhile.
type local struct {
	f    *os.File
	off  int64 // where it begins in the file
	size int64
}

func (l *local) Size() int64 { return l.size }

func (l *local) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, l.size, func(_ context.Context, p []byte, off int64) (int, error) {
		n, err := l.f.ReadAt(p, l.off+off)
		if n < len(p) && (err == nil || errors.Is(err, io.EOF)) {
			err = io.ErrUnexpectedEOF // it was longer when it was sealed
		}
		if n == len(p) {
			err = nil
		}
		return n, err
	})
}

// Extents tells the holes of the file: what the file system does not hold.
func (l *local) Extents(_ context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		if off < 0 || off >= l.size {
			return
		}
		end := off + min(n, l.size-off)
		for off < end {
			data, err := l.seek(off, unix.SEEK_DATA)
			if err != nil {
				yield(codec.Extent{}, err)
				return
			}
			if data = min(data, end); data > off {
				if !yield(codec.Extent{Off: off, Len: data - off, Zero: true}, nil) {
					return
				}
				off = data
				continue
			}
			hole, err := l.seek(off, unix.SEEK_HOLE)
			if err != nil {
				yield(codec.Extent{}, err)
				return
			}
			hole = min(max(hole, off+1), end)
			if !yield(codec.Extent{Off: off, Len: hole - off}, nil) {
				return
			}
			off = hole
		}
	}
}

// watched is a disk that tells how far it is read.
type watched struct {
	codec.Disk
	tell func(end int64) // may be nil
}

func (w *watched) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := w.Disk.ReadAt(ctx, p, off)
	if w.tell != nil {
		w.tell(off + int64(n))
	}
	return n, err
}

// seek finds the next data or hole at or behind off, the end when there is none.
// A file system that cannot tell has data everywhere.
func (l *local) seek(off int64, whence int) (int64, error) {
	for {
		at, err := unix.Seek(int(l.f.Fd()), l.off+off, whence)
		switch {
		case err == nil:
			return min(at-l.off, l.size), nil
		case err == syscall.EINTR:
		case err == syscall.ENXIO:
			return l.size, nil
		case err == syscall.EINVAL && whence == unix.SEEK_DATA:
			return off, nil
		case err == syscall.EINVAL:
			return l.size, nil
		default:
			return 0, fmt.Errorf("look for holes in %q at %d: %w", l.f.Name(), off, err)
		}
	}
}

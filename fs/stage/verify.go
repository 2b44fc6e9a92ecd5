package stage

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"

	"imagefs/codec"
	"imagefs/codec/qcow2"
)

// verify reads an encoded raw disk back and compares it with what it was made
// of, so that no fault of an encoder can pass, and returns what decoding found
// out. src may be up to a sector shorter than the encoded disk, whose rest is
// zeros.
func verify(ctx context.Context, encoded *local, src codec.Disk) (*codec.Index, error) {
	x, err := readBack(ctx, encoded, src)
	if err != nil {
		x.Close()
		return nil, fmt.Errorf("read back what was encoded: %w", err)
	}
	return x, nil
}

func readBack(ctx context.Context, encoded *local, src codec.Disk) (*codec.Index, error) {
	d, err := qcow2.Format.Open(ctx, encoded)
	if err != nil {
		return nil, err
	}
	if d.Size() < src.Size() || d.Size()-src.Size() >= 512 {
		return nil, fmt.Errorf("%d bytes of %d", d.Size(), src.Size())
	}
	var bufs sync.Pool // of *[]byte, each as large as the blocks
	x, err := codec.BuildIndex(ctx, d, runtime.GOMAXPROCS(0), func(off int64, block []byte) error {
		buf, _ := bufs.Get().(*[]byte)
		if buf == nil || len(*buf) < len(block) {
			b := make([]byte, len(block))
			buf = &b
		}
		defer bufs.Put(buf)
		return equal(ctx, src, off, block, *buf)
	})
	if err == nil {
		err = comparePlain(ctx, d, src)
	}
	return x, err
}

// equal compares the bytes at off of a disk, and the zeros behind its end, with
// b. buf has room for as many.
func equal(ctx context.Context, src codec.Disk, off int64, b, buf []byte) error {
	buf = buf[:min(int64(len(b)), max(src.Size()-off, 0))]
	if n, err := src.ReadAt(ctx, buf, off); n < len(buf) {
		return fmt.Errorf("%d bytes at %d: %w", len(buf), off, unexpected(err))
	}
	if !bytes.Equal(buf, b[:len(buf)]) || !codec.Empty(b[len(buf):]) {
		return fmt.Errorf("it differs within %d bytes at %d", len(b), off)
	}
	return nil
}

// comparePlain compares what is not encoded of d: blocks that are stored plain,
// and those that are not there and have to be zeros in the source.
func comparePlain(ctx context.Context, d, src codec.Disk) error {
	s, ok := d.(codec.Streamed)
	if !ok {
		return fmt.Errorf("a disk without streams")
	}
	block := s.Unit()
	if block == 0 { // nothing is encoded
		block = decodePiece
	}
	return eachPiece(ctx, src, func(ctx context.Context, buf []byte, e codec.Extent) error {
		for x, err := range d.Extents(ctx, e.Off, e.Len) {
			if err != nil {
				return err
			}
			if x.Zero && e.Zero {
				continue
			}
			for off, end := x.Off, x.Off+x.Len; off < end; {
				n := min(block-off%block, end-off, decodePiece) // buf has room for two
				if _, encoded := s.StreamAt(off / block); !encoded {
					if err := compare(ctx, d, src, off, buf[:n], buf[decodePiece:]); err != nil {
						return err
					}
				}
				off += n
			}
		}
		return nil
	})
}

// compare compares len(buf) bytes at off of two disks; more has room for as many.
func compare(ctx context.Context, d, src codec.Disk, off int64, buf, more []byte) error {
	if n, err := d.ReadAt(ctx, buf, off); n < len(buf) {
		return fmt.Errorf("%d bytes at %d: %w", len(buf), off, unexpected(err))
	}
	return equal(ctx, src, off, buf, more)
}

package stage

import (
	"bytes"
	"context"
	"fmt"

	"imagefs/codec"
	"imagefs/codec/qcow2"
)

// verify reads an encoded raw disk back and compares it with what it was made
// of, so that no fault of an encoder can pass. src may be up to a sector
// shorter than the encoded disk, whose rest is zeros.
func verify(ctx context.Context, encoded *local, src codec.Disk) error {
	d, err := qcow2.Format.Open(ctx, encoded)
	if err != nil {
		return fmt.Errorf("read back what was encoded: %w", err)
	}
	if d.Size() < src.Size() || d.Size()-src.Size() >= 512 {
		return fmt.Errorf("read back what was encoded: %d bytes of %d", d.Size(), src.Size())
	}
	return eachPiece(ctx, src, func(ctx context.Context, buf []byte, e codec.Extent) error {
		if e.Zero {
			return verifyZero(ctx, d, e)
		}
		got, want := buf[:e.Len], buf[decodePiece:][:e.Len]
		for _, r := range []struct {
			p   []byte
			src codec.ReaderAt
		}{{got, d}, {want, src}} {
			if n, err := r.src.ReadAt(ctx, r.p, e.Off); n < len(r.p) {
				return fmt.Errorf("read back what was encoded, %d bytes at %d: %w", e.Len, e.Off, unexpected(err))
			}
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("read back what was encoded: it differs within %d bytes at %d", e.Len, e.Off)
		}
		return nil
	})
}

// verifyZero reports whether d reads as zeros where its source is a hole.
func verifyZero(ctx context.Context, d codec.Disk, e codec.Extent) error {
	for x, err := range d.Extents(ctx, e.Off, e.Len) {
		if err != nil {
			return err
		}
		if x.Zero {
			continue
		}
		// A cluster of data may reach into a hole.
		buf := make([]byte, min(x.Len, decodePiece))
		for off := x.Off; off < x.Off+x.Len; off += int64(len(buf)) {
			buf = buf[:min(int64(len(buf)), x.Off+x.Len-off)]
			if n, err := d.ReadAt(ctx, buf, off); n < len(buf) {
				return fmt.Errorf("read back what was encoded, %d bytes at %d: %w", len(buf), off, unexpected(err))
			}
			if len(bytes.TrimLeft(buf, "\x00")) > 0 {
				return fmt.Errorf("read back what was encoded: no zeros in the hole at %d", off)
			}
		}
	}
	return nil
}

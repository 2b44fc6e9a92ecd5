package vmdk

import (
	"context"
	"fmt"

	"imagefs/codec"
)

var _ codec.Streamed = (*disk)(nil)

// Encoding implements [codec.Streamed].
func (d *disk) Encoding() string { return codec.Deflate }

// StreamAt implements [codec.Streamed]: behind the head of the record and that
// of the zlib stream.
func (d *disk) StreamAt(i int64) (off int64, ok bool) {
	e, ok := d.EncodedAt(i)
	if !ok {
		return 0, false
	}
	_, at := unpack(e)
	return at + recordHead + 2, true
}

// Measure implements [codec.Streamed].
func (d *disk) Measure(ctx context.Context, i int64, dst []byte) (int64, error) {
	e, ok := d.EncodedAt(i)
	if !ok {
		return 0, fmt.Errorf("grain %d is not compressed", i)
	}
	return d.loader.dec.measure(ctx, e, dst)
}
